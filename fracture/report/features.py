"""What `fracture sae compare` found, for the report: classes, twins, causal effects, and latents that can be read."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from analysis.errors import InputError
from analysis.runs import FEATURES, Run
from analysis.statistics import MIN_PROMPTS
from figures.marks import hidden
from fracture.features.files import COMPARE, SUMMARY_FILE, read_summary
from fracture.report.figures import PIXELS_PER_INCH, Inlined
from fracture.report.latents import CLASSES, OWN, SIGNIFICANT, LatentTable, latent_table
from fracture.report.numbers import MISSING, centre_of, limits_of, number, p_value, percent
from fracture.report.tables import TOO_SMALL, Cell, Group, Row, Table
from fracture.verdict import NOT_SCORABLE
from sae.differences import BASE_ONLY, VARIANT_ONLY
from sae.trainer import CROSSCODERS

SAVED_PIXELS_PER_INCH = 300
"""Of the PNG files (`figures.style`)."""

KINDS = {
    "trained": "The models",
    "random-init": "Twins with weights drawn anew",
    "shuffled": "Twins with shuffled weights",
}
FORMS = {"text": "by text", "inside": "inside"}
FIGURES = {
    "norms": (
        "How much of each latent is whose",
        "Relative norm of a latent's decoder: 0 where only the base has it, 0.5 where both have as much, 1 where only "
        "the variant has it. Counts are on a logarithmic scale. Norms alone make some latents look specific that are "
        "not (artefacts); latent scaling decides.",
    ),
    "firing": (
        "Where in the text latents differ",
        "Each marker is a latent: how much more (above 0) or less it fires or writes in the variant, at the question "
        "and at steps. Filled: the difference stands after correction over all latents and places.",
    ),
    "causal": (
        "Whether the latents that differ carry the bypass",
        "The change of bypass when these latents are edited inside the variant, with its 95% interval, beside what as "
        "many random latents that fire and write alike change (grey, 5th to 95th percentile). Only what lies outside "
        "of the grey speaks for these latents.",
    ),
    "steps_map": (
        "Map of the states at step ends",
        "Every point is a model's state at the end of a step, in the same map for each colouring. Of the UMAP only "
        "neighbourhood means something: not distances, sizes of groups, or axes. The PCA has a scale, and shows the "
        "given shares of the variance.",
    ),
    "latents_map": (
        "Map of the latents",
        "Every point is a latent, by what it writes. Of the UMAP only neighbourhood means something: not distances, "
        "sizes of groups, or axes. The PCA has a scale, and shows the given shares of the variance.",
    ),
}
"""A figure's title, and how to read it."""


@dataclass(frozen=True)
class Features:
    """All that is said of a comparison; `path` is its directory within the run."""

    title: str
    name: str
    path: str
    what: str
    warnings: Sequence[str]
    classes: str
    agreement: str
    twins: Table | None
    effects: Table | None
    said: Sequence[str]
    own: LatentTable
    others: LatentTable
    figures: Sequence[Inlined]


def features(run: Run) -> list[Features]:
    """What every comparison of features in a run found, by directory; empty if there is none.

    Raises:
        InputError: if a comparison's summary is missing or damaged, or a figure of it is.
    """
    found = []
    for directory in sorted((run.directory / FEATURES).glob(f"*/{COMPARE}.*/")):
        where = directory / SUMMARY_FILE
        hint = "make it anew with `fracture sae compare`, or remove its directory"
        try:
            summary = read_summary(directory)
            # Half a character, which JSON may hold, cannot be written into a report.
            json.dumps(summary, ensure_ascii=False).encode()
            found.append(_comparison(run, directory, summary))
        except InputError:
            raise
        except OSError as error:
            raise InputError(f"{error.filename or where}: cannot be read ({error.strerror}); {hint}") from None
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise InputError(f"{where}: is damaged ({type(error).__name__}: {error}); {hint}") from None
    return found


