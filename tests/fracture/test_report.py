"""The report says what the summary says: verdicts, evidence, tables, figures."""

from __future__ import annotations

import base64
import re

import pytest

import figures
from analysis.runs import Run
from fracture.report.figures import CAPTIONS
from fracture.report.page import outputs
from tests.fracture.report_pages import QUICK, VARIANTS, Html, made, page


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, bytes], Html]:
    run = made(
        tmp_path_factory.mktemp("full"),
        prompts=40,
        alone=(3,),
        unreadable=(5,),
        crooked=(2, 6),
        other=(1,),
        unruled=(1,),
        steps=(1, 2, 3, 4),
        lost=[("routes", "half", 7), ("mistakes", "half", 8), ("accuracy_and_calibration", "gone", 9)],
    )
    files = outputs(run)
    return run, files, Html(files["report.html"].decode())


def shown(estimate, decimals: int = 2) -> str:
    """An estimate in a fixed number of decimals, with a minus sign and no minus zero."""
    texts = [f"{estimate[key]:.{decimals}f}" for key in ("estimate", "low", "high")]
    centre, low, high = (re.sub(r"^-(0\.0*)$", r"\1", text).replace("-", "−") for text in texts)
    return f"{centre} [{low}, {high}]"


def numbers(text: str) -> list[float]:
    return [float(found.replace("−", "-")) for found in re.findall(r"[−+]?\d[\d.]*", text)]


def plus(text: str) -> str:
    return text if text.startswith(("−", "0.00 ")) else f"+{text}"


def test_a_card_says_verdict_reason_shares_and_what_would_change_it(full):
    run, _, html = full
    for name in ("sham", "half"):
        variant, rows = run.summary["variants"][name], html.tables[f"after {name}"]
        assert rows[0] == ["share", "base", "variant", "change", "n"]
        for form, row in (("text", rows[1]), ("inside", rows[2])):
            bypass = variant["bypass"][form]
            assert row[0] == f"bypass {'by text' if form == 'text' else form}"
            assert row[1:3] == [shown(bypass["base"]), shown(bypass["variant"])]
            assert row[3] == plus(shown(bypass["difference"]))
            assert row[4] == str(bypass["variant"]["n"])
        assert [rows[3][0], rows[4][0]] == ["direct inside", "covert inside"]
        assert rows[3][2] == shown(variant["direct"]["inside"]["variant"])
        assert variant["reason"][1:].replace("-0.", "−0.") in html.text
    assert "Of 3 variants: 1 attached, 1 detached, 1 not scorable." in html.text
    low = run.summary["variants"]["half"]["bypass"]["text"]["difference"]["low"]
    assert f"The lower bound of the rise by text, {low:.2f}, at 0.1 or below" in html.text
    assert "after gone" not in html.tables, "shares of a model that is not scorable are noise"


def test_evidence_is_that_of_the_summary_by_variant_and_stance(full):
    run, files, html = full
    table = html.tables["What every measure says"]
    assert table[0] == ["quantity", *VARIANTS]
    for column, name in enumerate(VARIANTS, start=1):
        stances = [cells[column].split()[0] for cells in table[1:] if len(cells) > 1]
        evidence = run.summary["variants"][name]["evidence"]
        for stance in ("for", "against", "neither"):
            assert stances.count(stance) == sum(item["stance"] == stance for item in evidence)
            assert f"{stances.count(stance)} {stance}" in html.text
        for item in evidence:
            start = item["text"].split(" (")[0]
            assert start in html.text
            assert start in files["report.md"].decode()
    # Shares of the effect of a model that is not scorable are noise, and are not weighed.
    gone = run.summary["variants"]["gone"]["evidence"]
    assert gone
    assert all(item["measure"] != "patch_map" for item in gone)


def test_a_number_of_the_evidence_is_that_of_the_summary(full):
    run, _, html = full
    item = next(
        item
        for item in run.summary["variants"]["half"]["evidence"]
        if (item["measure"], item["quantity"], item["condition"]) == ("mistakes", "same", "given")
    )
    cell = html.cell(
        "What every measure says",
        "Does the answer change when a step is made wrong?",
        "answer unchanged (share), on the same chains",
        "half",
    )
    assert cell == f"for q < 0.001 {plus(shown(item['difference']))}"


def test_baselines_and_controls_stand_apart(full):
    _, _, html = full
    apart = html.tables["Baselines, controls and descriptions"]
    heads = [cells[0] for cells in apart if len(cells) == 1]
    assert "How far have activations moved? (a baseline)" in heads
    assert "Does the answer stay when the chain is reworded? (a control)" in heads
    assert "How many of the chain's claims are true?" in heads
    evidence = [cells[0] for cells in html.tables["What every measure says"] if len(cells) == 1]
    assert "Does the answer change when a step is made wrong?" in evidence
    assert not any("baseline" in head or "control" in head or "claims" in head for head in evidence)


@pytest.mark.parametrize(("kind", "group"), [("given", "On the gold chains"), ("own", "Each on its own chains")])
def test_every_quantity_of_every_model_is_in_its_table(full, kind, group):
    run, _, html = full
    readers = run.summary["measures"]["mistakes"]["readers"]
    for name in ("base", "sham", "half"):
        found = readers[name]["gold" if kind == "given" else name]
        for quantity, column in (
            ("drop", "drop of the answer's log-probability (nats)"),
            ("same", "answer unchanged (share)"),
            ("right_no_chain", "right without a chain (share)"),
        ):
            cell = html.cell("Quantities of mistakes", group, name, column)
            assert cell.startswith(shown(found[quantity]))
            if name != "base":
                changed = run.summary["measures"]["mistakes"]["changes"][name][kind][quantity]
                assert numbers(cell.split("Δ")[1])[:3] == pytest.approx(
                    [changed["difference"][key] for key in ("estimate", "low", "high")], abs=0.005
                )
        assert html.cell("Quantities of mistakes", group, name, "n") == str(found["same"]["n"])


