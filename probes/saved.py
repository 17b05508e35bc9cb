"""Trained probes on disk, and what they say of a store.

A probe set is a directory:

    card.json           what the probes are and how they were made, to be read by people; with a digest over both files
    probes.safetensors  their weights, `N.name` for weight `name` of probe N of the card
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import safetensors.numpy
import torch
from jaxtyping import Float, Int, Shaped
from numpy import ndarray
from safetensors import SafetensorError
from torch import Tensor

from analysis.errors import InputError
from analysis.sealed import DIGEST, Sealed
from analysis.store import Store
from probes.cells import positions_of, rows_at
from probes.ridge import CHUNK_ROWS

VERSION = 1
WEIGHTS = "probes.safetensors"
KINDS = ("ridge", "logistic", "mass-mean", "mlp")
_OWN = ("version", DIGEST, "probes")
_LINEAR = {"coef", "intercept"}
_HIDDEN = _LINEAR | {"mean", "scale", "hidden_coef", "hidden_intercept"}

_FORMAT = Sealed(
    what="probe set",
    version=VERSION,
    files=(WEIGHTS,),
    give="give the directory that the probes were saved in",
    again="train the probes again",
    alone=True,
)

Label = str | bool | int | float


def outputs(weights: Mapping[str, ndarray], X: Float[ndarray | Tensor, "row width"]) -> Float[ndarray, "row output"]:
    """The outputs of a probe, in double precision; the same bits for an array as for a tensor of the same numbers.

    Args:
        weights: `coef` `[width, output]` and `intercept` `[output]`; with a hidden layer of rectified units also `mean`
            and `scale` `[width]`, `hidden_coef` `[width, hidden]` and `hidden_intercept` `[hidden]`, and `coef` is
            `[hidden, output]`.
        X: activations of any floating-point type.

    Raises:
        InputError: naming the first row that is not finite.
    """
    # The layout of an array decides which BLAS kernel runs, and so the last bits.
    kept = {name: np.ascontiguousarray(value, dtype=np.float64) for name, value in weights.items()}
    parts = [np.empty((0, len(kept["intercept"])))]
    for start in range(0, len(X), CHUNK_ROWS):
        part = X[start : start + CHUNK_ROWS]
        values = part.detach().to("cpu", torch.float64).numpy() if isinstance(part, Tensor) else part
        x = np.ascontiguousarray(values, dtype=np.float64)
        check_finite(x, start)
        if "hidden_coef" in kept:
            x = (x - kept["mean"]) / kept["scale"] @ kept["hidden_coef"] + kept["hidden_intercept"]
            x = np.maximum(x, 0)
        parts.append(x @ kept["coef"] + kept["intercept"])
    return np.concatenate(parts)


def decided(outputs: Float[ndarray, "row output"]) -> Int[ndarray, " row"]:
    """The place of the class that each row's outputs decide for: the largest; of one, 1 where it is positive."""
    return np.asarray(outputs.argmax(1) if outputs.shape[1] > 1 else (outputs[:, 0] > 0).astype(int))


def check_finite(X: Float[ndarray, "row width"], start: int = 0) -> None:
    """Raises InputError naming the first row that is not finite; `start` is the number of row 0."""
    bad = np.flatnonzero(~np.isfinite(X).all(axis=1))
    if bad.size:
        raise InputError(
            f"activations: row {start + bad[0]} holds NaN or inf; leave such rows out, or find out where they overflow"
        )


