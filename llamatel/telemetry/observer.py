"""From sources to telemetry: measures finished requests, writes their spans, and takes snapshots for collections.

The one place that calls collectors (each through a guard) and sinks. A reader's thread only puts a record into a
bounded queue; everything else happens on the observer's thread. Under overload counters and histograms stay complete
and spans are shed (``span_shedding``). If the queue is full nevertheless (a sink that hangs), the reader's thread
records the counters and histograms itself, and the request has neither spans nor sink lines.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from llamatel.collectors import Collector, Sample
from llamatel.records import ClientCall, Completion, ObservedRequest, ServerInfo
from llamatel.snapshots import Snapshot
from llamatel.telemetry.collector_guard import Guard, Record
from llamatel.telemetry.losses import Losses
from llamatel.telemetry.span_shedding import SpanShedding, wait_for_spans
from llamatel.telemetry.watched_servers import Watched, WatchedServers
from llamatel.tracing.call_announcements import AnnouncementReceiver
from llamatel.tracing.joining import Joiner, OpenCall, OpenCalls, Origin
from llamatel.tracing.server_addresses import Endpoint, endpoint_of

_log = logging.getLogger(__name__)

_JOIN_INTERVAL_S = (0.05, 0.2)
"""Interval of polling the joiner for requests whose wait for a client's call is over: with calls, and without."""
_WAIT_STEP_S = 0.1
_OPEN_S = 10.0
"""How long another process's report of its open calls is valid."""
CAPACITY = 8192
"""Most finished requests in the queue, about 8 MiB."""

SHED = "shed"
"""The reason under which spans that overload shed are counted."""


class SpanQueue(Protocol):
    """The part of the span exporter (``span_export``) that the observer uses."""

    @property
    def exported(self) -> int:
        """Spans that were delivered."""

    def load(self) -> float:
        """How full its queue is, 0 to 1."""

    def spooled(self) -> tuple[int, int] | None:
        """Bytes and spans in the spool; None without one."""


Emit = Callable[[Completion, Origin, float], "tuple[object, str | None]"]
"""Writes the spans of a request: the request, the call that it came from, the share of requests that get spans (1.0
unless spans are shed). Returns the context for exemplars and the trace id."""
Sink = Callable[[Completion, "str | None"], None]
"""Called with each finished request and its trace id. An optional method ``losses()`` returns what it lost, by
reason."""


def _no_spans(_request: ObservedRequest) -> None:
    pass


def _one_span(_completion: Completion) -> int:
    return 1


