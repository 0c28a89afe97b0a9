"""Call reports between processes: one trace of both, never a wrong one, bounded work for the receiver."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, get_current_span, set_span_in_context

from llamatel.inputs.http import HttpClient
from llamatel.records import ClientCall, Outcome, ServerInfo
from llamatel.tracing import call_reporter
from llamatel.tracing.call_reporter import CallReporter
from llamatel.tracing.call_reports import MAX_BYTES, MAX_CALLS, MAX_OPEN, CallReport, InvalidCallReport, read, write
from llamatel.tracing.joining import Joiner, OpenCalls, Origin
from tests.parts import OtlpSink, free_port
from tests.parts.otlp import SinkSpan
from tests.parts.processes import wait_until
from tests.samples import START_TIME, completion
from tests.servers import complete as complete_directly
from tests.serving import Serving

SCRIPT = """
import dataclasses, sys, time
from concurrent.futures import ThreadPoolExecutor
import llamatel
from llamatel import runtime
from llamatel.llama import LlamaCppClient, ServerManager

def complete(client, streamed=False):
    answer = client.complete("Same", n_predict=16, ignore_eos=True, temperature=0, stream=streamed)
    if streamed:
        list(answer)

llamatel.init(service_name="script")
reporter = runtime.current().calls
{body}
assert reporter.dropped == 0
llamatel.shutdown()
"""
ONE_BY_ONE = """
client = LlamaCppClient(sys.argv[1])
with llamatel.span("before"):
    complete(client)  # the first call may finish before the receiver knows of it
with llamatel.span("outer"):
    complete(client)
"""
LATE = """
# The thread that reports calls gets no time for two seconds, as on an overloaded machine.
find = reporter._find_servers
reporter._find_servers = lambda: (time.sleep(1.5), find())[1]

def wait_until_reported():
    while reporter._finished or reporter._calls_reported:
        time.sleep(0.1)

client = LlamaCppClient(sys.argv[1])
with llamatel.span("first"):
    complete(client)
wait_until_reported()
with llamatel.span("again"):
    complete(client)
wait_until_reported()  # an exit does not wait that long
"""
FIFTY = """
client = LlamaCppClient(sys.argv[1])
complete(client)
send = reporter.call_finished
reporter.call_finished = lambda call: send(dataclasses.replace(call, slot=None))
with ThreadPoolExecutor(50) as threads:
    list(threads.map(lambda number: complete(client, number % 2 == 0), range(50)))
"""
STOPPED = """
client = LlamaCppClient(sys.argv[1])
complete(client)
with llamatel.span("outer"):
    print("sending", flush=True)
    client.complete("Same", n_predict=200, ignore_eos=True)
sys.stdin.readline()  # an exit does not wait for a llamatel that does not answer
"""
OUR_OWN = """
with ServerManager() as server:
    server.start_server(sys.argv[1], port=0).wait_until_ready(60)
    client = LlamaCppClient(server.base_url)
    with llamatel.span("outer"):
        complete(client)
