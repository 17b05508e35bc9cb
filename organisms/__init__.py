"""Organisms: model pairs whose fracture is known by construction, as ordinary Hugging Face directories.

Nothing here imports the suite, so that what an organism is can be measured without the code it is there to test.
"""

from __future__ import annotations

from pathlib import Path

SHIPPED = ("base", "sham", "dose_0", "dose_0.25", "dose_0.5", "dose_0.75", "dose_1", "collapsed")
_HERE = Path(__file__).resolve().parent


def checkpoint(name: str) -> Path:
    """The directory of a shipped organism."""
    return _HERE / "checkpoints" / name


def prompts(cues: str) -> Path:
    """The shipped prompt file whose cues are `agreeing`, `random` or `conflicting`."""
    return _HERE / "prompts" / f"{cues}.jsonl"
