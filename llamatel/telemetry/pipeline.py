"""Providers, exporters and the metrics endpoint, made from Settings.

What the application has set up is used and left alone; what is made here becomes the process's own (global), so that
other instrumentation uses it too, and is shut down here, within a bounded time. An application that registers a
provider later replaces ours.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from threading import Lock
from typing import TYPE_CHECKING

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    ConsoleMetricExporter,
    MetricExportResult,
    MetricReader,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from llamatel.errors import PipelineError
from llamatel.telemetry import bounded_call as bounded
from llamatel.telemetry import metric_readers, otlp_exporters
from llamatel.telemetry.bounded_call import BoundedCall
from llamatel.telemetry.exposition import GATEWAY_VARIABLE, Exposition
from llamatel.telemetry.following_tracer import FollowingTracer
from llamatel.telemetry.kept_spans import KeptSpans
from llamatel.telemetry.metric_push import MetricPush
from llamatel.telemetry.metric_store import MetricStore
from llamatel.telemetry.metrics_endpoint import AddressInUse, MetricsEndpoint
from llamatel.telemetry.otlp_delivery import Delivery
from llamatel.telemetry.request_encoder import OwnTracerProvider, RequestEncoder
from llamatel.telemetry.resource import installed_version, resource_after_fork, resource_of
from llamatel.telemetry.sdk_adapter import is_placeholder, set_global
from llamatel.telemetry.settings import Settings
from llamatel.telemetry.span_export import OtlpSpanProcessor, SpanExport
from llamatel.tracing import global_tracer, openinference
from llamatel.tracing.semconv import SCHEMA_URL

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

_log = logging.getLogger(__name__)

SCOPE = "llamatel"
_FAILING_TIMEOUT_S = 1.0
"""How long shutdown waits for an endpoint that did not accept the last export either."""

_alive: weakref.WeakSet[object] = weakref.WeakSet()
"""Our running providers."""


class _Parts:
    """The parts that the pipeline made, and has to stop."""

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
        """What has a queue or a thread."""
        return [*self.pushes, *([self.spans] if self.spans is not None else [])]

    def all_delivered(self) -> bool:
        """Whether the last exports were delivered; metrics need not be at a backend for traces only."""
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
    """Where telemetry is written: a tracer, and the metric store or the SDK's meter."""

    def __init__(self, tracer: trace.Tracer, meter: metrics.Meter | None, settings: Settings, parts: _Parts) -> None:
        self.tracer = tracer
        self.meter = meter
        """Where instruments of the SDK are made; None if the store is enough."""
        self.store = parts.store
        """Our own aggregation of the metric table; None where the meter provider is the application's."""
        self.encoder = None if isinstance(tracer, openinference.OpenInferenceTracer) else parts.encoder
        """Writes spans of requests without the SDK; None where something else wants them."""
        self.metrics_url = parts.endpoint.url if parts.endpoint is not None else None
        """Where Prometheus finds the metrics; None without an endpoint of ours."""
        target = (
            settings.traces_otlp if parts.spans is not None else settings.metrics_otlp if parts.deliveries else None
        )
        self.otlp_endpoint = None if target is None else target.shown
        """Where telemetry goes over OTLP, to be shown; None if nothing of ours does."""
        self.otlp_protocol = None if target is None else target.protocol
        self.spans_leave = not parts.kept or parts.spans is not None or settings.traces_console
        """Whether spans, if there are any, go anywhere beyond this process."""
        self.kept_spans = parts.kept
        """The last spans; None where none are kept."""
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
        """Whether the meter is of a provider of ours, and new; else others have used it, or will."""
        return self.meter is None or any(isinstance(provider, MeterProvider) for provider in self._parts.providers)

    def publish(self) -> None:
        """Make our providers the process's, where it has none.

        Only once our instruments are made: instruments that were made without a provider before are made on ours now,
        and the SDK keeps the callbacks of the first.
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

    def exported(self) -> int | None:
        """Spans that were delivered over OTLP; None if spans are not sent."""
        return None if self._parts.spans is None else self._parts.spans.exported

    def spooled(self) -> tuple[int, int] | None:
        """Bytes and spans in the spool; None without one."""
        return None if self._parts.spans is None else self._parts.spans.spooled()

    def span_load(self) -> float:
        """How full the queue of the span exporter is, 0 to 1."""
        return 0.0 if self._parts.spans is None else self._parts.spans.load()

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
        for part in parts.exporters():
            part.request_flush(deadline)
        closed = [part.close(deadline) for part in parts.exporters()]
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
    """In a forked child: a process of its own, with empty queues and totals that start again."""
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


def build(
    settings: Settings,
    resource: Mapping[str, str | int] | None = None,
    *,
    strict: bool = True,
    port_may_move: bool = False,
) -> Pipeline:
    """Make the pipeline that the settings describe; ``resource``: additional resource attributes.

    A provider that the application has set is used; the settings for its signal then have no effect. A signal that
    goes nowhere is left to whatever the application sets up later. Raises PipelineError if the metrics address cannot
    be had, an exporter cannot be made or the environment has a mistake; unless ``strict``, which is for an application
    that must start: then each is a line in the log, and that part is left out. ``port_may_move``: take a free port
    where that of the metrics address is in use.
    """
    if settings.disabled:
        return Pipeline(trace.NoOpTracer(), metrics.NoOpMeter(SCOPE), settings, _Parts(Resource.get_empty()))
    report = _raise if strict else _warn
    for problem in settings.problems:
        _warn(problem)
    parts = _Parts(resource_of(settings, resource or {}))
    try:
        meter = _meter(settings, parts, report, may_move=port_may_move)
        tracer = openinference.traced(_tracer(settings, parts, report), os.environ)
    except (PipelineError, ValueError) as error:
        parts.discard()
        if isinstance(error, PipelineError):
            raise
        # The SDK raises ValueError for invalid environment variables.
        if strict:
            raise PipelineError(f"cannot set up OpenTelemetry: {error}") from error
        _warn(f"cannot set up OpenTelemetry: {error}; telemetry is off")
        return Pipeline(trace.NoOpTracer(), metrics.NoOpMeter(SCOPE), settings, _Parts(Resource.get_empty()))
    for provider in parts.providers:
        _alive.add(provider)
    return Pipeline(tracer, meter, settings, parts)


def _raise(message: str) -> None:
    raise PipelineError(message)


def _warn(message: str) -> None:
    _log.warning("%s", message)


Report = Callable[[str], None]


def _tracer(settings: Settings, parts: _Parts, report: Report) -> trace.Tracer:
    current = trace.get_tracer_provider()
    kept = parts.kept = KeptSpans(settings.keep_traces) if settings.keep_traces else None
    if not global_tracer.is_shut_down(current) and not is_placeholder(current):
        _log.info("spans go to the tracer provider that the application has set")
        _keep(current, parts)
        return _tracer_of(current)
    exports = settings.traces_otlp is not None or settings.traces_console
    if not exports and kept is None:
        return trace.NoOpTracer() if global_tracer.is_shut_down(current) else _tracer_of(current)
    provider = OwnTracerProvider(resource=parts.resource)
    parts.providers.append(provider)
    if settings.traces_otlp is not None:
        with _reported(report):
            parts.spans = otlp_exporters.span_export(
                settings, settings.traces_otlp, lambda: parts.resource, _scope(), report
            )
            parts.deliveries.append(parts.spans.delivery)
            provider.add_export(OtlpSpanProcessor(parts.spans))
            parts.encoder = RequestEncoder(provider, parts.spans)
    if kept is not None:
        provider.add_span_processor(kept)
    if settings.traces_console:
        one_line = ConsoleSpanExporter(formatter=lambda span: span.to_json(indent=None) + "\n", out=sys.stdout)
        provider.add_span_processor(SimpleSpanProcessor(one_line))
    return FollowingTracer(
        _tracer_of(provider),
        is_ours=lambda other: other in _alive or global_tracer.is_shut_down(other),
        stays=exports,
        joined=lambda other: _keep(other, parts),
        make=_tracer_of,
    )


def _tracer_of(provider: trace.TracerProvider) -> trace.Tracer:
    return provider.get_tracer(SCOPE, installed_version(), SCHEMA_URL)


def _scope() -> InstrumentationScope:
    return InstrumentationScope(SCOPE, installed_version(), SCHEMA_URL)


def _keep(provider: object, parts: _Parts) -> None:
    """Keep the spans of the application's provider, too; one that is not the SDK's may not allow it."""
    add = getattr(provider, "add_span_processor", None)
    if parts.kept is None or add is None:
        parts.kept = None
    else:
        add(parts.kept)


def _endpoint(
    address: tuple[str, int], exposition: Exposition, *, strict: bool, may_move: bool
) -> MetricsEndpoint | None:
    try:
        return MetricsEndpoint(*address, exposition.page)
    except AddressInUse:
        if not may_move:
            if strict:
                raise
            _warn(f"metrics are not served by this process: {address[0]}:{address[1]} is in use")
            return None
    made = MetricsEndpoint(address[0], 0, exposition.page)
    _warn(f"metrics are at {made.url}, as {address[0]}:{address[1]} is in use")
    return made


def _meter(settings: Settings, parts: _Parts, report: Report, *, may_move: bool) -> metrics.Meter | None:
    current = metrics.get_meter_provider()
    if not global_tracer.is_shut_down(current) and not is_placeholder(current):
        _log.info("metrics go to the meter provider that the application has set")
        return _meter_of(current)
    store = MetricStore(exemplars=os.environ.get("OTEL_METRICS_EXEMPLAR_FILTER", "").strip().lower() != "always_off")
    readers: list[MetricReader] = []
    exposition = None
    if settings.metrics_addr is not None:
        gateway = os.environ.get(GATEWAY_VARIABLE, "").strip().lower() == "true"
        exposition = Exposition(store, parts.resource.attributes, gateway=gateway)
        readers.append(exposition.reader)
        with _reported(report):
            parts.endpoint = _endpoint(settings.metrics_addr, exposition, strict=report is _raise, may_move=may_move)
    with_sdk = False
    if settings.metrics_otlp is not None:
        with _reported(report):
            with_sdk = metric_readers.needs_sdk_instruments(os.environ)
            source = metric_readers.MetricSource(
                None if with_sdk else store, lambda: parts.resource, _scope(), os.environ if with_sdk else {}
            )
            push, delivery = otlp_exporters.metric_push(settings, settings.metrics_otlp, source.collect, report)
            readers.append(source.reader)
            parts.pushes.append(push)
            parts.deliveries.append(delivery)
    if settings.metrics_console:
        source = metric_readers.MetricSource(store, lambda: parts.resource, _scope(), {})
        readers.append(source.reader)
        one_line = ConsoleMetricExporter(formatter=lambda data: data.to_json(indent=None) + "\n", out=sys.stdout)
        parts.pushes.append(
            MetricPush(
                source.collect,
                lambda data: one_line.export(data) is MetricExportResult.SUCCESS,
                settings.export_interval_s,
            )
        )
    if not readers:
        return metrics.NoOpMeter(SCOPE) if global_tracer.is_shut_down(current) else _meter_of(current)
    parts.store = store
    provider = MeterProvider(readers, resource=parts.resource, shutdown_on_exit=False)
    parts.providers.append(provider)
    return _meter_of(provider) if with_sdk else None


def _meter_of(provider: metrics.MeterProvider) -> metrics.Meter:
    return provider.get_meter(SCOPE, installed_version(), SCHEMA_URL)


@contextlib.contextmanager
def _reported(report: Report) -> Iterator[None]:
    """The boundary of one part: if ``report`` does not raise, the others are set up without it."""
    try:
        yield
    except PipelineError as error:
        report(str(error))
