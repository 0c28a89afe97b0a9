"""Attributes of samples, resolved once per distinct set; external values are bounded in number and length.

Model names, aliases and error types come from logs and HTTP responses. The number of values per attribute and server,
and the number of servers, is limited; further values become ``other``, which is counted and logged once.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from threading import Lock
from typing import NamedTuple

from llamatel.collectors import Sample
from llamatel.metrics import SERVER_ATTRIBUTES, Kind, Metric, table
from llamatel.outputs.log_once import LogOnce
from llamatel.records import ServerInfo
from llamatel.telemetry.prometheus_names import prometheus_label

_log = logging.getLogger(__name__)

OTHER = "other"
MAX_LENGTH = 200
"""Longest value in characters."""
MAX_SERVERS = 4096
MAX_MODELS = 128
"""Most models per server; a router has one server address for all of its models."""
MAX_VALUES = 1024
"""Most values of one attribute per server; slots are the most numerous."""
_MAX_CACHED = 1 << 16
_SERVER_IDLE_S = 600.0
"""A server without a sample for this long may be replaced by a new one."""
_MAX_NUMBER = 2.0**63 - 1024
_MIN_NUMBER = -_MAX_NUMBER
"""OTLP refuses the whole export for a larger integer. Floats, as comparing with a large integer takes twice as long."""
_MODELS = frozenset({"gen_ai.request.model", "gen_ai.response.model"})

Endpoint = tuple["str | None", "int | None"]


class Exemplar(NamedTuple):
    """A request's value in a bucket, with its trace."""

    trace_id: int
    span_id: int
    value: float
    at: float
    """Unix time, seconds."""


class Series:
    """The aggregation of one attribute set. ``counts`` is empty for a counter, whose total is ``sum``."""

    __slots__ = ("counts", "exemplars", "first_at", "maximum", "minimum", "sum", "updated_at")

    def __init__(self, buckets: int, now: float) -> None:
        self.counts = [0] * buckets
        self.sum: float = 0
        self.minimum = float("inf")
        self.maximum = float("-inf")
        self.exemplars: dict[int, Exemplar] = {}
        self.first_at = now
        self.updated_at = now


class AttributeSet:
    """One set of attributes of one metric."""

    __slots__ = ("attributes", "buckets", "endpoint", "has_exemplars", "labels", "limited", "recorded", "row", "series")

    def __init__(
        self, row: Metric, attributes: Mapping[str, str | int], endpoint: Endpoint | None, *, limited: bool
    ) -> None:
        self.row = row
        self.buckets = row.buckets
        self.recorded = row.kind in (Kind.HISTOGRAM, Kind.COUNTER)
        """Whether values are added when requests finish, as opposed to observed."""
        self.has_exemplars = row.name.startswith("gen_ai.")
        """Only these metrics have exemplars: they are where people look for traces."""
        self.attributes = attributes
        self.endpoint = endpoint
        """Address and port of the server; None for a value about llamatel itself."""
        self.limited = limited
        """Whether a value was replaced by ``other``."""
        self.labels = labels_of(attributes)
        """As Prometheus writes them, without braces."""
        self.series: Series | None = None
        """The store's aggregation for this set (``metric_store``)."""


def labels_of(attributes: Mapping[str, object]) -> str:
    """Attributes as Prometheus's label pairs, sorted by name; empty if there are none."""
    return ",".join(f'{prometheus_label(name)}="{_escaped(str(attributes[name]))}"' for name in sorted(attributes))


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


