"""The subspace illusion's check inside a model: a concept's subspace exchanged between prompts of other labels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from scipy.special import log_softmax

from analysis import patching
from analysis.authored import Authored
from analysis.measures.session import Session
from analysis.store import Store
from fracture.probing.places import Place
from probes.causal_use import Used
from probes.grid import activations
from probes.illusion import Effect, SubspaceCheck, check_subspace


def illusion(
    session: Session, store: Store, place: Place, prompts: Mapping[str, Authored], used: Used, seed: int
) -> SubspaceCheck:
    """Whether the subspace in which class means differ carries the answer by what it holds, or wakes what is dormant.

    Each prompt gets the component of one of another label, drawn among those that the eraser was fitted on; what counts
    is the log-probability, among the options, of the answer that it gives untouched.

    Raises:
        InputError: as `probes.illusion.check_subspace`.
    """
    x, n_fit = activations(store, place.hook.name).double().numpy(), len(place.fit)
    fit, labels = x[place.fit], place.labels
    columns = labels.columns[:n_fit]
    # For classes the span of the differences of their means; for a number the direction of its covariance.
    span, sizes, _ = np.linalg.svd((fit - fit.mean(0)).T @ (columns - columns.mean(0)), full_matrices=False)
    basis = span[:, sizes > 1e-6 * sizes.max()].T
    generator = np.random.default_rng(seed)
    row_of = dict(zip(store.rows["id"].to_numpy()[place.test], range(len(place.test)), strict=True))
    rows = [row_of[name] for name in used.table["id"]]
    donors = [int(generator.choice(np.flatnonzero(labels.values[:n_fit] != labels.values[n_fit + r]))) for r in rows]
    effect = _own_answer(session, place.hook.name, prompts, used)
    return check_subspace(x[place.test[rows]], fit[donors], basis, effect)


def _own_answer(session: Session, hook: str, prompts: Mapping[str, Authored], used: Used) -> Effect:
    """Takes activations of the prompts in `used.table`, and gives `LP(own answer)` of each with them written."""
    model, encoder = session.reader.model, session.reader.encoder
    texts = []
    for line in used.table.to_dict("records"):
        prompt = prompts[line["id"]]
        options = session.options([prompt])[0]
        assert isinstance(options, tuple)
        case = prompt.case
        traces = encoder.encode_answers(case.question, case.steps or (), options, case.gaps)
        end = traces[0].marker[1]
        scored = tuple(trace.ids[trace.answer[0] :] for trace in traces)
        texts.append((traces[0].ids[:end], scored, line["token"], options.index(line["answer"])))
    size = max(1, session.batch_tokens // max(len(ids) for ids, *_ in texts))

    def effect(values: Float[ndarray, "prompt width"]) -> Float[ndarray, " prompt"]:
        written = torch.from_numpy(values).to(model.device, model.dtype)
        found: list[float] = []
        for start in range(0, len(texts), size):
            part = texts[start : start + size]
            read = patching.read_texts(model, [ids for ids, *_ in part], [options for _, options, *_ in part])
            cells = [
                patching.Cell(row, hook, np.array([token]), written[start + row : start + row + 1])
                for row, (_, _, token, _) in enumerate(part)
            ]
            scores = patching.patched(model, session.name, read, cells, session.batch_tokens)
            found += [float(log_softmax(s)[own]) for s, (*_, own) in zip(scores, part, strict=True)]
        return np.array(found)

    return effect
