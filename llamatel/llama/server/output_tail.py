"""The last lines that a server printed, and their copy in ``--server-log``; without the API key."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from itertools import repeat

from llamatel.llama.log.server_output import LineKind, OutputLines
from llamatel.llama.server.log_copy import LogCopy

_LINES = 200
_GUARDED_KEY = 8


def without_key(lines: Sequence[str], key: str | None) -> Sequence[str]:
    """Removes the API key from lines; at high verbosity llama.cpp logs its last four characters, maybe all it has."""
    if key is None:
        return lines
    clean = []
    for line in lines:
        head, mark, _ = line.partition("api_keys: ****")
        # A key as short as a word of the log must not make the log unreadable.
        clean.append((head + mark).replace(key, "****") if len(key) >= _GUARDED_KEY else head + mark)
    return clean


class OutputTail:
    """Thread-safe. ``copy`` is None where the log is not copied."""

    def __init__(self, key: str | None, copy: LogCopy | None) -> None:
        self._key, self._copy = key, copy
        self._lock = threading.Lock()
        self._lines: deque[tuple[LineKind, str]] = deque(maxlen=_LINES)

    def put(self, output: Sequence[OutputLines]) -> None:
        """Add the newest lines."""
        with self._lock:
            for kind, lines in output:
                self._lines.extend(zip(repeat(kind), lines))
        if self._copy is not None:
            self._copy.put(self._readable(output))

    def lines(self) -> tuple[str, ...]:
        """As text, oldest first."""
        with self._lock:
            lines = tuple(self._lines)
        return tuple(self._readable([OutputLines(kind, (line,)) for kind, line in lines]))

    def clear(self) -> None:
        """Clear the lines, for a new process."""
        with self._lock:
            self._lines.clear()

    def close(self) -> None:
        """Finish the copy."""
        if self._copy is not None:
            self._copy.close()

    def _readable(self, output: Sequence[OutputLines]) -> Sequence[str]:
        return without_key([line for lines in output for line in lines.readable], self._key)
