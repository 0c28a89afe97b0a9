"""llama.cpp's counters, carried across restarts of its process."""

from __future__ import annotations

import threading
from collections.abc import Mapping


class CarriedCounters:
    """Totals over the lives of a server whose own counters start at zero each time. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._base: dict[str, float] = {}
        self._last: dict[str, float] = {}

    def observe(self, values: Mapping[str, float]) -> None:
        """Counters as the server gives them now. Only names that end in ``_total`` are counters."""
        with self._lock:
            counters = {name: value for name, value in values.items() if name.endswith("_total")}
            if any(value < self._last.get(name, 0.0) for name, value in counters.items()):
                self._carry()
            self._last = counters

    def restarted(self) -> None:
        """The process was replaced."""
        with self._lock:
            self._carry()

    def _carry(self) -> None:
        for name, value in self._last.items():
            self._base[name] = self._base.get(name, 0.0) + value
        self._last = {}

    def totals(self) -> dict[str, float]:
        """Totals by name; empty before the first observation."""
        with self._lock:
            names = self._base.keys() | self._last.keys()
            return {name: self._base.get(name, 0.0) + self._last.get(name, 0.0) for name in names}

    def raw(self, name: str) -> float | None:
        """A counter of the process that runs now; None if it was not seen."""
        with self._lock:
            return self._last.get(name)
