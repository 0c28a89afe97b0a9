"""CPU time and memory of a server's process, over its restarts (``proc(5)``; elsewhere than on Linux unknown)."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from llamatel.snapshots import ProcessState


def parse_stat(text: str) -> tuple[int, int]:
    """CPU time in clock ticks, user and system, all threads; resident pages. Raises ValueError, IndexError."""
    fields = text.rpartition(")")[2].split()  # the program's name may hold spaces and brackets
    return int(fields[11]) + int(fields[12]), int(fields[21])


class ProcessClock:
    """Reads the process that a server has now; its CPU time never goes down. Thread-safe."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._lock = threading.Lock()
        self._pid: int | None = None
        self._before_s = 0.0
        self._last_s: float | None = None

    def read(self, pid: int | None) -> ProcessState:
        """State of process ``pid``; without one, or where it cannot be read, the CPU time until then and no memory."""
        stat = None if pid is None else self._stat(pid)
        with self._lock:
            if pid is not None and pid != self._pid:
                self._before_s += self._last_s or 0.0
                self._pid, self._last_s = pid, None
            if stat is None:
                known = self._last_s is not None or self._before_s
                return ProcessState(self._before_s + (self._last_s or 0.0) if known else None)
            ticks, pages = stat
            self._last_s = max(ticks / os.sysconf("SC_CLK_TCK"), self._last_s or 0.0)
            return ProcessState(self._before_s + self._last_s, pages * os.sysconf("SC_PAGE_SIZE"))

    def _stat(self, pid: int) -> tuple[int, int] | None:
        try:
            return parse_stat((self._proc / str(pid) / "stat").read_text(errors="replace"))
        except (OSError, ValueError, IndexError):
            return None
