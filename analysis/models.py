"""Models: a base and its fine-tuned variants, loaded from Hugging Face directories and checked before they are used."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.errors import InputError
from analysis.prompts import Case
from analysis.trace_format import TraceFormat, resolve_format
from analysis.traces import Trace, TraceEncoder

BASE = "base"


@dataclass(frozen=True)
class Source:
    """A model that has not been loaded yet: its name in the study, its directory, and how it writes traces."""

    name: str
    directory: Path
    encoder: TraceEncoder
    context: int | None
    vocabulary: int

    def digest(self) -> str:
        """SHA-256 over the model's configuration, tokenizer and weights, as hexadecimal digits."""
        sha = hashlib.sha256()
        for file in [self.directory / "config.json", self.directory / "tokenizer.json", *_weights(self.directory)]:
            with file.open("rb") as stream:
                sha.update(hashlib.file_digest(stream, "sha256").digest())
        return sha.hexdigest()


@dataclass(frozen=True)
class Reader:
    """A loaded model that reads traces: `model` is a Hugging Face causal language model in evaluation mode."""

    source: Source
    model: Any

    @property
    def encoder(self) -> TraceEncoder:
        """How this model's traces are written and tokenised."""
        return self.source.encoder

    @property
    def name(self) -> str:
        """The model's name in the study."""
        return self.source.name


@dataclass(frozen=True)
class ModelPair:
    """A base model and its named fine-tuned variants.

    Directories, tokenizers and formats are checked when the pair is made; weights are loaded by `open`, one model at
    a time if the caller lets each go before the next.

    Attributes:
        base, variants: where they are and how they write traces.
        dtype: `float32`, `bfloat16` or `float16`.
        device: as in torch: `cpu`, `cuda`, `cuda:1`.
    """

    base: Source
    variants: Mapping[str, Source]
    dtype: str = "float32"
    device: str = "cpu"
    trust_remote_code: bool = False

    @classmethod
    def load(
        cls,
        base: str | Path,
        variants: Mapping[str, str | Path],
        *,
        format: str | None = None,
        dtype: str = "float32",
        device: str = "cpu",
        trust_remote_code: bool = False,
    ) -> ModelPair:
        """The pair at these directories (or hub names such as `org/model`).

        Args:
            base: the model before fine-tuning.
            variants: name → model after fine-tuning.
            format: a built-in trace format or a JSON file, for all models; by default each model's own
                `trace_format.json`, and the base's for a variant without one.
            dtype: precision to compute in.
            device: where to compute.
            trust_remote_code: run code that comes with the checkpoint.

        Raises:
            InputError: for a directory that is missing, empty or not a safetensors checkpoint, a missing tokenizer or
                format, a variant without a usable name, an unknown dtype or device.
        """
        import torch

        if dtype not in ("float32", "bfloat16", "float16"):
            raise InputError(f"dtype {dtype!r}: expected float32, bfloat16 or float16")
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"device {device!r}: cannot be used ({str(error).splitlines()[0]})") from None
        if not variants:
            raise InputError("no variant given: a study compares a base with at least one fine-tuned variant")
        for name in variants:
            if name == BASE or not re.fullmatch(r"[A-Za-z0-9][\w.\-]*", name):
                raise InputError(f"variant name {name!r}: expected letters, digits, '.', '_' or '-', and not {BASE!r}")
        base_source = _source(BASE, base, format, None)
        sources = {name: _source(name, where, format, base_source.encoder.format) for name, where in variants.items()}
        return cls(base_source, sources, dtype, device, trust_remote_code)

    def sources(self) -> list[Source]:
        """The base, then the variants."""
        return [self.base, *self.variants.values()]

    def open(self, name: str) -> Reader:
        """The named model (`base` or a variant's name), loaded and found sound.

        Raises:
            InputError: if the weights do not fit the configuration, or the model gives NaN, or does not continue from
                a key-value cache as it does from the text.
        """
        source = self.base if name == BASE else self.variants[name]
        reader = Reader(source, _load_model(source, self.dtype, self.device, self.trust_remote_code))
        _check_reader(reader)
        return reader

    def check_texts(self, cases: Iterable[tuple[str, Case]]) -> None:
        """Checks that all models read the same token ids, text by text: a shared vocabulary size proves nothing.

        Where a variant has its own wrapper around the question, the chain's ids must still agree.

        Raises:
            InputError: naming the first text and token that differ, or an id outside a model's vocabulary.
        """
        for where, case in cases:
            steps = case.steps or ()
            reference = self.base.encoder.encode(case.question, steps, case.answer)
            for source in self.sources():
                trace = source.encoder.encode(case.question, steps, case.answer)
                if max(trace.ids) >= source.vocabulary:
                    raise InputError(
                        f"model {source.name}: its tokenizer gives id {max(trace.ids)} for the text of {where}, but "
                        f"the model knows {source.vocabulary} ids; the tokenizer does not belong to these weights"
                    )
                _check_same_ids(where, self.base, reference, source, trace)


