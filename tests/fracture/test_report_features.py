"""What the report says of features: classes, twins, causal effects, latents and figures; and nothing without any."""

from __future__ import annotations

import base64
import copy
import html
import io
import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from matplotlib.figure import Figure

import figures
from analysis.errors import InputError
from analysis.runs import Run
from fracture.report.features import features
from fracture.report.page import outputs
from tests.fracture.report_pages import QUICK, Html, made, markdown_tables, page
from tests.fracture.test_report_accessible import ENOUGH, colours, contrast

NAME = "crosscoder.base-half.blocks.1.hook_resid_post"
HOSTILE = "</mark></td><script>alert(1)</script><img src=x onerror=alert(1)> & | [a](http://b) `c` *d*"
LATENTS = f"Latents that differ: {NAME}, half"
EFFECTS = f"Causal effects of edits: {NAME}, half"
TWINS = f"The dictionary beside twins: {NAME}, half"


def effect(edit: str, form: str, change: Any, low: Any, high: Any, p: float, **other: Any) -> dict[str, Any]:
    line = {"edit": edit, "form": form, "n_latents": 2, "n_prompts": 24, "total": 2.0, "bypass": 0.3}
    line |= {"change": change, "change_low": low, "change_high": high, "p": p}
    return line | {"control": 0.0, "control_low": -0.011, "control_high": 0.012} | other


def context(before: str | None, marked: str | None, after: str | None, **other: Any) -> dict[str, Any]:
    line = {"id": "p3", "part": "step", "step": 2, "activation": 3.0}
    return line | {"before": before, "marked": marked, "after": after} | other


def latent(number: int, kind: str, **other: Any) -> dict[str, Any]:
    line: dict[str, Any] = {"latent": number, "class": kind, "seeds": 3, "named": True, "density": 0.042}
    line |= {"relative_norm": 0.824, "nu_error": 0.1, "nu_reconstruction": 0.1}
    line["contexts"] = [context("so 3 + 4 =", " 7", " and")]
    line["answers"] = [
        {"rank": 1, "answer": "4", "effect": 0.3, "low": 0.28, "high": 0.32},
        {"rank": 2, "answer": "5", "effect": 0.1, "low": -0.1, "high": 0.3},
        {"rank": -1, "answer": "7", "effect": -0.06, "low": -0.08, "high": -0.04},
    ]
    line["differences"] = [difference("question", 0.008, 0.021), difference("marker", 0.0, 0.0)]
    return line | other


def difference(part: str, base: float, variant: float, quantity: str = "writes", p: float = 0.001) -> dict[str, Any]:
    change = variant - base
    limits = {"low": change - 0.001, "high": change + 0.001, "p_adjusted": p}
    return {"part": part, "quantity": quantity, "base": base, "variant": variant, "difference": change, **limits}


def twin(kind: str, model: str, explained: float, own: float | None) -> dict[str, Any]:
    shares = dict.fromkeys(("shared", "base-only", "artefact"), own) | {"variant-only": own}
    return {"kind": kind, "model": model, "explained_variance": explained, "l0": 8.0, "dead": 0.32, **shares}


SUMMARY: dict[str, Any] = {
    "variant": "half",
    "models": ["base", "half"],
    "hook": "blocks.1.hook_resid_post",
    "settings": {"architecture": "crosscoder", "latents": 256, "k": 8, "l1": 2.0, "seed": 0},
    "source": None,
    "held_out": {"explained_variance": {"base": 0.945, "half": 0.957}, "l0": 8.0, "dead": 0.32},
    "warnings": ["62% of the 256 latents fire on none of the held-out rows"],
    "classes": {"shared": 150, "dead": 101, "artefact": 2, "base-only": 1, "variant-only": 2},
    "agreement": {"seeds": 3, "share": 0.42, "chance": 0.013},
    "twins": [
        twin("trained", "base", 0.945, None),
        twin("trained", "half", 0.957, 0.02),
        twin("random-init", "base", 0.914, None),
        twin("random-init", "half", 0.911, 0.05),
    ],
    "effects": [
        effect("variant-only ablated", "text", -0.31, -0.4, -0.22, 0.0476),
        effect("variant-only ablated", "inside", -0.02, -0.05, 0.016, 0.0476),
        effect("base-only restored", "text", 2e-5, -1e-5, 6e-5, 0.43, n_latents=1),
        effect("base-only restored", "inside", 0.15, 0.1, 0.2, 0.05, n_latents=1),
    ],
    "latents": [
        latent(5, "shared", relative_norm=0.5),
        latent(9, "variant-only", seeds=1, named=False),
        latent(88, "variant-only"),
        latent(64, "base-only", relative_norm=0.17),
    ],
}


