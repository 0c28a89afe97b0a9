"""How many attribute sets the SDK keeps of an instrument, and when it forgets those that nobody tells of any more.

On its own it keeps the first 2,000 of each for as long as the process lives. Servers come and go, slots work and states
change: once so many have been seen, whatever is new would be one series without a server (``otel.metric.overflow``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider, ObservableCounter, ObservableGauge, ObservableUpDownCounter
from opentelemetry.sdk.metrics.export import AggregationTemporality, MetricReader

LIMIT = 1 << 16
"""Of one instrument: 4,096 servers with 16 slots each. Beyond that the SDK sums up what is new."""
_SPARE = 200
"""So many are kept though nothing is told of them: a server that is down for a while keeps its counters' start."""
_NEEDED = ("_instrument_view_instrument_matches", "_instrument_class_temporality")
"""Where the SDK of 2025 and 2026 keeps them."""
_OBSERVED = (ObservableCounter, ObservableGauge, ObservableUpDownCounter)


def raise_limits(reader: MetricReader) -> None:
    """Let a reader keep as many as LIMIT; to be called before it is a provider's."""
    limits = getattr(reader, "_instrument_class_cardinality_limit", {})  # older SDKs have no limit
    limits.update(dict.fromkeys(limits, LIMIT))


def forget_removed(provider: MeterProvider) -> None:
    """Have a provider forget, as it collects, what is not observed any more, once that is most of what it keeps.

    An SDK that keeps it elsewhere is left as it is.
    """
    storages = getattr(getattr(provider, "_measurement_consumer", None), "_reader_storages", {})
    for storage in storages.values():
        if all(hasattr(storage, name) for name in _NEEDED):
            storage.collect = partial(_collect, storage, storage.collect)


def _collect(storage: Any, collect: Callable[[], Any]) -> Any:
    """By now the instruments were observed; what has no value was left out."""
    for instrument, matches in list(storage._instrument_view_instrument_matches.items()):
        temporality = storage._instrument_class_temporality[type(instrument)]
        # A difference needs the value before, however long ago that was.
        if isinstance(instrument, _OBSERVED) and temporality is AggregationTemporality.CUMULATIVE:
            for match in matches:
                _forget(match)
    return collect()


def _forget(match: Any) -> None:
    kept = getattr(match, "_attributes_aggregation", {})
    if len(kept) <= _SPARE:
        return
    with match._lock:
        gone = [key for key, aggregation in kept.items() if aggregation._value is None]
        if len(gone) > max(_SPARE, len(kept) // 2):
            for key in gone:
                del kept[key]
