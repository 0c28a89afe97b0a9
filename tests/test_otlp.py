"""OTLP: delivery to a real collector, failing endpoints, and accounting of every span."""

from __future__ import annotations

import base64
import logging
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from llamatel.metrics import table
from llamatel.records import Outcome
from llamatel.telemetry.otlp_delivery import Delivery
from llamatel.telemetry.otlp_transport import Sent, speaks_http2
from tests.parts import OtlpSink, RotelAgent, free_port, wait_until
from tests.samples import START_TIME, completion, cut_short
from tests.telemetry import Taking, Telemetry, telemetry

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
def test_otlp_requests_at_a_real_collector(rotel: RotelAgent, otlp_sink: OtlpSink, protocol: str) -> None:
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
        assert root.start_ns == int(START_TIME) * 10**9 - 250_000_000
        assert root.end_ns == int(START_TIME) * 10**9 + 1_500_000_000
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
def test_otlp_connection_refused_counts_losses(protocol: str, caplog: pytest.LogCaptureFixture) -> None:
    with telemetry(BATCH, otlp_endpoint=f"127.0.0.1:{free_port()}", otlp_protocol=protocol) as running:
        lose_something(running, caplog)


@PROTOCOLS
def test_otlp_silent_endpoint_does_not_block(protocol: str, silent: str, caplog: pytest.LogCaptureFixture) -> None:
    with telemetry(BATCH, otlp_endpoint=silent, otlp_protocol=protocol) as running:
        lose_something(running, caplog)


def test_otlp_http_500_is_reported(otlp_sink: OtlpSink, caplog: pytest.LogCaptureFixture) -> None:
    otlp_sink.status = 500
    with telemetry(BATCH, otlp_endpoint=otlp_sink.endpoint, otlp_protocol="http/protobuf") as running:
        lose_something(running, caplog)
    assert any("500" in record.getMessage() for record in ours(caplog))


def lose_something(running: Telemetry, caplog: pytest.LogCaptureFixture) -> None:
    """Send more than the queue holds: nothing blocks, every span is accounted for, the user reads little."""
    for _ in range(100):
        running.send(completion())
    start_time = time.monotonic()
    assert not running.pipeline.flush(0.5)
    assert not running.pipeline.shutdown(0.5)
    assert time.monotonic() - start_time < 10
    dropped = running.pipeline.dropped()
    assert sum(dropped.values()) == 400
    assert set(dropped) <= {"queue_full", "shutdown", "export_failed"}
    assert dropped["queue_full"] >= 100
    # Spans after shutdown are counted too, without blocking.
    running.send(completion())
    assert sum(running.pipeline.dropped().values()) == 404
    assert len(ours(caplog)) <= 3


