"""The directory of a run while it is made: what is done is known, so that a run which was stopped goes on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from analysis.errors import InputError
from analysis.files import locked, sync_directory, write_whole
from analysis.runs import FILES, FOLDERS, PROVENANCE, STUDY, WORK
from analysis.store import sha256
from fracture.config import StudyConfig, read_settings

CHAINS_STAGE, TRACES_STAGE = "chains: ", "traces"
"""The stages before anything is measured."""


class NoRoomError(InputError):
    """A file of the run cannot be written; what there is can be gone on with."""


class RunDirectory:
    """A run directory under construction.

    A *stage* makes files. Its name and their digests are put into `run.json` when they are all there; a stage whose
    files are as recorded is not made again.
    """

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        self.path = path
        self._record = record

    @property
    def complete(self) -> bool:
        """Whether nothing is left to be done."""
        return bool(self._record.get("complete"))

    @property
    def measured(self) -> bool:
        """Whether anything has been measured: then the run is worth keeping, whatever comes."""
        return any(name != TRACES_STAGE and not name.startswith(CHAINS_STAGE) for name in self._record["stages"])

    def stage(self, name: str, make: Callable[[], Mapping[str, bytes]]) -> None:
        """Makes the files of a stage (path in the run → bytes), unless they are there."""
        if self.done(name):
            return
        started = time.time()
        files = dict(make())
        for path, data in files.items():
            (self.path / path).parent.mkdir(parents=True, exist_ok=True)
            self._written(path, data)
        digests = {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}
        self._record["stages"][name] = {"files": digests, "seconds": round(time.time() - started, 2)}
        self._save()

    def done(self, name: str) -> bool:
        """Whether a stage's files are there as they were made."""
        stage = self._record["stages"].get(name)
        return stage is not None and all(
            (self.path / path).is_file() and sha256(self.path / path) == digest
            for path, digest in stage["files"].items()
        )

    def finish(self) -> None:
        """Records that the run is complete, and drops what was only needed to make it."""
        if not self.complete:
            self._record["complete"] = True
            stages = self._record["stages"].items()
            self._record["stages"] = {name: {"seconds": stage["seconds"]} for name, stage in stages}
            self._save()
        shutil.rmtree(self.path / WORK, ignore_errors=True)

    def _written(self, path: str, data: bytes) -> None:
        try:
            write_whole(self.path / path, data)
        except OSError as error:
            raise NoRoomError(
                f"run {self.path}: {path} cannot be written ({error.strerror}); make room and run the same command "
                "again, and it goes on"
            ) from None

    def _save(self) -> None:
        self._written(PROVENANCE, (json.dumps(self._record, indent=2) + "\n").encode())


@contextmanager
def opened(config: StudyConfig, inputs: Mapping[str, Any], overwrite: bool) -> Iterator[RunDirectory]:
    """The run directory of this study, new or with what an earlier run of it left; no other process may write it.

    Args:
        config: the study.
        inputs: what must be the same for a run to be gone on with: digests of models and prompts, versions.
        overwrite: replace another study's run that is there.

    Raises:
        InputError: if the place is taken by something else, or by a run of another study or of other inputs.
    """
    out = Path(os.path.abspath(config.out))  # noqa: PTH100 (a link stays a link)
    taken = check_output(config, overwrite)
    new = not taken or overwrite or not (out / PROVENANCE).is_file()
    try:
        if taken and overwrite:
            _emptied(out)
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output {out}: cannot be written ({error.strerror}); choose another --out") from None
    with locked(out, "run"):
        record = {"inputs": dict(inputs), "stages": {}, "complete": False} if new else _read(out, inputs)
        run = RunDirectory(out, record)
        if new:
            run._written(STUDY, _yaml(config))
            run._save()
        try:
            yield run
        except InputError as error:
            # What the user gave cannot be used, and nothing was measured: nothing is left.
            if new and not run.measured and not isinstance(error, NoRoomError):
                _emptied(out)
                out.rmdir()
            raise


def check_output(config: StudyConfig, overwrite: bool) -> bool:
    """Whether there is a run at the study's place already, which may be gone on with or replaced.

    Raises:
        InputError: if something else is there, or the run of another study.
    """
    out = Path(os.path.abspath(config.out))  # noqa: PTH100 (a link stays a link)
    if not out.exists():
        return False
    foreign = _foreign(out)
    if foreign:
        raise InputError(f"output {out}: is not the run of a study ({foreign}); choose another --out")
    if overwrite or not (out / STUDY).is_file():
        return (out / STUDY).is_file()
    there = StudyConfig.from_mapping({**read_settings(out / STUDY), "out": config.out}, f"run {out}, {STUDY}")
    ours, theirs = config.deciding(), there.deciding()
    differing = [
        f"{name} {ours.get(name)!r}, there {theirs.get(name)!r}"
        # Only a trajectory has checkpoints.
        for name in dict.fromkeys((*ours, *theirs))
        if ours.get(name) != theirs.get(name)
    ]
    if differing:
        raise InputError(
            f"output {out}: holds another study ({'; '.join(differing)}); choose another --out, or give --overwrite to "
            "replace it"
        )
    return True


def _read(out: Path, inputs: Mapping[str, Any]) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads((out / PROVENANCE).read_text(encoding="utf-8"))
        begun_with = record["inputs"]
        _ = record["stages"], record["complete"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"run {out}: {PROVENANCE} is damaged; give --overwrite to begin again") from None
    differing = sorted(name for name in {*begun_with, *inputs} if begun_with.get(name) != inputs.get(name))
    if differing:
        raise InputError(
            f"run {out}: was begun with other inputs ({', '.join(differing)} changed since); choose another --out, or "
            "give --overwrite to begin again"
        )
    return record


def _yaml(config: StudyConfig) -> bytes:
    import yaml

    text: str = yaml.safe_dump(
        {**config.to_dict(), "digest": config.digest()}, sort_keys=False, allow_unicode=True, width=120
    )
    return text.encode()


def _foreign(out: Path) -> str | None:
    """Why a directory is not a run and nothing else; None if it is one, or empty."""
    if not out.is_dir():
        return "it is a file"
    names = {path.name for path in out.iterdir()}
    # A file that a killed run was writing.
    names -= {name for name in names if name.startswith(".") and name.endswith(".partial")}
    if odd := names - {*FILES, *FOLDERS}:
        return f"it holds {min(odd)!r}"
    if names and STUDY not in names:
        return f"it has no {STUDY}"
    return None


def _emptied(out: Path) -> None:
    for path in out.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    sync_directory(out)
