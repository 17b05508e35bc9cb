"""Trajectories: which directories are checkpoints and when, what is said of their verdicts, and a whole run."""

from __future__ import annotations

import json
import sys

import pandas as pd
import pytest
import torch
import yaml

import organisms
from analysis.errors import InputError
from analysis.runs import Run
from figures.trajectory import Checkpoint
from fracture import study
from fracture.cli import main as cli
from fracture.config import StudyConfig
from fracture.report.trajectory import trajectory
from fracture.run_directory import check_output
from fracture.trajectory import checkpoint_table, detachment_said, find_checkpoints, trajectory_config, trajectory_files
from tests.fracture.report_runs import Made, write_run

GIVEN = {"base": "b", "prompts": "p", "out": "o"}
ALWAYS = ("routes", "own_routes", "accuracy_and_calibration", "information_gain")


@pytest.fixture
def directories(tmp_path, monkeypatch):
    """`directories(*names)`: makes them in the working directory."""
    monkeypatch.chdir(tmp_path)

    def make(*names):
        for name in names:
            (tmp_path / name).mkdir(parents=True)

    return make


def found(*globs):
    return {step: str(path) for step, path in find_checkpoints(globs).items()}


def test_checkpoints_are_in_the_order_of_their_numbers_and_files_are_passed_over(directories, tmp_path):
    directories("ckpt-100", "ckpt-9", "ckpt-020", "sft/checkpoint-500", "sft/checkpoint-1000", "other")
    (tmp_path / "ckpt-7").write_text("a file")
    assert list(found("ckpt-*").items()) == [(9, "ckpt-9"), (20, "ckpt-020"), (100, "ckpt-100")]
    both = found("sft/checkpoint-*", "ckpt-*", str(tmp_path / "ckpt-9*"))
    assert list(both) == [9, 20, 100, 500, 1000]
    assert both[1000] == "sft/checkpoint-1000"


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("checkpoint-500", 500),
        ("50", 50),
        ("step50", 50),
        ("global_step1000", 1000),
        ("llama3-checkpoint-2", 2),
        ("run.v2_ckpt-3", 3),
        ("latest", None),
        ("step-1e3", None),
        ("epoch-2.5", None),
        ("checkpoint-500-merged", None),
        ("llama3", 3),
    ],
)
def test_the_step_is_the_number_that_ends_the_name(directories, name, step):
    directories(name)
    if step is None:
        with pytest.raises(InputError, match=f"the name of {name} does not end in its step; expected a name such as"):
            find_checkpoints(["*"])
    else:
        assert found("*") == {step: name}


def test_a_name_with_a_bracket_is_itself_before_it_is_a_glob(directories):
    directories("[a]/ckpt-1", "a/ckpt-2", "[x]-5")
    assert found("[x]-5") == {5: "[x]-5"}
    assert found("[a]/ckpt-1") == {1: "[a]/ckpt-1"}
    assert found("[a]/ckpt-*") == {2: "a/ckpt-2"}


def test_what_is_not_clear_is_an_error(directories, tmp_path):
    directories("a/ckpt-50", "b/checkpoint-50", "b/checkpoint-050")
    with pytest.raises(InputError, match=r"a/ckpt-50 and b/checkpoint-50 are both of step 50"):
        find_checkpoints(["a/*", "b/checkpoint-50"])
    with pytest.raises(InputError, match="are both of step 50; give one of them"):
        find_checkpoints(["b/*"])
    (tmp_path / "ckpt-1").write_text("a file")
    with pytest.raises(InputError, match=r"no directory matches 'ckpt-\*', 'c'"):
        find_checkpoints(["ckpt-*", "c"])
    with pytest.raises(InputError, match="'' is no glob"):
        find_checkpoints([""])
    for odd in (["ckpt-*", 5], 5):
        with pytest.raises(InputError, match="5 is no glob"):
            trajectory_config({**GIVEN, "checkpoints": odd})


def test_a_file_gives_globs_or_what_a_run_says_of_itself(directories):
    directories("ckpt-10", "ckpt-9")
    config = trajectory_config({**GIVEN, "checkpoints": "ckpt-*"}, "study file x")
    assert config == trajectory_config({**GIVEN, "checkpoints": ["ckpt-9", "ckpt-10"]})
    assert dict(config.variants) == {"ckpt-9": "ckpt-9", "ckpt-10": "ckpt-10"}
    assert list(config.variants) == list(config.checkpoints) == ["ckpt-9", "ckpt-10"]
    assert config.checkpoints == {"ckpt-9": 9, "ckpt-10": 10}
    again = yaml.safe_load(yaml.safe_dump(config.to_dict()))
    assert trajectory_config(again) == config == StudyConfig.from_mapping(again)
    # A file that sorts its names has ckpt-10 before ckpt-9.
    assert list(again["variants"]) == ["ckpt-10", "ckpt-9"]
    assert list(trajectory_config(again).variants) == ["ckpt-9", "ckpt-10"]
    with pytest.raises(InputError, match="study file x: has variants beside checkpoints"):
        trajectory_config({**GIVEN, "checkpoints": "ckpt-*", "variants": {"a": "b"}}, "study file x")
    with pytest.raises(InputError, match="trajectory: setting 'checkpoints' is missing"):
        trajectory_config({**GIVEN, "variants": {"a": "b"}}, "trajectory")


