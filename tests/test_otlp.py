"""OTLP: what is sent arrives whole at a real collector, and an endpoint in trouble is no trouble here."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator

import pytest

from llamatel.metrics import table
from llamatel.records import Outcome
from llamatel.telemetry.exporters import Delivery, listen
from llamatel.telemetry.settings import OtlpTarget
from tests.parts import OtlpSink, RotelAgent, free_port, wait_until
from tests.samples import BEGAN, completion, cut_short
from tests.telemetry import Telemetry, telemetry

PROTOCOLS = pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
BATCH = {"OTEL_BSP_MAX_QUEUE_SIZE": "64", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "16"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports follow one another fast, and none takes long."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "200")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")


@pytest.fixture
def silent() -> Iterator[str]:
    """An endpoint that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def endpoint(rotel: RotelAgent, protocol: str) -> str:
    return rotel.grpc_endpoint if protocol == "grpc" else rotel.http_endpoint


@PROTOCOLS
def test_requests_arrive_whole_at_a_real_collector(rotel: RotelAgent, otlp_sink: OtlpSink, protocol: str) -> None:
    with telemetry(
        None, {"llamacpp.build": "b7001"}, otlp_endpoint=endpoint(rotel, protocol), otlp_protocol=protocol
    ) as running:
        assert running.pipeline.otlp_protocol == protocol
        for task in range(300):
            running.send(completion(task=task))
        running.send(cut_short(Outcome.CONTEXT_FULL, "Context size has been exceeded.", task=300))
        assert running.pipeline.shutdown(10)
    assert rotel.stop() == 0
    traces = otlp_sink.traces()
    assert len(traces) == 301
    tasks = set()
    for spans in traces.values():
        by_name = {span.name: span for span in spans}
        root = by_name.pop("generate_content tiny")
        tasks.add(root.attributes["llamacpp.task.id"])
        assert (root.kind, root.parent_id, root.scope) == ("SERVER", "", "llamatel")
        assert root.resource["llamacpp.build"] == "b7001"
        if root.status == "ERROR":
            assert root.status_message == "Context size has been exceeded."
            assert root.attributes["error.type"] == "context_full"
            assert by_name == {}
            continue
        assert root.start_ns == int(BEGAN) * 10**9 - 250_000_000
        assert root.end_ns == int(BEGAN) * 10**9 + 1_500_000_000
        assert root.attributes["gen_ai.usage.input_tokens"] == 40
        assert root.attributes["llamacpp.decode.tokens_per_second"] == 20.0
        assert root.attributes["llamacpp.truncated"] is False
        assert {name: span.seconds for name, span in by_name.items()} == {"queue": 0.25, "prefill": 0.5, "decode": 1.0}
        assert {(span.kind, span.parent_id) for span in by_name.values()} == {("INTERNAL", root.span_id)}
    assert tasks == set(range(301))

    metrics = otlp_sink.latest()
    ttft = metrics["gen_ai.server.time_to_first_token"]
    assert (ttft.kind, ttft.unit, ttft.temporality) == ("histogram", "s", "CUMULATIVE")
    [point] = ttft.points
    assert (point.count, point.sum, point.bounds) == (300, 225.0, table()["gen_ai.server.time_to_first_token"].buckets)
    outcomes = {p.attributes["outcome"]: p.value for p in metrics["llamacpp.requests"].points}
    assert outcomes == {"ok": 300, "context_full": 1, "cancelled": 0, "error": 0}
    assert {p.attributes["type"]: p.value for p in metrics["llamacpp.tokens"].points} == {
        "input_computed": 300,
        "input_cached": 100,
        "output": 210,
    }


@PROTOCOLS
def test_an_absent_endpoint(protocol: str, caplog: pytest.LogCaptureFixture) -> None:
    with telemetry(BATCH, otlp_endpoint=f"127.0.0.1:{free_port()}", otlp_protocol=protocol) as running:
        lose_something(running, caplog)


@PROTOCOLS
def test_an_endpoint_that_never_answers(protocol: str, silent: str, caplog: pytest.LogCaptureFixture) -> None:
    with telemetry(BATCH, otlp_endpoint=silent, otlp_protocol=protocol) as running:
        lose_something(running, caplog)


def test_an_endpoint_that_answers_errors(otlp_sink: OtlpSink, caplog: pytest.LogCaptureFixture) -> None:
    otlp_sink.status = 500
    with telemetry(BATCH, otlp_endpoint=otlp_sink.endpoint, otlp_protocol="http/protobuf") as running:
        lose_something(running, caplog)
    assert any("500" in record.getMessage() for record in ours(caplog))


