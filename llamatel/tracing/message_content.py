"""Records prompts and answers by the GenAI conventions, only if the environment enables it (``VARIABLE``).

On spans they are JSON text, on events the same structure as it is (docs/gen-ai/gen-ai-input-messages.json,
gen-ai-output-messages.json). Each piece of text is cut to 8,192 characters, so that the JSON stays whole; images and
audio are named, never written.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opentelemetry import _logs
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.context import Context

from llamatel.inputs.documents import InvalidDocument, mapping, parse_json
from llamatel.tracing.span_values import encodable

_log = logging.getLogger(__name__)

VARIABLE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
LONGEST = 8192
EVENT = "gen_ai.client.inference.operation.details"
_MOST_MESSAGES = 64


@dataclass(frozen=True, slots=True)
class Wanted:
    """Destinations of content."""

    on_spans: bool = False
    on_events: bool = False


_VALUES = {
    "": Wanted(),
    "NO_CONTENT": Wanted(),
    "SPAN_ONLY": Wanted(on_spans=True),
    "EVENT_ONLY": Wanted(on_events=True),
    "SPAN_AND_EVENT": Wanted(on_spans=True, on_events=True),
}


def wanted(environ: Mapping[str, str]) -> Wanted:
    """The destinations that the environment enables; none, with a warning, for an invalid value."""
    value = environ.get(VARIABLE, "").strip().upper()
    if value not in _VALUES:
        _log.warning("%s=%s writes no content: SPAN_ONLY, EVENT_ONLY and SPAN_AND_EVENT do", VARIABLE, value)
    found = _VALUES.get(value, Wanted())
    if found.on_events and type(_logs.get_logger_provider()).__name__ == "ProxyLoggerProvider":
        _log.warning("%s=%s: events go nowhere until the application sets a logger provider", VARIABLE, value)
    return found


def emit(attributes: Mapping[str, Any], context: Context, at_ns: int) -> None:
    """Write the event of a call, below its span, to the process's logger provider."""
    _logs.get_logger("llamatel").emit(
        LogRecord(
            timestamp=at_ns,
            context=context,
            severity_number=SeverityNumber.DEBUG,  # as the conventions have it
            event_name=EVENT,
            attributes=dict(attributes),
        )
    )


def as_text(content: Mapping[str, Any]) -> dict[str, str]:
    """Content as a span has it."""
    return {name: encodable(json.dumps(value, ensure_ascii=False, default=str)) for name, value in content.items()}


