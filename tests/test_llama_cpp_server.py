"""llama-cpp-python's own server as a backend: started, read, refused, stopped like the others."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

import llamatel
from llamatel.errors import ServerStartError, UsageError
from llamatel.llama import ServerManager
from llamatel.llama.log.call_line import MARK, call_line, read_call_line
from llamatel.llama.log.reader import LogReader
from llamatel.llama.server.llama_cpp_flags import parse
from llamatel.records import Call, Completion, Outcome, Phase, ServerInfo
from tests.parts import OtlpSink, wait_until
from tests.samples import SERVER, completion
from tests.servers import without_settings

needs_it = pytest.mark.usefixtures("llama_cpp")
THREADS = ("--threads", "1")


@pytest.fixture(scope="module")
def server(llama_cpp: None, tiny_model: Path) -> Iterator[ServerManager]:
    with ServerManager(backend="llama-cpp-python") as manager:
        manager.start_server(tiny_model, ctx_size=512, port=0, alias="pet", cache_type_k="f32", extra_args=THREADS)
        yield manager.wait_until_ready(120)


def connect(server: ServerManager) -> http.client.HTTPConnection:
    address = urlsplit(server.base_url)
    return http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)


def post(server: ServerManager, path: str, body: dict[str, Any], **headers: str) -> dict[str, Any]:
    connection = connect(server)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json", **headers})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    assert isinstance(answer, dict)
    return answer


def ended(seen: list[Completion], number: int) -> list[Completion]:
    wait_until(lambda: len(seen) >= number, what=f"{number} requests")
    return seen


def test_requests_reach_the_parent(server: ServerManager) -> None:
    seen: list[Completion] = []
    unsubscribe = server.subscribe(seen.append)
    before = dict(server.snapshots()[0].counters)
    began = time.time()
    chat = post(server, "/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5})
    plain = post(server, "/v1/completions", {"prompt": "Hello there", "max_tokens": 7})
    refused = post(server, "/v1/completions", {"prompt": "x" * 600, "max_tokens": 7})
    first, second, third = ended(seen, 3)
    unsubscribe()
    for answer, one, operation in ((chat, first, "chat"), (plain, second, "text_completion")):
        usage = answer["usage"]
        assert (one.outcome, one.prompt_tokens, one.generated) == (
            Outcome.OK, usage["prompt_tokens"], usage["completion_tokens"],
        )  # fmt: skip
        assert one.call is not None
        assert (one.call.operation, one.call.in_process) == (operation, False)
        assert one.call.attributes["gen_ai.response.id"] == answer["id"]
        assert one.call.attributes["llamacpp.kv_cache.size"] == 512 * 2 * 32 * (4 + 2)
        assert [phase.name for phase in one.call.phases] == ["prefill", "decode"]
        assert began <= one.started_at <= one.ended_at <= time.time()
        assert one.server == server.info
    assert refused["error"]["code"] == "context_length_exceeded"
    assert (third.outcome, third.prompt_tokens) == (Outcome.ERROR, None)
    assert "exceed context window of 512" in str(third.error)
    [state] = server.snapshots()
    assert (state.up, state.server.model, state.server.backend) == (True, "pet", "llama-cpp-python")
    counted = {name: state.counters[name] - before.get(name, 0) for name in state.counters}
    assert counted == {
        "prompt_tokens_total": sum(one.prompt_computed or 0 for one in seen),
        "prompt_tokens_cached_total": sum(one.prompt_cached or 0 for one in seen),
        "tokens_predicted_total": 12,
    }
    assert state.log is not None
    assert state.log.understood is True
    assert state.log.lines["malformed"] == 0


def test_a_client_that_hangs_up_cancels(server: ServerManager) -> None:
    seen: list[Completion] = []
    unsubscribe = server.subscribe(seen.append)
    connection = connect(server)
    body = json.dumps({"prompt": "Hello", "max_tokens": 400, "stream": True})
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    connection.getresponse().readline()
    connection.close()
    post(server, "/v1/completions", {"prompt": "Next", "max_tokens": 2})
    first, second = ended(seen, 2)
    unsubscribe()
    assert (first.outcome, second.outcome) == (Outcome.CANCELLED, Outcome.OK)
    assert 0 < (first.generated or 0) < 400


def test_the_callers_span_is_the_parent(
    server: ServerManager, otlp_sink: OtlpSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_settings(monkeypatch)
    trace_id, span_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    llamatel.init(otlp_endpoint=otlp_sink.endpoint, otlp_protocol="http/protobuf", metrics_addr="none")
    try:
        post(server, "/v1/completions", {"prompt": "A", "max_tokens": 3}, traceparent=f"00-{trace_id}-{span_id}-01")
    finally:
        llamatel.shutdown()
    spans = {span.name: span for span in otlp_sink.spans()}
    request = spans["text_completion pet"]
    assert (request.kind, request.trace_id, request.parent_id) == ("SERVER", trace_id, span_id)
    assert request.attributes["server.port"] == server.info.port
    assert spans["prefill"].parent_id == spans["decode"].parent_id == request.span_id


@needs_it
def test_it_stops_in_order_and_starts_again(tiny_model: Path) -> None:
    server = ServerManager(backend="llama-cpp-python")
    server.start_server(tiny_model, ctx_size=256, port=0, api_key="secret-key", extra_args=THREADS)
    server.wait_until_ready(120)
    port = server.info.port
    connection = connect(server)
    connection.request("GET", "/v1/models")
    assert connection.getresponse().status == 401
    connection.close()
    server.restart(120)
    assert server.info.port == port
    assert server.stop_server() == 0


@needs_it
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"n_parallel": 4}, "one request at a time: --parallel 4 cannot be"),
        ({"kv_unified": True}, "has no --kv-unified: leave it out, or take another backend"),
        ({"cache_type_k": "q2_z"}, "does not take --cache-type-k 'q2_z'"),
        ({"extra_args": ["--slots"]}, "has no --slots"),
        ({"extra_args": ["--seed"]}, "--seed lacks its value"),
    ],
)
def test_what_it_lacks_is_refused_before_it_starts(tiny_model: Path, arguments: dict[str, Any], complaint: str) -> None:
    server = ServerManager(backend="llama-cpp-python")
    with pytest.raises(UsageError, match=complaint):
        server.start_server(tiny_model, **arguments)
    assert server.snapshots() == ()


@needs_it
def test_a_model_that_is_none(tmp_path: Path) -> None:
    model = tmp_path / "none.gguf"
    model.write_bytes(b"GGUF" + b"\0" * 100)
    server = ServerManager(backend="llama-cpp-python").start_server(model, port=0)
    with pytest.raises(ServerStartError, match="Failed to load model from file") as caught:
        server.wait_until_ready(120)
    assert "\n" not in str(caught.value)


def test_flags_become_settings() -> None:
    words = """-m x.gguf --host ::1 --port 81 --metrics --log-prefix --log-timestamps -c 512 -ngl all -ctk q8_0 -fa on
        -np 1 --tensor-split=3,1 -sm row"""
    options = parse(words.split())
    assert (options.host, options.port) == ("::1", 81)
    assert options.settings == {
        "model": "x.gguf", "n_ctx": 512, "n_gpu_layers": -1, "type_k": 8, "flash_attn": True,
        "tensor_split": [3.0, 1.0], "split_mode": 2, "logits_all": False, "verbose": False,
    }  # fmt: skip


CALL = Call(
    "chat",
    in_process=True,
    phases=(Phase("prefill", 1.5, 2.0), Phase("decode", 2.0, 4.25)),
    sampled=4,
    attributes={"gen_ai.response.finish_reasons": ("stop",), "gen_ai.request.top_p": 0.5},
    traceparent="00-1-2-01",
    error_type="ValueError",
)


def test_a_call_survives_its_line() -> None:
    one = completion(call=CALL, slot=None, task=None, outcome=Outcome.ERROR, error="a \u2028 b\nc")
    line = call_line(one)
    assert len(line.splitlines()) == 1
    back = read_call_line(line, SERVER)
    assert back is not None
    assert back.call is not None
    assert not back.call.in_process
    assert (back.call.phases, back.call.attributes, back.error) == (CALL.phases, CALL.attributes, one.error)


@given(st.one_of(st.text(), st.integers(0, 900).map(lambda cut: call_line(completion(call=CALL))[len(MARK) - 1 : cut])))
def test_a_line_that_is_broken_is_malformed(rest: str) -> None:
    server = ServerInfo("127.0.0.1", 1, backend="llama-cpp-python")
    reader = LogReader(server)
    line = MARK[:-1] + "{" + rest
    ended = reader.feed(line, 1.0)
    assert len(ended) + reader.counts().lines["malformed"] == 1


def test_other_servers_cannot_make_up_calls() -> None:
    assert LogReader(SERVER).feed(call_line(completion(call=CALL)), 1.0) in ((), [])
