"""Providers, exporters and the metrics endpoint of this process: flushed and shut down within a bounded time.

The application's providers are used and not changed. Ours (``pipeline_builder``) become the process's global providers,
for other instrumentation too, and are shut down here. A provider that the application registers later replaces ours.
"""

from __future__ import annotations

import atexit
import logging
import os
import time
import weakref
from collections.abc import Callable, Mapping
from threading import Lock
from typing import TYPE_CHECKING

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource

from llamatel.telemetry import bounded_call as bounded
from llamatel.telemetry.bounded_call import BoundedCall
from llamatel.telemetry.kept_spans import KeptSpans
from llamatel.telemetry.metric_push import MetricPush
from llamatel.telemetry.metric_store import MetricStore
from llamatel.telemetry.metrics_endpoint import MetricsEndpoint
from llamatel.telemetry.otlp_delivery import Delivery
from llamatel.telemetry.request_encoder import OwnTracerProvider, RequestEncoder
from llamatel.telemetry.resource import resource_after_fork
from llamatel.telemetry.sdk_adapter import is_placeholder, set_global
from llamatel.telemetry.settings import Settings
from llamatel.telemetry.span_export import SpanExport
from llamatel.tracing import global_tracer, openinference

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

_log = logging.getLogger(__name__)

_FAILING_TIMEOUT_S = 1.0
"""How long shutdown waits for an endpoint that did not accept the last export either."""

_METRICS_SHARE = 0.25
"""Share of the shutdown time that is reserved for the last metrics."""


class Parts:
    """The parts that the pipeline created and has to stop."""

    def __init__(self, about: Resource) -> None:
        self.resource = about
        self.providers: list[OwnTracerProvider | MeterProvider] = []
        self.deliveries: list[Delivery] = []
        self.pushes: list[MetricPush] = []
        self.spans: SpanExport | None = None
        self.kept: KeptSpans | None = None
        self.store: MetricStore | None = None
        self.encoder: RequestEncoder | None = None
        self.endpoint: MetricsEndpoint | None = None

    def exporters(self) -> list[SpanExport | MetricPush]:
        """The parts with a queue or a thread."""
        return [*self.pushes, *([self.spans] if self.spans is not None else [])]

    def all_delivered(self) -> bool:
        """Whether the last exports were delivered; a backend for traces only need not accept metrics."""
        traces_arrive = self.spans is not None and self.spans.delivery.delivered_any
        return not any(one.failing and not (one.refused and traces_arrive) for one in self.deliveries)

    def discard(self) -> None:
        """Stop the parts of a pipeline that could not be set up; nothing has been recorded yet."""
        for part in self.exporters():
            part.close(0.0)
        for provider in self.providers:
            provider.shutdown()
        if self.endpoint is not None:
            self.endpoint.close()


