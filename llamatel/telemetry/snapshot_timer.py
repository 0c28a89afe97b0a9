"""Takes periodic snapshots without a scrape or export, so a report covers the time between requests."""

from __future__ import annotations

import threading

from llamatel.telemetry.observer import Observer

_INTERVAL_S = 2.0


class SnapshotTimer:
    """Takes a snapshot every two seconds, in its own thread."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="llamatel-snapshots", daemon=True).start()

    def _run(self) -> None:
        while not self._stopped.wait(_INTERVAL_S):
            if self._observer.watching:
                self._observer.snapshot(_INTERVAL_S / 2)

    def stop(self) -> None:
        """Stop the thread."""
        self._stopped.set()
