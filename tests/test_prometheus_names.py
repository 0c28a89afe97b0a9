"""Names in Prometheus, against the exporter that makes them."""

from __future__ import annotations

import pytest
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from llamatel.metrics import METRICS, SERVER_ATTRIBUTES, Kind, Metric
from llamatel.telemetry.prometheus_names import prometheus_label, prometheus_name
from tests.prometheus_series import prometheus_series

ODD = (
    Metric("a.b", Kind.GAUGE, "By/s", "rate"),
    Metric("a.c", Kind.GAUGE, "{token}/s", "rate"),
    Metric("a.d", Kind.TOTAL, "{token}/J", "rate"),
    Metric("a.e.seconds", Kind.GAUGE, "s", "named for its unit"),
    Metric("a.f", Kind.COUNTER, "J", "energy"),
    Metric("a.g-h__i", Kind.GAUGE, "Cel", "odd letters"),
)


def exported(rows: tuple[Metric, ...]) -> set[str]:
    """The names of all samples that the real exporter makes of these metrics."""
    registry = CollectorRegistry()
    reader = PrometheusMetricReader(scope_info_enabled=False, disable_target_info=True, registry=registry)
    provider = MeterProvider([reader])
    meter = provider.get_meter("test")

    def observe(_: CallbackOptions) -> list[Observation]:
        return [Observation(1, dict.fromkeys(SERVER_ATTRIBUTES, "x"))]

    for row in rows:
        if row.kind is Kind.HISTOGRAM:
            meter.create_histogram(row.name, row.unit, row.help).record(1)
        elif row.kind is Kind.GAUGE:
            meter.create_observable_gauge(row.name, [observe], row.unit, row.help)
        elif row.kind is Kind.UP_DOWN:
            meter.create_observable_up_down_counter(row.name, [observe], row.unit, row.help)
        else:
            meter.create_observable_counter(row.name, [observe], row.unit, row.help)
    text = generate_latest(registry).decode()
    provider.shutdown()
    return {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}


def test_prometheus_names_equal_the_exporters() -> None:
    assert exported(METRICS) == set(prometheus_series())


@pytest.mark.parametrize("row", ODD, ids=lambda row: str(row.name))
def test_prometheus_names_of_other_units_equal_the_exporters(row: Metric) -> None:
    assert exported((row,)) == {prometheus_name(row)}


def test_prometheus_name_unknown_metric() -> None:
    assert prometheus_name("gen_ai.server.time_to_first_token") == "gen_ai_server_time_to_first_token_seconds"
    assert prometheus_label("gen_ai.request.model") == "gen_ai_request_model"
    with pytest.raises(KeyError):
        prometheus_name("llamacpp.no.such")