def requested(body: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a request: messages, or its prompt as a message; system instructions; tools."""
    attributes: dict[str, Any] = {}
    apart = body.get("system", body.get("instructions"))
    if apart:
        attributes["gen_ai.system_instructions"] = list(_parts(apart))
    given = body.get("messages", body.get("input", body.get("prompt", body.get("query"))))
    if isinstance(given, list) and all(isinstance(one, Mapping) for one in given):
        messages = [_message(one) for one in given[-_MOST_MESSAGES:]]
    else:
        messages = [] if given is None else [{"role": "user", "parts": list(_parts(given))}]
    if messages:
        attributes["gen_ai.input.messages"] = messages
    tools = body.get("tools")
    if isinstance(tools, (list, tuple)) and tools:
        attributes["gen_ai.tool.definitions"] = [_tool(one) for one in tools if isinstance(one, Mapping)]
    return attributes


def generated(documents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The output messages: one for each choice."""
    answers: dict[int, _Answer] = {}
    for document in documents:
        for index, piece, reason in _pieces(document):
            one = answers.setdefault(index, _Answer())
            one.add(piece)
            one.reason = reason or one.reason
    messages = [one.message() for _, one in sorted(answers.items()) if not one.empty]
    return {"gen_ai.output.messages": messages} if messages else {}


class _Answer:
    """One answer, assembled from its chunks."""

    def __init__(self) -> None:
        self._text: dict[str, str] = {"reasoning": "", "text": ""}
        self._calls: dict[int, dict[str, str]] = {}
        self.reason: str | None = None

    @property
    def empty(self) -> bool:
        return not any(self._text.values()) and not self._calls

    def add(self, piece: Mapping[str, Any]) -> None:
        for kind, key in (("text", "content"), ("text", "text"), ("reasoning", "reasoning_content")):
            value = piece.get(key)
            if isinstance(value, str):
                self._text[kind] = (self._text[kind] + value)[: LONGEST + 1]
        for number, call in enumerate(_objects(piece.get("tool_calls"))):
            function = mapping(call.get("function"))
            kept = self._calls.setdefault(_index(call, number), {"id": "", "name": "", "arguments": ""})
            for key, value in (("id", call.get("id")), *((key, function.get(key)) for key in ("name", "arguments"))):
                kept[key] = (kept[key] + (value if isinstance(value, str) else ""))[: LONGEST + 1]

    def message(self) -> dict[str, Any]:
        parts: list[dict[str, Any]] = [
            {"type": kind, "content": _cut(text)} for kind, text in self._text.items() if text
        ]
        for _, call in sorted(self._calls.items()):
            filled = {**call, "arguments": _arguments(call["arguments"])}
            parts.append({"type": "tool_call", **{key: value for key, value in filled.items() if value}})
        return {"role": "assistant", "parts": parts, "finish_reason": self.reason or "unknown"}


def _pieces(document: Mapping[str, Any]) -> Iterator[tuple[int, Mapping[str, Any], str | None]]:
    """What a document adds to which choice, and the choice's finish reason."""
    choices = document.get("choices")
    if isinstance(choices, list):
        for choice in _objects(choices):
            piece = mapping(choice.get("message")) or mapping(choice.get("delta")) or choice
            yield _index(choice), piece, choice.get("finish_reason")
        return
    kind, delta = document.get("type"), document.get("delta")
    if kind == "content_block_delta" and isinstance(delta, Mapping):
        yield 0, {"content": delta.get("text"), "reasoning_content": delta.get("thinking")}, None
    elif kind == "message_delta" and isinstance(delta, Mapping):
        yield 0, {}, delta.get("stop_reason")
    elif kind == "response.output_text.delta":
        yield 0, {"content": delta}, None
    elif isinstance(document.get("output"), list):
        for item in _objects(document["output"]):
            texts = (part.get("text") for part in _objects(item.get("content")))
            yield 0, {"content": "".join(text for text in texts if isinstance(text, str))}, None
        yield 0, {}, document.get("status")
    elif isinstance(document.get("content"), list):
        for part in _objects(document["content"]):
            yield 0, {"content": part.get("text"), "reasoning_content": part.get("thinking")}, None
        yield 0, {}, document.get("stop_reason")
    elif isinstance(document.get("content"), str):
        yield _index(document), document, document.get("stop_type") if document.get("stop") else None


def _objects(value: Any) -> list[Mapping[str, Any]]:
    """The objects of a list that a server or an application sent."""
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, (list, tuple)) else []


def _index(given: Mapping[str, Any], default: int = 0) -> int:
    number = given.get("index", default)
    return number if isinstance(number, int) else default


def _message(given: Mapping[str, Any]) -> dict[str, Any]:
    role = str(given.get("role") or given.get("type") or "user")
    if role == "tool":
        response = {
            "type": "tool_call_response",
            "id": given.get("tool_call_id"),
            "response": _cut(given.get("content")),
        }
        return {"role": role, "parts": [{key: value for key, value in response.items() if value is not None}]}
    parts = list(_parts(given.get("content")))
    for call in _objects(given.get("tool_calls")):
        function = mapping(call.get("function"))
        part = {"type": "tool_call", "id": call.get("id"), "name": function.get("name")}
        parts.append({**part, "arguments": _arguments(function.get("arguments"))})
    return {"role": role, "parts": parts}


def _parts(content: Any) -> Iterator[dict[str, Any]]:
    if isinstance(content, str):
        yield {"type": "text", "content": _cut(content)}
    elif isinstance(content, (list, tuple)):
        for part in content:
            if isinstance(part, str):
                yield {"type": "text", "content": _cut(part)}
            elif isinstance(part, Mapping) and isinstance(part.get("text"), str):
                yield {"type": "text", "content": _cut(part["text"])}
            elif isinstance(part, Mapping):
                # Images and audio: only their type.
                yield {"type": "blob", "modality": str(part.get("type", "unknown")).partition("_")[0], "content": ""}


def _tool(given: Mapping[str, Any]) -> dict[str, Any]:
    inner = given.get("function")
    function = inner if isinstance(inner, Mapping) else given
    return {
        "type": str(given.get("type", "function")),
        **{key: function[key] for key in ("name", "description", "parameters") if key in function},
    }


def _cut(value: Any) -> str:
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value, default=str)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _arguments(given: Any) -> Any:
    """The arguments of a tool call: an object, as in the conventions, if they are complete and valid JSON."""
    text = _cut(given)
    try:
        found = parse_json(text)
    except InvalidDocument:
        return text
    return found if isinstance(found, dict) else text
