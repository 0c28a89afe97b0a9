"""The pipeline in a process of its own: globals, environment, forks, exits."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llamatel.errors import PipelineError
from llamatel.telemetry import pipeline_builder
from llamatel.telemetry.settings import Settings
from tests.parts import OtlpSink, free_port
from tests.samples import completion
from tests.telemetry import telemetry

ROOT = Path(__file__).parent.parent

PREFACE = """
import os, sys, time
from opentelemetry import metrics, trace
from llamatel.telemetry import pipeline_builder
from llamatel.telemetry.settings import Settings
from tests.samples import completion
from tests.telemetry import Telemetry

def start(**arguments):
    return Telemetry(pipeline_builder.build(Settings.from_env(**arguments)))
"""


def run(program: str, timeout: float = 30, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a program with a clean OTEL_* environment; fails if it takes longer or does not exit with 0."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    path = os.pathsep.join(str(folder) for folder in (ROOT, ROOT / "collectors", ROOT / "dashboards"))
    ran = subprocess.run(
        [sys.executable, "-c", PREFACE + program],
        env={**clean, "PYTHONPATH": path, "OTEL_EXPORTER_PROMETHEUS_PORT": "0", **env},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "Traceback" not in ran.stderr
    return ran


def test_pipeline_providers_become_global(otlp_sink: OtlpSink) -> None:
    run(
        """
telemetry = start()
with trace.get_tracer("another").start_as_current_span("from another library"):
    pass
metrics.get_meter("another").create_counter("another.count").add(1)
telemetry.send(completion())
assert telemetry.pipeline.shutdown()
""",
        OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.endpoint,
        OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
    )
    assert {span.name for span in otlp_sink.spans()} >= {"from another library", "generate_content tiny"}
    assert {"another.count", "llamacpp.requests"} <= set(otlp_sink.latest())


def test_pipeline_uses_the_application_s_providers(otlp_sink: OtlpSink) -> None:
    out = run(
        """
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
kept, reader = InMemorySpanExporter(), InMemoryMetricReader()
tracers, meters = TracerProvider(), MeterProvider([reader])
tracers.add_span_processor(SimpleSpanProcessor(kept))
trace.set_tracer_provider(tracers)
metrics.set_meter_provider(meters)
telemetry = start()
assert trace.get_tracer_provider() is tracers and metrics.get_meter_provider() is meters
assert (telemetry.pipeline.metrics_url, telemetry.pipeline.otlp_endpoint) == (None, None)
telemetry.send(completion())
assert telemetry.pipeline.shutdown()
telemetry.send(completion())
print(len(kept.get_finished_spans()))
[resource] = reader.get_metrics_data().resource_metrics
[requests] = [m for m in resource.scope_metrics[0].metrics if m.name == "llamacpp.requests"]
print(requests.data.data_points[0].value)
""",
        OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.endpoint,
    ).stdout
    assert out.split() == ["8", "2"]
    assert otlp_sink.requests == []


def test_pipeline_without_exporters_uses_a_later_provider() -> None:
    out = run(
        """
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
telemetry = start()
telemetry.send(completion())
kept = InMemorySpanExporter()
tracers = TracerProvider()
tracers.add_span_processor(SimpleSpanProcessor(kept))
trace.set_tracer_provider(tracers)
telemetry.send(completion())
print(len(kept.get_finished_spans()))
"""
    ).stdout
    assert out.split() == ["4"]


def test_pipeline_twice(otlp_sink: OtlpSink) -> None:
    ran = run(
        """
for _ in range(2):
    telemetry = start()
    telemetry.send(completion())
    assert telemetry.pipeline.metrics_url
    assert telemetry.pipeline.shutdown()
    assert telemetry.pipeline.shutdown()
""",
        OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.endpoint,
        OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
    )
    assert len(otlp_sink.traces()) == 2
    assert ran.stderr == ""


def test_pipeline_sdk_disabled() -> None:
    ran = run(
        """
telemetry = start()
telemetry.send(completion())
print(telemetry.pipeline.metrics_url, telemetry.pipeline.otlp_endpoint, telemetry.pipeline.shutdown())
""",
        OTEL_SDK_DISABLED="TRUE",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1",
    )
    assert ran.stdout.split() == ["None", "None", "True"]
    assert ran.stderr == ""


def test_console_exporters_write_json_lines() -> None:
    out = run(
        "start().send(completion())", OTEL_TRACES_EXPORTER="console", OTEL_METRICS_EXPORTER="console"
    ).stdout.splitlines()
    spans = [json.loads(line) for line in out]
    assert [span.get("name") for span in spans] == ["queue", "prefill", "decode", "generate_content tiny", None]
    assert "resource_metrics" in spans[-1]


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_pipeline_imports_only_the_protocol_in_use(protocol: str) -> None:
    out = run(
        """
