"""Validity: what failed validation is said, and weighed for nothing; what is not known to have changes nothing."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from analysis import statistics
from analysis.errors import InputError
from analysis.measures.protocol import Quantity
from fracture import catalogue, validity
from fracture.cli.main import app
from fracture.evidence import weigh
from fracture.report.page import outputs
from fracture.terminal import verdict_table
from fracture.validity import (
    EMPTY,
    FILE,
    STATUSES,
    Validity,
    adopt,
    adopted,
    command,
    extract,
    false_positives,
    load,
    smallest,
)
from tests.fracture.report_pages import QUICK, VARIANTS, Html, made, markdown_tables
from tests.fracture.validations import made_validation

UP = Quantity("up", "answer unchanged", "share", "up", detached=1)
TOO = Quantity("too", "answer kept", "share", "too", detached=1)
WHY = ["AUROC 0.61 in registers", "2 of 12 attached pairs called detached in elimination"]


def entry(status, why=()):
    return {"status": status, "why": list(why), "auroc": None, "spearman": None, "false_positives": None}


def change(mean, p, n=100):
    values = np.random.default_rng(0).normal(0, 1, n)
    values = mean + 0.1 * (values - values.mean()) / values.std(ddof=1)
    return {"difference": statistics.mean(values).to_dict(), "p": p}


def weighed(known, up=(0.3, 0.001), too=(0.3, 0.04), **options):
    changes = {"given": {"up": change(*up), "too": change(*too)}}
    level = {name: {"estimate": 0.2} for name in ("up", "too")}
    measures = {"m": {"readers": {"base": {"gold": level}}, "changes": {"v": changes}}}
    found = weigh(measures, {"m": {"up": UP, "too": TOO}}, "v", 0.1, validity=known, **options)
    return {finding.quantity: finding for finding in found}


def muted(quantity, why=WHY):
    return Validity({f"m.{quantity}.given": entry("descriptive", why)})


def test_a_descriptive_finding_keeps_words_and_numbers_and_speaks_for_nothing():
    before, after = weighed(EMPTY)["up"], weighed(muted("up"))["up"]
    assert (before.stance, after.stance) == ("for", "neither")
    assert (before.status, after.status) == (None, "descriptive")
    assert after.text == f"{before.text}; descriptive (failed validation: {'; '.join(WHY)})"
    assert (after.difference, after.margin) == (before.difference, before.margin)


def test_a_descriptive_finding_is_not_evidence_against_either():
    assert weighed(EMPTY, up=(0.0, 0.9))["up"].stance == "against"
    assert weighed(muted("up"), up=(0.0, 0.9))["up"].stance == "neither"


def test_what_is_not_weighed_is_not_in_the_family_of_tests():
    """By hand: of p = .001 and .04 the second is adjusted to .04; of .04 and .9 the first is to .08, alone to .04."""
    assert weighed(EMPTY, up=(0.3, 0.9))["too"].q == pytest.approx(0.08)
    assert weighed(EMPTY, up=(0.3, 0.9))["too"].stance == "neither"
    alone = weighed(muted("up"), up=(0.3, 0.9))
    assert (alone["too"].q, alone["too"].stance) == (0.04, "for")
    assert alone["up"].q is None
    # Nor does what is not weighed lend its small p to the rest.
    assert weighed(EMPTY, up=(0.3, 1e-9), too=(0.3, 0.06))["up"].q == pytest.approx(2e-9)
    assert weighed(muted("too"), up=(0.3, 1e-9), too=(0.3, 0.06))["up"].q == pytest.approx(1e-9)


@pytest.mark.parametrize(("p", "words"), [(0.04, "rose"), (0.06, "undecided")])
def test_the_words_of_what_is_not_weighed_rest_on_its_own_p(p, words):
    found = weighed(muted("too"), up=(0.3, 0.9), too=(0.3, p))["too"]
    assert found.text.startswith(f"answer kept, on the same chains: {words} (+0.30 [")


@pytest.mark.parametrize("status", ["calibrated", "diagnostic"])
def test_what_passed_is_weighed_as_before_and_says_its_status(status):
    known = Validity({"m.up.given": entry(status, ["slope 2.10 in registers"])})
    before, after = weighed(EMPTY)["up"], weighed(known)["up"]
    assert after.to_dict() == {**before.to_dict(), "status": status}


def test_the_status_is_that_of_measure_quantity_and_condition():
    other = Validity({key: entry("descriptive") for key in ("m.up.own", "n.up.given", "m.up", "up.given")})
    assert weighed(other)["up"].to_dict() == weighed(EMPTY)["up"].to_dict()


def test_nothing_is_weighed_when_nothing_passed_or_the_model_reads_nothing():
    both = Validity({f"m.{name}.given": entry("descriptive", WHY) for name in ("up", "too")})
    assert {(item.stance, item.q) for item in weighed(both).values()} == {("neither", None)}
    unreadable = weighed(muted("up"), readable=False)["up"]
    assert "hardly reacts" in unreadable.text
    assert unreadable.text.endswith(")")
    assert unreadable.stance == "neither"


def test_evidence_is_weighed_with_the_shipped_statuses_unless_others_are_given(monkeypatch):
    monkeypatch.setattr(validity, "load", lambda: muted("up"))
    assert weighed(None)["up"].stance == "neither"
    assert weighed(EMPTY)["up"].stance == "for"


def test_the_shipped_file_is_read_once_and_knows_no_status_but_the_three():
    known = load()
    assert known is load()
    shipped = json.loads((Path(validity.__file__).parent / FILE).read_text(encoding="utf-8"))
    assert set(shipped) == {"made_by", "mode", "measures"}
    assert known.measures == shipped["measures"]
    names = {
        f"{name}.{quantity.name}.{condition}"
        for name in catalogue.NAMES
        for quantity in catalogue.measure(name).quantities
        for condition in ("given", "own")
        if quantity.detached
    }
    assert set(known.measures) <= names | {"routes.bypass.text", "routes.bypass.inside"}, "of what the suite measures"


def test_an_unknown_status_is_refused_and_an_unknown_quantity_has_none():
    with pytest.raises(InputError, match=r"m\.up\.given.*'calibratd'.*calibrated, diagnostic, descriptive"):
        Validity({"m.up.given": entry("calibratd")})
    assert (EMPTY.status("m", "up", "given"), EMPTY.why("m", "up", "given")) == (None, "")
    assert muted("up").why("m", "up", "given") == "; ".join(WHY)


@pytest.mark.parametrize("content", ["", "[]", '{"measures": []}', '{"mode": "full"}', '{"measures": {"a": 1}}'])
def test_a_damaged_file_is_refused(monkeypatch, tmp_path, content):
    (tmp_path / FILE).write_text(content)
    monkeypatch.setattr(validity.resources, "files", lambda _: tmp_path)
    with pytest.raises(InputError, match=r"validity\.json"):
        load.__wrapped__()


def of_families(**families):
    plain = {"points": [[0, 0, "self", 0]], "spearman": [None], "auroc": None, "false_positives": None}
    return {"families": {name: {**plain, **found} for name, found in families.items()}}


def test_the_extract_keeps_the_worst_of_both_families_and_all_seeds():
    row = of_families(
        a={"spearman": [0.99, 0.97], "auroc": 0.9, "false_positives": {"k": 1, "n": 40, "low": 0.0, "high": 0.13}},
        b={"spearman": [0.98, 0.96], "auroc": 1.0, "false_positives": {"k": 1, "n": 4, "low": 0.0, "high": 0.8}},
    )
    assert (smallest(row, "spearman"), smallest(row, "auroc")) == (0.96, 0.9)
    assert false_positives(row) == {"k": 1, "n": 4, "low": 0.0, "high": 0.8}


def test_a_number_that_is_missing_somewhere_has_no_worst():
    assert smallest(of_families(a={"spearman": [0.99, None]}), "spearman") is None
    assert smallest(of_families(a={"auroc": 0.99}, b={}), "auroc") is None
    assert smallest(of_families(a={"auroc": 0.99}, b={"points": []}), "auroc") == 0.99, "it has no data there"
    nothing = {"k": 0, "n": 0, "low": None, "high": None}
    assert false_positives(of_families(a={"false_positives": nothing}, b={})) is None
    of_ten = {"k": 0, "n": 10, "low": 0.0, "high": 0.31}
    assert false_positives(of_families(a={"false_positives": nothing}, b={"false_positives": of_ten})) == of_ten


def test_the_extract_of_a_validation_is_a_validity_that_json_holds():
    validation = made_validation()
    found = json.loads(json.dumps(extract(validation), allow_nan=False))
    assert (found["mode"], found["made_by"]) == ("quick", "fracture validate --quick --prompts 40 --patch-prompts 24")
    known = Validity(found["measures"])
    assert len(known.measures) == len(validation["measures"])
    for row in validation["measures"]:
        where = (row["measure"], row["quantity"], row["condition"])
        assert (known.status(*where), known.why(*where)) == (row["status"], "; ".join(row["why"]))


def test_the_command_has_the_settings_of_its_mode():
    full = made_validation(families=("registers",), seeds=(0, 2), mode="full")
    full["settings"] |= {"doses": [0, 0.25, 1.0], "measures": ["mistakes", "filler"]}
    assert command(full) == (
        "fracture validate --full --prompts 40 --patch-prompts 24 --seeds 0,2 --doses 0,0.25,1 --shams 40 "
        "--family registers --measures mistakes,filler"
    )


# Adoption


def held(made_by, **measures):
    return {"made_by": made_by, "mode": "full", "measures": {key.replace("_", "."): e for key, e in measures.items()}}


def test_a_whole_validation_takes_the_place_of_the_shipped_one():
    old, new = held("old", a_x_given=entry("calibrated")), held("new", b_x_given=entry("descriptive"))
    assert adopted(old, new, None) == new


def test_of_a_new_measure_alone_the_rest_stays_and_it_says_where_it_is_from():
    old = held("old", a_x_given=entry("calibrated"), b_x_given=entry("calibrated"), b_gone_own=entry("calibrated"))
    new = held("new", a_x_given=entry("descriptive"), b_x_given=entry("diagnostic"), bb_x_given=entry("diagnostic"))
    found = adopted(old, new, ["b"])
    assert (found["made_by"], found["mode"]) == ("old", "full")
    assert found["measures"] == {
        "a.x.given": entry("calibrated"),
        "b.x.given": {**entry("diagnostic"), "made_by": "new"},
    }, "b.gone is measured no more, and bb is another measure"
    with pytest.raises(InputError, match=r"'c'.*it has some of a, b, bb"):
        adopted(old, new, ["b", "c"])
    with pytest.raises(InputError, match="names none"):
        adopted(old, new, [])


@pytest.fixture
def own_file(monkeypatch, tmp_path):
    """The suite's own file, in another place."""
    place = tmp_path / "suite"
    place.mkdir()
    monkeypatch.setattr(validity, "__file__", str(place / "validity.py"))
    (place / FILE).write_text(json.dumps(held("old", a_x_given=entry("calibrated"))))
    return place / FILE


