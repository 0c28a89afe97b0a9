"""The metrics page: our metrics and those of other instrumentation as Prometheus text or OpenMetrics.

Ours are written from prepared label strings. Those of other libraries, which use our meter provider as the process's,
are converted by OpenTelemetry's Prometheus exporter; where a name is in both, its series share one family.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from threading import Lock

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.trace import format_span_id, format_trace_id
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_open_metrics

from llamatel.metrics import Kind
from llamatel.metrics import Metric as Row
from llamatel.telemetry.attribute_sets import Exemplar, labels_of
from llamatel.telemetry.metric_store import Family, MetricStore, Point
from llamatel.telemetry.prometheus_names import prometheus_name

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPEN_METRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_TYPES = {Kind.HISTOGRAM: "histogram", Kind.COUNTER: "counter", Kind.TOTAL: "counter"}
_EOF = "# EOF\n"
GATEWAY_VARIABLE = "LLAMATEL_GATEWAY_METRICS"
"""``true`` adds the metrics that inference gateways expect of a model server."""
_GATEWAY = {
    "llamacpp.requests.deferred": ("vllm:num_requests_waiting", "Requests that wait for a slot."),
    "llamacpp.kv_cache.usage": ("vllm:kv_cache_usage_perc", "Share of the KV cache that running requests use, 0 to 1."),
}
"""The Model Server Protocol of the Gateway API Inference Extension, under the names that its endpoint picker looks for
by default."""


_ADAPTERS = "llamacpp.lora.adapter"


class Exposition:
    """Writes the page for each scrape. Thread-safe."""

    def __init__(self, store: MetricStore, resource: Mapping[str, object], *, gateway: bool = False) -> None:
        """``resource``: the attributes of ``target_info``; ``gateway``: add the metrics of ``_GATEWAY``."""
        self._gateway = gateway
        self._store = store
        self._registry = CollectorRegistry()
        self.reader = PrometheusMetricReader(
            disable_target_info=True, scope_info_enabled=False, registry=self._registry
        )
        """A reader for the process's meter provider."""
        self._target = labels_of(resource)
        self._headers: dict[tuple[str, bool], str] = {}
        self._foreign = Lock()
        """The exporter queues what it collects: one of two concurrent scrapes would get everything twice."""

    def page(self, *, open_metrics: bool = False) -> str:
        """The current metrics."""
        foreign = self._foreign_families(open_metrics=open_metrics)
        parts = [f"# TYPE target{'' if open_metrics else '_info'} {'info' if open_metrics else 'gauge'}\n"]
        parts.append(f"# HELP target{'' if open_metrics else '_info'} Target metadata\n")
        parts.append(f"target_info{{{self._target}}} 1.0\n")
        for family in self._store.collect():
            name = prometheus_name(family.row)
            parts.append(self._header(family.row, name, open_metrics=open_metrics))
            parts.extend(_series(family, name, open_metrics=open_metrics))
            if self._gateway and (family.row.name in _GATEWAY or family.row.name == _ADAPTERS):
                parts.extend(_for_gateways(family))
            also = foreign.pop(name, "")
            if also:
                parts.extend(line for line in also.splitlines(keepends=True) if not line.startswith("#"))
        parts.extend(foreign.values())
        if open_metrics:
            parts.append(_EOF)
        return "".join(parts)

    def _header(self, row: Row, name: str, *, open_metrics: bool) -> str:
        header = self._headers.get((name, open_metrics))
        if header is None:
            kind = _TYPES.get(row.kind, "gauge")
            family = name.removesuffix("_total") if open_metrics and kind == "counter" else name
            text = row.help.replace("\\", r"\\").replace("\n", r"\n")
            if open_metrics:
                text = text.replace('"', r"\"")
            header = self._headers[name, open_metrics] = f"# HELP {family} {text}\n# TYPE {family} {kind}\n"
        return header

    def _foreign_families(self, *, open_metrics: bool) -> dict[str, str]:
        """The families of other instrumentation as text, by the name that Prometheus gives them."""
        with self._foreign:
            families = list(self._registry.collect())
        generate = generate_open_metrics if open_metrics else generate_latest
        found: dict[str, str] = {}
        for family in families:
            name = f"{family.name}_total" if family.type == "counter" else family.name
            text = generate(_Families([family])).decode().removesuffix(_EOF)
            found[name] = found.get(name, "") + text
        return found


class _Families:
    """The part of a registry that ``generate_latest`` needs."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)


def _series(family: Family, name: str, *, open_metrics: bool) -> Iterator[str]:
    if family.row.kind is not Kind.HISTOGRAM:
        for point in family.points:
            labels = f"{{{point.set.labels}}}" if point.set.labels else ""
            yield f"{name}{labels} {_number(point.value)}\n"
        return
    bounds = [f'le="{_number(bound)}"' for bound in (*family.row.buckets, math.inf)]
    for point in family.points:
        labels = f"{point.set.labels}," if point.set.labels else ""
        start = f"{name}_bucket{{{labels}"
        totals = list(accumulate(point.counts))
        if open_metrics and point.exemplars:
            yield from _with_exemplars(start, bounds, totals, point)
        else:
            yield "".join([f"{start}{bound}}} {total}.0\n" for bound, total in zip(bounds, totals, strict=True)])
        plain = f"{{{point.set.labels}}}" if point.set.labels else ""
        yield f"{name}_count{plain} {totals[-1]}.0\n{name}_sum{plain} {_number(point.value)}\n"


def _for_gateways(family: Family) -> Iterator[str]:
    """The gauges of ``_GATEWAY``; of adapters one series a model, with their names, whose value is the time."""
    if family.row.name == _ADAPTERS:
        yield from _adapters_for_gateways(family)
        return
    name, text = _GATEWAY[family.row.name]
    yield f"# HELP {name} {text}\n# TYPE {name} gauge\n"
    for point in family.points:
        attributes = point.set.attributes
        if attributes.get("state", "active") == "active":
            model = labels_of({"model_name": attributes.get("gen_ai.request.model", "")})
            yield f"{name}{{{model}}} {_number(point.value)}\n"


def _adapters_for_gateways(family: Family) -> Iterator[str]:
    name = "vllm:lora_requests_info"
    yield f"# HELP {name} LoRA adapters that the server was started with.\n# TYPE {name} gauge\n"
    adapters: dict[object, list[str]] = {}
    for point in family.points:
        attributes = point.set.attributes
        adapters.setdefault(attributes.get("gen_ai.request.model", ""), []).append(str(attributes["adapter"]))
    for model, names in adapters.items():
        labels = {"max_lora": len(names), "model_name": model, "running_lora_adapters": ",".join(names)}
        yield f"{name}{{{labels_of({**labels, 'waiting_lora_adapters': ''})}}} {_number(time.time())}\n"


def _with_exemplars(start: str, bounds: list[str], totals: list[int], point: Point) -> Iterator[str]:
    for bucket, (bound, total) in enumerate(zip(bounds, totals, strict=True)):
        found = point.exemplars.get(bucket)
        yield f"{start}{bound}}} {total}.0{'' if found is None else _exemplar(found)}\n"


def _exemplar(found: Exemplar) -> str:
    trace = f'trace_id="{format_trace_id(found.trace_id)}",span_id="{format_span_id(found.span_id)}"'
    return f" # {{{trace}}} {_number(found.value)} {found.at:.3f}"


def _number(value: float) -> str:
    """In the format that Go parses."""
    if value == math.inf:
        return "+Inf"
    return repr(float(value))