"""


HERE = ServerInfo("localhost", 8090)


class OpenCall:
    """A call in flight."""

    def __init__(self, server: ServerInfo = HERE) -> None:
        self.server = server
        self.started_at = START_TIME - 0.3
        self.headers_at: float | None = None


def call(number: int, **changes: Any) -> ClientCall:
    about = SpanContext(7, number + 1, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    made = ClientCall(
        key=number, span=set_span_in_context(NonRecordingSpan(about), Context()), server=HERE,
        operation="chat", started_at=START_TIME - 0.3, sent_at=START_TIME - 0.29, ended_at=START_TIME + 1.5,
        outcome=Outcome.OK, input_tokens=40, output_tokens=21, cached_tokens=10, prompt_computed=30,
        prefill_s=0.500004, decode_s=1.0,
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


@pytest.fixture(scope="module")
def sink() -> Iterator[OtlpSink]:
    with OtlpSink() as running:
        yield running


@pytest.fixture(scope="module")
def serving(sink: OtlpSink, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    running = Serving(tmp_path_factory.mktemp("watching"), tiny_model, slots=4, context=2048, **exporting(sink))
    yield running
    running.child.stop()


def exporting(sink: OtlpSink) -> dict[str, Any]:
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_EXPORTER_PROMETHEUS_PORT": "0",
    }


def run_script(body: str, argument: str, sink: OtlpSink, llamatel_url: str, servers: int, **env: str) -> list[SinkSpan]:
    """Run a script and return the spans of it and of llamatel, once ``servers`` server spans have arrived."""
    sink.clear()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT.format(body=body), argument],
        env={**os.environ, **exporting(sink), "LLAMATEL_URL": llamatel_url, **env},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    sink.wait_for(lambda arrived: len(of_kind(arrived.spans(), "SERVER")) >= servers, what="spans of the server")
    return sink.spans()


def of_kind(spans: list[SinkSpan], kind: str) -> list[SinkSpan]:
    return [span for span in spans if span.kind == kind]


# -- one trace of two processes ---------------------------------------------------------------------------------------


def test_call_report_joins_two_processes(serving: Serving, sink: OtlpSink) -> None:
    spans = run_script(ONE_BY_ONE, serving.url, sink, serving.page_url, 2)
    [outer] = [span for span in spans if span.name == "outer"]
    [call] = [span for span in spans if span.parent_id == outer.span_id]
    [request] = [span for span in spans if span.parent_id == call.span_id and span.kind == "SERVER"]
    assert {outer.trace_id} == {call.trace_id} == {request.trace_id}
    assert call.resource["process.pid"] != request.resource["process.pid"] == serving.pid
    assert {"prefill", "decode"} <= {span.name for span in spans if span.parent_id == request.span_id}
    for name in ("llamacpp.slot.id", "llamacpp.prompt.computed_tokens"):
        assert call.attributes[name] == request.attributes[name]
    # Counts and phases appear once in a trace.
    assert "gen_ai.usage.output_tokens" in call.attributes
    assert "gen_ai.usage.output_tokens" not in request.attributes
    names = [span.name for span in spans if span.trace_id == outer.trace_id]
    assert (names.count("prefill"), names.count("decode")) == (1, 1)


@pytest.mark.parametrize("sampler", ["always_on", "always_off"])
def test_call_report_joins_first_call_of_an_overloaded_process(serving: Serving, sink: OtlpSink, sampler: str) -> None:
    """The request has ended long before llamatel receives the first report of its process."""
    sampled, before = sampler == "always_on", len(serving.records())
    run_script(LATE, serving.url, sink, serving.page_url, 2 * sampled, OTEL_TRACES_SAMPLER=sampler)
    wait_until(lambda: len(serving.records()) >= before + 2, 30, "the requests")
    spans = sink.spans()
    calls = {span.span_id: span.parent_id for span in of_kind(spans, "CLIENT")}
    outer = {span.span_id for span in spans if span.name in ("first", "again")}
    assert len(outer) == 2 * sampled
    assert {calls.get(request.parent_id) for request in of_kind(spans, "SERVER")} == outer


@pytest.mark.parametrize("stopped", ["script", "llamatel"])
def test_call_report_joins_where_a_process_gets_no_time(serving: Serving, sink: OtlpSink, stopped: str) -> None:
    """The script reads the response, or llamatel the report and the log, two and a half seconds late."""
    sink.clear()
    script = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.replace("{body}", STOPPED), serving.url],
        env={**os.environ, **exporting(sink), "LLAMATEL_URL": serving.page_url},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with script:
        assert script.stdout is not None
        assert script.stdout.readline() == "sending\n"
        time.sleep(0.05)
        process = script.pid if stopped == "script" else serving.pid
        os.kill(process, signal.SIGSTOP)
        time.sleep(2.5)
        os.kill(process, signal.SIGCONT)
        time.sleep(1.0)  # until the report is sent again
        script.communicate("\n", timeout=60)
        assert script.returncode == 0
    sink.wait_for(lambda arrived: len(of_kind(arrived.spans(), "SERVER")) >= 2, what="spans of the server")
    [outer] = [span for span in sink.spans() if span.name == "outer"]
    [call] = [span for span in sink.spans() if span.parent_id == outer.span_id]
    assert call.span_id in {span.parent_id for span in of_kind(sink.spans(), "SERVER")}


def test_call_report_fifty_identical_calls(serving: Serving, sink: OtlpSink) -> None:
    """llama.cpp's own response has the slot; it is withheld from the joiner and then compared."""
    spans = run_script(FIFTY, serving.url, sink, serving.page_url, 51)
    calls = {span.span_id: span for span in of_kind(spans, "CLIENT")}
    requests = of_kind(spans, "SERVER")
    assert (len(calls), len(requests)) == (51, 51)
    joined = [span for span in requests if span.parent_id]
    assert len({span.parent_id for span in joined}) == len(joined)
    for request in joined:
        call = calls[request.parent_id]
        assert call.attributes["llamacpp.slot.id"] == request.attributes["llamacpp.slot.id"]
        assert call.trace_id == request.trace_id
    alone = [span for span in requests if not span.parent_id and not span.links]
    assert len(alone) <= 1  # the first call
    assert len(joined) >= 25  # enough calls are joined for the comparison to mean something


