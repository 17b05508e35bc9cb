"""The report of a validation: one HTML file that needs nothing else, its Markdown twin, the figure, and a few lines."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from analysis.errors import InputError
from analysis.files import write_whole
from figures.validation import validation_figure
from fracture.report.figures import inlined_figure
from fracture.report.numbers import number
from fracture.report.rendering import html, markdown
from fracture.report.validation_tables import (
    acceptance_table,
    found_words,
    measures_table,
    nulls_table,
    organisms_table,
    readers_table,
    told_tables,
)
from fracture.validity import STATUSES, command

VALIDATION = "validation.json"
SCHEMA_VERSION = 1
STEM = "validation"
TITLE = "What the measures say of models whose fracture is known"
CAPTION = (
    "Above: the change of bypass against the realised dose, which was measured without the suite; on the grey line "
    "they are equal, and there the circles belong. Organisms of other kinds have marks of their own. Below: every "
    "quantity by its status; the darker the better. Spearman is that of the worst seed; power and false positives "
    "count detached and attached pairs that were called detached; a dash is a number that could not be had."
)
_WIDTH = 60


def write(out: Path) -> list[Path]:
    """Writes `validation.html`, `.md`, `.png`, `.pdf` and `.svg` from OUT/validation.json, and returns their paths.

    The same validation gives the same bytes.

    Raises:
        InputError: if there is no validation, or one of another schema, or a file cannot be written.
    """
    validation = _read(out / VALIDATION)
    pictures, inlined = inlined_figure(validation_figure(validation), STEM, TITLE, CAPTION)
    contents = _contents(validation)
    files = {
        f"{STEM}.html": html("validation.html.j2", {**contents, "figure": inlined, "features": []}).encode(),
        f"{STEM}.md": markdown("validation.md.j2", {**contents, "figure": inlined}).encode(),
        **{f"{STEM}.{kind}": data for kind, data in pictures.items()},
    }
    try:
        for name, data in files.items():
            write_whole(out / name, data)
    except OSError as error:
        raise InputError(f"report of the validation in {out}: cannot be written ({error.strerror or error})") from None
    return [out / name for name in files]


def lines(validation: Mapping[str, Any]) -> list[str]:
    """What a finished validation says on the terminal: what must hold, every organism, how many quantities of a status.

    Organisms of several seeds share a line, with how many of them were judged rightly.
    """
    return [
        "What must hold",
        *_acceptance(validation),
        "",
        "Organisms (truth, realised dose, verdict, right)",
        *_organisms(validation),
        "",
        _statuses(validation),
    ]


def table(validation: Mapping[str, Any]) -> str:
    """The validated quantities as a Markdown table; of two families each number is the worse, as its note says."""
    return markdown("validation_table.md.j2", {"t": measures_table(validation, grouped=False)})


def _contents(validation: Mapping[str, Any]) -> dict[str, Any]:
    families = list(dict.fromkeys(pair["family"] for pair in validation["pairs"]))
    failed = [item for item in validation["acceptance"] if not item["passed"]]
    measures = measures_table(validation)
    # What the columns are is read before so long a table, and not behind it.
    alone = [replace(measures_table(validation, [name]), note="") for name in families]
    return {
        "setup": _setup(validation, families),
        "overview": _overview(validation),
        "statuses": _statuses(validation),
        "warnings": [f"This does not hold: {item['what']}: {_found(item)} ({item['limit']})." for item in failed],
        "acceptance": acceptance_table(validation),
        "organisms": organisms_table(validation),
        "told": told_tables(validation),
        "columns": measures.note,
        "measures": replace(measures, note=""),
        "of_families": alone if len(families) > 1 else [],
        "nulls": nulls_table(validation),
        "readers": readers_table(validation),
        "command": command(validation),
        "settings": [(name, _setting(value)) for name, value in validation["settings"].items()],
        "criteria": [(name.replace("_", " "), _setting(value)) for name, value in validation["criteria"].items()],
        "schema_version": validation["schema_version"],
    }


def _setup(validation: Mapping[str, Any], families: list[str]) -> str:
    seeds = sorted({pair["seed"] for pair in validation["pairs"]})
    return (
        f"Mode {validation['mode']}: {len(validation['pairs'])} pairs of a base and a variant whose truth is known, "
        f"family {' and '.join(families) or 'none'}, seed {', '.join(map(str, seeds)) or 'none'}; "
        f"{validation['settings'].get('prompts', 'all')} prompts each."
    )


def _overview(validation: Mapping[str, Any]) -> str:
    holds = Counter(item["passed"] for item in validation["acceptance"])
    right = Counter(pair["right"] for pair in validation["pairs"])
    return (
        f"{holds[True]} of {holds.total()} conditions hold. The verdict is right for {right[True]} of {right.total()} "
        "pairs."
    )


def _statuses(validation: Mapping[str, Any]) -> str:
    counts = Counter(row["status"] for row in validation["measures"])
    return f"Of {counts.total()} quantities: {', '.join(f'{counts[status]} {status}' for status in STATUSES)}."


def _acceptance(validation: Mapping[str, Any]) -> Iterator[str]:
    for item in validation["acceptance"]:
        yield f"  {'holds' if item['passed'] else 'FAILS'}  {item['what']}: {_found(item)} ({item['limit']})"


def _found(item: Mapping[str, Any]) -> str:
    return textwrap.shorten(found_words(item), _WIDTH, placeholder=" …")


def _organisms(validation: Mapping[str, Any]) -> Iterator[str]:
    kinds: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for pair in validation["pairs"]:
        kinds.setdefault((pair["family"], pair["organism"]), []).append(pair)
    rows = [_organism(*kind, pairs) for kind, pairs in kinds.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield f"  {'  '.join(words.ljust(width) for words, width in zip(row, widths, strict=True))}".rstrip()


def _organism(family: str, organism: str, pairs: list[Mapping[str, Any]]) -> tuple[str, ...]:
    doses = [number(pair["realised"]) for pair in sorted(pairs, key=lambda pair: pair["realised"] or 0.0)]
    verdicts = Counter(pair["verdict"] for pair in pairs)
    said = ", ".join(f"{n} {label}" if len(pairs) > 1 else label for label, n in verdicts.items())
    right = sum(pair["right"] for pair in pairs)
    judged = f"{right} of {len(pairs)} right" if len(pairs) > 1 else "right" if right else "WRONG"
    dose = doses[0] if doses[0] == doses[-1] else f"{doses[0]} to {doses[-1]}"
    return family, organism, pairs[0]["truth"], dose, said, judged


def _setting(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_setting, value))
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _read(path: Path) -> dict[str, Any]:
    try:
        validation: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = validation["schema_version"]
    except OSError as error:
        raise InputError(
            f"validation {path}: cannot be read ({error.strerror}); `fracture validate --out {path.parent}` makes it"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"validation {path}: is not the JSON that `fracture validate` writes; run it again") from None
    if version != SCHEMA_VERSION:
        raise InputError(
            f"validation {path}: schema version {version!r}, expected {SCHEMA_VERSION}; run `fracture validate` again"
        )
    return validation
