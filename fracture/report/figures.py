"""The figures of a report: as files beside it, and inlined into it."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING

import figures
from analysis.runs import FIGURES, Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PIXELS_PER_INCH = 130
MAX_SVG = 400_000
"""Bytes; a larger drawing is inlined as pixels."""

CAPTIONS = {
    "routes": (
        "Left: the share of the answer's effect that does not run through the chain, by text and inside; 0 is an "
        "answer computed from the chain, 1 one that passes it by. Right: which way it takes inside, directly from the "
        "question or covertly through chain positions. Bars are 95% intervals."
    ),
    "accuracy_trap": (
        "Each model on the chains that it wrote itself. Where accuracy and true steps rise or stay while information "
        "gain falls, the model needs its chain less; where the base gains from the same chains as much as from its "
        "own, their text is as good as before, and what has changed is their use. Bars are 95% intervals."
    ),
    "information_gain": (
        "Above: what each step adds to the log-probability of the gold answer. Below: the whole chain against what "
        "stands in its place; a chain that is used gains more than all of its controls. 95% intervals."
    ),
    "early_answering": (
        "From left to right more of the chain is kept. A curve that is flat at the top (answers unchanged) or at 0 (no "
        "drop) is an answer that stands before the chain does. Bands are 95% intervals."
    ),
    "step_scores": (
        "The chain is cut behind each step. Above, by how much the probability of the model's own answer differs "
        "between the step as it is and made wrong; below, how much of the gold answer's lead behind the whole chain is "
        "lost behind the wrong step, some of it by the cut alone. An answer that goes past the chain is near 0 in "
        "both. Bands are 95% intervals."
    ),
    "patch_maps": (
        "Where the partner's residual stream, written into the model's own run, carries the partner's answer over: red "
        "cells carry it, a dot marks p below .05 corrected over the map. The right column is the change from the base. "
        "The map locates; the routes quantify."
    ),
    "heads": (
        "Which heads carry the partner's answer over when their output at the answer's marker, the chain or the "
        "question is the partner's; red cells carry it, grey ones were not patched. Right, what the gradients had "
        "estimated of all that was patched, steps too, against what it does: on the grey line an estimate is exact. Of "
        "the cells ranked low a random sample was patched; above stands how many it shows were missed, and how many of "
        "all may be."
    ),
    "attention_flow": (
        "Left, what the answer loses when marker and answer cannot attend to a step, or to as many tokens beside it, "
        "mostly of the neighbouring steps. Right, how far the answers move without the question (direct) and without "
        "the chain (necessity), beside random spans as long; leakage is what chain positions hold of the question, "
        "which no mask takes from them. Without the chain or its last step a text has lost its form too; over the "
        "options alone that does not count. Bands and the bars' lines are 95% intervals."
    ),
    "repair": (
        "Bypass of the answers that the variant gives with states written into its chain after one layer; shaded is "
        "the layer that is reported as a number. Where the base's states bring it down from the black line to the grey "
        "one, and controls and placebo leave it, the chain is used again: the capability was bypassed, not destroyed. "
        "Where they do not, the answer may be read past the chain all the same. Bars are 95% intervals."
    ),
    "costs": (
        "What each model does beside being right, on the texts that it wrote itself; right answers without a chain are "
        "to the whole question or to a part of it in its place. None of it speaks for or against detachment. Only what "
        "was measured is shown. Bars are 95% intervals."
    ),
    "probe_maps": (
        "How well a linear probe reads an answer from the activations of prompts that it was not trained on; white is "
        "what it would get without them, or less. Within the outline a score stands above all that it was compared "
        "with: permuted labels, a control task, baselines without activations, a model with random weights. What can "
        "be read need not be used."
    ),
    "transfer": (
        "The base's probe on each variant's activations. Moved: it reads less there, and a probe fitted anew reads as "
        "much as in the base; lost: that one reads less too. Kept says that the base's direction still reads the "
        "variant, and not that the variant uses it."
    ),
    "trajectory": (
        "From left to right fine-tuning goes on; the base is step 0. Above, the share of the answer's effect that does "
        "not run through the chain; triangles are the checkpoints whose verdict is detached, each judged by itself. "
        "Below, what the chain tells of the gold answer, and the share of right answers: where that stays while bypass "
        "rises, answers alone do not show it. Bands are 95% intervals."
    ),
    "drift": (
        "Similarity of each variant's activations to the base's: near 1 (CKA) or 0 (Procrustes distance) nothing "
        "moved. A baseline: a harmless fine-tune drifts too, so drift must not explain a verdict."
    ),
}
"""How to read each figure."""


@dataclass(frozen=True)
class Inlined:
    """A figure within the report: its name, title and caption, a data URI, and its size in pixels."""

    name: str
    title: str
    caption: str
    source: str
    width: int
    height: int
    wide: bool


def drawn(run: Run) -> tuple[dict[str, bytes], list[Inlined]]:
    """The files of all figures that the run can give (path in the run → bytes), and the same figures inlined."""
    files: dict[str, bytes] = {}
    inlined = []
    for name in figures.available(run):
        made, found = inlined_figure(figures.draw(name, run), name, figures.FIGURES[name], CAPTIONS[name])
        files |= {f"{FIGURES}/{name}.{kind}": made[kind] for kind in ("png", "pdf")}
        inlined.append(found)
    return files, inlined


def inlined_figure(figure: Figure, name: str, title: str, caption: str) -> tuple[dict[str, bytes], Inlined]:
    """A figure as bytes in every format, and inlined into a page."""
    made = {kind: figures.to_bytes(figure, kind) for kind in figures.FORMATS}
    # As an image, whatever stands in a figure is never run as script.
    kind, mime = ("svg", "image/svg+xml") if len(made["svg"]) <= MAX_SVG else ("png", "image/png")
    width, height = (round(inches * PIXELS_PER_INCH) for inches in figure.get_size_inches())
    source = f"data:{mime};base64,{base64.b64encode(made[kind]).decode()}"
    return made, Inlined(name, title, caption, source, width, height, wide=width > 600)
