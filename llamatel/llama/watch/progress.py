"""Whether a server that has work makes progress: one that hangs answers ``/health`` and generates nothing.

Progress is any change of llama.cpp's counters or of a slot's prompt and output tokens, and CPU time of its process: a
long prefill on the CPU changes no counter until its batch is done. A hung GPU driver under which llama.cpp waits in a
busy loop uses CPU time, too; that is not recognised.
"""

from __future__ import annotations

import time
from collections.abc import Callable

STALLED_AFTER_S = 60.0
_WORKING_SHARE = 0.1
"""Of one CPU: a process that uses more is at work."""
_POLLS = 3
"""So many polls at least must show no progress."""


class ProgressWatch:
    """Judges consecutive polls of one server. For one thread."""

    def __init__(
        self, after_s: float = STALLED_AFTER_S, *, interval_s: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``after_s``: a server that has work and makes no progress for so long is stalled."""
        self.after_s = max(after_s, _POLLS * interval_s)
        self._clock = clock
        self._marks: object = None
        self._cpu_s: float | None = None
        self._seen_at: float | None = None
        self._since = 0.0

    def observe(self, *, started_at: float, working: bool, marks: object, cpu_s: float | None) -> bool:
        """Record a poll, which was started then; True if the server is stalled.

        ``working``: it has requests, or did not answer the poll; ``marks``: what changes with progress; ``cpu_s``: its
        CPU time, None if unknown.
        """
        now, seen_at = self._clock(), self._seen_at
        computed = (
            seen_at is not None
            and cpu_s is not None
            and self._cpu_s is not None
            and cpu_s - self._cpu_s > _WORKING_SHARE * (now - seen_at)
        )
        # After a gap (this process was stopped) it is unknown whether nothing happened.
        gap = seen_at is None or started_at - seen_at > self.after_s / 2
        if not working or computed or gap or marks != self._marks:
            self._since = now
        self._marks, self._cpu_s, self._seen_at = marks, cpu_s, now
        return now - self._since >= self.after_s