def png() -> bytes:
    """A picture of 1050 by 600 pixels, as a figure is saved that is 3.5 by 2 inches."""
    sink = io.BytesIO()
    Figure(figsize=(3.5, 2.0)).savefig(sink, format="png", dpi=300)
    return sink.getvalue()


def compared(run: Run, summary: Any = None, name: str = NAME, drawn: tuple[str, ...] = ("norms", "causal")) -> Path:
    """A comparison's directory in a run."""
    directory = run.directory / "sae" / name / "compare.half"
    directory.mkdir(parents=True)
    (directory / "features.json").write_text(json.dumps(SUMMARY if summary is None else summary), encoding="utf-8")
    for figure in drawn:
        (directory / f"{figure}.png").write_bytes(png())
    return directory


def changed(**parts: Any) -> dict[str, Any]:
    return copy.deepcopy(SUMMARY) | parts


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, str, str]:
    run = made(tmp_path_factory.mktemp("features"), measures=QUICK)
    compared(run, drawn=("norms", "firing", "causal", "steps_map", "latents_map"))
    files = outputs(run)
    return run, files["report.html"].decode(), files["report.md"].decode()


def test_features_stand_between_figures_and_tables_and_in_the_navigation(full):
    _, source, text = full
    shown = Html(source)
    heads = [head for level, head in shown.headings if level == 2]
    assert heads[2:5] == ["Figures", "Features", "Tables"]
    assert [found["href"] for tag, found in shown.elements if tag == "a"][3:5] == ["#figures", "#features"]
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")][2:5] == ["Figures", "Features", "Tables"]


def test_a_report_without_features_is_the_same_to_the_byte_but_for_them(full, tmp_path):
    run, source, text = full
    shutil.copytree(run.directory, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "sae")
    plain = outputs(Run.open(tmp_path / "run"))
    for start, end in (
        ('<section aria-labelledby="features">', '<section aria-labelledby="tables">'),
        ('<li><a href="#features">', '<li><a href="#tables">'),
        ("h3 .aside, td .source {", ".controls { display: flex"),
    ):
        assert source.count(start) == source.count(end) == 1
        source = source[: source.index(start)] + source[source.index(end) :]
    assert plain["report.html"].decode() == source
    without = re.sub(r"## Features\n.*?(?=## Tables\n)", "", text, flags=re.DOTALL)
    assert without != text
    assert plain["report.md"].decode() == without
    assert "eature" not in plain["report.html"].decode()


def test_a_comparison_says_what_was_compared_and_how_many_latents_are_of_which_class(full):
    _, source, text = full
    shown = Html(source)
    assert (3, f"half against base {NAME}") in shown.headings
    assert "Crosscoder of base and half at blocks.1.hook_resid_post: 256 latents, k = 8." in shown.text
    assert "Latents by class: 2 variant-only, 1 base-only, 2 artefact, 150 shared, 101 dead." in shown.text
    assert "Two of the 3 seeds share 42% of their latents in the mean (by chance 1%)." in shown.text
    assert "Warning: 62% of the 256 latents fire on none" in shown.text
    assert "> **Warning:** 62% of the 256 latents fire on none" in text


def test_twins_stand_beside_the_dictionary_and_are_said_to_be_no_evidence(full):
    _, source, _ = full
    shown = Html(source)
    assert shown.tables[TWINS][0] == ["model", "explained variance", "L0", "dead", "specific"]
    assert shown.cell(TWINS, "The models", "half", "explained variance") == "0.96"
    assert shown.cell(TWINS, "The models", "base", "specific") == "—"
    # 5% of the base alone and 5% of the variant alone.
    assert shown.cell(TWINS, "Twins with weights drawn anew", "half", "specific") == "10%"
    assert "These figures are no evidence of features" in shown.text


def test_effects_stand_with_intervals_beside_those_of_random_latents(full):
    _, source, text = full
    shown = Html(source)
    assert shown.tables[EFFECTS] == [
        ["form", "latents", "n", "bypass", "change", "random latents' change", "p"],
        ["variant-only ablated"],
        ["by text", "2", "24", "0.30", "−0.31 [−0.40, −0.22]", "−0.01 to 0.01", "0.048"],
        ["inside", "2", "24", "0.30", "−0.02 [−0.05, 0.02]", "−0.01 to 0.01", "0.048"],
        ["base-only restored"],
        ["by text", "1", "24", "0.30", "0.00 [0.00, 0.00]", "−0.01 to 0.01", "0.43"],
        ["inside", "1", "24", "0.30", "+0.15 [0.10, 0.20]", "−0.01 to 0.01", "0.050"],
    ]
    assert "| by text | 2 | 24 | 0.30 | −0.31 [−0.40, −0.22] | −0.01 to 0.01 | 0.048 |" in text


