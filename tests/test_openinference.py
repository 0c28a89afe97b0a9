"""OpenInference attributes, which ``LLAMATEL_OPENINFERENCE=true`` adds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

import llamatel
from llamatel.llama import ServerManager
from llamatel.telemetry.kept_spans import KeptSpan
from llamatel.tracing import message_content, openinference
from tests.recording import Recording
from tests.servers import complete

HELLO: Any = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hello"}]
FLAGS = ("-c", "4096", "-np", "2", "-t", "1", "--jinja")


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[ServerManager]:
    with ServerManager(backend="xllamacpp") as running:
        running.start_server(tiny_model, port=0, alias="tiny", extra_args=FLAGS).wait_until_ready(60)
        yield running


@llamatel.task(arguments=("topic",), result=True)
def summarise(client: openai.OpenAI, topic: str) -> str:
    client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=6, temperature=0.5)
    return f"about {topic}"


def traced(server: ServerManager) -> dict[str, KeptSpan]:
    """The spans of one task with one call, by name."""
    llamatel.init(metrics_addr="none", keep_traces=True)
    try:
        with openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="none") as client:
            summarise(client, "llamas")
        return {span.name: span for span in llamatel.last_trace().spans}
    finally:
        llamatel.shutdown()


def test_openinference_attributes_of_a_trace(
    server: ServerManager, no_settings: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(openinference.VARIABLE, "true")
    monkeypatch.setenv(message_content.VARIABLE, "SPAN_ONLY")
    spans = traced(server)
    kinds = {name: span.attributes[openinference.KIND] for name, span in spans.items()}
    assert kinds.pop("chat tiny") == "LLM"
    assert set(kinds.values()) == {"CHAIN"}
    assert {"summarise", "generate_content tiny", "prefill", "decode"} <= set(kinds)
    task, call = spans["summarise"].attributes, spans["chat tiny"].attributes
    assert json.loads(str(task["input.value"])) == {"topic": "llamas"}
    assert task["output.value"] == "about llamas"
    assert call["llm.model_name"] == "tiny"
    assert json.loads(str(call["llm.invocation_parameters"])) == {"max_tokens": 6, "temperature": 0.5}
    for theirs, ours in (("prompt", "input"), ("completion", "output")):
        assert call[f"llm.token_count.{theirs}"] == call[f"gen_ai.usage.{ours}_tokens"]
    assert call["llm.input_messages.0.message.role"] == "system"
    assert call["llm.input_messages.1.message.content"] == "Hello"
    assert call["llm.output_messages.0.message.role"] == "assistant"
    assert call["output.value"] == call["llm.output_messages.0.message.content"]
    assert "Be brief" in str(call["input.value"])
    for name, span in spans.items():  # token counts are on one span
        assert any(key.startswith("llm.token_count") for key in span.attributes) == (name == "chat tiny")


def test_openinference_is_off_by_default(server: ServerManager, no_settings: None) -> None:
    spans = traced(server)
    found = {
        (span.name, key)
        for span in spans.values()
        for key in span.attributes
        if key.startswith(("openinference.", "llm.", "input.", "output."))
    }
    assert found == {("generate_content tiny", openinference.KIND)}  # so that tokens are counted once


def test_openinference_no_content_without_capture(
    server: ServerManager, no_settings: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(openinference.VARIABLE, "true")
    call = traced(server)["chat tiny"].attributes
    assert "Hello" not in str(call)
    assert "input.value" not in call


def test_openinference_request_without_a_call(
    server: ServerManager, no_settings: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(openinference.VARIABLE, "true")
    llamatel.init(metrics_addr="none", keep_traces=True)
    try:
        assert complete(server.base_url, 5) == 200
        [request] = [span for span in llamatel.last_trace().spans if span.kind == "SERVER"]
    finally:
        llamatel.shutdown()
    assert request.attributes[openinference.KIND] == "LLM"
    counts: dict[str, Any] = dict(request.attributes)
    total = counts["llm.token_count.prompt"] + counts["llm.token_count.completion"]
    assert counts["llm.token_count.total"] == total


def test_openinference_tools_and_their_results() -> None:
    called = {"id": "c1", "function": {"name": "weather", "arguments": '{"city": "Bonn"}'}}
    request = {
        "messages": [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": None, "tool_calls": [called]},
            {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        ],
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}],
    }
    found = openinference.converted(message_content.as_text(message_content.requested(request)))
    message = "llm.input_messages.1.message.tool_calls.0.tool_call"
    assert found[f"{message}.function.name"] == "weather"
    assert json.loads(found[f"{message}.function.arguments"]) == {"city": "Bonn"}
    assert found["llm.input_messages.2.message.tool_call_id"] == found[f"{message}.id"] == "c1"
    assert found["llm.input_messages.2.message.content"] == "rain"
    assert json.loads(found["llm.tools.0.tool.json_schema"])["function"]["name"] == "weather"


def test_openinference_many_messages_leave_room_for_other_attributes() -> None:
    messages = [{"role": "user", "content": f"message {number}"} for number in range(60)]
    recording = Recording()
    tracer = openinference.OpenInferenceTracer(recording.tracer)
    span = tracer.start_span("chat", attributes={"gen_ai.operation.name": "chat", "first": 1})
    openinference.set_attributes(span, message_content.as_text(message_content.requested({"messages": messages})))
    span.end()
    attributes = recording.named("chat").attributes or {}
    assert attributes["first"] == 1
    assert attributes["llm.input_messages.7.message.content"] == "message 59"
    assert "message 0" in str(attributes["input.value"])
    recording.provider.shutdown()