def _comparison(run: Run, directory: Path, summary: Mapping[str, Any]) -> Features:
    variant, name = summary["variant"], directory.parent.name
    path = directory.relative_to(run.directory).as_posix()
    order = [*CLASSES, *sorted({*summary["classes"], *(line["class"] for line in summary["latents"])} - set(CLASSES))]
    counts = {kind: summary["classes"][kind] for kind in order if kind in summary["classes"]}
    listed = ", ".join(f"{n} {kind}" for kind, n in counts.items())
    meant = "; ".join(f"{kind}: {CLASSES[kind]}" for kind in counts if kind in CLASSES)
    effects = summary["effects"] or ()
    noise = hidden(run, variant)
    return Features(
        f"{variant} against base",
        name,
        path,
        _what(summary, sum(counts.values())),
        [str(warning) for warning in summary["warnings"]],
        f"Latents by class: {listed}. ({meant}.)",
        _agreement(summary["agreement"]),
        _twins(summary, f"{name}, {variant}"),
        _effects(effects, f"{name}, {variant}", noise) if effects else None,
        [] if noise else _said(effects, run.summary["study"]["margin"]),
        latent_table(summary, [kind for kind in order if kind in OWN], f"Latents that differ: {name}, {variant}"),
        latent_table(summary, [kind for kind in order if kind not in OWN], f"Other latents: {name}, {variant}"),
        list(_figures(directory, summary)),
    )


def _what(summary: Mapping[str, Any], latents: int) -> str:
    settings = summary["settings"]
    models = " and ".join(summary["models"])
    if settings is None:
        return f"A published dictionary ({summary['source']}) of {latents} latents, read at {summary['hook']}."
    kind = settings["architecture"]
    what = kind if kind in CROSSCODERS else f"{kind} autoencoder"
    sparsity = f"L1 price {settings['l1']:g}" if kind == "l1-crosscoder" else f"k = {settings['k']}"
    return f"{what[:1].upper()}{what[1:]} of {models} at {summary['hook']}: {latents} latents, {sparsity}."


