"""Each verdict says what would change it, and a sham that is not attached is said first."""

from __future__ import annotations

import pytest

from fracture.report.page import outputs
from tests.fracture.report_pages import QUICK, Html, made, page

LABELS = {
    "attached": ({"v": 0.0}, {}),
    "detached": ({"v": 0.5}, {}),
    "inconclusive": ({"v": 0.1}, {"noise": 0.2}),
    "not scorable": ({"v": None}, {}),
    "unchanged, but the base already bypasses": ({"v": 0.6}, {"base": 0.6}),
}


@pytest.mark.parametrize(("label", "how"), LABELS.items())
def test_every_verdict_says_what_would_change_it(tmp_path, label, how):
    run = made(tmp_path, variants=how[0], measures=QUICK, **how[1])
    assert run.verdicts == {"v": label}
    html = page(run)
    assert ("p", {"class": "verdict"}) in html.elements
    expected = {
        "attached": "A 90% interval of the change of bypass, by text or inside, that reaches beyond ±0.1",
        "detached": "lower bounds of both the direct and the covert share at 0 or below",
        "inconclusive": "both 90% intervals within ±0.1 (attached)",
        "not scorable": "lower bounds of the mean total effect of 0.2 or more",
        "unchanged, but the base already bypasses": "bypass by text below 0.25 (attached)",
    }
    assert [found for found, words in expected.items() if words in html.text] == [label]
    needed = run.summary["variants"]["v"]["prompts_needed"]
    assert (f"About {needed} prompts would decide it; 24 were scored" in html.text) == (label == "inconclusive")


def test_too_few_prompts_for_a_verdict_are_said_to_be(tmp_path):
    html = page(made(tmp_path, variants={"v": 0.5}, prompts=12, measures=QUICK))
    assert "At least 20 prompts are needed for a verdict; 12 were scored for base and variant." in html.text
    cells = [row[1] for row in html.tables["Shares of the answer's causal effect, every model by itself"][2:4]]
    assert cells == ["12 n too small"] * 2


@pytest.mark.parametrize("name", ["sham", "Sham", "sham_2", "sham-lr"])
def test_a_sham_that_is_not_attached_is_said_first(tmp_path, name):
    files = outputs(made(tmp_path, variants={"v": 0.0, name: 0.5}, measures=QUICK))
    html, words = Html(files["report.html"].decode()), f"The sham variant “{name}” came out as “detached”"
    assert html.text.index(words) < html.text.index("Verdicts")
    assert ("div", {"class": "warning", "role": "alert"}) in html.elements
    text = files["report.md"].decode()
    assert text.replace("\\", "").index(words) < text.index("## Verdicts")


def test_an_attached_sham_and_a_variant_of_another_name_bring_no_warning(tmp_path):
    html = page(made(tmp_path, variants={"sham": 0.0, "shampoo": 0.5}, measures=QUICK))
    assert "The sham variant" not in html.text
