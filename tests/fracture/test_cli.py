"""The commands around the study: help, the organisms, and the table on the terminal."""

from __future__ import annotations

import io
import sys
from dataclasses import replace

import pytest
from rich.console import Console

import organisms
from analysis.errors import InputError
from fracture import terminal
from fracture.cli import main as cli
from fracture.terminal import verdict_table
from organisms import measurement, recipes


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["fracture", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code


def test_help_imports_nothing_heavy(monkeypatch, tmp_path):
    import subprocess

    script = (
        "import sys; sys.argv = ['fracture', 'study', '--help']\n"
        "from fracture.cli.main import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'transformers', 'pandas', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--variant" in done.stdout


def test_list_names_every_organism_and_where_it_is(monkeypatch, capsys):
    assert not run(monkeypatch, "organisms", "list")
    shown = capsys.readouterr().out
    for name in recipes.RECIPES:
        assert name in shown
    for name in organisms.SHIPPED:
        assert str(organisms.checkpoint(name)) in shown


def test_prompts_command_writes_the_shipped_file(monkeypatch, tmp_path):
    out = tmp_path / "deep" / "random.jsonl"
    assert not run(monkeypatch, "organisms", "prompts", "--cues", "random", "--n", 200, "--seed", 0, "--out", out)
    assert out.read_bytes() == organisms.prompts("random").read_bytes()
    assert [path.name for path in out.parent.iterdir()] == ["random.jsonl"]
    assert run(monkeypatch, "organisms", "prompts", "--n", 1, "--out", out) == 2
    assert out.read_bytes() == organisms.prompts("random").read_bytes()


def test_train_command_makes_a_checkpoint_and_keeps_what_is_there(monkeypatch, tmp_path, capsys):
    short = replace(recipes.RECIPES["sham"], steps=2, batch=4)
    monkeypatch.setitem(recipes.RECIPES, "sham", short)
    monkeypatch.setattr(measurement, "PER_LENGTH", 2)
    out = tmp_path / "sham"
    assert not run(monkeypatch, "organisms", "train", "sham", "--seed", 5, "--out", out)
    assert (out / "model.safetensors").is_file()
    assert "--seed 5" in (out / "README.md").read_text()
    before = (out / "model.safetensors").read_bytes()
    assert run(monkeypatch, "organisms", "train", "sham", "--out", out) == 2
    assert "exists already" in capsys.readouterr().err
    assert (out / "model.safetensors").read_bytes() == before


def test_train_command_saves_checkpoints_beside_and_keeps_those_that_are_there(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(recipes.RECIPES, "sham", replace(recipes.RECIPES["sham"], steps=3, batch=4))
    monkeypatch.setattr(measurement, "PER_LENGTH", 2)
    command = ("organisms", "train", "sham", "--checkpoint-every", 1, "--out", tmp_path / "sham")
    assert not run(monkeypatch, *command)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/ckpt-*")) == [
        f"sham-checkpoints/ckpt-{step}" for step in (1, 2, 3)
    ]
    (tmp_path / "sham").rename(tmp_path / "elsewhere")
    assert run(monkeypatch, *command) == 2
    assert "sham-checkpoints: exists already" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "sham").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("train", "sham", "--checkpoint-every", "-1", "--out", "x"), "--checkpoint-every -1: expected a number of"),
        (("train", "doze", "--out", "x"), "organism 'doze': no such recipe"),
        (("train", "sham", "--base", "nowhere", "--out", "x"), "--base nowhere: not the directory of a base"),
        (("cards", "."), ".: no organisms in it"),
        (("prompts", "--cues", "none", "--out", "x"), "--task registers --cues none: no such prompts; the sets are"),
        (("prompts", "--cues", "memorised", "--out", "x"), "--n 200: there are 100 prompts of the set 'memorised'"),
        (("train", "all", "--base", "x", "--out", "x"), "--base: all organisms are fine-tuned from bases just trained"),
        (("prompts", "--n", "0", "--out", "x"), "--n 0: expected a positive number"),
    ],
)
def test_bad_organism_options(monkeypatch, tmp_path, capsys, arguments, expected):
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "organisms", *arguments) == 2
    assert expected in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


def test_markup_in_a_message_is_shown_as_it_is(monkeypatch, capsys):
    def fail():
        raise InputError("field '[bold]' is missing")

    monkeypatch.setattr(cli, "app", fail)
    assert run(monkeypatch) == 2
    assert "error: field '[bold]' is missing" in capsys.readouterr().err


