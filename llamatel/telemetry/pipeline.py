"""Providers, exporters and the metrics endpoint, made from Settings.

What the application has set up already is used and left alone; what is made here becomes the process's own (global),
so that other instrumentation joins in, and is shut down here, within a time that is kept.
"""

from __future__ import annotations

import atexit
import logging
import os
import platform
import socket
import sys
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from threading import Lock
from types import MappingProxyType
from typing import TYPE_CHECKING

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from llamatel.errors import PipelineError
from llamatel.telemetry import attribute_sets, exporters
from llamatel.telemetry import bounded_call as bounded
from llamatel.telemetry.bounded_call import BoundedCall
from llamatel.telemetry.exporters import CountedSpanProcessor, Delivery, MetricDelivery, ScrapedReader, SpanDelivery
from llamatel.telemetry.kept_spans import KeptSpans
from llamatel.telemetry.metrics_endpoint import MetricsEndpoint, ScrapeRegistry
from llamatel.telemetry.settings import Settings
from llamatel.tracing import global_tracer

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

_log = logging.getLogger(__name__)

_SCOPE = "llamatel"
_FAILING_TIMEOUT_S = 1.0
"""How long shutting down waits for an endpoint that did not take the last export either."""


@dataclass
class _Owned:
    """What the pipeline has made, and so has to end."""

    providers: list[TracerProvider | MeterProvider] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)
    fed: list[PeriodicExportingMetricReader] = field(default_factory=list)
    """Readers that no provider knows of (see ``exporters.ScrapedReader``)."""
    spans: SpanDelivery | None = None
    kept: KeptSpans | None = None
    endpoint: MetricsEndpoint | None = None

    def to_end(self) -> list[PeriodicExportingMetricReader | TracerProvider | MeterProvider]:
        """What has to be flushed and shut down."""
        return [*self.fed, *self.providers]

    def discard(self) -> None:
        """End what was made for a pipeline that did not come about; nothing has been recorded yet."""
        for part in self.to_end():
            part.shutdown()
        if self.endpoint is not None:
            self.endpoint.close()


