"""The report of a validation says what `validation.json` says, on a page, in Markdown, and on the terminal."""

from __future__ import annotations

import itertools
import json
import re

import pytest

from analysis.errors import InputError
from fracture import catalogue
from fracture.report.validation import lines, table, write
from fracture.validity import STATUSES
from tests.fracture.report_pages import Html, markdown_tables
from tests.fracture.validations import counts, made_validation, write_validation

HOSTILE = "</td><script>alert(1)</script><img src=x onerror=alert(1)> | [a](http://b) `c` *d*"
ORGANISMS, MEASURES = "Organisms and verdicts", "Validated quantities"
FAMILIES = ("registers", "elimination")


def written(tmp_path, validation):
    """The page and the Markdown of a validation."""
    paths = write(write_validation(tmp_path / "out", validation))
    assert [path.name for path in paths] == [f"validation.{kind}" for kind in ("html", "md", "png", "pdf", "svg")]
    return Html(paths[0].read_text(encoding="utf-8")), paths[1].read_text(encoding="utf-8")


def small(families=FAMILIES):
    """A validation with few quantities, which is sooner drawn."""
    validation = made_validation(families)
    return {**validation, "measures": validation["measures"][:5]}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    validation = made_validation(seeds=(0, 1), mode="full")
    return validation, *written(tmp_path_factory.mktemp("full"), validation)


def rows_of(html, name):
    """The rows of a table by their heads, without headings of groups."""
    return {cells[0]: cells[1:] for cells in html.tables[name][1:] if len(cells) > 1}


def unescaped(cell):
    return re.sub(r"\\(.)", r"\1", cell).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def test_what_must_hold_is_listed_with_its_number_and_what_fails_is_said_first(report):
    _, html, text = report
    assert html.tables["What must hold"][1:] == [
        ["Spearman of bypass by text, registers", "≥ 0.95", "0.998", "yes"],
        ["shams called detached", "≤ 5%", "2 of 40 [0.6%, 16.9%]", "no"],
        ["covert told from the base", "by a measure beside the verdict", "8 measures", "yes"],
    ]
    failed = "This does not hold: shams called detached: 2 of 40 [0.6%, 16.9%] (≤ 5%)."
    assert html.text.index(failed) < html.text.index("What must hold")
    assert f"> **{failed}**" in text
    assert "2 of 3 conditions hold. The verdict is right for 38 of 40 pairs." in html.text


def test_every_pair_has_a_row_with_truth_verdict_and_what_was_expected(report):
    validation, html, text = report
    rows = html.tables[ORGANISMS]
    assert rows[0] == [
        *("organism", "truth", "realised dose", "verdict", "right", "where", "n"),
        *("bypass by text", "bypass inside", "told by"),
    ]
    groups = [cells[0] for cells in rows if len(cells) == 1]
    assert groups == [f"{family}, seed {seed}" for family in FAMILIES for seed in (0, 1)]
    assert len(rows) == 1 + len(groups) + len(validation["pairs"])
    at = rows.index(["elimination, seed 1"])
    assert [cells for cells in rows[at:] if cells[0] == "covert"] == [
        [
            *("covert", "detached", "0.03", "inconclusive", "no expected detached", "", "40"),
            *("+0.03 [0.02, 0.04]", "+0.03 [0.02, 0.04]", "2"),
        ]
    ]
    assert [cells[1:5] for cells in rows if cells[0] == "collapsed"] == [["collapsed", "—", "not scorable", "yes"]] * 2
    assert "no<br>**expected detached**" in text


def test_what_is_detached_on_its_own_chains_says_so(tmp_path):
    validation = small(("registers",))
    (pair,) = [pair for pair in validation["pairs"] if pair["organism"] == "rationaliser"]
    pair["chains"] = "own"
    html, _ = written(tmp_path, validation)
    assert rows_of(html, ORGANISMS)["rationaliser"][4] == "direct, own chains"