class AttributeSets:
    """Resolves samples to attribute sets. Thread-safe."""

    def __init__(self, metrics: Iterable[Metric], clock: Callable[[], float] = time.monotonic) -> None:
        self.rows = table(metrics)
        self._clock = clock
        self._lock = Lock()
        self._cached: dict[ServerInfo | None, dict[object, AttributeSet]] = {}
        """By server, then by metric and own attributes."""
        self._size = 0
        """Attribute sets in it."""
        self._last: tuple[object, dict[object, AttributeSet]] = (self, {})
        """The server of the last sample and its part of the cache: a request's samples come one after another."""
        self._unique: dict[tuple[str, frozenset[tuple[str, str | int]]], AttributeSet] = {}
        self._servers: OrderedDict[Endpoint, dict[str, set[str | int]]] = OrderedDict()
        self._used_at: dict[Endpoint, float] = {}
        self._limited: dict[str, int] = {}
        self._once = LogOnce(_log)

    @property
    def limited(self) -> Mapping[str, int]:
        """Samples in which a value was replaced by ``other``, by attribute."""
        with self._lock:
            return dict(self._limited)

    def resolve(self, sample: Sample) -> AttributeSet:
        """The sample's attributes with its server's. Raises ValueError for a sample that does not fit the table."""
        metric, value, server, attributes = sample
        if not _MIN_NUMBER <= value <= _MAX_NUMBER:  # also refuses NaN
            raise ValueError(f"{metric} has a value that is not a number")
        last, cached = self._last
        if last is not server:
            cached = self._cached.get(server) or {}
            self._last = server, cached
        key = (metric, *attributes.items()) if attributes else metric
        found = cached.get(key)
        return self._resolve(sample, key) if found is None else found

    def forget(self, dropped: Iterable[AttributeSet]) -> None:
        """Drop sets whose series are no longer kept."""
        removed = {id(one) for one in dropped}
        with self._lock:
            self._cached = {
                server: {key: one for key, one in cached.items() if id(one) not in removed}
                for server, cached in self._cached.items()
            }
            self._size = sum(map(len, self._cached.values()))
            self._last = self, {}
            self._unique = {key: one for key, one in self._unique.items() if id(one) not in removed}

    def _resolve(self, sample: Sample, key: object) -> AttributeSet:
        row = self.rows.get(sample.metric)
        if row is None:
            raise ValueError(f"{sample.metric} is not in the metric table")
        unknown = sample.attributes.keys() - set(row.attributes)
        if unknown:
            raise ValueError(f"{sample.metric} has no attribute {', '.join(sorted(unknown))}")
        merged = dict(sample.attributes)
        endpoint, own = None, set[str]()
        if sample.server is not None:
            about = sample.server.attributes
            own = about.keys() - merged.keys()
            merged = {**about, **merged}
            endpoint = (sample.server.address, sample.server.port)
        with self._lock:
            limited = self._limit(merged, endpoint, own)
            if self._size >= _MAX_CACHED:
                self._cached, self._size = {}, 0
                if row.kind not in (Kind.HISTOGRAM, Kind.COUNTER):
                    self._unique = {k: one for k, one in self._unique.items() if one.series is not None}
            unique = (row.name, frozenset(merged.items()))
            found = self._unique.get(unique)
            if found is None:
                found = self._unique[unique] = AttributeSet(row, merged, endpoint, limited=limited)
            if not limited:  # else the cache would grow with each value from outside
                cached = self._cached.setdefault(sample.server, {})
                self._size += key not in cached
                cached[key] = found
                self._last = sample.server, cached
            return found

    def _limit(self, attributes: dict[str, str | int], endpoint: Endpoint | None, own: Iterable[str]) -> bool:
        """Replace values that are too long or too many; True if one was. ``own``: attributes that identify it."""
        limited = False
        if endpoint is not None and not self._is_known(endpoint):
            for name in own:
                del attributes[name]
            attributes["server.address"] = OTHER
            self._count("server.address", f"{MAX_SERVERS} servers")
            limited = True
        seen = self._servers.get(endpoint or (None, None))
        if seen is None:
            seen = self._servers.setdefault((None, None), {})
        for name, given in attributes.items():
            value = given[:MAX_LENGTH] if isinstance(given, str) else given
            attributes[name] = value
            if name in SERVER_ATTRIBUTES[:2]:
                continue
            values = seen.setdefault(name, set())
            if value in values:
                continue
            most = MAX_MODELS if name in _MODELS else MAX_VALUES
            if len(values) >= most:
                attributes[name] = OTHER
                self._count(name, f"{most} values on one server")
                limited = True
            else:
                values.add(value)
        return limited

    def _is_known(self, endpoint: Endpoint) -> bool:
        now = self._clock()
        if endpoint not in self._servers:
            if len(self._servers) >= MAX_SERVERS:
                oldest = next(iter(self._servers))
                if now - self._used_at.get(oldest, now) < _SERVER_IDLE_S:
                    return False
                del self._servers[oldest]
                self._used_at.pop(oldest, None)
            self._servers[endpoint] = {}
        self._servers.move_to_end(endpoint)
        self._used_at[endpoint] = now
        return True

    def _count(self, name: str, limit: str) -> None:
        self._limited[name] = self._limited.get(name, 0) + 1
        self._once.warning(name, "%s takes more than %s: further values are reported as '%s'", name, limit, OTHER)
