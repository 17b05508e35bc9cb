"""The tables of a validation: what must hold, organisms with their verdicts, quantities with their status, nulls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from fracture.evidence import CONDITIONS
from fracture.report.numbers import MISSING, interval, number, typographic
from fracture.report.tables import Cell, Group, Row, Table
from fracture.validity import CALIBRATED, STATUSES, false_positives, key_of, smallest, values
from fracture.verdict import OWN

NULLS = {"self_pairs": "a base against its own copy", "permuted_labels": "labels permuted"}
ATTACHED_TRUTHS = ("base", "attached")
_COLUMNS = ("Spearman", "slope", "largest error", "AUROC", "power", "false positives", "diagnosticity")
_LARGE = {"slope": lambda value: abs(value - 1), "largest_error": abs}
"""Numbers of which the worst is the one furthest from what it should be; of the rest it is the smallest."""


def acceptance_table(validation: Mapping[str, Any]) -> Table:
    """What must hold, with its limit, its number, and whether it does."""
    rows = [
        Row(item["what"], [Cell(item["limit"]), Cell(found_words(item), kind="words"), _judged(item["passed"])])
        for item in validation["acceptance"]
    ]
    return Table("What must hold", "", ("limit", "found", "holds"), [Group("", rows)], corner="condition")


def organisms_table(validation: Mapping[str, Any]) -> Table:
    """Every pair of base and variant: what is known of it, the verdict, and whether that is right."""
    places = dict.fromkeys((pair["family"], pair["seed"]) for pair in validation["pairs"])
    groups = [
        Group(f"{family}, seed {seed}", [_pair(pair) for pair in _of(validation, family) if pair["seed"] == seed])
        for family, seed in places
    ]
    return Table(
        "Organisms and verdicts",
        "Truth is how the organism was made. Its realised dose, measured without the suite, is how much more often "
        "than its base it gives the question's answer where question and chain disagree. Bypass is the change from the "
        "base, with 95% intervals. “Told by” counts the quantities that speak for detachment.",
        ("truth", "realised dose", "verdict", "right", "where", "n", "bypass by text", "bypass inside", "told by"),
        groups,
        corner="organism",
    )


def told_tables(validation: Mapping[str, Any]) -> list[Table]:
    """For each family, which quantities speak for the detachment of which organisms, in how many pairs of each."""
    found = []
    for family in dict.fromkeys(pair["family"] for pair in validation["pairs"]):
        pairs = _of(validation, family)
        organisms = Counter(pair["organism"] for pair in pairs)
        told = Counter((words, pair["organism"]) for pair in pairs for words in dict.fromkeys(pair["told_by"]))
        attached = {pair["organism"] for pair in pairs if pair["truth"] in ATTACHED_TRUTHS}
        rows = [
            Row(
                words,
                [
                    Cell(f"{k} of {n}", kind="wrong" if name in attached else "right")
                    if (k := told[words, name])
                    else Cell("")
                    for name, n in organisms.items()
                ],
            )
            for words in dict.fromkeys(words for words, _ in told)
        ]
        if rows:
            note = "Pairs of which the quantity says that they are detached; what says it of none is not listed."
            found.append(Table(f"Told from the base, {family}", note, tuple(organisms), [Group("", rows)], "quantity"))
    return found


def measures_table(validation: Mapping[str, Any], families: Sequence[str] = (), grouped: bool = True) -> Table:
    """Every quantity that is evidence, with its numbers and status: of the given families, the worst of them.

    Args:
        validation: as in `validation.json`.
        families: by name; empty for all.
        grouped: with the rows by status, and why it is no better; else the status is the last column.
    """
    chosen = [(row, _chosen(row, families)) for row in validation["measures"]]
    chosen.sort(key=lambda item: list(STATUSES).index(item[0]["status"]))
    names = list(dict.fromkeys(name for _, row in chosen for name in row["families"]))
    worst = f"{'the worse ' if len(names) > 1 else ''}of {' and '.join(names)}"
    note = (
        f"Numbers are {worst}. Spearman: rank correlation with the realised dose, of the worst seed. Slope and largest "
        "error: of score on dose. AUROC: attached against detached pairs. Power and false positives: of detached and "
        "of attached pairs, those called detached, with the exact 95% interval. Diagnosticity: on which share of "
        "prompts the detached of two models scores higher. A dash: not to be had."
    )
    if not grouped:
        rows = [Row(quantity_name(row), [*_numbers(of), Cell(row["status"])]) for row, of in chosen]
        return Table("Validated quantities", note, (*_COLUMNS, "status"), [Group("", rows)], corner="quantity")
    groups = [
        Group(
            f"{status}: {STATUSES[status]}",
            [
                Row(quantity_name(row), [*_numbers(of), Cell(_why(row), kind="words")])
                for row, of in chosen
                if row["status"] == status
            ],
        )
        for status in dict.fromkeys(row["status"] for row, _ in chosen)
    ]
    title = ", ".join(["Validated quantities", *families])
    return Table(title, note, (*_COLUMNS, "why no better"), groups, corner="quantity")


def nulls_table(validation: Mapping[str, Any]) -> Table | None:
    """How often verdict and quantities see a detachment where there is none; None without a null experiment."""
    found = {words: null for name, words in NULLS.items() if (null := validation["nulls"].get(name))}
    if not found:
        return None
    rows = validation["measures"]
    names = {key_of(row["measure"], row["quantity"], row["condition"]): quantity_name(row) for row in rows}
    keys = dict.fromkeys(key for null in found.values() for key in null["findings"])
    said = [Row("verdict: detached", [Cell(*share(null["detached"])) for null in found.values()])]
    said += [
        Row(names.get(key, key), [Cell(*share(null["findings"].get(key))) for null in found.values()]) for key in keys
    ]
    note = "Of prompt sets drawn anew, those on which detachment is seen, with the exact 95% interval."
    return Table("Where there is nothing to see", note, tuple(found), [Group("", said)], corner="what is said")


def readers_table(validation: Mapping[str, Any]) -> Table | None:
    """Whether bypass depends on accuracy in simulated readers of known dependence; None without them."""
    readers = validation["nulls"].get("readers")
    if not readers:
        return None
    rows = [
        Row(
            f"{reader['dependence']:g}",
            [
                *(Cell(_range(reader[name])) for name in ("accuracies", "bypass")),
                Cell(three(reader["correlation"])),
            ],
        )
        for reader in readers
    ]
    note = "Readers whose cells are known in closed form; they follow the chain with a fixed probability."
    return Table("Bypass is not accuracy", note, ("accuracy", "bypass", "correlation"), [Group("", rows)], "dependence")


def quantity_name(row: Mapping[str, Any]) -> str:
    """A quantity with whose chains were read; the headline's label says its form itself."""
    return str(row["label"]) if row["headline"] else f"{row['label']}, {CONDITIONS[row['condition']]}"