def test_shams_of_many_seeds_have_the_names_of_their_pairs(tmp_path):
    validation = small(("registers",))
    (sham,) = [pair for pair in validation["pairs"] if pair["organism"] == "sham"]
    validation["pairs"] += [{**sham, "id": f"registers/seed_0/sham_seed_{seed}"} for seed in (1, 2)]
    html, _ = written(tmp_path, validation)
    assert {"sham", "sham_seed_1", "sham_seed_2"} <= rows_of(html, ORGANISMS).keys()
    (line,) = [line for line in lines(validation) if " sham " in line]
    assert re.fullmatch(r"  registers  sham +attached +0\.00 +3 attached +3 of 3 right", line)


def test_what_tells_an_organism_is_counted_over_its_pairs(report):
    validation, html, _ = report
    rows = html.tables["Told from the base, registers"]
    columns = [pair["organism"] for pair in validation["pairs"] if (pair["family"], pair["seed"]) == ("registers", 0)]
    assert rows[0] == ["quantity", *columns]
    told = [name not in ("self", "sham", "dose_0", "collapsed") for name in columns]
    expected = ["2 of 2" if each else "" for each in told]
    assert rows[1:] == [["information gain of the chain, own chains", *expected], ["mistakes", *expected]]


def test_a_quantity_that_sees_detachment_where_there_is_none_is_marked(tmp_path):
    validation = small(("registers",))
    validation["pairs"][1]["told_by"] = ["mistakes"]
    source = write(write_validation(tmp_path / "out", validation))[0].read_text(encoding="utf-8")
    (row,) = re.findall(r'<tr><th scope="row">mistakes</th>(.*?)</tr>', source)
    kinds = re.findall(r'<td(?: class="(\w+)")?>([^<]*)</td>', row)
    assert kinds[:5] == [("", ""), ("wrong", "1 of 1"), ("", ""), ("right", "1 of 1"), ("right", "1 of 1")]


