"""The metric table as OpenTelemetry instruments, for the application's meter provider."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from threading import Lock
from typing import Protocol

from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Meter, Observation

from llamatel.metrics import Kind, Metric
from llamatel.telemetry.attribute_sets import AttributeSet
from llamatel.telemetry.metric_store import Observed


class _Observe(Protocol):
    def __call__(self, *, again: bool = True) -> Observed:
        """``Instruments.observe``."""


class Callbacks:
    """Which SdkInstruments answer for the observed instruments of a meter.

    The SDK keeps the callbacks with which an instrument was made first and drops those of later ones. On a meter that
    outlives its SdkInstruments, one ``Callbacks`` for all of them lets the last ones answer.
    """

    def __init__(self) -> None:
        self.instruments: SdkInstruments | None = None

        self._totals: dict[str, list[Observation]] = {}
        """Callbacks of closed instruments."""

    def observe(self, name: str, options: CallbackOptions) -> Iterable[Observation]:
        """Called by the SDK for one instrument."""
        return self._totals.get(name, ()) if self.instruments is None else self.instruments.observe(name)

    def finish(self) -> None:
        """Stop measuring: totals remain for the application's last export, gauges are absent."""
        if self.instruments is not None:
            self._totals, self.instruments = self.instruments.totals(), None

    def reset(self) -> None:
        """Report nothing until there are new instruments."""
        self._totals, self.instruments = {}, None


class SdkInstruments:
    """All instruments of a metric table on one meter."""

    def __init__(
        self, meter: Meter, rows: Mapping[str, Metric], observe: _Observe, callbacks: Callbacks | None = None
    ) -> None:
        self._rows = rows
        self._observe = observe
        self._callbacks = callbacks or Callbacks()
        self._lock = Lock()
        self._answered: set[str] = set()
        self._recorders: dict[str, Callable[[float, Mapping[str, str | int], Context | None], None]] = {}
        for row in rows.values():
            self._create(meter, row)
        self._callbacks.instruments = self

    def record(self, found: AttributeSet, value: float, context: Context | None) -> None:
        """Record a value of a histogram or counter."""
        # An exemplar on each of the others would double their cost.
        self._recorders[found.row.name](value, found.attributes, context if found.has_exemplars else None)

    def observe(self, name: str) -> Iterable[Observation]:
        """The values of one total or gauge; the SDK calls this for one instrument after another in a collection.

        A new collection starts when an instrument is queried for the second time; only then may the snapshot change, so
        that all instruments of a collection use the same one. (The SDK lets one reader collect at a time.)
        """
        with self._lock:
            again = name in self._answered or not self._answered
            if again:
                self._answered.clear()
            self._answered.add(name)
            observed = self._observe(again=again)
        return [Observation(value, found.attributes) for found, value in observed.get(name, ())]

    def totals(self) -> dict[str, list[Observation]]:
        """The present values of all totals, by metric."""
        return {name: list(self.observe(name)) for name, row in self._rows.items() if row.kind is Kind.TOTAL}

    def _create(self, meter: Meter, row: Metric) -> None:
        if row.kind is Kind.HISTOGRAM:
            self._recorders[row.name] = meter.create_histogram(
                row.name, row.unit, row.help, explicit_bucket_boundaries_advisory=row.buckets
            ).record
        elif row.kind is Kind.COUNTER:
            self._recorders[row.name] = meter.create_counter(row.name, row.unit, row.help).add
        else:
            create = {
                Kind.TOTAL: meter.create_observable_counter,
                Kind.UP_DOWN: meter.create_observable_up_down_counter,
                Kind.GAUGE: meter.create_observable_gauge,
            }[row.kind]
            create(row.name, [partial(self._callbacks.observe, row.name)], row.unit, row.help)
