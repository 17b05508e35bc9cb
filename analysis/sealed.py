"""Directories of a few files with a card beside them: whole as they were written, or refused.

`card.json` says what the files are, to be read by people, and holds a digest over them and all else that it says.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.errors import InputError, reason
from analysis.files import write_whole

CARD = "card.json"
DIGEST = "sha256"


@dataclass(frozen=True)
class Sealed:
    """A kind of such directories.

    Attributes:
        what: how messages call one.
        version: of its card, which holds it.
        files: names, in the order in which the digest takes them and in which they are written; the card comes last.
        give: what to do about a directory that cannot be read.
        again: what to do about one that is damaged.
        alone: whether nothing else may be in it when it is first written.
    """

    what: str
    version: int
    files: tuple[str, ...]
    give: str
    again: str
    alone: bool = False

    def write(self, directory: Path, card: Mapping[str, Any], data: Sequence[bytes]) -> None:
        """Writes the files and the card, over earlier ones if there are some.

        Args:
            directory: is made if it is not there.
            card: what JSON can hold, without the version and the digest.
            data: of each file.

        Raises:
            InputError: if something else is there, the card holds what JSON cannot, or the disk is full.
        """
        try:
            # As it will be read again, so that the digest is of that: JSON knows no tuples and no numbers as keys.
            content = json.loads(json.dumps({"version": self.version, **card}, allow_nan=False))
            content[DIGEST] = _digest(content, data)
            text = (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
        except (TypeError, ValueError) as error:
            raise InputError(f"{self.what} {directory}: the card cannot be written as JSON ({reason(error)})") from None
        try:
            directory.mkdir(parents=True, exist_ok=True)
            known = {name for file in (CARD, *self.files) for name in (file, f".{file}.partial")}
            others = sorted({path.name for path in directory.iterdir()} - known)
            if self.alone and others and not (directory / CARD).is_file():
                raise InputError(
                    f"{self.what} {directory}: the directory holds something else ({others[0]}); give another directory"
                )
            # The card is what says that the files are whole and belong together.
            for name, content_of in zip((*self.files, CARD), (*data, text), strict=True):
                write_whole(directory / name, content_of)
        except OSError as error:
            advice = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "give another directory"
            raise InputError(f"{self.what} {directory}: cannot be written ({error.strerror}); {advice}") from None

    def read(self, directory: Path) -> tuple[dict[str, Any], tuple[bytes, ...]]:
        """The card, without its digest, and the files, in their order.

        Raises:
            InputError: if they are not there, or are not what was written.
        """
        try:
            text, *data = ((directory / name).read_bytes() for name in (CARD, *self.files))
        except OSError as error:
            raise InputError(
                f"{self.what} {directory}: {Path(error.filename).name} cannot be read ({error.strerror}); {self.give}"
            ) from None
        try:
            card = dict(json.loads(text))
            version, digest = card["version"], card.pop(DIGEST)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise self.damaged(directory, error) from None
        if version != self.version:
            raise InputError(f"{self.what} {directory}: {CARD} is of version {version!r}, expected {self.version}")
        if digest != _digest(card, data):
            raise InputError(
                f"{self.what} {directory}: is not what was written (its digest in {CARD} differs: damaged or edited); "
                f"{self.again}"
            )
        return card, tuple(data)

    def damaged(self, directory: Path, error: Exception) -> InputError:
        """What to raise about a card that does not hold what it should."""
        return InputError(f"{self.what} {directory}: {CARD} is damaged ({error!r}); {self.again}")


def _digest(card: Mapping[str, Any], data: Sequence[bytes]) -> str:
    """SHA-256 over the files and what the card says."""
    sha = hashlib.sha256()
    for part in data:
        sha.update(part)
    sha.update(json.dumps(card, sort_keys=True).encode())
    return sha.hexdigest()
