"""Follows a log file that another program writes, over rotation and truncation, from any position to the last line.

Lost bytes are counted where possible: a file that was truncated under a writer that does not append has a hole in place
of the lost bytes; for a file that was copied first, reading continues in the copy.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path

from llamatel.errors import LogSourceError, UsageError
from llamatel.llama.log.followed_file import FollowedFile, copy_of, rotated_after
from llamatel.llama.log.log_source import Backlog, Batch, LogSource, StreamSource
from llamatel.llama.log.read_position import Position, PositionFile
from llamatel.outputs.log_once import LogOnce

_log = logging.getLogger(__name__)

_CHECK_S = 0.2
_OLD_FILE_S = 60.0
"""A moved file is followed until it was silent for this long, as its writer may not have switched yet."""
_MOST_OLD = 4
_REPLAYED_START = 1 << 20
_REPLAYED_END = 4 << 20
"""Bytes read again after a restart, to restore the server's state and the requests in flight."""


def open_log(name: str, *, from_start: bool = False, state: str | None = None) -> LogSource:
    """The log at a path, or standard input for ``-``. Raises LogSourceError; UsageError for options that do not fit.

    ``state``: the file that keeps the position over restarts.
    """
    mode = None
    with contextlib.suppress(OSError):
        mode = os.fstat(0).st_mode if name == "-" else Path(name).stat().st_mode
    if state is not None and (name == "-" or (mode is not None and not stat.S_ISREG(mode))):
        raise UsageError("--log-state keeps the position in a file: it cannot be used with a stream")
    if name == "-":
        if mode is not None and stat.S_ISREG(mode):
            return FileSource("standard input", descriptor=0)
        return StreamSource()
    if mode is not None and stat.S_ISFIFO(mode):
        return StreamSource.of_fifo(name)
    return FileSource(name, from_start=from_start, state=None if state is None else PositionFile(state))


class _FileBacklog(Backlog):
    """The content of a file when it was opened; read from the file each time."""

    def __init__(self, source: FileSource, file: FollowedFile, start: int, end: int) -> None:
        super().__init__((), os.fstat(file.descriptor).st_mtime)
        self._source = source
        self._file = file
        self._start = start
        self._end = end

    def scan(self) -> Iterator[Sequence[str]]:
        yield from (lines for lines, _ in self._recorded())
        again = FollowedFile(self._file.descriptor, self._start)
        while not self._source.stopped and (data := again.read(self._end)[0]):
            yield from again.pieces(data)

    def batches(self) -> Iterator[tuple[Sequence[str], bool]]:
        yield from self._recorded()
        file = self._file
        file.offset = self._start
        while not self._source.stopped and (data := file.read(self._end)[0]):
            for lines in file.pieces(data):
                yield lines, False
            self._source.save(file)

    def _recorded(self) -> Iterator[tuple[Sequence[str], bool]]:
        """Lines before the position: for the server's state, and the requests that were in flight."""
        if self._start == 0:
            return
        pieces = [(0, min(self._start, _REPLAYED_START)), (max(0, self._start - _REPLAYED_END), self._start)]
        if pieces[0][1] >= pieces[1][0]:
            pieces = [(0, self._start)]
        for start, end in pieces:
            again = FollowedFile(self._file.descriptor, start)
            first = start > 0  # most likely the middle of a line
            while not self._source.stopped and again.offset < end:
                data, _ = again.read(end)
                if not data:
                    break
                lines = again.lines(data)
                yield lines[first:], True
                first = first and not lines


