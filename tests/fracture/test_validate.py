"""Validation from end to end: a small one with shipped organisms, and large ones whose models are made up."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import organisms
from analysis.errors import InputError
from analysis.runs import Run
from fracture.cli import main as cli
from fracture.validation import validate
from fracture.validation.plan import ValidationConfig
from fracture.validity import extract
from tests.fracture.validation_made import made_study, organism, share, shelf

MEASURES = ("information_gain", "early_answering")
READ = ("base", "sham", "dose_0.5", "dose_1")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A finished quick validation of four shipped organisms, its directory, and what was said meanwhile."""
    out = tmp_path_factory.mktemp("validate")
    with pytest.MonkeyPatch.context() as patched:
        place = shelf(out / "shelf", READ)
        patched.setattr(organisms, "SHIPPED", READ)
        patched.setattr(organisms, "checkpoint", lambda name: place / name)
        patched.setitem(validate.DRAWS, "quick", 20)
        said: list[str] = []
        config = ValidationConfig(out / "made", prompts=22, patch_prompts=4, families=("registers",), measures=MEASURES)
        yield validate.validate(config, None, said.append), config, said


def test_a_dose_is_found_and_a_sham_is_not(small):
    pairs = {pair["organism"]: pair for pair in small[0]["pairs"]}
    assert {name: pair["verdict"] for name, pair in pairs.items()} == {
        "self": "attached",
        "sham": "attached",
        "dose_0.5": "detached",
        "dose_1": "detached",
    }
    assert all(pair["right"] for pair in pairs.values())
    assert pairs["self"]["bypass"]["text"] == {"estimate": 0.0, "low": 0.0, "high": 0.0}
    assert pairs["dose_1"]["realised"] == pytest.approx(1, abs=0.01)
    assert pairs["dose_1"]["where"] == ["direct"]
    assert any("information gain" in told for told in pairs["dose_1"]["told_by"])
    assert pairs["sham"]["told_by"] == pairs["self"]["told_by"] == []


def test_the_headline_is_calibrated_in_both_forms(small):
    rows = {row["condition"]: row for row in small[0]["measures"] if row["headline"]}
    for form in ("text", "inside"):
        found = rows[form]["families"]["registers"]
        assert rows[form]["status"] == "calibrated", rows[form]["why"]
        assert found["slope"] == pytest.approx(1, abs=0.1)
        assert found["diagnosticity"] > 0.95


def test_a_base_is_never_told_from_its_rounded_copy_read_in_other_batches(small):
    validation, config, _ = small
    nulls = validation["nulls"]
    assert nulls["self_pairs"]["detached"]["k"] == 0
    assert nulls["self_pairs"]["detached"]["n"] == 20
    assert set(nulls["permuted_labels"]["pairs"]) == {"registers/seed_0/sham", "registers/seed_0/dose_1"}
    assert nulls["permuted_labels"]["detached"]["k"] <= 2
    run = Run.open(config.out / "studies" / "registers-seed_0-base-agreeing-copy")
    assert run.summary["study"]["batch_tokens"] != 16384
    tables = [run.table("routes"), Run.open(config.out / "studies" / "registers-seed_0-base-agreeing").table("routes")]
    copy, base = (
        table[(table["reader"] == reader) & (table["chain"] == "whole")].set_index("id")["nie"]
        for table, reader in zip(tables, ("copy", "base"), strict=True)
    )
    # It is another model, if only just.
    assert 0 < float((copy - base).abs().max()) < 0.2


def test_all_conditions_hold_and_each_says_its_number(small):
    for item in small[0]["acceptance"]:
        assert item["passed"], item
        assert item["value"] is not None


def test_the_file_holds_no_place_of_this_machine_and_no_number_that_json_has_not(small):
    validation, config, _ = small
    text = (config.out / "validation.json").read_text()
    assert json.loads((config.out / "validity.json").read_text()) == extract(json.loads(text))
    assert json.loads(text, parse_constant=pytest.fail) == validation
    assert str(config.out.parent) not in text