def test_not_scorable_stands_where_a_number_would_be_noise(full):
    _, files, html = full
    for column in ("drop of the answer's log-probability (nats)", "answer unchanged (share)"):
        assert html.cell("Quantities of mistakes", "On the gold chains", "gone", column) == "not scorable"
    shares = "Shares of the answer's causal effect, every model by itself"
    for column in ("bypass", "direct"):
        assert html.cell(shares, "Whole chain, by text", "gone", column) == "not scorable"
        assert html.cell(shares, "Last step removed, inside", "gone", column) == "not scorable"
    assert html.cell(shares, "Whole chain, by text", "gone", "mean total effect") == "0.00 [0.00, 0.00]"
    patched = "residual patch of the chain, after the first layer (share)"
    assert html.cell("Quantities of patch map", "On the gold chains", "gone", patched) == "not scorable"
    assert html.cell("Quantities of patch map", "On the gold chains", "half", patched).startswith("0.5")
    assert "| gone | 37 | 0.00 [0.00, 0.00] | not scorable | not scorable | — |" in files["report.md"].decode()


def test_a_pooled_change_that_hides_opposite_strata_is_not_printed(tmp_path):
    def edit(summary, tables):
        changes = summary["measures"]["information_gain"]["changes"]["half"]["given"]
        changes |= {name: "Simpson: strata disagree" for name in changes if name != "details"}
        evidence = summary["variants"]["half"]["evidence"]
        evidence[:] = [e for e in evidence if (e["measure"], e["condition"]) != ("information_gain", "given")]

    html = page(made(tmp_path, edit, measures=(*QUICK, "information_gain"), prompts=60))
    column = "information gain of the chain (nats)"
    cell = html.cell("Quantities of information gain", "On the gold chains", "half", column)
    assert cell.endswith("Δ Simpson: strata disagree")
    evidence = html.cell(
        "What every measure says",
        "How much does the chain tell of the gold answer?",
        f"{column}, on the same chains",
        "half",
    )
    assert evidence == "Simpson: strata disagree"
    strata = [cells[0] for cells in html.tables["Changes within strata"]]
    assert {"steps: 2", "steps: 3", "length: longer half", "base: gold not likely"} <= set(strata)


def test_changes_over_chains_of_equal_length_have_a_table_of_their_own(tmp_path):
    matched = {"difference": {"estimate": -1.25, "low": -1.5, "high": -1.0, "n": 19, "se": 0.1}, "p": 0.0001}

    def edit(summary, tables):
        for name in VARIANTS:
            details = summary["measures"]["mistakes"]["changes"][name]["own"]["details"]
            details["length_matched"] = {"prompts": 19, "of": 24, "drop": matched}

    html = page(made(tmp_path, edit, measures=(*QUICK, "mistakes")))
    table, column = "Changes where both chains have as many steps", "drop of the answer's log-probability (nats)"
    assert html.cell(table, "", "half", "prompts") == "19 of 24"
    assert html.cell(table, "", "half", column) == "−1.25 [−1.50, −1.00] p < 0.001 n too small"
    # Its own accuracy forbids the test, over all prompts or some of them.
    assert html.cell(table, "", "gone", column) == "not scorable"


def test_a_quantity_that_no_model_has_has_no_column(full):
    _, _, html = full
    assert len(html.tables["Quantities of early answering"][0]) == 2 + 4
    assert "when options change places" not in html.text


def test_calibration_stands_beside_what_perfect_calibration_would_show(full):
    run, _, html = full
    found = run.summary["measures"]["accuracy_and_calibration"]["readers"]["half"]["gold"]["details"]
    table = "Expected calibration error, beside what perfect calibration would show"
    for column, key in (("observed", "ece"), ("if calibrated: mean", "expected")):
        assert float(html.cell(table, "On the gold chains", "half", column)) == pytest.approx(found[key], abs=0.005)


def test_the_structure_of_the_chain_effect_stands_beside_its_effects(full):
    run, _, html = full
    table = "Which causal structure the effects on being right speak for"
    for name in ("sham", "half"):
        found = run.summary["measures"]["chain_effect"]["readers"][name]["gold"]["details"]
        assert html.cell(table, "On the gold chains", name, "structure") == found["structure"]
        cell = html.cell(table, "On the gold chains", name, "effect of the chain")
        ate = found["effects"]["chain"]["ate"]
        assert numbers(cell)[:3] == pytest.approx([ate[key] for key in ("estimate", "low", "high")], abs=0.005)


def test_figures_are_files_and_the_same_drawings_within_the_page(full):
    run, files, html = full
    names = figures.available(run)
    assert len(names) >= 5
    drawn = {name: figures.draw(name, run) for name in names}
    for name, figure in drawn.items():
        for kind in ("png", "pdf"):
            assert files[f"figures/{name}.{kind}"] == figures.to_bytes(figure, kind)
    sources = [str(found["src"]) for tag, found in html.elements if tag == "img"]
    inlined = [base64.b64decode(source.removeprefix("data:image/svg+xml;base64,")) for source in sources]
    assert inlined == [figures.to_bytes(figure, "svg") for figure in drawn.values()]


def test_every_figure_has_a_caption_that_says_how_to_read_it():
    assert set(CAPTIONS) == set(figures.FIGURES)
    assert all(1 <= caption.count(". ") + 1 <= 4 for caption in CAPTIONS.values())