telemetry = start(shutdown_timeout_s=0.1)
telemetry.send(completion())
telemetry.pipeline.flush(1.0)
print("grpc" in sys.modules, "urllib3" in sys.modules, "requests" in sys.modules)
""",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1",
        OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
    ).stdout
    assert out.split() == [str(protocol == "grpc"), str(protocol != "grpc"), "False"]


def test_exit_without_shutdown_exports_the_queue(otlp_sink: OtlpSink) -> None:
    ran = run(
        "start().send(completion())",
        OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.endpoint,
        OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
    )
    assert len(otlp_sink.spans()) == 4
    assert "llamacpp.requests" in otlp_sink.latest()
    assert ran.stderr == ""


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_exit_with_connection_refused_logs_the_loss(protocol: str) -> None:
    ran = run(
        "start(shutdown_timeout_s=1.0).send(completion())",
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{free_port()}",
        OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
    )
    *troubles, line = ran.stderr.splitlines()
    assert "4 spans could not be sent" in line
    what = [trouble.partition(" to ")[0] for trouble in troubles]
    assert len(what) == len(set(what)), "each problem is logged once"
    assert set(what) <= {"cannot send spans", "cannot send metrics"}


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_exit_with_a_silent_endpoint_is_bounded(protocol: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start_time = time.monotonic()
        ran = run(
            """
telemetry = Telemetry(pipeline_builder.build(Settings.from_env(shutdown_timeout_s=1.0)))
for _ in range(1000):
    telemetry.send(completion())
""",
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}",
            OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
            OTEL_EXPORTER_OTLP_TIMEOUT="60",
        )
        assert time.monotonic() - start_time < 20
    assert "could not be sent" in ran.stderr
    assert len(ran.stderr.splitlines()) <= 3, ran.stderr


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_fork_child_exports_and_parent_continues(protocol: str, otlp_sink: OtlpSink) -> None:
    port = otlp_sink.port if protocol != "grpc" else free_port()
    ran = run(
        """
telemetry = start(shutdown_timeout_s=2.0)
telemetry.send(completion())
url = telemetry.pipeline.metrics_url
child = os.fork()
if child == 0:
    telemetry.send(completion(task=99))
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
import urllib.request
assert b"llamacpp_requests_total" in urllib.request.urlopen(url, timeout=5).read()
""",
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}",
        OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
    )
    if protocol != "grpc":
        tasks = sorted(span.attributes["llamacpp.task.id"] for span in otlp_sink.spans("generate_content tiny"))
        assert tasks == [17, 99]
        assert ran.stderr == ""


def test_resource_attributes(otlp_sink: OtlpSink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test,host.name=elsewhere")
    monkeypatch.setattr(sys, "argv", ["llamatel", "--api-key", "sesame"])
    with telemetry(
        None,
        {"llamacpp.build": "b7001", "llamacpp.backend": "xllamacpp"},
        otlp_endpoint=otlp_sink.endpoint,
        otlp_protocol="http/protobuf",
    ) as running:
        running.send(completion())
        assert running.pipeline.shutdown()
    resource = otlp_sink.spans()[0].resource
    assert resource["service.name"] == "llamatel"
    assert resource["deployment.environment"] == "test"
    assert resource["host.name"] == "elsewhere"
    assert resource["process.pid"] == os.getpid()
    assert resource["process.runtime.name"] == sys.implementation.name
    assert resource["llamacpp.build"] == "b7001"
    assert resource["llamacpp.backend"] == "xllamacpp"
    assert resource["service.instance.id"]
    assert resource == otlp_sink.metrics()[0].resource
    assert not any("command" in key for key in resource)
    assert "sesame" not in str(resource)


@pytest.mark.parametrize(
    ("env", "argument", "name"),
    [
        ({"OTEL_SERVICE_NAME": "mine"}, None, "mine"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=theirs"}, None, "theirs"),
        ({"OTEL_SERVICE_NAME": "mine", "OTEL_RESOURCE_ATTRIBUTES": "service.name=theirs"}, None, "mine"),
        ({"OTEL_SERVICE_NAME": "mine"}, "given", "given"),
    ],
)
def test_service_name(
    otlp_sink: OtlpSink, monkeypatch: pytest.MonkeyPatch, env: dict[str, str], argument: str | None, name: str
) -> None:
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    with telemetry(service_name=argument, otlp_endpoint=otlp_sink.endpoint, otlp_protocol="http/protobuf") as running:
        running.send(completion())
        running.pipeline.shutdown()
    assert otlp_sink.spans()[0].resource["service.name"] == name


def otlp(sink: OtlpSink, monkeypatch: pytest.MonkeyPatch, **env: str) -> None:
    """Send one request with this environment."""
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", sink.endpoint)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    with telemetry(os.environ) as running:
        running.send(completion())
        assert running.pipeline.shutdown()


def test_otlp_headers_and_compression_from_environment(otlp_sink: OtlpSink, monkeypatch: pytest.MonkeyPatch) -> None:
    otlp(
        otlp_sink,
        monkeypatch,
        OTEL_EXPORTER_OTLP_HEADERS="x-tenant=me",
        OTEL_EXPORTER_OTLP_TRACES_HEADERS="x-tenant=spans",
        OTEL_EXPORTER_OTLP_COMPRESSION="gzip",
    )
    headers = {request.path: request.headers for request in otlp_sink.requests}
    assert headers["/v1/traces"]["x-tenant"] == "spans"
    assert headers["/v1/metrics"]["x-tenant"] == "me"
    assert headers["/v1/traces"]["content-encoding"] == "gzip"


def test_sampler_from_environment(otlp_sink: OtlpSink, monkeypatch: pytest.MonkeyPatch) -> None:
    otlp(otlp_sink, monkeypatch, OTEL_TRACES_SAMPLER="always_off")
    assert otlp_sink.spans() == []
    assert otlp_sink.latest()["llamacpp.requests"].points[0].value == 1


def test_exemplars_of_unsampled_traces_are_left_out(otlp_sink: OtlpSink, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the filter says: a trace id that leads nowhere is worse than none."""
    otlp(
        otlp_sink,
        monkeypatch,
        OTEL_TRACES_SAMPLER="traceidratio",
        OTEL_TRACES_SAMPLER_ARG="0.0",
        OTEL_METRICS_EXEMPLAR_FILTER="always_on",
    )
    points = [point for metric in otlp_sink.metrics() for point in metric.points]
    assert points
    assert not [point.exemplars for point in points if point.exemplars]