@dataclass(frozen=True, eq=False)
class SavedProbe:
    """A trained probe, ready to be applied.

    Attributes:
        kind: ridge, logistic, mass-mean, or mlp (one hidden layer).
        task: classification or regression.
        classes: the labels, in the order of the outputs; with two there is one output, positive for the second. None
            for a regression.
        hook, position: where it reads.
        width: of the activations.
        tensors: its weights, as `outputs` takes them.
    """

    kind: Literal["ridge", "logistic", "mass-mean", "mlp"]
    task: Literal["classification", "regression"]
    classes: tuple[Label, ...] | None
    hook: str
    position: str
    width: int
    tensors: Mapping[str, Float[ndarray, "*shape"]]

    def __post_init__(self) -> None:
        if (problem := self._problem()) is not None:
            raise InputError(f"{self.where}: {problem}")

    @property
    def where(self) -> str:
        """How messages name it."""
        return f"probe of hook {self.hook!r} at {self.position!r}"

    def _problem(self) -> str | None:
        if not isinstance(self.hook, str) or not isinstance(self.position, str) or type(self.width) is not int:
            return f"hook, position and width {self.width!r}: expected two names and a whole number"
        if self.kind not in KINDS or self.task not in ("classification", "regression"):
            return f"kind {self.kind!r}, task {self.task!r}: expected one of {', '.join(KINDS)}, and a task"
        if (self.classes is None) != (self.task == "regression"):
            return f"classes {self.classes!r}: a classification has some, a regression none"
        if self.classes is not None:
            types = {type(label) for label in self.classes}
            if len(types) != 1 or not types <= {str, bool, int, float} or len(set(self.classes)) != len(self.classes):
                return f"classes {self.classes!r}: expected different texts, numbers or booleans, all of one type"
            if len(self.classes) < 2:
                return f"classes {self.classes!r}: expected two or more"
        names = _HIDDEN if self.kind == "mlp" else _LINEAR
        if set(self.tensors) != names:
            return f"weights {', '.join(sorted(self.tensors))}: expected {', '.join(sorted(names))}"
        n_outputs = 1 if self.classes is None or len(self.classes) == 2 else len(self.classes)
        expected: dict[str, tuple[int, ...]] = {"coef": (self.width, n_outputs), "intercept": (n_outputs,)}
        if self.kind == "mlp":
            hidden = self.tensors["hidden_intercept"].size
            expected |= {"mean": (self.width,), "scale": (self.width,), "hidden_coef": (self.width, hidden)}
            expected |= {"hidden_intercept": (hidden,), "coef": (hidden, n_outputs)}
        for name, value in self.tensors.items():
            if value.shape != expected[name] or value.dtype != np.float64:
                return f"weight {name} is {value.dtype} {list(value.shape)}, expected float64 {list(expected[name])}"
            if not np.isfinite(value).all():
                return f"weight {name} is not finite; the probe was not fitted on sound activations"
        return None

    def outputs(self, X: Float[ndarray | Tensor, "row width"]) -> Float[ndarray, "row output"]:
        """Decisions, log-odds or predicted numbers: one output for two classes and for a regression, else one a class.

        Raises:
            InputError: for activations of another width, or that are not finite.
        """
        if X.ndim != 2 or X.shape[1] != self.width:
            raise InputError(
                f"{self.where}: was trained on activations of width {self.width}, found shape {list(X.shape)}; give "
                f"[row, {self.width}] of the same hook"
            )
        return outputs(self.tensors, X)

    def predict(self, X: Float[ndarray | Tensor, "row width"]) -> Shaped[ndarray, " row"]:
        """The predicted class, or number, of each row; errors as of `outputs`."""
        return self._predicted(self.outputs(X))

    def _predicted(self, found: Float[ndarray, "row output"]) -> Shaped[ndarray, " row"]:
        return found[:, 0] if self.classes is None else np.asarray(self.classes)[decided(found)]

    @property
    def direction(self) -> Float[ndarray, "width output"]:
        """What a linear probe reads, in raw activation space: a unit vector an output.

        Raises:
            InputError: for a probe with a hidden layer, or whose weights are 0.
        """
        if self.kind == "mlp":
            raise InputError(f"{self.where}: has a hidden layer, and so no direction; use a linear kind")
        norms = np.linalg.norm(self.tensors["coef"], axis=0)
        if not norms.all():
            raise InputError(f"{self.where}: has no direction, as its weights are 0")
        return np.asarray(self.tensors["coef"] / norms)


