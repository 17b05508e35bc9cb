"""What a user sees for each thing that cannot be used: one message, exit code 2, nothing on disk."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch

from fracture.cli import main as cli
from tests.conftest import WORD_FORMAT, WORDS, random_model, save_checkpoint, word_tokenizer

PROMPT = {
    "id": "p1",
    "question": "a 7 b 2",
    "steps": ["a 7 + 5 = 12", "b 2 * 3 = 6"],
    "answer": "12",
    "counterfactual": {"question": "a 3 b 9", "steps": ["a 3 + 5 = 8", "b 9 * 3 = 27"], "answer": "8"},
}


@pytest.fixture
def study(make_checkpoint, tmp_path, monkeypatch, capsys):
    """`study(**changes)`: runs the command with these options changed and returns `(exit code, message)`."""
    good = make_checkpoint("llama", "word")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps(PROMPT) + "\n")

    def run(**changes):
        options = {"base": good, "variant": f"copy={good}", "prompts": prompts, "out": tmp_path / "out", **changes}
        arguments = ["fracture", "study"]
        for name, value in options.items():
            if value is True:
                arguments.append(f"--{name}")
            elif value is not None:
                arguments += [f"--{name.replace('_', '-')}", str(value)]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        message = " ".join(captured.err.split())
        assert "Traceback" not in captured.err + captured.out
        assert not [path for path in tmp_path.iterdir() if "partial" in path.name]
        if "out" not in changes:
            assert not (tmp_path / "out").exists()
        return caught.value.code, message

    return run


def test_missing_model_directory(study, tmp_path):
    code, message = study(variant=f"sft={tmp_path / 'nothing'}")
    assert code == 2
    assert f"model sft: no directory {tmp_path / 'nothing'}" in message


def test_empty_model_directory(study, tmp_path):
    (tmp_path / "empty").mkdir()
    code, message = study(base=tmp_path / "empty")
    assert code == 2
    assert "is empty" in message
    assert "expected a Hugging Face checkpoint" in message


def test_pickle_only_checkpoint(study, tmp_path, make_checkpoint):
    directory = tmp_path / "pickled"
    shutil.copytree(make_checkpoint("llama", "word"), directory)
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(b"")
    code, message = study(variant=f"sft={directory}")
    assert code == 2
    assert "only pickled weights (pytorch_model.bin)" in message
    assert "safe_serialization" in message


def test_no_weights_and_no_tokenizer(study, tmp_path, make_checkpoint):
    for file, expected in (("model.safetensors", "no *.safetensors"), ("tokenizer.json", "no tokenizer.json")):
        directory = tmp_path / f"without-{file}"
        shutil.copytree(make_checkpoint("llama", "word"), directory)
        (directory / file).unlink()
        code, message = study(variant=f"sft={directory}")
        assert code == 2
        assert expected in message


def test_broken_weights_file(study, tmp_path, make_checkpoint):
    directory = tmp_path / "broken"
    shutil.copytree(make_checkpoint("llama", "word"), directory)
    whole = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    code, message = study(variant=f"sft={directory}")
    assert code == 2
    assert "cannot be loaded" in message


def test_weights_that_are_missing_from_the_checkpoint(study, tmp_path, make_checkpoint):
    from safetensors.torch import load_file, save_file

    directory = tmp_path / "incomplete"
    shutil.copytree(make_checkpoint("llama", "word"), directory)
    weights = load_file(directory / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    code, message = study(variant=f"sft={directory}")
    assert code == 2
    assert "model.layers.1.mlp.up_proj.weight" in message


def test_nan_weights(study, tmp_path):
    model = random_model("llama", len(WORDS))
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    directory = save_checkpoint(tmp_path / "nan", model, word_tokenizer(), WORD_FORMAT)
    code, message = study(variant=f"sft={directory}")
    assert code == 2
    assert "not finite" in message


def test_broken_prompt_line(study, tmp_path):
    path = tmp_path / "broken.jsonl"
    path.write_text(json.dumps(PROMPT) + '\n{"id": "p2", \n')
    code, message = study(prompts=path)
    assert code == 2
    assert "line 2: not valid JSON" in message


def test_missing_field_and_duplicate_id(study, tmp_path):
    path = tmp_path / "fields.jsonl"
    path.write_text(json.dumps({k: v for k, v in PROMPT.items() if k != "answer"}) + "\n")
    assert study(prompts=path) == (
        2,
        f"error: prompt file {path}, line 1: field 'answer' is missing; every prompt needs id, question, answer",
    )
    path.write_text(2 * (json.dumps(PROMPT) + "\n"))
    code, message = study(prompts=path)
    assert code == 2
    assert "id 'p1' was already used on line 1" in message


def test_tokenizers_that_split_the_text_differently(study, tmp_path):
    """The same vocabulary size, two words swapped: only the ids of a real text show it."""
    words = list(WORDS)
    i, j = words.index("7"), words.index("8")
    words[i], words[j] = words[j], words[i]
    directory = save_checkpoint(
        tmp_path / "swapped", random_model("llama", len(words)), word_tokenizer(tuple(words)), WORD_FORMAT
    )
    code, message = study(variant=f"sft={directory}")
    assert code == 2
    assert "base and sft split the text of prompt 'p1' differently: token 3 is '7' (id 11) in base" in message
    assert "'7' (id 12) in sft" in message


def test_tokenizer_with_more_ids_than_the_model(study, tmp_path):
    model = random_model("llama", 20)
    directory = save_checkpoint(tmp_path / "small", model, word_tokenizer(), WORD_FORMAT)
    code, message = study(variant=f"sft={directory}")
    assert code == 2
    assert "knows 20 ids" in message


def test_no_trace_format(study, tmp_path, make_checkpoint):
    directory = tmp_path / "formless"
    shutil.copytree(make_checkpoint("llama", "word"), directory)
    (directory / "trace_format.json").unlink()
    code, message = study(base=directory)
    assert code == 2
    assert "name one with --format (plain, gsm8k, think, chat, or a JSON file)" in message


def test_an_output_that_exists_is_kept(study, tmp_path):
    out = tmp_path / "taken"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    for overwrite in (None, True):
        code, message = study(out=out, overwrite=overwrite)
        assert code == 2
        assert (out / "notes.txt").read_text() == "mine"
    assert "not the run of a study" in message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"variant": "nameless"}, "expected NAME=MODEL"),
        ({"variant": "base=x"}, "variant name 'base'"),
        ({"variant": "a/b=x"}, "variant name 'a/b'"),
        ({"margin": "2"}, "margin 2.0: expected a number between 0 and 1"),
        ({"author": "me"}, "author 'me': unknown; known are gold, base"),
        ({"dtype": "int8"}, "dtype 'int8'"),
        (
            {"measures": "early_answer"},
            "measure 'early_answer': unknown; did you mean 'early_answering'? Known are routes,",
        ),
        ({"measures": "x,../y"}, "measure 'x': unknown; known are routes,"),
        ({"preset": "papers"}, "preset 'papers': unknown; did you mean 'paper'?"),
        ({"verifier": "arithmetik"}, "arithmetic:"),
        ({"max_prompts": "-1"}, "max_prompts -1: expected 0 or a positive number"),
        ({"sites": "resid"}, "site 'resid': unknown"),
        ({"prompts": None}, "setting 'prompts' is missing"),
        ({"variant": None}, "setting 'variants' is missing"),
        ({"device": "tpu9"}, "device 'tpu9'"),
        ({"format": "none.json"}, "neither a built-in format"),
        ({"prompts": "none.jsonl"}, "no such file"),
        ({"batch_tokens": "0"}, "batch_tokens 0"),
        ({"out": "/proc/x/y"}, "output /proc/x/y"),
    ],
)
def test_bad_options(study, changes, expected):
    code, message = study(**changes)
    assert code == 2
    assert expected in message


def test_only_a_run_and_nothing_else_is_overwritten(study, tmp_path):
    """A user's own summary.json does not make a run of the directory that it is in."""
    directory = tmp_path / "mine"
    directory.mkdir()
    (directory / "summary.json").write_text("{}")
    code, message = study(out=directory, overwrite=True)
    assert code == 2
    assert "is not the run of a study (it has no study.yaml)" in message
    (directory / "study.yaml").write_text("{}")
    (directory / "thesis.tex").write_text("x")
    code, message = study(out=directory, overwrite=True)
    assert code == 2
    assert "is not the run of a study (it holds 'thesis.tex')" in message
    assert (directory / "thesis.tex").read_text() == "x"