@pytest.mark.parametrize("default_url", [True, False])
def test_reporter_server_not_watched(serving: Serving, monkeypatch: pytest.MonkeyPatch, default_url: bool) -> None:
    """With an explicit address all calls are reported, because a proxy may hide the server's address."""
    monkeypatch.setattr(call_reporter, "DEFAULT_URL", serving.page_url)
    reporter = CallReporter(None if default_url else serving.page_url, "we")
    sent: list[CallReport] = []

    def keep(report: CallReport) -> int:
        sent.append(report)
        return 204

    monkeypatch.setattr(reporter, "_post", keep)
    watched = ServerInfo("localhost", int(serving.url.rpartition(":")[2]))
    for number, server in enumerate((HERE, watched, ServerInfo("10.0.0.1", watched.port))):
        reporter.call_started(number, OpenCall(server))
        reporter.call_finished(call(number, server=server))
    reporter.close(10.0)
    named = {endpoint for report in sent for endpoint in report.servers}
    others = set() if default_url else {("127.0.0.1", 8090), ("10.0.0.1", watched.port)}
    assert named <= {("127.0.0.1", watched.port), *others}  # a call may have finished before its server was named
    assert [one.key for report in sent for one in report.calls] == ([1] if default_url else [0, 1, 2])
    assert reporter.losses() == {}


FORKED = """
import os
with ServerManager() as server:
    server.start_server(sys.argv[1], port=0).wait_until_ready(60)
    client = LlamaCppClient(server.base_url)
    complete(client)
    time.sleep(0.1)
    children = []
    for number in range(2):
        children.append(os.fork())
        if not children[-1]:
            client = LlamaCppClient(server.base_url)

            @llamatel.task(name="child")
            def call(_):
                complete(client)

            with ThreadPoolExecutor(4) as threads:  # the first calls of the process
                list(threads.map(call, range(4)))
            llamatel.shutdown()
            os._exit(0)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
"""


def test_reporter_forked_processes_call_the_server_of_their_parent(sink: OtlpSink, tiny_model: Path) -> None:
    port = str(free_port())
    url = f"http://127.0.0.1:{port}"
    spans = run_script(FORKED, str(tiny_model), sink, url, 9, OTEL_EXPORTER_PROMETHEUS_PORT=port)
    requests = of_kind(spans, "SERVER")
    found = {span.trace_id for span in requests} | {trace_id for span in requests for trace_id, _ in span.links}
    children = {span.trace_id for span in spans if span.name == "child"}
    assert len(children) == 8
    assert children <= found