def test_adoption_writes_the_suites_own_file(own_file, tmp_path):
    (tmp_path / FILE).write_text(json.dumps(held("new", b_x_given=entry("diagnostic"))))
    assert adopt(tmp_path, ["b"]) == own_file
    assert list(json.loads(own_file.read_text())["measures"]) == ["a.x.given", "b.x.given"]
    adopt(tmp_path)
    assert json.loads(own_file.read_text()) == held("new", b_x_given=entry("diagnostic"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no validity.json; expected the directory of a finished `fracture validate`"),
        (b"{", "no JSON mapping with `made_by` and `measures`; make it anew with `fracture validate`"),
        (b"\xff", "no JSON mapping with `made_by` and `measures`"),
        (b'{"measures": {}}', "no JSON mapping with `made_by` and `measures`"),
        (b'{"measures": {"a.x.given": {"status": "fine"}}}', "status 'fine' is unknown"),
    ],
)
def test_what_is_no_validation_is_not_adopted(own_file, tmp_path, content, message):
    before = own_file.read_bytes()
    if content is not None:
        (tmp_path / FILE).write_bytes(content)
    with pytest.raises(InputError, match=message):
        adopt(tmp_path)
    assert own_file.read_bytes() == before


def test_the_command_adopts_and_says_where(own_file, tmp_path):
    (tmp_path / FILE).write_text(json.dumps(held("new", b_x_given=entry("diagnostic"))))
    done = CliRunner().invoke(app, ["adopt", str(tmp_path), "--measures", "b"])
    assert (done.exit_code, done.stdout.strip()) == (0, str(own_file))
    assert "b.x.given" in own_file.read_text()


