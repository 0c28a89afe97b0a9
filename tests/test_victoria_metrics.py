"""OTLP metrics in a real VictoriaMetrics: under which names they arrive."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamatel.metrics import Kind
from llamatel.telemetry.prometheus_names import prometheus_name
from tests.parts import wait_until
from tests.parts.monitoring import VictoriaMetrics
from tests.prometheus_series import prometheus_series
from tests.samples import completion, known_snapshot, snapshot
from tests.telemetry import telemetry

_EXPECTED = {
    "llamacpp_requests_total", "llamacpp_tokens_total", "gen_ai_server_request_duration_seconds_bucket",
    "llamacpp_kv_cache_headroom", "llamacpp_kv_cache_size_bytes",
}  # fmt: skip


def test_otlp_names_in_victoria_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dashboards' names, except for gauges without a unit, to which Prometheus' naming appends ``_ratio``."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "500")
    with VictoriaMetrics(tmp_path) as store:
        with telemetry(otlp_endpoint=f"{store.url}/opentelemetry", otlp_protocol="http/protobuf") as running:
            running.state = snapshot(known_snapshot())
            running.send(completion())
            # New series can be searched some time after they arrived: later on a busy machine.
            wait_until(lambda: set(store.api("label/__name__/values")) >= _EXPECTED, 120, "the names", every=0.5)
        names = set(store.api("label/__name__/values"))
    ours = prometheus_series()
    assert names & set(ours) >= _EXPECTED
    ratios = {name for name in names - set(ours) if name.endswith("_ratio")}
    gauges = {prometheus_name(row) for row in ours.values() if row.kind is Kind.GAUGE and row.unit == "1"}
    assert {name.removesuffix("_ratio") for name in ratios} <= gauges
    assert not {name for name in names - set(ours) - ratios if name.startswith(("llamacpp", "llamatel", "gen_ai"))}
