"""Decides which of Ollama's models were unloaded to make room for another one.

Ollama logs an eviction for lack of memory, but (unless OLLAMA_DEBUG is set) none because of OLLAMA_MAX_LOADED_MODELS.
The latter is inferred: a model exits before its keep-alive has expired, as many models were loaded as Ollama permits,
and the next load starts at once. Source: ollama v0.33.0-rc2, server/sched.go ``processPending``.
"""

from __future__ import annotations

import math

_LOG_LAG_S = 1.0
"""An exit may be seen this long before the lines that explain it are read."""
_NOTICED_S = 2.0
"""A load may be read so long before the exit that it waited for is noticed."""
_RECOVERY_S = 6.0
"""Ollama waits this long for the memory of the model that exited (5 s) before it loads the next one."""
_EXPIRY_S = 1.0
_MOST = 64


class Evictions:
    """Times are monotonic. Not thread-safe."""

    def __init__(self) -> None:
        self.most_loaded: int | None = None
        """Least number of models that Ollama loads before it unloads one for the next; None if unknown."""
        self._announced = (math.inf, math.inf)
        """From when to when models were unloaded for lack of memory."""
        self._exits: list[tuple[float, str]] = []
        """Models that exited early while no other one was loading."""
        self._starts: list[tuple[float, str]] = []
        """Loads without a matching exit so far."""

    def limit(self, most_loaded: int) -> None:
        """Take OLLAMA_MAX_LOADED_MODELS; unset or 0 means three for each GPU."""
        self.most_loaded = most_loaded or 3

    def announced(self, now: float) -> None:
        """Ollama logged that it unloads models."""
        self._announced = (now, math.inf)

    def loaded(self, now: float) -> None:
        """The model that there had to be room for is loaded."""
        self._announced = (self._announced[0], min(self._announced[1], now))

    def starts(self, model: str, now: float) -> str | None:
        """Record a load; the model that had exited for it, if there is one."""
        for number, (at, other) in enumerate(self._exits):
            if other != model and now - at <= _RECOVERY_S:
                del self._exits[number]
                return other
        self._starts = [*self._starts[-_MOST:], (now, model)]
        return None

    def exited(self, model: str, at: float, *, expires_in_s: float | None, loaded: int) -> bool:
        """Record an exit, with the number of models that were loaded then; whether it is known to be an eviction."""
        start, end = self._announced
        if start - _LOG_LAG_S <= at <= end + _NOTICED_S:
            return True
        if expires_in_s is None or expires_in_s < _EXPIRY_S or loaded < (self.most_loaded or 1):
            return False
        for number, (started, other) in enumerate(self._starts):
            if other != model and -_NOTICED_S <= started - at <= _RECOVERY_S:
                del self._starts[number]
                return True
        self._exits = [*self._exits[-_MOST:], (at, model)]
        return False
