"""Exemplars on the metrics endpoint: beside a histogram's bucket, the trace of a request that fell into it.

OpenTelemetry's Prometheus reader leaves them out. Only OpenMetrics can say them: Prometheus asks for that format
itself, who asks for plain text gets the same as without them.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping

from opentelemetry.sdk.metrics.export import Histogram, HistogramDataPoint, MetricsData
from opentelemetry.trace import format_span_id, format_trace_id
from prometheus_client import Metric
from prometheus_client.samples import Exemplar

from llamatel.metrics import table
from llamatel.telemetry.prometheus_names import prometheus_label, prometheus_name

Labels = frozenset[tuple[str, str]]


class Exemplars:
    """The last exemplar of each bucket of our histograms.

    The SDK hands out each exemplar once. It is kept until another takes its bucket, so that none is lost to a second
    scraper or to an export over OTLP; with its series it goes.
    """

    def __init__(self) -> None:
        self._kept: dict[str, dict[Labels, dict[float, Exemplar]]] = {}

    def take(self, data: MetricsData) -> None:
        """Take what one collection has."""
        ours = table()
        for metric in (
            one for resource in data.resource_metrics for scope in resource.scope_metrics for one in scope.metrics
        ):
            if not isinstance(metric.data, Histogram) or metric.name not in ours:
                continue
            name = prometheus_name(metric.name)
            before = self._kept.pop(name, {})
            if before or any(point.exemplars for point in metric.data.data_points):
                self._kept[name] = {
                    labels: {**before.get(labels, {}), **_by_bound(point)}
                    for point in metric.data.data_points
                    for labels in [_labels({prometheus_label(k): str(v) for k, v in (point.attributes or {}).items()})]
                }

    def attach(self, families: Iterable[Metric]) -> None:
        """Put them onto the buckets that are about to be shown."""
        for family in families:
            series = self._kept.get(family.name)
            if not series:
                continue
            for index, sample in enumerate(family.samples):
                bound = sample.labels.get("le")
                if bound is not None:
                    exemplar = series.get(_labels(sample.labels), {}).get(float(bound))
                    family.samples[index] = sample._replace(exemplar=exemplar)


def _labels(labels: Mapping[str, str]) -> Labels:
    return frozenset((name, value) for name, value in labels.items() if name != "le" and value)


def _by_bound(point: HistogramDataPoint) -> dict[float, Exemplar]:
    """A point's exemplars that lead to a trace, by their buckets' upper bounds."""
    bounds = (*point.explicit_bounds, math.inf)
    return {
        bounds[bisect_left(point.explicit_bounds, exemplar.value)]: Exemplar(
            {"trace_id": format_trace_id(exemplar.trace_id), "span_id": format_span_id(exemplar.span_id)},
            exemplar.value,
            round(exemplar.time_unix_nano / 1e9, 3),
        )
        for exemplar in point.exemplars
        if exemplar.trace_id and exemplar.span_id
    }