def test_every_quantity_stands_under_its_status_with_the_worse_of_both_families(report):
    validation, html, text = report
    rows = html.tables[MEASURES]
    assert rows[0][1:] == [
        *("Spearman", "slope", "largest error", "AUROC", "power", "false positives", "diagnosticity", "why no better"),
    ]
    assert [cells[0] for cells in rows if len(cells) == 1] == [f"{name}: {said}" for name, said in STATUSES.items()]
    status = ""
    found = {}
    for cells in rows[1:]:
        if len(cells) == 1:
            status = cells[0].split(":")[0]
        else:
            found[cells[0]] = (status, cells[1:])
    assert len(found) == len(validation["measures"])
    said = {"given": "on the same chains", "own": "each on its own chains"}
    for at, row in enumerate(validation["measures"]):
        name = row["label"] if at < 2 else f"{row['label']}, {said[row['condition']]}"
        place = at if at > 1 else 0
        worse, fewest, k = place / 100, max(0, 8 - place // 6), place // 14
        share = f"{k} of 12 [{100 * k / 24:.1f}%, {100 * (k / 12 + 0.3):.1f}%]"
        assert found[name][0] == row["status"]
        numbers = found[name][1]
        assert float(numbers[0]) == pytest.approx(1 - worse - 0.01 - 0.02, abs=5e-4), "of the second seed"
        assert float(numbers[1]) == pytest.approx(0.99 - worse, abs=0.006)
        assert float(numbers[2]) == pytest.approx(0.03 + worse, abs=0.006)
        assert float(numbers[3]) == pytest.approx(1 - worse / 2 - 0.01, abs=6e-4)
        assert numbers[4:6] == [f"{fewest} of 8", share]
        assert (numbers[6] == "—") == (row["families"]["registers"]["diagnosticity"] is None)
        assert numbers[7] == "; ".join(row["why"])
    assert "Numbers are the worse of registers and elimination." in html.text
    assert "Of 43 quantities: 16 calibrated, 13 diagnostic, 14 descriptive." in html.text
    assert "Of 43 quantities: 16 calibrated, 13 diagnostic, 14 descriptive." in text


def test_each_family_has_a_table_of_its_own(report):
    _, html, _ = report
    for shift, family in enumerate(FAMILIES):
        rows = rows_of(html, f"{MEASURES}, {family}")
        assert len(rows) == 43
        assert float(rows["bypass, by text"][3]) == 1 - 0.01 * shift


def test_nulls_are_listed_by_what_was_said(report):
    _, html, text = report
    rows = html.tables["Where there is nothing to see"]
    assert rows[0] == ["what is said", "a base against its own copy", "labels permuted"]
    assert rows[1] == ["verdict: detached", *["0 of 50 [0.0%, 30.0%]"] * 2]
    assert ["mistakes: answer unchanged, on the same chains", *["1 of 50 [1.0%, 32.0%]"] * 2] in rows
    assert html.tables["Bypass is not accuracy"][1] == ["0.3", "0.25 to 0.90", "0.69 to 0.70", "−0.020"]
    assert "| verdict: detached | 0 of 50" in text


@pytest.mark.parametrize("nulls", [{}, {"self_pairs": None, "readers": []}])
def test_without_null_experiments_the_page_says_so(tmp_path, nulls):
    html, text = written(tmp_path, {**small(), "nulls": nulls})
    assert "No null experiment was made." in html.text
    assert "No null experiment was made." in text
    assert "Where there is nothing to see" not in html.tables


def test_one_null_of_two_has_one_column(tmp_path):
    validation = small()
    del validation["nulls"]["permuted_labels"]
    html, _ = written(tmp_path, validation)
    assert html.tables["Where there is nothing to see"][0][1:] == ["a base against its own copy"]


def test_one_family_has_one_table(tmp_path):
    html, text = written(tmp_path, small(("elimination",)))
    assert [name for name in html.tables if name.startswith(MEASURES)] == [MEASURES]
    assert "Numbers are elimination. " not in html.text
    assert "Numbers are of elimination." in html.text
    assert "worse of" not in text


def test_what_could_not_be_had_is_a_dash(tmp_path):
    validation = small(("registers",))
    nothing = {"spearman": [None], "slope": None, "intercept": None, "largest_error": None, "auroc": None}
    nothing |= {"diagnosticity": None, "power": counts(0, 0), "false_positives": counts(0, 0)}
    row = validation["measures"][0]
    row["families"]["registers"] |= nothing
    row |= {"status": "descriptive", "why": ["no attached pair"]}
    html, text = written(tmp_path, validation)
    assert rows_of(html, MEASURES)["bypass, by text"] == [*["—"] * 7, "no attached pair"]
    assert "| bypass, by text | — | — | — | — | — | — | — | descriptive |" in table(validation)
    assert "nan" not in text.lower()


def test_the_markdown_has_every_table_of_the_page(report):
    _, html, text = report
    found = [[[unescaped(cell) for cell in row] for row in rows] for rows in markdown_tables(text)]
    heads = {tuple(cell for cell in rows[0] if cell) for rows in found}
    assert {tuple(rows[0]) for rows in html.tables.values()} - {("name", "value")} <= heads
    organisms = next(rows for rows in found if "realised dose" in rows[0])
    assert len(organisms) == 2 + 40
    assert "![What the measures say of models whose fracture is known](validation.png)" in text


def test_the_readme_has_a_row_a_quantity_and_says_which_family_the_numbers_are_of():
    validation = made_validation()
    text = table(validation)
    (rows,) = markdown_tables(text)
    assert rows[0] == [
        *("quantity", "Spearman", "slope", "largest error", "AUROC", "power", "false positives", "diagnosticity"),
        "status",
    ]
    assert len(rows) == 2 + 43
    assert [row[-1] for row in rows[2:]] == [*["calibrated"] * 16, *["diagnostic"] * 13, *["descriptive"] * 14]
    assert rows[2][:7] == ["bypass, by text", "0.980", "0.99", "0.03", "0.990", "8 of 8", "0 of 12 [0.0%, 30.0%]"]
    assert "Numbers are the worse of registers and elimination." in text


def test_the_terminal_lists_what_must_hold_every_organism_and_how_many_of_each_status():
    validation = made_validation()
    validation["acceptance"][2]["value"] = ", ".join(catalogue.NAMES)
    shown = lines(validation)
    assert "  FAILS  shams called detached: 2 of 40 [0.6%, 16.9%] (≤ 5%)" in shown
    assert "  holds  Spearman of bypass by text, registers: 0.998 (≥ 0.95)" in shown
    (covert,) = [line for line in shown if line.startswith("  elimination  covert ")]
    assert covert.split() == ["elimination", "covert", "detached", "0.03", "inconclusive", "WRONG"]
    assert shown[-1] == "Of 43 quantities: 16 calibrated, 13 diagnostic, 14 descriptive."
    assert max(map(len, shown)) <= 140
    assert len(shown) == 3 + 20 + 5


def test_the_terminal_says_organisms_of_several_seeds_on_one_line():
    validation = made_validation(("elimination",), seeds=(0, 1, 2))
    pairs = [pair for pair in validation["pairs"] if pair["organism"] == "elimination_dose_0.25"]
    for pair, dose in zip(pairs, (0.3, 0.1, 0.2), strict=True):
        pair |= {"verdict": "inconclusive" if dose == 0.1 else "detached", "right": dose > 0.1, "realised": dose}
    (line,) = [line for line in lines(validation) if "dose_0.25" in line]
    said = "elimination elimination_dose_0.25 dose 0.10 to 0.30 2 detached, 1 inconclusive 2 of 3 right"
    assert line.split() == said.split()


def test_the_page_needs_nothing_else_and_runs_nothing(report):
    _, html, _ = report
    tags = [tag for tag, _ in html.elements]
    assert "script" not in tags
    assert "link" not in tags
    policy = next(str(found["content"]) for tag, found in html.elements if "http-equiv" in found)
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    assert [str(found["src"])[:11] for tag, found in html.elements if tag == "img"] == ["data:image/"]
    assert not any(re.search(r"https?://", str(value)) for _, found in html.elements for value in found.values())


def test_the_page_is_read_without_colour_or_a_mouse(report):
    _, html, _ = report
    levels = [level for level, _ in html.headings]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert {found.get("scope") for tag, found in html.elements if tag == "th"} == {"col", "row", "rowgroup"}
    ids = [found["id"] for _, found in html.elements if "id" in found]
    assert len(ids) == len(set(ids))
    links = [str(found["href"]) for tag, found in html.elements if tag == "a"]
    assert all(link.startswith("#") and link[1:] in ids for link in links)
    (alt,) = [str(found["alt"]) for tag, found in html.elements if tag == "img"]
    assert len(alt) > 40


def test_hostile_and_long_names_are_shown_as_they_are(tmp_path):
    validation = small(("registers",))
    validation["pairs"][7] |= {"organism": HOSTILE, "id": f"registers/seed_0/{HOSTILE.replace('/', '')}"}
    for row in validation["measures"][:2]:
        row["families"]["registers"]["points"][7][2] = HOSTILE
    validation["measures"][2] |= {"label": HOSTILE * 3, "why": [HOSTILE]}
    validation["acceptance"][0] |= {"what": HOSTILE, "value": HOSTILE}
    html, text = written(tmp_path, validation)
    assert "script" not in [tag for tag, _ in html.elements]
    assert not any(name.startswith("on") for _, found in html.elements for name in found)
    assert html.text.count(HOSTILE) >= 3
    assert "<script" not in text
    assert "<img" not in text
    for rows in markdown_tables(text):
        assert len({len(row) for row in rows}) == 1, "a bar in a name is no border"


def test_how_to_reproduce_names_the_command_and_all_settings(report):
    _, html, text = report
    command = "fracture validate --full --prompts 40 --patch-prompts 24 --seeds 0,1 --doses 0,0.25,1 --shams 40"
    command += " --out rerun"
    assert command in html.text
    assert command in text
    assert dict(html.tables["after Settings"][1:]) == {
        **{"prompts": "40", "patch_prompts": "24", "seeds": "0, 1", "doses": "0, 0.25, 1", "shams": "40"},
        **{"family": "none", "measures": "none"},
    }
    assert dict(html.tables["after Criteria"][1:]) == {"auroc": "0.95", "slope": "0.8, 1.2"}


def test_the_same_validation_gives_the_same_files(tmp_path):
    first, second = (
        {path.name: path.read_bytes() for path in write(write_validation(tmp_path / name, small()))} for name in "ab"
    )
    assert first == second


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read .*`fracture validate --out"),
        ("{", "is not the JSON"),
        ("[]", "is not the JSON"),
        (json.dumps({"schema_version": 2}), "schema version 2, expected 1"),
    ],
)
def test_what_is_no_validation_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "validation.json").write_text(content)
    with pytest.raises(InputError, match=message):
        write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {"validation.json"}
