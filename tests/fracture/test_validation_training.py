"""Organisms trained several at once: the same weights, bases first, and no process that outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from analysis.errors import InputError
from fracture.progress import Progress
from fracture.validation import training as validation_training
from fracture.validation.plan import Training
from fracture.validation.training import train_all
from fracture.validation.units import Units
from organisms import measurement
from organisms.recipes import find
from organisms.training import train

PATIENCE = 240.0
CHAIN = (("base", 1, None), ("dose_0.5", 1, "base"), ("dose_1", 1, "base"), ("novice", 1, None))
"""Name, seed, and base of what is trained."""


def short(name: str):
    """A recipe that is trained in no time."""
    return replace(find(name), steps=2, batch=4)


def train_short(name: str, seed: int, out: Path, base: Path | None) -> None:
    """In the place of `train_alone`: as it does, but for the recipe's length."""
    measurement.PER_LENGTH, measurement.MAX_WRITTEN = 4, 4
    validation_training.find = short
    validation_training.train_alone(name, seed, out, base)


def fail(name: str, seed: int, out: Path, base: Path | None) -> None:
    """Fails at the first of those fine-tuned."""
    if base is not None:
        raise RuntimeError(f"no {name}")
    out.mkdir(parents=True)


def die(name: str, seed: int, out: Path, base: Path | None) -> None:
    """Is killed, as by a machine that is out of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def wait(name: str, seed: int, out: Path, base: Path | None) -> None:
    """Says which process it is in, and does not end by itself."""
    (out / "pid").write_text(str(os.getpid()))
    time.sleep(10 * PATIENCE)


def trainings(out: Path, recipe=find) -> list[Training]:
    return [Training(recipe(name), seed, out / name, out / base if base else None) for name, seed, base in CHAIN]


def trained(out: Path, jobs: int) -> list[str]:
    """Trains all; returns what was said."""
    said: list[str] = []
    wanted = trainings(out, short)
    train_all(wanted, jobs, Units([("trainings", 1)] * len(wanted), said.append), Progress())
    return said


def test_several_at_once_give_what_one_after_another_gives(tmp_path, monkeypatch):
    monkeypatch.setattr(measurement, "PER_LENGTH", 4)
    monkeypatch.setattr(measurement, "MAX_WRITTEN", 4)
    monkeypatch.setattr(validation_training, "train_alone", train_short)
    one, two = (trained(tmp_path / str(jobs), jobs) for jobs in (1, 2))
    files = [path.relative_to(tmp_path / "1") for path in sorted((tmp_path / "1").rglob("*")) if path.is_file()]
    assert sum(path.name == "model.safetensors" for path in files) == len(CHAIN)
    assert sorted(p.relative_to(tmp_path / "2") for p in (tmp_path / "2").rglob("*") if p.is_file()) == files
    for path in files:
        assert (tmp_path / "1" / path).read_bytes() == (tmp_path / "2" / path).read_bytes(), path
    assert [line.split("] ")[0] for line in two] == [f"[{at} of {len(CHAIN)}" for at in range(1, len(CHAIN) + 1)]
    assert one[1].startswith("[2 of 4] training dose_0.5, seed 1")
    assert two[0] == "[1 of 4] training, 2 at once"
    assert any("dose_1, seed 1 is done" in line or "dose_0.5, seed 1 is done" in line for line in two)


@pytest.mark.parametrize("name", ["base", "elimination_base"])
def test_one_thread_gives_the_weights_of_two(name):
    # The real size: a product so small that it is not split among threads would show nothing.
    recipe = replace(find(name), steps=3)
    one, two = (train(recipe, 0, threads=threads).state_dict() for threads in (1, 2))
    assert all(torch.equal(tensor, two[key]) for key, tensor in one.items())


def test_a_training_that_fails_ends_the_others_and_is_raised(tmp_path, monkeypatch):
    monkeypatch.setattr(validation_training, "train_alone", fail)
    with pytest.raises(RuntimeError, match=r"no dose_(0.5|1)"):
        trained(tmp_path, 2)
    assert {path.name for path in tmp_path.iterdir()} <= {"base", "novice"}


def test_a_process_that_is_killed_is_named_and_not_a_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr(validation_training, "train_alone", die)
    with pytest.raises(InputError, match=r"--jobs 2: a process was killed .* with fewer jobs"):
        trained(tmp_path, 2)


def test_no_training_outlives_a_parent_that_is_killed(tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from tests.fracture import test_validation_training as test\n"
        "test.validation_training.train_alone = test.wait\n"
        "if __name__ == '__main__': test.trained(Path(sys.argv[1]), 2)\n"
    )
    (tmp_path / "main.py").write_text(code)
    for name, _, _ in CHAIN:
        (tmp_path / name).mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    parent = subprocess.Popen([sys.executable, tmp_path / "main.py", tmp_path], env=environment)
    try:
        pids = [tmp_path / name / "pid" for name, _, base in CHAIN if base is None]
        _until(lambda: all(path.is_file() and path.read_text() for path in pids))
        children = [int(path.read_text()) for path in pids]
        assert all(map(_is_alive, children))
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        _until(lambda: not any(map(_is_alive, children)))
    finally:
        parent.kill()


def _until(holds) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
