"""Calls of LlamaCppClient as spans and metrics, and one trace with the server's side, on llama.cpp's servers."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from opentelemetry import _logs
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

import llamatel
from llamatel.errors import ConnectError, ContextTooLong, RequestError
from llamatel.llama import LlamaCppClient, ServerManager
from llamatel.llama.client import client_call as calls
from llamatel.metrics import METRICS, table
from llamatel.records import ClientCall
from llamatel.telemetry.instruments import Instruments
from llamatel.telemetry.observer import Observer
from llamatel.telemetry.request_spans import Spans
from llamatel.telemetry.span_table import CLIENT
from llamatel.tracing import decorators as tracing
from llamatel.tracing import message_content
from llamatel.tracing.client_spans import ClientSpans
from llamatel.tracing.joining import Origin
from llamatel.tracing.message_content import Wanted
from llamatel_collectors.client import ClientCollector
from tests import genai_conventions
from tests.parts import free_port
from tests.recording import CallRecorder, Recording
from tests.servers import LONG

HELLO = [{"role": "user", "content": "Hello"}]


class Joined(Recording):
    """A client's and a server's telemetry, connected as by ``init``, with spans and samples kept."""

    def __init__(self, server: ServerManager | None, *, content: Wanted = Wanted(), latest: bool = False) -> None:  # noqa: B008
        super().__init__()
        self.samples: list[Any] = []
        spans = Spans(self.tracer)

        def emit(completion: Any, origin: Origin, _share: float) -> tuple[object, str | None]:
            return spans.emit_from(completion, origin), None

        opted = {"OTEL_SEMCONV_STABILITY_OPT_IN": "other, gen_ai_latest_experimental"} if latest else {}
        self.observer = Observer([ClientCollector(opted)], emit=emit)
        self.observer.connect(lambda sample, _: self.samples.append(sample))
        if server is not None:
            drain_log(server)
            self.observer.watch(server)
        self.recorder = CallRecorder()
        self.listener = ClientSpans(self.tracer, self.observer, self.recorder, content=content)
        tracing.use(self.tracer)
        calls.listen(self.listener)

    def settle(self) -> None:
        """Wait until everything is written."""
        assert self.observer.flush(10.0)

    def of_kind(self, kind: SpanKind) -> list[ReadableSpan]:
        return [span for span in self.spans if span.kind is kind]

    def children(self, parent: ReadableSpan) -> dict[str, ReadableSpan]:
        assert parent.context is not None
        mine = parent.context.span_id
        return {span.name: span for span in self.spans if span.parent is not None and span.parent.span_id == mine}

    def end(self) -> None:
        calls.listen(None)
        tracing.use(None)
        self.observer.close()
        self.provider.shutdown()


def drain_log(server: ServerManager) -> None:
    """Wait until the server's log has all earlier requests; it may lag the responses."""
    seen = threading.Event()
    end = server.subscribe(lambda completion: seen.set() if completion.generated == 33 else None)
    calls.listen(None)
    LlamaCppClient(server.base_url).complete("x", n_predict=33, ignore_eos=True)
    assert seen.wait(10)
    end()


Listen = Callable[..., Joined]


@pytest.fixture
def client(chat_server: ServerManager) -> Iterator[LlamaCppClient]:
    with LlamaCppClient(chat_server.base_url, timeout=60) as made:
        yield made


@pytest.fixture
def listen() -> Iterator[Listen]:
    with contextlib.ExitStack() as ends:

        def make(*args: Any, **kwargs: Any) -> Joined:
            joined = Joined(*args, **kwargs)
            ends.callback(joined.end)
            return joined

        yield make


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def waits_for_the_log(joined: Joined, number: int) -> None:
    """Wait for the server's spans: its log may lag the responses."""
    import time

    deadline = time.monotonic() + 10
    while len(joined.of_kind(SpanKind.SERVER)) < number and time.monotonic() < deadline:
        time.sleep(0.02)
        joined.settle()


