"""Our own aggregation of the metric table: cumulative totals, explicit-bucket histograms, exemplars of sampled traces.

With an application's meter provider the SDK's instruments are used (``sdk_instruments``). With our own provider this
store takes a twentieth of their time. Collections become text (``exposition``) and OTLP data points
(``metric_points``).
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Mapping
from threading import Lock
from typing import NamedTuple

from opentelemetry.context import Context
from opentelemetry.trace import get_current_span

from llamatel.metrics import Kind, Metric
from llamatel.telemetry.attribute_sets import AttributeSet, Endpoint, Exemplar, Series

_UNWATCHED_S = 300.0
"""A series of a server that is no longer watched is dropped after this time without a new value."""

Observed = Mapping[str, "list[tuple[AttributeSet, float]]"]
"""Values of totals and gauges by metric."""


class Point(NamedTuple):
    """One series of a collection. For a number, ``counts`` is empty and ``value`` is the number."""

    set: AttributeSet
    value: float
    """A histogram's sum."""
    first_at: float
    """Unix time at which the series started; 0 for a gauge."""
    counts: tuple[int, ...] = ()
    minimum: float = 0.0
    maximum: float = 0.0
    exemplars: Mapping[int, Exemplar] = {}
    """By bucket."""


class Family(NamedTuple):
    """One metric with all its series."""

    row: Metric
    points: list[Point]


def _nothing() -> Observed:
    return {}


class MetricStore:
    """Aggregates samples. Thread-safe."""

    def __init__(self, *, exemplars: bool = True, clock: Callable[[], float] = time.time) -> None:
        """``exemplars`` false is ``OTEL_METRICS_EXEMPLAR_FILTER=always_off``."""
        self._with_exemplars = exemplars
        self._clock = clock
        self._lock = Lock()
        self._recorded: dict[Metric, list[AttributeSet]] = {}
        self._started_at = clock()
        self._watched: dict[Endpoint, bool] = {}
        """Observed servers; true for those in the last collection."""
        self._context: Context | None = None
        self._trace: tuple[int, int] | None = None
        self._when_first_recorded: Callable[[], None] | None = None
        self.observe: Callable[[], Observed] = _nothing
        """Function that returns the values of totals and gauges; set by ``Instruments``."""
        self.expire: Callable[[], None] = lambda: None
        """Function that makes the next collection take a new snapshot, however soon; set by ``Instruments``."""
        self.dropped: Callable[[list[AttributeSet]], None] = lambda _: None
        """Called with the attribute sets whose series were dropped."""

    def record(self, found: AttributeSet, value: float, context: Context | None) -> None:
        """Add a value to a histogram or counter; ``context`` holds the span for an exemplar."""
        with self._lock:
            series = found.series or self._start(found)
            series.sum += value
            series.updated_at = 0.0
            if found.buckets:
                bucket = bisect_left(found.buckets, value)
                series.counts[bucket] += 1
                if value < series.minimum:  # noqa: PLR1730 - min() and max() take three times as long
                    series.minimum = value
                if value > series.maximum:  # noqa: PLR1730
                    series.maximum = value
                if context is not None and found.has_exemplars and self._with_exemplars:
                    self._add_exemplar(series, bucket, value, context)

    def _start(self, found: AttributeSet) -> Series:
        call, self._when_first_recorded = self._when_first_recorded, None
        if call is not None:
            call()
        found.series = Series(len(found.buckets) + 1 if found.buckets else 0, self._clock())
        self._recorded.setdefault(found.row, []).append(found)
        return found.series

    def _add_exemplar(self, series: Series, bucket: int, value: float, context: Context) -> None:
        if context is not self._context:  # the samples of one request follow each other
            span = get_current_span(context).get_span_context()
            sampled = span.is_valid and span.trace_flags.sampled
            self._context, self._trace = context, (span.trace_id, span.span_id) if sampled else None
        if self._trace is not None:
            series.exemplars[bucket] = Exemplar(*self._trace, value, self._clock())

    def when_first_recorded(self, call: Callable[[], None]) -> None:
        """Call ``call`` once, with the next new series."""
        self._when_first_recorded = call

    def collect(self) -> list[Family]:
        """All current series, in order of the metrics' first use; totals and gauges are of one snapshot."""
        observed = self.observe()
        now = self._clock()
        families = []
        with self._lock:
            dropped = self._drop_unwatched(observed, now)
            for row, sets in self._recorded.items():
                families.append(Family(row, [_recorded_point(one, now) for one in sets]))
        if dropped:
            self.dropped(dropped)
        for found in observed.values():
            if found:
                row = found[0][0].row
                first_at = 0.0 if row.kind is Kind.GAUGE else self._started_at
                families.append(Family(row, [Point(one, value, first_at) for one, value in found]))
        return families

    def reset(self) -> None:
        """Clear everything, in a forked child."""
        self._lock = Lock()
        for sets in self._recorded.values():
            for one in sets:
                one.series = None
        self._recorded = {}
        self._started_at = self._clock()

    def _drop_unwatched(self, observed: Observed, now: float) -> list[AttributeSet]:
        """Drop series of servers that are no longer watched; clients' series of other servers stay."""
        seen = {one.endpoint for found in observed.values() for one, _ in found if one.endpoint is not None}
        self._watched = {**dict.fromkeys(self._watched, False), **dict.fromkeys(seen, True)}
        if all(self._watched.values()):
            return []
        dropped = []
        for row, sets in list(self._recorded.items()):
            kept = []
            for one in sets:
                series = one.series
                unwatched = one.endpoint is not None and self._watched.get(one.endpoint) is False
                if unwatched and series is not None and 0.0 < series.updated_at < now - _UNWATCHED_S:
                    one.series = None
                    dropped.append(one)
                else:
                    kept.append(one)
            if kept:
                self._recorded[row] = kept
            else:
                del self._recorded[row]
        if not dropped:
            return []
        left = {one.endpoint for sets in self._recorded.values() for one in sets}
        self._watched = {where: here for where, here in self._watched.items() if here or where in left}
        return dropped


def _recorded_point(found: AttributeSet, now: float) -> Point:
    series = found.series
    assert series is not None  # noqa: S101 - only sets with a series are recorded
    if not series.updated_at:
        series.updated_at = now  # new since the last collection
    return Point(
        found, series.sum, series.first_at, tuple(series.counts), series.minimum, series.maximum,
        dict(series.exemplars) if series.exemplars else {},
    )  # fmt: skip
