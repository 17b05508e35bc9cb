"""Run by test_study_resume.py in a process of its own: studies that are killed at random moments and taken up again.

Arguments: base, variant, prompt file, working directory, number of kills, seed. Prints one line of JSON. Each call of
the study is a fork, so that the libraries are imported once; with one thread, because a pool of threads does not
survive a fork. One run is killed several times before it is finished: each time so many stages are waited for, and
then a moment drawn within the next. Waiting for stages, and not by the clock, spreads the kills over the whole study on
any machine.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

from fracture.config import StudyConfig
from fracture.study import run_study

KILLS_A_RUN = 5
MEASURES = ("information_gain", "patch_map", "head_map", "repair", "token_kl", "readout", "probes", "drift")
"""Of each kind some: by one model, by two at once, by gradients, from stored activations."""
LONGEST_WAIT = 0.3
"""Seconds; most stages of so small a study take less."""


def forked(config: StudyConfig, kill: tuple[int, float] | None = None) -> bool:
    """Runs the study in a child, and kills it so many stages and then seconds on; whether it ended by itself."""
    child = os.fork()
    if not child:
        run_study(config)
        os._exit(0)
    if kill is not None:
        n_stages, seconds = kill
        due = None
        while due is None or time.monotonic() < due:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status) == 0
            if due is None and stages(Path(config.out)) >= n_stages:
                due = time.monotonic() + seconds
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def stages(directory: Path) -> int:
    record = directory / "run.json"
    return len(json.loads(record.read_text())["stages"]) if record.is_file() else 0


def main(base: str, variant: str, prompts: str, work: str, kills: str, seed: str) -> None:
    torch.set_num_threads(1)
    out = Path(work) / "run"
    config = StudyConfig(
        base, {"v": variant}, prompts, str(out), measures=MEASURES, verifier="arithmetic:10", patch_prompts=2
    )
    # In a fork too: PyTorch computes no gradients in a child of a process that has.
    assert forked(config)
    expected = contents(out)
    n_stages = stages(out)
    rng = random.Random(int(seed))
    left: list[int] = []
    runs, same = 0, 0
    while len(left) < int(kills):
        shutil.rmtree(out)
        for n_done in sorted(rng.sample(range(n_stages), KILLS_A_RUN)):
            if forked(config, (n_done, rng.uniform(0, LONGEST_WAIT))):
                break
            left.append(stages(out))
        assert forked(config)
        found = contents(out)
        runs += 1
        same += {**found, "run.json": b""} == {**expected, "run.json": b""}
    print(json.dumps({"kills": len(left), "runs": runs, "same": same, "stages": n_stages, "stages_left": left}))


if __name__ == "__main__":
    main(*sys.argv[1:])
