"""The metric table as OpenTelemetry instruments; nothing else touches the OTel metrics API.

Histograms and counters are recorded as requests end. Totals and gauges are observed: whenever a reader collects, all
of them answer from one snapshot.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from threading import Lock

from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Meter, Observation

from llamatel.collectors import Sample
from llamatel.metrics import SERVER_ATTRIBUTES, Kind, Metric, table
from llamatel.records import ServerInfo

_log = logging.getLogger(__name__)

_SAME_MOMENT_S = 0.5
"""Readers that collect this soon after one another share a snapshot."""
_ATTRIBUTE_SETS = 1 << 16
"""Attribute sets that are kept ready; their number is bounded by servers and outcomes: 200 servers have some 10,000."""

_LARGEST = 2**63 - 1
"""A larger integer costs OTLP the whole export."""

_WITH_EXEMPLARS = "gen_ai."
"""The metrics from which people go to a trace; an exemplar on each of the others would double what they cost."""

Attributes = Mapping[str, str | int]


class Callbacks:
    """Who answers for the totals and gauges on a meter.

    OpenTelemetry keeps the callbacks that an instrument was made with first, and drops those of whoever makes it again.
    On a meter that outlives its Instruments, one ``Callbacks`` for all of them lets the last ones answer.
    """

    def __init__(self) -> None:
        self.instruments: Instruments | None = None

    def observe(self, name: str, options: CallbackOptions) -> Iterable[Observation]:
        """What the SDK calls for one instrument."""
        return () if self.instruments is None else self.instruments.observe(name)


class Instruments:
    """All instruments of a metric table on one meter.

    ``samples`` gives the values of totals and gauges; it is called at most once a collection, on the thread that
    collects. A metric or server that it leaves out is left out of the export: no stale value, no zero.
    """

    def __init__(
        self,
        meter: Meter,
        metrics: Iterable[Metric],
        samples: Callable[[], Iterable[Sample]],
        *,
        clock: Callable[[], float] = time.monotonic,
        callbacks: Callbacks | None = None,
    ) -> None:
        """``callbacks``: for a meter on which others of the same instruments were made, or will be."""
        self._callbacks = callbacks or Callbacks()
        self._rows = table(metrics)
        self._samples = samples
        self._clock = clock
        self._recorders: dict[str, Callable[[float, Attributes, Context | None], None]] = {}
        self._ready: dict[tuple[str, ServerInfo | None, frozenset[tuple[str, str | int]]], dict[str, str | int]] = {}
        self._lock = Lock()
        self._observed: dict[str, list[Observation]] = {}
        self._observed_at = float("-inf")
        self._answered: set[str] = set()
        self._complained: set[str] = set()
        for row in self._rows.values():
            self._create(meter, row)
        self._callbacks.instruments = self

    def record(self, sample: Sample, context: Context | None = None) -> None:
        """Record a value of a histogram or counter; ``context`` holds the span for an exemplar.

        Raises ValueError for a sample that does not fit the metric table.
        """
        attributes = self._attributes(sample)
        recorder = self._recorders.get(sample.metric)
        if recorder is None:
            raise ValueError(f"{sample.metric} is observed, not recorded")
        recorder(sample.value, attributes, context if sample.metric.startswith(_WITH_EXEMPLARS) else None)

    def _create(self, meter: Meter, row: Metric) -> None:
        if row.kind is Kind.HISTOGRAM:
            histogram: Histogram = meter.create_histogram(
                row.name, row.unit, row.help, explicit_bucket_boundaries_advisory=row.buckets
            )
            self._recorders[row.name] = histogram.record
        elif row.kind is Kind.COUNTER:
            counter: Counter = meter.create_counter(row.name, row.unit, row.help)
            self._recorders[row.name] = counter.add
        elif row.kind is Kind.TOTAL:
            meter.create_observable_counter(row.name, [partial(self._callbacks.observe, row.name)], row.unit, row.help)
        else:
            meter.create_observable_gauge(row.name, [partial(self._callbacks.observe, row.name)], row.unit, row.help)

    def _attributes(self, sample: Sample) -> dict[str, str | int]:
        """The sample's attributes with its server's, made once for each set that occurs."""
        if not -_LARGEST <= sample.value <= _LARGEST:  # also refuses NaN
            raise ValueError(f"{sample.metric} has a value that is no figure")
        key = (sample.metric, sample.server, frozenset(sample.attributes.items()))
        ready = self._ready.get(key)
        if ready is None:
            ready = self._merged(sample)
            if len(self._ready) >= _ATTRIBUTE_SETS:
                self._ready.clear()
            self._ready[key] = ready
        return ready

    def _merged(self, sample: Sample) -> dict[str, str | int]:
        row = self._rows.get(sample.metric)
        if row is None:
            raise ValueError(f"{sample.metric} is not in the metric table")
        unknown = sample.attributes.keys() - set(row.attributes)
        if unknown:
            raise ValueError(f"{sample.metric} has no attribute {', '.join(sorted(unknown))}")
        merged = dict(sample.attributes)
        if sample.server is not None:
            values = (sample.server.address, sample.server.port, sample.server.model)
            merged.update({k: v for k, v in zip(SERVER_ATTRIBUTES, values, strict=True) if v is not None})
        return merged

    def observe(self, name: str) -> Iterable[Observation]:
        """What a total or gauge is now; the SDK asks for one instrument after another while a reader collects.

        A collection has begun when an instrument is asked again; only then may the snapshot change, so that all
        instruments of one collection answer from the same one. (The SDK lets one reader collect at a time.)
        """
        with self._lock:
            if name in self._answered or not self._answered:
                self._answered.clear()
                if self._clock() - self._observed_at > _SAME_MOMENT_S:
                    self._take()
            self._answered.add(name)
            return self._observed.get(name, ())

    def _take(self) -> None:
        observed: dict[str, list[Observation]] = {}
        # Should samples() raise, this collection has no values, and is not tried again for every instrument.
        self._observed = observed
        self._observed_at = self._clock()
        for sample in self._samples():
            try:
                attributes = self._attributes(sample)
                if sample.metric in self._recorders:
                    raise ValueError(f"{sample.metric} is recorded, not observed")
            except ValueError as error:
                # One collector's mistake must not cost the others their values.
                if sample.metric not in self._complained:
                    self._complained.add(sample.metric)
                    _log.error("a sample was left out: %s", error)
                continue
            observed.setdefault(sample.metric, []).append(Observation(sample.value, attributes))
        self._observed_at = self._clock()
