"""Calls of the openai package to llama.cpp servers: one trace with the server's side; other calls are not touched."""

from __future__ import annotations

import asyncio
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pydantic
import pytest
from opentelemetry.trace import SpanKind, StatusCode

import llamatel
from llamatel import runtime
from llamatel.llama import ServerManager
from llamatel.telemetry.kept_spans import KeptSpan
from tests.servers import LONG

HELLO: Any = [{"role": "user", "content": "Hello"}]
PHASES = ("queue", "prefill", "decode")
TOOLS: Any = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
SCHEMA: Any = {
    "type": "json_schema",
    "json_schema": {"name": "n", "schema": {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"]}},
}


@pytest.fixture
def client(chat_server: ServerManager) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{chat_server.base_url}/v1", api_key="none", max_retries=0) as made:
        yield made


class Spans:
    """The spans of the last trace."""

    def __init__(self, spans: tuple[KeptSpan, ...]) -> None:
        self.all = spans

    def one(self, kind: str) -> KeptSpan:
        [found] = [span for span in self.all if span.kind == kind]
        return found

    def children(self, parent: KeptSpan) -> list[str]:
        return [span.name for span in self.all if span.parent_id == parent.span_id]


def last_trace() -> Spans:
    return Spans(llamatel.last_trace().spans)


def drained(stream: Any) -> list[Any]:
    return list(stream)


def helper(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="m", messages=HELLO, max_tokens=6) as stream:
        for _ in stream:
            pass


def streaming_response(client: openai.OpenAI) -> None:
    create = client.chat.completions.with_streaming_response.create
    with create(model="m", messages=HELLO, max_tokens=6) as response:
        assert b"timings" in b"".join(response.iter_bytes())


def left_at_finish(client: openai.OpenAI) -> None:
    """Without the last events of the stream."""
    with client.chat.completions.create(model="m", messages=HELLO, max_tokens=6, stream=True) as stream:
        next(chunk for chunk in stream if chunk.choices[0].finish_reason)


def schema_not_followed(client: openai.OpenAI) -> None:
    """The package parses the response, which ends too early."""

    class Answer(pydantic.BaseModel):
        text: str

    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model="m", messages=HELLO, max_tokens=2, response_format=Answer)


CALLS: dict[str, Callable[[openai.OpenAI], Any]] = {
    "chat": lambda client: client.chat.completions.create(model="m", messages=HELLO, max_tokens=6),
    "chat stream": lambda client: drained(
        client.chat.completions.create(model="m", messages=HELLO, max_tokens=6, stream=True)
    ),
    "chat .stream()": helper,
    "chat stream, left at its finish": left_at_finish,
    "schema that is not followed": schema_not_followed,
    "tools": lambda client: client.chat.completions.create(model="m", messages=HELLO, max_tokens=6, tools=TOOLS),
    "structured output": lambda client: client.chat.completions.create(
        model="m", messages=HELLO, max_tokens=20, response_format=SCHEMA
    ),
    "raw response": lambda client: client.chat.completions.with_raw_response.create(
        model="m", messages=HELLO, max_tokens=6
    ).parse(),
    "streaming response": streaming_response,
    "completions": lambda client: client.completions.create(model="m", prompt="Hello", max_tokens=6),
    "completions stream": lambda client: drained(
        client.completions.create(model="m", prompt="Hello", max_tokens=6, stream=True)
    ),
    "responses": lambda client: client.responses.create(model="m", input="Hello", max_output_tokens=6),
    "responses stream": lambda client: drained(
        client.responses.create(model="m", input="Hello", max_output_tokens=6, stream=True)
    ),
}


@pytest.mark.parametrize("form", CALLS)
def test_openai_call_is_joined(telemetry: runtime.Runtime, client: openai.OpenAI, form: str) -> None:
    with llamatel.span("task"):
        CALLS[form](client)
    found = last_trace()
    call, request = found.one("CLIENT"), found.one("SERVER")
    assert [span.name for span in found.all if span.parent_id is None] == ["task"]
    assert call.name == ("text_completion m" if form.startswith("completions") else "chat m")
    assert request.parent_id == call.span_id
    assert set(found.children(request)) <= set(PHASES)
    names = [span.name for span in found.all]
    assert (names.count("prefill"), names.count("decode")) == (1, 1)
    assert call.attributes["gen_ai.provider.name"] == "llama.cpp"
    assert call.attributes["gen_ai.usage.output_tokens"] > 0  # type: ignore[operator]
    assert not [name for name in request.attributes if name.startswith("gen_ai.usage")]
    assert call.attributes.get("gen_ai.request.stream") is (True if "stream" in form and form[0] in "cr" else None) or (
        form == "streaming response"
    )


def test_openai_async_calls_are_joined(telemetry: runtime.Runtime, chat_server: ServerManager) -> None:
    @llamatel.task
    async def agent(client: openai.AsyncOpenAI, number: int) -> None:
        create = client.chat.completions.create
        if number % 2:
            await create(model="m", messages=HELLO, max_tokens=number + 2)
        else:
            async for _ in await create(model="m", messages=HELLO, max_tokens=number + 2, stream=True):
                pass

    @llamatel.task
    async def agents() -> None:
        async with openai.AsyncOpenAI(base_url=f"{chat_server.base_url}/v1", api_key="none") as client:
            await asyncio.gather(*(agent(client, number) for number in range(6)))

    asyncio.run(agents())
    found = last_trace()
    kinds = [span.kind for span in found.all]
    assert (kinds.count("CLIENT"), kinds.count("SERVER")) == (6, 6)
    by_id = {span.span_id: span for span in found.all}
    for request in (span for span in found.all if span.kind == "SERVER"):
        assert by_id[request.parent_id or 0].kind == "CLIENT"


def test_openai_many_threads(telemetry: runtime.Runtime, client: openai.OpenAI) -> None:
    with llamatel.span("all"), ThreadPoolExecutor(8) as pool:
        ask = llamatel.carry_context(
            lambda number: client.chat.completions.create(model="m", messages=HELLO, max_tokens=4 + number % 5)
        )
        list(pool.map(ask, range(40)))
    found = last_trace()
    calls = {span.span_id for span in found.all if span.kind == "CLIENT"}
    parents = [span.parent_id for span in found.all if span.kind == "SERVER"]
    assert len(calls) == 40
    assert set(parents) <= calls
    assert len(set(parents)) == len(parents) >= 38  # two that are equal in every figure are linked


# -- calls that fail or are left --------------------------------------------------------------------------------------


def test_openai_stream_left(telemetry: runtime.Runtime, client: openai.OpenAI) -> None:
    with llamatel.span("task"):
        extra = {"ignore_eos": True}
        stream = client.chat.completions.create(
            model="m", messages=HELLO, max_tokens=LONG, stream=True, extra_body=extra
        )
        next(iter(stream))
        stream.close()
    found = last_trace()
    call, request = found.one("CLIENT"), found.one("SERVER")
    assert call.attributes["llamacpp.outcome"] == request.attributes["llamacpp.outcome"] == "cancelled"
    assert not call.failed
    assert request.parent_id == call.span_id


def test_openai_prompt_too_long(telemetry: runtime.Runtime, client: openai.OpenAI) -> None:
    with llamatel.span("task"), pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "again " * 9000}])
    found = last_trace()
    call = found.one("CLIENT")
    assert call.failed
    assert call.attributes["http.response.status_code"] == 400
    assert call.attributes["error.type"] == "exceed_context_size_error"
    assert found.one("SERVER").parent_id == call.span_id