def test_a_trajectory_always_has_what_its_figure_shows(directories):
    directories("ckpt-1")
    globs = {**GIVEN, "checkpoints": "ckpt-*"}
    assert trajectory_config(globs).measures == ALWAYS
    assert trajectory_config({**globs, "measures": ["filler"]}).measures == (*ALWAYS, "filler")
    quick = trajectory_config({**globs, "preset": "quick"})
    assert set(quick.measures) > set(ALWAYS)
    assert quick.max_prompts == 100


@pytest.mark.parametrize(
    ("checkpoints", "message"),
    [
        ({"a": 1}, "no step for that variant: 'b'"),
        ({"a": 1, "b": 2, "c": 3}, "no variant of that name: 'c'"),
        ({"a": 0, "b": 2}, "'a' is at step 0; step 0 is the base"),
        ({"a": 2, "b": 2}, "'a' and 'b' are both at step 2"),
        ({"a": "1", "b": 2}, "setting 'checkpoints' is .* expected variants with their steps"),
        ({"a": True, "b": 2}, "setting 'checkpoints' is .* expected variants with their steps"),
    ],
)
def test_steps_that_do_not_fit_the_variants_are_refused(checkpoints, message):
    settings = {**GIVEN, "variants": {"a": "x", "b": "y"}, "checkpoints": checkpoints}
    with pytest.raises(InputError, match=message):
        StudyConfig.from_mapping(settings)


def test_a_study_that_is_none_has_no_trace_of_it_and_is_not_taken_for_one(tmp_path):
    settings = {**GIVEN, "variants": {"ckpt-1": "x"}, "measures": ["information_gain"], "out": str(tmp_path)}
    plain = StudyConfig.from_mapping(settings)
    assert "checkpoints" not in plain.to_dict()
    assert plain.digest() != StudyConfig.from_mapping({**settings, "checkpoints": {"ckpt-1": 1}}).digest()
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(plain.to_dict()))
    assert check_output(plain, overwrite=False)
    with pytest.raises(InputError, match=r"holds another study \(checkpoints \{'ckpt-1': 1\}, there None\)"):
        check_output(StudyConfig.from_mapping({**settings, "checkpoints": {"ckpt-1": 1}}), overwrite=False)


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["not scorable"], "Not detached at the one checkpoint: not scorable."),
        (["attached", "inconclusive", "attached"], "Detached at none of 3 checkpoints: 2 attached, 1 inconclusive."),
        (
            ["attached", "detached", "detached", "detached"],
            "Detached first at step 20 (c20); the step before it is 10 (c10, attached). It stays detached at all 2 "
            "later checkpoints.",
        ),
        (
            ["detached", "detached"],
            "Detached first at step 10 (c10); the step before it is 0 (the base). It stays detached at the one later "
            "checkpoint.",
        ),
        (
            ["not scorable", "detached"],
            "Detached first at step 20 (c20); the step before it is 10 (c10, not scorable). It is the last one, so "
            "whether it stays detached is not known.",
        ),
        (
            ["detached", "attached", "detached", "not scorable", "detached", "detached"],
            "Detached first at step 10 (c10); the step before it is 0 (the base). It does not stay so: other verdicts "
            "at step 20 (attached), 40 (not scorable); detached from step 50 on.",
        ),
        (
            ["detached", "detached", "inconclusive"],
            "Detached first at step 10 (c10); the step before it is 0 (the base). It does not stay so: other verdicts "
            "at step 30 (inconclusive); not detached at the end.",
        ),
    ],
)
def test_first_and_lasting_detachment_are_said(verdicts, expected):
    points = [Checkpoint(f"c{10 * at}", 10 * at, verdict, {}) for at, verdict in enumerate([None, *verdicts])]
    assert detachment_said(points) == expected


def made(directory, settings):
    doses = {"ckpt-100": 1.0, "ckpt-9": 0.0, "ckpt-50": None}
    return write_run(directory, Made(doses, base=0.0, measures=ALWAYS, settings=settings))


