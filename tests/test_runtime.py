"""``init()`` and ``shutdown()`` with real servers: which servers are traced, and shutdown in all cases."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import llamatel
from llamatel import runtime
from llamatel.collectors import Collector
from llamatel.errors import PipelineError, UsageError
from llamatel.llama.server.manager import ServerManager
from llamatel.metrics import METRICS
from llamatel.records import Completion, Outcome
from llamatel.telemetry.settings import Settings
from tests.parts import OtlpSink, accepts, free_port, wait_until
from tests.servers import complete, complete_in_background, without_settings

KEY = "sk-very-secret-0123456789"
ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    without_settings(monkeypatch)
    yield
    runtime.shutdown(5)


class Requests:
    """A sink."""

    def __init__(self) -> None:
        self.seen: list[tuple[Completion, str | None]] = []

    def __call__(self, completion: Completion, trace_id: str | None) -> None:
        self.seen.append((completion, trace_id))


@pytest.fixture
def requests() -> Requests:
    return Requests()


@pytest.fixture
def server(llama_server_binary: Path, tiny_model: Path) -> Iterator[ServerManager]:
    with ServerManager(backend=str(llama_server_binary)) as manager:
        yield manager.start_server(tiny_model, port=0, extra_args=["-t", "1"]).wait_until_ready(60)


def init(**arguments: Any) -> runtime.Runtime:
    return llamatel.init(**{"metrics_addr": "127.0.0.1:0", "otlp_protocol": "http/protobuf", **arguments})


def metrics_page(running: runtime.Runtime) -> str:
    assert running.pipeline.metrics_url is not None
    with urllib.request.urlopen(running.pipeline.metrics_url, timeout=20) as answer:
        return str(answer.read().decode())


def test_init_watches_servers_started_before_and_after(
    server: ServerManager, llama_server_binary: Path, tiny_model: Path, requests: Requests, otlp_sink: OtlpSink
) -> None:
    running = init(otlp_endpoint=otlp_sink.endpoint, sinks=[requests])
    assert runtime.current() is running
    with ServerManager(backend=str(llama_server_binary)) as later:
        later.start_server(tiny_model, port=0, alias="later").wait_until_ready(60)
        assert (complete(server.base_url, 5), complete(later.base_url, 6)) == (200, 200)
        wait_until(lambda: len(requests.seen) == 2)
        page = metrics_page(running)
        assert f'server_port="{server.info.port}"' in page
        assert 'gen_ai_request_model="later"' in page
        later.stop_server()
        assert llamatel.shutdown()
    roots = [span for span in otlp_sink.spans() if span.kind == "SERVER"]
    assert {span.trace_id for span in roots} == {trace_id for _, trace_id in requests.seen}
    assert sorted(span.attributes["gen_ai.usage.output_tokens"] for span in roots) == [5, 6]
    # Telemetry is off, and the server runs on.
    assert runtime.current() is None
    assert complete(server.base_url) == 200
    assert len(requests.seen) == 2


def test_init_servers_on_free_ports_leave_no_dead_series(tiny_model: Path) -> None:
    running = init()
    for number in range(1, 4):
        manager = ServerManager()  # the last one, or one that was started before
        for _ in range(1 + number % 2):
            with manager.start_server(tiny_model, port=0, extra_args=["-t", "1"]).wait_until_ready(60):
                assert complete(manager.base_url) == 200
            page = metrics_page(running)
    assert len(set(re.findall(r'server_port="(\d+)"', page))) == 1
    assert re.findall(r'^llamacpp_requests_total\{.*"ok".*\} (\S+)$', page, re.MULTILINE) == ["5.0"]
    assert len(running.observer.snapshot().servers) == 1


def test_shutdown_without_init() -> None:
    assert llamatel.shutdown()
    assert llamatel.shutdown(0)


def test_shutdown_includes_the_last_request(server: ServerManager, requests: Requests) -> None:
    for number in range(1, 4):
        init(sinks=[requests])
        assert complete(server.base_url) == 200
        llamatel.shutdown()
        assert len(requests.seen) == number


def test_init_again_with_other_arguments_replaces(server: ServerManager) -> None:
    port = free_port()
    first, second = Requests(), Requests()
    one = init(metrics_addr=f"127.0.0.1:{port}", sinks=[first])
    assert complete(server.base_url) == 200
    wait_until(lambda: len(first.seen) == 1)
    other = init(metrics_addr=f"127.0.0.1:{port}", sinks=[second])
    assert other is not one
    assert complete(server.base_url) == 200
    wait_until(lambda: len(second.seen) == 1)
    assert len(first.seen) == 1
    assert "llamacpp_server_up_ratio{" in metrics_page(other) or "llamacpp_server_up{" in metrics_page(other)
    assert llamatel.shutdown()
    assert not accepts(port)


def test_init_default_metrics_port_in_use(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 9464))
            taken.listen()
        except OSError:
            pass  # another process uses it, which is equivalent
        running = llamatel.init()
    assert running.pipeline.metrics_url is not None
    assert ":9464/" not in running.pipeline.metrics_url
    [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "127.0.0.1:9464 is in use" in record.getMessage()
    assert running.pipeline.metrics_url in record.getMessage()


@pytest.mark.parametrize("way", ["argument", "environment"])
def test_init_named_metrics_port_in_use(
    way: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The application starts without an endpoint, as a scraper would not find another port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        if way == "environment":
            monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_PORT", str(port))
        running = llamatel.init(metrics_addr=f"127.0.0.1:{port}" if way == "argument" else None)
    assert running.pipeline.metrics_url is None
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        f"metrics are not served by this process: 127.0.0.1:{port} is in use"
    ]
    assert llamatel.shutdown()


def test_init_settings_with_a_metrics_port_in_use() -> None:
    """As the command line does it: an error."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PipelineError, match=f"127.0.0.1:{port} is in use"):
            llamatel.init(Settings(metrics_addr=("127.0.0.1", port)))
    assert runtime.current() is None
    assert llamatel.shutdown()