class FileSource:
    """A growing file, which may be rotated (moved and created again), truncated, or not exist yet."""

    blocking = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        from_start: bool = False,
        state: PositionFile | None = None,
        descriptor: int | None = None,
    ) -> None:
        """Raises LogSourceError if it cannot be read.

        ``from_start``: read the existing content; else only new lines. ``state``: keeps the position over restarts.
        ``descriptor``: an open file, read from its current offset to its end (standard input, from a file).
        """
        self.name = os.fspath(path)
        self.bytes_lost = 0
        self._path = Path(path)
        self._from_start = from_start
        self._state = state
        self._descriptor = descriptor
        self._stop = threading.Event()
        self._once = LogOnce(_log)
        self._existing: os.stat_result | None = None
        """The file at construction: later data is new."""
        if descriptor is not None:
            return
        if self._path.is_dir():
            raise LogSourceError(f"{self.name} is a folder, not a log")
        if from_start and state is None and not self._path.exists():
            raise LogSourceError(f"there is no log {self.name}")
        if self._path.exists() and not os.access(self._path, os.R_OK):
            raise LogSourceError(f"the log {self.name} cannot be read: permission denied")
        with contextlib.suppress(OSError):
            self._existing = self._path.stat()

    @property
    def stopped(self) -> bool:
        """Whether ``stop`` was called."""
        return self._stop.is_set()

    def stop(self) -> None:
        """End ``batches`` soon; may be called from any thread."""
        self._stop.set()

    def save(self, file: FollowedFile, *, ended: bool = False) -> None:
        """Save the position: the lines before it were processed. ``ended``: no more are read."""
        if self._state is not None:
            self._state.save(file.position(), ended=ended)

    def batches(self) -> Iterator[Batch | Backlog]:  # noqa: PLR0912 - one loop over all that can happen to a file
        """Batches until ``stop``, or the end of a file that is not followed. Raises LogSourceError."""
        old: list[FollowedFile] = []
        current: FollowedFile | None = None
        try:
            current = yield from self._first()
            if self._descriptor is not None or (current is not None and current.decoder.encoding == "gzip"):
                if current is not None and not self.stopped:
                    yield Batch(current.buffer.flush(), time.time(), live=False)
                return
            while not self.stopped:
                current = current or self._open()
                came = False
                for file in [*old, *filter(None, [current])]:
                    for batch in self._read(file):
                        came = True
                        yield batch
                if current is not None:
                    if not old:
                        self.save(current)
                    if self._moved(current):
                        moved, current = current, self._open()
                        missed = self._between(moved, [*old, current])
                        old += [moved, *missed]
                old = self._without_finished(old)
                if not came:
                    yield Batch((), time.time())  # no new data for a while
                    self._stop.wait(_CHECK_S)
        except OSError as error:
            raise LogSourceError(f"the log {self.name} cannot be read: {error.strerror}") from None
        finally:
            if current is not None:
                with contextlib.suppress(OSError):
                    self.save(current, ended=True)
            for file in [*old, *filter(None, [current])]:
                file.close()

    # -- where to start -------------------------------------------------------------------------------------------

    def _first(self) -> Generator[Batch | Backlog, None, FollowedFile | None]:
        """Yield the existing content; returns the file to follow."""
        position = None if self._state is None else self._state.load()
        if self._descriptor is not None:
            offset = os.lseek(self._descriptor, 0, os.SEEK_CUR)
            current: FollowedFile | None = FollowedFile(os.dup(self._descriptor), offset)
        else:
            current = self._open()
        if position is not None:
            start = yield from self._resume(position, current)
        elif current is None:
            return None
        else:
            whole = self._from_start or self._descriptor is not None or current.decoder.encoding == "gzip"
            start = current.offset if whole else self._end_of(current)
        if current is not None and start < current.size:
            yield _FileBacklog(self, current, start, current.size)
        elif current is not None:
            current.offset = start
        return current

    def _end_of(self, file: FollowedFile) -> int:
        """The end of the content that existed at construction."""
        now, then = os.fstat(file.descriptor), self._existing
        if then is None or not os.path.samestat(now, then) or now.st_size < then.st_size:
            return 0
        return then.st_size

    def _resume(self, position: Position, current: FollowedFile | None) -> Generator[Batch | Backlog, None, int]:
        """Yield what was written while no llamatel ran; returns where to continue in the current file."""
        if current is not None and position.head.matches(current.descriptor) and position.offset <= current.size:
            return position.offset
        moved = copy_of(self._path, position)
        if moved is None:
            _log.warning(
                "%s is not the file that was read before: it is read from its start; what was written to the other "
                "file since then is missing (it was removed or compressed)",
                self.name,
            )
            return 0
        files = [moved, *self._between(moved, [current])]
        try:
            for file in files:
                yield _FileBacklog(self, file, position.offset if file is moved else 0, file.size)
        finally:
            for file in files:
                file.close()
        return 0

    def _between(self, earlier: FollowedFile, known: Iterable[FollowedFile | None]) -> list[FollowedFile]:
        """Files between ``earlier`` and the current one, which were never the current one at a look."""
        files = rotated_after(self._path, earlier, [file for file in known if file is not None])
        for file in files[:-_MOST_OLD]:
            self._lost(file.size)
            file.close()
        return files[-_MOST_OLD:]

    def _open(self) -> FollowedFile | None:
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.close(descriptor)
                raise LogSourceError(f"the log {self.name} is not a regular file any more")
            return FollowedFile(descriptor)
        return None

    # -- new lines -------------------------------------------------------------------------------------------------

    def _read(self, file: FollowedFile) -> Iterator[Batch]:
        """Yield new lines of a file."""
        if file.size < file.offset or file.replaced:
            found = yield from self._from_copy(file)
            yield Batch(file.buffer.flush(), time.time())
            file.restart(file.offset + found)
        while not self.stopped:
            before, now = file.offset, time.time()
            data, skipped = file.read()
            if skipped and before:
                found = yield from self._from_copy(file, before)
                self._lost(skipped - found)
            elif skipped and file.reached:
                # The hole ends where the writer was when the file was truncated.
                self._lost(skipped - file.reached)
            if not data:
                file.since = now
                return
            yield Batch(file.lines(data), time.time(), since=file.since)

    def _from_copy(self, file: FollowedFile, offset: int | None = None) -> Generator[Batch, None, int]:
        """Yield the unread part of a truncated file from a copy of it; returns the number of bytes."""
        start = file.offset if offset is None else offset
        copy = copy_of(self._path, Position(file.head, start))
        if copy is None:
            return 0
        copy.offset, copy.buffer, copy.decoder = start, file.buffer, file.decoder
        files = [copy, *self._between(copy, [file])]
        for each in files:
            while not self.stopped and (data := each.read()[0]):
                yield Batch(each.lines(data), time.time())
            each.close()
        return copy.offset - start

    def _lost(self, size: int) -> None:
        if size <= 0:
            return
        self.bytes_lost += size
        self._once.warning(
            "lost",
            "%s was truncated before %d bytes of it could be read: requests in them are missing",
            self.name,
            size,
        )

    def _moved(self, file: FollowedFile) -> bool:
        """Whether the path is another file now."""
        ours = os.fstat(file.descriptor)
        try:
            now = self._path.stat()
        except FileNotFoundError:
            return False  # moved away, and not created again yet
        return not os.path.samestat(now, ours)

    def _without_finished(self, old: list[FollowedFile]) -> list[FollowedFile]:
        """Moved files that may still be written to."""
        kept: list[FollowedFile] = []
        for file in old:
            if time.monotonic() - file.read_at > _OLD_FILE_S or len(old) - len(kept) > 2 * _MOST_OLD:
                file.close()
            else:
                kept.append(file)
        return kept