class Pipeline:
    """The destination of telemetry: a tracer, and the metric store or the SDK's meter."""

    def __init__(self, tracer: trace.Tracer, meter: metrics.Meter | None, settings: Settings, parts: Parts) -> None:
        self.tracer = tracer
        self.meter = meter
        """The meter for the SDK's instruments; None if the store is enough."""
        self.store = parts.store
        """Our own aggregation of metrics; None if the meter provider is the application's."""
        self.encoder = None if isinstance(tracer, openinference.OpenInferenceTracer) else parts.encoder
        """Writes spans of requests without the SDK; None if they have other readers than OTLP."""
        self.span_queue = parts.spans
        """Sends spans over OTLP; None if they are not sent."""
        self.metrics_url = parts.endpoint.url if parts.endpoint is not None else None
        """URL of the metrics for Prometheus; None without our endpoint."""
        target = (
            settings.traces_otlp if parts.spans is not None else settings.metrics_otlp if parts.deliveries else None
        )
        self.otlp_endpoint = None if target is None else target.shown
        """The OTLP endpoint, for display; None if we send nothing over OTLP."""
        self.otlp_protocol = None if target is None else target.protocol
        self.spans_leave = not parts.kept or parts.spans is not None or settings.traces_console
        """Whether spans leave this process."""
        self.kept_spans = parts.kept
        """The last spans; None if none are kept."""
        self._parts = parts
        self._timeout_s = settings.shutdown_timeout_s
        self._delivered: bool | None = None
        self._prepare()
        if parts.providers or parts.pushes:
            atexit.register(self.shutdown)
            if hasattr(os, "register_at_fork"):
                this = weakref.ref(self)
                os.register_at_fork(after_in_child=lambda: _after_fork(this()))

    @property
    def measures_alone(self) -> bool:
        """Whether the meter is new and of our provider; else others may use it, too."""
        return self.meter is None or any(isinstance(provider, MeterProvider) for provider in self._parts.providers)

    def publish(self) -> None:
        """Make our providers the process's global ones, if it has none.

        Called after our instruments are created: instruments that others created without a provider are created on ours
        now, and the SDK keeps the callbacks of the first.
        """
        for provider in self._parts.providers:
            current = (
                metrics.get_meter_provider() if isinstance(provider, MeterProvider) else trace.get_tracer_provider()
            )
            if is_placeholder(current) or global_tracer.is_shut_down(current):
                set_global(provider)

    def show(self, page: WSGIApplication) -> None:
        """Answer all paths but /metrics with ``page``; without an endpoint of ours nothing happens."""
        if self._parts.endpoint is not None:
            self._parts.endpoint.page = page
            self._parts.endpoint.ready = True

    def dropped(self) -> Mapping[str, int]:
        """Spans lost so far, by reason: queue_full, export_failed, rejected, shutdown. Metrics are cumulative."""
        return {} if self._parts.spans is None else self._parts.spans.lost()

    @property
    def points_rejected(self) -> int:
        """Data points that the OTLP endpoint rejected."""
        spans = None if self._parts.spans is None else self._parts.spans.delivery
        return sum(delivery.rejected for delivery in self._parts.deliveries if delivery is not spans)

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Export what is queued. False if that took longer than ``timeout_s``, or an endpoint does not accept it."""
        parts = self._parts
        calls: list[Callable[[float], bool]] = [push.flush for push in parts.pushes]
        if parts.spans is not None:
            calls.append(parts.spans.flush)
        results = [call(timeout_s) for call in calls]
        shared = [one for one in parts.providers if isinstance(one, OwnTracerProvider) and one.shared]
        results += [provider.force_flush(int(timeout_s * 1000)) for provider in shared]
        return all(results) and not any(delivery.failing for delivery in parts.deliveries)

    def shutdown(self, timeout_s: float | None = None) -> bool:
        """Export what is queued and stop the pipeline within ``timeout_s`` (and 0.1 s more for /metrics).

        True if everything was delivered; an endpoint that accepts spans and never accepted metrics is a backend for
        traces only. Calling it again does nothing and returns the same. An application's own providers are left
        alone.
        """
        with self._lock:
            if self._delivered is None:
                atexit.unregister(self.shutdown)
                self._delivered = self._end(self._timeout_s if timeout_s is None else timeout_s)
            return self._delivered

    def _end(self, timeout_s: float) -> bool:
        parts = self._parts
        before = sum(self.dropped().values())
        if any(delivery.failing for delivery in parts.deliveries):
            timeout_s = min(timeout_s, _FAILING_TIMEOUT_S)
        deadline = time.monotonic() + timeout_s
        closed = []
        if parts.spans is not None:
            # Before the last metrics, which report how many spans were exported and lost.
            closed.append(parts.spans.close(deadline - (timeout_s * _METRICS_SHARE if parts.pushes else 0.0)))
        if parts.store is not None:
            parts.store.expire()
        for push in parts.pushes:
            push.request_flush(deadline)
        closed += [push.close(deadline) for push in parts.pushes]
        in_time = bounded.make(self._enders, max(0.1, deadline - time.monotonic())) and all(closed)
        if parts.endpoint is not None:
            parts.endpoint.close()
        if parts.kept is not None:
            parts.kept.close()
        for provider in parts.providers:
            global_tracer.mark_shut_down(provider)
        lost = sum(self.dropped().values()) - before
        if lost:
            spans = "1 span" if lost == 1 else f"{lost} spans"
            _log.warning("%s could not be sent to %s before the end", spans, self.otlp_endpoint)
        return in_time and not lost and parts.all_delivered()

    def _prepare(self) -> None:
        self._lock = Lock()
        self._enders = [BoundedCall("llamatel-shutdown", provider.shutdown) for provider in self._parts.providers]


def _after_fork(pipeline: Pipeline | None) -> None:
    """Reset, in a forked child: empty queues, totals from 0, another process in the resource."""
    if pipeline is None or pipeline._delivered is not None:
        return
    parts = pipeline._parts
    parts.resource = resource_after_fork(parts.resource)
    if parts.endpoint is not None:
        parts.endpoint.close_after_fork()
        parts.endpoint = None
        if parts.store is not None and not parts.pushes:
            parts.store.when_first_recorded(_not_scraped)
    if parts.store is not None:
        parts.store.reset()
    for part in parts.exporters():
        part.reset()
    pipeline._prepare()


def _not_scraped() -> None:
    _log.warning(
        "metrics of this forked process are not served: send them over OTLP (OTEL_EXPORTER_OTLP_ENDPOINT), or call "
        "llamatel.init() in each worker"
    )