def test_the_table_and_the_report_say_what_the_summary_says(tmp_path):
    run = made(tmp_path / "run", {"checkpoints": {"ckpt-100": 100, "ckpt-9": 9, "ckpt-50": 50}})
    table = checkpoint_table(run)
    assert list(table["checkpoint"]) == ["base", "ckpt-9", "ckpt-50", "ckpt-100"]
    assert list(table["step"]) == [0, 9, 50, 100]
    assert list(table["verdict"][1:]) == ["attached", "not scorable", "detached"]
    assert table["verdict"].isna().tolist() == [True, False, False, False]
    summary = run.summary
    rows = table.set_index("checkpoint")
    for name in ("ckpt-9", "ckpt-100"):
        own = summary["variants"][name]["own"]["whole"]["inside"]["bypass"]
        change = summary["variants"][name]["bypass"]["text"]["difference"]
        gain = summary["measures"]["information_gain"]["readers"][name]["gold"]["total"]
        right = summary["measures"]["accuracy_and_calibration"]["readers"][name][name]["written_right"]
        expected = {"bypass_inside": own, "change_text": change, "information_gain": gain, "accuracy_own": right}
        for quantity, numbers in expected.items():
            for key, column in {"estimate": quantity, "low": f"{quantity}_low", "n": f"{quantity}_n"}.items():
                assert rows.at[name, column] == numbers[key], (name, column)
    assert rows.loc["ckpt-50", ["bypass_text", "bypass_inside_low", "change_text"]].isna().all()
    assert (rows.at["ckpt-50", "bypass_text_n"], rows.at["base", "change_text_n"]) == (0, 0)

    section = trajectory(run)
    assert section.said.startswith("Detached first at step 100 (ckpt-100); the step before it is 50 (ckpt-50, not sc")
    shown = {row.head: [cell.main for cell in row.cells] for row in section.table.groups[0].rows}
    assert list(shown) == list(table["checkpoint"])
    assert shown["ckpt-50"][:6] == ["50", "not scorable", "24", "0.00", "not scorable", "not scorable"]
    assert shown["ckpt-100"][4] == f"{rows.at['ckpt-100', 'bypass_text']:.2f}"

    files = trajectory_files(run)
    assert list(files) == ["trajectory.csv", "trajectory.parquet"]
    (tmp_path / "t.csv").write_bytes(files["trajectory.csv"])
    (tmp_path / "t.parquet").write_bytes(files["trajectory.parquet"])
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "t.parquet"), table)
    read = pd.read_csv(tmp_path / "t.csv").astype({"verdict": "string"})
    pd.testing.assert_frame_equal(read, table, check_exact=True)


def test_another_study_has_neither_table_nor_section(tmp_path):
    run = made(tmp_path / "run", {})
    assert trajectory(run) is None
    assert trajectory_files(run) == {}
    assert run.checkpoints == {}


def adapter(base, directory):
    """A LoRA adapter that changes nothing, saved as a Trainer saves a checkpoint."""
    import peft
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=2)).save_pretrained(directory)
    (directory / "optimizer.pt").write_bytes(b"no weights")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """`(command line, directory)`: checkpoints whose truth is known, in an order that is not that of their names."""
    directory = tmp_path_factory.mktemp("trajectory")
    base = organisms.checkpoint("base")
    adapter(base, directory / "checkpoint-9")
    for step, name in {10: "dose_0.5", 100: "dose_1", 200: "collapsed"}.items():
        (directory / f"checkpoint-{step}").symlink_to(organisms.checkpoint(name))
    lines = organisms.prompts("agreeing").read_text().splitlines(keepends=True)
    (directory / "prompts.jsonl").write_text("".join(lines[:24]))
    command = ["trajectory", "--base", base, "--checkpoints", directory / "checkpoint-*"]
    return [*command, "--prompts", directory / "prompts.jsonl", "--verifier", "arithmetic:10"], directory


def call(monkeypatch, *arguments):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", ["fracture", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code