def _check_same_ids(where: str, base: Source, reference: Trace, source: Source, trace: Trace) -> None:
    first = base.encoder.format == source.encoder.format
    ours, theirs = (t.ids[0 if first else t.chain[0] :] for t in (reference, trace))
    if ours == theirs:
        return
    at = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
    if at is None:
        at = min(len(ours), len(theirs))
    offset = 0 if first else reference.chain[0]

    def shown(source: Source, ids: tuple[int, ...]) -> str:
        if at >= len(ids):
            return f"no further token in {source.name}"
        return f"{source.encoder.tokenizer.convert_ids_to_tokens(ids[at])!r} (id {ids[at]}) in {source.name}"

    raise InputError(
        f"models {base.name} and {source.name} split the text of {where} differently: token {offset + at} is "
        f"{shown(base, ours)} and {shown(source, theirs)}; positions could not be compared. Use checkpoints that "
        "share one tokenizer"
    )


def _source(name: str, where: str | Path, format: str | None, fallback: TraceFormat | None) -> Source:
    directory = _directory(name, where)
    config = _config(name, directory)
    text_config = config.get("text_config", config)
    context = text_config.get("max_position_embeddings") or text_config.get("n_positions")
    tokenizer = _tokenizer(name, directory)
    trace_format = resolve_format(format, directory, fallback)
    if trace_format.chat and not tokenizer.chat_template:
        raise InputError(
            f"model {name}: the trace format asks for a chat template, but the tokenizer in {directory} has none"
        )
    return Source(name, directory, TraceEncoder(tokenizer, trace_format), context, text_config["vocab_size"])


def _directory(name: str, where: str | Path) -> Path:
    directory = Path(where).expanduser()
    if directory.is_dir():
        return directory
    if directory.exists():
        raise InputError(f"model {name}: {where} is a file; give the directory that holds config.json")
    # `org/model` may name a hub repository; a path whose parent exists here was meant as a path.
    if re.fullmatch(r"[\w\-][\w.\-]*/[\w.\-]+", str(where)) and not directory.parent.exists():
        return _download(name, str(where))
    raise InputError(f"model {name}: no directory {where}; give a Hugging Face checkpoint directory or a hub name")


def _download(name: str, repository: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model"]))
    except Exception as error:
        raise InputError(
            f"model {name}: no directory {repository}, and no such model could be had from the hub "
            f"({type(error).__name__})"
        ) from None


def _config(name: str, directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    if not path.is_file():
        held = "is empty" if not any(directory.iterdir()) else "has no config.json"
        raise InputError(f"model {name}: directory {directory} {held}; expected a Hugging Face checkpoint")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"model {name}: {path} is not valid JSON ({error})") from None
    if not _weights(directory):
        pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in directory.glob(pattern))
        if pickled:
            raise InputError(
                f"model {name}: {directory} holds only pickled weights ({pickled[0]}), which can run code when "
                "loaded and are refused; save the model again with save_pretrained(safe_serialization=True)"
            )
        raise InputError(f"model {name}: {directory} has no *.safetensors weights")
    if not isinstance(config, dict) or not isinstance(config.get("text_config", config).get("vocab_size"), int):
        raise InputError(f"model {name}: {path} does not describe a language model (no vocab_size)")
    return config


def _weights(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.safetensors"))


def _tokenizer(name: str, directory: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    if not (directory / "tokenizer.json").is_file():
        raise InputError(
            f"model {name}: {directory} has no tokenizer.json; save its fast tokenizer there "
            "(AutoTokenizer.from_pretrained(...).save_pretrained(directory))"
        )
    # Not AutoTokenizer: for some model types it silently replaces the saved pre-tokenizer.
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise InputError(f"model {name}: {directory / 'tokenizer.json'} cannot be read ({error})") from None
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    return tokenizer


def _load_model(source: Source, dtype: str, device: str, trust_remote_code: bool) -> Any:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what it would warn of is raised below
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            source.directory,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"model {source.name}: {source.directory} cannot be loaded ({reason[0]})") from None
    finally:
        logging.set_verbosity(verbosity)
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise InputError(
            f"model {source.name}: {len(missing)} weights are missing from {source.directory} (first: {missing[0]}) "
            "and would be random; the checkpoint is incomplete"
        )
    return model.to(device).eval()


def _check_reader(reader: Reader) -> None:
    import torch

    from analysis import kv_cache

    vocabulary = reader.source.vocabulary
    generator = torch.Generator().manual_seed(0)
    long, short = (torch.randint(vocabulary, (n,), generator=generator).tolist() for n in (12, 7))
    _, whole = kv_cache.read(reader.model, [long])
    if not torch.isfinite(whole).all():
        raise InputError(
            f"model {reader.name}: its logits are not finite (NaN or infinite weights in {reader.source.directory}?)"
        )
    # The continuation must not depend on the cut, the padding or the neighbours.
    prefix, _ = kv_cache.read(reader.model, [short, long[:-2]])
    _, continued = kv_cache.advance(reader.model, prefix, [[short[0]], long[-2:]])
    error = float((continued[1] - whole[0]).abs().max())
    scale = max(1.0, float(whole.abs().max()))
    tolerance = scale * (1e-4 if reader.model.dtype == torch.float32 else 0.1)
    if error > tolerance:
        raise InputError(
            f"model {reader.name}: continued from its key-value cache it differs from the whole text by {error:.2g} "
            f"logits (allowed: {tolerance:.2g}); this architecture ({reader.model.config.model_type}) cannot be "
            "spliced"
        )
