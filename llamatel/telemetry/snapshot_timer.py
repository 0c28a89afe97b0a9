"""A look at the servers now and then, also while nobody collects: so a report can show what was between requests."""

from __future__ import annotations

import threading

from llamatel.telemetry.observer import Observer

_LOOK_S = 2.0


class Watcher:
    """Looks at the servers every two seconds, from a thread of its own."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._over = threading.Event()
        threading.Thread(target=self._run, name="llamatel-watcher", daemon=True).start()

    def _run(self) -> None:
        while not self._over.wait(_LOOK_S):
            if self._observer.watching:
                self._observer.snapshot(_LOOK_S / 2)

    def stop(self) -> None:
        """Look no more."""
        self._over.set()