def test_each_unit_of_work_is_said_once(small):
    said = small[2]
    assert [line.split("]")[0] for line in said] == [f"[{at} of 5" for at in range(1, 6)]
    assert "study registers-seed_0-base-agreeing: 5 models" in said[0]


def test_the_same_validation_again_has_the_same_bytes(small):
    validation, config, _ = small
    before = (config.out / "validation.json").read_bytes()
    (config.out / "validation.json").unlink()
    assert validate.validate(config) == validation
    assert (config.out / "validation.json").read_bytes() == before


def test_studies_made_at_once_are_those_made_one_after_another(small):
    validation, config, _ = small
    said: list[str] = []
    two = replace(config, out=config.out.parent / "two")
    assert validate.validate(two, None, said.append, jobs=2) == validation
    tables = [path.relative_to(config.out) for path in sorted(config.out.glob("studies/*/measures/*.parquet"))]
    assert len(tables) > 2 * len(MEASURES)
    for table in tables:
        assert (two.out / table).read_bytes() == (config.out / table).read_bytes(), table
    assert said[0] == "[1 of 5] studies, 2 at once"
    assert "study registers-seed_0-base-agreeing-copy is done" in said[1]


def test_other_settings_are_refused_where_a_validation_is(small):
    config = small[1]
    with pytest.raises(InputError, match=r"another validation \(prompts 30, there 22"):
        validate.validate(ValidationConfig(config.out, prompts=30, patch_prompts=4, families=("registers",)))


