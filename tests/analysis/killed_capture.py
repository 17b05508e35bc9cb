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


def forked(reader: Reader, to_run: list[Text], out: Path, kill_after: float | None = None) -> bool:
    """Captures in a child, which is killed after so many seconds; whether it ended by itself."""
    child = os.fork()
    if not child:
        # 30 shards of about 2 rows a hook: many files, so that kills fall between and within their writing.
        capture(reader, to_run, out, site_names=["resid_post", "z"], batch_tokens=150, shard_bytes=8000)
        os._exit(0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def main(model: str, work: str, kills: str, seed: str) -> None:
    torch.set_num_threads(1)
    reader = ModelPair.load(model, {"copy": model}).open("copy")
    to_run = texts(reader)
    root = Path(work)
    started = time.perf_counter()
    assert forked(reader, to_run, root / "undisturbed")
    duration = time.perf_counter() - started
    expected = contents(root / "undisturbed")
    rng = random.Random(int(seed))
    moments, left, same = [], [], 0
    while len(moments) < int(kills):
        out = root / "killed"
        moment = rng.uniform(0, duration)
        if forked(reader, to_run, out, moment):
            shutil.rmtree(out)
            continue  # it was done before it could be killed
        moments.append(moment)
        left.append(len(list(out.glob("shard-*"))) if out.exists() else 0)
        assert forked(reader, to_run, out)
        same += contents(out) == expected and sorted(path.name for path in root.iterdir()) == ["killed", "undisturbed"]
        shutil.rmtree(out)
    print(json.dumps({"kills": len(moments), "same": same, "shards": len(expected) - 3, "shards_left": left}))


if __name__ == "__main__":
    main(*sys.argv[1:])