def test_a_sentence_says_whether_an_edit_changed_more_than_random_ones_and_whether_that_is_much(full):
    _, source, text = full
    for sentence in (
        "Variant-only ablated (2 latents): by text bypass fell by 0.31, more than with random latents (p = 0.048), and "
        "by more than the margin of 0.1; inside bypass fell by 0.02, more than with random latents (p = 0.048), but "
        "its interval includes 0 and it is within the margin of 0.1.",
        "Base-only restored (1 latent): by text bypass changed by less than 0.01, not clearly more than with random "
        "latents (p = 0.43); inside bypass rose by 0.15, not clearly more than with random latents (p = 0.050).",
    ):
        assert sentence in Html(source).text
        assert f"- {sentence}" in text


def test_without_a_change_or_random_latents_to_compare_there_is_no_p(tmp_path):
    nothing = {"control": None, "control_low": None, "control_high": None}
    summary = changed(
        effects=[
            effect("a", "text", None, None, None, 0.0476),
            effect("a", "inside", 0.3, 0.2, 0.4, 0.0476, **nothing),
            effect("b", "text", 0.3, None, 0.4, 0.0476, n_prompts=9),
        ]
    )
    run = made(tmp_path, measures=QUICK)
    compared(run, summary)
    shown = page(run)
    assert shown.cell(EFFECTS, "a", "by text", "p") == shown.cell(EFFECTS, "a", "inside", "p") == "—"
    assert shown.cell(EFFECTS, "a", "inside", "random latents' change") == "—"
    assert shown.cell(EFFECTS, "b", "by text", "n") == "9 n too small"
    assert "by text no change of bypass could be measured; inside bypass rose by 0.30, and random latents" in shown.text
    ends = "B (2 latents): by text bypass rose by 0.30, more than with random latents (p = 0.048), but its interval "
    assert f"{ends}includes 0." in shown.text


def test_effects_of_a_variant_that_is_not_scorable_are_noise(tmp_path):
    run = made(tmp_path, measures=QUICK)
    compared(run, changed(variant="gone"))
    shown = page(run)
    rows = shown.tables[f"Causal effects of edits: {NAME}, gone"]
    assert rows[2] == ["by text", "2", "24", *["not scorable"] * 4]
    assert "more than with random latents (p" not in shown.text
    assert "shares of the effect are noise" in shown.text


def test_a_latent_can_be_read(full):
    _, source, text = full
    shown = Html(source)
    writes = "share of the activations' norm that it writes, base → variant"
    assert shown.tables[LATENTS][0] == [
        *("latent", "relative norm", "found by", writes, "fires most on", "promotes", "suppresses"),
    ]
    # Named ones first; the answer marker, where it writes nothing, and the answer in doubt are not listed.
    where, fires = "fires on 4.2% of all positions question 0.8% → 2.1%", "p3, step 2 so 3 + 4 = 7 and"
    answers = ["4: +0.30 [0.28, 0.32]", "7: −0.06 [−0.08, −0.04]"]
    assert [[re.sub(r"\s+", " ", cell) for cell in row] for row in shown.tables[LATENTS][1:]] == [
        ["variant-only: the variant has them and the base has hardly any of them (latent scaling)"],
        ["88", "0.82", "3 of 3 seeds", where, fires, *answers],
        ["9", "0.82", "1 of 3 seeds not to be named", where, fires, *answers],
        ["base-only: the base has them and the variant has hardly any of them (latent scaling)"],
        ["64", "0.17", "3 of 3 seeds", where, fires, *answers],
    ]
    others = shown.tables[f"Other latents: {NAME}, half"]
    assert [row[0] for row in others] == ["latent", "shared: of both models", "5"]
    assert "<mark>7</mark>" in source
    (rows,) = (rows for rows in markdown_tables(text) if rows[0][:2] == ["class", "latent"] and rows[2][1] == "88")
    assert rows[2][5] == "p3, step 2: so 3 + 4 = **7** and"
    assert rows[3][3] == "1 of 3 seeds<br>**not to be named**"


