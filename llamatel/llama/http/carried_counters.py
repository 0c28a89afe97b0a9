"""llama.cpp's counters, carried across restarts of its process."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping

from llamatel.llama.http.server_client import is_counter


class CarriedCounters:
    """Totals over restarts of a server whose own counters restart at zero. Thread-safe; never decreases."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._base: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._process = 0

    @property
    def process(self) -> int:
        """The number of the current process, which ``restarted`` changes. Read it before polling the server."""
        with self._lock:
            return self._process

    def observe(self, values: Mapping[str, float], process: int | None = None) -> None:
        """Record the server's current counters. Only names that end in ``_total`` are counters.

        ``process``: their process, if replacements are announced; then late responses, after that of another process or
        after its exit, are recognised. Without it, a counter that decreased indicates a new process.
        """
        counters = {name: value for name, value in values.items() if is_counter(name) and math.isfinite(value)}
        with self._lock:
            if process is not None:
                if process == self._process:
                    self._last.update({name: max(value, self._last.get(name, 0.0)) for name, value in counters.items()})
                return
            if any(value < self._last.get(name, 0.0) for name, value in counters.items()):
                self._carry()
            self._last.update(counters)

    def restarted(self) -> Mapping[str, float]:
        """Record that the process was replaced, with its last counters."""
        with self._lock:
            self._process += 1
            last = self._last
            self._carry()
            return last

    def resumed(self, last: Mapping[str, float]) -> None:
        """Record that a replaced process is back; ``last`` are its counters at that time, to not count them twice."""
        with self._lock:
            for name, value in last.items():
                self._base[name] = self._base.get(name, 0.0) - value
            self._last = dict(last)

    def add(self, missed: Mapping[str, float]) -> None:
        """Add counts of a replaced process after its last observation; negative differences are ignored."""
        with self._lock:
            for name, value in missed.items():
                self._base[name] = self._base.get(name, 0.0) + max(value, 0.0)

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
        """A counter of the current process; None if unknown."""
        with self._lock:
            return self._last.get(name)
