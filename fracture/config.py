"""The settings of a study: from flags or a YAML file, checked in one place, with a digest of all that decides
results."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from analysis.errors import InputError, reason
from analysis.generation import Sampling
from analysis.partners import Tier
from analysis.positions import check_positions
from analysis.prompts import ANNOTATIONS
from analysis.sites import check_site_names
from fracture.catalogue import ALWAYS, NAMES, STORE_MEASURES, TRAJECTORY_MEASURES, TWIN_MEASURES
from fracture.verdict import MARGIN

AUTHORS = ("gold", "base")
PARTNERS: dict[str, tuple[Tier, ...]] = {"given": (1,), "changed": (1, 2), "any": (1, 2, 3)}
"""Which counterfactual partners are used: given with the prompt; else one number changed; else another prompt."""

PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "measures": ("accuracy_and_calibration", "knowledge_index", "information_gain", "early_answering"),
        "max_prompts": 100,
        "patch_prompts": 32,
    },
    "standard": {"measures": NAMES, "max_prompts": 0, "patch_prompts": 48},
    "paper": {"measures": NAMES, "max_prompts": 0, "patch_prompts": 0, "continue_mistakes": True},
}
"""What a preset sets, where nothing else is said; 0 prompts are all."""

# Where a study is put, and by which name it was asked for, decide nothing about its results.
_NO_RESULT = ("out", "preset")


@dataclass(frozen=True)
class StudyConfig:
    """Everything that decides a study's results, and where it is put.

    Attributes:
        base, variants, prompts: where they are.
        out: run directory.
        preset: `quick`, `standard` or `paper`: what `PRESETS` says, where a setting is not given.
        measures: names from the catalogue; those in `ALWAYS`, on which the verdict rests, are always there.
        max_prompts: only the first so many prompts of the file; 0 for all.
        patch_prompts: how many prompts the measures take that patch activations; 0 for all.
        continue_mistakes: in the measure `mistakes`, also let the reader write on from a mistake.
        verifier: of claims, for the knowledge index: `arithmetic`, `arithmetic:MODULUS`, a table of facts
            (`.csv`, `.jsonl`, `.parquet`), or `module:function`.
        sites, positions: which activations are kept.
        format: trace format for all models; None for each model's own.
        author: whose chains all models read, `gold` (given with the prompts) or `base` (written by the base); None for
            gold chains if every prompt and partner has one, else the base's.
        partners: which partners are used, a key of `PARTNERS`; prompts whose partner is merely another prompt are
            described, and count for no verdict.
        annotations: GSM8K's calculator annotations (`<<48/2=24>>`) in chains: `keep` or `drop`.
        temperature, top_p, top_k: how models write chains; temperature 0 is greedy.
        seed: of everything that is drawn.
        margin: δ, the change of bypass that counts.
        max_chain_tokens: where a chain that a model writes is cut.
        batch_tokens: how many tokens one forward pass may hold.
        checkpoints: for a trajectory, after how many steps of fine-tuning each variant is; the base is step 0.
    """

    base: str
    variants: Mapping[str, str]
    prompts: str
    out: str
    preset: str = "standard"
    measures: tuple[str, ...] | None = None
    max_prompts: int | None = None
    patch_prompts: int | None = None
    continue_mistakes: bool | None = None
    verifier: str = "arithmetic"
    sites: tuple[str, ...] = ("resid_post",)
    positions: tuple[str, ...] = ("question_end", "step_ends", "answer")
    format: str | None = None
    author: str | None = None
    partners: str = "changed"
    annotations: str = "keep"
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    margin: float = MARGIN
    max_chain_tokens: int = 256
    batch_tokens: int = 16384
    dtype: str = "float32"
    device: str = "cpu"
    trust_remote_code: bool = False
    checkpoints: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        preset = _choice("preset", self.preset, tuple(PRESETS))
        for name, value in {"continue_mistakes": False, **PRESETS[preset]}.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.checkpoints:
            _check_checkpoints(self.checkpoints, self.variants)
            # In the order of training, in whatever order a file has them.
            for name in ("variants", "checkpoints"):
                items = sorted(getattr(self, name).items(), key=lambda item: self.checkpoints[item[0]])
                object.__setattr__(self, name, dict(items))
        always = TRAJECTORY_MEASURES if self.checkpoints else ALWAYS
        object.__setattr__(self, "measures", _measures(self.measures or (), always))
        if self.author is not None:
            _choice("author", self.author, AUTHORS)
        _choice("partners", self.partners, tuple(PARTNERS))
        _choice("annotations", self.annotations, ANNOTATIONS)
        check_site_names(self.sites)
        check_positions(self.positions)
        _ = self.sampling
        if not 0 < self.margin < 1:
            raise InputError(f"margin {self.margin}: expected a number between 0 and 1")
        for name in ("max_chain_tokens", "batch_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)}: expected a positive number of tokens")
        for name in ("max_prompts", "patch_prompts", "seed"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} {getattr(self, name)}: expected 0 or a positive number")

    @property
    def sampling(self) -> Sampling:
        """How models write chains.

        Raises:
            InputError: for settings that no sampling has.
        """
        return Sampling(self.temperature, self.top_p, self.top_k, self.seed)

    @property
    def keeps_activations(self) -> bool:
        """Whether activations are captured: some measure reads them."""
        return bool(set(self.measures or ()) & set(STORE_MEASURES))

    @property
    def keeps_twin(self) -> bool:
        """Whether activations of a twin with random weights are captured, too."""
        return bool(set(self.measures or ()) & set(TWIN_MEASURES))

    def to_dict(self) -> dict[str, Any]:
        """All settings, resolved, as plain values."""
        data = {name: value for name, value in asdict(self).items() if not name.startswith("_")}
        data["variants"] = dict(self.variants)
        # A study that is no trajectory has no such setting.
        if not data["checkpoints"]:
            del data["checkpoints"]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in data.items()}

    def deciding(self) -> dict[str, Any]:
        """The settings that decide results."""
        return {name: value for name, value in self.to_dict().items() if name not in _NO_RESULT}

    def digest(self) -> str:
        """SHA-256 over the settings that decide results, as hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.deciding(), sort_keys=True).encode()).hexdigest()

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any], where: str = "study") -> StudyConfig:
        """The configuration with these settings, as a file or flags give them; those that are None count as not given.

        Raises:
            InputError: for an unknown setting (naming the nearest known one), a missing one, or one of another type.
        """
        known = {item.name: item for item in fields(cls) if item.init}
        given = {name: value for name, value in data.items() if value is not None}
        for name, value in given.items():
            if name not in known:
                raise InputError(f"{where}: unknown setting {name!r}{_nearest(name, tuple(known))}")
            given[name] = _typed(name, value, str(known[name].type), where)
        for name in ("base", "variants", "prompts", "out"):
            if name not in given:
                raise InputError(f"{where}: setting {name!r} is missing; a study needs base, variants, prompts and out")
        return cls(**given)


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings in a YAML file, unchecked; the digest that a run's own `study.yaml` holds is left out.

    Raises:
        InputError: if it cannot be read, or is not a mapping.
    """
    import yaml

    where = f"study file {path}"
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{where}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{where}: not valid YAML ({reason(error)})") from None
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise InputError(f"{where}: expected settings as `name: value`, such as `base: path/to/model`")
    data.pop("digest", None)
    return data


def _typed(name: str, value: Any, kind: str, where: str) -> Any:
    """The value, if it is of the kind that the setting's annotation names."""
    expected = {
        "Mapping": "names with models, such as `sft: path/to/model`",
        "Mapping[str, int]": "variants with their steps, such as `ckpt-50: 50`",
        "tuple": "a list of names",
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
        "str": "a text",
    }
    base = kind.split("[")[0].split(" |")[0]
    if kind == "Mapping[str, int]":
        base = kind
        if isinstance(value, Mapping) and all(type(key) is str and type(item) is int for key, item in value.items()):
            return dict(value)
    if (
        base == "Mapping"
        and isinstance(value, Mapping)
        and all(isinstance(key, str) and isinstance(item, str) for key, item in value.items())
    ):
        return dict(value)
    if base == "tuple" and isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if base == "int" and isinstance(value, int) and not isinstance(value, bool):
        return value
    if base == "float" and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if (base == "bool" and isinstance(value, bool)) or (base == "str" and isinstance(value, str)):
        return value
    raise InputError(f"{where}: setting {name!r} is {value!r}; expected {expected[base]}")


