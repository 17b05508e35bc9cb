"""Causal use: whether a model uses what a probe reads, by erasing it or adding to it where it was read.

One activation of the residual stream is written, everything after it is computed anew, and the answer is compared with
that of the untouched run. A probe shows that something can be read; only a change of the answer beyond what random
changes of the same size do shows that the model reads it there.

The prompts given here must be none of those that the eraser or the vectors were fitted on.

Source: Belrose et al. 2023 (arXiv 2306.03819), Ravichander et al. 2021 (arXiv 2005.00719): decodable is not used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy import ndarray
from scipy.special import log_softmax, softmax
from torch import Tensor

from analysis import patching, sites, statistics
from analysis.authored import Authored
from analysis.cells import CHECK_TOLERANCE, HALF_TOLERANCE, Excluded
from analysis.errors import InputError
from analysis.measures.session import Session
from analysis.statistics import Estimate
from probes.erasure import Eraser

MIN_CONTROLS = 20
"""With fewer controls no mean can be beyond their 95th percentile."""
PERCENTILE = 0.95
MATCH = 1.25
"""Eraser and controls may differ by this factor in the mean squared norm of what they remove."""


@dataclass(frozen=True, eq=False)
class Used:
    """What writing did to the answers of these prompts, against controls.

    Attributes:
        table: a row a prompt: `id`, `author`, `token`, `answer` (the most probable option behind the untouched run),
            `effect` (nats), `distance` (total variation between the options' distributions), `norm` (of what the
            activation was changed by), `mass` (probability that the options hold behind the changed run, before they
            are normalised), and of effect, distance and norm the mean over controls, as `control_…`. With a target:
            `target`, `moved` (1 where it became the most probable option), and `control_moved`.
        effect: the mean effect over prompts.
        excess: the mean over prompts of effect minus the prompt's mean control effect, paired.
        controls: the mean effect over prompts of each control draw.
        threshold: their 95th percentile, the higher neighbour where it falls between two draws.
        floor: what two ways of computing the same answer may differ by, in nats; a smaller effect is none.
        p: `(b + 1)/(m + 1)`, with b of m controls' means as large as the effect's.
        moved: share of prompts whose most probable option became the target; None without a target.
        excluded: prompts that were not measured.
    """

    table: pd.DataFrame
    effect: Estimate
    excess: Estimate
    controls: Float[ndarray, " draw"]
    threshold: float
    floor: float
    p: float
    moved: Estimate | None
    excluded: tuple[Excluded, ...]

    @property
    def used(self) -> bool:
        """Whether the effect is above the controls' 95th percentile and the floor, and the excess's interval over 0."""
        return bool(self.effect.estimate > max(self.threshold, self.floor) and self.excess.low > 0)


def erasure_use(
    session: Session,
    prompts: Sequence[Authored],
    tokens: Sequence[int],
    hook: str,
    eraser: Eraser,
    controls: Sequence[Eraser],
) -> Used:
    """What erasing does to the answers: `LP(y) − LP_erased(y)` among the options, `y` the reader's own answer.

    Args:
        session: the reader.
        prompts: one or more, each once; held out from what the eraser was fitted on.
        tokens: for each prompt the token whose activation is erased, counted in the trace that the session's encoder
            gives its case; at or before the answer marker's last.
        hook: `resid_pre` or `resid_post` of a layer; of the last layer's `resid_post` only the last token acts.
        eraser: of the concept.
        controls: random erasers of the same rank that remove as much of these prompts' activations
            (`erasure.random_erasers`), 20 or more.

    Raises:
        InputError: if an argument does not fit, no prompt can be measured, or a check of the run fails: writing an
            activation back unchanged must not change the answer, and the hook must fire once in each pass.
    """
    if odd := [control.rank for control in controls if control.rank != eraser.rank]:
        raise InputError(f"causal use: a control of rank {odd[0]} cannot be compared with an eraser of {eraser.rank}")
    edits = [lambda x, rows, eraser=eraser: eraser.erase(x) for eraser in (eraser, *controls)]
    runs, excluded = _runs(session, prompts, tokens, hook, edits)
    removed = np.mean([run.norms**2 for run in runs], axis=0)
    ratio = removed[1:].mean() / removed[0] if removed[0] else 1.0
    if not 1 / MATCH <= ratio <= MATCH:
        raise InputError(
            f"causal use: {hook}: the controls remove {ratio:.2f} times as much from these activations as the eraser, "
            "in mean squared norm; draw them with the activations of these prompts as `X` of random_erasers"
        )
    effects = []
    for run in runs:
        own, written = log_softmax(run.own), log_softmax(run.written, axis=1)
        effects.append(own[run.answer] - written[:, run.answer])
    return _used(session, runs, np.array(effects), excluded)


def steering_use(
    session: Session,
    prompts: Sequence[Authored],
    tokens: Sequence[int],
    hook: str,
    vectors: Float[ndarray, "prompt width"],
    targets: Sequence[str],
    controls: Float[ndarray, "draw prompt width"],
) -> Used:
    """What adding vectors does to the answers: the change of `LP(target) − LP(y)`, `y` the reader's own answer.

    Prompts whose target is not among their options, or is what the reader answers anyway, are excluded.

    Args:
        session, prompts, tokens, hook: as in `erasure_use`.
        vectors: what is added to each prompt's activation.
        targets: for each prompt the answer that its vector is to lead to, as its options write it.
        controls: draws of vectors of equal norm (`random_directions`), 20 or more.

    Raises:
        InputError: as `erasure_use`.
    """
    vectors, controls = np.asarray(vectors, dtype=float), np.asarray(controls)
    shape = (len(prompts), session.reader.model.config.get_text_config().hidden_size)
    if vectors.shape != shape or controls.ndim != 3 or controls.shape[1:] != shape or len(targets) != len(prompts):
        raise InputError(
            f"causal use: {len(targets)} targets, vectors of shape {vectors.shape} and controls of shape "
            f"{controls.shape} for {len(prompts)} prompts; expected {shape} and [draw, prompt, width]"
        )
    norms = np.linalg.norm(vectors, axis=1)
    if not np.allclose(np.linalg.norm(controls, axis=2), norms, rtol=1e-4, atol=1e-12):
        raise InputError("causal use: control vectors must be as long as the vectors they stand beside")
    edits = [lambda x, rows, added=added: x + added[rows] for added in (vectors, *controls)]
    runs, excluded = _runs(session, prompts, tokens, hook, edits)
    kept, effects = [], []
    for run in runs:
        target = targets[run.job.index]
        if target not in run.job.options:
            excluded.append(Excluded(run.job.prompt.id, "the target is not among its options", run.job.prompt.author))
            continue
        at = run.job.options.index(target)
        if at == run.answer:
            excluded.append(Excluded(run.job.prompt.id, "the target is its own answer", run.job.prompt.author))
            continue
        change = run.written - run.own
        effects.append(change[:, at] - change[:, run.answer])
        kept.append(run)
    return _used(session, kept, np.array(effects), excluded, [targets[run.job.index] for run in kept])


def random_directions(
    X: Float[ndarray, "row width"], like: Float[ndarray, "vector width"], n: int, seed: int
) -> Float[ndarray, "draw vector width"]:
    """`n` draws of random vectors, each as long as its vector in `like` and orthogonal to it.

    They are drawn from a normal distribution with the covariance of the activations, so that they point where
    activations vary. Equal vectors get equal directions: prompts that are steered alike are so in the controls.

    Raises:
        InputError: if the shapes do not fit, a number is not finite, or the activations vary along a vector only.
    """
    x, vectors = np.asarray(X, dtype=float), np.asarray(like, dtype=float)
    if x.ndim != 2 or vectors.ndim != 2 or x.shape[1] != vectors.shape[1]:
        raise InputError(f"causal use: activations {x.shape} and vectors {vectors.shape} must be [row, width]")
    if not (np.isfinite(x).all() and np.isfinite(vectors).all()):
        raise InputError("causal use: activations or vectors are not finite")
    distinct, which = np.unique(vectors, axis=0, return_inverse=True)
    norms = np.linalg.norm(distinct, axis=1, keepdims=True)
    units = np.divide(distinct, norms, out=np.zeros_like(distinct), where=norms > 0)
    centred = x - x.mean(axis=0)
    generator = np.random.default_rng(seed)
    draws = np.empty((n, *vectors.shape))
    for draw in draws:
        found = generator.standard_normal((len(distinct), len(x))) @ centred
        beside = found - np.sum(found * units, axis=1, keepdims=True) * units
        lengths = np.linalg.norm(beside, axis=1, keepdims=True)
        if not (lengths > 1e-9 * np.linalg.norm(found, axis=1, keepdims=True)).all():
            raise InputError("causal use: the activations vary along a vector only, so nothing orthogonal can be drawn")
        draw[:] = (beside / lengths * norms)[which.reshape(-1)]
    return draws


@dataclass(frozen=True)
class _Job:
    """A prompt with its place among those given, the token that is written, and the answers to choose from."""

    index: int
    prompt: Authored
    token: int
    ids: tuple[int, ...]
    options: tuple[str, ...]
    option_ids: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False)
class _Run:
    """`LP(option)` of a prompt untouched `[option]` and under each edit `[edit, option]`, and each change's norm."""

    job: _Job
    own: Float[ndarray, " option"]
    written: Float[ndarray, "edit option"]
    norms: Float[ndarray, " edit"]

    @property
    def answer(self) -> int:
        return int(self.own.argmax())


