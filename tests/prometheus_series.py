"""Names of llamatel's series in Prometheus."""

from __future__ import annotations

from llamatel.metrics import METRICS, Kind, Metric
from llamatel.telemetry.prometheus_names import prometheus_name

_SERIES = ("_bucket", "_sum", "_count")


def prometheus_series() -> dict[str, Metric]:
    """Each series name that Prometheus can have of ours, and its row of the table."""
    return {
        name + suffix: row
        for row in METRICS
        for name in [prometheus_name(row)]
        for suffix in (_SERIES if row.kind is Kind.HISTOGRAM else ("",))
    }