# -- one call ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
def test_client_span_joined_with_server(
    chat_server: ServerManager, client: LlamaCppClient, listen: Listen, streamed: bool
) -> None:
    joined = listen(chat_server)

    @llamatel.task
    def fetch() -> Any:
        arguments: dict[str, Any] = {
            "max_tokens": 12,
            "temperature": 1,
            "top_k": 5,
            "stop": "zzz",
            "seed": 7,
            "ignore_eos": True,
        }
        if streamed:
            with client.chat.completions.create(HELLO, model="any", stream=True, **arguments) as stream:
                return list(stream)[-1]
        return client.chat.completions.create(HELLO, model="any", **arguments)

    answer = fetch()
    waits_for_the_log(joined, 1)
    [span], [theirs] = joined.of_kind(SpanKind.CLIENT), joined.of_kind(SpanKind.SERVER)
    assert span.name == "chat any"
    assert joined.parents()["chat any"].endswith("fetch")  # type: ignore[union-attr]
    assert len({span.context.trace_id for span in joined.spans if span.context is not None}) == 1
    found = attributes(span)
    assert answer.timings is not None
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "llama.cpp",
        "gen_ai.request.model": "any",
        "gen_ai.request.max_tokens": 12,
        "gen_ai.request.temperature": 1.0,
        "gen_ai.request.top_k": 5,
        "gen_ai.request.seed": 7,
        "gen_ai.request.stop_sequences": ("zzz",),
        "gen_ai.response.id": answer.id,
        "gen_ai.response.model": answer.model,
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.usage.input_tokens": answer.timings.prompt_n + answer.timings.cache_n,
        "gen_ai.usage.output_tokens": 12,
        "gen_ai.usage.cache_read.input_tokens": answer.timings.cache_n,
        "server.address": "127.0.0.1",
        "server.port": chat_server.info.port,
        "llamacpp.outcome": "ok",
    }
    assert found.items() >= expected.items()
    assert found.get("gen_ai.request.stream") is (True if streamed else None)
    assert ("gen_ai.response.time_to_first_chunk" in found) is streamed
    # Each phase and each count appears once.
    parts = joined.children(theirs)
    assert joined.children(span).keys() - {"wait", "network.request", "network.response"} == {theirs.name}
    assert parts.keys() - {"queue"} == {"prefill", "decode"}
    assert not [name for name in attributes(theirs) if name.startswith("gen_ai.usage")]
    assert seconds(parts["prefill"]) == pytest.approx(answer.timings.prompt_ms / 1e3, abs=1.1e-5)
    assert seconds(parts["decode"]) == pytest.approx(answer.timings.predicted_ms / 1e3, abs=1.1e-5)
    for inside in (theirs, *parts.values()):
        assert span.start_time <= inside.start_time <= inside.end_time  # type: ignore[operator]
    assert attributes(theirs)["llamacpp.prompt.computed_tokens"] == found["llamacpp.prompt.computed_tokens"]


def test_client_span_parts_without_server_log(client: LlamaCppClient, listen: Listen) -> None:
    joined = listen(None)
    answer = client.chat.completions.create(HELLO, max_tokens=12, ignore_eos=True)
    joined.settle()
    [span] = joined.of_kind(SpanKind.CLIENT)
    parts = joined.children(span)
    assert parts.keys() - {"wait"} == {"prefill", "decode"}
    assert seconds(parts["prefill"]) == pytest.approx(answer.timings.prompt_ms / 1e3, abs=1e-6)
    assert seconds(parts["decode"]) == pytest.approx(answer.timings.predicted_ms / 1e3, abs=1e-6)
    for inside in parts.values():
        assert span.start_time <= inside.start_time <= inside.end_time <= span.end_time  # type: ignore[operator]


@pytest.mark.parametrize("latest", [False, True])
def test_client_span_conventions(
    chat_server: ServerManager, client: LlamaCppClient, listen: Listen, latest: bool
) -> None:
    joined = listen(chat_server, content=Wanted(on_spans=True), latest=latest)
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    everything: dict[str, Any] = {
        "model": "m", "max_tokens": 3, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "frequency_penalty": 0.1,
        "presence_penalty": 0.1, "stop": ["x"], "seed": 1, "response_format": {"type": "text"}, "tools": tools,
    }  # fmt: skip
    client.chat.completions.create(HELLO, **everything)
    list(client.chat.completions.create(HELLO, stream=True, max_tokens=3))
    client.chat.completions.create(HELLO, max_tokens=2, n=2)
    client.chat.completions.create(HELLO, max_tokens=2, system="Be brief.")
    client.complete("x", n_predict=2)
    with pytest.raises(RequestError):
        client.embeddings.create("x", encoding_format="float", dimensions=4)
    with llamatel.span("outside"):
        llamatel.workflow(name="w")(lambda: None)()
    joined.settle()
    clients = joined.of_kind(SpanKind.CLIENT)
    assert len(clients) == 6
    seen: set[str] = set()
    for span in joined.spans:
        for name, value in attributes(span).items():
            if name.startswith(("gen_ai.", "server.", "error.")):
                seen.add(name)
                assert type(value) is genai_conventions.ATTRIBUTES[name], name
    assert set(genai_conventions.ATTRIBUTES) - seen == set()
    types = {"string": str, "int": int, "double": float, "boolean": bool, "string[]": tuple}
    documented = {row.name: types[row.type.partition(",")[0]] for row in CLIENT}
    written = {
        name: type(value) for span in joined.of_kind(SpanKind.CLIENT) for name, value in attributes(span).items()
    }
    assert written.items() <= documented.items()
    # This server does not use speculative decoding.
    assert documented.keys() - written.keys() == {"llamacpp.draft.tokens", "llamacpp.draft.accepted_tokens"}
    new = {name for name in seen if name.startswith("gen_ai.")} - genai_conventions.SHIPPED_ATTRIBUTES
    assert new == set()
    for span in clients:
        found = attributes(span)
        assert found.keys() >= set(genai_conventions.REQUIRED)
        assert found["gen_ai.operation.name"] in genai_conventions.OPERATIONS
        model = found.get("gen_ai.request.model")
        assert span.name == f"{found['gen_ai.operation.name']}{f' {model}' if model else ''}"
    rows = table()
    assert {sample.metric for sample in joined.samples} <= set(genai_conventions.METRICS)
    for sample in joined.samples:
        row = rows[sample.metric]
        assert (row.kind.value, row.unit) == genai_conventions.METRICS[row.name]
        assert set(sample.attributes) <= set(row.attributes)
        assert latest or row.name in genai_conventions.SHIPPED_METRICS