def test_a_study_file_is_held_to_the_same_rules_as_flags(study, tmp_path, make_checkpoint, monkeypatch, capsys):
    path = tmp_path / "study.yaml"
    model = str(make_checkpoint("llama", "word"))
    good = {"base": model, "variants": {"copy": model}, "prompts": str(tmp_path / "prompts.jsonl"), "out": "out"}
    for changed, expected in (
        ({"presett": "quick"}, f"study file {path}: unknown setting 'presett'; did you mean 'preset'? Known are base,"),
        ({"seed": "one"}, "setting 'seed' is 'one'; expected a whole number"),
        ({"seed": True}, "setting 'seed' is True; expected a whole number"),
        ({"measures": "routes"}, "setting 'measures' is 'routes'; expected a list of names"),
        ({"variants": [model]}, "expected names with models, such as `sft: path/to/model`"),
        ({"measures": ["rutes"]}, "measure 'rutes': unknown; did you mean 'routes'?"),
    ):
        path.write_text(json.dumps({**good, **changed}))
        monkeypatch.setattr(sys, "argv", ["fracture", "study", str(path)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert caught.value.code == 2
        assert expected in " ".join(capsys.readouterr().err.split())
    for text, expected in (("- a\n", "expected settings as `name: value`"), ("a: [", "not valid YAML")):
        path.write_text(text)
        with pytest.raises(SystemExit):
            cli.main()
        assert expected in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_a_run_of_another_study_or_of_other_prompts_is_kept(study, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    options = {"out": out, "measures": "routes"}
    assert study(**options)[0] == 0
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    code, message = study(**options, seed=5)
    assert code == 2
    assert "holds another study (seed 5, there 0); choose another --out, or give --overwrite" in message
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(prompts.read_text().replace("a 7 b 2", "a 7 b 3"))
    code, message = study(**options)
    assert code == 2
    assert "was begun with other inputs (prompts changed since)" in message
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before
    assert study(**options, seed=5, overwrite=True)[0] == 0


def test_figures_and_reports_need_a_finished_run_that_has_them(study, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    assert study(out=out, measures="routes")[0] == 0

    def fails(*arguments):
        monkeypatch.setattr(sys, "argv", ["fracture", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert caught.value.code == 2
        return " ".join(capsys.readouterr().err.split())

    assert "patch_map" in fails("figures", out, "--only", "patch_maps")
    assert "figure 'patchmaps'" in fails("figures", out, "--only", "patchmaps")
    assert "'gif'" in fails("figures", out, "--format", "gif")
    assert "holds no summary.json" in fails("report", tmp_path)
    summary = json.loads((out / "summary.json").read_text())
    summary["measures"]["../../secret"] = {}
    (out / "summary.json").write_text(json.dumps(summary))
    assert "names a measure '../../secret'; it was not written by a study" in fails("report", out)
    (out / "summary.json").write_text("[]")
    assert "summary.json is not a JSON object" in fails("figures", out)
