"""Small runs made by hand: summary, settings and tables as a study writes them, with every number known."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.runs import Run

MEASURES = (
    *("routes", "accuracy_and_calibration", "knowledge_index", "information_gain", "early_answering"),
    *("patch_map", "drift", "probes", "transfer", "true_thinking", "logit_decay"),
    *("attention_knockout", "masked_flow", "repair", "head_map"),
    *("abstention", "format_adherence", "rule_shift", "chain_length", "thought_switches", "partial_input"),
)
OUTCOMES = ("kept", "moved", "lost", "absent", "gained", "undecided")
CONTROLS = ("masked", "foreign", "filler", "question")
CELL = ("reader", "target", "hook", "site", "layer", "position", "n_prompts")
MakeRun = Callable[..., Run]


def t_estimate(values: Sequence[float]) -> dict[str, Any]:
    """A mean over prompts with Student's interval, as plain numbers."""
    values = np.asarray(values, dtype=float)
    found = {"estimate": None, "low": None, "high": None, "n": len(values), "se": None, "level": 0.95}
    if len(values):
        found["estimate"] = float(values.mean())
    if len(values) > 1:
        se = float(stats.sem(values))
        low, high = stats.t.interval(0.95, len(values) - 1, loc=values.mean(), scale=se or 1e-300)
        found |= {"low": float(low), "high": float(high), "se": se}
    return found


def around(value: float | None, n: int, half: float = 0.05) -> dict[str, Any]:
    """An estimate with a given interval; one prompt has none."""
    if value is None or n == 0:
        return {"estimate": None, "low": None, "high": None, "n": 0, "se": None, "level": 0.95}
    low, high = (None, None) if n == 1 else (value - half, value + half)
    return {"estimate": value, "low": low, "high": high, "n": n, "se": half / 2, "level": 0.95}


