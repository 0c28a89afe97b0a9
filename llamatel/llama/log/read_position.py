"""Saves the read position of a log file over restarts (``--log-state FILE``).

A file is recognised by its first bytes, wherever rotation has moved it. The position is that of the end of the last
line whose requests were recorded.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from llamatel.errors import UsageError
from llamatel.inputs.text_file import user_path
from llamatel.outputs.log_once import LogOnce

_log = logging.getLogger(__name__)

HEAD_BYTES = 1024
_LARGEST = 1 << 16
_EACH_S = 1.0
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """A file's first bytes: how many, and their hash."""

    length: int
    digest: str

    @classmethod
    def of_bytes(cls, data: bytes) -> Fingerprint:
        """Of these."""
        return cls(len(data), hashlib.sha256(data).hexdigest())

    def matches(self, descriptor: int) -> bool:
        """Whether this file starts the same way."""
        return self.length > 0 and Fingerprint.of_bytes(os.pread(descriptor, self.length, 0)) == self


@dataclass(frozen=True, slots=True)
class Position:
    """Where reading continues."""

    head: Fingerprint
    offset: int


class PositionFile:
    """The file that keeps a position."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises UsageError where no file can be written there."""
        self._path = user_path(path)
        self._saved_at = 0.0
        self._saved: tuple[Position, bool] | None = None
        self._once = LogOnce(_log)
        special = os.path.exists(self._path) and not os.path.isfile(self._path)  # noqa: PTH110, PTH113 - no OSError
        if special or not os.access(self._path.parent, os.W_OK):
            raise UsageError(f"cannot write {self._path}: it must be a file in a folder that can be written to")

    def load(self) -> Position | None:
        """The position saved last; None where there is none, or it is invalid."""
        try:
            with self._path.open("rb") as stream:
                document = json.loads(stream.read(_LARGEST))
            head = Fingerprint(int(document["head_length"]), str(document["head_sha256"]))
            position = Position(head, int(document["offset"]))
            if document.get("ended") is False:
                _log.warning("llamatel was killed when it had read this log (%s): spans may be missing", self._path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            _log.warning("the read position in %s cannot be used: %s", self._path, error)
            return None
        return position if position.offset >= 0 and 0 < position.head.length <= HEAD_BYTES else None

    def save(self, position: Position, *, ended: bool = False) -> None:
        """Save it, at most once a second; a failure is logged once. ``ended``: nothing is read after it."""
        moment = time.monotonic()
        if (position, ended) == self._saved or (not ended and moment - self._saved_at < _EACH_S):
            return
        self._saved_at = moment
        document = {
            "version": _VERSION,
            "head_length": position.head.length,
            "head_sha256": position.head.digest,
            "offset": position.offset,
            "ended": ended,
        }
        try:
            self._write(json.dumps(document))
        except OSError as error:
            self._once.warning("save", "cannot save the read position in %s: %s", self._path, error.strerror)
        else:
            self._saved = position, ended
            if self._once.reset("save"):
                _log.info("the read position is saved in %s again", self._path)

    def _write(self, text: str) -> None:
        """Replace the file atomically: a crash leaves the old or the new one."""
        descriptor, name = tempfile.mkstemp(prefix=f".{self._path.name}.", dir=self._path.parent)
        try:
            with os.fdopen(descriptor, "w") as stream:
                stream.write(text)
            Path(name).replace(self._path)
        except OSError:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise
