"""Public bug reports on OpenTelemetry's environment (C) and on notebooks and scripts (F): each has a test."""

from __future__ import annotations

import ast
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

SAMPLES: dict[str, tuple[str, ...]] = {
    "C1 opentelemetry-python#4492, litellm#10569": (
        "test_init.py::test_init_malformed_headers_are_never_shown",
        "test_wild_client_samples.py::test_attach_malformed_headers_are_never_shown",
    ),
    "C2 opentelemetry-python#3287": (
        "test_init.py::test_init_starts_with_any_environment",
        "test_init.py::test_init_python_exporter_names_imply_the_protocol",
        "test_application_servers.py::test_own_requests_are_not_traced",
    ),
    "C4 opentelemetry.io#3627, signoz.io#1936": (
        "test_init.py::test_init_general_endpoint_with_a_signal_path",
        "test_init.py::test_init_messages_show_requested_url",
    ),
    "C5 openlit#1369, langfuse#13590": (
        "test_tracing.py::test_span_across_yield",
        "test_tracing.py::test_span_across_yield_of_a_generator_closed_in_another_thread",
        "test_application_servers.py::test_fastapi_stream_that_a_client_leaves",
    ),
    "C7 opentelemetry.io#7081": (
        "test_application_servers.py::test_application_server_workers",
        "test_init.py::test_forked_worker_prometheus_only_warns_once",
    ),
    "C9 prometheus-net#463, gohbase#182, thanos#4190": (
        "test_pipeline.py::test_exemplars_of_unsampled_traces_are_left_out",
        "test_wild_client_samples.py::test_metrics_page_has_no_exemplars_of_unsampled_traces",
    ),
    "C10 opentelemetry-collector-contrib#24054": (
        "test_wild_client_samples.py::test_two_writers_have_no_series_in_common",
        "test_init.py::test_init_service_instance_ids_differ",
    ),
    "F1 marimo#2906, nutpie#223": (
        "test_application_servers.py::test_marimo_is_a_notebook",
        "test_notebook_report.py::test_interactive_notebooks",
        "test_server_manager.py::test_manager_port_of_another_manager",
    ),
    "F2 opentelemetry-python#3743": (
        "test_application_servers.py::test_streamlit_reruns_keep_telemetry",
        "test_init.py::test_init_repeated_with_same_arguments",
    ),
    "F5 cirrus#69, unsloth#7182": ("test_orphan_processes.py::test_killed_kernel_frees_its_port",),
}
"""Sample and issue: its tests."""


def test_wild_client_samples_have_tests() -> None:
    for sample, tests in SAMPLES.items():
        for name in tests:
            module, _, function = name.partition("::")
            tree = ast.parse((TESTS / module).read_text(encoding="utf-8"))
            assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (sample, name)


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
