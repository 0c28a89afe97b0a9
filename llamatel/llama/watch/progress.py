"""Detects servers that have work and make no progress: a hung server responds to ``/health`` and generates nothing.

Progress is any change of llama.cpp's counters or of a slot's prompt and output tokens, and CPU time of its process: a
long prefill on the CPU changes no counter until its batch is done. A hung GPU driver under which llama.cpp waits in a
busy loop uses CPU time, too, so CPU time alone counts as progress for a limited time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

_log = logging.getLogger(__name__)

STALLED_AFTER_S = 60.0
_WORKING_SHARE = 0.1
"""Share of one CPU; a process that uses more is working."""
_POLLS = 3
"""Least number of polls without progress."""
_LONGEST_BATCH = 20
"""CPU time counts as progress for this multiple of ``after_s``: by default a batch may take twenty minutes."""


class ProgressWatch:
    """Evaluates consecutive polls of one server, and logs changes. For one thread."""

    def __init__(
        self,
        after_s: float = STALLED_AFTER_S,
        *,
        interval_s: float = 1.0,
        name: Callable[[], str] = lambda: "the server",
        on_stall: Callable[[str], object] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``after_s``: a server that has work and makes no progress for this long is stalled.

        ``name`` is for messages; ``on_stall`` is called, with a sentence, when the server is found to be stalled.
        """
        self.after_s = max(after_s, _POLLS * interval_s)
        self.stalled = False
        self._name = name
        self._on_stall = on_stall
        self._clock = clock
        self._marks: object = None
        self._cpu_s: float | None = None
        self._seen_at: float | None = None
        self._since = self._moved_at = 0.0
        """Time of the last progress; and of the last progress other than CPU time."""

    def observe(self, *, started_at: float, working: bool, marks: object, cpu_s: float | None) -> bool:
        """Record a poll that was started at ``started``; True if the server is stalled.

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
        if not working or gap or marks != self._marks:
            self._since = self._moved_at = now
        elif computed and now - self._moved_at <= _LONGEST_BATCH * self.after_s:
            self._since = now
        self._marks, self._cpu_s, self._seen_at = marks, cpu_s, now
        self._judge(now - self._since >= self.after_s, now)
        return self.stalled

    def _judge(self, stalled: bool, now: float) -> None:
        if self.stalled and not stalled:
            _log.warning("%s makes progress again", self._name())
        changed, self.stalled = stalled and not self.stalled, stalled
        if changed:
            why = f"it made no progress for {now - self._moved_at:.3g} s"
            _log.warning("%s is stalled: %s", self._name(), why)
            self._on_stall(why)
