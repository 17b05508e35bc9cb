"""Checkpoints: Hugging Face directories of models and adapters, checked before anything of them is loaded."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.errors import InputError
from analysis.trace_format import TraceFormat, resolve_format
from analysis.traces import TraceEncoder

# Digits, decimals, white space, an accent and a symbol: where pre-tokenizers differ.
_PROBES = ("12 + 34 = 46", "Question: 3.14 of $1,200\n\tcafé — the answer is 7\n")
_MERGEABLE = ("LORA", "ADALORA", "LOHA", "LOKR", "IA3")


@dataclass(frozen=True)
class Source:
    """A model that has not been loaded yet.

    Attributes:
        name: its name in the study.
        directory: its Hugging Face directory, or its adapter's.
        encoder: how it writes traces.
        context: the longest text it takes, in tokens; None if its configuration does not say.
        vocabulary: how many token ids it knows.
        adapted: for a LoRA adapter, the model that it is merged into.
    """

    name: str
    directory: Path
    encoder: TraceEncoder
    context: int | None
    vocabulary: int
    adapted: Source | None = None

    def digest(self) -> str:
        """SHA-256 over configuration, tokenizer and weights (an adapter's and its model's), as hexadecimal digits."""
        names = ("config.json", "adapter_config.json", "tokenizer.json")
        files = [file for name in names if (file := self.directory / name).is_file()]
        own = _digest([*files, *weights(self.directory)])
        return _digest([], own + self.adapted.digest()) if self.adapted else own


def find(
    name: str,
    where: str | Path,
    format: str | None = None,
    fallback: TraceFormat | None = None,
    base: Source | None = None,
) -> Source:
    """The checked checkpoint at a directory or hub name.

    Args:
        name: the model's name in the study, for messages.
        where: directory, or hub name such as `org/model`.
        format: a built-in trace format or a JSON file; by default the model's own `trace_format.json`.
        fallback: the format of a model that has none of its own.
        base: the model that an adapter is merged into.

    Raises:
        InputError: for a directory that is missing, empty or not a safetensors checkpoint, a missing tokenizer or
            format, a tokenizer that does not load as it was saved, an adapter without `base` or made for another one.
    """
    directory = _directory(name, where)
    adapted = None
    if (directory / "adapter_config.json").is_file() and not (directory / "config.json").is_file():
        adapted = _adapted(name, directory, base)
    model_directory = adapted.directory if adapted else directory
    config = _config(name, model_directory)
    text_config = config.get("text_config", config)
    own_tokenizer = adapted is None or (directory / "tokenizer.json").is_file()
    tokenizer = _tokenizer(name, directory) if own_tokenizer else adapted.encoder.tokenizer  # type: ignore[union-attr]
    trace_format = resolve_format(format, directory, fallback)
    if trace_format.chat and not tokenizer.chat_template:
        raise InputError(
            f"model {name}: the trace format asks for a chat template, but the tokenizer in {directory} has none"
        )
    encoder = TraceEncoder(tokenizer, trace_format)
    return Source(name, directory, encoder, _context(text_config), text_config["vocab_size"], adapted)


def _context(config: dict[str, Any]) -> int | None:
    """The longest text for which every position means the same, whatever the text is batched with."""
    context: int | None = config.get("max_position_embeddings") or config.get("n_positions")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type")) in ("longrope", "su"):
        # Beyond it, the longest text of a batch switches the rotations of all of them.
        original = rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
        context = min(filter(None, (context, original)), default=None)
    return context


def weights(directory: Path) -> list[Path]:
    """The directory's safetensors files, in order."""
    return sorted(directory.glob("*.safetensors"))


def _digest(files: Sequence[Path], text: str = "") -> str:
    sha = hashlib.sha256(text.encode())
    for file in files:
        with file.open("rb") as stream:
            sha.update(hashlib.file_digest(stream, "sha256").digest())
    return sha.hexdigest()


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


def _adapted(name: str, directory: Path, base: Source | None) -> Source:
    if base is None:
        raise InputError(
            f"model {name}: {directory} holds an adapter, not a model; give the model that it was made for as the base "
            "(--base), and the adapter as a variant or as the model to run"
        )
    config = _json(name, directory / "adapter_config.json")
    _check_weights(name, directory)
    kind = config.get("peft_type")
    if kind not in _MERGEABLE:
        raise InputError(
            f"model {name}: the adapter in {directory} is of type {kind!r}, which cannot be merged into a model's "
            f"weights (those of type {', '.join(_MERGEABLE)} can); save a full model instead"
        )
    made_for = config.get("base_model_name_or_path")
    there = Path(made_for) if made_for else base.directory
    if there.is_dir() and _digest(weights(there)) != _digest(weights(base.directory)):
        raise InputError(
            f"model {name}: the adapter in {directory} was made for {made_for}, whose weights are not those of the "
            f"study's base {base.directory}; give that model as the base"
        )
    return base


def _config(name: str, directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    if not path.is_file():
        held = "is empty" if not any(directory.iterdir()) else "has no config.json"
        raise InputError(f"model {name}: directory {directory} {held}; expected a Hugging Face checkpoint")
    config = _json(name, path)
    _check_weights(name, directory)
    text_config = config.get("text_config", config)
    if not isinstance(text_config, dict) or not isinstance(text_config.get("vocab_size"), int):
        raise InputError(f"model {name}: {path} does not describe a language model (no vocab_size)")
    return config


def _json(name: str, path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"model {name}: {path} is not valid JSON ({error})") from None
    if not isinstance(data, dict):
        raise InputError(f"model {name}: {path} does not hold a JSON object")
    return data


def _check_weights(name: str, directory: Path) -> None:
    if weights(directory):
        return
    pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in directory.glob(pattern))
    if pickled:
        raise InputError(
            f"model {name}: {directory} holds only pickled weights ({pickled[0]}), which can run code when "
            "loaded and are refused; save the model again with save_pretrained(safe_serialization=True)"
        )
    raise InputError(f"model {name}: {directory} has no *.safetensors weights")


def _tokenizer(name: str, directory: Path) -> Any:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    path = directory / "tokenizer.json"
    if not path.is_file():
        raise InputError(
            f"model {name}: {directory} has no tokenizer.json; save its fast tokenizer there "
            "(AutoTokenizer.from_pretrained(...).save_pretrained(directory))"
        )
    # Not AutoTokenizer: for some model types (Qwen2) it silently replaces the saved pre-tokenizer.
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)
        saved = Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise InputError(f"model {name}: {path} cannot be read ({error})") from None
    for each in (tokenizer.backend_tokenizer, saved):
        each.no_padding()
        each.no_truncation()
    for text in _PROBES:
        if tokenizer.backend_tokenizer.encode(text).ids != saved.encode(text).ids:
            raise InputError(
                f"model {name}: loaded by transformers, the tokenizer in {directory} splits {text!r} otherwise than "
                "its tokenizer.json; tokenizer_config.json changes it. Load it as it was used in training, and save "
                "it again with save_pretrained"
            )
    return tokenizer