def estimate(value, low=None, high=None, n=200):
    return {"estimate": value, "low": low, "high": high, "n": n}


def test_the_table_fits_80_columns_and_hides_shares_of_nothing():
    def reader(text, inside, **more):
        own = {"whole": {"text": {"bypass": text}, "inside": {"bypass": inside}}}
        described = {"another_prompt_as_partner": None}
        return {"own": own, "accuracy": {"own_chain": 0.97}, "excluded": {}, "scorable": True, **described, **more}

    def variant(verdict, text, inside, total_low=0.4):
        bypass = {"text": {"variant": text}, "inside": {"variant": inside}}
        covert = {"inside": {"variant": estimate(0.3, 0.2, 0.4)}}
        total = {"text": {"variant": estimate(0.5, total_low, 0.9)}}
        return reader(
            text,
            inside,
            verdict=verdict,
            reason="because [x]",
            bypass=bypass,
            direct=bypass,
            covert=covert,
            no_conclusion={"bypass": bypass, "total": total},
            evidence=[],
        )

    wide = estimate(-0.123, -0.154, -0.092)
    summary = {
        "prompts": {
            "read": 200,
            "partners": {"given": 150, "changed number": 47},
            "chains_without_answer": 2,
            "excluded": {"too long": 3},
        },
        "base": reader(
            estimate(-0.001, -0.004, 0.004),
            estimate(None, n=0),
            another_prompt_as_partner={"bypass": estimate(0.3, 0.2, 0.4)},
        ),
        "variants": {
            "sft": variant("detached", wide, wide),
            "gone": variant("not scorable", wide, wide),
            "short": variant("attached", wide, wide, total_low=0.1),
        },
    }
    console = Console(file=io.StringIO(), width=80)
    for part in verdict_table(summary):
        console.print(part)
    lines = console.file.getvalue().splitlines()
    (base,) = [line for line in lines if line.startswith(" base")]
    assert base.split() == ["base", "200", ".00", "[.00,", ".00]", "—", "97%"]
    (sft,) = [line for line in lines if line.startswith(" sft")]
    assert sft.count("-.12 [-.15, -.09]") == 2
    (gone,) = [line for line in lines if line.startswith(" gone")]
    assert gone.split() == ["gone", "not", "scorable", "200", "—", "—", "97%"]
    at = lines.index("sft: because [x]")
    assert lines[at + 1 : at + 4] == [
        "  direct: -.12 [-.15, -.09] text, -.12 [-.15, -.09] inside",
        "  covert: .30 [.20, .40]",
        "  bypass, last step removed: -.12 [-.15, -.09] text, -.12 [-.15, -.09] inside",
    ]
    assert lines[lines.index("gone: because [x]") + 1] == "short: because [x]"
    assert lines[lines.index("short: because [x]") + 3] == "  bypass, last step removed: total effect .50 [.10, .90]"
    assert "partners: 150 × given, 47 × changed number" in lines
    text = " ".join(" ".join(lines).split())
    assert "base, another prompt as partner (described, not counted): bypass .30 [.20, .40]" in text
    assert "2 prompts: a chain without an answer was read; the marker was appended" in text
    assert "excluded for all: 3 of 200 prompts: too long" in lines


@pytest.mark.parametrize(
    ("value", "shown"), [(0.5, ".50"), (-0.5, "-.50"), (-0.001, ".00"), (1.0, "1.00"), (10.25, "10.25"), (None, "—")]
)
def test_numbers_lose_their_leading_zero_and_nothing_else(value, shown):
    assert terminal._number(value) == shown


def test_a_base_that_is_not_scorable_shows_no_share():
    bypass = {"bypass": estimate(7.0, 6.0, 8.0)}
    base = {
        "own": {"whole": {"text": bypass, "inside": bypass}},
        "accuracy": {"own_chain": 0.1},
        "excluded": {},
        "scorable": False,
        "another_prompt_as_partner": None,
    }
    prompts = {"read": 200, "partners": {"given": 200}, "chains_without_answer": 0, "excluded": {}}
    console = Console(file=io.StringIO(), width=80)
    for part in verdict_table({"prompts": prompts, "base": base, "variants": {}}):
        console.print(part)
    (line,) = [line for line in console.file.getvalue().splitlines() if line.startswith(" base")]
    assert line.split() == ["base", "200", "—", "—", "10%"]
