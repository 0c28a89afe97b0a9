"""Public bug reports on OpenTelemetry's environment whose tests are in no other file (see test_wild_samples)."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

import llamatel
from llamatel.telemetry.settings import Settings
from tests.parts import OtlpSink
from tests.samples import completion

TESTS = Path(__file__).parent
GOLDEN_LOG = TESTS / "golden" / "logs" / "2026.10.11549.log"


def attach_log(sink: OtlpSink, **env: str) -> str:
    """Run ``llamatel attach`` on a recorded log and return its messages."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "LLAMATEL_"))}
    export = {"OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    with GOLDEN_LOG.open("rb") as log:
        ran = subprocess.run(
            [sys.executable, "-m", "llamatel.cli.main", "attach", "--log", "-", "--metrics-addr", "none"],
            stdin=log, env={**clean, **export, **env}, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert "Traceback" not in ran.stderr
    return ran.stdout + ran.stderr


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_attach_malformed_headers_are_never_shown(otlp_sink: OtlpSink, protocol: str) -> None:
    for value in ("Authorization: Bearer sekret123", "authorization=Bearer sekret123\N{POUND SIGN}"):
        headers = {"OTEL_EXPORTER_OTLP_HEADERS": value, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
        shown = attach_log(otlp_sink, **headers)
        assert shown.count("OTEL_EXPORTER_OTLP_HEADERS") == 1
        assert not [part for part in ("sekret", "Bearer", "uthorization") if part in shown]


def test_metrics_page_has_no_exemplars_of_unsampled_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.0")
    monkeypatch.setenv("OTEL_METRICS_EXEMPLAR_FILTER", "always_on")
    running = llamatel.init(Settings.from_env(metrics_addr="127.0.0.1:0"))
    try:
        running.observer.submit(completion())
        assert running.observer.flush()
        assert running.pipeline.metrics_url is not None
        accepts = {"Accept": "application/openmetrics-text; version=1.0.0"}
        request = urllib.request.Request(running.pipeline.metrics_url, headers=accepts)
        with urllib.request.urlopen(request, timeout=30) as answer:
            page = answer.read().decode()
    finally:
        llamatel.shutdown()
    assert "llamacpp_request" in page
    assert "trace_id" not in page


def test_two_writers_have_no_series_in_common(otlp_sink: OtlpSink) -> None:
    """Two sidecars of servers at the same address.

    The Prometheus exporter of the Collector tells them apart by ``service.name`` and ``service.instance.id``.
    """
    for _ in range(2):
        attach_log(otlp_sink)
    writers = {
        (metric.resource["service.name"], metric.resource["service.instance.id"]) for metric in otlp_sink.metrics()
    }
    assert len(writers) == 2
    names = {metric.name for metric in otlp_sink.metrics()}
    assert "llamacpp.requests" in names
    for metric in otlp_sink.metrics():
        series = [tuple(sorted(point.attributes.items())) for point in metric.points]
        assert len(series) == len(set(series)), metric.name
