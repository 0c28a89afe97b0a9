"""Converts the metric store to OpenTelemetry's metric data, for OTLP and the console."""

from __future__ import annotations

import math
from collections.abc import Iterable

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from llamatel.metrics import Kind
from llamatel.telemetry.metric_store import Family, Point

_CUMULATIVE = AggregationTemporality.CUMULATIVE


def scope_metrics(
    families: Iterable[Family], scope: InstrumentationScope, now_ns: int, *, exemplars_since: float = 0.0
) -> ScopeMetrics:
    """One collection of the store under one scope.

    Exemplars are sent once: only those newer than ``exemplars_since`` (Unix seconds).
    """
    metrics = [_metric(family, now_ns, exemplars_since) for family in families]
    return ScopeMetrics(scope, metrics, scope.schema_url or "")


def _metric(family: Family, now_ns: int, since: float) -> Metric:
    row = family.row
    data: Histogram | Sum | Gauge
    if row.kind is Kind.HISTOGRAM:
        data = Histogram([_histogram(point, row.buckets, now_ns, since) for point in family.points], _CUMULATIVE)
    else:
        numbers = [
            NumberDataPoint(
                attributes=point.set.attributes,
                start_time_unix_nano=int(point.first_at * 1e9),
                time_unix_nano=now_ns,
                value=point.value,
                exemplars=[],
            )
            for point in family.points
        ]
        is_sum = row.kind is not Kind.GAUGE
        data = Sum(numbers, _CUMULATIVE, is_monotonic=row.kind is not Kind.UP_DOWN) if is_sum else Gauge(numbers)
    return Metric(row.name, row.help, row.unit, data)


def _histogram(point: Point, bounds: tuple[float, ...], now_ns: int, since: float) -> HistogramDataPoint:
    count = sum(point.counts)
    return HistogramDataPoint(
        attributes=point.set.attributes,
        start_time_unix_nano=int(point.first_at * 1e9),
        time_unix_nano=now_ns,
        count=count,
        sum=point.value,
        bucket_counts=point.counts,
        explicit_bounds=bounds,
        min=point.minimum if count else math.inf,
        max=point.maximum if count else -math.inf,
        exemplars=[
            Exemplar({}, one.value, int(one.at * 1e9), one.span_id, one.trace_id)
            for one in point.exemplars.values()
            if one.at >= since
        ],
    )