def lose_something(running: Telemetry, caplog: pytest.LogCaptureFixture) -> None:
    """Send more than the queue holds: nothing blocks, every span is accounted for, the user reads little."""
    for _ in range(100):
        running.send(completion())
    began = time.monotonic()
    assert not running.pipeline.flush(0.5)
    assert not running.pipeline.shutdown(0.5)
    assert time.monotonic() - began < 10
    dropped = running.pipeline.dropped()
    assert sum(dropped.values()) == 400
    assert set(dropped) <= {"queue_full", "shutdown", "export_failed"}
    assert dropped["queue_full"] >= 100
    # What comes after the end is counted too, and blocks no more than before.
    running.send(completion())
    assert sum(running.pipeline.dropped().values()) == 404
    assert len(ours(caplog)) <= 3


def ours(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What a user of the command line reads."""
    return [record for record in caplog.records if record.name.startswith("llamatel")]


@PROTOCOLS
def test_a_collector_that_is_killed_and_comes_back(
    rotel: RotelAgent, otlp_sink: OtlpSink, protocol: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "llamatel")
    with telemetry(otlp_endpoint=endpoint(rotel, protocol), otlp_protocol=protocol) as running:
        running.send(completion(task=1))
        otlp_sink.wait_for(lambda sink: len(sink.traces()) == 1)
        rotel.kill()
        sent = 0
        while "export_failed" not in running.pipeline.dropped():
            sent += 1
            running.send(completion(task=2))
            time.sleep(0.05)
            assert sent < 600
        lost = running.pipeline.dropped()["export_failed"]
        rotel.start()
        otlp_sink.clear()
        while not otlp_sink.traces():
            running.send(completion(task=3))
            time.sleep(0.05)
        assert running.pipeline.shutdown(10)
        assert 0 < lost <= running.pipeline.dropped()["export_failed"] <= 4 * sent + 400
    said = [record.getMessage() for record in ours(caplog) if "spans" in record.getMessage()]
    assert [message.split(" to ")[0].split(" at ")[0] for message in said] == ["cannot send spans", "spans arrive"]
    assert endpoint(rotel, protocol) in said[0]


@PROTOCOLS
def test_nobody_listens(protocol: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said is why, and nothing more."""
    # What the SDK said in an earlier test it would not say again for some seconds.
    monkeypatch.setattr(logging.getLogger("opentelemetry.exporter.otlp.proto.grpc.exporter"), "filters", [])
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "10")  # in a second it does not always try again
    address = f"http://127.0.0.1:{free_port()}"
    with telemetry(otlp_endpoint=address, otlp_protocol=protocol) as running:
        running.send(completion())
        wait_until(lambda: any("spans" in record.getMessage() for record in ours(caplog)), 30, "trouble is said")
        assert not running.pipeline.shutdown(0.5)
    said = next(record.getMessage() for record in ours(caplog) if "spans" in record.getMessage())
    assert said.startswith(f"cannot send spans to {address}: ")
    assert said.endswith("Connection refused")
    assert "Transient" not in said
    assert "HTTPConnection" not in said


def test_a_reason_that_was_just_given_holds_for_the_other_signal(caplog: pytest.LogCaptureFixture) -> None:
    target = OtlpTarget(f"http://127.0.0.1:{free_port()}", "grpc")
    exporter = logging.getLogger("opentelemetry.exporter.of_a_test")
    listen()

    def fails() -> bool:
        exporter.warning("Transient error %s encountered while exporting x, Error details: %s", "14", "it is away")
        return False

    metrics, spans = Delivery("metrics", target), Delivery("spans", target)
    for _ in range(2):
        assert not metrics.attempt(fails)
        assert not spans.attempt(lambda: False)
    assert spans.attempt(lambda: True)
    where = target.shown
    assert [record.getMessage() for record in ours(caplog)] == [
        f"cannot send metrics to {where}: it is away",
        f"cannot send spans to {where}: it is away",
        f"spans arrive at {where} again",
    ]
    assert (metrics.failing, spans.failing) == (True, False)


def test_an_application_that_configured_logging_still_hears_the_sdk(
    otlp_sink: OtlpSink, caplog: pytest.LogCaptureFixture
) -> None:
    otlp_sink.status = 400
    with telemetry(otlp_endpoint=otlp_sink.endpoint, otlp_protocol="http/protobuf") as running:
        running.send(completion())
        running.pipeline.flush(5)
    assert any(record.name.startswith("opentelemetry.exporter") for record in caplog.records)
