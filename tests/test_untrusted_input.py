"""Untrusted servers, logs and clients: bounded memory and time, typed errors, and no figures of others lost."""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from llamatel.cli.main import main
from llamatel.collectors import Sample
from llamatel.errors import RequestError, ServerUnreachable
from llamatel.inputs.documents import LARGEST
from llamatel.inputs.http import HttpClient
from llamatel.llama import LlamaCppClient, ServerManager
from llamatel.llama.http.server_client import ServerClient
from llamatel.llama.log.log_file import FileSource
from llamatel.llama.log.log_source import Backlog, StreamSource
from llamatel.llama.log.reader import LogReader
from llamatel.llama.watch.fleet import logged_server
from llamatel.llama.watch.log_follower import LogFollower
from llamatel.llama.watch.observed_server import ObservedServer
from llamatel.llama.watch.targets import target
from llamatel.metrics import METRICS
from llamatel.records import Completion, ServerInfo
from llamatel.snapshots import ServerSnapshot
from llamatel.telemetry.exposition import Exposition
from llamatel.telemetry.instruments import Instruments
from llamatel.telemetry.metric_store import MetricStore
from llamatel.telemetry.metrics_endpoint import MetricsEndpoint
from llamatel.telemetry.request_spans import Spans
from llamatel.tracing.call_reporter import CallReporter
from llamatel.ui.top.live_source import LlamatelSource
from tests.samples import completion
from tests.servers import BACKENDS, choose_backend, complete
from tests.test_call_reports import OpenCall
from tests.untrusted_server import Bytes, UntrustedServer, http, usual_responses

NINES = "9" * 5000
LAUNCH = "slot launch_slot_: id  0 | task 0 | processing task, is_child = 0"
RELEASE = "slot      release: id  0 | task 0 | stop processing: n_tokens = 32, truncated = 0"


@pytest.fixture
def server() -> Iterator[UntrustedServer]:
    made = UntrustedServer(usual_responses())
    yield made
    made.close()


def poll(server: UntrustedServer, *, times: int = 2, timeout_s: float = 0.5) -> tuple[ServerSnapshot, ...]:
    client = ServerClient(server.url, api_key="sk-secret", timeout_s=timeout_s)
    address = target(server.url)
    observed = ObservedServer(ServerInfo(address.address, address.port), client=client)
    for _ in range(times):
        observed.poll()
    observed.close()
    return observed.snapshots()


def endless() -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    while True:
        yield b"10000\r\n" + b"llamacpp:x_total 1\n" * 3449 + b"#####\r\n"


def router(**entry: object) -> dict[str, Bytes]:
    models = [{"id": "a", **entry}, {"id": "good", "status": {"value": "unloaded"}}]
    return usual_responses(props=http({"role": "router", "build_info": "b1"}), models=http({"data": models}))


def test_poll_usual_responses(server: UntrustedServer) -> None:
    (state,) = poll(server)
    assert (state.up, state.server.model, state.counters) == (True, "m.gguf", {"prompt_tokens_total": 7.0})
    assert state.kv_cache is not None
    assert state.kv_cache.active == 3


@pytest.mark.parametrize(
    "answers",
    [
        usual_responses(slots=http(b"[" * 200_000)),
        usual_responses(props=http(b'{"a":' * 200_000)),
        usual_responses(slots=http(b'[{"id":0,"is_processing":true,"n_ctx":' + NINES.encode() + b"}]")),
        usual_responses(slots=http(b'[{"id":0,"is_processing":true,"n_ctx":1e400,"n_prompt_tokens":NaN}]')),
        usual_responses(slots=http([{"id": 10**30, "is_processing": True}])),
        usual_responses(slots=http([{"id": number, "is_processing": True} for number in range(5000)])),
        usual_responses(metrics=http(b"llamacpp:requests_deferred NaN\nllamacpp:requests_processing Inf\n")),
        usual_responses(metrics=http(b"llamacpp:kv_cache_usage_ratio 1e-300\nllamacpp:kv_cache_tokens 1e18\n")),
        usual_responses(metrics=http(b"llamacpp:x{" * 100_000)),
        usual_responses(metrics=http(b"", "302 Found", "Location: http://127.0.0.1:9/\r\n")),
        usual_responses(**{"v1/models": http({"data": [{"id": "m" * 100_000}]})}),
        usual_responses(health=b"\x00\xff\x1b]0;x\x07\r\n\r\n"),
        router(status={"value": [1]}),
        router(status={"value": "loaded", "args": 5}),
        router(status={"value": "loaded", "args": ["--port", NINES, "--ctx-size", NINES]}),
        router(status=[]),
    ],
)
def test_poll_invalid_response_no_error_no_impossible_figures(
    server: UntrustedServer, answers: dict[str, Bytes]
) -> None:
    server.answers = answers
    states = poll(server)
    assert states[0].server.port == int(server.url.rpartition(":")[2])
    for state in states:
        cache = state.kv_cache
        numbers = [state.deferred, *state.counters.values(), *((cache.active, cache.capacity) if cache else ())]
        for slot in state.slots or ():
            numbers += [slot.id, slot.context_size, slot.context_tokens]
        assert all(number is None or 0 <= number < 2**62 for number in numbers)
        assert len(state.slots or ()) <= 1024
        assert len(state.server.model or "") <= 4096


