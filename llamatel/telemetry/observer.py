"""From sources to telemetry: takes finished requests off the readers' hands, and snapshots when somebody collects.

The one place where collectors (each behind a guard) and sinks are called. A reader's thread only puts a record into a
bounded queue; spans, histograms and sinks are written on the observer's own thread, so a slow one costs records (which
are counted), never a line of the log.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from llamatel.collectors import Collector, Sample
from llamatel.records import ClientCall, Completion, ObservedRequest
from llamatel.snapshots import ServerSnapshot, Snapshot
from llamatel.telemetry.collector_guard import Guard, Record
from llamatel.tracing.joining import Endpoint, Joiner, OpenCall, Origin

_log = logging.getLogger(__name__)

_LOOK_AGAIN_S = 0.02
"""How often requests that wait for a client's call are looked at."""
CAPACITY = 8192
"""Finished requests that wait at most: some ten seconds of the fastest server we know, about 8 MiB."""


class Watched(Protocol):
    """A source of telemetry: a server that we started, or a log that we follow."""

    def subscribe(self, listener: Callable[[Completion | ObservedRequest], None]) -> Callable[[], None]:
        """Call ``listener`` for each request that ends; returns what ends that."""

    def snapshots(self) -> Sequence[ServerSnapshot]:
        """Its state now, and that of its models if it is a router; none where there is nothing to tell."""


Emit = Callable[[Completion, Origin], "tuple[object, str | None]"]
"""Writes the spans of a request below those of the call that it came from, where that is known; returns a context for
exemplars, and the trace's id."""
Sink = Callable[[Completion, "str | None"], None]