@dataclass(frozen=True, eq=False)
class ProbeSet:
    """Probes that were trained together, at most one a hook and position, with the card that says how.

    Attributes:
        card: what JSON can hold, such as target, task, kind, classes, n_prompts, scores, seed, versions; `model` and
            `random_init` and `shuffled`, where it has them, are those of the settings of the store that the probes were
            trained on.
        probes: in any order.
    """

    card: Mapping[str, Any]
    probes: tuple[SavedProbe, ...]

    def __post_init__(self) -> None:
        places = [(probe.hook, probe.position) for probe in self.probes]
        if not places or len(set(places)) != len(places):
            raise InputError(f"probe set: expected at least one probe and one a hook and position, found {places}")
        if len({probe.task for probe in self.probes}) > 1:
            raise InputError("probe set: holds classifications and regressions; save them in two directories")
        if taken := sorted(set(self.card) & set(_OWN)):
            raise InputError(f"probe set: the card has {', '.join(taken)}, which the format itself writes; rename it")

    def of(self, hook: str, position: str) -> SavedProbe:
        """The probe of a hook and position.

        Raises:
            InputError: if there is none.
        """
        for probe in self.probes:
            if (probe.hook, probe.position) == (hook, position):
                return probe
        known = "; ".join(f"{probe.hook} at {probe.position}" for probe in self.probes)
        raise InputError(f"probe set: holds no probe of hook {hook!r} at {position!r}; it holds {known}")

    def save(self, directory: str | Path) -> None:
        """Writes the set, over an earlier one if there is one.

        Raises:
            InputError: if something else is there, the card holds what JSON cannot, or the disk is full.
        """
        directory = Path(directory)
        data = safetensors.numpy.save(
            {
                f"{number}.{name}": np.ascontiguousarray(value)
                for number, probe in enumerate(self.probes)
                for name, value in probe.tensors.items()
            }
        )
        described = [{name: value for name, value in vars(probe).items() if name != "tensors"} for probe in self.probes]
        _FORMAT.write(directory, {**self.card, "probes": described}, [data])

    @classmethod
    def load(cls, directory: str | Path) -> ProbeSet:
        """The probe set in a directory.

        Raises:
            InputError: if there is none, or it is not what was written.
        """
        directory = Path(directory)
        content, (data,) = _FORMAT.read(directory)
        try:
            tensors = safetensors.numpy.load(data)
            probes = []
            for number, described in enumerate(content["probes"]):
                classes = None if described["classes"] is None else tuple(described["classes"])
                own = {name: value for name, value in tensors.items() if name.startswith(f"{number}.")}
                named = {name.split(".", 1)[1]: value for name, value in own.items()}
                probes.append(SavedProbe(**described | {"classes": classes}, tensors=named))
            return cls({name: value for name, value in content.items() if name not in _OWN}, tuple(probes))
        except InputError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
            raise _FORMAT.damaged(directory, error) from None

    def apply(self, store: Store, any_model: bool = False) -> pd.DataFrame:
        """What each probe says of each row of a store at its position, a line a probe and row, probe by probe.

        Columns: `row` (its number in the store), `id`, `hook`, `position`, `predicted` (class or number), and `output`:
        the probe's one output (of two classes, positive for the second), or the largest.

        Args:
            store: with the hooks of the probes; a probe at whose position it has no row adds no line.
            any_model: whether the store may be of another model than the probes were trained on.

        Raises:
            InputError: for a store of another model, without a probe's hook, with activations of another width, or
                without a row at any probe's position.
        """
        self._check(store, any_model)
        rows_of = {
            position: _rows_at(store, position) for position in dict.fromkeys(probe.position for probe in self.probes)
        }
        parts: dict[SavedProbe, pd.DataFrame] = {}
        for hook in dict.fromkeys(probe.hook for probe in self.probes):
            here = [probe for probe in self.probes if probe.hook == hook]
            needed = np.unique(np.concatenate([rows_of[probe.position] for probe in here]))
            values = store.read(hook, needed).flatten(1)
            if not (finite := torch.isfinite(values).all(1)).all():
                row = needed[int((~finite).nonzero()[0, 0])]
                raise InputError(f"activation store {store.directory}: row {row} of hook {hook!r} holds NaN or inf")
            for probe in here:
                rows = rows_of[probe.position]
                found = probe.outputs(values[torch.from_numpy(np.searchsorted(needed, rows))])
                parts[probe] = pd.DataFrame(
                    {
                        "row": rows,
                        "id": store.rows["id"].to_numpy()[rows],
                        "hook": hook,
                        "position": probe.position,
                        "predicted": probe._predicted(found),
                        "output": found.max(axis=1),
                    }
                )
        filled = [parts[probe] for probe in self.probes if len(parts[probe])]
        if not filled:
            raise InputError(
                f"activation store {store.directory}: has no row at {', '.join(sorted(rows_of))}, where the probes read"
            )
        return pd.concat(filled, ignore_index=True)

    def _check(self, store: Store, any_model: bool) -> None:
        known = store.manifest.settings
        trained, here = (
            tuple(of.get(name) for name in ("model", "random_init", "shuffled")) for of in (self.card, known)
        )
        if trained[0] is not None and here[0] is not None and trained != here and not any_model:
            raise InputError(
                f"activation store {store.directory}: is of model {_shown(*here)}, and the probes were trained on "
                f"{_shown(*trained)}; to read it with them all the same, allow any model"
            )
        for probe in self.probes:
            shape = store.manifest.hooks.get(probe.hook)
            if shape is None:
                raise InputError(
                    f"activation store {store.directory}: holds no hook {probe.hook!r}, which a probe reads; it holds "
                    f"{', '.join(store.hooks)}"
                )
            if math.prod(shape) != probe.width:
                raise InputError(
                    f"activation store {store.directory}: hook {probe.hook!r} is {math.prod(shape)} wide, and its "
                    f"probe was trained on width {probe.width}; give a store of the model that it was trained on"
                )


def _rows_at(store: Store, position: str) -> Int[ndarray, " row"]:
    positions_of(store.rows, [position])
    return rows_at(store.rows, position)


def _shown(digest: Any, random_init: Any, shuffled: Any) -> str:
    twins = {"random": random_init, "shuffled": shuffled}
    told = [f" with {kind} weights of seed {seed}" for kind, seed in twins.items() if seed is not None]
    return f"{str(digest)[:12]}…{''.join(told)}"