_Edit = Callable[[Float[ndarray, "row width"], Sequence[int]], Float[ndarray, "row width"]]
"""Takes activations, and the places of their prompts among those given."""


def _runs(
    session: Session, prompts: Sequence[Authored], tokens: Sequence[int], hook: str, edits: Sequence[_Edit]
) -> tuple[list[_Run], list[Excluded]]:
    """Every prompt under every edit, in the order given; the first edit is the probe's, the others are controls."""
    model = session.reader.model
    site, layer = sites.parse_hook_name(hook)
    if site not in ("resid_pre", "resid_post"):
        raise InputError(f"causal use: hook {hook!r}: expected resid_pre or resid_post of a layer")
    sites.hook_names(model, [site], [layer])
    if len(edits) - 1 < MIN_CONTROLS:
        raise InputError(f"causal use: {len(edits) - 1} controls; at least {MIN_CONTROLS} are needed, 100 advised")
    if len(tokens) != len(prompts) or len({prompt.id for prompt in prompts}) < len(prompts):
        raise InputError(
            f"causal use: {len(tokens)} tokens for {len(prompts)} prompts of {len({p.id for p in prompts})} different "
            "ids; give each prompt once, with one token (the prompt is the unit of the intervals)"
        )
    last_layer = site == "resid_post" and layer == len(sites.blocks(model)) - 1
    excluded: list[Excluded] = []
    jobs: list[_Job] = []
    for index, (prompt, token, options) in enumerate(zip(prompts, tokens, session.options(prompts), strict=True)):
        job = options.reason if isinstance(options, Excluded) else _job(session, index, prompt, token, options)
        if isinstance(job, str):
            excluded.append(Excluded(prompt.id, job, prompt.author))
            continue
        if last_layer and token != len(job.ids) - 1:
            raise InputError(
                f"causal use: {hook}, prompt {prompt.id!r}: after the last block nothing else reads token {token}; "
                f"give the token from which the answer is predicted ({len(job.ids) - 1}), or an earlier layer"
            )
        jobs.append(job)
    if not jobs:
        why = f" ({excluded[0].reason}, and so on)" if excluded else ""
        raise InputError(f"causal use: none of {len(prompts)} prompts can be measured{why}")
    stage = session.stage(f"{session.name}: causal use at {hook}", len(jobs))
    runs: list[_Run] = []
    for batch in _batches(jobs, session.batch_tokens):
        runs += _measure(session, batch, hook, edits)
        stage(len(batch))
    return sorted(runs, key=lambda run: run.job.index), excluded


