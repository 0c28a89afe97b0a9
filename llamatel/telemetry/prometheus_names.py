"""Prometheus names of metrics and attributes, by the rules of OpenTelemetry's Prometheus exporter.

Dashboards, rules and the metric reference derive their names from the metric table with this. A test holds it against
what llamatel's endpoint exposes. The Collector's exporter differs in one rule: it appends ``_ratio`` to gauges of unit
1 (``deploy/collector`` removes that unit, so the names are the same on both paths).
"""

from __future__ import annotations

import re
from functools import cache

from llamatel.metrics import Kind, Metric, table

# opentelemetry-exporter-prometheus, _mapping.py: units that the table may use.
_UNITS = {"s": "seconds", "By": "bytes", "J": "joules", "W": "watts", "Cel": "celsius", "Hz": "hertz", "1": ""}
_PER_UNITS = {"s": "second"}


def prometheus_name(metric: Metric | str) -> str:
    """The Prometheus name of a metric, given as its row or its OpenTelemetry name.

    A histogram's is that of its family: its series are this with ``_bucket``, ``_sum`` and ``_count``. Raises KeyError
    for a name that is not in the table.
    """
    row = table()[metric] if isinstance(metric, str) else metric
    name = re.sub(r"[^a-zA-Z0-9:]+", "_", row.name)
    unit = _unit(row.unit)
    if unit and not name.endswith(f"_{unit}"):
        name += f"_{unit}"
    return f"{name.removesuffix('_total')}_total" if row.kind in (Kind.COUNTER, Kind.TOTAL) else name


@cache
def prometheus_label(attribute: str) -> str:
    """The label name of an attribute."""
    return re.sub(r"[^a-zA-Z0-9]+", "_", attribute)


def _unit(unit: str) -> str:
    unit = re.sub(r"{.*}", "", unit)
    top, per, bottom = unit.partition("/")
    if per:
        return f"{_UNITS.get(top, top)}_per_{_PER_UNITS.get(bottom, bottom)}".removeprefix("_")
    return _UNITS.get(unit, unit)