def test_client_metrics_conventions() -> None:
    ours = {row.name: (row.kind.value, row.unit) for row in METRICS if row.name.startswith("gen_ai.client.")}
    assert ours == genai_conventions.METRICS


def test_client_metrics_values(client: LlamaCppClient, listen: Listen) -> None:
    joined = listen(None)
    client.chat.completions.create(HELLO, max_tokens=4, ignore_eos=True)
    chunks = list(client.chat.completions.create(HELLO, stream=True, max_tokens=6, ignore_eos=True))
    joined.settle()
    counts = Counter(sample.metric for sample in joined.samples)
    assert counts["gen_ai.client.operation.duration"] == 2
    assert counts["gen_ai.client.operation.time_to_first_chunk"] == 1
    assert counts["gen_ai.client.operation.time_per_output_chunk"] == len(chunks) - 1
    tokens = [
        (sample.attributes["gen_ai.token.type"], sample.value)
        for sample in joined.samples
        if sample.metric == "gen_ai.client.token.usage"
    ]
    assert [count for kind, count in tokens if kind == "output"] == [4, 6]
    assert len({count for kind, count in tokens if kind == "input"}) == 1
    assert all(sample.server.address == "127.0.0.1" for sample in joined.samples)


def test_client_metrics_fit_instruments(client: LlamaCppClient, listen: Listen) -> None:
    from opentelemetry.metrics import NoOpMeter

    instruments = Instruments(NoOpMeter("tests"), METRICS, list)
    for latest in (False, True):
        joined = listen(None, latest=latest)
        list(client.complete("x", n_predict=3, stream=True))
        joined.settle()
        for sample in joined.samples:
            instruments.record(sample)
        assert joined.samples


# -- streams that are closed early, errors -----------------------------------------------------------------------------


def test_client_span_stream_left(chat_server: ServerManager, client: LlamaCppClient, listen: Listen) -> None:
    joined = listen(chat_server)
    with client.chat.completions.create(HELLO, stream=True, max_tokens=LONG, ignore_eos=True) as stream:
        for _ in range(4):
            next(stream)
    waits_for_the_log(joined, 1)
    [span], [theirs] = joined.of_kind(SpanKind.CLIENT), joined.of_kind(SpanKind.SERVER)
    found = attributes(span)
    assert (found["llamacpp.outcome"], span.status.status_code) == ("cancelled", StatusCode.UNSET)
    assert "gen_ai.usage.output_tokens" not in found
    assert theirs.parent == span.context
    [duration] = [sample for sample in joined.samples if sample.metric == "gen_ai.client.operation.duration"]
    assert duration.attributes["error.type"] == "cancelled"


def test_client_span_error_descriptions(chat_server: ServerManager, client: LlamaCppClient, listen: Listen) -> None:
    joined = listen(None)
    with pytest.raises(ContextTooLong):
        client.complete("again " * 9000)
    with pytest.raises(RequestError):
        client.chat.completions.create([{"role": "user", "content": {"secret words": 1}}])
    with pytest.raises(ConnectError):
        LlamaCppClient(f"http://127.0.0.1:{free_port()}", retries=0).complete("x")
    long, wrong, refused = joined.of_kind(SpanKind.CLIENT)
    assert attributes(long)["error.type"] == "exceed_context_size_error"
    assert "exceeds the available context size" in str(long.status.description)
    assert wrong.status.status_code is StatusCode.ERROR
    assert "secret" not in f"{wrong.status.description} {attributes(wrong)} {wrong.events}"
    assert attributes(refused)["error.type"] == "connection_refused"
    assert joined.children(refused) == {}


