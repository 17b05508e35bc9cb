"""The runs of cross-model patching: a variant and its base read texts with the other's states at the chain's tokens."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from analysis import kv_cache, patching, sites
from analysis.cells import CELLS, CHECK_TOLERANCE, HALF_TOLERANCE, MIN_OPTION_MASS, Excluded
from analysis.errors import InputError
from analysis.measures.repair_states import (
    BASE_ITSELF,
    NO_LAYER,
    OWN,
    REVERSE,
    UNEDITED,
    Fitted,
    Run,
    Written,
    fit,
    written,
)
from analysis.measures.repair_texts import Job, Text
from analysis.measures.session import Session
from analysis.models import Reader
from analysis.routes import effects

SITE = "resid_post"
DRAWS = 3
"""Random vectors a token; the effects under them are averaged."""
FIT_TOKENS = 8192
"""So many tokens of a half's chains are enough to fit by."""

Row = dict[str, Any]
Scores = Sequence[Float[ndarray, " option"]]


@dataclass(frozen=True)
class _Edit:
    """States written into one of a prompt's texts; `change` and `whole` are the squared lengths of the change and of
    what was there."""

    job: int
    condition: str
    layer: int
    draw: int
    cell: patching.Cell
    change: float
    whole: float


class Patches:
    """Both models, and what is written from the one into the other.

    Args:
        session: the variant's.
        base: the base.
        layers: after which states are written.
        half: prompt → 0 or 1, in an order that was drawn.
        seed: of random vectors.
    """

    def __init__(
        self, session: Session, base: Reader, layers: Sequence[int], half: Mapping[str, int], seed: int
    ) -> None:
        self._session, self._base, self._half, self._seed = session, base, half, seed
        self._layers = dict(zip(sites.hook_names(base.model, (SITE,), layers), layers, strict=True))
        self._learned: dict[tuple[int, str], Fitted] = {}

    def learn(self, jobs: Sequence[Job]) -> None:
        """Fits on each half of the prompts what is written into the other."""
        of = {job.prompt.id: job for job in jobs}
        for half in (0, 1):
            runs: dict[str, list[Run]] = {name: [] for name in self._layers}
            size = 0
            # In the order that was drawn, which is not the file's.
            for job in (of[identifier] for identifier, which in self._half.items() if which == half):
                if size < FIT_TOKENS:
                    ours, theirs = self._states(self._session.reader, job.ours), self._states(self._base, job.theirs)
                    for name, found in runs.items():
                        found += [Run(job.prompt.id, *both) for both in zip(ours[name], theirs[name], strict=True)]
                    size += sum(end - start for start, end in (text.chain for text in job.ours))
            self._learned |= {(1 - half, name): fit(found) for name, found in runs.items() if found}

    def measure(self, circles: Sequence[Sequence[Job]]) -> tuple[list[Row], list[Excluded]]:
        """The rows of these prompts, and those whose options hold too little of the undisturbed answer.

        Raises:
            InputError: if own states written back change an answer, or a probability is not finite.
        """
        jobs = [job for circle in circles for job in circle]
        others: list[int] = []
        for circle in circles:
            others += [len(others) + (at + 1) % len(circle) for at in range(len(circle))]
        ours, theirs = [text for job in jobs for text in job.ours], [text for job in jobs for text in job.theirs]
        read, base_read = self._read(self._session.reader, ours), self._read(self._base, theirs)
        own, base = _chains(read.recorded, ours), _chains(base_read.recorded, theirs)
        edits: list[_Edit] = []
        reverse: list[_Edit] = []
        for (at, job), (name, layer) in itertools.product(enumerate(jobs), self._layers.items()):
            fitted = self._learned.get((self._half[job.prompt.id], name))
            draws = [f"{self._seed}:{job.prompt.id}:{layer}:{draw}" for draw in range(DRAWS)]
            for number in range(len(CELLS)):
                row, other = (len(CELLS) * of + number for of in (at, others[at]))
                mine, bases = own[name][row], base[name][row]
                items = written(ours[row], ours[other], mine, bases, own[name][other], fitted, draws)
                edits += [_edit(at, layer, name, row, ours[row], mine, item) for item in items]
                back = Written(REVERSE, 0, np.arange(*theirs[row].chain), mine)
                reverse.append(_edit(at, layer, name, row, theirs[row], bases, back))
        numbers = {
            **self._numbers(self._session.reader, read, edits, jobs, base_read.own),
            **self._numbers(self._base, base_read, reverse, jobs, base_read.own),
        }
        rows: list[Row] = []
        unheld: list[Excluded] = []
        for at, job in enumerate(jobs):
            four = slice(len(CELLS) * at, len(CELLS) * (at + 1))
            undisturbed = {
                condition: _effects(scores[four], base_read.own[four])
                for condition, scores in ((UNEDITED, read.own), (BASE_ITSELF, base_read.own))
            }
            if undisturbed[UNEDITED]["mass"] < MIN_OPTION_MASS:
                reason = f"the options hold less than {MIN_OPTION_MASS} of the answer's probability"
                unheld.append(Excluded(job.prompt.id, reason, job.prompt.author))
                continue
            key: Row = {"id": job.prompt.id, "author": job.prompt.author}
            nothing = {"layer": NO_LAYER, "n_positions": 0, "size": 0.0}
            rows += [key | {"condition": condition} | nothing | found for condition, found in undisturbed.items()]
            rows += [
                key | {"condition": condition, "layer": layer} | found
                for (of, condition, layer), found in numbers.items()
                if of == at
            ]
        return rows, unheld

    def _states(self, reader: Reader, texts: Sequence[Text]) -> dict[str, list[Tensor]]:
        with sites.recorded(reader.model, list(self._layers)) as recorded:
            kv_cache.read(reader.model, [text.ids for text in texts])
        return _chains(recorded, texts)

    def _read(self, reader: Reader, texts: Sequence[Text]) -> patching.Texts:
        ids, options = [text.ids for text in texts], [text.options for text in texts]
        return patching.read_texts(reader.model, ids, options, list(self._layers))

    def _numbers(
        self, reader: Reader, read: patching.Texts, edits: Sequence[_Edit], jobs: Sequence[Job], base: Scores
    ) -> dict[tuple[int, str, int], Row]:
        """Job, condition and layer → the numbers of its row, averaged over draws."""
        cells = [edit.cell for edit in edits]
        scores = patching.patched(reader.model, reader.name, read, cells, self._session.batch_tokens)
        draws: dict[tuple[int, str, int, int], list[tuple[_Edit, ndarray]]] = defaultdict(list)
        for edit, found in zip(edits, scores, strict=True):
            where = f"model {reader.name}, prompt {jobs[edit.job].prompt.id!r}, {edit.cell.hook}"
            if edit.condition == OWN:
                _check_unchanged(where, found, read.own[edit.cell.row], reader.model.dtype)
            elif not np.isfinite(np.exp(found)).all():
                raise InputError(
                    f"{where}: with states written there ({edit.condition}) the answer's probabilities are not finite; "
                    f"its precision ({reader.model.dtype}) overflows, use another --dtype"
                )
            else:
                draws[edit.job, edit.condition, edit.layer, edit.draw].append((edit, found))
        rows: dict[tuple[int, str, int], list[Row]] = defaultdict(list)
        for (job, condition, layer, _), four in draws.items():
            # Where a text has nothing to stand in at its places, there are fewer.
            if len(four) == len(CELLS):
                change, whole = (sum(getattr(edit, key) for edit, _ in four) for key in ("change", "whole"))
                n_positions = sum(len(edit.cell.places) for edit, _ in four)
                shares = _effects([scored for _, scored in four], [base[edit.cell.row] for edit, _ in four])
                rows[job, condition, layer].append(
                    {"n_positions": n_positions, "size": float(np.sqrt(change / whole)), **shares}
                )
        return {
            key: {name: several[0][name] if name == "n_positions" else _mean(several, name) for name in several[0]}
            for key, several in rows.items()
        }


