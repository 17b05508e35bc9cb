"""Logit-difference decay: how much of the gold answer's lead is lost when a step is made wrong and the rest cut.

`LD = (max correct logit − max incorrect logit) / S` behind the answer marker: correct are the first tokens of the gold
answer, incorrect all others, and `S` is the standard deviation of the logits over the vocabulary, averaged over the
intact texts that are read. White space that all options begin with decides nothing, and is read with the marker.
`NLDD = 100 · (LD_clean − LD_corrupt) / |LD_clean|`, in percent, with the whole chain as
clean and the chain up to step k, which is wrong, as corrupt. S cancels there; it is the unit of `MIN_LD`.

What NLDD takes away is the step's truth and all that came after it. `truncation` is the same with the step intact:
what merely cutting does. `nldd_cut` has the chain cut behind the intact step as clean: what merely the mistake does.
A share of the reader's own lead grows where that lead is small, whatever the chain does: seen, organisms whose answer
is torn between chain and a cue that conflicts with it have three times the base's decay. `lead` stands beside it.

Source: Ye et al. 2026 (arXiv 2602.11201); clean and corrupt as in its first public code (Max17190/NLDD-CoT), which
counts decays of a small `LD_clean` as 0. A later version keeps the rest of the chain, as the measure `mistakes` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray
from scipy import stats

from analysis.answers import same_answer
from analysis.authored import Authored
from analysis.cells import Excluded, unreadable
from analysis.measures.estimates import length_matched
from analysis.measures.logit_leads import Job, leads
from analysis.measures.mistakes import NO_RULE, with_mistakes
from analysis.measures.protocol import Measure, Measured, Quantity, Settings, Size
from analysis.measures.session import Session
from analysis.measures.text_tests import INTACT, NO_STEPS
from analysis.statistics import MIN_PROMPTS

WRONG = "mistake"
MIN_LD = 0.1
"""A lead of less than a tenth of S divides by noise: logits in bfloat16 are no finer. Such a decay is undefined."""
COLUMNS = (
    *("id", "author", "condition", "step", "n_steps", "rule", "ld_clean", "ld_cut", "ld_corrupt"),
    *("nldd", "truncation", "nldd_cut", "spread", "right", "chance"),
)
PARTS = 5
"""Into so many parts of equal length a chain is divided, to say where decay is largest."""
DRAWS = 2000


def logit_decay(session: Session, prompts: Sequence[Authored], settings: Settings) -> Measured:
    """The decay of every step to which a rule for mistakes applies, by the mistakes of the measure `mistakes`.

    Conditions: `intact`, one row a prompt and author, with `ld_clean`, the logits' own standard deviation `spread`,
    whether a gold token leads (`right`), and the `chance` of guessing; and `mistake`, one a step (`step` from 1).

    Columns: `ld_clean`, `ld_cut` (cut behind the intact step), `ld_corrupt` (cut behind the wrong one), in units of S;
    `nldd`, `truncation`, `nldd_cut` in percent, NaN where what they divide by is nearer to 0 than `MIN_LD`.

    A prompt is left out where another of its options begins with the same token as the gold answer, as numbers do whose
    digits are tokens: that token's lead decides nothing.

    Raises:
        InputError: for logits that are not finite.
    """
    excluded: list[Excluded] = []
    asked: list[tuple[Authored, Mapping[int, str], Job]] = []
    for prompt, options in zip(prompts, session.options(prompts), strict=True):
        found = options.reason if isinstance(options, Excluded) else _job(session, prompt, options, settings.seed)
        if isinstance(found, str):
            excluded.append(Excluded(prompt.id, found, prompt.author))
        else:
            asked.append((prompt, *found))
    distinct = list(dict.fromkeys(job for _, _, job in asked))
    read = dict(zip(distinct, leads(session, distinct), strict=True))
    # None is read only if there are no rows to be scaled.
    scale = float(np.mean([read[job][1] for _, _, job in asked])) if asked else 1.0
    rows: list[dict[str, Any]] = []
    for prompt, rules, job in asked:
        lead, spread = read[job]
        rows += _rows(prompt, rules, lead / scale, spread)
    return Measured(pd.DataFrame(rows, columns=list(COLUMNS)), excluded)


def _job(session: Session, prompt: Authored, options: Sequence[str], seed: int) -> tuple[Mapping[int, str], Job] | str:
    """The rule by which each step is made wrong, and the texts: the intact one, then for each of these steps the chain
    cut behind it as it was, and as it is wrong; or why there are none."""
    if not prompt.steps:
        return NO_STEPS
    wrong = with_mistakes(session, prompt, seed)
    if not wrong:
        return NO_RULE
    gold = prompt.case.answer
    answers = tuple(dict.fromkeys((gold, *options)))
    cases = [prompt.case, *(text.first(step) for step, (_, case) in wrong.items() for text in (prompt.case, case))]
    encoder = session.reader.encoder
    traces = [encoder.encode_answers(case.question, case.steps or (), answers, case.gaps) for case in cases]
    if (reason := unreadable(session.reader, traces, answers)) is not None:
        return reason
    is_gold = [same_answer(answer, gold) for answer in answers]
    texts, correct = [], []
    for text in traces:
        ids, at = text[0].ids, text[0].answer[0]
        while not encoder.tokenizer.decode([ids[at]]).strip() and all(trace.ids[at] == ids[at] for trace in text):
            at += 1
        tokens, others = (
            {trace.ids[at] for trace, right in zip(text, is_gold, strict=True) if right == wanted}
            for wanted in (True, False)
        )
        if tokens & others:
            return "another option begins with the same token as the gold answer"
        texts.append(ids[:at])
        correct.append(tuple(sorted(tokens)))
    return {step: str(rule) for step, (rule, _) in wrong.items()}, Job(tuple(texts), tuple(correct))


def _rows(
    prompt: Authored, rules: Mapping[int, str], ld: Float[ndarray, " text"], spread: float
) -> Iterator[dict[str, Any]]:
    clean = float(ld[0])
    key = {"id": prompt.id, "author": prompt.author, "n_steps": len(prompt.steps), "ld_clean": clean}
    chance = 1 / len(prompt.options) if prompt.options else 0.0
    yield key | {"condition": INTACT, "spread": spread, "right": float(clean > 0), "chance": chance}
    for (step, rule), (cut, corrupt) in zip(rules.items(), ld[1:].reshape(-1, 2).tolist(), strict=True):
        yield key | {
            "condition": WRONG,
            "step": step,
            "rule": rule,
            "ld_cut": cut,
            "ld_corrupt": corrupt,
            "nldd": decay(clean, corrupt),
            "truncation": decay(clean, cut),
            "nldd_cut": decay(cut, corrupt),
        }


def decay(clean: float, corrupt: float) -> float:
    """`100 · (clean − corrupt) / |clean|`; NaN where `clean` is nearer to 0 than `MIN_LD`."""
    return 100 * (clean - corrupt) / abs(clean) if abs(clean) >= MIN_LD else float("nan")


def summarise(table: pd.DataFrame, seed: int = 0) -> dict[str, Any]:
    """What the mean of one reader and author rests on: it is a mean of ratios, and a few can decide it.

    `steps` read, `undefined` of them; `median` over prompts of their mean decay, with its interval from order
    statistics; and `horizon`, after the paper's k*: of `PARTS` equal parts of the chain the one in whose steps decay is
    largest on average (`share`, where it ends), over prompts that have a step there, and how often it is so (`again`)
    when prompts are drawn anew. A part with fewer than `MIN_PROMPTS` prompts takes no part; None if all have fewer.
    """
    steps = table[table["condition"] == WRONG]
    defined = steps[steps["nldd"].notna()]
    means = defined.groupby("id", sort=False)["nldd"].mean().to_numpy()
    part = np.ceil(PARTS * defined["step"] / defined["n_steps"]).astype(int)
    by_part = defined.assign(part=part).pivot_table(index="id", columns="part", values="nldd", sort=False)
    by_part = by_part.loc[:, by_part.notna().sum() >= MIN_PROMPTS]
    return {
        "steps": len(steps),
        "undefined": int(steps["nldd"].isna().sum()),
        "median": _median(means),
        "horizon": _horizon(by_part, seed),
    }


def _median(values: Float[ndarray, " prompt"]) -> dict[str, Any]:
    """As `Estimate.to_dict`, without a standard error."""
    if not len(values):
        return {"estimate": None, "low": None, "high": None, "n": 0}
    limits = stats.quantile_test(values, q=float(np.median(values)), p=0.5).confidence_interval(0.95)
    low, high = (float(limit) if np.isfinite(limit) else None for limit in (limits.low, limits.high))
    return {"estimate": float(np.median(values)), "low": low, "high": high, "n": len(values)}


def _horizon(by_part: pd.DataFrame, seed: int) -> dict[str, Any] | None:
    if by_part.empty:
        return None
    values = by_part.to_numpy(dtype=float)
    known = ~np.isnan(values)
    highest = int(np.nanmean(values, axis=0).argmax())
    drawn = np.random.default_rng(seed).multinomial(len(values), np.full(len(values), 1 / len(values)), size=DRAWS)
    with np.errstate(invalid="ignore"):
        means = (drawn @ np.nan_to_num(values)) / (drawn @ known)
    again = float((np.where(np.isnan(means), -np.inf, means).argmax(axis=1) == highest).mean())
    return {"share": int(by_part.columns[highest]) / PARTS, "again": again, "n": int(known[:, highest].sum())}


def tokens_read(size: Size) -> float:
    """About how many tokens one prompt takes: the text, and behind each step the marker, and the step itself again."""
    return size.text + size.chain + 2 * size.steps * size.marker


def _of_step(value: str, label: str, detached: Literal[-1, 0, 1] = 0) -> Quantity:
    return Quantity(value, label, "%", value, None, {"condition": WRONG}, detached, needs_accuracy=True)


TESTED = _of_step("nldd", "logit-difference decay of a step")

MEASURE = Measure(
    name="logit_decay",
    title="How much of the gold answer's lead is lost with a step?",
    run=logit_decay,
    quantities=(
        TESTED,
        _of_step("truncation", "logit-difference decay, control: merely cut behind the step"),
        _of_step("nldd_cut", "logit-difference decay, against the chain cut behind the step"),
        Quantity(
            "lead",
            "gold answer's lead behind the whole chain",
            "standard deviations",
            "ld_clean",
            where={"condition": INTACT},
        ),
        Quantity(
            "right_intact",
            "gold answer's first token leads",
            "share",
            "right",
            where={"condition": INTACT},
            binary=True,
        ),
    ),
    compare=length_matched((TESTED,)),
    summarise=summarise,
    tokens=tokens_read,
)