# Study reports


MUTED = Validity(
    {
        "mistakes.same.given": entry("descriptive", WHY),
        "mistakes.same.own": entry("diagnostic", ["slope 2.10 in registers"]),
        "mistakes.drop.given": entry("calibrated"),
    }
)
MEASURES = (*QUICK, "mistakes", "early_answering")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same run weighed with nothing known, and with statuses."""
    place = tmp_path_factory.mktemp("statuses")
    return {
        name: made(place / name, measures=MEASURES, prompts=40, validity=known)
        for name, known in (("before", EMPTY), ("after", MUTED))
    }


def findings(run, variant="half"):
    evidence = run.summary["variants"][variant]["evidence"]
    return {".".join((item["measure"], item["quantity"], item["condition"])): item for item in evidence}


def test_the_summary_has_a_status_for_every_finding(runs):
    before, after = findings(runs["before"]), findings(runs["after"])
    assert {item["status"] for item in before.values()} == {None}
    assert {key: item["status"] for key, item in after.items() if item["status"]} == {
        key: known["status"] for key, known in MUTED.measures.items()
    }
    assert before["mistakes.same.given"]["stance"] == "for"
    assert (after["mistakes.same.given"]["stance"], after["mistakes.same.given"]["q"]) == ("neither", None)
    assert before.keys() == after.keys()


def test_a_validation_can_weigh_a_stored_summary_as_if_nothing_were_known(runs):
    run = runs["after"]
    measures = run.summary["measures"]
    quantities = {name: {q.name: q for q in catalogue.measure(name).quantities} for name in measures}
    raw = [item.to_dict() for item in weigh(measures, quantities, "half", 0.1, validity=EMPTY)]
    assert raw == list(findings(runs["before"]).values())


def test_the_report_says_the_status_of_a_row_and_what_it_means(runs):
    files = outputs(runs["after"])
    html = Html(files["report.html"].decode())
    rows = {cells[0]: cells[1:] for cells in html.tables["What every measure says"]}
    head = "answer unchanged (share), on the same chains; descriptive"
    assert rows[head][1].split()[0] == "neither"
    assert "q" not in rows[head][1]
    assert rows["answer unchanged (share), each on its own chains; diagnostic"][1].split()[0] == "for"
    assert "drop of the answer's log-probability (nats), on the same chains; calibrated" in rows
    assert "area over the curve, same answer (share), on the same chains" in rows, "not validated"
    for status, meaning in STATUSES.items():
        assert f"{status}: {meaning}" in html.text
    said = f"descriptive (failed validation: {'; '.join(WHY)})"
    assert (
        html.text.count(said) == sum("mistakes.same.given" in findings(runs["after"], name) for name in VARIANTS) == 2
    )
    text = files["report.md"].decode()
    assert head in [row[1] for rows in markdown_tables(text) for row in rows]
    assert said in text


def test_counts_of_the_cards_leave_out_what_failed(runs):
    def counted(run):
        return [
            sum(item["stance"] == stance for item in findings(run).values()) for stance in ("for", "against", "neither")
        ]

    before, after = counted(runs["before"]), counted(runs["after"])
    assert after == [before[0] - 1, before[1], before[2] + 1]
    html = outputs(runs["after"])["report.html"].decode()
    assert "{} for detachment, {} against detachment, {} neither.".format(*after) in html


def said(run):
    console = Console(file=io.StringIO(), width=200)
    for part in verdict_table(run.summary):
        console.print(part)
    return console.file.getvalue()


def test_the_terminal_names_the_measures_that_failed(runs):
    line = "1 of {} quantities are descriptive (failed validation) and speak neither for nor against: of mistakes"
    assert line.format(len(findings(runs["after"]))) in said(runs["after"])


def test_without_a_validation_nothing_is_said_of_one(runs):
    files = outputs(runs["before"])
    for text in (files["report.html"].decode(), files["report.md"].decode(), said(runs["before"])):
        assert "validation" not in text


def test_a_run_of_before_has_no_status_and_is_reported_alike(runs, tmp_path):
    def forget(summary, tables):
        for variant in summary["variants"].values():
            for item in variant["evidence"]:
                del item["status"]

    old = made(tmp_path, forget, measures=MEASURES, prompts=40)
    assert outputs(old) == outputs(runs["before"])
    assert "validation" not in said(old)