def found_words(item: Mapping[str, Any]) -> str:
    """What was found of a condition that must hold: a number, or the words in its place."""
    return item["value"] if isinstance(item["value"], str) else three(item["value"])


def share(counts: Mapping[str, Any] | None) -> tuple[str, str]:
    """`2 of 40` and `[0.6%, 16.9%]`; a dash for nothing counted."""
    if not counts or not counts["n"]:
        return MISSING, ""
    ends = [f"{100 * end:.1f}%" for name in ("low", "high") if (end := counts.get(name)) is not None]
    limits = f"[{', '.join(ends)}]" if ends else ""
    return f"{counts['k']} of {counts['n']}", limits


def three(value: float | None) -> str:
    """A number in three decimals, as a limit of .95 asks for; a dash if there is none."""
    # Adding 0 turns -0.000 into 0.000.
    return MISSING if value is None else typographic(f"{round(value, 3) + 0.0:.3f}")


def _pair(pair: Mapping[str, Any]) -> Row:
    right = Cell("yes", kind="right")
    if not pair["right"]:
        right = Cell("no", flag=f"expected {' or '.join(pair['expected'])}")
    known = [Cell(pair["truth"]), Cell(number(pair["realised"])), Cell(pair["verdict"])]
    where = ", ".join(pair["where"]) + (", own chains" if pair.get("chains") == OWN else "")
    found = [Cell(where), Cell(str(pair["n"]))]
    bypass = [Cell(interval(pair["bypass"][form], signed=True)) for form in ("text", "inside")]
    return Row(pair["id"].rpartition("/")[2], [*known, right, *found, *bypass, Cell(str(len(pair["told_by"])))])


def _numbers(row: Mapping[str, Any]) -> Iterator[Cell]:
    yield Cell(three(smallest(row, "spearman")))
    yield from (Cell(number(_worst(row, name))) for name in ("slope", "largest_error"))
    yield Cell(three(smallest(row, "auroc")))
    powers = [family["power"] for family in row["families"].values() if family["power"] and family["power"]["n"]]
    yield Cell(share(min(powers, key=lambda power: power["k"] / power["n"], default=None))[0])
    yield Cell(*share(false_positives(row)))
    yield Cell(number(smallest(row, "diagnosticity")))


def _worst(row: Mapping[str, Any], name: str) -> float | None:
    return max(values(row, name), key=_LARGE[name], default=None)


def _why(row: Mapping[str, Any]) -> str:
    return "; ".join(row["why"]) if row["status"] != CALIBRATED else ""


def _chosen(row: Mapping[str, Any], families: Iterable[str]) -> dict[str, Any]:
    names = list(families) or list(row["families"])
    return {**row, "families": {name: row["families"][name] for name in names if name in row["families"]}}


def _of(validation: Mapping[str, Any], family: str) -> list[Mapping[str, Any]]:
    return [pair for pair in validation["pairs"] if pair["family"] == family]


def _judged(passed: bool) -> Cell:
    return Cell("yes", kind="right") if passed else Cell("", flag="no")


def _range(found: Sequence[float]) -> str:
    return f"{number(min(found))} to {number(max(found))}" if found else MISSING
