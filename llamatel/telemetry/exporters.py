"""OpenTelemetry's exporters, held so that a program can forget about them.

The SDK batches, retries and reads its environment. What it leaves open is added here: what is lost is counted by
reason, trouble is said once when it starts and once when it ends, and after the time to shut down is over nothing is
tried any more.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    MetricExporter,
    MetricExportResult,
    MetricReader,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from llamatel.errors import PipelineError
from llamatel.telemetry.metrics_endpoint import ScrapeRegistry
from llamatel.telemetry.settings import OtlpTarget

_log = logging.getLogger(__name__)

_LONGEST_REASON = 300
_WORDS_AROUND = (
    re.compile(r"^Failed to export .* error details: (.+)"),
    re.compile(r"^Transient error .* Error details: (.+)"),
    re.compile(r"^Transient error (.+) encountered while exporting"),
    re.compile(r"Caused by \w+\([\"'](?:HTTPS?Connection\(.*?\): )?(.+)[\"']\)"),
)


class _Overheard(logging.Handler):
    """Hears what an exporter logs while it exports, and tells the delivery that waits for it.

    That it is attached also keeps Python from printing the SDK's warnings, one a batch, where no logging is set up;
    an application's own handlers get them as before. Records that a delivery was told carry ``llamatel_told``: who
    shows what we say of it need not show them too.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._told = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        tell = getattr(self._told, "tell", None)
        if tell is not None:
            record.llamatel_told = True
            tell(in_short(record.getMessage()))

    @contextmanager
    def telling(self, tell: Callable[[str], None]) -> Iterator[None]:
        """For the time of the block, call ``tell`` with what this thread's exporter says."""
        self._told.tell = tell
        try:
            yield
        finally:
            self._told.tell = None


def in_short(said: str) -> str:
    """The reason in what an exporter says of its trouble, on one line."""
    reason = " ".join(said.split())
    for pattern in _WORDS_AROUND:
        if found := pattern.search(reason):
            reason = found.group(1)
    return reason[:_LONGEST_REASON]


_overheard = _Overheard()
_reasons: dict[str, str] = {}
"""The last trouble with each endpoint."""


def listen() -> None:
    """Attach to the SDK's loggers; again is the same as once."""
    for name in (
        "opentelemetry.exporter",
        "opentelemetry.sdk._shared_internal",
        "opentelemetry.sdk.metrics._internal.export",
    ):
        logging.getLogger(name).addHandler(_overheard)


class Delivery:
    """The state of one exporter: does it work, and shall it still try."""

    def __init__(self, what: str, target: OtlpTarget) -> None:
        self._what = what
        self._where = target.shown
        self.failing = False
        self._logged = False
        self._abandoned = False

    def attempt(self, export: Callable[[], bool]) -> bool:
        """Run one export; True if it succeeded. Logs when trouble starts and when it is over."""
        if self._abandoned:
            return False
        with _overheard.telling(self._say_why):
            try:
                delivered = export()
            except Exception as error:  # noqa: BLE001  (the boundary to exporters: said, and counted by the caller)
                delivered = False
                self._say_why(f"{type(error).__name__}: {error}")
        if not delivered:
            # The SDK says the same thing once in 20 seconds: spans fail for what metrics have just failed for.
            self._say_why(_reasons.get(self._where, "no reason given"))
        elif self._logged and not self._abandoned:
            self._logged = False
            _log.warning("%s arrive at %s again", self._what, self._where)
        if not self._abandoned:
            self.failing = not delivered
        return delivered

    def _say_why(self, reason: str) -> None:
        """Said with the first try that fails: the exporter may go on trying for ten seconds."""
        if not self._logged and not self._abandoned:
            self._logged = True
            _reasons[self._where] = reason
            _log.warning("cannot send %s to %s: %s", self._what, self._where, reason)

    def abandon(self) -> None:
        """The time is up: every further export fails at once."""
        self._abandoned = True


class SpanDelivery(SpanExporter):
    """A span exporter that counts: spans waiting, spans lost by reason."""

    def __init__(self, inner: SpanExporter, target: OtlpTarget, queue_size: int) -> None:
        self.delivery = Delivery("spans", target)
        self._inner = inner
        self._queue_size = queue_size
        self._closed = False
        self._abandoned = False
        self.reset()

    def reset(self) -> None:
        """Start counting anew (in a forked child, whose queue the SDK empties)."""
        self._lock = threading.Lock()
        self._waiting = 0
        self._under_way = 0
        self._lost: dict[str, int] = {}

    def admit(self) -> bool:
        """Whether there is room for one more span; a span that there is none for is counted."""
        with self._lock:
            if self._closed or self._waiting >= self._queue_size:
                self._lose("shutdown" if self._closed else "queue_full", 1)
                return False
            self._waiting += 1
            return True

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export a batch that the SDK has taken from its queue."""
        with self._lock:
            if self._abandoned:
                return SpanExportResult.FAILURE
            self._waiting -= len(spans)
            self._under_way += len(spans)
        delivered = self.delivery.attempt(lambda: self._inner.export(spans) is SpanExportResult.SUCCESS)
        with self._lock:
            if not self._abandoned:
                self._under_way -= len(spans)
                if not delivered:
                    self._lose("export_failed", len(spans))
        return SpanExportResult.SUCCESS if delivered else SpanExportResult.FAILURE

    def load(self) -> float:
        """How full the queue is, 0 to 1."""
        return self._waiting / self._queue_size

    def close(self) -> None:
        """Take no more spans; those that wait are still exported."""
        with self._lock:
            self._closed = True

    def abandon(self) -> None:
        """Give up on the spans that wait or are under way, and count them."""
        with self._lock:
            if not self._abandoned:
                self._abandoned = True
                self._lose("shutdown", self._waiting + self._under_way)

    def lost(self) -> dict[str, int]:
        """Spans that were lost, by reason: queue_full, export_failed, shutdown."""
        with self._lock:
            return dict(self._lost)

    def shutdown(self) -> None:
        """End the exporter."""
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Pass it on."""
        return self._inner.force_flush(timeout_millis)

    def _lose(self, reason: str, count: int) -> None:
        if count:
            self._lost[reason] = self._lost.get(reason, 0) + count