def test_call_listener_failure(client: LlamaCppClient, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def started(self, call: calls.Call) -> dict[str, str]:
            raise OSError

        def finished(self, call: calls.Call) -> None:
            raise OSError

    calls.listen(Broken())
    try:
        assert client.complete("x", n_predict=1).timings
    finally:
        calls.listen(None)
    assert [record.levelno for record in caplog.records if "telemetry of a call" in record.message] == [logging.ERROR]
    calls._Registered.failure_logged = False


# -- content ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "wanted", "warned"),
    [
        ("", Wanted(), 0),
        ("NO_CONTENT", Wanted(), 0),
        ("span_only", Wanted(on_spans=True), 0),
        ("true", Wanted(), 1),
        # Without a logger provider events are lost, and a warning is logged.
        ("SPAN_AND_EVENT", Wanted(on_spans=True, on_events=True), 1),
        ("EVENT_ONLY", Wanted(on_events=True), 1),
    ],
)
def test_content_capture_variable(value: str, wanted: Wanted, warned: int, caplog: pytest.LogCaptureFixture) -> None:
    assert message_content.wanted({message_content.VARIABLE: value}) == wanted
    assert len(caplog.records) == warned


def test_content_capture_default_off(client: LlamaCppClient, listen: Listen) -> None:
    joined = listen(None)
    response = client.chat.completions.create(
        [{"role": "user", "content": "tell-tale"}], max_tokens=40, ignore_eos=True
    )
    [span] = joined.of_kind(SpanKind.CLIENT)
    assert "tell-tale" not in str(attributes(span))
    assert (response.choices[0].message.content or "") not in str(attributes(span))


@pytest.mark.parametrize("streamed", [False, True])
def test_content_capture_json(client: LlamaCppClient, listen: Listen, streamed: bool) -> None:
    joined = listen(None, content=Wanted(on_spans=True))
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "w" * 20}]},
    ]
    arguments: dict[str, Any] = {"max_tokens": 5, "temperature": 0, "ignore_eos": True}
    if streamed:
        chunks = list(client.chat.completions.create(messages, stream=True, **arguments))
        response = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    else:
        response = client.chat.completions.create(messages, **arguments).choices[0].message.content or ""
    [span] = joined.of_kind(SpanKind.CLIENT)
    messages_in = json.loads(attributes(span)["gen_ai.input.messages"])
    assert [message["role"] for message in messages_in] == ["system", "user"]
    assert messages_in[0]["parts"] == [{"type": "text", "content": "Be brief."}]
    assert messages_in[1]["parts"] == [{"type": "text", "content": "w" * 20}]
    [answer] = json.loads(attributes(span)["gen_ai.output.messages"])
    assert answer == {"role": "assistant", "parts": [{"type": "text", "content": response}], "finish_reason": "length"}


def test_content_capture_cut() -> None:
    captured = message_content.requested({"prompt": "w" * 100_000, "system": ["s" * 10_000]})
    [message] = json.loads(message_content.as_text(captured)["gen_ai.input.messages"])
    assert len(message["parts"][0]["content"]) == message_content.LONGEST
    assert len(captured["gen_ai.system_instructions"][0]["content"]) == message_content.LONGEST


