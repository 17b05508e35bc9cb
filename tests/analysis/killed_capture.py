"""Run by test_capture.py in a process of its own: captures that are killed at random moments and taken up again.

Arguments: model directory, working directory, number of kills, seed. Prints one line of JSON. Each capture is a fork,
so that the libraries are imported once; with one thread, because a pool of threads does not survive a fork.
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

from analysis.capture import Text, capture
from analysis.models import ModelPair, Reader


def texts(reader: Reader) -> list[Text]:
    rng = random.Random(0)
    found = []
    for number in range(60):
        steps = [f"a {rng.randrange(9)} + {rng.randrange(9)} = {rng.randrange(19)}" for _ in range(rng.randint(1, 12))]
        found.append(Text(f"p{number}", "gold", reader.encoder.encode("a 7 b 2", steps, "4")))
    return found


def forked(reader: Reader, to_run: list[Text], out: Path, moment: tuple[int, float] | None = None) -> bool:
    """Captures in a child; whether it ended by itself.

    At a `moment` it is killed: when so many shards are there, and so many seconds after. (A moment of the clock alone
    would fall before the first or after the last of them, on a machine that is slower or faster than a minute ago.)
    """
    child = os.fork()
    if not child:
        # About 30 shards of a few rows: many files, so that kills fall between and within their writing.
        capture(reader, to_run, out, site_names=["resid_post", "z"], batch_tokens=150, shard_bytes=8000)
        os._exit(0)
    if moment is not None:
        n_shards, delay = moment
        while len(list(out.glob("shard-*"))) < n_shards:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status) == 0
            time.sleep(0.0005)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def main(model: str, work: str, kills: str, seed: str) -> None:
    torch.set_num_threads(1)
    reader = ModelPair.load(model, {"copy": model}).open("copy")
    to_run = texts(reader)
    root = Path(work)
    assert forked(reader, to_run, root / "undisturbed")
    expected = contents(root / "undisturbed")
    n_shards = len(expected) - 3
    rng = random.Random(int(seed))
    left, same = [], 0
    while len(left) < int(kills):
        out = root / "killed"
        if forked(reader, to_run, out, (rng.randrange(n_shards), rng.uniform(0, 0.02))):
            shutil.rmtree(out)
            continue  # it was done before it could be killed
        left.append(len(list(out.glob("shard-*"))) if out.exists() else 0)
        assert forked(reader, to_run, out)
        same += contents(out) == expected and sorted(path.name for path in root.iterdir()) == ["killed", "undisturbed"]
        shutil.rmtree(out)
    print(json.dumps({"kills": len(left), "same": same, "shards": n_shards, "shards_left": left}))


if __name__ == "__main__":
    main(*sys.argv[1:])