def _chains(recorded: Mapping[str, Tensor], texts: Sequence[Text]) -> dict[str, list[Float[Tensor, "token width"]]]:
    """Hook → the states of each text's chain."""
    return {
        name: [states[row, slice(*text.chain)] for row, text in enumerate(texts)] for name, states in recorded.items()
    }


def _edit(
    job: int, layer: int, hook: str, row: int, text: Text, states: Float[Tensor, "token width"], item: Written
) -> _Edit:
    before = states[item.places - text.chain[0]].float()
    change, whole = (float(of.square().sum()) for of in (item.values.float() - before, before))
    cell = patching.Cell(row, hook, item.places, item.values)
    return _Edit(job, item.condition, layer, item.draw, cell, change, whole)


def _effects(scores: Scores, base: Scores) -> Row:
    """Of `LP(option)` behind the four texts: the effects on the options and "anything else", and how far their
    probabilities are the base's."""
    p, theirs = (_completed(np.exp(np.stack(each))) for each in (scores, base))
    total, chain, direct = effects(p.reshape(2, 2, -1))
    return {
        "total": total,
        "past": total - chain,
        "direct": direct,
        "agreement": float(np.minimum(p, theirs).sum(1).mean()),
        "mass": float(p[:, :-1].sum(1).min()),
    }


def _completed(p: Float[ndarray, "text option"]) -> Float[ndarray, "text answer"]:
    return np.column_stack([p, np.maximum(0.0, 1 - p.sum(1))])


def _mean(rows: Sequence[Row], name: str) -> float:
    return float(np.mean([row[name] for row in rows]))


def _check_unchanged(where: str, found: ndarray, own: ndarray, dtype: Any) -> None:
    tolerance = CHECK_TOLERANCE.get(dtype, HALF_TOLERANCE)
    error = float(np.abs(np.exp(found) - np.exp(own)).max())
    if not error <= tolerance:
        raise InputError(
            f"{where}: its own states written back change its answer, by {error:.2g} (allowed {tolerance:g}); states "
            "cannot be exchanged between models of this architecture"
        )