def test_reporter_own_server(sink: OtlpSink, tiny_model: Path) -> None:
    port = str(free_port())
    url = f"http://127.0.0.1:{port}"
    spans = run_script(OUR_OWN, str(tiny_model), sink, url, 1, OTEL_EXPORTER_PROMETHEUS_PORT=port)
    [call], [request] = of_kind(spans, "CLIENT"), of_kind(spans, "SERVER")
    assert (request.parent_id, request.trace_id) == (call.span_id, call.trace_id)


# -- no receiver, or one that does not respond -------------------------------------------------------------------------


def test_reporter_no_receiver(serving: Serving, sink: OtlpSink) -> None:
    spans = run_script(ONE_BY_ONE, serving.url, sink, f"http://127.0.0.1:{free_port()}", 2)
    assert [span.parent_id for span in of_kind(spans, "SERVER")] == ["", ""]


def test_reporter_receiver_is_llama_cpp(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    reporter = CallReporter(serving.url, "we")  # a llama.cpp
    monkeypatch.setattr(reporter, "_post", lambda *_: pytest.fail("a report was sent"))
    reporter.call_started(1, OpenCall())
    reporter.call_finished(call(1))
    reporter.close(10.0)
    assert reporter.losses() == {}


def test_reporter_receiver_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        reporter = CallReporter(f"http://127.0.0.1:{silent.getsockname()[1]}", "we")
        start = time.monotonic()
        for number in range(1000):
            reported = call(number)
            reporter.call_started(reported.key, OpenCall())
            reporter.call_finished(reported)
        reporter.close(0.2)
        assert time.monotonic() - start < 5.0  # the reporter waits one second for each response
        assert reporter.losses() == {"call_not_reported": 1000 - 512}


def test_reporter_receiver_stops(serving: Serving) -> None:
    reporter = CallReporter(serving.page_url, "we")
    server = ServerInfo("127.0.0.1", int(serving.url.rpartition(":")[2]))
    first = call(1, server=server)
    reporter.call_started(first.key, OpenCall(server))
    wait_until(lambda: reporter._watched, 10, "the servers that it watches")
    reporter._http = HttpClient(f"http://127.0.0.1:{free_port()}")
    reporter.call_finished(first)
    wait_until(lambda: reporter.losses() == {"call_not_reported": 1}, 10, "its loss")
    second = call(2, server=server)
    reporter.call_started(second.key, OpenCall(server))
    reporter.call_finished(second)
    reporter.close(5.0)
    assert reporter.losses() == {"call_not_reported": 1}


# -- accepted and refused reports --------------------------------------------------------------------------------------


def post(serving: Serving, body: bytes, **headers: str) -> int:
    """Return the response's status, or 0 if the connection was closed without one."""
    connection = http.client.HTTPConnection(urlsplit(serving.page_url).netloc, timeout=10)
    sent = {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    with contextlib.closing(connection):
        try:
            connection.request("POST", "/calls.json", body, sent)
            return connection.getresponse().status
        except ConnectionError:
            return 0


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 204),
        ({"Content_Type": "application/json; charset=utf-8"}, 204),
        ({"Host": "evil.example"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content_Length": "-1"}, 411),
        ({"Content_Length": "x"}, 411),
        ({"Content_Length": "9" * 5000}, 413),
        ({"Content_Length": str(MAX_BYTES + 1)}, 413),
    ],
)
def test_receiver_refuses_browsers_and_large_bodies(serving: Serving, headers: dict[str, str], status: int) -> None:
    assert post(serving, write(CallReport([], [])), **headers) in ({status} if status < 400 else {status, 0})


def document(**changes: Any) -> bytes:
    message = json.loads(write(CallReport([], [call(1)])))
    message["calls"][0].update(changes)
    return json.dumps(message).encode()


TOO_MANY = json.dumps({"servers": [["x", 1]] * (MAX_CALLS + 1), "calls": []}).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\xff", b"[]", b"{}", b"null", b"[" * 30000, b"9" * 30000, b'{"servers":[],"calls":{}}',
        b'{"servers":[["x"]],"calls":[]}', b'{"servers":[[1,1]],"calls":[]}', b'{"servers":[["",1]],"calls":[]}',
        b'{"servers":[["x",1.5]],"calls":[]}', TOO_MANY,
        document(more=1), document(outcome="fine"), document(outcome=[]), document(operation=[]), document(slot=True),
        document(started_at=float("nan")), document(ended_at=float("inf")), document(ended_at=0), document(tasks=0),
        document(tasks=2**80), document(prefill_s=-1), document(span="0" * 16), document(span="G" * 16),
        document(sampled=1), document(http_status=99),
        document(trace="1"), document(trace=None), document(server=["x" * 300, 1]), document(server="x"),
    ],
)  # fmt: skip
def test_receiver_refuses_invalid_reports(serving: Serving, body: bytes) -> None:
    assert post(serving, body) == 400


