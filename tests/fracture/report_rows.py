"""The rows that measures leave, for runs made by hand: what a reader does whose answer goes past the chain so often."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.authored import Authored
from probes.grid import COLUMNS as GRID_COLUMNS
from probes.transfer import COLUMNS as TRANSFER_COLUMNS

if TYPE_CHECKING:
    from tests.fracture.report_runs import Made

COSTS = ("abstention", "format_adherence", "rule_shift", "chain_length", "thought_switches", "partial_input")
CONDITIONS = {
    "early_answering": ("early", "area"),
    "mistakes": ("mistake", "mistake_cut"),
    "paraphrase": ("paraphrase",),
    "chain_effect": ("foreign", "foreign_question"),
}


def without_values(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of accuracy and calibration of a prompt that could not be scored."""
    return [row | dict.fromkeys(("right", "confidence", "entropy", "brier"), np.nan) for row in rows]


def probe_rows(measure: str, variants: Mapping[str, float | None], n: int) -> pd.DataFrame:
    """The table of `probes` or `transfer`: the base's answer is read behind the chain; of a model that reads nothing
    nothing could be probed."""
    rows: list[dict[str, Any]] = []
    for reader, dose in {"base": 0.0, **variants}.items():
        if measure == "transfer" and reader == "base":
            continue
        for target in ("answer", "chain_answer"):
            name = {"reader": reader, "target": target}
            if dose is None:
                rows.append(name | {"finding" if measure == "probes" else "outcome": "not probed: only one answer"})
                continue
            for layer, position in itertools.product(range(2), ("question_end", "step 1", "answer")):
                cell = {"hook": f"blocks.{layer}.hook_resid_post", "site": "resid_post", "layer": layer}
                cell |= {"position": position, "n_prompts": n, "n_rows": n, "metric": "accuracy"}
                read = position == "answer" and (target == "answer" or dose < 0.5)
                score = 0.9 + 0.05 * layer if read else 0.15
                if measure == "probes":
                    cell |= {"score": score, "low": score - 0.1, "high": score + 0.04, "majority": 0.2}
                    cell |= {"above_baseline_low": score - 0.3, "p_grid": 0.01 if read else 0.9}
                    cell |= {"finding": "decodable" if read else "not above majority"}
                else:
                    cell |= {"base": 0.9, "variant": score, "transferred": score, "recentred": score, "back": score}
                    cell |= {"chance": 0.2, "outcome": "kept" if read else "lost" if position == "answer" else "absent"}
                rows.append(name | cell)
    columns = GRID_COLUMNS if measure == "probes" else TRANSFER_COLUMNS
    return pd.DataFrame(rows, columns=["reader", "target", *columns])


