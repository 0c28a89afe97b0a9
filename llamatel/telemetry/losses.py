"""Counts losses and failures by reason (``llamatel.records.dropped``)."""

from __future__ import annotations

import logging
from threading import Lock

from llamatel.outputs.log_once import LogOnce

_log = logging.getLogger(__name__)


class Losses:
    """Counts by reason. Thread-safe."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._counts: dict[str, int] = {}
        self._once = LogOnce(_log)

    def add(self, reason: str, count: int = 1) -> None:
        """Count a loss."""
        with self._lock:
            self._counts[reason] = self._counts.get(reason, 0) + count

    def failed(self, reason: str, message: str, key: str = "") -> None:
        """Count the exception that is being handled, and log it the first time."""
        self.add(reason)
        self._once.error(key or reason, "%s; further failures are only counted", message, exc_info=True)

    def by_reason(self) -> dict[str, int]:
        """Only reasons that occurred."""
        with self._lock:
            return dict(self._counts)
