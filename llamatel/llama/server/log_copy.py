"""Copies the server's own log to a file or a terminal.

It uses its own thread: the reader of standard error may pause (a pager, a stopped terminal), a disk may be full or
slow, and the server must not wait for that. Lost lines are counted, and noted in the copy.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
from collections.abc import Sequence
from typing import IO

from llamatel.errors import UsageError
from llamatel.outputs.appended_file import AppendedFile, count_lost
from llamatel.outputs.log_once import LogOnce

_log = logging.getLogger(__name__)

_BATCHES = 1024
"""Most batches in the queue; a batch is one read of the server's pipe, usually a few lines."""
_LAST_LINES_S = 1.0


class LogCopy:
    """Writes lines to ``target``: a path (appended to), or ``"-"`` for standard error."""

    def __init__(self, target: str | os.PathLike[str]) -> None:
        """Raises UsageError where the file cannot be written."""
        self.dropped = 0
        """Lines that could not be written to the target."""
        self._name = "standard error" if os.fspath(target) == "-" else os.fspath(target)
        self._stream: IO[str] | None = None
        self._descriptor: int | None = None
        self._file: AppendedFile | None = None
        self._once = LogOnce(_log)
        if os.fspath(target) != "-":
            try:
                self._file = AppendedFile(target)
            except OSError as error:
                raise UsageError(f"cannot write the server's log to {os.fspath(target)}: {error.strerror}") from None
        elif sys.stderr is sys.__stderr__:
            # Bypasses Python's buffer: a thread that is stuck in it would prevent the interpreter's exit.
            self._descriptor = None if sys.stderr is None else sys.stderr.fileno()
        else:
            self._stream = sys.stderr  # a notebook's, a test's
        self._queue: queue.Queue[Sequence[str] | None] = queue.Queue(_BATCHES)
        self._thread = threading.Thread(target=self._run, name="llamatel-server-log", daemon=True)
        self._thread.start()

    def put(self, lines: Sequence[str]) -> None:
        """Queue lines for writing; never waits."""
        try:
            self._queue.put_nowait(lines)
        except queue.Full:
            self._lose(len(lines))

    def close(self) -> None:
        """Write the queue and stop; a target that does not accept it within a second is abandoned."""
        try:
            self._queue.put(None, timeout=_LAST_LINES_S)
        except queue.Full:
            return
        self._thread.join(_LAST_LINES_S)

    def _lose(self, lines: int) -> None:
        self.dropped += lines
        count_lost("server_log_failed", lines)

    def _run(self) -> None:
        noted = 0
        try:
            while (lines := self._queue.get()) is not None:
                left_out = self.dropped - noted
                note = f"llamatel: {left_out} lines of the server's log are left out near here\n" if left_out else ""
                try:
                    self._write(note + "\n".join(lines) + "\n")
                except (OSError, ValueError) as error:
                    self._lose(len(lines))
                    self._once.warning("failed", "cannot write the server's log to %s: %s", self._name, error)
                else:
                    noted += left_out
                    if self._once.reset("failed"):
                        _log.warning("the server's log is written to %s again", self._name)
        finally:
            if self._file is not None:
                self._file.close()

    def _write(self, text: str) -> None:
        if self._stream is not None:
            self._stream.write(text)
            self._stream.flush()
            return
        data = text.encode("utf-8", "replace")
        if self._file is not None:
            self._file.write(data)
        elif self._descriptor is not None:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