TOKENS = [
    (("so 3", " *", " 4"), ("so 3 ", "*", " 4")),
    (("un", "believ", "able"), ("un", "believ", "able")),
    (("f", "(*)", "x"), ("f", "(*)", "x")),
    (("a\n", "\n\n", "b"), ("a↵", "↵↵", "b")),
    (("a", "  ", "b"), ("a", "␣", "b")),
    (("", "_a_", ""), ("", "_a_", "")),
    (("→", "*", "é"), ("→", "*", "é")),
    (("*", "**", "*"), ("*", "**", "*")),
    (("a ", "x ", "*y*"), ("a ", "x", " *y*")),
    (("tab\t", "nul\x00", "\u2028"), ("tab ", "nul\ufffd", "↵")),
    (("a", "\u3000b\xa0", "c"), ("a ", "b", " c")),
    (("<b>", "&amp;", "</b>"), ("<b>", "&amp;", "</b>")),
]
"""Words before, of and after a token, and how they are to be shown."""


def test_the_marked_token_is_marked_and_bold_whatever_stands_around_it(tmp_path):
    run = made(tmp_path, measures=QUICK)
    lines = [latent(at, "variant-only", contexts=[context(*given)]) for at, (given, _) in enumerate(TOKENS)]
    compared(run, changed(latents=lines))
    files = outputs(run)
    source = files["report.html"].decode()
    rendered = MarkdownIt("commonmark", {"html": True}).enable("table").render(files["report.md"].decode())
    for _, shown in TOKENS:
        before, marked, after = map(html.escape, shown)
        assert f"</span> {before}<mark>{marked}</mark>{after}</p>" in source
        assert f"<td>p3, step 2: {before}<strong>{marked}</strong>{after}</td>" in rendered


def test_hostile_texts_are_shown_and_never_run(tmp_path):
    line = latent(88, "variant-only", contexts=[context(HOSTILE, HOSTILE, HOSTILE, id=HOSTILE, part=HOSTILE, step=0)])
    line["answers"][0]["answer"] = line["differences"][0]["part"] = HOSTILE
    other = latent(7, HOSTILE)
    summary = changed(latents=[line, other], warnings=[HOSTILE], hook=HOSTILE)
    summary["effects"][0]["edit"] = summary["twins"][0]["kind"] = summary["twins"][1]["model"] = HOSTILE
    run = made(tmp_path, measures=QUICK)
    compared(run, summary)
    files = outputs(run)
    shown = Html(files["report.html"].decode())
    assert [tag for tag, _ in shown.elements].count("script") == 2
    assert [tag for tag, _ in shown.elements].count("mark") == 2
    assert not any(name.startswith("on") for _, found in shown.elements for name in found)
    assert {str(found["src"])[:5] for tag, found in shown.elements if tag == "img"} == {"data:"}
    assert shown.text.count(HOSTILE) >= 10
    text = files["report.md"].decode()
    assert "<script" not in text
    assert "<img" not in text
    assert not re.search(r"(?<!\\)\]\(http", text)
    for rows in markdown_tables(text):
        assert len({len(cells) for cells in rows}) == 1


def test_a_dictionary_of_one_model_says_where_latents_fire_and_what_it_lacks(tmp_path):
    differ = latent(3, "differing", contexts=[context(None, None, None)] * 2)
    del differ["relative_norm"]
    differ["differences"] = [
        difference("question", 0.04, 0.12, "fires"),
        difference("step", 0.0004, 0.5, "fires", p=0.2),
        difference("step", 0.3, 0.4, "writes"),
    ]
    summary = changed(
        models=["base"],
        settings=None,
        source="release/id",
        held_out=None,
        warnings=[],
        agreement=None,
        twins=None,
        effects=None,
        classes={"shared": 90, "differing": 1},
        latents=[differ],
    )
    run = made(tmp_path, measures=QUICK)
    # Norms and bars of an earlier comparison are not this one's.
    compared(run, summary, drawn=("norms", "causal", "firing"))
    files = outputs(run)
    assert "| p3, step 2: (its text was not kept) |" in files["report.md"].decode()
    assert "<mark>" not in files["report.html"].decode()
    shown = Html(files["report.html"].decode())
    assert shown.tables[LATENTS][0][1:3] == [
        "found by",
        "share of positions that it fires on, base → variant",
    ]
    assert [re.sub(r"\s+", " ", cell) for cell in shown.tables[LATENTS][2]][:4] == [
        "3",
        "one seed",
        "fires on 4.2% of all positions question 4.0% → 12.0% steps under 0.1% → 50.0% (no clear difference)",
        "p3, step 2 (its text was not kept)",
    ]
    assert "A published dictionary (release/id) of 91 latents, read at blocks.1.hook_resid_post." in shown.text
    assert "Trained with one seed only" in shown.text
    assert "nothing was edited" in shown.text
    assert not {TWINS, EFFECTS} & set(shown.tables)
    images = [str(found["alt"]) for tag, found in shown.elements if tag == "img"][len(figures.available(run)) :]
    assert [alt.split(".")[0] for alt in images] == ["Where in the text latents differ"]


