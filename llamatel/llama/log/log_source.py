"""Lines of a log that somebody else writes: a file that grows, or standard input.

A source first gives its backlog, what was written before we looked, in one piece: its times can only be told from its
last line. Then it gives batches of lines as they come.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llamatel.errors import LogSourceError
from llamatel.llama.log.line_buffer import LineBuffer

_READ_BYTES = 1 << 16
_BACKLOG_BYTES = 64 << 20
"""More of what was there before is not read: the newest part is taken."""
_BACKLOG_LINES = 1 << 20
"""The same, for lines: an empty one costs memory, too."""
_LOOK_S = 0.2
_SILENCE_S = 0.3
"""A stream's backlog is over when nothing came for that long."""
_BACKLOG_S = 10.0


@dataclass(frozen=True, slots=True)
class Batch:
    """Lines, and when the last of them was written at the latest (Unix time)."""

    lines: list[str]
    at: float
    backlog: bool = False


class FileSource:
    """A file that grows, also when it is rotated (moved away and made anew) or truncated, or is not there yet."""

    def __init__(self, path: str | os.PathLike[str], *, from_start: bool = False) -> None:
        """``from_start``: read what is in it already; else only what comes. Raises LogSourceError if it cannot be."""
        self.name = os.fspath(path)
        self._path = Path(path)
        self._from_start = from_start
        self._stop = threading.Event()
        if self._path.is_dir():
            raise LogSourceError(f"{self.name} is a folder, not a log")
        if from_start and not self._path.exists():
            raise LogSourceError(f"there is no log {self.name}")
        if self._path.exists() and not os.access(self._path, os.R_OK):
            raise LogSourceError(f"the log {self.name} cannot be read: permission denied")

    def stop(self) -> None:
        """End ``batches`` soon; may be called from any thread."""
        self._stop.set()

    def batches(self) -> Iterator[Batch]:
        """Batches until ``stop``. Raises LogSourceError if the file can no longer be read."""
        buffer = LineBuffer()
        descriptor: int | None = None
        first = True
        try:
            while not self._stop.is_set():
                if descriptor is None:
                    with contextlib.suppress(FileNotFoundError):
                        descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
                    if descriptor is not None and first:
                        yield from self._backlog(descriptor, buffer)
                    first = False
                    if descriptor is None:
                        self._stop.wait(_LOOK_S)
                        continue
                data = os.read(descriptor, _READ_BYTES)
                if data:
                    yield Batch(buffer.feed(data), time.time())
                elif self._replaced(descriptor):
                    yield Batch(buffer.flush(), time.time())
                    os.close(descriptor)
                    descriptor = None
                else:
                    self._stop.wait(_LOOK_S)
        except OSError as error:
            raise LogSourceError(f"the log {self.name} cannot be read: {error.strerror}") from None
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _backlog(self, descriptor: int, buffer: LineBuffer) -> Iterator[Batch]:
        state = os.fstat(descriptor)
        if not self._from_start:
            os.lseek(descriptor, 0, os.SEEK_END)
            return
        os.lseek(descriptor, max(0, state.st_size - _BACKLOG_BYTES), os.SEEK_SET)
        lines: deque[str] = deque(maxlen=_BACKLOG_LINES)
        while data := os.read(descriptor, _READ_BYTES):
            lines += buffer.feed(data)
        yield Batch(list(lines), state.st_mtime, backlog=True)

    def _replaced(self, descriptor: int) -> bool:
        """Whether the path is another file now, or this one was cut short."""
        ours = os.fstat(descriptor)
        try:
            now = self._path.stat()
        except FileNotFoundError:
            return False  # moved away, and not made anew yet: its last lines may still come
        return (now.st_ino, now.st_dev) != (ours.st_ino, ours.st_dev) or now.st_size < os.lseek(
            descriptor, 0, os.SEEK_CUR
        )


class StreamSource:
    """A stream such as standard input, from which ``kubectl logs -f`` and the like are read."""

    def __init__(self, descriptor: int = 0, name: str = "standard input") -> None:
        self.name = name
        self._descriptor = descriptor
        self._wake_read, self._wake_write = os.pipe()

    def stop(self) -> None:
        """End ``batches`` now; may be called from any thread."""
        with contextlib.suppress(OSError):  # it has ended already
            os.write(self._wake_write, b"!")

    def batches(self) -> Iterator[Batch]:
        """Batches until the stream ends or ``stop`` is called."""
        buffer = LineBuffer()
        backlog: list[str] | None = []
        begun = last = time.time()
        size = 0
        try:
            while True:
                pause = _SILENCE_S if backlog else None
                ready, _, _ = select.select([self._descriptor, self._wake_read], [], [], pause)
                data = os.read(self._descriptor, _READ_BYTES) if self._descriptor in ready else b""
                now = time.time()
                ended = bool(ready) and not data
                lines = buffer.flush() if ended else buffer.feed(data)
                if backlog is None:
                    yield Batch(lines, now)
                else:
                    backlog += lines
                    size += len(data)
                    if lines:
                        last = now
                    # Over after a silence; a busy server's log never is silent, so not later than after some seconds.
                    much = size > _BACKLOG_BYTES or len(backlog) > _BACKLOG_LINES
                    if ended or (backlog and (not data or much or now - begun > _BACKLOG_S)):
                        yield Batch(backlog, last, backlog=True)
                        backlog = None
                if ended:
                    return
        except OSError as error:
            raise LogSourceError(f"{self.name} cannot be read: {error.strerror}") from None
        finally:
            os.close(self._wake_read)
            os.close(self._wake_write)
