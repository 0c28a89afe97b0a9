"""Files that llamatel appends to: readable only by their owner, reopened after rotation, losses counted.

``--jsonl`` and ``--server-log`` contain clients' requests. SIGHUP reopens each file, as logrotate expects; while
the disk is full, lines are lost.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import stat
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import IO
from weakref import WeakSet

_log = logging.getLogger(__name__)

_MODE = 0o600
_LONGEST_TORN = 1 << 20
_MOST_ZEROS = 1 << 30
_files: WeakSet[AppendedFile] = WeakSet()
_lost: Counter[str] = Counter()
_lost_lock = threading.Lock()


class AppendedFile:
    """Whole lines appended to a file. Used by one thread at a time; ``reopen`` may be called from any."""

    def __init__(self, path: str | os.PathLike[str], *, torn_start: bytes | None = None) -> None:
        """Raises OSError where it cannot be opened.

        ``torn_start``: an unfinished last line with this start was cut by a crash and is removed, as are zeros after
        it; other lines get an end.
        """
        self._path = Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises for a user that is not there
        self.descriptor = self._open()
        self._reopen = False
        self._closed = False
        self._repair(torn_start)
        _files.add(self)

    def write(self, lines: bytes) -> None:
        """Append whole lines. Raises OSError; partly written lines are then removed if possible."""
        if self._reopen:
            self._open_again()
        rest = memoryview(lines)
        try:
            while rest:
                rest = rest[os.write(self.descriptor, rest) :]
        except OSError:
            self._remove_partial(len(lines) - len(rest))
            raise

    def reopen(self) -> None:
        """Open the path again before the next write: the file was moved away."""
        self._reopen = True

    def close(self) -> None:
        """May be called twice."""
        if not self._closed:
            self._closed = True
            os.close(self.descriptor)

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY, _MODE)

    def _open_again(self) -> None:
        self._reopen = False
        if not stat.S_ISREG(os.fstat(self.descriptor).st_mode):
            return  # a FIFO without a reader would block
        try:
            descriptor = self._open()
        except OSError as error:
            _log.warning("cannot reopen %s: %s; writing goes on in the file that was moved", self._path, error.strerror)
            return
        os.close(self.descriptor)
        self.descriptor = descriptor

    def _remove_partial(self, written: int) -> None:
        """Remove a partly written line, unless another process writes to the file, too."""
        if written:
            with contextlib.suppress(OSError):
                end = os.lseek(self.descriptor, 0, os.SEEK_CUR)
                if end == os.fstat(self.descriptor).st_size:
                    os.ftruncate(self.descriptor, end - written)

    def _repair(self, torn_start: bytes | None) -> None:
        if not stat.S_ISREG(os.fstat(self.descriptor).st_mode):
            return
        with contextlib.suppress(OSError), self._path.open("rb") as stream:  # we may lack read permission
            size = end = stream.seek(0, os.SEEK_END)
            if torn_start is not None:
                end = _without_zeros(stream, size)
            stream.seek(max(0, end - _LONGEST_TORN))
            tail = stream.read(min(end, _LONGEST_TORN))
            torn = tail.rpartition(b"\n")[2]
            ours = torn_start is not None and (torn.startswith(torn_start) or torn_start.startswith(torn))
            if ours and not _is_document(torn) and (len(torn) < len(tail) or len(tail) == end):
                end -= len(torn)
                torn = b""
            if end < size:
                os.ftruncate(self.descriptor, end)
                _log.warning("%s: its last %d bytes were cut by a crash and are removed", self._path, size - end)
            if torn:
                os.write(self.descriptor, b"\n")


def _without_zeros(stream: IO[bytes], size: int) -> int:
    """The end of a file without the zeros that a power loss leaves in blocks that were not written."""
    end = size
    while size - _MOST_ZEROS < end > 0:
        start = max(0, end - _LONGEST_TORN)
        stream.seek(start)
        data = stream.read(end - start).rstrip(b"\0")
        end = start + len(data)
        if data:
            break
    return end


def _is_document(line: bytes) -> bool:
    """Whether only the line's end is missing."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def reopen_files() -> None:
    """Reopen every file."""
    for file in list(_files):
        file.reopen()


def count_lost(reason: str, lines: int = 1) -> None:
    """Count lines that could not be written."""
    with _lost_lock:
        _lost[reason] += lines


def lost() -> Mapping[str, int]:
    """Lines that could not be written, by reason."""
    with _lost_lock:
        return dict(_lost)