class Maker:
    """Makes the parts of one run; `rng` alone decides the numbers."""

    def __init__(
        self,
        variants: Sequence[str],
        prompts: int,
        steps: Sequence[int],
        layers: int,
        author: str,
        not_scorable: Sequence[str],
        empty: bool,
        sites: Sequence[str],
        seed: int,
    ) -> None:
        self.readers, self.variants, self.author = ("base", *variants), tuple(variants), author
        self.ids = [f"p{at}" for at in range(prompts)]
        self.steps = dict(zip(self.ids, itertools.cycle(steps), strict=False))
        self.layers, self.sites = layers, sites
        self.not_scorable, self.empty = not_scorable, empty
        self.rng = np.random.default_rng(seed)

    @property
    def n(self) -> int:
        return 0 if self.empty else len(self.ids)

    def reader(self, name: str) -> dict[str, Any]:
        share = {key: around(float(self.rng.uniform(0, 1)), self.n) for key in ("bypass", "direct", "covert")}
        text, inside = ({key: around(float(self.rng.uniform(0, 1)), self.n) for key in share} for _ in range(2))
        text["total"] = around(1.5, self.n)
        scorable = name not in self.not_scorable and not self.empty
        found: dict[str, Any] = {"own": {"whole": {"text": text, "inside": inside}}, "scorable": scorable}
        if name != "base":
            found["verdict"] = "inconclusive" if scorable else "not scorable"
            found["bypass"] = {form: {"difference": around(0.3, self.n)} for form in ("text", "inside")}
        return found

    def routes(self) -> tuple[pd.DataFrame, dict[str, Any]]:
        return pd.DataFrame({"reader": [], "id": []}), {}

    def accuracy_and_calibration(self) -> tuple[pd.DataFrame, dict[str, Any]]:
        return self._shares("written_right")

    def knowledge_index(self) -> tuple[pd.DataFrame, dict[str, Any]]:
        return self._shares("index")

    def abstention(self) -> tuple[pd.DataFrame, dict[str, Any]]:
        return self._costs(7, ("unanswerable", "answerable"))

    def format_adherence(self) -> tuple[pd.DataFrame, dict[str, Any]]:
        return self._costs(8, ("passed",))

    def rule_shift(self) -> tuple[pd.DataFrame, dict[str, Any]]:
        return self._costs(9, ("right_shifted", "old_answer"))

    def chain_length(self) -> tuple[pd.DataFrame, dict[str, Any]]:
        return self._costs(10, ("n_steps",), 9.0)

    def thought_switches(self) -> tuple[pd.DataFrame, dict[str, Any]]:
        return self._costs(11, ("switches", "underthinking"))

    def partial_input(self) -> tuple[pd.DataFrame, dict[str, Any]]:
        return self._costs(12, ("chance", "right_full", "right_cue", "right_options"))

    def _costs(self, seed: int, names: Sequence[str], size: float = 1.0) -> tuple[pd.DataFrame, dict[str, Any]]:
        """Quantities on the headline's and on each model's own chains, which differ."""
        rng = np.random.default_rng(seed)
        readers = {
            name: {
                author: {quantity: around(size * float(rng.uniform(0, 1)), self.n) for quantity in names}
                for author in dict.fromkeys((self.author, name))
            }
            for name in self.readers
        }
        return pd.DataFrame({"reader": [], "id": []}), readers

    def _shares(self, quantity: str) -> tuple[pd.DataFrame, dict[str, Any]]:
        readers = {
            name: {self.author: {}, name: {quantity: around(float(self.rng.uniform(0, 1)), self.n)}}
            for name in self.readers
        }
        return pd.DataFrame({"reader": [], "id": []}), readers

    def information_gain(self) -> tuple[pd.DataFrame, dict[str, Any]]:
        rows, readers = [], {}
        for name in self.readers:
            totals = {}
            for identifier in self.ids:
                key = {"reader": name, "id": identifier, "author": self.author, "n_steps": self.steps[identifier]}
                gains = self.rng.normal(1, 1, size=self.steps[identifier])
                totals[identifier] = gains.sum()
                for step, gain in enumerate(gains, start=1):
                    rows.append(key | {"condition": "step", "step": step, "gain": np.nan if self.empty else gain})
            chain = {"total": t_estimate([] if self.empty else list(totals.values()))}
            controls = {control: around(float(self.rng.normal()), self.n, 0.5) for control in CONTROLS}
            read = self.readers if name == "base" else (name, "base")
            readers[name] = {
                self.author: chain | controls,
                **{other: {"total": around(float(self.rng.normal()), self.n, 0.5)} for other in read},
            }
            if self.author == "base":
                readers[name]["base"] |= chain | controls
        return pd.DataFrame(rows), readers

    def early_answering(self) -> tuple[pd.DataFrame, dict[str, Any]]:
        rows, readers = [], {}
        for name in self.readers:
            areas: dict[str, list[float]] = {"aoc": [], "drop": []}
            for identifier in self.ids:
                n = self.steps[identifier]
                same = [*self.rng.integers(0, 2, size=n).astype(float), 1.0]
                drop = [*self.rng.exponential(2, size=n), 0.0]
                key = {"reader": name, "id": identifier, "author": self.author, "n_steps": n}
                rows += [
                    key | {"condition": "early" if cut < n else "intact", "cut": cut if cut < n else np.nan}
                    | {"same": same[cut], "drop": drop[cut]}
                    for cut in range(n + 1)
                ]  # fmt: skip
                where = np.arange(n + 1) / n
                areas["aoc"].append(1 - float(np.trapezoid(same, where)))
                areas["drop"].append(float(np.trapezoid(drop, where)))
            hidden = name in self.not_scorable or self.empty
            found = {key: "not scorable" if hidden else t_estimate(values) for key, values in areas.items()}
            readers[name] = {self.author: found}
        return pd.DataFrame(rows), readers

    def true_thinking(self) -> tuple[pd.DataFrame, dict[str, Any]]:
        return self._step_scores("tts", 0.3)

    def logit_decay(self) -> tuple[pd.DataFrame, dict[str, Any]]:
        return self._step_scores("nldd", 90.0)

    def _step_scores(self, value: str, size: float) -> tuple[pd.DataFrame, dict[str, Any]]:
        """A score for each step, and the intact row that has none."""
        rng = np.random.default_rng(len(value))
        rows, readers = [], {}
        for name in self.readers:
            means = []
            for identifier in self.ids:
                n = self.steps[identifier]
                scores = [] if self.empty else rng.exponential(size, size=n).tolist()
                key = {"reader": name, "id": identifier, "author": self.author, "n_steps": n}
                rows.append(key | {"condition": "intact", "step": np.nan, value: np.nan})
                rows += [
                    key | {"condition": "mistake", "step": step, value: score}
                    for step, score in enumerate(scores, start=1)
                ]
                means += [float(np.mean(scores))] if scores else []
            hidden = name in self.not_scorable or self.empty
            readers[name] = {self.author: {value: "not scorable" if hidden else t_estimate(means)}}
        return pd.DataFrame(rows), readers

    def attention_knockout(self) -> tuple[pd.DataFrame, dict[str, Any]]:
        """A row for each step and for the whole chain; the first step of a chain has no control."""
        rng = np.random.default_rng(3)
        rows = []
        for name, identifier in itertools.product([] if self.empty else self.readers, self.ids):
            n = self.steps[identifier]
            key = {"reader": name, "id": identifier, "author": self.author, "n_steps": n}
            for step in range(1, n + 1):
                effect, control = rng.uniform(-0.1, 1, size=2)
                values = {"p_drop": effect, "p_drop_control": np.nan if step == 1 else control}
                rows.append(key | {"part": "step", "step": step} | values)
            rows.append(key | {"part": "chain", "step": 0, "p_drop": 9.0, "p_drop_control": 9.0})
        columns = ["reader", "id", "author", "n_steps", "part", "step", "p_drop", "p_drop_control"]
        return pd.DataFrame(rows, columns=columns), {name: {self.author: {}} for name in self.readers}

    def masked_flow(self) -> tuple[pd.DataFrame, dict[str, Any]]:
        rng = np.random.default_rng(4)
        flows = ("direct", "question_control", "necessity", "necessity_among", "chain_control", "leakage")
        readers = {
            name: {self.author: {flow: around(float(rng.uniform(0.1, 0.6)), self.n) for flow in flows}}
            for name in self.readers
        }
        return pd.DataFrame({"reader": [], "id": []}), readers

    def patch_map(self) -> tuple[pd.DataFrame, dict[str, Any]]:
        rows, readers = [], {}
        for name in self.readers:
            for identifier in self.ids:
                total = float(self.rng.uniform(1, 2))
                parts = [("question", 0), ("chain", 0), *(("step", s + 1) for s in range(self.steps[identifier]))]
                for layer, (part, step) in itertools.product(range(self.layers), [*parts, ("control", 0)]):
                    effect = float(self.rng.normal(0.4 * (part == "chain"), 0.3)) * total
                    rows.append((name, identifier, self.author, layer, part, step, effect, total))
            readers[name] = {}
        columns = ["reader", "id", "author", "layer", "part", "step", "effect", "total"]
        table = pd.DataFrame([] if self.empty else rows, columns=columns)
        for name in self.readers if len(table) else ():
            cells = []
            for (layer, part, step), cell in table[table["reader"] == name].groupby(["layer", "part", "step"]):
                share = around(float(cell["effect"].sum() / cell["total"].sum()), len(cell))
                p = float(self.rng.uniform(0, 0.2))
                cells.append({"layer": int(layer), "part": part, "step": int(step), "share": share, "p": p})
            readers[name] = {self.author: {"details": {"cells": cells}}}
        return table, readers

    def head_map(self) -> tuple[pd.DataFrame, dict[str, Any]]:
        """As many heads as layers; every fourth cell is patched, and every eighth is of the sample."""
        rng = np.random.default_rng(6)
        rows, readers = [], {}
        for name in self.readers if not self.empty else ():
            keys = itertools.product(range(self.layers), range(self.layers), ("question", "chain", "marker"))
            cells = [key for key in keys if key[0] < self.layers - 1 or key[2] == "marker"]
            rows += [(name, self.ids[0], self.author, *key) for key in cells]
            patched = []
            for at, (layer, head, part) in enumerate(cells[::4]):
                share = float(rng.uniform(-0.4, 0.9))
                cell = {"layer": layer, "head": head, "part": part, "step": 0, "share": around(share, self.n)}
                cell |= {"chosen": "sample" if at % 2 else "top", "plain": share / 2, "integrated": share + 0.1}
                patched.append(cell)
            screen = {"cells": len(cells), "confirmed": (len(patched) + 1) // 2, "sampled": len(patched) // 2}
            screen |= {"missed": 1, "bound": 0.21, "largest": 0.5}
            readers[name] = {self.author: {"details": {"cells": patched, "prompts": self.n, "screen": screen}}}
        columns = ["reader", "id", "author", "layer", "head", "part"]
        return pd.DataFrame(rows, columns=columns), readers

    def repair(self) -> tuple[pd.DataFrame, dict[str, Any]]:
        """What `summarise` gives for each variant; the base has none."""
        rng = np.random.default_rng(5)
        readers: dict[str, Any] = {"base": {}}
        for name in self.variants if not self.empty else ():
            undisturbed = [("unedited", -1), ("base_itself", -1)]
            written = ("base", "affine", "mean_difference", "random", "other_prompt", "length", "reverse")
            layers = list(range(max(1, self.layers - 1)))
            cells = [
                {
                    "condition": condition,
                    "layer": layer,
                    "total": around(1.9, self.n),
                    "bypass": around(float(rng.uniform(0, 1)), self.n),
                }
                for condition, layer in [*undisturbed, *itertools.product(written, layers)]
            ]
            details = {"layers": layers, "fixed": layers[(len(layers) - 1) // 3], "cells": cells}
            readers[name] = {self.author: {"details": details}}
        return pd.DataFrame({"reader": [], "id": []}), readers

    def drift(self) -> tuple[pd.DataFrame, dict[str, Any]]:
        rows = []
        for name, site, layer in itertools.product(self.variants, self.sites, range(self.layers)):
            for position in ("question_end", "step_ends", "answer"):
                numbers = dict(zip(("cka", "null_high", "procrustes"), self.rng.uniform(0, 1, size=3), strict=True))
                numbers["null_high"] *= 0.2
                numbers["norm_sensitivity"] = float(self.rng.uniform(0, 0.1))
                if self.empty:
                    numbers = dict.fromkeys(numbers, np.nan)
                rows.append({"reader": name, "site": site, "layer": layer, "position": position, **numbers})
        return pd.DataFrame(rows).assign(n_prompts=len(self.ids)), {}

    def probes(self) -> tuple[pd.DataFrame, dict[str, Any]]:
        """The columns that figures read, as `probes.grid` names them."""
        rows = []
        for cell in self._cells(self.readers):
            score, low = self.rng.uniform(0.1, 1), self.rng.uniform(-0.1, 0.1)
            numbers = {"metric": "accuracy", "score": score, "low": score - 0.1, "high": min(1.0, score + 0.1)}
            numbers |= {"majority": float(self.rng.uniform(0.1, 0.2)), "p_grid": 0.01, "not_had": None}
            finding = "decodable" if low > 0 and score > 0.3 else "not above lexical alone"
            rows.append(cell | numbers | {"above_baseline_low": low, "finding": finding})
        columns = ("metric", "score", "low", "high", "majority", "p_grid", "not_had", "above_baseline_low", "finding")
        return pd.DataFrame(rows, columns=None if rows else [*CELL, *columns]), {}

    def transfer(self) -> tuple[pd.DataFrame, dict[str, Any]]:
        """The columns that figures read, as `probes.transfer` names them."""
        scores = ("base", "variant", "transferred", "recentred", "back")
        rows = [
            cell
            | {"metric": "accuracy", "chance": 0.15, "outcome": str(self.rng.choice(OUTCOMES))}
            | dict(zip(scores, self.rng.uniform(0.1, 1, size=len(scores)), strict=True))
            for cell in self._cells(self.variants)
        ]
        return pd.DataFrame(rows, columns=None if rows else [*CELL, "metric", "chance", "outcome", *scores]), {}

    def _cells(self, readers: Sequence[str]) -> list[dict[str, Any]]:
        """Every reader's hooks and positions; a step has the prompts that have it."""
        longest = max(self.steps.values())
        counts = {f"step {step}": sum(n >= step for n in self.steps.values()) for step in range(1, longest + 1)}
        counts = {"question_end": len(self.ids), **counts, "answer": len(self.ids)}
        cells = itertools.product(readers, ("answer", "gold"), range(self.layers), self.sites, counts.items())
        return [
            dict(zip(CELL, (*key, f"blocks.{layer}.hook_{site}", site, layer, position, n), strict=True))
            for *key, layer, site, (position, n) in ([] if self.empty else cells)
        ]


def steps_of(variants: Sequence[str], checkpoints: dict[str, int] | None) -> dict[str, int]:
    """Unless something else is said, made variants are checkpoints, so that every figure can be drawn."""
    return {name: 10 * at for at, name in enumerate(variants, start=1)} if checkpoints is None else checkpoints


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """`make_run(...)`: a finished run in a directory of its own; `edit` may change its summary before it is written."""
    made = itertools.count()

    def make(
        variants: Sequence[str] = ("sham", "sft"),
        *,
        prompts: int = 24,
        steps: Sequence[int] = (1, 2, 4, 5),
        layers: int = 3,
        measures: Sequence[str] = MEASURES,
        author: str = "gold",
        not_scorable: Sequence[str] = (),
        empty: bool = False,
        sites: Sequence[str] = ("resid_post",),
        seed: int = 0,
        checkpoints: dict[str, int] | None = None,
        edit: Callable[[dict[str, Any], dict[str, pd.DataFrame]], None] = lambda summary, tables: None,
    ) -> Run:
        maker = Maker(variants, prompts, steps, layers, author, not_scorable, empty, sites, seed)
        parts = {name: getattr(maker, name)() for name in measures}
        tables = {name: table for name, (table, _) in parts.items()}
        summary = {
            "study": {"author": author, "seed": seed, "margin": 0.1, "checkpoints": steps_of(variants, checkpoints)},
            "base": maker.reader("base"),
            "variants": {name: maker.reader(name) for name in variants},
            "measures": {name: {"readers": readers} for name, (_, readers) in parts.items()},
        }
        edit(summary, tables)
        directory = tmp_path / f"run{next(made)}"
        (directory / "measures").mkdir(parents=True)
        (directory / "study.yaml").write_text("base: base\n")
        (directory / "summary.json").write_text(json.dumps(summary))
        for name, table in tables.items():
            table.to_parquet(directory / "measures" / f"{name}.parquet")
        return Run.open(directory)

    return make