class Twice(Collector):
    name = "twice"
    metrics = METRICS[:1]


@pytest.mark.parametrize("fault", ["collector", "unknown"])
def test_init_failure_cleans_up(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    threads = set(threading.enumerate())
    if fault == "collector":
        monkeypatch.setattr("llamatel.collectors.load", lambda *_: [Twice()])
    with pytest.raises((UsageError, ValueError)):
        init(metrics_addr=f"127.0.0.1:{port}", collectors=["nonsense"] if fault == "unknown" else [])
    monkeypatch.undo()
    assert runtime.current() is None
    assert not accepts(port)
    wait_until(lambda: set(threading.enumerate()) <= threads)
    init(metrics_addr=f"127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("given", "arguments", "expected"),
    [
        (("my-notebook",), {}, r"llamatel.init\(service_name='my-notebook'\)"),
        ((), {"collectors": "kv_cache"}, r"collectors is a list of names: \['kv_cache'\]"),
        ((), {"keep_traces": "yes"}, "how many spans to keep"),
        ((), {"keep_traces": -1}, "how many spans to keep"),
    ],
)
def test_init_invalid_arguments(given: tuple[Any, ...], arguments: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        llamatel.init(*given, **arguments)
    assert runtime.current() is None


def test_runtime_repr() -> None:
    running = init(otlp_endpoint="http://u:secret@127.0.0.1:1", page_token="t" * 20)
    shown = repr(running)
    assert str(running.pipeline.metrics_url) in shown
    assert "http://127.0.0.1:1" in shown
    assert "secret" not in shown
    assert "ttt" not in shown
    assert len(shown) < 120
    assert repr(init(metrics_addr="none")) == "<llamatel without an exporter>"


def test_init_sdk_disabled(server: ServerManager, requests: Requests, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    running = init(sinks=[requests])
    assert (running.pipeline.metrics_url, running.observer.collectors) == (None, ())
    assert complete(server.base_url) == 200
    wait_until(lambda: requests.seen)
    assert requests.seen[0][1] is None
    assert llamatel.shutdown()


def test_shutdown_with_a_hanging_sink_is_bounded(server: ServerManager, otlp_sink: OtlpSink) -> None:
    hangs, let_go = threading.Event(), threading.Event()

    def sink(*_: object) -> None:
        hangs.set()
        let_go.wait(60)

    init(sinks=[sink], otlp_endpoint=otlp_sink.endpoint)
    assert [complete(server.base_url) for _ in range(3)] == [200] * 3
    assert hangs.wait(20)
    start_time = time.monotonic()
    assert not llamatel.shutdown(5.0)
    assert time.monotonic() - start_time < 30
    let_go.set()
    assert otlp_sink.spans()  # what was written before it is delivered


def test_crash_during_a_request_is_an_error_span(
    server: ServerManager, requests: Requests, otlp_sink: OtlpSink
) -> None:
    running = init(sinks=[requests], otlp_endpoint=otlp_sink.endpoint)
    complete_in_background(server.base_url, 1)
    wait_until(lambda: any("processing task" in line for line in server.log_tail), every=0.002)
    assert server.info.pid
    os.kill(server.info.pid, signal.SIGKILL)
    wait_until(lambda: requests.seen)
    assert requests.seen[0][0].outcome is Outcome.ERROR
    assert "llamacpp_requests_total{" in metrics_page(running)
    assert llamatel.shutdown()
    [span] = [span for span in otlp_sink.spans() if span.kind == "SERVER"]
    assert (span.status, span.status_message) == ("ERROR", "the server ended with signal 9")


def test_api_key_absent_from_spans_and_metrics(
    llama_server_binary: Path, tiny_model: Path, otlp_sink: OtlpSink
) -> None:
    running = init(otlp_endpoint=otlp_sink.endpoint)
    with ServerManager(backend=str(llama_server_binary)) as server:
        server.start_server(tiny_model, port=0, extra_args=["--api-key", KEY, "-lv", "4"]).wait_until_ready(60)
        assert complete(server.base_url, key=KEY) == 200
        assert complete(server.base_url, key="wrong") == 401
        wait_until(lambda: 'outcome="ok"' in metrics_page(running))
        page = metrics_page(running)
        server.stop_server()
    assert "llamacpp_tokens_total{" in page
    assert llamatel.shutdown()
    assert otlp_sink.spans()
    assert KEY not in page
    assert KEY not in repr(otlp_sink.spans())
    assert KEY not in repr(otlp_sink.latest())
    assert KEY not in repr(running)


def run(program: str, *arguments: str | Path, status: int = 0) -> str:
    """Run a program that uses llamatel; its standard error."""
    path = os.pathsep.join(str(folder) for folder in (ROOT, ROOT / "collectors"))
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done.stderr


LEAVING = """
import sys, time
import llamatel
from llamatel.llama import ServerManager
from tests.servers import complete, complete_in_background
backend, model, endpoint, order = sys.argv[1:]

def begin():
    llamatel.init(otlp_endpoint=endpoint, otlp_protocol="http/protobuf", metrics_addr="127.0.0.1:0")

if order == "telemetry first": begin()
server = ServerManager(backend=backend).start_server(model, port=0, extra_args=["-t", "1"]).wait_until_ready(60)
if order == "server first": begin()
assert complete(server.base_url, 5) == 200
complete_in_background(server.base_url, 1)
while sum("processing task" in line for line in server.log_tail) < 2: time.sleep(0.002)
sys.exit(7)
"""


@pytest.mark.parametrize("order", ["telemetry first", "server first"])
def test_exit_stops_servers_before_telemetry(
    order: str, llama_server_binary: Path, tiny_model: Path, otlp_sink: OtlpSink
) -> None:
    output = run(LEAVING, llama_server_binary, tiny_model, otlp_sink.endpoint, order, status=7)
    assert output == ""
    roots = sorted((span for span in otlp_sink.spans() if span.kind == "SERVER"), key=lambda span: span.start_ns)
    assert [span.attributes.get("gen_ai.usage.output_tokens") for span in roots][:1] == [5]
    assert len(roots) == 2
    assert roots[1].status in ("ERROR", "UNSET")  # it may have finished by itself
    tokens = {str(point.attributes["type"]): point.value for point in otlp_sink.latest()["llamacpp.tokens"].points}
    assert float(tokens["output"] or 0) >= 5


def test_fork_child_does_not_affect_parent(llama_server_binary: Path, tiny_model: Path, otlp_sink: OtlpSink) -> None:
    program = LEAVING.replace(
        "complete_in_background(server.base_url, 1)\nwhile",
        "import os\nif os.fork() == 0: sys.exit(0)\nos.wait()\nwhile False and",
    )
    output = run(program, llama_server_binary, tiny_model, otlp_sink.endpoint, "telemetry first", status=7)
    assert output == ""
    assert len([span for span in otlp_sink.spans() if span.kind == "SERVER"]) == 1


@pytest.mark.parametrize("providers", ["none", "set later", "set before"])
def test_init_again_observes_totals_and_gauges(providers: str) -> None:
    """OpenTelemetry keeps the callbacks of an instrument's first creation, also after shutdown."""
    program = f"""
import urllib.request
import llamatel
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

reader = InMemoryMetricReader()
def collected():
    found = [m for r in reader.get_metrics_data().resource_metrics for s in r.scope_metrics for m in s.metrics]
    return {{metric.name: metric for metric in found if metric.data.data_points}}
def reported():
    # the collectors that report themselves
    success = collected()["llamatel.collector.success"]
    return {{point.attributes["collector"] for point in success.data.data_points}}

if {providers!r} == "set before":
    metrics.set_meter_provider(MeterProvider([reader]))
llamatel.init(metrics_addr="none")
if {providers!r} == "set before":
    assert "slots" in reported()
assert llamatel.shutdown()
if {providers!r} == "set later":
    metrics.set_meter_provider(MeterProvider([reader]))
running = llamatel.init(metrics_addr="127.0.0.1:0", without=["slots"])
if {providers!r} == "none":
    text = urllib.request.urlopen(running.pipeline.metrics_url).read().decode()
    assert 'llamatel_collector_success{{collector="kv_cache"}}' in text, text
    assert '{{collector="slots"}}' not in text
else:
    assert reported() >= {{"kv_cache"}} and "slots" not in reported()
llamatel.shutdown()
if {providers!r} != "none":  # for the application's last export
    assert "llamatel.records.dropped" in collected() and "llamatel.collector.success" not in collected()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