def test_poll_router_with_invalid_model_entry(server: UntrustedServer) -> None:
    server.answers = router(status={"value": [1], "args": 5, "exit_code": "x"})
    assert [(state.server.model, state.state) for state in poll(server)][-1] == ("good", "unloaded")


def test_poll_bounds_number_of_counters(server: UntrustedServer) -> None:
    server.answers = usual_responses(
        metrics=http(b"".join(b"llamacpp:x%d_total 1\n" % number for number in range(100_000)))
    )
    (state,) = poll(server)
    assert len(state.counters) <= 256


def test_poll_endless_response_is_cut_off(server: UntrustedServer) -> None:
    server.answers = usual_responses(metrics=endless)
    with pytest.raises(ServerUnreachable, match="it sent more than 8192 KiB"):
        ServerClient(server.url, timeout_s=60).counters()
    assert server.sent < LARGEST + (32 << 20)  # contents of the socket's buffers
    assert poll(server, times=1, timeout_s=60)[0].up is False


def test_http_client_does_not_decompress(server: UntrustedServer) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(packer.compress(b"\0" * (1 << 20)) for _ in range(64)) + packer.flush()
    server.answers = usual_responses(metrics=http(bomb, more="Content-Encoding: gzip\r\n"))
    answer = HttpClient(server.url).request("/metrics", total_s=60)
    assert answer.data == bomb
    assert ServerClient(server.url, timeout_s=60).counters() == {}


@pytest.mark.parametrize(
    ("first", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ],
)
def test_server_client_total_timeout_with_slow_drip(server: UntrustedServer, first: bytes, piece: bytes) -> None:
    server.answers = usual_responses(metrics=server.drip(first, piece))
    with pytest.raises(ServerUnreachable, match="timed out") as caught:
        ServerClient(server.url, timeout_s=0.5).counters()
    assert caught.value.busy


