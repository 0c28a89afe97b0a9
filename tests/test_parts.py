"""The test parts themselves: a real collector returns everything that was sent to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from tests.conftest import missing
from tests.parts import (
    Child,
    MissingPart,
    OtlpSink,
    Prometheus,
    RotelAgent,
    free_port,
    scrape_config,
    survivors,
    wait_until,
)
from tests.parts.cache import cached


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_rotel_spans(rotel: RotelAgent, otlp_sink: OtlpSink, protocol: str) -> None:
    exporter: SpanExporter
    if protocol == "grpc":
        exporter = GrpcExporter(endpoint=rotel.grpc_endpoint, insecure=True)
    else:
        exporter = HttpExporter(endpoint=f"{rotel.http_endpoint}/v1/traces")
    provider = TracerProvider(resource=Resource({"service.name": "parts"}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("tests")
    with tracer.start_as_current_span("chat tiny", kind=SpanKind.SERVER, attributes={"n": 3, "of": ["a", "b"]}) as root:
        root.set_status(StatusCode.ERROR, "no more")
        root.add_event("first token", {"at": 0.5})
        with tracer.start_as_current_span("decode"):
            pass
    provider.shutdown()

    spans = {span.name: span for span in otlp_sink.wait_for(lambda sink: len(sink.spans()) == 2 and sink.spans())}
    chat, decode = spans["chat tiny"], spans["decode"]
    assert (chat.kind, chat.status, chat.status_message) == ("SERVER", "ERROR", "no more")
    assert chat.attributes == {"n": 3, "of": ("a", "b")}
    assert [(event.name, event.attributes) for event in chat.events] == [("first token", {"at": 0.5})]
    assert chat.resource["service.name"] == "parts"
    assert (chat.parent_id, decode.parent_id, decode.trace_id) == ("", chat.span_id, chat.trace_id)
    assert chat.start_ns <= decode.start_ns <= decode.end_ns <= chat.end_ns
    assert rotel.stop() == 0


def test_rotel_metrics(rotel: RotelAgent, otlp_sink: OtlpSink) -> None:
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(endpoint=f"{rotel.http_endpoint}/v1/metrics"))
    provider = MeterProvider([reader], resource=Resource({}), shutdown_on_exit=False)
    meter = provider.get_meter("tests")
    meter.create_counter("requests", unit="{request}").add(2, {"outcome": "ok"})
    meter.create_histogram("duration", unit="s", explicit_bucket_boundaries_advisory=[0.1, 1.0]).record(0.25)
    provider.shutdown()

    metrics = otlp_sink.wait_for(lambda sink: len(sink.latest()) == 2 and sink.latest())
    requests, duration = metrics["requests"], metrics["duration"]
    assert (requests.kind, requests.unit, requests.monotonic) == ("sum", "{request}", True)
    assert requests.temporality == "CUMULATIVE"
    assert [(point.value, point.attributes) for point in requests.points] == [(2, {"outcome": "ok"})]
    assert duration.kind == "histogram"
    [point] = duration.points
    assert (point.count, point.sum, point.bounds, point.buckets) == (1, 0.25, (0.1, 1.0), (0, 1, 0))


def test_rotel_rejected_export(otlp_sink: OtlpSink) -> None:
    otlp_sink.status = 400
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(HttpExporter(endpoint=f"{otlp_sink.endpoint}/v1/traces")))
    provider.get_tracer("tests").start_span("lost").end()
    provider.shutdown()
    assert [(request.path, request.status) for request in otlp_sink.requests] == [("/v1/traces", 400)]
    assert otlp_sink.spans() == []


def test_prometheus_scrapes_and_answers(
    prometheus: Callable[[Mapping[str, Any]], Prometheus], llama_server_binary: Path, tiny_model: Path, tmp_path: Path
) -> None:
    port = free_port()
    argv: list[str | Path] = [
        llama_server_binary,
        "-m",
        tiny_model,
        "--port",
        str(port),
        "--metrics",
        "-c",
        "512",
        "-t",
        "1",
    ]
    server = Child(argv, tmp_path / "server.log")
    try:
        server.wait_ready(lambda: "listening on" in server.output())
        running = prometheus(scrape_config(f"127.0.0.1:{port}"))
        [(labels, value)] = running.wait_for("llamacpp:n_decode_total")
        assert (labels["job"], value) == ("llamatel", 0)
        assert [target["health"] for target in running.targets()] == ["up"]
    finally:
        assert server.stop() == 0


def test_programs_run(promtool: Path, llama_server_binary: Path, tiny_model: Path) -> None:
    metrics = "# HELP llamatel_up Whether it runs.\n# TYPE llamatel_up gauge\nllamatel_up 1\n"
    subprocess.run([promtool, "check", "metrics"], input=metrics, text=True, check=True, capture_output=True)
    fit: list[str | Path] = [
        llama_server_binary.with_name("llama-fit-params"),
        "-m",
        tiny_model,
        "-c",
        "512",
        "-fitp",
        "on",
    ]
    assert "Host" in subprocess.run(fit, check=True, capture_output=True, text=True).stdout


def test_survivors_finds_orphans() -> None:
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    parent = f"import subprocess; print(subprocess.Popen({sleeper!r}, stdout=subprocess.DEVNULL).pid)"
    orphan = int(subprocess.run([sys.executable, "-c", parent], stdout=subprocess.PIPE, check=True, text=True).stdout)
    try:
        assert orphan in survivors()
    finally:
        os.kill(orphan, signal.SIGKILL)
    wait_until(lambda: orphan not in survivors())


def test_session_fails_with_survivors(tmp_path: Path) -> None:
    leak = 'import subprocess\n\ndef test_leak():\n    subprocess.run("sleep 60 >/dev/null 2>&1 &", shell=True)\n'
    (tmp_path / "test_leak.py").write_text(leak)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    argv = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tests.conftest",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
    ]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    done = subprocess.run([*argv, str(tmp_path)], env=env, cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "processes that tests left running" in done.stdout
    assert "'sleep 60'" in done.stdout


@pytest.mark.parametrize(("ci", "outcome"), [("", pytest.skip.Exception), ("true", MissingPart)])
def test_missing_part_fails_in_ci(ci: str, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="promtool is missing: sudo apt-get install prometheus"):
        missing(MissingPart("promtool", "sudo apt-get install prometheus"))


def test_cache_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def half(folder: Path) -> None:
        (folder / "half").touch()
        raise MissingPart("the other half", "none to be had")

    with pytest.raises(MissingPart):
        cached("part", half)
    assert [path.name for path in (tmp_path / "llamatel").iterdir()] == ["part.lock"]

    (tmp_path / "llamatel" / "part.killed").mkdir()
    assert (cached("part", lambda folder: (folder / "whole").touch()) / "whole").exists()
    assert (cached("part", half) / "whole").exists()
    assert {path.name for path in (tmp_path / "llamatel").iterdir()} == {"part.lock", "part"}