class Observer:
    """Runs collectors and sinks on what the watched servers do."""

    def __init__(
        self,
        collectors: Iterable[Collector],
        *,
        emit: Emit,
        emit_observed: Callable[[ObservedRequest], object] = lambda _: None,
        sinks: Sequence[Sink] = (),
        watchers: Sequence[Callable[[Snapshot], None]] = (),
        dropped: Callable[[], Mapping[str, int]] = dict,
        capacity: int = CAPACITY,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``connect`` must follow.

        ``watchers`` are called with each snapshot, one at a time. ``dropped`` tells what others lost on the way out, by
        reason.
        """
        self._guards = [Guard(collector) for collector in collectors]
        self._completing = [guard for guard in self._guards if guard.has("complete")]
        self._measuring = [guard for guard in self._guards if guard.has("on_completion")]
        self._emit = emit
        self._emit_observed = emit_observed
        self._sinks = tuple(sinks)
        self._watchers = tuple(watchers)
        self._logged: set[str] = set()
        self._dropped_elsewhere = dropped
        self._clock = clock
        self._queue: queue.Queue[Completion | ClientCall | ObservedRequest | None] = queue.Queue(capacity)
        self._joiner = Joiner()
        self._hurry = threading.Event()
        """Set when what waits has to be written at once."""
        self._lock = threading.Lock()
        self._dropped: dict[str, int] = {}
        self._watched: dict[int, tuple[Watched, Callable[[], None]]] = {}
        self._closed = False
        self._thread: threading.Thread | None = None
        self._taking = threading.Lock()
        self._latest: Snapshot | None = None

    @property
    def collectors(self) -> tuple[Collector, ...]:
        """The collectors that run."""
        return tuple(guard.collector for guard in self._guards)

    @property
    def watching(self) -> bool:
        """Whether there is anything that it follows."""
        with self._lock:
            return bool(self._watched)

    def connect(self, record: Record) -> None:
        """Where samples of finished requests go; starts the collectors' sources and the observer's thread."""
        for guard in self._guards:
            guard.start()
        self._thread = threading.Thread(target=self._run, args=(record,), name="llamatel-observer", daemon=True)
        self._thread.start()

    def watch(self, server: Watched) -> None:
        """Follow a server; a second time does nothing."""
        with self._lock:
            if id(server) not in self._watched and not self._closed:
                self._watched[id(server)] = (server, server.subscribe(self.submit))

    def unwatch(self, server: Watched) -> None:
        """Follow it no more; its figures disappear from the export."""
        with self._lock:
            entry = self._watched.pop(id(server), None)
        if entry is not None:
            entry[1]()

    def submit(self, finished: Completion | ClientCall | ObservedRequest) -> None:
        """Take a finished request or call; never blocks. Counts it as dropped if too many wait, or after the end."""
        if isinstance(finished, ClientCall) and (self._closed or self._queue.full()):
            self._joiner.gone(finished.key)
        if self._closed:
            self._drop("observer_closed")
            return
        if isinstance(finished, ClientCall) and finished.elsewhere and self._queue.qsize() > self._queue.maxsize // 4:
            self._drop("call_elsewhere")  # others' calls must not cost our requests
            return
        try:
            self._queue.put_nowait(finished)
        except queue.Full:
            self._drop("observer_full")

    def call_started(self, key: object, call: OpenCall) -> None:
        """A call of our client is about to be sent: requests that may be its own wait a little for its end."""
        if not self._closed:
            self._joiner.began(key, call)

    def expect_calls(self, where: Endpoint, seconds: float) -> None:
        """Another process calls this server: requests may be its own, and wait a little for its news."""
        self._joiner.expect(where, seconds)

    def snapshot(self, max_age_s: float = 0.0) -> Snapshot:
        """The state of all watched servers: the last one, if it is no older than that, else a new one.

        One is taken at a time; who waited for another's may have it if any age above 0 will do.
        """
        with self._taking:
            latest = self._latest
            if latest is None or self._clock() - latest.taken_at > max_age_s or max_age_s <= 0.0:
                latest = self._latest = self._take()
                self._show(latest)
            return latest

    def samples(self) -> list[Sample]:
        """A snapshot of all watched servers, turned into samples by the collectors."""
        snapshot = self.snapshot()
        samples: list[Sample] = []
        for guard in self._guards:
            samples.extend(guard.on_snapshot(snapshot))
        return samples

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Wait until all requests handed in so far are written; False if that took longer."""
        deadline = time.monotonic() + timeout_s
        with self._queue.all_tasks_done:
            while self._queue.unfinished_tasks:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._queue.all_tasks_done.wait(left)
        return True

    def close(self, timeout_s: float = 5.0) -> bool:
        """Write what waits and end, within ``timeout_s``; False if that was too short."""
        deadline = time.monotonic() + timeout_s
        with self._lock:
            watched = [] if self._closed else list(self._watched.values())
            self._closed = True
        for _, unsubscribe in watched:
            unsubscribe()
        self._hurry.set()
        done = self.flush(timeout_s)
        if self._thread is not None and self._thread.is_alive():
            try:
                self._queue.put_nowait(None)
            except queue.Full:
                done = False
            self._thread.join(max(0.0, deadline - time.monotonic()))
        for guard in self._guards:
            guard.stop()
        return done

    def _run(self, record: Record) -> None:
        ended = waited = False
        look_at = 0.0
        while not ended:
            try:
                left = max(0.0, look_at - time.monotonic())
                finished = self._queue.get(timeout=left if self._joiner.waits else None)
            except queue.Empty:
                pass
            else:
                ended = finished is None
                if isinstance(finished, Completion):
                    self._joiner.completed(finished)
                elif isinstance(finished, ObservedRequest):
                    self._write_observed(finished)
                    self._queue.task_done()
                else:
                    if finished is not None:
                        if not self._joiner.ended(finished):
                            self._drop("call_elsewhere")
                        if not finished.elsewhere:
                            self._count(finished, record)
                    self._queue.task_done()
            if not ended and time.monotonic() < look_at and (waited or not self._queue.empty()):
                continue  # looking costs the more the more wait
            hurry = ended or (self._hurry.is_set() and self._queue.empty())
            for completion, origin in self._joiner.due(all_of_them=hurry):
                try:
                    self._write(completion, origin, record)
                finally:
                    self._queue.task_done()
            waited = self._joiner.waits
            look_at = time.monotonic() + _LOOK_AGAIN_S

    def _write_observed(self, request: ObservedRequest) -> None:
        """A span, and nothing that counts or measures: it is neither complete nor exact."""
        try:
            self._emit_observed(request)
        except Exception:  # noqa: BLE001 - the boundary to the tracing SDK and to the application's processors
            self._failed("span_failed", "the spans of a request could not be written")

    def _count(self, call: ClientCall, record: Record) -> None:
        for guard in self._guards:
            guard.on_call(call, record)

    def _write(self, completion: Completion, origin: Origin, record: Record) -> None:
        context: object = None
        trace_id = None
        for guard in self._completing:
            completion = guard.complete(completion)
        try:
            context, trace_id = self._emit(completion, origin)
        except Exception:  # noqa: BLE001 - the boundary to the tracing SDK and to the application's processors
            self._failed("span_failed", "the spans of a request could not be written")
        for guard in self._measuring:
            guard.on_completion(completion, record, context)
        for index, sink in enumerate(self._sinks):
            try:
                sink(completion, trace_id)
            except Exception:  # noqa: BLE001 - the boundary to sinks, which are anybody's
                self._failed("sink_failed", "a sink failed", f"sink {index}")

    def _show(self, snapshot: Snapshot) -> None:
        for index, watcher in enumerate(self._watchers):
            try:
                watcher(snapshot)
            except Exception:  # noqa: BLE001 - the boundary to watchers, which are anybody's
                self._failed("watcher_failed", "a watcher of snapshots failed", f"watcher {index}")

    def _take(self) -> Snapshot:
        with self._lock:
            servers = [server for server, _ in self._watched.values()]
        # One server has one place: where a manager was replaced by another on its port, the last word counts.
        states = {state.server.key: state for server in servers for state in self._states(server)}
        dropped = dict(self._dropped_elsewhere())
        with self._lock:
            for reason, count in self._dropped.items():
                dropped[reason] = dropped.get(reason, 0) + count
        snapshot = Snapshot(self._clock(), tuple(states.values()), dropped)
        for guard in self._guards:
            snapshot = guard.complete_snapshot(snapshot)
        return snapshot

    def _states(self, server: Watched) -> Sequence[ServerSnapshot]:
        try:
            return server.snapshots()
        except Exception:  # noqa: BLE001 - the boundary to sources: one must not cost the others their figures
            self._failed("snapshot_failed", "a server's state could not be taken")
            return ()

    def _failed(self, reason: str, message: str, key: str = "") -> None:
        """Count an error that is being handled, and show it the first time."""
        self._drop(reason)
        if (key or reason) not in self._logged:
            self._logged.add(key or reason)
            _log.exception("%s; further failures are only counted", message)

    def _drop(self, reason: str) -> None:
        with self._lock:
            self._dropped[reason] = self._dropped.get(reason, 0) + 1