def test_span_limits_from_environment(otlp_sink: OtlpSink, monkeypatch: pytest.MonkeyPatch) -> None:
    otlp(otlp_sink, monkeypatch, OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT="5")
    assert len(otlp_sink.spans("generate_content tiny")[0].attributes) == 5


def test_temporality_and_histograms_from_environment(otlp_sink: OtlpSink, monkeypatch: pytest.MonkeyPatch) -> None:
    otlp(
        otlp_sink,
        monkeypatch,
        OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE="delta",
        OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION="base2_exponential_bucket_histogram",
    )
    duration = otlp_sink.latest()["gen_ai.server.request.duration"]
    assert (duration.kind, duration.temporality) == ("exponential_histogram", "DELTA")


def test_delta_temporality_over_otlp_beside_prometheus(otlp_sink: OtlpSink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta")
    with telemetry(
        metrics_addr="127.0.0.1:0", otlp_endpoint=otlp_sink.endpoint, otlp_protocol="http/protobuf"
    ) as running:
        for _ in range(2):
            running.send(completion())
            assert running.pipeline.flush()
    values = [metric.points[0].value for metric in otlp_sink.metrics("llamacpp.requests")]
    assert values[:2] == [1, 1]


def test_intervals_from_environment(otlp_sink: OtlpSink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "100")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    with telemetry(otlp_endpoint=otlp_sink.endpoint, otlp_protocol="http/protobuf") as running:
        running.send(completion())
        otlp_sink.wait_for(lambda sink: len(sink.spans()) == 4 and len(sink.metrics("llamacpp.requests")) >= 3)


def test_exemplars_over_otlp(otlp_sink: OtlpSink) -> None:
    with telemetry(
        metrics_addr="127.0.0.1:0", otlp_endpoint=otlp_sink.endpoint, otlp_protocol="http/protobuf"
    ) as running:
        running.send(completion())
        assert running.pipeline.shutdown()
    [trace_id] = otlp_sink.traces()
    [point] = otlp_sink.latest()["gen_ai.server.request.duration"].points
    assert point.exemplars == ((trace_id, 1.75),)


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "soon"}, "OTEL_EXPORTER_OTLP_TIMEOUT is 'soon'"),
        ({"OTEL_METRICS_EXEMPLAR_FILTER": "sometimes"}, "sometimes"),
        ({"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "few"}, "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT"),
    ],
)
def test_pipeline_invalid_environment(monkeypatch: pytest.MonkeyPatch, env: dict[str, str], expected: str) -> None:
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(PipelineError, match=expected) as refused:
        pipeline_builder.build(Settings.from_env({}, otlp_endpoint="127.0.0.1:4317", metrics_addr="127.0.0.1:0"))
    assert "\n" not in str(refused.value)