class Observer:
    """Runs collectors and sinks on what the watched servers do. Thread-safe."""

    def __init__(
        self,
        collectors: Iterable[Collector],
        *,
        emit: Emit,
        emit_observed: Callable[[ObservedRequest], object] = _no_spans,
        span_count: Callable[[Completion], int] = _one_span,
        sinks: Sequence[Sink] = (),
        watchers: Sequence[Callable[[Snapshot], None]] = (),
        dropped: Callable[[], Mapping[str, int]] = dict,
        span_queue: SpanQueue | None = None,
        capacity: int = CAPACITY,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``connect`` must follow.

        ``watchers`` are called with each snapshot, one at a time. ``dropped`` returns what other parts lost, by reason;
        ``span_count`` how many spans a request has. ``span_queue`` is None where nothing is exported over OTLP.
        """
        self._guards = [Guard(collector) for collector in collectors]
        self._completing = [guard for guard in self._guards if guard.has("complete")]
        self._measuring = [guard for guard in self._guards if guard.has("on_completion")]
        self._emit = emit
        self._emit_observed = emit_observed
        self._span_count = span_count
        self._sinks = tuple(sinks)
        self._watchers = tuple(watchers)
        self._dropped_elsewhere = dropped
        self._clock = clock
        self._capacity = capacity
        self._record: Record | None = None
        self._closed = False
        self._span_queue = span_queue
        self._announcements: AnnouncementReceiver | None = None
        self.restart()

    def restart(self) -> None:
        """Start with an empty queue and no sources; in a forked child, where the parent's threads do not run."""
        if self._announcements is not None:
            self._announcements.close()
            self._announcements = None
        self._queue: queue.Queue[Completion | ClientCall | ObservedRequest | OpenCalls | None] = queue.Queue(
            self._capacity
        )
        self._joiner = Joiner(decided=self._decided)
        self.shedding = SpanShedding(lambda: max(self._queue.qsize() / self._capacity, self._span_load()))
        self._hurry = threading.Event()
        """Set when requests must no longer wait for clients' calls."""
        self._recording = threading.Lock()
        """Held while collectors measure a request: the observer's thread does, and readers' while the queue is full."""
        self._lock = threading.Lock()
        """Held while the thread is started."""
        self._losses = Losses()
        self._servers = WatchedServers(
            self._guards, self._losses, self.dropped, watchers=self._watchers, clock=self._clock
        )
        self._thread: threading.Thread | None = None

    @property
    def collectors(self) -> tuple[Collector, ...]:
        """The collectors that run."""
        return tuple(guard.collector for guard in self._guards)

    @property
    def watching(self) -> bool:
        """Whether any source is watched."""
        return bool(self._servers.sources)

    def connect(self, record: Record) -> None:
        """Record samples of finished requests with ``record``; starts the collectors and the observer's thread."""
        self._record = record
        for guard in self._guards:
            guard.start()
        self._start_thread()

    def _start_thread(self) -> None:
        with self._lock:
            if self._thread is None and self._record is not None:
                self._thread = threading.Thread(
                    target=self._run, args=(self._record,), name="llamatel-observer", daemon=True
                )
                self._thread.start()

    def watch(self, server: Watched) -> None:
        """Watch a source; a second time does nothing."""
        self._servers.watch(server, self._submit_and_wait if getattr(server, "blocking", False) else self.submit)

    def unwatch(self, server: Watched) -> None:
        """Stop watching a source; its figures disappear from the export."""
        self._servers.unwatch(server)

    def submit(self, finished: Completion | ClientCall | ObservedRequest, *, wait: bool = False) -> None:
        """Queue a finished request or call. Never blocks, unless ``wait``: then until there is room.

        While the queue is full a request is measured on the calling thread and has no spans.
        """
        if isinstance(finished, ClientCall) and finished.elsewhere and self._queue.qsize() > self._queue.maxsize // 4:
            self._losses.add("call_elsewhere")  # calls of other processes must not cost requests
            finished.resolved(False)
            return
        if wait:
            wait_for_spans(self._span_load, lambda: self._closed)
        while wait and not self._closed:
            with contextlib.suppress(queue.Full):
                self._queue.put(finished, timeout=_WAIT_STEP_S)
                return
        try:
            if not self._closed:
                self._queue.put_nowait(finished)
                if self._thread is None:
                    self._start_thread()
                return
        except queue.Full:
            pass
        self._measure_at_once(finished)

    def _span_load(self) -> float:
        return 0.0 if self._span_queue is None else self._span_queue.load()

    def _submit_and_wait(self, finished: Completion | ObservedRequest) -> None:
        self.submit(finished, wait=True)

    def watches(self, server: ServerInfo) -> bool:
        """Whether a server that was started in this process has this address."""
        endpoint = endpoint_of(server)
        started = [getattr(source, "info", None) for source in self._servers.sources]
        return any(isinstance(info, ServerInfo) and endpoint_of(info) == endpoint for info in started)

    def call_started(self, key: object, call: OpenCall) -> None:
        """A client in this process is about to send a call: its request waits briefly for the call's end."""
        if not self._closed:
            self._joiner.started(key, call)

    def call_dropped(self, key: object) -> None:
        """Drop a call that was not one of llama.cpp."""
        self._joiner.dropped(key, other_server=True)

    def call_finished(self, call: ClientCall) -> None:
        """A call has finished; never blocks."""
        self.submit(call)

    def hold_for_reports(self, seconds: float) -> None:
        """Make each request wait for a report from another machine, whose first call is not announced."""
        self._joiner.grace_s = seconds

    def receive_announcements(self, receiver: AnnouncementReceiver) -> None:
        """Read what other processes announce, until ``close``."""
        self._announcements = receiver

    def expect_calls(self, endpoint: Endpoint | None, seconds: float) -> None:
        """Another process calls this server (None: one of them): requests wait briefly for its report."""
        self._joiner.expect(endpoint, seconds)

    def calls_elsewhere(self, report: OpenCalls) -> None:
        """Another process reports its open calls, after those that have finished; never blocks."""
        if self._queue.qsize() <= self._queue.maxsize // 4:
            self._queue.put_nowait(report)

    def snapshot(self, max_age_s: float = 0.0) -> Snapshot:
        """The state of all watched servers: the latest snapshot if it is at most that old, else a new one."""
        return self._servers.snapshot(max_age_s)

    def samples(self) -> list[Sample]:
        """A new snapshot of all watched servers, turned into samples by the collectors."""
        snapshot = self.snapshot()
        samples = [Sample("llamatel.spans.shed_ratio", self.shedding.shed_ratio)]
        if (spans := self._span_queue) is not None:
            samples.append(Sample("llamatel.spans.exported", spans.exported))
            if (spooled := spans.spooled()) is not None:
                names = ("llamatel.spool.size", "llamatel.spool.spans")
                samples += [Sample(name, value) for name, value in zip(names, spooled, strict=True)]
        for guard in self._guards:
            samples.extend(guard.on_snapshot(snapshot))
        return samples

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Wait until everything submitted so far is written; False if that took longer."""
        deadline = time.monotonic() + timeout_s
        with self._queue.all_tasks_done:
            while self._queue.unfinished_tasks:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._queue.all_tasks_done.wait(left)
        return True

    def drain(self, stalled_after_s: float = 5.0, at_most_s: float = float("inf")) -> bool:
        """Wait until everything submitted is written, while that makes progress; False if it stalls."""
        deadline = time.monotonic() + at_most_s
        waiting = self._queue.unfinished_tasks
        while not self.flush(min(stalled_after_s, deadline - time.monotonic())):
            now = self._queue.unfinished_tasks
            if now >= waiting or time.monotonic() >= deadline:
                return False
            waiting = now
        return True

    def close(self, timeout_s: float = 5.0) -> bool:
        """Write the queue and stop, within ``timeout_s``; False if requests were left, which is logged.

        Spans are shed after half of the time, so that counters and histograms are complete.
        """
        deadline = time.monotonic() + timeout_s
        again, self._closed = self._closed, True
        self._servers.close()
        self._hurry.set()
        done = self.flush(timeout_s / 2)
        if not done:
            self.shedding.shed_all()
            done = self.flush(deadline - time.monotonic())
        left = 0 if done else self._queue.unfinished_tasks
        if self._thread is not None and self._thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._queue.put_nowait(None)
            self._thread.join(max(0.0, deadline - time.monotonic()))
        if left and self._thread is not None and not again:
            self._losses.add("shutdown", left)
            _log.warning("%d requests that were read are not in telemetry: it had to end within %g s", left, timeout_s)
        for guard in self._guards:
            guard.stop()
        if self._announcements is not None:
            self._announcements.close()
        return done

    # -- the observer's thread ----------------------------------------------------------------------------------------

    def _run(self, record: Record) -> None:
        closing = waited = False
        join_at = 0.0
        while not closing:
            try:
                left = max(0.0, join_at - time.monotonic())
                finished = self._queue.get(timeout=left if self._joiner.waits else None)
            except queue.Empty:
                pass
            else:
                closing = finished is None
                if isinstance(finished, Completion):
                    self._joiner.completed(finished)
                elif isinstance(finished, ObservedRequest):
                    self._write_observed(finished)
                    self._queue.task_done()
                elif isinstance(finished, OpenCalls):
                    self._joiner.reported(finished, _OPEN_S)
                    self._queue.task_done()
                elif finished is None:
                    self._queue.task_done()
                else:
                    self._consume_call(finished, record)
            late = time.monotonic() - join_at
            if not closing and late < 0 and (waited or not self._queue.empty()):
                continue  # the joiner's cost grows with the number of waiting requests
            if waited:
                self._joiner.late(late)
            self._receive_announcements()
            hurry = closing or self._overloaded() or (self._hurry.is_set() and self._queue.empty())
            for completion, origin in self._joiner.due(all_of_them=hurry):
                try:
                    self._write(completion, origin, record)
                finally:
                    self._queue.task_done()
            waited = self._joiner.waits
            join_at = time.monotonic() + _JOIN_INTERVAL_S[not self._joiner.has_calls]

    def _receive_announcements(self) -> None:
        """Before requests are decided: what was announced before they started has arrived."""
        if self._announcements is not None and self._joiner.waits:
            for announced in self._announcements.receive():
                self._joiner.announced(announced.open_calls, _OPEN_S, any_server=announced.any_server)

    def _overloaded(self) -> bool:
        """Whether so many requests wait for clients' calls that they are released to bound memory."""
        return self._queue.unfinished_tasks > 2 * self._queue.maxsize

    def _write_observed(self, request: ObservedRequest) -> None:
        """Write the span of an observed request; it is incomplete, so nothing is counted or measured."""
        try:
            self._emit_observed(request)
        except Exception:  # noqa: BLE001 - the boundary to the tracing SDK and to the application's processors
            self._losses.failed("span_failed", "the spans of a request could not be written")

    def _consume_call(self, call: ClientCall, record: Record) -> None:
        self._measure_call(call, record)
        if not self.watching:
            self._joiner.dropped(call.key)
            self._decided(call, False)
        elif not self._joiner.finished(call):
            self._losses.add("call_elsewhere")
            self._decided(call, False)

    def _decided(self, call: ClientCall, joined: bool) -> None:
        try:
            call.resolved(joined)
        except Exception:  # noqa: BLE001 - the boundary to the tracing SDK and to the application's processors
            self._losses.failed("span_failed", "the parts of a call could not be written")
        finally:
            self._queue.task_done()

    def _measure_call(self, call: ClientCall, record: Record) -> None:
        if (
            call.elsewhere or call.foreign_span
        ):  # measured by its own process, or by the instrumentation that created it
            return
        with self._recording:
            for guard in self._guards:
                guard.on_call(call, record)

    def _measure(self, completion: Completion, record: Record, context: object) -> None:
        with self._recording:
            for guard in self._measuring:
                guard.on_completion(completion, record, context)

    def _write(self, completion: Completion, origin: Origin, record: Record) -> None:
        context: object = None
        trace_id = None
        for guard in self._completing:
            completion = guard.complete(completion)
        share = self.shedding.admit()
        if share is None:
            self._losses.add(SHED, self._span_count(completion))
        else:
            try:
                context, trace_id = self._emit(completion, origin, share)
            except Exception:  # noqa: BLE001 - the boundary to the tracing SDK and to the application's processors
                self._losses.failed("span_failed", "the spans of a request could not be written")
        self._measure(completion, record, context)
        for index, sink in enumerate(self._sinks):
            try:
                sink(completion, trace_id)
            except Exception:  # noqa: BLE001 - the boundary to sinks, which may be third-party code
                self._losses.failed("sink_failed", "a sink failed", f"sink {index}")

    # -- any thread ---------------------------------------------------------------------------------------------------

    def _measure_at_once(self, finished: Completion | ClientCall | ObservedRequest) -> None:
        """Record counters and histograms on the calling thread: the queue is full, or the observer is closed."""
        self._losses.add("observer_closed" if self._closed else "observer_full")
        if isinstance(finished, ClientCall):
            self._joiner.dropped(finished.key)
            finished.resolved(False)
        if self._record is None or self._closed or isinstance(finished, ObservedRequest):
            return
        if isinstance(finished, ClientCall):
            self._measure_call(finished, self._record)
        else:
            self._losses.add(SHED, self._span_count(finished))
            self._measure(finished, self._record, None)

    def dropped(self) -> dict[str, int]:
        """Records lost so far, by reason, those of exporters and sinks included; only reasons that occurred."""
        dropped = dict(self._dropped_elsewhere())
        for losses in (self._losses.by_reason(), *(sink.losses() for sink in self._sinks if hasattr(sink, "losses"))):
            for reason, count in losses.items():
                dropped[reason] = dropped.get(reason, 0) + count
        return dropped