def test_api_key_not_sent_to_redirect_target(server: UntrustedServer) -> None:
    other = UntrustedServer(usual_responses())
    for status in ("301 Moved", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"):
        away = {path: http(b"", status, f"Location: {other.url}{path}\r\n") for path in usual_responses()}
        server.answers = dict(away)
        poll(server)
    assert all(b"sk-secret" in head for head in server.requests)
    assert other.requests == []
    other.close()


@pytest.mark.parametrize(
    "answer",
    [http(b"[" * 200_000), endless, http({"version": 2}, "302 Found", "Location: /live.json\r\n"), http([1]), b"\xff"],
)
def test_top_source_is_not_llamatel(server: UntrustedServer, answer: Bytes) -> None:
    server.answers = {"/live.json": answer}
    source = LlamatelSource(server.url, "secret")
    with pytest.raises(ServerUnreachable):
        source.document(None)
    source.close()


@pytest.mark.parametrize(
    "answer", [http(b'{"servers":' + b"[" * 200_000), endless, http({"instance": "x", "servers": [[1]]}), b"\0\r\n\r\n"]
)
def test_call_reporter_endpoint_is_not_llamatel(server: UntrustedServer, answer: Bytes) -> None:
    server.answers = {"/servers.json": answer}
    sender = CallReporter(server.url, "me")
    sender._in_flight[1] = OpenCall()
    sender._find_servers()
    assert sender._watched is None
    sender.close()


# -- export ------------------------------------------------------------------------------------------------------------


def test_spans_model_name_with_surrogates_is_exported(server: UntrustedServer) -> None:
    server.answers = usual_responses(**{"v1/models": http(b'{"data":[{"id":"\\ud800-caf\\u00e9"}]}')})
    (state,) = poll(server)
    assert state.server.model == "?-caf\N{LATIN SMALL LETTER E WITH ACUTE}"
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    Spans(provider.get_tracer("tests")).emit(completion(server=ServerInfo("127.0.0.1", 1, "m\udcff.gguf")))
    assert b"m?.gguf" in encode_spans(exporter.get_finished_spans()).SerializeToString()


@pytest.mark.parametrize("value", [10**30, -(10**30), float("nan"), float("inf")])
def test_instruments_value_out_of_range_drops_only_itself(value: float, caplog: pytest.LogCaptureFixture) -> None:
    info = ServerInfo("127.0.0.1", 1, "m")
    samples = [Sample("llamacpp.requests.deferred", value, info), Sample("llamacpp.server.restarts", 3, info)]
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    instruments = Instruments(provider.get_meter("tests"), METRICS, lambda: samples)
    with pytest.raises(ValueError, match="not a number"):
        instruments.record(Sample("llamacpp.request.queue.duration", value, info))
    data = reader.get_metrics_data()
    assert data is not None
    encoded = encode_metrics(data).SerializeToString()
    assert b"llamacpp.server.restarts" in encoded
    assert b"llamacpp.requests.deferred" not in encoded
    assert caplog.text.count("a sample was left out") == 1


@pytest.mark.parametrize("at", [-1.0, 1e300, float("nan")])
def test_spans_invalid_time(at: float) -> None:
    spans = Spans(TracerProvider(shutdown_on_exit=False).get_tracer("tests"))
    with pytest.raises(ValueError, match="not a Unix time"):
        spans.emit(completion(started_at=at, ended_at=at))


# -- logs -------------------------------------------------------------------------------------------------------------

MALFORMED_LINES = [
    "slot print_timing: id  0 | task 0 | prompt eval time = 1.2.3 ms / 13 tokens",
    f"slot print_timing: id  0 | task 0 | prompt eval time = 1.2 ms / {NINES} tokens",
    f"slot print_timing: id  0 | task 0 | prompt eval time = {'9' * 400} ms / 3 tokens",
    "slot print_timing: id  0 | task 0 |        eval time = . ms / 3 tokens",
    f"slot launch_slot_: id  {NINES} | task 0 | processing task, is_child = 0",
    f"srv stop: cancel task, id_task = {NINES}",
    f"srv send_error: task id = {NINES}, error: x",
    f"main: server is listening on http://a:{NINES}",
    "srv update:  - cache state: 3 prompts, 1.2.3 MiB",
    f"srv update:  - cache state: 1 prompts, {'9' * 400} MiB",
    f"llama_kv_cache: size = 1, K (f16): {'9' * 400} MiB, V (f16): 3 MiB",
    f"llama_context: n_ctx = {NINES}",
    f"srv load_model: initializing slots, n_slots = {NINES}",
    f"{NINES}.12.345.678 I slot x",
    f"spawning server instance with name=x on port {NINES}",
    f"instance name=x exited with status {NINES}",
    '{"type":"x","msg":' + "[" * 100_000,
    '{"type":"x","time":1e400,"msg":"hello"}',
    '{"type":"x","time":' + NINES + ',"msg":"hello"}',
    "0001-01-01T00:00:00Z 0.00.000.000 I x",
    "\0\x1b[31m\ud800",
    "[cache] " + " (aliases: ) [tags: ]" * 3000,
    "llama_memory_recurrent: size = " + "MiB (), " * 8000,
]


@pytest.mark.parametrize("line", MALFORMED_LINES)
def test_reader_malformed_line(line: str, caplog: pytest.LogCaptureFixture) -> None:
    reader = LogReader(ServerInfo("127.0.0.1", 8080))
    completions: list[Completion] = []
    for each in (LAUNCH, line, RELEASE):
        completions.extend(reader.feed(each, time.time()))
    assert [(request.slot, request.task) for request in completions] == [(0, 0)]
    numbers = (
        completions[0].prefill_s,
        completions[0].decode_s,
        completions[0].prompt_computed,
        completions[0].generated,
    )
    assert all(number is None or number < 1e12 for number in numbers)
    assert "Traceback" not in caplog.text


@given(st.lists(st.text("0123456789. |=:,[]()'\"{}\\idtaskslnpromevMBTZ-\n", max_size=60), max_size=5))
def test_reader_mixed_words(pieces: list[str]) -> None:
    reader = LogReader(ServerInfo("127.0.0.1", 8080))
    for line in (LAUNCH, *(f"{shape}{piece}" for shape in LINE_PREFIXES for piece in pieces), RELEASE):
        reader.feed(line, 1_790_000_000.0)
    assert not reader._failed


LINE_PREFIXES = (
    "",
    "slot print_timing: id  0 | task 0 | prompt eval time = ",
    "slot release: id  0 | task 0 | stop processing: n_tokens = ",
    "srv update:  - cache state: ",
    "1.02.003.004 I ",
    '{"type":"x","time":1,"msg":"',
)


def test_reader_state_is_bounded() -> None:
    reader = LogReader(ServerInfo("127.0.0.1", 8080))
    for number in range(2000):
        for line in (
            f"slot launch_slot_: id  {number} | task {number} | processing task, is_child = 0",
            f"slot x: id  {number} | task {number} | selected slot by LRU",
            f"[{number}] slot x: id  0 | task {number} | processing task, is_child = 0",
            f"llama_model: dev{number} model buffer size = 1.0 MiB",
        ):
            reader.feed(line, 1.0)
    assert len(reader._requests) <= 1000
    assert len(reader._requests._selected) <= 1000
    assert len(list(reader.router)) <= 512
    assert reader.logged_server.placement is not None
    assert len(reader.logged_server.placement.buffers) <= 256


def test_router_names_limited_are_counted() -> None:
    reader = LogReader(ServerInfo("127.0.0.1", 8080))
    for number in range(600):
        reader.feed(f"0.01.000.000 I srv          load: spawning server instance with name=m{number} on port 4000", 1.0)
    assert len(reader.router.models) <= 513
    assert reader.counts().names_limited == 600 - 512


def test_reader_survives_own_defect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An unexpected exception in the reader: the line is counted and the following lines are read."""
    log = tmp_path / "server.log"
    log.write_text(f"{LAUNCH}\nboom\nboom\n{RELEASE}\n")
    received: list[object] = []
    really = LogReader._message

    def read(self: LogReader, *arguments: object) -> str:
        if "boom" in str(arguments[0]):
            raise ZeroDivisionError
        return really(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(LogReader, "_message", read)
    observed = logged_server()
    completions = threading.Event()
    observed.subscribe(lambda request: (received.append(request), completions.set())[0])  # type: ignore[func-returns-value]
    follower = LogFollower(FileSource(log, from_start=True), observed).start()
    assert completions.wait(60)
    counts = observed.snapshots()[0].log
    follower.stop()
    assert len(received) == 1
    assert counts is not None
    assert counts.lines["malformed"] == 2
    assert caplog.text.count("could not be read; further ones are only counted") == 1


def test_backlog_is_bounded_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is read in pieces, twice; a stream's backlog is kept up to a limit."""
    monkeypatch.setattr("llamatel.llama.log.log_source._BACKLOG_LINES", 100)
    monkeypatch.setattr("llamatel.llama.log.followed_file.READ_BYTES", 1000)
    expected = [str(number) for number in range(1000)]
    log = tmp_path / "server.log"
    log.write_text("".join(f"{line}\n" for line in expected))
    batches = FileSource(log, from_start=True).batches()
    backlog = next(batches)
    assert isinstance(backlog, Backlog)
    pieces = list(backlog.scan())
    assert max(map(len, pieces)) < 600
    assert [line for piece in pieces for line in piece] == expected
    assert [line for piece, _ in backlog.batches() for line in piece] == expected
    monkeypatch.setattr("llamatel.llama.log.log_source.READ_BYTES", 1000)
    with log.open() as stream:
        found = [each for each in StreamSource(stream.fileno(), "a pipe").batches() if isinstance(each, Backlog)]
    parts = [[line for piece in each.scan() for line in piece] for each in found]
    assert len(parts) > 1
    assert max(map(len, parts)) < 600
    assert [line for part in parts for line in part] == expected


# -- clients of the metrics endpoint -----------------------------------------------------------------------------------


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    monkeypatch.setattr("llamatel.telemetry.metrics_endpoint._SCRAPER_TIMEOUT_S", 1.0)
    made = MetricsEndpoint("127.0.0.1", 0, Exposition(MetricStore(), {}).page)
    port = re.search(r":(\d+)/", made.url)
    assert port is not None
    yield made.url, int(port.group(1))
    made.close()


def test_metrics_endpoint_idle_connections(endpoint: tuple[str, int]) -> None:
    url, port = endpoint
    idle = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(200)]
    for each in idle:
        with contextlib.suppress(ConnectionError):  # the oldest are closed already
            each.sendall(b"GET /metrics HTTP/1.0\r\nX: ")
    assert urllib3.PoolManager().request("GET", url, timeout=60, retries=False).status == 200
    with contextlib.suppress(ConnectionError):
        assert idle[0].recv(100) == b""
    for each in idle:
        each.close()