def _job(session: Session, index: int, prompt: Authored, token: int, options: tuple[str, ...]) -> _Job | str:
    if len(options) < 2:
        return "fewer than two different answers to choose from"
    case = prompt.case
    traces = session.reader.encoder.encode_answers(case.question, case.steps or (), options, case.gaps)
    end = traces[0].marker[1]
    if not 0 <= token < end:
        raise InputError(
            f"causal use: prompt {prompt.id!r}: token {token} is not before its answer; expected 0 to {end - 1}"
        )
    answers = tuple(trace.ids[trace.answer[0] :] for trace in traces)
    return _Job(index, prompt, token, traces[0].ids[:end], options, answers)


def _batches(jobs: Sequence[_Job], batch_tokens: int) -> Iterator[list[_Job]]:
    """Prompts of similar length together; what is batched depends on the inputs alone."""
    batch: list[_Job] = []
    for job in sorted(jobs, key=lambda job: len(job.ids)):
        if batch and (len(batch) + 1) * len(job.ids) > batch_tokens:
            yield batch
            batch = []
        batch.append(job)
    if batch:
        yield batch


def _measure(session: Session, jobs: list[_Job], hook: str, edits: Sequence[_Edit]) -> list[_Run]:
    model = session.reader.model
    texts = patching.read_texts(model, [job.ids for job in jobs], [job.option_ids for job in jobs], [hook])
    stood = texts.recorded[hook][torch.arange(len(jobs)), torch.tensor([job.token for job in jobs])]
    own = texts.own

    def read(streams: Sequence[Tensor]) -> list[ndarray]:
        cells = [
            patching.Cell(row, hook, np.array([job.token]), stream[row : row + 1])
            for stream in streams
            for row, job in enumerate(jobs)
        ]
        return patching.patched(model, session.name, texts, cells, session.batch_tokens)

    _check(session, jobs, hook, own, read([stood]))
    x, places = stood.double().cpu().numpy(), [job.index for job in jobs]
    scored: list[ndarray] = []
    norms: list[ndarray] = []
    # As many draws together as fill a pass; all of them at once would hold every draw's activations.
    size = max(1, session.batch_tokens // (len(jobs) * texts.prefix.visible.shape[1]))
    for start in range(0, len(edits), size):
        new = [edit(x, places) for edit in edits[start : start + size]]
        norms += [np.linalg.norm(changed - x, axis=1) for changed in new]
        scored += read([torch.from_numpy(changed).to(stood) for changed in new])
    runs = []
    for row, job in enumerate(jobs):
        written = np.stack(scored[row :: len(jobs)])
        if not (np.isfinite(written).all() and np.isfinite(own[row]).all()):
            raise InputError(
                f"model {session.name}, prompt {job.prompt.id!r}, {hook}: the answer's probabilities are not finite; "
                f"the activations written, or its precision ({model.dtype}), overflow"
            )
        runs.append(_Run(job, own[row], written, np.array([norm[row] for norm in norms])))
    return runs


def _tolerance(session: Session) -> float:
    return CHECK_TOLERANCE.get(session.reader.model.dtype, HALF_TOLERANCE)


def _check(session: Session, jobs: list[_Job], hook: str, own: list[ndarray], same: list[ndarray]) -> None:
    """Finds that an activation written back unchanged leaves every option's probability as it was."""
    tolerance = _tolerance(session)
    for job, before, after in zip(jobs, own, same, strict=True):
        error = float(np.abs(np.exp(after) - np.exp(before)).max())
        if not error <= tolerance:
            raise InputError(
                f"model {session.name}, prompt {job.prompt.id!r}, {hook}: its own activation written back changes its "
                f"answer, by {error:.2g} (allowed {tolerance:g}); causal use cannot be tested in this architecture"
            )


def _used(
    session: Session,
    runs: list[_Run],
    effects: Float[ndarray, "prompt edit"],
    excluded: list[Excluded],
    targets: Sequence[str] = (),
) -> Used:
    if not runs:
        raise InputError(f"causal use: no prompt is left to measure ({excluded[0].reason}, and so on)")
    rows: list[dict[str, Any]] = []
    for run, effect in zip(runs, effects, strict=True):
        job, p = run.job, softmax(run.written, axis=1)
        distances = np.abs(p - softmax(run.own)).sum(axis=1) / 2
        row = {
            "id": job.prompt.id,
            "author": job.prompt.author,
            "token": job.token,
            "answer": job.options[run.answer],
            "mass": float(np.exp(run.written[0]).sum()),
        }
        columns = {"effect": effect, "distance": distances, "norm": run.norms}
        if targets:
            row["target"] = targets[len(rows)]
            columns["moved"] = (p.argmax(axis=1) == job.options.index(row["target"])).astype(float)
        row |= {name: float(values[0]) for name, values in columns.items()}
        rows.append(row | {f"control_{name}": float(values[1:].mean()) for name, values in columns.items()})
    table = pd.DataFrame(rows)
    reasons = Counter(item.reason for item in excluded)
    controls = effects[:, 1:].mean(axis=0)
    mean = statistics.mean(effects[:, 0], excluded=reasons)
    return Used(
        table=table,
        effect=mean,
        excess=statistics.paired_difference(effects[:, 0], effects[:, 1:].mean(axis=1), excluded=reasons),
        controls=controls,
        floor=_tolerance(session),
        threshold=float(np.quantile(controls, PERCENTILE, method="higher")),
        p=statistics.permutation_p(mean.estimate, controls),
        moved=statistics.clopper_pearson(int(table["moved"].sum()), len(table), excluded=reasons) if targets else None,
        excluded=tuple(excluded),
    )