def test_figures_are_inlined_with_what_their_maps_mean(full):
    run, source, text = full
    shown = Html(source)
    images = [found for tag, found in shown.elements if tag == "img"][-5:]
    kept = (run.directory / "sae" / NAME / "compare.half" / "norms.png").read_bytes()
    for found in images:
        assert base64.b64decode(str(found["src"]).removeprefix("data:image/png;base64,")) == kept
        assert (found["width"], found["height"]) == ("455", "260")
    assert shown.text.count("Of the UMAP only neighbourhood means something") == 2
    links = re.findall(r"!\[[^\]]*\]\((sae/[^)]+)\)", text)
    names = ("norms", "firing", "causal", "steps_map", "latents_map")
    assert links == [f"sae/{NAME}/compare.half/{name}.png" for name in names]


def test_each_comparison_has_its_part(tmp_path):
    run = made(tmp_path, measures=QUICK)
    compared(run)
    compared(run, name="topk (odd).base.x")
    files = outputs(run)
    shown = Html(files["report.html"].decode())
    assert [head for level, head in shown.headings if "against base" in head and level == 3] == [
        f"half against base {NAME}",
        "half against base topk (odd).base.x",
    ]
    assert {EFFECTS, EFFECTS.replace(NAME, "topk (odd).base.x")} <= set(shown.tables)
    assert "(sae/topk%20%28odd%29.base.x/compare.half/norms.png)" in files["report.md"].decode()


DAMAGED = {
    "empty": "",
    "no JSON": "{",
    "a list": "[]",
    "nothing in it": "{}",
    "null": "null",
    "no settings": '{"variant": "half", "classes": {}, "latents": []}',
    "no UTF-8": b"\xff",
    "a variant that the run has not": changed(variant="unknown"),
    "a latent without a class": changed(latents=[{"latent": 3}]),
    "words for a number": changed(latents=[latent(3, "shared", density="much")]),
    "an effect of nothing": changed(effects=[{"edit": "a"}]),
    "half a character": changed(warnings=["\ud800"]),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_summary_is_refused_by_its_name(tmp_path, what):
    run = made(tmp_path, measures=("routes",))
    content = DAMAGED[what]
    written = json.dumps(content) if isinstance(content, dict) else content
    path = compared(run, drawn=()) / "features.json"
    path.write_bytes(written if isinstance(written, bytes) else written.encode())
    with pytest.raises(InputError, match=rf"{NAME}/compare\.half/features\.json: is damaged .*fracture sae compare"):
        features(run)


def test_a_summary_or_figure_that_is_not_there_is_refused_by_its_name(tmp_path):
    run = made(tmp_path, measures=("routes",))
    directory = compared(run)
    (directory / "norms.png").write_bytes(b"GIF89a")
    with pytest.raises(InputError, match=r"norms\.png: is no PNG file"):
        features(run)
    (directory / "features.json").unlink()
    with pytest.raises(InputError, match=r"compare\.half/features\.json: cannot be read \(No such file"):
        outputs(run)


def test_the_same_run_gives_the_same_bytes_elsewhere(full, tmp_path):
    run, source, text = full
    shutil.copytree(run.directory, tmp_path / "moved")
    files = outputs(Run.open(tmp_path / "moved"))
    assert files["report.html"].decode() == source
    assert files["report.md"].decode() == text
    assert str(run.directory) not in source + text


def test_the_section_can_be_read_by_all(full):
    _, source, _ = full
    shown = Html(source)
    levels = [level for level, _ in shown.headings]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert {found.get("scope") for tag, found in shown.elements if tag == "th"} == {"col", "row", "rowgroup"}
    assert all(len(str(found["alt"])) > 40 for tag, found in shown.elements if tag == "img")
    ids = [found["id"] for _, found in shown.elements if "id" in found]
    assert len(ids) == len(set(ids))
    regions = [found for _, found in shown.elements if found.get("role") == "region"]
    assert {LATENTS, EFFECTS, TWINS} <= {found["aria-label"] for found in regions}
    assert all(found["tabindex"] == "0" for found in regions)
    mark = colours(source, "mark")
    assert contrast(mark["color"], mark["background"]) >= ENOUGH