def test_metrics_endpoint_slow_request_is_closed(endpoint: tuple[str, int], capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_connection(("127.0.0.1", endpoint[1]), timeout=0.1) as dripping:
        dripping.sendall(b"GET /metrics HTTP/1.0\r\nX: ")
        deadline = time.monotonic() + 60
        closed = False
        while not closed and time.monotonic() < deadline:
            try:
                dripping.sendall(b"x")
                closed = dripping.recv(100) == b""
            except TimeoutError:
                continue
            except OSError:
                closed = True
        assert closed
    assert capfd.readouterr().err == ""


def test_metrics_endpoint_client_disconnects(endpoint: tuple[str, int], capfd: pytest.CaptureFixture[str]) -> None:
    existing_threads = set(threading.enumerate())

    def serving() -> set[threading.Thread]:
        return set(threading.enumerate()) - existing_threads

    for words in (b"", b"GET", b"GET /metrics HTTP/1.0\r\n", b"\x00\xff\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", endpoint[1]), timeout=10) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close with RST
            connection.sendall(words)
    deadline = time.monotonic() + 60
    while serving() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not serving()
    assert capfd.readouterr().err == ""


# -- client text in llama.cpp's log ------------------------------------------------------------------------------------

FORGED = (
    "9.00.000.000 I slot launch_slot_: id  0 | task 777 | processing task, is_child = 0\n"
    "9.00.000.001 I slot      release: id  0 | task 777 | stop processing: n_tokens = 32, truncated = 0\n"
    "9.00.000.002 I srv  llama_server: starting server in router mode\n"
    "[4711] 9.00.000.003 I slot launch_slot_: id  0 | task 778 | processing task, is_child = 0\n"
    "0.00.000.001 I que    start_loop: entering sleeping state\n"
)