class Pipeline:
    """What telemetry is written to: a tracer and a meter, and what has to be said and done about them."""

    def __init__(self, tracer: trace.Tracer, meter: metrics.Meter, settings: Settings, owned: _Owned) -> None:
        self.tracer = tracer
        self.meter = meter
        self.metrics_url = owned.endpoint.url if owned.endpoint is not None else None
        """Where Prometheus finds the metrics; None without an endpoint of ours."""
        target = (
            settings.traces_otlp if owned.spans is not None else settings.metrics_otlp if owned.deliveries else None
        )
        self.otlp_endpoint = None if target is None else target.shown
        """Where telemetry goes over OTLP, to be shown; None if nothing of ours does."""
        self.otlp_protocol = None if target is None else target.protocol
        self.spans_leave = not owned.kept or owned.spans is not None or settings.traces_console
        """Whether spans, if there are any, go anywhere beyond this process."""
        self.kept_spans = owned.kept
        """The last spans; None where none are kept, or the application has a tracer provider of its own."""
        self._owned = owned
        self._timeout_s = settings.shutdown_timeout_s
        self._delivered: bool | None = None
        self._prepare()
        if owned.providers:
            atexit.register(self.shutdown)
            if hasattr(os, "register_at_fork"):
                this = weakref.ref(self)
                os.register_at_fork(after_in_child=lambda: _after_fork(this()))

    @property
    def measures_alone(self) -> bool:
        """Whether the meter is of a provider of ours, and new; else others have used it, or will."""
        return any(isinstance(provider, MeterProvider) for provider in self._owned.providers)

    def publish(self) -> None:
        """Make our providers the process's, where it has none; that cannot be taken back.

        Only once our instruments are made: what was made without a provider before is made on ours now, and the SDK
        keeps the callbacks of whoever comes first.
        """
        for provider in self._owned.providers:
            if isinstance(provider, MeterProvider) and _is_unset(metrics.get_meter_provider()):
                metrics.set_meter_provider(provider)
            elif isinstance(provider, TracerProvider) and _is_unset(trace.get_tracer_provider()):
                trace.set_tracer_provider(provider)

    def show(self, page: WSGIApplication) -> None:
        """Answer with ``page`` beside /metrics; nothing happens without an endpoint of ours."""
        if self._owned.endpoint is not None:
            self._owned.endpoint.page = page

    def dropped(self) -> Mapping[str, int]:
        """Spans lost so far, by reason: queue_full, export_failed, shutdown. Metrics are cumulative: none are lost."""
        return {} if self._owned.spans is None else self._owned.spans.lost()

    def span_load(self) -> float:
        """How full the queue of the span exporter is, 0 to 1."""
        return 0.0 if self._owned.spans is None else self._owned.spans.load()

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Export what waits. False if it took longer than the time given, or an endpoint does not take it."""
        owned = self._owned
        calls = [BoundedCall("llamatel-flush", part.force_flush) for part in owned.to_end()]
        return bounded.make(calls, timeout_s) and not any(delivery.failing for delivery in owned.deliveries)

    def shutdown(self, timeout_s: float | None = None) -> bool:
        """Export what waits and end everything of ours, within the time given (and 0.1 s more for /metrics).

        True if all that waited was delivered. Calling it again does nothing and says the same. An application's own
        providers are left alone.
        """
        with self._lock:
            if self._delivered is None:
                atexit.unregister(self.shutdown)
                self._delivered = self._end(self._timeout_s if timeout_s is None else timeout_s)
            return self._delivered

    def _prepare(self) -> None:
        self._lock = Lock()
        self._enders = [BoundedCall("llamatel-shutdown", part.shutdown) for part in self._owned.to_end()]

    def _end(self, timeout_s: float) -> bool:
        owned = self._owned
        before = sum(self.dropped().values())
        if owned.spans is not None:
            owned.spans.close()
        if any(delivery.failing for delivery in owned.deliveries):
            timeout_s = min(timeout_s, _FAILING_TIMEOUT_S)
        in_time = bounded.make(self._enders, timeout_s)
        for delivery in owned.deliveries:
            delivery.abandon()
        if owned.spans is not None:
            owned.spans.abandon()
        if owned.endpoint is not None:
            owned.endpoint.close()
        for provider in owned.providers:
            global_tracer.ended(provider)
        lost = sum(self.dropped().values()) - before
        if lost:
            _log.warning("%d spans could not be sent to %s before the end", lost, self.otlp_endpoint)
        return in_time and not lost and not any(delivery.failing for delivery in owned.deliveries)


def _after_fork(pipeline: Pipeline | None) -> None:
    """In a forked child the SDK starts its threads anew, with empty queues; do the same for ours."""
    if pipeline is None or pipeline._delivered is not None:
        return
    if pipeline._owned.endpoint is not None:
        pipeline._owned.endpoint.close_after_fork()
        pipeline._owned.endpoint = None
    if pipeline._owned.spans is not None:
        pipeline._owned.spans.reset()
    pipeline._prepare()


def build(settings: Settings, resource: Mapping[str, str | int] | None = None) -> Pipeline:
    """Make the pipeline that the settings describe; ``resource`` has attributes beside the usual ones.

    A provider that the application has set is used; the settings for its signal then have no effect. A signal that is
    to go nowhere is left to whatever the application may set up later. Raises PipelineError if the metrics address
    cannot be had or an exporter cannot be made.
    """
    owned = _Owned()
    if settings.disabled:
        return Pipeline(trace.NoOpTracer(), metrics.NoOpMeter(_SCOPE), settings, owned)
    about = resource_of(settings, resource or {})
    release = installed_version()
    try:
        meters = _meters(settings, about, owned)
        tracers = _tracers(settings, about, owned)
    except (PipelineError, ValueError) as error:
        owned.discard()
        if isinstance(error, PipelineError):
            raise
        # The SDK raises ValueError for nonsense in its environment variables.
        raise PipelineError(f"cannot set up OpenTelemetry: {error}") from error
    return Pipeline(tracers.get_tracer(_SCOPE, release), meters.get_meter(_SCOPE, release), settings, owned)


def _tracers(settings: Settings, about: Resource, owned: _Owned) -> trace.TracerProvider:
    current = trace.get_tracer_provider()
    retired = global_tracer.has_ended(current)
    if not retired and not _is_unset(current):
        _log.info("spans go to the tracer provider that the application has set")
        return current
    if settings.traces_otlp is None and not settings.traces_console and not settings.keep_traces:
        return trace.NoOpTracerProvider() if retired else current
    provider = TracerProvider(resource=about, shutdown_on_exit=False)
    owned.providers.append(provider)
    if settings.traces_otlp is not None:
        target = settings.traces_otlp
        exporters.listen()
        owned.spans = SpanDelivery(exporters.otlp_spans(target), target, settings.span_queue_size)
        owned.deliveries.append(owned.spans.delivery)
        provider.add_span_processor(
            CountedSpanProcessor(owned.spans, settings.span_queue_size, settings.span_batch_size)
        )
    if settings.keep_traces:
        owned.kept = KeptSpans(settings.keep_traces)
        provider.add_span_processor(owned.kept)
    if settings.traces_console:
        one_line = ConsoleSpanExporter(formatter=lambda span: span.to_json(indent=None) + "\n", out=sys.stdout)
        provider.add_span_processor(SimpleSpanProcessor(one_line))
    return provider


def _meters(settings: Settings, about: Resource, owned: _Owned) -> metrics.MeterProvider:
    current = metrics.get_meter_provider()
    retired = global_tracer.has_ended(current)
    if not retired and not _is_unset(current):
        _log.info("metrics go to the meter provider that the application has set")
        return current
    readers: list[MetricReader] = []
    registry = ScrapeRegistry()
    scraped = None
    if settings.metrics_addr is not None:
        scraped = ScrapedReader(registry)
        readers.append(scraped)
    if settings.metrics_otlp is not None:
        exporters.listen()
        delivery = MetricDelivery(exporters.otlp_metrics(settings.metrics_otlp), settings.metrics_otlp)
        owned.deliveries.append(delivery.delivery)
        pushing = PeriodicExportingMetricReader(delivery)
        if scraped is not None and exporters.wants_what_prometheus_wants(delivery):
            scraped.feed(pushing)
            owned.fed.append(pushing)
        else:
            readers.append(pushing)
    if settings.metrics_console:
        one_line = ConsoleMetricExporter(formatter=lambda data: data.to_json(indent=None) + "\n", out=sys.stdout)
        readers.append(PeriodicExportingMetricReader(one_line))
    if not readers:
        return metrics.NoOpMeterProvider() if retired else current
    for reader in readers:
        attribute_sets.raise_limits(reader)
    provider = MeterProvider(readers, resource=about, shutdown_on_exit=False)
    attribute_sets.forget_removed(provider)
    owned.providers.append(provider)
    if settings.metrics_addr is not None:
        owned.endpoint = MetricsEndpoint(*settings.metrics_addr, registry)
    return provider


def _is_unset(provider: object) -> bool:
    """Whether a global provider is only the placeholder for one; that of metrics has no public name."""
    return isinstance(provider, trace.ProxyTracerProvider) or type(provider).__name__ == "_ProxyMeterProvider"


class _Resource(Resource):
    """A resource that is hashed once: the OTLP encoder hashes it for every span, and the SDK's hash writes JSON."""

    _hash: int | None = None

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = super().__hash__()
        return self._hash


def resource_of(settings: Settings, extra: Mapping[str, str | int] = MappingProxyType({})) -> Resource:
    """What telemetry is about. The environment wins over what is detected here, arguments win over both.

    Never the command line: it may hold an API key.
    """
    detected = Resource.create()
    attributes = {
        "service.name": "llamatel",
        "host.name": socket.gethostname(),
        "process.pid": os.getpid(),
        "process.runtime.name": sys.implementation.name,
        "process.runtime.version": platform.python_version(),
        **detected.attributes,
        **extra,
    }
    release = installed_version()
    if release is not None:
        attributes.setdefault("service.version", release)
    if settings.service_name:
        attributes["service.name"] = settings.service_name
    elif str(attributes["service.name"]).startswith("unknown_service"):
        attributes["service.name"] = "llamatel"
    return _Resource(attributes, detected.schema_url)


def installed_version() -> str | None:
    """Llamatel's version."""
    try:
        return version("llamatel")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return None