def test_a_trajectory_over_checkpoints_whose_truth_is_known(trained, monkeypatch, capsys):
    command, directory = trained
    out = directory / "run"
    assert not call(monkeypatch, *command, "--out", out)
    shown = capsys.readouterr().out
    run = Run.open(out)
    assert list(run.checkpoints.items()) == [(f"checkpoint-{step}", step) for step in (9, 10, 100, 200)]
    assert list(run.verdicts.values()) == ["attached", "detached", "detached", "not scorable"]
    table = pd.read_csv(out / "trajectory.csv").set_index("step")
    for step, dose in {0: 0, 9: 0, 10: 0.5, 100: 1}.items():
        assert table.at[step, "bypass_text"] == pytest.approx(dose, abs=0.1)
        assert table.at[step, "bypass_inside"] == pytest.approx(dose, abs=0.1)
    # The adapter changes nothing.
    assert table.at[9, "change_text"] == pytest.approx(0, abs=1e-6)
    assert table.at[9, "information_gain"] == pytest.approx(table.at[0, "information_gain"], abs=1e-4)
    assert table.loc[[0, 9, 10, 100], "accuracy"].min() > 0.9
    assert table.at[200, "accuracy"] < 0.5
    assert pd.isna(table.at[200, "bypass_text"])

    lines = shown.splitlines()
    assert max(map(len, lines[:12])) <= 80
    steps = ("0", "9", "10", "100", "200")
    assert [line.split()[:2] for line in lines if line.strip() and line.split()[0] in steps] == [
        *(["0", "base"], ["9", "attached"], ["10", "detached"], ["100", "detached"], ["200", "not"])
    ]
    said = " ".join(shown.split())
    assert "Detached first at step 10 (checkpoint-10); the step before it is 9 (checkpoint-9, attached)." in said
    assert "other verdicts at step 200 (not scorable); not detached at the end." in said
    assert "Detached first at step 10" in (out / "report.md").read_text()
    assert "Detached first at step 10" in (out / "report.html").read_text()

    # What is made anew is what the run had made; the same command, and the run's own file, find it complete.
    files = ("trajectory.csv", "trajectory.parquet", "report.html", "figures/trajectory.png")
    before = {name: (out / name).read_bytes() for name in files}
    for name in files:
        (out / name).unlink()
    assert not call(monkeypatch, "report", out)
    assert {name: (out / name).read_bytes() for name in files} == before
    (out / "figures" / "trajectory.png").unlink()
    assert not call(monkeypatch, "figures", out, "--format", "png", "--only", "trajectory")
    assert (out / "figures" / "trajectory.png").read_bytes() == before["figures/trajectory.png"]
    record = (out / "run.json").read_bytes()
    assert not call(monkeypatch, *command, "--out", out)
    assert not call(monkeypatch, "study", out / "study.yaml")
    assert not call(monkeypatch, "trajectory", out / "study.yaml")
    assert (out / "run.json").read_bytes() == record
    assert json.loads(record)["complete"]


def test_a_file_with_globs_is_explained_and_its_command_line_wins(trained, tmp_path, monkeypatch, capsys):
    _, directory = trained
    settings = {"base": str(organisms.checkpoint("base")), "prompts": str(directory / "prompts.jsonl")}
    settings |= {"checkpoints": [str(directory / "checkpoint-*")], "out": str(tmp_path / "run"), "max_prompts": 20}
    file = tmp_path / "trajectory.yaml"
    file.write_text(yaml.safe_dump(settings))
    assert not call(monkeypatch, "explain", file)
    assert "base and 4: checkpoint-9, checkpoint-10, checkpoint-100" in capsys.readouterr().out
    asked = []

    def run_study(config, *_):
        asked.append(config)
        raise InputError("asked")

    monkeypatch.setattr(study, "run_study", run_study)
    file.write_text(yaml.safe_dump(trajectory_config(settings).to_dict()))
    for more in ((), ("--checkpoints", directory / "checkpoint-100", "--checkpoints", directory / "checkpoint-?")):
        assert call(monkeypatch, "trajectory", file, "--seed", 3, "--measures", "filler", *more) == 2
    assert [list(config.variants) for config in asked] == [
        ["checkpoint-9", "checkpoint-10", "checkpoint-100", "checkpoint-200"],
        ["checkpoint-9", "checkpoint-100"],
    ]
    assert asked[1].checkpoints == {"checkpoint-9": 9, "checkpoint-100": 100}
    del settings["checkpoints"]
    file.write_text(yaml.safe_dump({**settings, "variants": {"sft": "path"}}))
    capsys.readouterr()
    assert call(monkeypatch, "trajectory", file, "--checkpoints", directory / "checkpoint-*") == 2
    assert "has variants beside checkpoints" in " ".join(capsys.readouterr().err.split())
    assert len(asked) == 2
    assert {(config.seed, config.max_prompts, config.measures) for config in asked} == {(3, 20, (*ALWAYS, "filler"))}


def test_a_glob_that_the_shell_has_replaced_is_said_to_be_one(trained, tmp_path, monkeypatch, capsys):
    command, directory = trained
    here = [directory / "checkpoint-9", directory / "checkpoint-10"]
    arguments = [*command[:4], here[0], here[1], *command[5:], "--out", tmp_path / "run"]
    assert call(monkeypatch, *arguments) == 2
    assert "a glob of checkpoints must be in quotes" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()
