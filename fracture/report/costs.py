"""What the costs of fine-tuning have beside their quantities, as tables of a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from analysis.measures.chain_length import NOT_SHOWN
from analysis.runs import Run
from fracture.report.numbers import MISSING, centre_of, limits_of, number, p_value, too_small
from fracture.report.tables import CHAINS, TOO_SMALL, Cell, Group, Row, Table, chains, whose


def rule_tables(run: Run) -> Iterator[Table]:
    """The paired drop of accuracy under the changed rule; a line where no prompt has one."""
    groups = [
        Group(head, [Row(name, _drop(found)) for name, found in models])
        for head, models in _details(run, "rule_shift", ("given", "own"))
    ]
    if not groups:
        yield _absent("Rule shift", "no prompt has a shifted question (field “shifted”) that a model could be asked")
        return
    yield Table(
        "Accuracy on the question and under the changed rule, paired by prompt",
        "Question minus shifted question, with a 95% interval and McNemar's exact p. A drop with the old answer in its "
        "place is an answer that was memorised; one without is a task not solved.",
        ["n", "drop", "p"],
        groups,
    )


def part_tables(run: Run) -> Iterator[Table]:
    """Every partial question by name, with the whole question and guessing beside it; a line where there is none."""
    models = [(name, found["parts"]) for _, each in _details(run, "partial_input", ("given",)) for name, found in each]
    if not models:
        yield _absent("Partial input", "no prompt names partial questions (field “partial”) that could be scored")
        return
    names = dict.fromkeys(name for _, parts in models for name in parts)
    groups = [
        Group(f"{part} alone", [Row(name, _part(parts[part])) for name, parts in models if part in parts])
        for part in names
    ]
    yield Table(
        "A part of the question in the question's place, no chain",
        "Right: the gold answer is the most probable of the options. Beside each part stands the whole question "
        "without a chain, over the same prompts, and what guessing gets. 95% intervals in brackets.",
        ["n", "right", "right, whole question", "probability of gold", "the same, whole question", "by guessing"],
        groups,
    )


def length_tables(run: Run) -> Iterator[Table]:
    """Accuracy by the number of steps that each model wrote, and whether it rises and then falls."""
    models = [pair for _, found in _details(run, "chain_length", ("own",)) for pair in found]
    groups = [Group(name, [_bin(each) for each in found["bins"]]) for name, found in models if found["bins"]]
    if groups:
        yield Table(
            "Right answers by length of the own chain",
            "Neighbouring lengths are put together until a row has enough prompts. 95% intervals in brackets. Longer "
            "chains may be those of harder prompts: this describes what was written, and is no effect of length.",
            ["n", "right", "mean tokens"],
            groups,
            corner="steps",
        )
    if models:
        yield Table(
            "Is there a best length?",
            "An inverted U is said only where right answers become more frequent up to a length, and less frequent "
            f"behind it, by two lines, both significant at .05 (Simonsohn 2018); “{NOT_SHOWN}” leaves it open.",
            ["shape", "lines meet at (steps)", "slope before (per step)", "slope behind (per step)"],
            [Group("", [Row(name, _shape(found["shape"])) for name, found in models])],
        )


def _absent(title: str, why: str) -> Table:
    """A line in the place of a table."""
    return Table(title, "", ["not measured"], [Group("", [Row("all", [Cell(why, kind="words")])])])


def _drop(found: Mapping[str, Any]) -> list[Cell]:
    drop = found["drop"]
    p = p_value(found["p"]).removeprefix("p ").removeprefix("= ")
    return [
        Cell(str(drop["n"]), flag=TOO_SMALL if too_small(drop) else ""),
        Cell(centre_of(drop, signed=True), limits_of(drop)),
        Cell(p or MISSING),
    ]


def _part(found: Mapping[str, Any]) -> list[Cell]:
    right = found["right"]
    values = [found[key] for key in ("right", "right_full", "p_gold", "p_full")]
    return [
        Cell(str(right["n"]), flag=TOO_SMALL if too_small(right) else ""),
        *(Cell(centre_of(each), limits_of(each)) for each in values),
        Cell(number(found["chance"])),
    ]


def _bin(found: Mapping[str, Any]) -> Row:
    steps = str(found["from"]) if found["from"] == found["to"] else f"{found['from']} to {found['to']}"
    right, tokens = found["right"], Cell(f"{found['mean_tokens']:.0f}")
    return Row(steps, [Cell(str(right["n"])), Cell(centre_of(right), limits_of(right)), tokens])


def _shape(found: Mapping[str, Any]) -> list[Cell]:
    cells = [Cell(found["finding"], kind="words"), Cell(f"{found['at']:.0f}" if "at" in found else MISSING)]
    for side in ("before", "behind"):
        line = found.get(side)
        shown = Cell(MISSING) if line is None else Cell(number(line["slope"]), change=p_value(line["p"]))
        cells.append(shown)
    return cells


def _details(
    run: Run, measure: str, kinds: Sequence[str]
) -> Iterator[tuple[str, Sequence[tuple[str, Mapping[str, Any]]]]]:
    """On these kinds of chains each model's further results, if any has some."""
    readers = run.summary["measures"][measure]["readers"]
    for kind in kinds:
        reader_of, author_of = chains(run)[kind]
        found = [(name, readers.get(reader_of(name), {}).get(author_of(name), {})) for name in run.readers]
        models = [(name, numbers["details"]) for name, numbers in found if "details" in numbers]
        if models:
            yield CHAINS[kind].format(whose=whose(run)), models