def test_a_directory_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="not the directory of a validation"):
        validate.validate(ValidationConfig(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_organism_whose_truth_is_not_known_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(organisms, "SHIPPED", ("base", "sham"))
    monkeypatch.setattr(organisms, "checkpoint", lambda name: tmp_path / "shelf" / name)
    organism(tmp_path / "shelf" / "base", "base")
    config = ValidationConfig(tmp_path / "out", families=("registers",))
    with pytest.raises(InputError, match=r"sham: measured\.json cannot be read"):
        validate.validate(config)
    assert not config.out.exists()


def test_what_was_killed_while_it_began_is_begun_again(tmp_path):
    (tmp_path / ".settings.json.partial").write_text("{")
    validate.begun(ValidationConfig(tmp_path))
    assert json.loads((tmp_path / "settings.json").read_text())["mode"] == "quick"


class Stopped(BaseException):
    """A validation is stopped from outside."""


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """Trainings and studies of made models; `stage(n)` stops at the n-th of them, after half of it was done."""
    shipped = ("base", "sham", "dose_0", "dose_0.5", "dose_1", "elimination_base", "elimination_sham", "novice")
    for name in shipped:
        organism(tmp_path / "shelf" / name, name)
    monkeypatch.setattr(organisms, "SHIPPED", shipped)
    monkeypatch.setattr(organisms, "checkpoint", lambda name: tmp_path / "shelf" / name)
    monkeypatch.setitem(validate.DRAWS, "full", 2)
    monkeypatch.setattr(validate, "simulated_readers", lambda seed: [])
    left = [0]
    calls: list[str] = []

    def counted(what: str) -> None:
        calls.append(what)
        left[0] -= 1
        if left[0] == 0:
            raise Stopped

    def train_to(recipe, seed, out, base=None, progress=None):
        assert not out.exists()
        assert not list(out.parent.glob(f".{out.name}.partial-*"))
        assert base is None or (base / "config.json").is_file()
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.with_name(f".{out.name}.partial-1")
        partial.mkdir()
        counted(f"{recipe.name} {seed}")
        partial.rmdir()
        own = share(recipe.name)
        organism(out, recipe.name, None if own is None else min(1.0, own + 0.001 * seed))

    def study(config, progress=None):
        counted(Path(config.out).name)
        return made_study(config, ("early_answering",))

    monkeypatch.setattr("organisms.training.train_to", train_to)
    monkeypatch.setattr(validate, "run_study", study)

    def begin(n: int = 0) -> list[str]:
        left[0] = n
        calls.clear()
        return calls

    return begin


def full(out: Path, **settings) -> ValidationConfig:
    given = {"seeds": (0, 1), "doses": (0, 0.5, 1), "shams": 11, "measures": ("early_answering",), **settings}
    return ValidationConfig(out, "full", **given)


def test_a_full_validation_reads_all_families_seeds_and_shams(stage, tmp_path):
    stage()
    found = validate.validate(full(tmp_path / "out"))
    pairs = found["pairs"]
    assert len({pair["id"] for pair in pairs}) == len(pairs)
    for family, prefix in (("registers", ""), ("elimination", "elimination_")):
        for seed in (0, 1):
            there = {p["organism"] for p in pairs if (p["family"], p["seed"]) == (family, seed)}
            assert {"self", f"{prefix}dose_0", f"{prefix}dose_0.5", f"{prefix}dose_1"} <= there
    assert sum("sham" in pair["organism"] for pair in pairs) == 11
    assert all(pair["right"] for pair in pairs), [pair for pair in pairs if not pair["right"]]
    headline = found["measures"][0]
    for family in ("registers", "elimination"):
        assert headline["families"][family]["spearman"] == [pytest.approx(1), pytest.approx(1)]
        assert headline["families"][family]["auroc"] == 1
    # Of the made models none is right more often than another.
    failed = {item["what"] for item in found["acceptance"] if not item["passed"]}
    assert failed == {"accuracy_trap: accuracy behind its own chain"}
    # The shipped shams, and not those of other seeds.
    assert set(found["nulls"]["permuted_labels"]["pairs"]) == {
        *(f"registers/seed_0/{name}" for name in ("dose_0", "dose_1", "sham_seed_0")),
        "elimination/seed_0/elimination_sham_seed_0",
    }
    shams = next(item for item in found["acceptance"] if "harmless" in item["what"])
    assert shams["value"] == "0 of 11, so at most 28.5%"


def test_a_validation_that_is_stopped_anywhere_goes_on_and_ends_the_same(stage, tmp_path):
    config = full(tmp_path / "whole", families=("elimination",), seeds=(0,), shams=6)
    calls = stage()
    validate.validate(config)
    units = list(calls)
    expected = (config.out / "validation.json").read_bytes()
    stopped = full(tmp_path / "stopped", families=("elimination",), seeds=(0,), shams=6)
    done: list[str] = []
    # Each call gets one unit further.
    for _ in units:
        calls = stage(len([name for name in done if "-" in name]) + 2)
        with pytest.raises(Stopped):
            validate.validate(stopped)
        assert not (stopped.out / "validation.json").exists()
        done += [name for name in calls[:-1] if name not in done]
        if len(done) == len(units) - 1:
            break
    assert done == units[:-1]
    calls = stage()
    validate.validate(stopped)
    assert (stopped.out / "validation.json").read_bytes() == expected
    # What was trained is not trained again.
    assert [name for name in calls if "-" not in name] == []
    assert not list(stopped.out.rglob("*.partial-*"))


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["fracture", "validate", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def test_the_command_ends_with_1_if_a_condition_does_not_hold_and_says_which(stage, tmp_path, monkeypatch, capsys):
    stage()
    monkeypatch.setitem(validate.DRAWS, "quick", 2)
    arguments = ("--measures", "early_answering", "--family", "registers", "--prompts", 24)
    assert not command(monkeypatch, "--out", tmp_path / "good", *arguments)
    assert (tmp_path / "good" / "validation.html").is_file()
    (tmp_path / "shelf" / "sham" / "measured.json").write_text('{"question_followed": 0.0}')
    monkeypatch.setattr("tests.fracture.validation_made.share", lambda name: 0.6 if name == "sham" else share(name))
    capsys.readouterr()
    assert command(monkeypatch, "--out", tmp_path / "bad", *arguments) == 1
    said = capsys.readouterr().err
    assert "harmless fine-tunings called detached" in said.partition("not as it must be: ")[2]
    assert (tmp_path / "bad" / "validation.json").is_file()


def test_the_command_names_what_cannot_be(monkeypatch, capsys, tmp_path):
    for option, value in (("--seeds", "0,x"), ("--doses", "a"), ("--family", "rationals"), ("--prompts", "3")):
        assert command(monkeypatch, "--out", tmp_path / "out", option, value) == 2
        assert option in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