def _agreement(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return (
            "Trained with one seed only: whether another would find the same latents is not known. Name none of them."
        )
    return (
        f"Two of the {found['seeds']} seeds share {percent(found['share'])} of their latents in the mean (by chance "
        f"{percent(found['chance'])}). A latent that no other seed has is one of many ways to cut the same data, and "
        "is not to be named."
    )


def _twins(summary: Mapping[str, Any], name: str) -> Table | None:
    """The dictionary's figures, and those of models that learned nothing; None if neither are known."""
    held_out, lines = summary["held_out"], summary["twins"]
    if lines is None:
        if held_out is None:
            return None
        explained = held_out["explained_variance"].items()
        shared = {"kind": "trained", "l0": held_out["l0"], "dead": held_out["dead"]}
        lines = [{**shared, "model": model, "explained_variance": value} for model, value in explained]
    groups = []
    for kind, of_kind in groupby(lines, key=lambda line: line["kind"]):
        rows = []
        for line in of_kind:
            shares = [line.get(own) for own in (VARIANT_ONLY, BASE_ONLY)]
            specific = MISSING if None in shares else percent(sum(shares))
            cells = [number(line["explained_variance"]), f"{line['l0']:.1f}", percent(line["dead"]), specific]
            rows.append(Row(line["model"], [Cell(cell) for cell in cells]))
        groups.append(Group(KINDS.get(kind, kind), rows))
    beside = (
        "models that learned nothing come near them, or reach as much, with the same settings."
        if len(groups) > 1
        else "models that learned nothing may reach as much, and none stand beside these."
    )
    note = (
        f"On held-out rows. These figures are no evidence of features: {beside} Specific: of the latents that fire, "
        "the share that is called one model's alone."
    )
    columns = ["explained variance", "L0", "dead", "specific"]
    return Table(f"The dictionary beside twins: {name}", note, columns, groups)


def _effects(lines: Sequence[Mapping[str, Any]], name: str, noise: bool) -> Table:
    groups = []
    for edit, of_edit in groupby(lines, key=lambda line: (line["edit"], line["n_latents"])):
        rows = []
        for line in of_edit:
            few = TOO_SMALL if line["n_prompts"] < MIN_PROMPTS else ""
            change, control = _estimate(line, "change"), _estimate(line, "control")
            beside = f"{number(control['low'])} to {number(control['high'])}" if _known(control) else MISSING
            p = p_value(line["p"] if _compared(line) else None).removeprefix("p ").removeprefix("= ")
            cells = [
                Cell(str(line["n_latents"])),
                Cell(str(line["n_prompts"]), flag=few),
                Cell(number(line["bypass"])),
                Cell(centre_of(change, signed=True), limits_of(change)),
                Cell(beside),
                Cell(p or MISSING),
            ]
            hides = [*cells[:2], *[Cell(NOT_SCORABLE, kind="words")] * 4]
            rows.append(Row(FORMS.get(line["form"], line["form"]), hides if noise else cells))
        groups.append(Group(edit[0], rows))
    note = (
        "Latents are edited inside the variant at every token, and bypass is measured again: bypass is that under the "
        "edit, change that from the unedited variant over the same prompts, with its 95% interval. Random latents: the "
        "5th to 95th percentile of the change by as many others that fire and write alike. p is the share of random "
        "sets, these latents among them, whose change is as large; it is not corrected over edits and forms. What is "
        "restored or exchanged the base has written, which reads the chain itself: where bypass falls the variant "
        "need not read its chain again."
    )
    columns = ["latents", "n", "bypass", "change", "random latents' change", "p"]
    return Table(f"Causal effects of edits: {name}", note, columns, groups, corner="form")


def _said(lines: Sequence[Mapping[str, Any]], margin: float) -> list[str]:
    """For each edit, whether it changed bypass more than random latents do, and whether that is much."""
    said = []
    for (edit, n), of_edit in groupby(lines, key=lambda line: (line["edit"], line["n_latents"])):
        forms = "; ".join(f"{FORMS.get(line['form'], line['form'])} {_changed(line, margin)}" for line in of_edit)
        said.append(f"{edit[:1].upper()}{edit[1:]} ({n} latent{'' if n == 1 else 's'}): {forms}.")
    return said


def _changed(line: Mapping[str, Any], margin: float) -> str:
    change = line["change"]
    if change is None:
        return "no change of bypass could be measured"
    size = number(abs(change))
    how = f"{'rose' if change > 0 else 'fell'} by {size}" if float(size) else "changed by less than 0.01"
    if not _compared(line):
        return f"bypass {how}, and random latents could not be measured beside it"
    beyond = line["p"] < SIGNIFICANT
    told = f"bypass {how}, {'more' if beyond else 'not clearly more'} than with random latents ({p_value(line['p'])})"
    if not beyond:
        return told
    low, high = line["change_low"], line["change_high"]
    limits = ["its interval includes 0"] if low is None or high is None or low <= 0 <= high else []
    limits += [f"it is within the margin of {margin:g}"] if abs(change) <= margin else []
    return f"{told}, but {' and '.join(limits)}" if limits else f"{told}, and by more than the margin of {margin:g}"


def _compared(line: Mapping[str, Any]) -> bool:
    """Whether p means something: without a change, or with a random set that has none, it counts what is not there."""
    return line["change"] is not None and line["p"] is not None and _known(_estimate(line, "control"))


def _estimate(line: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {"estimate": line[name], "low": line[f"{name}_low"], "high": line[f"{name}_high"]}


def _known(estimate: Mapping[str, Any]) -> bool:
    return None not in estimate.values()


def _figures(directory: Path, summary: Mapping[str, Any]) -> Iterator[Inlined]:
    """The figures of a comparison; those that an earlier one left, with what this one was made without, are not its."""
    crosscoder, checked = len(summary["models"]) > 1, summary["effects"] is not None
    for name, (title, caption) in FIGURES.items():
        path = directory / f"{name}.png"
        if not path.is_file() or (name == "norms" and not crosscoder) or (name == "causal" and not checked):
            continue
        data = path.read_bytes()
        if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 24:
            raise InputError(f"{path}: is no PNG file; make it anew with `fracture sae compare`")
        size = (round(pixels / SAVED_PIXELS_PER_INCH * PIXELS_PER_INCH) for pixels in struct.unpack(">II", data[16:24]))
        source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        width, height = size
        yield Inlined(name, title, caption, source, width, height, wide=width > 600)
