"""The report can be read without a mouse, without colour, and by a screen reader."""

from __future__ import annotations

import itertools
import re

import pytest

from fracture.report.page import outputs
from tests.fracture.report_pages import QUICK, Html, made

VERDICTS = ("attached", "detached", "inconclusive", "not-scorable", "unchanged")
EFFECTS = ("rose", *"012345")
# WCAG 2.1, success criterion 1.4.3.
ENOUGH = 4.5


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    measures = (*QUICK, "mistakes", "early_answering")
    return outputs(made(tmp_path_factory.mktemp("run"), measures=measures))["report.html"].decode()


def test_headings_go_down_one_level_at_a_time(source):
    levels = [level for level, _ in Html(source).headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_language_title_and_alternative_texts_are_there(source):
    html = Html(source)
    assert ("html", {"lang": "en"}) in html.elements
    images = [found for tag, found in html.elements if tag == "img"]
    assert images
    assert all(len(str(found["alt"])) > 40 for found in images)
    assert "<title>Fracture report: base, sham, half, gone</title>" in source


def test_every_head_of_a_table_says_what_it_heads(source):
    html = Html(source)
    heads = [found.get("scope") for tag, found in html.elements if tag == "th"]
    assert len(heads) > 50
    assert set(heads) == {"col", "row", "rowgroup"}


def test_every_control_has_a_label_and_every_link_within_the_page_a_target(source):
    html = Html(source)
    labelled = {found["for"] for tag, found in html.elements if tag == "label"}
    controls = {found["id"] for tag, found in html.elements if tag in ("input", "select")}
    assert controls == labelled
    ids = [found["id"] for _, found in html.elements if "id" in found]
    assert len(ids) == len(set(ids))
    links = {str(found["href"]) for tag, found in html.elements if tag == "a"}
    assert all(link.startswith("#") and link[1:] in ids for link in links)


def colours(source: str, selector: str) -> dict[str, str]:
    rule = re.search(rf"{re.escape(selector)} \{{([^}}]*)\}}", source)
    assert rule, selector
    return dict(re.findall(r"([\w-]+):\s*(#[0-9a-f]{6})", rule.group(1)))


def luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_measured_as_the_standard_has_it():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("kind", EFFECTS)
def test_a_step_can_be_read_on_the_colour_of_its_effect(source, kind):
    found = colours(source, f".effect-{kind}")
    assert contrast(found["color"], found["background"]) >= ENOUGH


def test_effects_are_told_apart_without_hue(source):
    shades = [luminance(colours(source, f".effect-{kind}")["background"]) for kind in "012345"]
    assert all(darker < 0.85 * lighter for lighter, darker in itertools.pairwise(shades))


@pytest.mark.parametrize("kind", VERDICTS)
def test_a_verdict_can_be_read_on_its_colour(source, kind):
    assert contrast(colours(source, f".verdict-{kind}")["--tone"], "#ffffff") >= ENOUGH


def test_words_in_grey_and_in_tinted_cells_can_be_read(source):
    named = colours(source, ":root")
    for background in ("--paper", "--shade", "--red-tint", "--blue-tint"):
        assert contrast(named["--soft"], named[background]) >= ENOUGH
        assert contrast(named["--ink"], named[background]) >= ENOUGH
    assert contrast(named["--red"], named["--red-tint"]) >= ENOUGH
    assert contrast(named["--blue"], named["--blue-tint"]) >= ENOUGH
