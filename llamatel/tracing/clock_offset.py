"""The difference between the clocks of two machines, from the times of requests and responses, as NTP estimates it."""

from __future__ import annotations

import time
from collections.abc import Callable

_USED_S = 60.0
"""After that time a less precise measurement replaces the best one: clocks drift."""


class ClockOffset:
    """Another machine's clock minus ours. For one thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._offset = 0.0
        self._error = float("inf")
        self._measured_at = 0.0

    def add(self, sent_at: float, took_s: float, theirs: float) -> None:
        """A response with their time, to a request that was sent at our ``sent_at`` and took ``took_s``."""
        error = took_s / 2
        offset = theirs - sent_at - error
        contradicts = abs(offset - self._offset) > error + self._error  # a clock was set
        if error <= self._error or contradicts or self._clock() > self._measured_at + _USED_S:
            self._offset, self._error, self._measured_at = offset, error, self._clock()

    @property
    def seconds(self) -> float:
        """The offset; 0.0 if the measurement does not exclude that the clocks are equal, as on one machine."""
        return self._offset if abs(self._offset) > self._error else 0.0
