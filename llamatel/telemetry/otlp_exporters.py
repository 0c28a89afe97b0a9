"""The two OTLP exporters, made from settings and environment: the queue of spans and the push of metrics."""

from __future__ import annotations

import os
from collections.abc import Callable

from opentelemetry.sdk.metrics.export import MetricsData
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from llamatel.telemetry.metric_push import MetricPush
from llamatel.telemetry.otlp_delivery import Delivery
from llamatel.telemetry.otlp_options import OtlpOptions
from llamatel.telemetry.otlp_spool import Spool
from llamatel.telemetry.otlp_transport import transport
from llamatel.telemetry.settings import OtlpTarget, Settings
from llamatel.telemetry.span_export import SpanExport


def span_export(
    settings: Settings,
    target: OtlpTarget,
    resource: Callable[[], Resource],
    scope: InstrumentationScope,
    problem: Callable[[str], None],
) -> SpanExport:
    """The queue of spans for a target. Raises PipelineError for certificates that cannot be used."""
    return SpanExport(
        delivery("spans", "traces", target, problem),
        resource=resource,
        scope=scope,
        queue_size=settings.span_queue_size,
        batch_size=settings.span_batch_size,
        delay_s=settings.schedule_delay_s,
        spool=None if settings.otlp_spool is None else Spool(settings.otlp_spool),
    )


def metric_push(
    settings: Settings, target: OtlpTarget, collect: Callable[[], MetricsData], problem: Callable[[str], None]
) -> tuple[MetricPush, Delivery]:
    """The push of metrics to a target. Raises PipelineError for certificates that cannot be used."""
    sending = delivery("metrics", "metrics", target, problem)

    def send(data: MetricsData) -> bool:
        from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics

        return not data.resource_metrics or sending.send(encode_metrics(data).SerializeToString())

    return MetricPush(collect, send, settings.export_interval_s, sending.end_by), sending


def delivery(what: str, signal: str, target: OtlpTarget, problem: Callable[[str], None]) -> Delivery:
    """A delivery of one signal with the options of the environment."""
    options = OtlpOptions.from_env(signal, target.endpoint, os.environ, problem)
    return Delivery(what, target.url, transport(signal, target, options), options.timeout_s)