def test_openai_first_call_times_out(
    telemetry: runtime.Runtime, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No response has shown that the server is llama.cpp, but it was started here."""
    monkeypatch.setattr("llamatel.tracing.http_call._known_servers", set())
    extra = {"ignore_eos": True}
    with llamatel.span("task"), pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(model="m", messages=HELLO, max_tokens=LONG, timeout=0.2, extra_body=extra)
    found = last_trace()
    failed = next(span for span in found.all if span.failed and span.kind == "CLIENT")
    assert failed.attributes["error.type"] == "timeout"
    assert [span.attributes["llamacpp.outcome"] for span in found.all if _is_request(span, failed)] == ["cancelled"]


def _is_request(span: KeptSpan, call: KeptSpan) -> bool:
    """Whether it is the server's request of a call, as opposed to the time that the network took."""
    return span.parent_id == call.span_id and span.kind == "SERVER"


def test_openai_description_quotes_no_request(client: openai.OpenAI, recorded_calls: list[Any]) -> None:
    client.chat.completions.create(model="m", messages=HELLO, max_tokens=1)
    wrong: Any = [{"role": "user", "content": {"secret words": 1}}]
    with pytest.raises(openai.APIStatusError):
        client.chat.completions.create(model="m", messages=wrong)
    span = recorded_calls[-1]
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description.startswith("500 ") or span.status.description.startswith("400 ")
    assert "secret" not in f"{span.status.description} {span.attributes} {span.events}"


@pytest.fixture
def recorded_calls(no_settings: None) -> Iterator[list[Any]]:
    """The client spans that a tracer writes, without a server's log."""
    from llamatel.llama.client import client_call
    from llamatel.tracing.client_spans import ClientSpans
    from llamatel.tracing.openai_instrumentor import OpenAIInstrumentor
    from tests.recording import Recording

    recording = Recording()
    OpenAIInstrumentor().instrument(zero_code=False)
    client_call.listen(ClientSpans(recording.tracer))

    class Live(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            return [span for span in recording.spans if span.kind is SpanKind.CLIENT][index]

        def __len__(self) -> int:
            return len([span for span in recording.spans if span.kind is SpanKind.CLIENT])

    yield Live()
    client_call.listen(None)
    OpenAIInstrumentor().uninstrument()
    recording.provider.shutdown()


# -- other providers, other instrumentations --------------------------------------------------------------------------


class OtherProvider:
    """A stand-in for a provider that is not llama.cpp; keeps what it receives."""

    def __init__(self, failure: tuple[int, dict[str, Any]] | None = None, **more: Any) -> None:
        """``failure``: status and body of the first response. ``more``: fields of the others."""
        received: list[tuple[str, dict[str, str]]] = []
        answer: dict[str, Any] = {
            "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt", "system_fingerprint": "fp_1",
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hi"}}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
            **more,
        }  # fmt: skip

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                received.append((self.path, dict(self.headers)))
                status, document = (200, answer) if failure is None or len(received) > 1 else failure
                body = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.received = received
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_openai_other_provider_is_untouched(recorded_calls: list[Any]) -> None:
    other = OtherProvider()
    with openai.OpenAI(base_url=other.url, api_key="none", max_retries=0) as client:
        for _ in range(2):
            assert client.chat.completions.create(model="m", messages=HELLO).choices[0].message.content == "Hi"
    other.close()
    assert len(recorded_calls) == 0
    assert [path for path, _ in other.received] == ["/v1/chat/completions"] * 2
    assert not [name for _, headers in other.received for name in headers if name.lower() == "traceparent"]


def test_openai_successful_retry_is_not_a_failure(recorded_calls: list[Any]) -> None:
    """The package sends again after a 500 or 503; llama.cpp answers so while it loads its model."""
    error = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
    timings = {"prompt_n": 1, "prompt_ms": 1.0, "predicted_n": 1, "predicted_ms": 1.0}
    other = OtherProvider((503, error), timings=timings)
    with openai.OpenAI(base_url=other.url, api_key="none", max_retries=1) as client:
        client.chat.completions.create(model="m", messages=HELLO)
    other.close()
    assert len(other.received) == 2
    attributes = recorded_calls[-1].attributes
    assert attributes["llamacpp.outcome"] == "ok"
    assert not {"error.type", "http.response.status_code"} & attributes.keys()
    assert recorded_calls[-1].status.status_code is StatusCode.UNSET


@pytest.mark.parametrize(
    "attributes",
    [{"gen_ai.operation.name": "chat"}, {"openinference.span.kind": "LLM"}, {"llm.request.type": "chat"}],
)
def test_openai_span_of_another_instrumentation(
    telemetry: runtime.Runtime, client: openai.OpenAI, attributes: dict[str, str]
) -> None:
    tracer = telemetry.pipeline.tracer  # the global provider may be one of an earlier init()
    with tracer.start_as_current_span("their call", kind=SpanKind.CLIENT, attributes=attributes):
        CALLS["chat"](client)
    found = last_trace()
    call, request = found.one("CLIENT"), found.one("SERVER")
    assert (call.name, request.parent_id) == ("their call", call.span_id)


def test_openai_agent_span_is_not_a_call(telemetry: runtime.Runtime, client: openai.OpenAI) -> None:
    tracer = telemetry.pipeline.tracer  # the global provider may be one of an earlier init()
    with tracer.start_as_current_span("agent", attributes={"gen_ai.operation.name": "invoke_agent"}):
        CALLS["chat"](client)
    assert last_trace().one("CLIENT").name == "chat m"


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_openai_instrumentation_disabled(
    client: openai.OpenAI, no_settings: None, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "variable":
        monkeypatch.setenv("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "urllib3, llamatel_openai")
    llamatel.init(metrics_addr="none", keep_traces=True, instrument=how == "variable")
    try:
        with llamatel.span("task"):
            CALLS["chat"](client)
        assert not [span for span in last_trace().all if span.kind == "CLIENT"]
    finally:
        llamatel.shutdown()


def test_openai_import_after_init(tiny_model: Path) -> None:
    """``init()`` imports neither openai nor httpx, and warns of nothing; a later import is instrumented."""
    program = f"""
import sys, llamatel
llamatel.init(metrics_addr="none", keep_traces=True)
print([name for name in ("openai", "httpx", "httpx2") if name in sys.modules])
from llamatel.llama import ServerManager
server = ServerManager()
server.start_server({str(tiny_model)!r}, port=0, extra_args={["-t", "1", "--jinja"]!r}).wait_until_ready(60)
import openai
client = openai.OpenAI(base_url=server.base_url + "/v1", api_key="none")
with llamatel.span("task"):
    client.chat.completions.create(model="m", messages={HELLO!r}, max_tokens=4)
print(*(span.name for span in llamatel.last_trace().spans))
llamatel.shutdown()
client.chat.completions.create(model="m", messages={HELLO!r}, max_tokens=4)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    imported, spans = done.stdout.splitlines()
    assert imported == "[]"
    assert spans.split()[:3] == ["task", "chat", "m"]
    assert {"prefill", "decode"} <= set(spans.split())
