"""Reads the log of another program: from standard input or a FIFO here, from files in ``log_file``.

A source first yields its backlog, what was written before it was opened, because only its last line has a known time.
Then it yields batches of lines as they arrive.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from llamatel.errors import LogSourceError
from llamatel.llama.log.line_buffer import LineBuffer
from llamatel.llama.log.log_encoding import HEAD, Decoder, encoding_of

READ_BYTES = 1 << 16
_BACKLOG_BYTES = 64 << 20
_BACKLOG_LINES = 1 << 20
"""A stream's backlog is yielded in chunks of at most this size, as it is kept in memory."""
_SILENCE_S = 0.3
"""A stream's backlog is complete after this time without data."""
_BACKLOG_S = 10.0
_CHECK_S = 0.2


@dataclass(frozen=True, slots=True)
class Batch:
    """Lines, and when the last of them was written at the latest (Unix time)."""

    lines: Sequence[str]
    at: float
    live: bool = True
    """Whether they were read right after they were written."""
    since: float | None = None
    """None of them was written before; None if they were read as they arrived."""


class Backlog:
    """Existing lines. They are read twice: to date them, and for their content."""

    def __init__(self, lines: Sequence[str], at: float) -> None:
        self._lines = lines
        self.at = at
        """Unix time at which the last was written at the latest."""

    def scan(self) -> Iterator[Sequence[str]]:
        """All lines, for dating."""
        yield self._lines

    def batches(self) -> Iterator[tuple[Sequence[str], bool]]:
        """All lines, and whether their requests were recorded before, by an earlier llamatel."""
        yield self._lines, False


class LogSource(Protocol):
    """A log that is read on one thread."""

    @property
    def name(self) -> str:
        """Name in messages."""

    @property
    def blocking(self) -> bool:
        """Whether its writer does not wait for the reader, which may then be slow."""

    def stop(self) -> None:
        """End ``batches`` soon; may be called from any thread."""

    def batches(self) -> Iterator[Batch | Backlog]:
        """Lines as they arrive, until ``stop`` or the log's end. Raises LogSourceError if it cannot be read."""

    @property
    def bytes_lost(self) -> int:
        """Bytes of it that were lost before they could be read."""


class StreamSource:
    """A stream such as standard input, from which ``kubectl logs -f`` and the like are read; always drained."""

    blocking = False
    bytes_lost = 0

    def __init__(self, descriptor: int = 0, name: str = "standard input", *, reopens: bool = False) -> None:
        """``reopens``: the stream continues with another writer after the last one has closed it (a FIFO)."""
        self.name = name
        self._descriptor = descriptor
        self._reopens = reopens
        self._wake_read, self._wake_write = os.pipe()
        self._decoder: Decoder | None = None
        self._buffer = LineBuffer(documents=True)

    @classmethod
    def of_fifo(cls, path: str | os.PathLike[str]) -> StreamSource:
        """A FIFO, with or without a writer. Raises LogSourceError if it cannot be opened."""
        try:
            return cls(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), os.fspath(path), reopens=True)
        except OSError as error:
            raise LogSourceError(f"the log {os.fspath(path)} cannot be read: {error.strerror}") from None

    def stop(self) -> None:
        """End ``batches`` now; may be called from any thread."""
        with contextlib.suppress(OSError):  # it is closed already
            os.write(self._wake_write, b"!")

    def batches(self) -> Iterator[Batch | Backlog]:
        """Batches until the stream ends or ``stop`` is called."""
        backlog: list[str] = []
        caught_up = False
        started = last = time.time()
        size = 0
        try:
            while True:
                data, closed = self._read(_SILENCE_S if backlog or caught_up else None)
                now = time.time()
                lines = self._lines(data, closed=closed)
                if caught_up:
                    yield Batch(lines, now)
                else:
                    backlog += lines
                    size += len(data)
                    last = now if lines else last
                    silent = bool(backlog) and not data
                    # A busy server's log is never silent: after some seconds its lines are yielded as they arrive.
                    much = size > _BACKLOG_BYTES or len(backlog) > _BACKLOG_LINES or now - started > _BACKLOG_S
                    if closed or silent or (backlog and much):
                        yield Backlog(backlog, last)
                        backlog, size, caught_up = [], 0, silent
                if closed:
                    return
        except OSError as error:
            raise LogSourceError(f"{self.name} cannot be read: {error.strerror}") from None
        finally:
            os.close(self._wake_read)
            os.close(self._wake_write)
            if self._reopens:
                os.close(self._descriptor)

    def _read(self, pause: float | None) -> tuple[bytes, bool]:
        """Data that arrived within ``pause`` seconds, and whether the stream was closed."""
        ready, _, _ = select.select([self._descriptor, self._wake_read], [], [], pause)
        if self._wake_read in ready:
            return b"", True
        if not ready:
            return b"", False
        data = os.read(self._descriptor, READ_BYTES)
        if data or not self._reopens:
            return data, not data
        stopped, _, _ = select.select([self._wake_read], [], [], _CHECK_S)  # no writer at the moment
        return b"", bool(stopped)

    def _lines(self, data: bytes, *, closed: bool) -> list[str]:
        if self._decoder is None:
            if not data:
                return []
            self._decoder = Decoder(encoding_of(data[:HEAD]))
        lines = [line for text in self._decoder.feed(data) for line in self._buffer.feed(text)]
        return lines + self._buffer.flush() if closed else lines
