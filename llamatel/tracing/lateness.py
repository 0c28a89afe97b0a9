"""How late things happen: the observer's own thread, the lines of a log."""

from __future__ import annotations

_KEPT_S = 10.0


class Lateness:
    """The largest delay of the last ten to twenty seconds."""

    def __init__(self) -> None:
        self._before = 0.0
        self._lately = 0.0
        self._since = 0.0

    def add(self, seconds: float, now: float) -> None:
        """A delay was seen."""
        self._turn(now)
        self._lately = max(self._lately, seconds)

    def largest(self, now: float) -> float:
        """In seconds; 0 where none was seen."""
        self._turn(now)
        return max(self._before, self._lately)

    def _turn(self, now: float) -> None:
        if not self._since <= now < self._since + _KEPT_S:
            again = self._since <= now < self._since + 2 * _KEPT_S
            self._before, self._lately, self._since = self._lately if again else 0.0, 0.0, now
