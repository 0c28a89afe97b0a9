"""The server's own log, passed on to a file or a terminal.

From a thread of its own: whoever reads our standard error may pause (a pager, a stopped terminal, a full disk's slow
retries), and the server must not wait for that. What does not fit into the queue is left out, and said.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from llamatel.errors import UsageError

_log = logging.getLogger(__name__)

_BATCHES = 1024
"""Batches that wait at most; one is what a read of the server's pipe gave, mostly a few lines."""
_LAST_WORDS_S = 1.0


class LogCopy:
    """Writes lines to ``target``: a path (appended to), or ``"-"`` for standard error."""

    def __init__(self, target: str | os.PathLike[str]) -> None:
        """Raises UsageError where the file cannot be written."""
        self.dropped = 0
        """Lines left out because the target did not take them in time."""
        self._stream: IO[str] | None = None
        self._fd: int | None = None
        self._owned = os.fspath(target) != "-"
        if self._owned:
            try:
                self._fd = os.open(Path(target).expanduser(), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            except OSError as error:
                raise UsageError(f"cannot write the server's log to {os.fspath(target)}: {error.strerror}") from None
        elif sys.stderr is sys.__stderr__:
            # Past Python's buffer: a thread that is stuck in it would keep the interpreter from ending.
            self._fd = None if sys.stderr is None else sys.stderr.fileno()
        else:
            self._stream = sys.stderr  # a notebook's, a test's
        self._queue: queue.Queue[Sequence[str] | None] = queue.Queue(_BATCHES)
        self._thread = threading.Thread(target=self._run, name="llamatel-server-log", daemon=True)
        self._thread.start()

    def put(self, lines: Sequence[str]) -> None:
        """Have lines written; never waits."""
        try:
            self._queue.put_nowait(lines)
        except queue.Full:
            self.dropped += len(lines)

    def close(self) -> None:
        """Write what waits and end; a target that does not take it within a second is left alone."""
        try:
            self._queue.put(None, timeout=_LAST_WORDS_S)
        except queue.Full:
            return
        self._thread.join(_LAST_WORDS_S)

    def _run(self) -> None:
        said = 0
        try:
            while (lines := self._queue.get()) is not None:
                left_out = self.dropped - said
                if left_out:
                    said += left_out
                    self._write(f"llamatel: {left_out} lines of the server's log are left out near here\n")
                self._write("\n".join(lines) + "\n")
        except (OSError, ValueError) as error:
            _log.warning("the server's log is no longer passed on: %s", error)
            while self._queue.get() is not None:
                continue
        finally:
            if self._owned and self._fd is not None:
                os.close(self._fd)

    def _write(self, text: str) -> None:
        if self._fd is None:
            if self._stream is not None:
                self._stream.write(text)
                self._stream.flush()
            return
        data = memoryview(text.encode("utf-8", "replace"))
        while data:
            data = data[os.write(self._fd, data) :]