def _check_checkpoints(checkpoints: Mapping[str, int], variants: Mapping[str, str]) -> None:
    """Finds that the variants of a trajectory, and only they, are each at a step of their own behind the base's."""
    if set(checkpoints) != set(variants):
        name = min(set(checkpoints) ^ set(variants))
        lacking = "variant of that name" if name in checkpoints else "step for that variant"
        raise InputError(
            f"checkpoints: no {lacking}: {name!r}; a trajectory's variants are its checkpoints, and no others"
        )
    for name, step in checkpoints.items():
        if step < 1:
            raise InputError(f"checkpoints: {name!r} is at step {step}; step 0 is the base, so expected 1 or more")
        if list(checkpoints.values()).count(step) > 1:
            same = " and ".join(repr(other) for other, at in checkpoints.items() if at == step)
            raise InputError(f"checkpoints: {same} are both at step {step}; give one of them")


def _measures(names: tuple[str, ...], always: tuple[str, ...]) -> tuple[str, ...]:
    """The measures in the order of the catalogue, with those that are always there."""
    for name in names:
        if name not in NAMES:
            raise InputError(f"measure {name!r}: unknown{_nearest(name, NAMES)}")
    return tuple(name for name in NAMES if name in (*always, *names))


def _choice(name: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise InputError(f"{name} {value!r}: unknown{_nearest(value, known)}")
    return value


def _nearest(name: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}? Known are {', '.join(known)}" if near else f"; known are {', '.join(known)}"