def test_content_capture_tools_and_images() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    messages = [
        {"role": "user", "content": [image]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
    ]
    messages_in = message_content.requested({"messages": messages})["gen_ai.input.messages"]
    assert "AAAA" not in str(messages_in)
    assert messages_in[0]["parts"] == [{"type": "blob", "modality": "image", "content": ""}]
    assert messages_in[1]["parts"] == [{"type": "tool_call", "id": "c1", "name": "f", "arguments": {"a": 1}}]
    assert messages_in[2]["parts"] == [{"type": "tool_call_response", "id": "c1", "response": "42"}]
    pieces = [{"index": 0, "id": "c1", "function": {"name": "f", "arguments": part}} for part in ('{"a"', ":1}")]
    pieces[1].pop("id")
    pieces[1]["function"] = {"arguments": ":1}"}
    documents = [{"choices": [{"index": 0, "delta": {"tool_calls": [piece]}}]} for piece in pieces]
    documents.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
    [answer] = message_content.generated(documents)["gen_ai.output.messages"]
    assert answer["parts"] == [{"type": "tool_call", "id": "c1", "name": "f", "arguments": {"a": 1}}]
    # Incomplete JSON or a non-object stays text.
    call["function"] = {"name": "f", "arguments": '{"a":'}
    messages_in = message_content.requested({"messages": messages})["gen_ai.input.messages"]
    assert messages_in[1]["parts"][0]["arguments"] == '{"a":'


def test_content_capture_event(client: LlamaCppClient, listen: Listen, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    monkeypatch.setattr(_logs, "get_logger", provider.get_logger)
    joined = listen(None, content=Wanted(on_events=True))
    response = client.chat.completions.create(HELLO, max_tokens=5, ignore_eos=True, temperature=0)
    with pytest.raises(RequestError):
        client.embeddings.create("x")
    provider.shutdown()
    [record] = [one.log_record for one in exporter.get_finished_logs()]
    span = joined.of_kind(SpanKind.CLIENT)[0]
    assert span.context is not None
    assert (record.event_name, record.span_id) == (message_content.EVENT, span.context.span_id)
    captured = dict(record.attributes or {})
    content = response.choices[0].message.content
    assert [dict(message) for message in captured.pop("gen_ai.output.messages")] == [  # type: ignore[union-attr,arg-type]
        {"role": "assistant", "parts": ({"type": "text", "content": content},), "finish_reason": "length"}
    ]
    assert "Hello" in str(captured.pop("gen_ai.input.messages"))
    # The event's other attributes equal the span's; the span itself has no content.
    assert captured == {name: value for name, value in attributes(span).items() if name in genai_conventions.ATTRIBUTES}
    assert "messages" not in str(attributes(span).keys())


# -- joining: one trace, never a wrong one -----------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
def test_join_fifty_identical_requests(
    chat_server: ServerManager, client: LlamaCppClient, listen: Listen, streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp's own response has the slot; it is withheld from the joiner and then compared."""
    joined = listen(chat_server)
    slots: dict[int, int] = {}
    submit = joined.observer.submit

    def without_slot(call: ClientCall) -> None:
        from dataclasses import replace

        from opentelemetry import trace

        assert call.slot is not None
        slots[trace.get_current_span(call.span).get_span_context().span_id] = call.slot  # type: ignore[arg-type]
        submit(replace(call, slot=None))

    monkeypatch.setattr(joined.observer, "call_finished", without_slot)

    def complete(_: int) -> None:
        answer = client.complete("Same", n_predict=16, ignore_eos=True, temperature=0, stream=streamed)
        if streamed:
            list(answer)

    with ThreadPoolExecutor(50) as threads:
        list(threads.map(complete, range(50)))
    waits_for_the_log(joined, 50)
    theirs = joined.of_kind(SpanKind.SERVER)
    assert len(theirs) == len(slots) == 50
    parents = [span.parent.span_id for span in theirs if span.parent is not None]
    assert len(set(parents)) == len(parents)
    for span in theirs:
        if span.parent is not None:
            assert slots[span.parent.span_id] == attributes(span)["llamacpp.slot.id"]
        else:
            assert span.links
    # Enough calls are joined for the comparison to mean something.
    assert len(parents) >= 25


def test_join_requests_of_other_clients(chat_server: ServerManager, client: LlamaCppClient, listen: Listen) -> None:
    joined = listen(chat_server)
    other_client = LlamaCppClient(chat_server.base_url)
    with ThreadPoolExecutor(8) as threads:
        ours = [threads.submit(client.complete, "Ours", n_predict=20, ignore_eos=True) for _ in range(8)]
        listener, calls._Registered.listener = calls._Registered.listener, None
        theirs = [threads.submit(other_client.complete, "Theirs", n_predict=20, ignore_eos=True) for _ in range(8)]
        for future in (*ours, *theirs):
            future.result()
        calls._Registered.listener = listener
    waits_for_the_log(joined, 16)
    spans = joined.of_kind(SpanKind.SERVER)
    mine = {span.context.span_id for span in joined.of_kind(SpanKind.CLIENT) if span.context is not None}
    assert len(spans) == 16
    parents = [span.parent.span_id for span in spans if span.parent is not None]
    assert set(parents) <= mine
    assert len(parents) == len(set(parents)) <= len(mine)


def test_init_and_shutdown_register_listener() -> None:
    try:
        llamatel.init(metrics_addr="none")
        assert calls._Registered.listener is not None
    finally:
        llamatel.shutdown()
    assert calls._Registered.listener is None