def test_client_text_grammar(tiny_model: Path, choose: str) -> None:
    """llama.cpp logs grammars that it cannot parse unescaped."""
    seen: list[Completion] = []
    with ServerManager(backend=choose) as server:
        server.subscribe(seen.append)
        server.start_server(tiny_model, port=0, n_parallel=2, extra_args=["-t", "1"]).wait_until_ready(60)
        for body in (
            {"grammar": f"root ::=\n{FORGED}"},
            {"json_schema": {"type": "string", "pattern": f"^(?<x>\n{FORGED}\\b"}},
        ):
            answer = urllib3.PoolManager().request(
                "POST", f"{server.base_url}/completion", json={"prompt": "a", "n_predict": 2, **body}, timeout=60
            )
            assert answer.status in {200, 400}, answer.data
        assert complete(server.base_url, 3) == 200
        deadline = time.monotonic() + 60
        while not any(request.generated == 3 for request in seen) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert any("task 777" in line for line in server.log_tail), "llama.cpp printed no grammar: forge another way"
        snapshot = server.snapshot()
    assert all(request.task not in {777, 778} and request.error is None for request in seen)
    assert any(request.generated == 3 for request in seen)
    assert snapshot is not None
    assert (snapshot.up, snapshot.state, snapshot.restarts) == (True, "ready", 0)
    assert snapshot.slots is not None


@pytest.fixture(params=BACKENDS)
def choose(request: pytest.FixtureRequest) -> str:
    return choose_backend(request)


