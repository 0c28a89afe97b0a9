"""Builds a pipeline from Settings: providers, exporters, the metrics endpoint.

Each part is a separate boundary: in an application that must start, a part that fails is logged and left out.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
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
from llamatel.telemetry import metric_readers, otlp_exporters
from llamatel.telemetry.exposition import GATEWAY_VARIABLE, Exposition
from llamatel.telemetry.following_tracer import FollowingTracer
from llamatel.telemetry.kept_spans import KeptSpans
from llamatel.telemetry.metric_push import MetricPush
from llamatel.telemetry.metric_store import MetricStore
from llamatel.telemetry.metrics_endpoint import AddressInUse, MetricsEndpoint
from llamatel.telemetry.pipeline import Parts, Pipeline
from llamatel.telemetry.request_encoder import OwnTracerProvider, RequestEncoder
from llamatel.telemetry.resource import installed_version, resource_of
from llamatel.telemetry.sdk_adapter import is_placeholder
from llamatel.telemetry.settings import Settings
from llamatel.telemetry.span_export import OtlpSpanProcessor
from llamatel.tracing import global_tracer, openinference
from llamatel.tracing.semconv import SCHEMA_URL

if TYPE_CHECKING:
    pass

_log = logging.getLogger(__name__)

SCOPE = "llamatel"

alive: weakref.WeakSet[object] = weakref.WeakSet()
"""Our running providers."""


def build(
    settings: Settings,
    resource: Mapping[str, str | int] | None = None,
    *,
    strict: bool = True,
    port_may_move: bool = False,
) -> Pipeline:
    """Build the pipeline that the settings describe; ``resource``: additional resource attributes.

    A provider that the application has set is used; the settings for its signal then have no effect. A signal that
    goes nowhere is left to whatever the application sets up later. Raises PipelineError if the metrics address cannot
    be had, an exporter cannot be made or the environment has a mistake; unless ``strict``, which is for an application
    that must start: then each is a line in the log, and that part is left out. ``port_may_move``: take a free port
    where that of the metrics address is in use.
    """
    if settings.disabled:
        return Pipeline(trace.NoOpTracer(), metrics.NoOpMeter(SCOPE), settings, Parts(Resource.get_empty()))
    report = _raise if strict else _warn
    for problem in settings.problems:
        _warn(problem)
    parts = Parts(resource_of(settings, resource or {}))
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
        return Pipeline(trace.NoOpTracer(), metrics.NoOpMeter(SCOPE), settings, Parts(Resource.get_empty()))
    for provider in parts.providers:
        alive.add(provider)
    return Pipeline(tracer, meter, settings, parts)


def _raise(message: str) -> None:
    raise PipelineError(message)


def _warn(message: str) -> None:
    _log.warning("%s", message)


Report = Callable[[str], None]


def _tracer(settings: Settings, parts: Parts, report: Report) -> trace.Tracer:
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
        is_ours=lambda other: other in alive or global_tracer.is_shut_down(other),
        stays=exports,
        joined=lambda other: _keep(other, parts),
        make=_tracer_of,
    )


def _tracer_of(provider: trace.TracerProvider) -> trace.Tracer:
    return provider.get_tracer(SCOPE, installed_version(), SCHEMA_URL)


def _scope() -> InstrumentationScope:
    return InstrumentationScope(SCOPE, installed_version(), SCHEMA_URL)


def _keep(provider: object, parts: Parts) -> None:
    """Keep the spans of the application's provider, too; a provider that is not the SDK's may not allow it."""
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


def _meter(settings: Settings, parts: Parts, report: Report, *, may_move: bool) -> metrics.Meter | None:
    current = metrics.get_meter_provider()
    if not global_tracer.is_shut_down(current) and not is_placeholder(current):
        _log.info("metrics go to the meter provider that the application has set")
        if settings.metrics_addr is not None and report is _raise:  # a command, under opentelemetry-instrument
            _warn("/metrics and the page are not served: the process has a meter provider, which gets all metrics")
        return _meter_of(current)
    store = MetricStore(exemplars=os.environ.get("OTEL_METRICS_EXEMPLAR_FILTER", "").strip().lower() != "always_off")
    readers: list[MetricReader] = []
    exposition = None
    if settings.metrics_addr is not None:
        gateway = os.environ.get(GATEWAY_VARIABLE, "").strip().lower() == "true"
        exposition = Exposition(store, parts.resource.attributes, gateway=gateway)
        readers.append(exposition.reader)
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
    if exposition is not None and settings.metrics_addr is not None:
        with _reported(report):
            parts.endpoint = _endpoint(settings.metrics_addr, exposition, strict=report is _raise, may_move=may_move)
    return _meter_of(provider) if with_sdk else None


def _meter_of(provider: metrics.MeterProvider) -> metrics.Meter:
    return provider.get_meter(SCOPE, installed_version(), SCHEMA_URL)


@contextlib.contextmanager
def _reported(report: Report) -> Iterator[None]:
    """Boundary of one part: if ``report`` does not raise, the pipeline is built without the part."""
    try:
        yield
    except PipelineError as error:
        report(str(error))