class CountedSpanProcessor(BatchSpanProcessor):
    """The SDK's batch processor, with a queue whose overflow is counted instead of logged once a span.

    It never lets the SDK's own queue overflow: a span that finds it full is dropped here.
    """

    def __init__(self, delivery: SpanDelivery, queue_size: int, batch_size: int) -> None:
        self._delivery = delivery
        super().__init__(delivery, max_queue_size=queue_size, max_export_batch_size=batch_size)

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a sampled span, or drop and count it."""
        if span.context is not None and span.context.trace_flags.sampled and self._delivery.admit():
            super().on_end(span)


class MetricDelivery(MetricExporter):
    """A metric exporter that reports trouble once. Totals are cumulative, so an export that fails loses nothing."""

    def __init__(self, inner: MetricExporter, target: OtlpTarget) -> None:
        # The reader takes both preferences from the exporter's attributes; there is no other way to pass them on.
        super().__init__(inner._preferred_temporality, inner._preferred_aggregation)
        self.delivery = Delivery("metrics", target)
        self._inner = inner

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        """Export one collection."""
        delivered = self.delivery.attempt(
            lambda: self._inner.export(metrics_data, timeout_millis, **kwargs) is MetricExportResult.SUCCESS
        )
        return MetricExportResult.SUCCESS if delivered else MetricExportResult.FAILURE

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Pass it on."""
        return self._inner.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """End the exporter."""
        self._inner.shutdown(timeout_millis, **kwargs)


class ScrapedReader(PrometheusMetricReader):
    """Prometheus's reader, from which a pushing reader can read too.

    Two readers of the SDK aggregate every measurement twice. Where both want the same, cumulative totals and the
    buckets of the metric table, one aggregation serves both, and a request costs a seventh less.
    """

    def __init__(self, registry: ScrapeRegistry) -> None:
        # No scope labels: there is one scope, and it would be on every series. Resource attributes are in target_info.
        super().__init__(scope_info_enabled=False, registry=registry)
        self._exemplars = registry.exemplars
        self._reading = threading.local()

    def feed(self, pushing: PeriodicExportingMetricReader) -> None:
        """Make ``pushing`` read from here instead of being a reader of the provider."""
        pushing._set_collect_callback(self._read)  # type: ignore[arg-type]  # the SDK's annotation is not what it calls

    def _read(self, _reader: MetricReader, timeout_millis: float = 10_000) -> MetricsData | None:
        self._reading.kept = None
        self._reading.now = True
        try:
            self.collect(timeout_millis)
            return cast("MetricsData | None", self._reading.kept)
        finally:
            self._reading.now = False
            self._reading.kept = None

    def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> None:
        self._exemplars.take(metrics_data)
        if getattr(self._reading, "now", False):
            self._reading.kept = metrics_data
        else:
            super()._receive_metrics(metrics_data, timeout_millis, **kwargs)


def wants_what_prometheus_wants(exporter: MetricExporter) -> bool:
    """Whether an exporter takes what is aggregated for Prometheus: all cumulative, and no other kind of histogram."""
    temporalities = (exporter._preferred_temporality or {}).values()
    aggregations = (exporter._preferred_aggregation or {}).values()
    return all(wanted is AggregationTemporality.CUMULATIVE for wanted in temporalities) and all(
        type(wanted) is ExplicitBucketHistogramAggregation for wanted in aggregations
    )


def otlp_spans(target: OtlpTarget) -> SpanExporter:
    """The SDK's OTLP span exporter. Each protocol is imported only when it is used: gRPC alone is 15 MiB."""
    with _setup_errors(target):
        if target.protocol == "grpc":
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

            return GrpcExporter(endpoint=target.endpoint)
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

        return HttpExporter(endpoint=target.endpoint)


def otlp_metrics(target: OtlpTarget) -> MetricExporter:
    """The SDK's OTLP metric exporter."""
    with _setup_errors(target):
        if target.protocol == "grpc":
            from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcExporter

            return GrpcExporter(endpoint=target.endpoint)
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpExporter

        return HttpExporter(endpoint=target.endpoint)


@contextmanager
def _setup_errors(target: OtlpTarget) -> Iterator[None]:
    """Says what an exporter does not like about its environment in one line."""
    try:
        yield
    except Exception as error:
        raise PipelineError(f"cannot set up OTLP over {target.protocol} to {target.shown}: {error}") from error