def test_receiver_flood_of_reports(serving: Serving, sink: OtlpSink) -> None:
    """A flood of the most expensive valid reports."""
    server = ServerInfo("127.0.0.1", int(serving.url.rpartition(":")[2]))
    before = serving.resident_mib()
    rows = len(serving.records())
    statuses: set[int] = set()
    flood = [
        call(number, server=server, started_at=1.0, sent_at=1.0, ended_at=2e9, slot=99) for number in range(MAX_CALLS)
    ]
    body = write(CallReport([("127.0.0.1", server.port)], flood))
    end = time.monotonic() + 3.0
    clients = [
        subprocess.Popen(
            ["curl", "-s", "-o", "/dev/null", "-d", '{"prompt":"x","n_predict":4}', f"{serving.url}/completion"]
        )
        for _ in range(4)
    ]
    while time.monotonic() < end:
        statuses.add(post(serving, body))
    assert statuses == {204, 429}
    assert [process.wait(20) for process in clients] == [0] * 4
    wait_until(lambda: len(serving.records()) == rows + 4, 10, "the requests' rows")
    assert serving.resident_mib() < before + 64
    time.sleep(1.1)  # the limit is per second
    test_call_report_joins_two_processes(serving, sink)


# -- the report's fields, and the joiner -------------------------------------------------------------------------------


def test_call_report_fields() -> None:
    reported = call(3, response_model="secret", error_type="secret", chunk_gaps=[0.1], headers_at=START_TIME)
    about = OpenCalls("a" * 48, START_TIME, [OpenCall()] * MAX_OPEN)
    body = write(CallReport([("127.0.0.1", 8090), ("/a/socket", None)], [reported] * MAX_CALLS, about))
    assert b"secret" not in body
    assert len(body) < MAX_BYTES
    report = read(body)
    calls = report.calls
    assert report.servers == [("127.0.0.1", 8090), ("/a/socket", None)]
    assert report.open_calls is not None
    assert (report.open_calls.client, report.open_calls.as_of) == ("a" * 48, START_TIME)
    assert report.open_calls.calls is not None
    found = [(one.server.port, one.started_at, one.headers_at) for one in report.open_calls.calls]
    assert found == [(8090, START_TIME - 0.3, None)] * MAX_OPEN
    assert len(calls) == MAX_CALLS
    span = get_current_span(calls[0].span).get_span_context()  # type: ignore[arg-type]
    assert (span.trace_id, span.span_id, span.is_remote, span.trace_flags.sampled) == (7, 4, True, True)
    same: dict[str, Any] = {
        "key": 0,
        "span": 0,
        "response_model": None,
        "error_type": None,
        "chunk_gaps": (),
        "elsewhere": True,
    }
    same |= {"server": ServerInfo("127.0.0.1", 8090)}
    assert dataclasses.replace(calls[0], key=0, span=0) == dataclasses.replace(reported, **same)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.sampled_from([*json.loads(document())["calls"][0]]), JSON)
