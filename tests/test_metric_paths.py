"""One recording path that forks at the last step: our metric store and the SDK's instruments show the same figures."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    HistogramDataPoint,
    InMemoryMetricReader,
    Metric,
    NumberDataPoint,
    ScopeMetrics,
)
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from llamatel import collectors
from llamatel.collectors import Sample
from llamatel.metrics import METRICS
from llamatel.records import Outcome
from llamatel.telemetry.instruments import Instruments
from llamatel.telemetry.metric_points import scope_metrics
from llamatel.telemetry.metric_store import MetricStore
from tests.samples import completion, server_snapshot, snapshot

Figures = dict[tuple[str, str, str, frozenset[tuple[str, Any]]], tuple[Any, ...]]


def figures(scopes: Iterable[ScopeMetrics]) -> Figures:
    """Value, or count, sum and buckets, by metric, unit, kind and attributes."""
    found: Figures = {}
    for metric in (metric for scope in scopes for metric in scope.metrics):
        for point in metric.data.data_points:
            key = metric.name, metric.unit or "", kind(metric), frozenset((point.attributes or {}).items())
            if isinstance(point, NumberDataPoint):
                found[key] = (round(point.value, 9),)
            else:
                assert isinstance(point, HistogramDataPoint)
                found[key] = (
                    point.count, round(point.sum, 9), point.min, point.max,
                    tuple(point.explicit_bounds), tuple(point.bucket_counts),
                )  # fmt: skip
    return found


def kind(metric: Metric) -> str:
    return f"{type(metric.data).__name__} {getattr(metric.data, 'is_monotonic', '')}"


def test_store_and_sdk_instruments_agree() -> None:
    loaded = tuple(collectors.load())
    state = snapshot(server_snapshot(), taken_at=time.time())

    def observed() -> Iterator[Sample]:
        for collector in loaded:
            yield from collector.on_snapshot(state)

    reader, store = InMemoryMetricReader(), MetricStore()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    # A clock that stands still: both read the same snapshot.
    instruments = Instruments(provider.get_meter("tests"), METRICS, observed, store=store, clock=lambda: 100.0)
    source = random.Random(1)
    for number in range(500):
        request = replace(
            completion(),
            task=number,
            outcome=source.choice(list(Outcome)),
            queue_s=source.choice((None, 0.0, source.expovariate(1))),
            prefill_s=source.choice((None, source.expovariate(1))),
            decode_s=source.expovariate(0.1),
            generated=source.randint(1, 5000),
        )
        for collector in loaded:
            for sample in collector.on_completion(request):
                instruments.record(sample)
    data = reader.get_metrics_data()
    assert data is not None
    ours = figures([scope_metrics(store.collect(), InstrumentationScope("tests"), time.time_ns())])
    theirs = figures([scope for one in data.resource_metrics for scope in one.scope_metrics])
    assert len(ours) > 50
    assert ours == theirs
