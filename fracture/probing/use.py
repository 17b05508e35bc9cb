"""Causal use at layers and positions of a store: what a probe reads there is erased, or steered along, in the model.

The eraser and the class means are fitted on the stored activations of some prompts; the model is run on others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from analysis import kv_cache, sites, statistics
from analysis.answers import same_answer
from analysis.authored import Authored
from analysis.cells import Excluded
from analysis.errors import InputError
from analysis.measures.session import Session
from analysis.store import Store
from fracture.probing.exchange import illusion
from fracture.probing.places import ERASE, METHODS, Place, UseSettings
from probes.causal_use import Used, erasure_use, random_directions, steering_use
from probes.erasure import RELATIVE, Eraser, leace, random_erasers
from probes.grid import ALPHA, activations
from probes.illusion import SubspaceCheck
from probes.ridge import fit_ridge
from probes.scores import Metric, Score, accuracy, auc, r_squared
from probes.targets import LabelSet, Target

USED, NOT_USED, UNCLEAR, TOO_SMALL = "used", "not used", "unclear", "n too small"
HERE, ANYWHERE = "this position", "all stored positions"
_SAME = 0.05
"""So far, relative to its norm, may rounding of another precision move an activation."""
_DIGITS = 4
"""Of outputs, where labels are ±1: with a concept erased they are one value but for rounding, which orders rows."""
_ROOM = 2
"""Random subspaces are drawn where activations vary in more than this many times the directions that are erased."""


@dataclass(frozen=True, eq=False)
class Finding:
    """One method at one place.

    Attributes:
        place, method: what was done.
        used: what it did to the answers, against the controls.
        rank: dimensions that were erased, or that the steering vectors span.
        drawn_in: where the controls were drawn: in the covariance of this position, or of all stored ones.
        metric: of the scores.
        score: of the probe on the prompts that the model was run on.
        erased: of the same probe, on the same activations with the concept erased.
        chance: what the most frequent label, or the mean, gives there.
        check: of the subspace where it is used, or why there is none; else None.
        p_adjusted: over all lines, by Benjamini and Hochberg.
    """

    place: Place
    method: str
    used: Used
    rank: int
    drawn_in: str
    metric: Metric
    score: Score
    erased: Score
    chance: float
    check: SubspaceCheck | str | None = None
    p_adjusted: float = math.nan

    @property
    def verdict(self) -> str:
        """`used`, `not used`, `unclear`, or `n too small`."""
        if self.used.effect.too_small:
            return TOO_SMALL
        if self.used.used and self.p_adjusted <= ALPHA:
            return USED
        return UNCLEAR if self.reason else NOT_USED

    @property
    def reason(self) -> str:
        """Why an effect that is there is not called one, or why there may be one that was not seen; else empty."""
        found, n_controls = self.used, len(self.used.controls)
        if found.effect.too_small:
            return f"{found.effect.n} prompts measured; no verdict below {statistics.MIN_PROMPTS}"
        if found.used and self.p_adjusted > ALPHA:
            return f"beyond its own controls, but with {n_controls} controls not after adjustment for all lines"
        if not found.used and found.effect.estimate > max(found.threshold, found.floor):
            return "beyond the controls' 95th percentile in the mean, but not in all prompts alike"
        if not found.used and self.method == ERASE and self.erased.interval().low > self.chance:
            return "the probe still reads what was erased: too few prompts for the width"
        return ""


def use(
    session: Session,
    store: Store,
    target: Target,
    texts: Mapping[int, Authored],
    places: Sequence[Place],
    settings: UseSettings,
) -> list[Finding]:
    """Every method at every place.

    Raises:
        InputError: as `probes.causal_use`; and for steering along labels that are no answers.
    """
    found = []
    for place in places:
        found += _tested(session, store, target, texts, place, settings)
    adjusted = statistics.benjamini_hochberg({at: finding.used.p for at, finding in enumerate(found)})
    return [
        replace(finding, check=_check(session, store, finding, texts, settings.seed))
        for finding in (replace(finding, p_adjusted=adjusted[at]) for at, finding in enumerate(found))
    ]


def _check(
    session: Session, store: Store, finding: Finding, texts: Mapping[int, Authored], seed: int
) -> SubspaceCheck | str | None:
    """The check of a subspace that is used, or why it cannot be had; None for one that is not."""
    if finding.verdict != USED:
        return None
    prompts = {texts[text].id: texts[text] for text in store.rows["text"].to_numpy()[finding.place.test]}
    try:
        return illusion(session, store, finding.place, prompts, finding.used, seed)
    except InputError as error:
        return str(error)


def _tested(
    session: Session,
    store: Store,
    target: Target,
    texts: Mapping[int, Authored],
    place: Place,
    settings: UseSettings,
) -> list[Finding]:
    _check_acts(session, store, place, texts)
    _check_same(session, store, place, texts)
    stored = activations(store, place.hook.name).double().numpy()
    x, labels, n_fit = stored[np.concatenate([place.fit, place.test])], place.labels, len(place.fit)
    fit, test = x[:n_fit], x[n_fit:]
    eraser = leace(fit, labels.columns[:n_fit])
    within, drawn_in = fit, HERE
    if _rank(fit - fit.mean(axis=0)) <= _ROOM * eraser.rank:
        fitted_on = np.isin(store.rows["id"].to_numpy(), store.rows["id"].to_numpy()[place.fit])
        within, drawn_in = stored[fitted_on], ANYWHERE
    scores = _scores(fit, test, labels, eraser)
    prompts = [texts[text] for text in store.rows["text"].to_numpy()[place.test]]
    tokens = [int(token) for token in store.rows["token"].to_numpy()[place.test]]
    found = []
    for method in METHODS[settings.method]:
        if method == ERASE:
            controls = random_erasers(test, eraser, settings.controls, settings.seed, within)
            used = erasure_use(session, prompts, tokens, place.hook.name, eraser, controls)
            rank = eraser.rank
        else:
            vectors, answers = _steering(session, target, place, fit, prompts, settings.seed)
            beside = random_directions(within, vectors, settings.controls, settings.seed)
            used = steering_use(session, prompts, tokens, place.hook.name, vectors, answers, beside)
            rank = _rank(vectors)
        found.append(Finding(place, method, used, rank, drawn_in, *scores))
    return found


def _rank(rows: Float[ndarray, "row width"]) -> int:
    """In how many directions rows lie, but for rounding of single precision."""
    sizes = np.linalg.svd(rows, compute_uv=False)
    return int((sizes > RELATIVE * sizes[0]).sum())


def _check_acts(session: Session, store: Store, place: Place, texts: Mapping[int, Authored]) -> None:
    """Finds that something of the model reads the tokens that are written."""
    hook = place.hook
    if hook.site != "resid_post" or hook.layer != len(sites.blocks(session.reader.model)) - 1:
        return
    for row in place.test:
        text = store.rows["text"].iloc[row]
        case = texts[text].case
        end = session.reader.encoder.encode(case.question, case.steps or (), None, case.gaps).marker[1]
        if store.rows["token"].iloc[row] != end - 1:
            raise InputError(
                f"{hook.name}, {place.position}: behind the last layer nothing reads this position but the next word; "
                "only the position answer can be tested there. Give it, or earlier layers"
            )


def _check_same(session: Session, store: Store, place: Place, texts: Mapping[int, Authored]) -> None:
    """Finds that the model gives the stored activation of the first prompt that it is run on."""
    row, name = int(place.test[0]), place.hook.name
    case = texts[store.rows["text"].iloc[row]].case
    ids = session.reader.encoder.encode(case.question, case.steps or (), None, case.gaps).ids
    with sites.recorded(session.reader.model, [name]) as found:
        kv_cache.read(session.reader.model, [ids])
    here = found[name][0, int(store.rows["token"].iloc[row])].double().flatten().cpu()
    there = store.read(name, np.array([row])).double().flatten()
    if not float((here - there).norm()) <= _SAME * float(there.norm()):
        raise InputError(
            f"{name}, {place.position}: the model's activation of prompt {store.rows['id'].iloc[row]!r} is not the "
            f"stored one (their difference is {float((here - there).norm() / there.norm()):.2g} of it); capture anew "
            "with the versions that are installed"
        )


def _steering(
    session: Session,
    target: Target,
    place: Place,
    fit: Float[ndarray, "row width"],
    prompts: Sequence[Authored],
    seed: int,
) -> tuple[Float[ndarray, "prompt width"], list[str]]:
    """For each prompt the difference of the means of two classes, from its own to one drawn, and the latter's answer.

    Raises:
        InputError: if the classes are answers of no prompt.
    """
    classes = [str(name) for name in place.labels.classes or ()]
    n_fit = len(place.fit)
    means = np.array([fit[place.labels.values[:n_fit] == number].mean(axis=0) for number in range(len(classes))])
    generator = np.random.default_rng(seed)
    vectors, answers, matched = [], [], 0
    for own, options in zip(place.labels.values[n_fit:], session.options(prompts), strict=True):
        named = [] if isinstance(options, Excluded) else [_option(name, options) for name in classes]
        others = [number for number, option in enumerate(named) if option is not None and number != own]
        matched += bool(others)
        to = int(generator.choice(others)) if others else int(own)
        vectors.append(means[to] - means[own])
        # Without another answer it is steered nowhere, and excluded for what its options lack.
        answers.append(str(named[to]) if others else "")
    if not matched:
        raise InputError(
            f"target {target.name!r}: its labels ({', '.join(classes[:5])}) are answers of no prompt, so there is "
            "nothing to steer to; use --method erase, or steer along answer or cue"
        )
    return np.array(vectors), answers


def _option(name: str, options: Sequence[str]) -> str | None:
    return next((option for option in options if same_answer(option, name)), None)


def _scores(
    fit: Float[ndarray, "row width"], test: Float[ndarray, "row width"], labels: LabelSet, eraser: Eraser
) -> tuple[Metric, Score, Score, float]:
    """The metric; the score of a ridge probe on the prompts not fitted on, before and after erasure; and chance."""
    n_fit = len(fit)
    columns, truth = labels.columns, labels.values[n_fit:]
    probe = fit_ridge(
        torch.from_numpy(fit),
        columns[:n_fit],
        [slice(0, columns.shape[1])],
        np.arange(n_fit),
        one_row_each=True,
        full_only=True,
    ).full
    rest, prompts = LabelSet(truth, labels.classes), np.arange(len(truth))

    def score(x: Float[ndarray, "row width"]) -> Score:
        outputs = probe(torch.from_numpy(x)).cpu().numpy()
        if labels.classes is None:
            return r_squared(truth, outputs[:, 0], np.full(len(truth), labels.values[:n_fit].mean()), prompts)
        outputs = outputs.round(_DIGITS)
        if labels.binary:
            return auc(truth == 1, outputs[:, 0], np.zeros(len(truth), dtype=np.int64), prompts)
        return accuracy(rest.predicted(outputs) == truth, prompts)

    metric: Metric = "r2" if labels.classes is None else ("auc" if labels.binary else "accuracy")
    chance = 0.0 if labels.classes is None else 0.5
    if metric == "accuracy":
        chance = float((truth == np.bincount(labels.values[:n_fit]).argmax()).mean())
    return metric, score(test), score(eraser.erase(test)), chance