def test_call_report_any_value(field: str, value: Any) -> None:
    with contextlib.suppress(InvalidCallReport):
        for read_call in read(document(**{field: value})).calls:
            assert isinstance(read_call, ClientCall)


@pytest.mark.parametrize(
    "value",
    [
        None, [], {}, {"client": "a", "as_of": 1.0}, {"client": "", "as_of": 1.0, "calls": []},
        {"client": "a" * 256, "as_of": 1.0, "calls": []}, {"client": "a", "as_of": "1", "calls": []},
        {"client": "a", "as_of": 1.0, "calls": {}}, {"client": "a", "as_of": 1.0, "calls": [["x", 1, 1.0]]},
        {"client": "a", "as_of": 1.0, "calls": [["x", 1, -1.0, None]]},
        {"client": "a", "as_of": 1.0, "calls": [["x", 1, 1.0, None]] * (MAX_OPEN + 1)},
    ],
)  # fmt: skip
def test_call_report_invalid_open_calls(value: Any) -> None:
    with pytest.raises(InvalidCallReport):
        read(json.dumps({"servers": [], "calls": [], "open": value}).encode())


def test_joiner_expected_calls() -> None:
    now = START_TIME + 1.51
    joiner = Joiner(lambda: now)
    joiner.expect(("127.0.0.1", 8090), 10.0)
    joiner.completed(completion(task=1))
    joiner.completed(completion(task=2, server=ServerInfo("127.0.0.1", 8091)))
    assert [done.task for done, _ in joiner.due()] == [2]
    now += 0.5
    reported = call(1, elsewhere=True)
    joiner.finished(reported)
    now += 0.2
    assert [(done.task, origin) for done, origin in joiner.due()] == [(1, Origin(parent=reported))]
    joiner.completed(completion(task=3))
    now += 1.1
    assert [(done.task, origin) for done, origin in joiner.due()] == [(3, Origin())]
    now += 10.0
    joiner.completed(completion(task=4))
    assert [done.task for done, _ in joiner.due()] == [4]


def open_calls(as_of: float, *calls: OpenCall, client: str = "a") -> OpenCalls:
    return OpenCalls(client, as_of, calls)


def test_joiner_waits_until_a_report_is_newer_than_the_request() -> None:
    """The client's process gets no time: its last report, of before the request's end, shows an open call."""
    now = START_TIME + 1.51
    joiner = Joiner(lambda: now)
    joiner.expect(("127.0.0.1", 8090), 10.0)
    joiner.reported(open_calls(START_TIME, OpenCall()), 5.0)
    joiner.completed(completion(task=1))
    assert [*joiner.due()] == []
    now += 4.0
    assert [*joiner.due()] == []
    reported = call(1, elsewhere=True)
    joiner.finished(reported)
    joiner.reported(open_calls(now - 0.1), 5.0)
    now += 0.2
    assert [(done.task, origin) for done, origin in joiner.due()] == [(1, Origin(parent=reported))]


def test_joiner_request_of_another_client_while_a_call_is_open() -> None:
    """The call was still open when a response would have arrived; the client has exited; a call of another server."""
    for reports in (
        [open_calls(START_TIME + 2.6, OpenCall())],
        [open_calls(START_TIME, OpenCall()), OpenCalls("a", START_TIME + 1.4, None)],
        [open_calls(START_TIME + 1.6, OpenCall(ServerInfo("127.0.0.1", 8091)))],
    ):
        now = START_TIME + 1.51
        joiner = Joiner(lambda: now)  # noqa: B023 - used within this turn
        joiner.completed(completion(task=0, server=ServerInfo("127.0.0.1", 8091)))
        list(joiner.due())
        joiner.expect(("127.0.0.1", 8090), 10.0)
        joiner.completed(completion(task=1))
        now = START_TIME + 2.61
        for report in reports:
            joiner.reported(report, 5.0)
        assert [(done.task, origin) for done, origin in joiner.due()] == [(1, Origin())]