def ours(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """The messages that a user of the command line sees."""
    return [record for record in caplog.records if record.name.startswith("llamatel")]


@PROTOCOLS
def test_otlp_collector_killed_and_restarted(
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
    messages = [record.getMessage() for record in ours(caplog) if "spans" in record.getMessage()]
    assert [message.split(" to ")[0].split(" at ")[0] for message in messages] == ["cannot send spans", "spans arrive"]
    assert endpoint(rotel, protocol) in messages[0]


@PROTOCOLS
def test_otlp_connection_refused_message(
    protocol: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message has the requested URL and the reason only."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "10")  # in a second it does not always try again
    address = f"http://127.0.0.1:{free_port()}"
    with telemetry(otlp_endpoint=address, otlp_protocol=protocol) as running:
        running.send(completion())
        wait_until(lambda: any("spans" in record.getMessage() for record in ours(caplog)), 30, "a message")
        assert not running.pipeline.shutdown(0.5)
    message = next(record.getMessage() for record in ours(caplog) if "spans" in record.getMessage())
    path = "" if protocol == "grpc" else "/v1/traces"
    assert message == f"cannot send spans to {address}{path}: connection refused"


def test_delivery_logs_failure_and_recovery_once(caplog: pytest.LogCaptureFixture) -> None:
    away, fine = Sent(False, "it is away"), Sent(True)
    transport = Taking(away, away, fine, fine, away)
    delivery = Delivery("spans", "http://x/v1/traces", transport, 1.0)
    assert [delivery.send(b"") for _ in range(5)] == [False, False, True, True, False]
    assert [record.getMessage() for record in ours(caplog)] == [
        "cannot send spans to http://x/v1/traces: it is away",
        "spans arrive at http://x/v1/traces again",
        "cannot send spans to http://x/v1/traces: it is away",
    ]
    assert delivery.failing


def test_delivery_retries_until_its_timeout() -> None:
    busy = Sent(False, "HTTP 503", retry=True, retry_after_s=0.01)
    transport = Taking(busy, busy, busy)
    assert Delivery("spans", "x", transport, 5.0).send(b"message")
    assert transport.messages == [b"message"] * 4
    transport = Taking(*[busy] * 10_000)
    start_time = time.monotonic()
    assert not Delivery("spans", "x", transport, 0.2).send(b"")
    assert time.monotonic() - start_time < 5


def test_delivery_does_not_retry_permanent_errors() -> None:
    transport = Taking(Sent(False, "HTTP 400"))
    assert not Delivery("spans", "x", transport, 5.0).send(b"")
    assert len(transport.messages) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_otlp_redirects_are_counted_and_not_followed(
    otlp_sink: OtlpSink, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    otlp_sink.paths = {"/v1/traces": status, "/v1/metrics": status}
    otlp_sink.location = "http://user:s3cret@elsewhere.example/v1/traces"
    with telemetry(BATCH, otlp_endpoint=otlp_sink.endpoint, otlp_protocol="http/protobuf") as running:
        running.send(completion())
        assert not running.pipeline.flush(5)
        assert running.pipeline.dropped() == {"export_failed": 4}
    spans = [record.getMessage() for record in ours(caplog) if "send spans" in record.getMessage()]
    why = f"HTTP {status}: it redirects to http://elsewhere.example, which is not followed"
    assert spans == [f"cannot send spans to {otlp_sink.endpoint}/v1/traces: {why}"]
    assert {request.path for request in otlp_sink.requests} == {"/v1/traces", "/v1/metrics"}


@pytest.fixture
def rejecting(otlp_sink: OtlpSink) -> Iterator[Callable[[str], str]]:
    """Endpoints that accept everything but 3 spans or data points a message, by protocol."""
    otlp_sink.rejected = 3
    server = grpc.server(ThreadPoolExecutor(2))
    for service, name, response in (
        ("trace.v1.TraceService", "rejected_spans", ExportTraceServiceResponse()),
        ("metrics.v1.MetricsService", "rejected_data_points", ExportMetricsServiceResponse()),
    ):
        setattr(response.partial_success, name, 3)
        response.partial_success.error_message = "too many\nattributes"
        answer = response.SerializeToString()
        export = grpc.unary_unary_rpc_method_handler(lambda _, __, answer=answer: answer)
        handler = grpc.method_handlers_generic_handler(f"opentelemetry.proto.collector.{service}", {"Export": export})
        server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield lambda protocol: f"http://127.0.0.1:{port}" if protocol == "grpc" else otlp_sink.endpoint
    server.stop(None)


@PROTOCOLS
def test_otlp_rejected_data_is_counted_and_logged(
    rejecting: Callable[[str], str], protocol: str, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = rejecting(protocol)
    with telemetry(BATCH, otlp_endpoint=endpoint, otlp_protocol=protocol) as running:
        running.send(completion())
        assert running.pipeline.flush(5)
        assert running.pipeline.dropped() == {"rejected": 3}
        assert running.pipeline.points_rejected >= 3
        assert running.pipeline.span_queue is not None
        assert running.pipeline.span_queue.exported == 1
    paths = ("", "") if protocol == "grpc" else ("/v1/traces", "/v1/metrics")
    messages = [record.getMessage() for record in ours(caplog)]
    for path, what in zip(paths, ("spans", "metrics"), strict=True):
        assert f"{endpoint}{path} rejects some {what}: too many attributes" in messages


def test_otlp_trace_only_backend_shuts_down_true(otlp_sink: OtlpSink, caplog: pytest.LogCaptureFixture) -> None:
    otlp_sink.paths = {"/v1/metrics": 405}
    with telemetry(otlp_endpoint=otlp_sink.endpoint, otlp_protocol="http/protobuf") as running:
        running.send(completion())
        assert running.pipeline.shutdown(5)
    [line] = [record.getMessage() for record in ours(caplog)]
    assert line.startswith(
        f"cannot send metrics to {otlp_sink.endpoint}/v1/metrics: HTTP 405 (a backend for traces alone?"
    )
    assert "OTEL_METRICS_EXPORTER" in line


def test_otlp_http_endpoint_on_an_unusual_port_is_detected(otlp_sink: OtlpSink) -> None:
    with telemetry(otlp_endpoint=otlp_sink.endpoint) as running:
        running.send(completion())
        assert running.pipeline.shutdown(10)
    assert len(otlp_sink.spans()) == 4


def test_otlp_grpc_endpoint_on_an_unusual_port_is_detected(rotel: RotelAgent, otlp_sink: OtlpSink) -> None:
    with telemetry(otlp_endpoint=rotel.grpc_endpoint) as running:
        running.send(completion())
        assert running.pipeline.shutdown(10)
    assert rotel.stop() == 0
    assert len(otlp_sink.spans()) == 4


def test_speaks_http2_unknown_where_connection_is_refused() -> None:
    assert speaks_http2(("127.0.0.1", free_port()), 1.0) is None


def test_otlp_grpc_to_an_http_server_hints_at_the_protocol(
    otlp_sink: OtlpSink, caplog: pytest.LogCaptureFixture
) -> None:
    with telemetry(otlp_endpoint=otlp_sink.endpoint, otlp_protocol="grpc") as running:
        running.send(completion())
        assert not running.pipeline.flush(5)
    assert any("--otlp-protocol http/protobuf" in record.getMessage() for record in ours(caplog))


def test_otlp_http_to_a_grpc_server_hints_at_the_protocol(rotel: RotelAgent, caplog: pytest.LogCaptureFixture) -> None:
    with telemetry(otlp_endpoint=rotel.grpc_endpoint, otlp_protocol="http/protobuf") as running:
        running.send(completion())
        assert not running.pipeline.flush(5)
    assert any("--otlp-protocol grpc" in record.getMessage() for record in ours(caplog))


@PROTOCOLS
def test_otlp_endpoint_password_is_sent_and_not_shown(
    otlp_sink: OtlpSink, protocol: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    where = otlp_sink.endpoint.replace("http://", "http://me:s%40cret@")
    with telemetry(otlp_endpoint=where, otlp_protocol=protocol) as running:
        running.send(completion())
        running.pipeline.flush(5)
    if protocol != "grpc":
        basic = base64.b64encode(b"me:s@cret").decode()
        assert otlp_sink.requests[0].headers["authorization"] == f"Basic {basic}"
    assert "cret" not in caplog.text


def test_span_export_failing_endpoint_counts_every_span(otlp_sink: OtlpSink) -> None:
    otlp_sink.status = 400
    with telemetry(BATCH, otlp_endpoint=otlp_sink.endpoint, otlp_protocol="http/protobuf") as running:
        for _ in range(50):
            running.send(completion())
        running.pipeline.shutdown(5)
        assert sum(running.pipeline.dropped().values()) == 200
        assert running.pipeline.span_queue is not None
        assert running.pipeline.span_queue.exported == 0