def rows_of(
    measure: str, made: Made, reader: str, prompt: Authored, place: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """The rows of a measure for one reader, prompt and author, without their keys; `rng` draws what differs."""
    dose = made.base if reader == "base" else made.variants[reader]
    n, share = len(prompt.steps), 0.0 if dose is None else float(dose + made.noise * rng.normal())
    reads = 0.0 if dose is None else 1 - share
    right = float(dose is not None)
    if measure == "routes":
        return _routes(made, prompt, place, share, dose is None)
    if measure == "own_routes":
        whole = _routes(made, prompt, place, share, dose is None)[:1] if prompt.tier != 3 else []
        return [{key: value for key, value in row.items() if key != "chain"} for row in whole]
    if measure == "accuracy_and_calibration":
        own = prompt.author == reader
        written = {"written_right": right if own else np.nan, "unanswered": 0.0 if own else np.nan}
        confidence = float(rng.uniform(0.8, 0.99))
        return [{**written, "right": right, "confidence": confidence, "entropy": 0.1, "brier": (1 - confidence) ** 2}]
    if measure == "knowledge_index":
        return [{"step": s, "n_claims": 1, "checkable": 1.0, "true": float(s > 1), "one": 1.0} for s in range(1, n + 1)]
    if measure == "token_kl":
        return [{"kl": abs(float(rng.normal(0.03, 0.01))), "n_tokens": 9}]
    if measure == "information_gain":
        key = {"n_steps": n, "n_tokens": 10 + place, "logprob": -1.0}
        gains = [
            (name, 2.0 * reads - 3 * at) for at, name in enumerate(("chain", "masked", "foreign", "filler", "question"))
        ]
        total = [key | {"condition": c, "step": 0, "gain": g + 0.1 * rng.normal(), "paper": g} for c, g in gains]
        return total + [key | {"condition": "step", "step": s, "gain": reads} for s in range(1, n + 1)]
    if measure == "readout":
        return [{"before_chain": share + 0.1 * rng.normal(), "chain_answer": reads + 0.1 * rng.normal()}]
    if measure == "patch_map":
        return [] if prompt.partner is None else _patches(n, reads, dose is None)
    if measure == "interventions":
        return [] if prompt.partner is None else _intervened(n, reads, dose is None)
    if measure == "head_map":
        return [] if prompt.partner is None else _heads(reads)
    if measure == "repair":
        return [] if prompt.partner is None else _repaired(made, share, dose is None)
    if measure == "attention_knockout":
        return _knockouts(n, reads, rng)
    if measure == "masked_flow":
        return _flows(n, reads, dose is None)
    if measure in ("true_thinking", "logit_decay"):
        return _step_scores(measure, n, reads, right, rng)
    if measure in COSTS:
        return _costs(measure, reader, prompt, place, n, right)
    key = {"n_steps": n, "chance": 0.0, "logprob": -1.0}
    rows = [key | {"condition": "intact", "same": 1.0, "right": right, "drop": 0.0, "p_drop": 0.0}]
    rows.append(key | {"condition": "no_chain", "same": 0.0, "right": 1 - reads, "drop": 3.0 * reads, "p_drop": reads})
    rows[-1]["right"] = float(reads < 0.5) * right
    for condition in CONDITIONS[measure]:
        for step in range(1, n + 1) if condition in ("mistake", "mistake_cut", "early") else (1,):
            if condition == "mistake" and step == 1 and place in made.unruled:
                continue
            drop = float(np.round(reads * step / n + 0.01 * rng.normal(), 4))
            same = float(drop < 0.5)
            row = key | {"condition": condition, "same": same, "right": same * right, "drop": 3 * drop, "p_drop": drop}
            if measure == "mistakes":
                row |= {"step": float(step), "rule": "number"}
            if measure == "early_answering":
                row |= {"cut": float(step - 1)} if condition == "early" else {"aoc": 1 - same}
            rows.append(row)
    return rows


def _routes(made: Made, prompt: Authored, place: int, share: float, dead: bool) -> list[dict[str, Any]]:
    if prompt.partner is None:
        return []
    rows = []
    for chain in ("whole", "no_conclusion"):
        if chain == "no_conclusion" and len(prompt.steps) < 2:
            continue
        total = 0.0001 if dead else 1.8
        text = {"te": total, "nie": total * (1 - share), "nde": total * share}
        variation = {"tv": total / 2, "tv_past": total / 2 * share}
        inside = {f"inside_{name}": np.nan if place in made.crooked else value for name, value in text.items()}
        error = np.nan if place in made.crooked else 1e-9
        rows.append(
            {
                "tier": prompt.tier,
                "chain": chain,
                **text,
                **variation,
                **inside,
                "mass": 1.0,
                "splice_error": error,
                "n_options": 4,
            }
        )
    return rows


def _costs(measure: str, reader: str, prompt: Authored, place: int, n: int, right: float) -> list[dict[str, Any]]:
    """Every seventh prompt is abstained from, every fifth answered as before; what is right is so at any length."""
    if measure == "rule_shift":
        old = float(place % 5 == 0)
        shifted = {"right_shifted": right * (1 - old), "old_answer": old, "drop": right * old}
        return [{"chain": "given", "right": right, **shifted}]
    if measure == "partial_input":
        key = {"chance": 0.25, "p_gold": 0.3}
        return [key | {"part": part, "right": right * (part == "cue")} for part in ("full", "cue", "other")]
    if prompt.author != reader:
        return []
    if measure == "abstention":
        said = float(place % 7 == 0)
        kinds = {"abstained_unanswerable": np.nan, "abstained_answerable": said}
        return [{"answerable": True, "abstained": said, "unanswered": 0.0, **kinds}]
    if measure == "format_adherence":
        kept = {"marker": 1.0, "stopped": 1.0, "has_step": 1.0, "in_options": np.nan, "steps_match": np.nan}
        return [kept | {"constraints": np.nan, "passed": 1.0}]
    if measure == "chain_length":
        return [{"n_steps": n, "n_tokens": 6 * n + place % 3, "right": right, "unanswered": 0.0}]
    under = {"until_right": np.nan, "underthinking": np.nan if right else 0.0}
    return [{"switches": place % 3, "switched": float(place % 3 > 0), "n_tokens": 6 * n, "right": right, **under}]


def _knockouts(n: int, reads: float, rng: np.random.Generator) -> list[dict[str, Any]]:
    """The last step bears the answer; a single one leaves no room for a control."""
    rows = []
    for part, step, value in (*(("step", s, reads * (s == n)) for s in range(1, n + 1)), ("chain", 0, reads),
                              ("question", 0, 1 - reads)):  # fmt: skip
        p_drop, control = float(value + 0.01 * rng.normal()), np.nan if part == "step" and n == 1 else 0.1
        keys = {"part": part, "step": step, "n_steps": n, "start": 1, "n_positions": 5, "control_start": 2.0}
        effect = {"drop": 5 * p_drop, "p_drop": p_drop, "tv": abs(p_drop), "same": float(p_drop < 0.5)}
        other = {"drop_control": 5 * control, "p_drop_control": control, "tv_control": control, "same_control": 1.0}
        beyond = {"beyond": 5 * (p_drop - control), "p_beyond": p_drop - control}
        rows.append({**keys, "logprob": -0.1, **effect, **other, **beyond})
    return rows


def _flows(n: int, reads: float, dead: bool) -> list[dict[str, Any]]:
    """As much as there can be is log 2; a model that reads nothing loses the form of its text all the same."""
    sizes = {"direct": 0.69 * (1 - reads) * (not dead), "necessity": 0.69 * reads + 0.3 * dead, "leakage": 0.3 * reads}
    sizes |= {"question_control": 0.1 * reads, "chain_control": 0.05}
    key = {"n_steps": n, "start": 1, "n_positions": 5}
    return [
        key | {"flow": flow, "divergence": size, "among": 0.0 if dead else size, "log_odds": 9 * size, "elsewhere": 0.0}
        for flow, size in sizes.items()
    ]


def _step_scores(measure: str, n: int, reads: float, right: float, rng: np.random.Generator) -> list[dict[str, Any]]:
    """The last step bears the answer; what is lost with it is what the model reads of the chain."""
    thinking = measure == "true_thinking"
    key = {"n_steps": n, "ld_clean": 2.0 * right}
    intact = {"condition": "intact", "step": np.nan, "last": np.nan, "right": right, "chance": 0.0}
    rows = [key | intact]
    for step in range(1, n + 1):
        value = reads * step / n + 0.01 * float(rng.normal())
        where = key | {"step": float(step), "last": float(step == n)}
        if thinking:
            rows.append(where | {"condition": "mistake", "tts": abs(value)})
            rows.append(where | {"condition": "paraphrase", "tts": 0.01})
        else:
            decay = 100 * value if right else np.nan
            rows.append(where | {"condition": "mistake", "nldd": decay, "truncation": decay / 2, "nldd_cut": decay})
    return rows


def _repaired(made: Made, share: float, dead: bool) -> list[dict[str, Any]]:
    """The base's states take half of the bypass away; nothing else does anything."""
    total, base = 0.0001 if dead else 1.8, 0.0 if made.base is None else made.base
    key = {"total": total, "agreement": 1 - share, "mass": 0.99}
    past = {"unedited": share, "base_itself": base}
    rows = [
        {"condition": name, "layer": -1, "fixed": False, "n_positions": 0, "size": 0.0, "past": bypass * total, **key}
        for name, bypass in past.items()
    ]
    past = dict.fromkeys(("affine", "mean_difference", "random", "other_prompt"), share)
    past |= {"base": share / 2, "reverse": base}
    return rows + [
        {"condition": name, "layer": layer, "fixed": layer == 0, "n_positions": 9, "size": 0.4, "past": bypass * total}
        | key
        for layer in range(2)
        for name, bypass in past.items()
    ]


def _intervened(n: int, reads: float, dead: bool) -> list[dict[str, Any]]:
    """At the stream chain and question do what the model reads of them, whatever the method; elsewhere nothing does."""
    total = 0.0001 if dead else 1.8
    rows = [
        {"site": site, "layer": layer, "method": method, "part": part, "step": 0, "drop": 0.0}
        | {"effect": value * scale * (site == "resid_post"), "total": scale, "mediated": np.nan, "mediation": np.nan}
        for site in ("resid_post", "attn_out", "mlp_out")
        for layer in range(2)
        for part, value in (("question", 1 - reads), ("chain", reads))
        for method, scale in (("noising", total), ("denoising", total), ("mean", 0.9), ("zero", 0.9))
    ]
    drop = 3.0 * reads / n
    step = {"site": "resid_post", "layer": 0, "method": "noising", "part": "step", "effect": np.nan, "total": np.nan}
    index = {"mediated": drop, "mediation": drop if drop >= 0.1 else np.nan, "drop": drop}
    return rows + [step | index | {"step": at} for at in range(1, n + 1)]


def _heads(reads: float) -> list[dict[str, Any]]:
    """Of two layers of three heads, head 1 of the first carries at the marker what the model reads of the chain; of the
    rest one is sampled."""
    rows = []
    for layer, head, part in itertools.product(range(2), range(3), ("question", "chain", "marker")):
        if layer == 1 and part != "marker":
            continue
        carries = (layer, head, part) == (0, 1, "marker")
        chosen = "top" if carries or (layer, head) == (0, 0) else "sample" if head == 2 and part == "marker" else ""
        share = reads if carries else 0.05 * head
        estimates = {"plain": 2.0 * share, "integrated": 4.4 * share, "total": 4.0}
        effect = 4.0 * share if chosen else np.nan
        keys = {"layer": layer, "head": head, "part": part, "step": 0, "n_positions": 3}
        rows.append(keys | {"chosen": chosen, "effect": effect} | estimates)
    return rows


def _patches(n: int, reads: float, dead: bool) -> list[dict[str, Any]]:
    total = 0.0001 if dead else 1.8
    parts = [("question", 0, 1 - reads), ("chain", 0, reads), ("control", 0, 0.1)]
    parts += [("step", step, reads / n) for step in range(1, n + 1)]
    key = {"n_steps": n, "n_positions": 3, "total": total, "logit_effect": np.nan, "logit_total": np.nan}
    return [
        {"layer": layer, "part": part, "step": step, "effect": value * total, **key}
        for layer in range(2)
        for part, step, value in parts
    ]
