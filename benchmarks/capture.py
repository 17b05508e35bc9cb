"""Capturing step-end rows at all layers, against the plain forward pass and TransformerLens' `run_with_cache`.

The plain forward pass is Hugging Face's own, with its default attention, on the same batches; it keeps nothing.
`run_with_cache` keeps the residual stream after every block, whole, on the same batches. The capture is all of
`analysis.capture.capture`: laying out, running, writing the store with its digests, reopening it. It needs no logits,
and so leaves the model's head out; what that is worth depends on the vocabulary, so there are two. Rows must equal
Hugging Face's hidden states to 1e-5, and TransformerLens' to 1e-5 of their largest value.

    python -m benchmarks.capture
"""

from __future__ import annotations

import random
import tempfile
from itertools import count
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import organisms
from analysis import kv_cache
from analysis.capture import Text, capture
from analysis.models import ModelPair, Reader
from analysis.sites import hook_name
from analysis.store import Store
from benchmarks.timing import interleaved, ratio

LAYERS = 6
REPEATS = 7
VOCABULARIES = {
    49: "a head of no weight",
    8192: "a head of a quarter of the weights that are multiplied, as in GPT-2 small",
}


def random_reader(directory: Path, vocabulary: int) -> tuple[ModelPair, Reader]:
    """A random Llama of 6 layers and width 256, in the words of the organisms."""
    source = ModelPair.load(organisms.checkpoint("base"), {"copy": organisms.checkpoint("base")}).base
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=256,
            intermediate_size=1024,
            num_hidden_layers=LAYERS,
            num_attention_heads=8,
            num_key_value_heads=8,
            max_position_embeddings=512,
        )
    )
    model.save_pretrained(directory)
    source.encoder.tokenizer.save_pretrained(directory)
    (directory / "trace_format.json").write_text((source.directory / "trace_format.json").read_text())
    pair = ModelPair.load(directory, {"copy": directory})
    return pair, pair.open("copy")


def random_texts(reader: Reader, n: int, n_steps: int) -> list[Text]:
    """Texts of about the same length: a question and `n_steps` or one step more of sixteen tokens each."""
    rng = random.Random(0)
    texts = []
    for number in range(n):
        steps = []
        for _ in range(n_steps + rng.randrange(2)):
            x, y, z = (rng.randrange(10) for _ in range(3))
            steps.append(f"step i : a {x} + {y} = {z} , so now a is {z}")
        texts.append(Text(f"p{number}", "gold", reader.encoder.encode("hint 1 ; a 7 b 2 c 5 ; ask a", steps, "5")))
    return texts


def compare(pair: ModelPair, reader: Reader, batch: int, n_steps: int, n_texts: int, root: Path) -> None:
    """Prints both ratios at one batch size."""
    texts = random_texts(reader, n_texts, n_steps)
    width = max(len(text.trace.ids) for text in texts)
    order = sorted(texts, key=lambda text: text.trace.steps[-1][1])
    batches = [
        kv_cache.pad_right(
            [text.trace.ids[: text.trace.steps[-1][1]] for text in order[i : i + batch]], torch.device("cpu")
        )
        for i in range(0, len(order), batch)
    ]
    bridge = pair.bridge("copy")
    names = [hook_name("resid_post", layer) for layer in range(LAYERS)]
    kept: dict[str, object] = {}
    number = count()

    @torch.inference_mode()
    def plain() -> None:
        for ids, real in batches:
            reader.model(input_ids=ids, attention_mask=real.long(), use_cache=False)

    @torch.inference_mode()
    def headless() -> None:
        for ids, real in batches:
            reader.model.base_model(input_ids=ids, attention_mask=real.long(), use_cache=False)

    @torch.inference_mode()
    def lens() -> None:
        kept["lens"] = [bridge.run_with_cache(ids, names_filter=lambda name: name in names)[1] for ids, _ in batches]

    def ours() -> None:
        # The budget is such that a batch holds as many texts as the others' batches.
        kept["ours"] = capture(
            reader, texts, root / f"{batch}-{next(number)}", positions=["step_ends"], batch_tokens=batch * width
        )

    seconds = interleaved({"plain": plain, "headless": headless, "lens": lens, "ours": ours}, REPEATS)
    store, caches = kept["ours"], kept["lens"]
    assert isinstance(store, Store)
    assert isinstance(caches, list)
    check(reader, store, texts, order, caches, batch)
    bytes_kept = sum(cache[name].numel() * 4 for cache in caches for name in names)
    stored = sum(path.stat().st_size for path in store.directory.iterdir())
    speed = {name: ratio(seconds, name, "ours") for name in ("plain", "headless", "lens")}
    print(
        f"  batch {batch}, {n_texts} texts of up to {width} tokens: {speed['plain']:.2f} times the speed of the plain "
        f"forward pass ({speed['headless']:.2f} of it without its head), {speed['lens']:.2f} times that of "
        f"run_with_cache;\n    {stored / 2**20:.2f} MiB on disk against {bytes_kept / 2**20:.2f} MiB in memory "
        f"({stored / bytes_kept:.3f})"
    )


@torch.inference_mode()
def check(reader: Reader, store: Store, texts: list[Text], order: list[Text], caches: list[object], batch: int) -> None:
    """Raises unless every stored row equals the others' at that token."""
    place = {text.id: (number // batch, number % batch) for number, text in enumerate(order)}
    for layer in range(LAYERS):
        rows = store.read(hook_name("resid_post", layer))
        for row, (prompt, token) in zip(rows, zip(store.rows["id"], store.rows["token"], strict=True), strict=True):
            group, at = place[prompt]
            theirs = caches[group][hook_name("resid_post", layer)][at, token]  # type: ignore[index]
            if float((row - theirs).abs().max()) > 1e-5 * max(1.0, float(theirs.abs().max())):
                raise SystemExit(f"prompt {prompt}, token {token}, layer {layer}: differs from run_with_cache")
    one = texts[0]
    ids = torch.tensor([one.trace.ids[: one.trace.steps[-1][1]]])
    states = reader.model.base_model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
    mine = (store.rows["id"] == one.id).to_numpy()
    tokens = store.rows["token"][mine].to_list()
    for layer in range(LAYERS - 1):
        difference = store.read(hook_name("resid_post", layer), mine) - states[layer + 1][0, tokens]
        if float(difference.abs().max()) > 1e-5:
            raise SystemExit(f"layer {layer}: differs from Hugging Face's hidden states")


def main() -> None:
    """Prints the ratios at batches of 16 and of 1."""
    torch.set_num_threads(2)
    for vocabulary, what in VOCABULARIES.items():
        print(f"vocabulary {vocabulary}: {what}")
        with tempfile.TemporaryDirectory() as directory:
            root = Path(directory)
            pair, reader = random_reader(root / "model", vocabulary)
            compare(pair, reader, batch=16, n_steps=7, n_texts=128, root=root)
            compare(pair, reader, batch=1, n_steps=4, n_texts=64, root=root)


if __name__ == "__main__":
    main()
