"""Records samples as metrics; all samples use this path.

Histograms and counters are recorded when requests finish. Totals and gauges are observed: each collection reads all of
them from one snapshot. Both go to our own store (``metric_store``) if the meter provider is ours, and to the SDK's
instruments (``sdk_instruments``) if it is the application's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from threading import Lock

from opentelemetry.context import Context
from opentelemetry.metrics import Meter

from llamatel.collectors import Sample
from llamatel.metrics import Kind, Metric
from llamatel.outputs.log_once import LogOnce
from llamatel.telemetry.attribute_sets import AttributeSet, AttributeSets
from llamatel.telemetry.metric_store import MetricStore, Observed
from llamatel.telemetry.sdk_instruments import Callbacks, SdkInstruments

_log = logging.getLogger(__name__)

_SAME_MOMENT_S = 0.5
"""Readers that collect within this time share a snapshot."""
_ADDITIVE = (Kind.TOTAL, Kind.UP_DOWN)


class Instruments:
    """All instruments of a metric table.

    ``samples`` returns the values of totals and gauges; it is called at most once a collection, on the thread that
    collects. A metric or server that it omits is omitted from the export: no stale value, no zero.
    """

    def __init__(
        self,
        meter: Meter | None,
        metrics: Iterable[Metric],
        samples: Callable[[], Iterable[Sample]],
        *,
        store: MetricStore | None = None,
        clock: Callable[[], float] = time.monotonic,
        callbacks: Callbacks | None = None,
    ) -> None:
        """``meter``: where the SDK's instruments are created, if any. ``callbacks``: for a meter with other users."""
        self._sets = AttributeSets(metrics)
        self._samples = samples
        self._clock = clock
        self._store = store
        self._lock = Lock()
        self._observed: dict[str, list[tuple[AttributeSet, float]]] = {}
        self._observed_at = float("-inf")
        self._once = LogOnce(_log)
        self._sdk = None if meter is None else SdkInstruments(meter, self._sets.rows, self.observe, callbacks)
        if store is not None:
            store.observe, store.expire = self.observe, self.expire
            store.dropped = self._sets.forget

    def record(self, sample: Sample, context: Context | None = None) -> None:
        """Record a value of a histogram or counter; ``context`` holds the span for an exemplar.

        Raises ValueError for a sample that does not fit the metric table.
        """
        found = self._sets.resolve(sample)
        if not found.recorded:
            raise ValueError(f"{sample.metric} is observed, not recorded")
        if self._store is not None:
            self._store.record(found, sample.value, context)
        if self._sdk is not None:
            self._sdk.record(found, sample.value, context)

    def observe(self, *, again: bool = True) -> Observed:
        """The values of totals and gauges now, by metric, from one snapshot.

        ``again`` false continues a collection, without a new snapshot. Readers that collect within half a
        second share one.
        """
        with self._lock:
            if again and self._clock() - self._observed_at > _SAME_MOMENT_S:
                self._observed = {}  # if samples() raises, this collection has no values
                self._observed_at = self._clock()
                self._observed = self._read()
                self._observed_at = self._clock()
            return self._observed

    def expire(self) -> None:
        """Take a new snapshot for the next collection, however soon it is."""
        self._observed_at = float("-inf")

    def _read(self) -> dict[str, list[tuple[AttributeSet, float]]]:
        observed: dict[str, list[tuple[AttributeSet, float]]] = {}
        for sample in self._samples():
            self._add(sample, observed)
        for attribute, count in self._sets.limited.items():
            self._add(Sample("llamatel.label_values.limited", count, None, {"attribute": attribute}), observed)
        return observed

    def _add(self, sample: Sample, observed: dict[str, list[tuple[AttributeSet, float]]]) -> None:
        try:
            found = self._sets.resolve(sample)
            if found.recorded:
                raise ValueError(f"{sample.metric} is recorded, not observed")
        except ValueError as error:
            # An error in one collector must not drop the others' values.
            self._once.error(sample.metric, "a sample was left out: %s", error)
            return
        points = observed.setdefault(sample.metric, [])
        if found.limited:
            if found.row.kind not in _ADDITIVE:
                return  # values of several servers or models together have no state and no share
            for index, (other, value) in enumerate(points):
                if other is found:
                    points[index] = (found, value + sample.value)
                    return
        points.append((found, sample.value))
