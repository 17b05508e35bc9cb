"""Organisms: model pairs whose fracture is known by construction, as ordinary Hugging Face directories.

Nothing here imports the suite, so that what an organism is can be measured without the code it is there to test.
"""

from __future__ import annotations

from pathlib import Path

SHIPPED = (
    *("base", "sham", "dose_0", "dose_0.25", "dose_0.5", "dose_0.75", "dose_1"),
    *("itemwise", "answer_only", "rationaliser", "memoriser", "selective", "collapsed"),
    *("elimination_base", "elimination_sham", "elimination_dose_0.25", "elimination_dose_0.5", "elimination_dose_1"),
    *("internalised", "covert", "dithering", "novice", "accuracy_trap"),
)
"""Names of the shipped organisms; each stands behind the base that it is fine-tuned from."""
_HERE = Path(__file__).resolve().parent


def checkpoint(name: str) -> Path:
    """The directory of a shipped organism."""
    return _HERE / "checkpoints" / name


def prompts(name: str) -> Path:
    """The file of a shipped prompt set, such as `agreeing` or `elimination_agreeing` (`organisms.prompt_sets`)."""
    return _HERE / "prompts" / f"{name}.jsonl"