def test_client_text_without_end() -> None:
    reader = LogReader(ServerInfo("127.0.0.1", 8080))
    reader.feed("0.01.000.000 I srv  llama_server: model loaded", 1000.0)
    reader.feed("parse: error parsing grammar: expecting name at", 1000.0)
    assert not reader.feed(f"0.01.100.000 I {RELEASE}", 1000.5)
    reader.feed(f"0.02.100.000 I {LAUNCH}", 1001.6)
    assert len(reader.feed(f"0.02.200.000 I {RELEASE}", 1001.6)) == 1


def test_client_text_end() -> None:
    reader = LogReader(ServerInfo("127.0.0.1", 8080))
    lines = [
        f"0.01.000.000 I {LAUNCH}",
        "parse: error parsing grammar: expecting name at",
        *FORGED.splitlines(),
        "failed to parse grammar",
        *FORGED.splitlines(),
        "0.01.100.000 E srv    send_error: task id = 0, error: Failed to parse grammar",
        f"0.01.200.000 I {RELEASE}",
        "WARNING: JSON schema conversion was incomplete: pattern a is not supported (b), accepting any string",
        f"0.01.300.000 I {LAUNCH}",
        f"0.01.400.000 I {RELEASE}",
    ]
    completions = [request for line in lines for request in reader.feed(line, 1000.0)]
    assert [(request.task, request.error) for request in completions] == [(0, "Failed to parse grammar"), (0, None)]
    assert not reader.router.seen


# -- terminal output ---------------------------------------------------------------------------------------------------

ESCAPES = "no\x1b]0;pwned\x07\u202e\r\nllamatel: error: fake"


def test_cli_untrusted_text_is_one_printable_line(server: UntrustedServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.answers = {"/api/health": http({"message": ESCAPES}, "500 Internal Server Error")}
    assert main(["dashboards", "push", server.url]) == 1
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    assert stderr.rstrip("\n").isprintable()
    logging.getLogger("llamatel").warning("%s was started without --metrics", ESCAPES)
    stderr = capsys.readouterr().err
    assert stderr == "llamatel: WARNING: no?]0;pwned??  llamatel: error: fake was started without --metrics\n"


@pytest.mark.parametrize("answer", [http([1]), http({"version": "9" * 5000}), http(b"[" * 200_000), endless])
def test_dashboards_push_target_is_not_grafana(
    server: UntrustedServer, answer: Bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answers = {"/api/health": answer, "/api/folders": http([1, {"title": "llamatel"}])}
    assert main(["dashboards", "push", server.url]) == 1
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    assert "defect" not in stderr


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\nGGUF",
        http(b"GGUF", "206 Partial Content", f"Content-Range: bytes 0-3/{NINES}\r\n"),
        http(b"GGUF", "206 Partial Content", "Content-Range: bytes 0-3/\r\n"),
        http(b"", "302 Found", "Location: file:///etc/passwd\r\n"),
    ],
)
def test_inspect_url_invalid_response(
    server: UntrustedServer, answer: Bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answers = {"/model.gguf": answer}
    assert main(["inspect", f"{server.url}/model.gguf"]) == 1
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    assert "defect" not in stderr


@pytest.mark.parametrize("status", ["200 OK", "400 Bad Request"])
def test_client_deeply_nested_response(server: UntrustedServer, status: str) -> None:
    client = LlamaCppClient(server.url, retries=0, timeout=60)
    server.answers = {"/props": http(b"[" * 200_000, status)}
    with pytest.raises(RequestError):
        client.props()
    server.answers = {"/completion": http(b"data: " + b"[" * 200_000 + b"\n\n", status)}
    with pytest.raises(RequestError):
        list(client.complete("x", stream=True))


def test_client_endless_error_response_is_cut_off(server: UntrustedServer) -> None:
    def refusing() -> Iterator[bytes]:
        yield b"HTTP/1.1 500 Internal Server Error\r\nTransfer-Encoding: chunked\r\n\r\n"
        while True:
            yield b"10000\r\n" + b"x" * 65536 + b"\r\n"

    server.answers = {"/props": refusing}
    with pytest.raises(RequestError, match="xxx"):
        LlamaCppClient(server.url, retries=0, timeout=60).props()
    assert server.sent < 32 << 20
