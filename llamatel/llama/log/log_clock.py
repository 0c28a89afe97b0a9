"""Wall-clock time for a log whose times count from the start of the server's process."""

from __future__ import annotations

import time as clocks
from collections.abc import Callable

_JUMP_S = 5.0
_PERSISTS_S = 1.0
_SET_BACK_S = 0.5
_SET_BACK_FOR_S = 5.0
"""Lines that were written before a step may be read after it."""


def _slept() -> float:
    return clocks.time() - clocks.monotonic()


class LogClock:
    """Converts log time to Unix time.

    A line is read shortly after it was written, so the process started at the smallest ``now - time`` seen: the anchor
    settles within the first lines and then stays; differences between two times of one process are llama.cpp's own.

    While a machine sleeps, its monotonic clock stops, and the log's time with it. In a log read live, the anchor moves
    with ``slept`` (Unix time minus this machine's monotonic time), so it also follows changes of the wall clock. A lag
    of seconds is usually our own: reading was delayed. Only if the newest lines keep lagging, another machine, which
    runs the server, slept.
    """

    def __init__(self, *, live: bool = True, anchor: float | None = None, slept: Callable[[], float] = _slept) -> None:
        self._live = live
        self._anchor = anchor
        self._slept = slept
        self._slept_before = self._slept_last = slept()
        self.read_at: float | None = None
        """Unix time at which the last line was read."""
        self._span = _JUMP_S if live else float("inf")
        self.oldest = self.newest = float("-inf")
        """Lines that were read at ``read_at`` with a log time above the first and up to the second change nothing."""
        self._set_back_at = float("-inf")
        """When the wall clock was last found to be set back (monotonic)."""
        self._lagging: tuple[float, float] | None = None
        """Since when all lines lag, and the anchor from the line with the least lag."""

    @property
    def process_started_at(self) -> float | None:
        """Unix time at which the server's process started; None before the first line with a time."""
        return self._anchor

    def observe(self, time: float, now: float) -> None:
        """Record that a line written at log time ``time`` was read at Unix time ``now``."""
        if now != self.read_at:  # once for all lines that were read together
            self.read_at = now
            self._check_wall_clock()
        elif 0.0 < time - self.newest < _JUMP_S:
            self._anchor, self.newest, self.oldest = now - time, time, time - self._span
            return
        start, anchor = now - time, self._anchor
        if anchor is None:
            self._slept_before = self._slept_last
            anchor = start
        elif -_JUMP_S < start - anchor < _JUMP_S or not self._live:
            self._lagging = None
            anchor = min(start, anchor)
        else:
            anchor = min(start, self._after_sleep(anchor, start, now))
        self._anchor = anchor
        self.newest = now - anchor if self._lagging is None else float("-inf")
        self.oldest = self.newest - self._span

    def _check_wall_clock(self) -> None:
        """Detect that the wall clock was set back since the previous lines."""
        slept = self._slept()
        if slept - self._slept_last < -_SET_BACK_S:
            self._set_back_at = clocks.monotonic()
        self._slept_last = slept

    def _after_sleep(self, anchor: float, start: float, now: float) -> float:
        """The anchor, corrected if a machine slept since the previous line."""
        moved = self._slept() - self._slept_before
        if abs(moved) > _JUMP_S:
            self._slept_before += moved
            return anchor + moved
        if start < anchor:
            self._lagging = None
            return anchor
        since, least = self._lagging or (now, start)
        least = min(least, start)
        if now - since > _PERSISTS_S:
            self._lagging = None
            return least
        self._lagging = (since, least)
        return anchor

    def set_back(self) -> bool:
        """Whether this machine's wall clock was set back a moment ago: the log's times go back with it."""
        if not self._live:
            return False
        recently = clocks.monotonic() - self._set_back_at < _SET_BACK_FOR_S
        return recently or self._slept() - self._slept_last < -_SET_BACK_S

    def restart(self) -> None:
        """Reset for another process in the same log."""
        self._anchor = self._lagging = self.read_at = None

    def wall(self, time: float) -> float:
        """Unix time of a log time; only after ``observe``."""
        if self._anchor is None:
            raise ValueError("no line with a time was observed yet")
        return self._anchor + time
