"""Sources of metric pushes: the metric store, and metrics of other instrumentation on our meter provider."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from opentelemetry.sdk.metrics import Counter, Histogram, ObservableCounter
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader, MetricsData, ResourceMetrics
from opentelemetry.sdk.metrics.view import Aggregation, ExponentialBucketHistogramAggregation
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from llamatel.telemetry.metric_points import scope_metrics
from llamatel.telemetry.metric_store import MetricStore

_TEMPORALITY = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"
_HISTOGRAMS = "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION"
_EXPONENTIAL = "base2_exponential_bucket_histogram"
_DELTA: Mapping[str, tuple[type, ...]] = {
    "delta": (Counter, Histogram, ObservableCounter),
    "lowmemory": (Counter, Histogram),
}
"""Instruments with delta temporality by preference; all others are cumulative."""


def needs_sdk_instruments(environ: Mapping[str, str]) -> bool:
    """Whether the environment requests OTLP metrics in a form that the metric store does not support."""
    return bool(_delta(environ) or _exponential(environ))


class MetricSource:
    """Collects for one exporter."""

    def __init__(
        self,
        store: MetricStore | None,
        resource: Callable[[], Resource],
        scope: InstrumentationScope,
        environ: Mapping[str, str],
    ) -> None:
        """Without a ``store`` our own metrics come through ``reader``, with the preferences of ``environ``."""
        self._store = store
        self._resource = resource
        self._scope = scope
        self._collected_at = 0.0
        aggregations: dict[type, Aggregation] = {}
        if _exponential(environ):
            aggregations[Histogram] = ExponentialBucketHistogramAggregation()
        self.reader = InMemoryMetricReader(dict.fromkeys(_delta(environ), AggregationTemporality.DELTA), aggregations)
        """A reader for the process's meter provider."""

    def collect(self) -> MetricsData:
        """The current metrics."""
        data = self.reader.get_metrics_data()
        scopes = [scope for one in data.resource_metrics for scope in one.scope_metrics] if data is not None else []
        if self._store is not None:
            since, self._collected_at = self._collected_at, time.time()
            families = self._store.collect()
            scopes.insert(0, scope_metrics(families, self._scope, time.time_ns(), exemplars_since=since))
        scopes = [scope for scope in scopes if scope.metrics]
        resource = self._resource()
        return MetricsData([ResourceMetrics(resource, scopes, resource.schema_url)] if scopes else [])


def _delta(environ: Mapping[str, str]) -> tuple[type, ...]:
    return _DELTA.get(environ.get(_TEMPORALITY, "").strip().lower(), ())


def _exponential(environ: Mapping[str, str]) -> bool:
    return environ.get(_HISTOGRAMS, "").strip().lower() == _EXPONENTIAL
