"""Wall clock for a log whose times count from the start of the server's process."""

from __future__ import annotations

_JUMP_S = 5.0


class LogClock:
    """Turns log time into Unix time.

    A line is read a little after it was written, so the process started at the smallest ``now - time`` seen: the anchor
    settles within the first lines and then stays, and differences between two times of one process are llama.cpp's own.
    In a log read live a sudden lag of seconds means that the machine slept (its monotonic clock stood still), so the
    anchor is set anew.
    """

    def __init__(self, *, live: bool = True, anchor: float | None = None) -> None:
        self._live = live
        self._anchor = anchor

    @property
    def process_started_at(self) -> float | None:
        """Unix time at which the server's process started; None before the first line with a time."""
        return self._anchor

    def observe(self, time: float, now: float) -> None:
        """A line written at log time ``time`` was read at Unix time ``now``."""
        start = now - time
        if self._anchor is None or start < self._anchor or (self._live and start - self._anchor > _JUMP_S):
            self._anchor = start

    def restart(self) -> None:
        """The log goes on with another process."""
        self._anchor = None

    def wall(self, time: float) -> float:
        """Unix time of a log time; only after ``observe``."""
        if self._anchor is None:
            raise ValueError("no line with a time was observed yet")
        return self._anchor + time
