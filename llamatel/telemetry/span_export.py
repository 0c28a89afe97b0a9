"""The queue of spans for export over OTLP, and the thread that sends them in batches.

Spans of requests come encoded (``request_encoder``), those of the application's code as the SDK's objects. Every span
is counted: exported, or lost by reason.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Span

from llamatel.outputs.log_once import LogOnce
from llamatel.telemetry import otlp_encoding
from llamatel.telemetry.otlp_delivery import Delivery
from llamatel.telemetry.otlp_spool import Spool

_log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 1.0
_MAX_PAUSE_S = 30.0
"""Seconds between attempts to send the spool."""


class SpanExport:
    """Thread-safe. The thread starts with the first span, also in a forked child."""

    def __init__(
        self,
        delivery: Delivery,
        *,
        resource: Callable[[], Resource],
        scope: InstrumentationScope,
        queue_size: int = 16384,
        batch_size: int = 512,
        delay_s: float = 5.0,
        spool: Spool | None = None,
    ) -> None:
        """``resource``: of all spans, now; ``scope``: of the encoded ones. Sizes are numbers of spans.

        ``spool``: keeps batches on disk until they are accepted.
        """
        self.delivery = delivery
        self._resource = resource
        self._scope = scope
        self._queue_size = queue_size
        self._batch_size = batch_size
        self._wake_at = max(1, min(batch_size, queue_size // 4))
        """Queued spans that wake the thread: a small queue must not fill up between two exports."""
        self._delay_s = delay_s
        self._closed = False
        self._spool: Spool | None = None
        self._once = LogOnce(_log)
        self.reset()
        self._spool = spool
        if spool is not None and len(spool):
            self._start()  # spans of an earlier process

    def reset(self) -> None:
        """Clear the queue, in a forked child; the spool stays the parent's."""
        self._spool = None
        self._retry_at = 0.0
        self._pause_s = _FIRST_PAUSE_S
        self.delivery.reset()
        self._changed = threading.Condition()
        self._queue: deque[tuple[int, bytes | ReadableSpan]] = deque()
        self._waiting = 0
        """Spans in the queue."""
        self._under_way = 0
        self._exported = 0
        self._lost: dict[str, int] = {}
        self._flushing = False
        self._abandoned = False
        self._thread: threading.Thread | None = None

    def put(self, span: bytes | ReadableSpan, count: int = 1) -> bool:
        """Queue one span, or ``count`` encoded ones; False, and counted, if they do not fit."""
        with self._changed:
            if self._closed or self._waiting + count > self._queue_size:
                self._lose("shutdown" if self._closed else "queue_full", count)
                return False
            self._queue.append((count, span))
            before = self._waiting
            self._waiting += count
            if self._thread is None:
                self._start()
            elif before < self._wake_at <= self._waiting:
                self._changed.notify_all()
        return True

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="llamatel-otlp-spans", daemon=True)
        self._thread.start()

    def load(self) -> float:
        """How full the queue is, 0 to 1. Without a working endpoint 0: shedding would not help."""
        return 0.0 if self.delivery.failing else self._waiting / self._queue_size

    def lost(self) -> dict[str, int]:
        """Spans that were lost, by reason: queue_full, export_failed, rejected, shutdown, spool_full."""
        with self._changed:
            lost = dict(self._lost)
        if self._spool is not None and self._spool.dropped:
            lost["spool_full"] = self._spool.dropped
        if self.delivery.rejected:
            lost["rejected"] = min(self.delivery.rejected, self._exported)  # the endpoint may report any number
        return lost

    @property
    def exported(self) -> int:
        """Spans that the endpoint accepted."""
        return max(0, self._exported - self.delivery.rejected)

    def spooled(self) -> tuple[int, int] | None:
        """Bytes and spans in the spool; None without one."""
        return None if self._spool is None else (self._spool.size, self._spool.spans)

    @property
    def _pending(self) -> bool:
        """Whether spans wait in the spool and may be sent."""
        return self._spool is not None and len(self._spool) > 0 and not self.delivery.failing

    def flush(self, timeout_s: float) -> bool:
        """Send what is queued; False if that took longer."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._flushing = True
            self._changed.notify_all()
            while self._waiting or self._under_way or self._pending:
                left = deadline - time.monotonic()
                if left <= 0 or self._thread is None:
                    return False
                self._changed.wait(left)
        return True

    def request_flush(self, deadline: float) -> None:
        """Stop accepting spans and start sending the rest, until ``deadline``; ``close`` waits for it."""
        with self._changed:
            self._closed = self._flushing = True
            self._changed.notify_all()
        self.delivery.end_by(deadline)

    def close(self, deadline: float) -> bool:
        """Send what is queued until ``deadline`` (``time.monotonic``) and stop; False if spans were left.

        Spans that are left, and later ones, are counted as lost.
        """
        self.request_flush(deadline)
        done = self.flush(max(0.0, deadline - time.monotonic()))
        with self._changed:
            if not self._abandoned:
                self._abandoned = True
                self._lose("shutdown", self._waiting + self._under_way)
                self._queue.clear()
                self._waiting = 0
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(0.0 if not done else 1.0)
        if done:
            self.delivery.close()
            if self._spool is not None:
                if self._spool.spans:
                    _log.warning("%d spans stay in the spool, for the next start", self._spool.spans)
                self._spool.close()
        return done

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._waiting < self._wake_at and not self._flushing and not self._pending:
                    self._changed.wait(self._delay_s)
                if self._abandoned or (self._closed and not self._waiting and not self._pending):
                    self._changed.notify_all()
                    return
                batch, size = self._next_batch()
                if not size and self._spool is None:
                    self._flushing = False
                    continue
                self._under_way = size
            delivered = self._send(batch, size) if size else None
            with self._changed:
                if delivered is not None and not self._abandoned:
                    if delivered:
                        self._exported += size
                    else:
                        self._lose("export_failed", size)
                self._under_way = 0
                self._flushing = self._flushing and bool(self._waiting)
                self._changed.notify_all()
            if self._spool is not None:
                self._send_spooled(self._spool)
                with self._changed:
                    self._changed.notify_all()

    def _next_batch(self) -> tuple[list[bytes | ReadableSpan], int]:
        batch, size = [], 0
        while self._queue and (size + self._queue[0][0] <= self._batch_size or not size):
            count, one = self._queue.popleft()
            batch.append(one)
            size += count
        self._waiting -= size
        return batch, size

    def _send(self, batch: Sequence[bytes | ReadableSpan], size: int) -> bool | None:
        """Whether the batch was delivered; None if it is in the spool."""
        try:
            message = self._encode(batch)
            if self._spool is not None:
                try:
                    self._spool.put(message, size)
                except OSError as error:
                    self._once.warning("spool", "cannot write to the spool: %s", error.strerror)
                else:
                    return None
            return self.delivery.send(message)
        except Exception:  # noqa: BLE001 - the boundary of the thread: logged, and the batch is counted as lost
            self._once.error("failed", "spans could not be sent; further failures are only counted", exc_info=True)
            return False

    def _send_spooled(self, spool: Spool) -> None:
        """Send the spool until an attempt fails or a new batch is due."""
        while time.monotonic() >= self._retry_at or self._closed:
            oldest = spool.oldest()
            if oldest is None:
                return
            message, spans = oldest
            if self.delivery.send(message, retries=False):
                spool.remove()
                self._pause_s = _FIRST_PAUSE_S
                self._exported += spans
            elif self.delivery.may_retry:
                self._retry_at = time.monotonic() + self._pause_s
                self._pause_s = min(2 * self._pause_s, _MAX_PAUSE_S)
                return
            else:
                spool.remove()
                with self._changed:
                    self._lose("export_failed", spans)
            if self._waiting >= self._wake_at:
                return

    def _encode(self, batch: Sequence[bytes | ReadableSpan]) -> bytes:
        scopes: dict[tuple[bytes, str], list[bytes]] = {}
        for one in batch:
            if isinstance(one, bytes):
                scopes.setdefault(_scope_key(self._scope), []).append(one)
            else:
                scopes.setdefault(_scope_key(one.instrumentation_scope), []).append(otlp_encoding.sdk_span(one))
        resource = self._resource()
        return otlp_encoding.export_request(otlp_encoding.resource(resource.attributes), resource.schema_url, scopes)

    def _lose(self, reason: str, count: int) -> None:
        if count:
            self._lost[reason] = self._lost.get(reason, 0) + count


def _scope_key(scope: InstrumentationScope | None) -> tuple[bytes, str]:
    if scope is None:
        return b"", ""
    return otlp_encoding.scope(scope.name, scope.version, scope.attributes), scope.schema_url or ""


class OtlpSpanProcessor(SpanProcessor):
    """Queues the sampled spans of a tracer provider for export."""

    def __init__(self, export: SpanExport) -> None:
        self._export = export

    def on_start(self, span: Span, parent_context: object = None) -> None:
        """Nothing."""

    def on_end(self, span: ReadableSpan) -> None:
        """Queue it."""
        if span.context is not None and span.context.trace_flags.sampled:
            self._export.put(span)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send what is queued."""
        return self._export.flush(timeout_millis / 1000)
