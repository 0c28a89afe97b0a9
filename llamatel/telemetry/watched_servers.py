"""The servers that are watched, and snapshots of their state."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from llamatel.records import Completion, ObservedRequest
from llamatel.snapshots import ServerSnapshot, Snapshot
from llamatel.telemetry.collector_guard import Guard
from llamatel.telemetry.losses import Losses

Listener = Callable[[Completion | ObservedRequest], None]

_ENDED = ("stopped", "failed")
"""States of a server whose port another one may have taken."""


class Watched(Protocol):
    """A source of telemetry: a server that was launched or attached to, a log, a model in this process.

    An optional attribute ``blocking`` is true for a source that reads a regular file: it then waits for room in the
    queue instead of having spans shed.
    """

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call ``listener`` for each finished request; returns a function that unsubscribes."""

    def snapshots(self) -> Sequence[ServerSnapshot]:
        """The state of the server, and of its models if it is a router; empty if nothing is known."""


class WatchedServers:
    """Takes snapshots of the servers, one at a time. Thread-safe."""

    def __init__(
        self,
        guards: Sequence[Guard],
        losses: Losses,
        dropped: Callable[[], Mapping[str, int]],
        *,
        watchers: Sequence[Callable[[Snapshot], None]] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Collectors complete each snapshot, ``watchers`` are called with it; ``dropped`` returns all losses."""
        self._guards = guards
        self._losses = losses
        self._dropped = dropped
        self._watchers = watchers
        self._clock = clock
        self._lock = threading.Lock()
        self._watched: dict[int, tuple[Watched, Callable[[], None]]] = {}
        self._closed = False
        self._snapshotting = threading.Lock()
        self._latest: Snapshot | None = None
        self._added = False
        """A server was added since the latest snapshot began."""

    @property
    def sources(self) -> list[Watched]:
        """Those that are watched now."""
        with self._lock:
            return [server for server, _ in self._watched.values()]

    def watch(self, server: Watched, listener: Listener) -> None:
        """Watch a server; a second time does nothing."""
        with self._lock:
            if id(server) not in self._watched and not self._closed:
                self._watched[id(server)] = (server, server.subscribe(listener))
                self._added = True

    def unwatch(self, server: Watched) -> None:
        """Stop watching a server; its figures disappear from the export."""
        with self._lock:
            entry = self._watched.pop(id(server), None)
        if entry is not None:
            entry[1]()

    def close(self) -> None:
        """End the subscriptions; the servers still have snapshots."""
        with self._lock:
            watched = [] if self._closed else list(self._watched.values())
            self._closed = True
        for _, unsubscribe in watched:
            unsubscribe()

    def snapshot(self, max_age_s: float = 0.0) -> Snapshot:
        """The state of all servers: the latest snapshot if it is at most that old and has all of them, else a new one.

        A caller that waited for another's gets that one, if any age above 0 will do.
        """
        with self._snapshotting:
            latest = self._latest
            fits = not self._added and max_age_s > 0.0
            if latest is None or not fits or self._clock() - latest.taken_at > max_age_s:
                self._added = False
                latest = self._latest = self._new_snapshot()
                self._notify(latest)
            return latest

    def _new_snapshot(self) -> Snapshot:
        states: dict[object, tuple[ServerSnapshot, Watched]] = {}
        for server in self.sources:
            for state in self._states(server):
                # One address has one server: where a manager was replaced by another on its port, the last one counts.
                earlier = states.get(state.server.key)
                if earlier is not None and earlier[0].state in _ENDED:
                    self.unwatch(earlier[1])
                states[state.server.key] = state, server
        snapshot = Snapshot(self._clock(), tuple(state for state, _ in states.values()), self._dropped())
        for guard in self._guards:
            snapshot = guard.complete_snapshot(snapshot)
        return snapshot

    def _states(self, server: Watched) -> Sequence[ServerSnapshot]:
        try:
            return server.snapshots()
        except Exception:  # noqa: BLE001 - the boundary to sources: one must not cost the others their figures
            self._losses.failed("snapshot_failed", "a server's state could not be read")
            return ()

    def _notify(self, snapshot: Snapshot) -> None:
        for index, watcher in enumerate(self._watchers):
            try:
                watcher(snapshot)
            except Exception:  # noqa: BLE001 - the boundary to watchers, which may be third-party code
                self._losses.failed("watcher_failed", "a watcher of snapshots failed", f"watcher {index}")
