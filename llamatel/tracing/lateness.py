"""Measures recent delays: of the observer's thread, of a log's lines."""

from __future__ import annotations

_KEPT_S = 10.0


class Lateness:
    """The largest delay of the last ten to twenty seconds."""

    def __init__(self) -> None:
        self._before = 0.0
        self._lately = 0.0
        self._since = 0.0

    def add(self, seconds: float, now: float) -> None:
        """Record a delay."""
        self._turn(now)
        self._lately = max(self._lately, seconds)

    def largest(self, now: float) -> float:
        """The delay in seconds; 0 if none was recorded."""
        self._turn(now)
        return max(self._before, self._lately)

    def _turn(self, now: float) -> None:
        if not self._since <= now < self._since + _KEPT_S:
            again = self._since <= now < self._since + 2 * _KEPT_S
            self._before, self._lately, self._since = self._lately if again else 0.0, 0.0, now