def test_joiner_report_expires() -> None:
    """A request waits ten seconds at most, and only while the report counts."""
    for renewed, waits_s in ((False, 5.0), (True, 10.0)):
        now = START_TIME + 1.51
        joiner = Joiner(lambda: now)  # noqa: B023 - used within this turn
        joiner.reported(open_calls(START_TIME, OpenCall()), 5.0)
        joiner.completed(completion(task=1))
        while now < START_TIME + 1.51 + waits_s - 0.2:
            assert [*joiner.due()] == []
            if renewed:
                joiner.reported(open_calls(START_TIME, OpenCall()), 5.0)
            now += 0.09
        now += 0.5
        assert [done.task for done, _ in joiner.due()] == [1]


def test_joiner_slowly_read_stream_of_another_process() -> None:
    now = START_TIME + 1.51
    joiner = Joiner(lambda: now)
    stream = OpenCall()
    stream.headers_at = START_TIME + 0.001
    joiner.completed(completion(task=1))
    for _ in range(20):
        joiner.reported(open_calls(now, stream), 5.0)
        assert [*joiner.due()] == []
        now += 1.0
    reported = call(1, elsewhere=True, headers_at=START_TIME + 0.001, ended_at=now)
    joiner.finished(reported)
    joiner.reported(OpenCalls("a", now, None), 5.0)
    now += 0.2
    assert [(done.task, origin) for done, origin in joiner.due()] == [(1, Origin(parent=reported))]


def test_joiner_bounds_open_calls_of_other_processes() -> None:
    joiner = Joiner(lambda: START_TIME)
    for number in range(400):
        joiner.reported(open_calls(START_TIME, *[OpenCall()] * 64, client=str(number)), 5.0)
    known = [one for one, _ in joiner._elsewhere.values()]
    assert len(known) == 256
    assert sum(len(one.calls or ()) for one in known) == 256


def test_joiner_late_report() -> None:
    """The first request was written before a call was expected; the late report must not join the second."""
    now = START_TIME + 1.51
    joiner = Joiner(lambda: now)
    joiner.completed(completion(task=1))
    assert len(list(joiner.due())) == 1
    joiner.expect(("127.0.0.1", 8090), 10.0)
    joiner.completed(completion(task=2, slot=3))
    reported = call(1, elsewhere=True)
    joiner.finished(reported)
    now += 2.0
    assert [(done.task, origin) for done, origin in joiner.due()] == [(2, Origin(candidates=(reported,)))]


def test_joiner_bounds_calls_of_other_processes() -> None:
    joiner = Joiner()
    accepted = [joiner.finished(call(number, elsewhere=True, prefill_s=None)) for number in range(200)]
    assert accepted.count(True) == 128
    accepted = [joiner.finished(call(number, elsewhere=True)) for number in range(2100)]
    assert accepted.count(True) == 2048
    assert joiner.finished(call(1))


# -- other processes: zero code, unsampled, through a proxy ------------------------------------------------------------

NO_CODE = """
import sys, time
import openai
import llamatel
from llamatel.llama import LlamaCppClient

@llamatel.task(name="answer")
def answer():
    client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="none")
    client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hello"}], max_tokens=7)
    LlamaCppClient(sys.argv[1]).complete("x", n_predict=6, ignore_eos=True)

answer()
"""


FORKED_WITHOUT_INIT = """
import os, sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from llamatel.llama import LlamaCppClient
from llamatel.tracing.openai_instrumentor import OpenAIInstrumentor

kept = InMemorySpanExporter()
trace.set_tracer_provider(TracerProvider())
trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(kept))
instrumentor = OpenAIInstrumentor()
instrumentor.instrument()
LlamaCppClient(sys.argv[1]).complete("x", n_predict=2)
if not os.fork():
    kept.clear()
    LlamaCppClient(sys.argv[1]).complete("x", n_predict=2)
    instrumentor.uninstrument()
    print(*sorted(span.name for span in kept.get_finished_spans() if span.name != "wait"), flush=True)
    os._exit(0)
os.wait()
"""


def test_zero_code_forked_process(serving: Serving, sink: OtlpSink) -> None:
    sink.clear()
    done = subprocess.run(
        [sys.executable, "-c", FORKED_WITHOUT_INIT, serving.url],
        env={**os.environ, "LLAMATEL_URL": "none"}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("decode prefill text_completion\n", "")
    # Other tests count the spans of this server.
    sink.wait_for(lambda arrived: len(of_kind(arrived.spans(), "SERVER")) >= 2, what="spans of the server")


def test_zero_code_script_is_one_trace(serving: Serving, sink: OtlpSink, tmp_path: Path) -> None:
    sink.clear()
    script = tmp_path / "script.py"
    script.write_text(NO_CODE)
    command = [str(Path(sys.executable).with_name("opentelemetry-instrument")), "python", str(script), serving.url]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "LLAMA"))}
    env = {
        **kept, **exporting(sink), "OTEL_TRACES_EXPORTER": "otlp", "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none", "LLAMATEL_URL": serving.page_url,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    sink.wait_for(lambda arrived: len(of_kind(arrived.spans(), "SERVER")) >= 2, what="spans of the server")
    spans = sink.spans()
    [task] = [span for span in spans if span.name == "answer"]
    calls = of_kind(spans, "CLIENT")
    assert [(call.parent_id, call.trace_id) for call in calls] == [(task.span_id, task.trace_id)] * 2
    assert {request.parent_id for request in of_kind(spans, "SERVER")} == {call.span_id for call in calls}


def test_call_report_unsampled_call(serving: Serving, sink: OtlpSink) -> None:
    run_script(ONE_BY_ONE, serving.url, sink, serving.page_url, 0, OTEL_TRACES_SAMPLER="always_off")
    assert complete_directly(serving.url) == 200
    sink.wait_for(lambda arrived: len(of_kind(arrived.spans(), "SERVER")) >= 1, what="the span of another client")
    time.sleep(1.5)
    assert len(of_kind(sink.spans(), "SERVER")) == 1


class Proxy:
    """A TCP proxy: a tunnel, one that delays both directions, or one that terminates TLS."""

    def __init__(
        self, url: str, seconds: float = 0.0, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
    ) -> None:
        parts = urlsplit(url)
        self._target, self._seconds, self._tls = (str(parts.hostname), int(parts.port or 80)), seconds, tls
        self._socket = socket.create_server((host, 0))
        scheme = "http" if tls is None else "https"
        self.url = f"{scheme}://{host}:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._socket.accept()
                if self._tls is not None:
                    try:
                        client = self._tls.wrap_socket(client, server_side=True)
                    except OSError:  # the client does not trust it, or does not speak TLS
                        client.close()
                        continue
                server = socket.create_connection(self._target)
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with source, contextlib.suppress(OSError):
            while data := source.recv(65536):
                time.sleep(self._seconds)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._socket.close()


FOUR = """
client = LlamaCppClient(sys.argv[1])
for number in range(4):
    with llamatel.span(f"call {number}"):
        complete(client)
"""


def test_call_through_delay_proxy(serving: Serving, sink: OtlpSink) -> None:
    proxy = Proxy(serving.url, 0.15)
    spans = run_script(FOUR, proxy.url, sink, serving.page_url, 4)
    proxy.close()
    [last] = [span for span in spans if span.name == "call 3"]
    trace = {span.name: span for span in spans if span.trace_id == last.trace_id}
    [request] = [span for span in trace.values() if span.kind == "SERVER"]
    outside = trace.get("network.request") or trace["wait"]
    assert outside.seconds > 0.1
    assert trace["network.response"].seconds > 0.1
    assert "queue" not in trace
    assert trace["prefill"].parent_id == request.span_id
