"""Adds OpenInference attributes to those of the GenAI conventions, with ``LLAMATEL_OPENINFERENCE=true``.

For tools that read only those (Arize, older versions of Phoenix), and for kinds of spans without a name in the GenAI
conventions: tasks, blocks, and the phases of a request. Names: openinference ``spec/semantic_conventions.md``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Tracer

from llamatel.tracing.span_values import cut, encodable

VARIABLE = "LLAMATEL_OPENINFERENCE"
KIND = "openinference.span.kind"

CHAIN = "CHAIN"
"""The kind of spans that are not model calls."""
_KINDS = {
    "chat": "LLM", "text_completion": "LLM", "generate_content": "LLM", "embeddings": "EMBEDDING", "rerank": "RERANKER",
}  # fmt: skip
_MODEL_NAMES = {
    "LLM": "llm.model_name", "EMBEDDING": "embedding.model_name", "RERANKER": "reranker.model_name",
}  # fmt: skip
_USAGE = {
    "gen_ai.usage.input_tokens": "llm.token_count.prompt",
    "gen_ai.usage.output_tokens": "llm.token_count.completion",
    "gen_ai.usage.cache_read.input_tokens": "llm.token_count.prompt_details.cache_read",
}
_REQUEST, _ARGUMENT, _RESULT = "gen_ai.request.", "llamatel.argument.", "llamatel.result"
_MAX_MESSAGES = 8
"""Each message is several attributes, of which the SDK keeps 128 a span; ``input.value`` has all messages."""
_JSON, _TEXT = "application/json", "text/plain"


def traced(tracer: Tracer, environ: Mapping[str, str]) -> Tracer:
    """``tracer``, or one that adds the attributes where the environment enables them."""
    return OpenInferenceTracer(tracer) if is_enabled(environ) else tracer


def is_enabled(environ: Mapping[str, str]) -> bool:
    """Whether the environment enables these attributes."""
    return environ.get(VARIABLE, "").strip().lower() == "true"


def set_attributes(span: Span, attributes: Mapping[str, Any]) -> None:
    """Set attributes on a span; if an ``OpenInferenceTracer`` started it, their OpenInference names, too."""
    span.set_attributes(dict(attributes))
    present = getattr(span, "attributes", None) or {}
    if KIND in present:
        span.set_attributes(encodable(converted({**present, **attributes})))


class OpenInferenceTracer(Tracer):
    """Starts spans with their kind and the OpenInference names of their attributes."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def start_span(
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Mapping[str, Any] | None = None,
        *arguments: Any,
        **options: Any,
    ) -> Span:
        """As the API has it."""
        given = attributes or {}
        own = _KINDS.get(str(given.get("gen_ai.operation.name")), CHAIN)
        return self._tracer.start_span(
            name, context, kind, {KIND: own, **given, **converted(given)}, *arguments, **options
        )

    def start_as_current_span(self, *arguments: Any, **options: Any) -> Any:
        """As the API has it; not used here, and nothing is added."""
        return self._tracer.start_as_current_span(*arguments, **options)


def converted(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The OpenInference attributes that follow from those of the GenAI conventions, and from recorded arguments."""
    kind = _KINDS.get(str(attributes.get("gen_ai.operation.name")))
    found: dict[str, Any] = dict(_content(attributes))
    if kind is None:
        return found
    model = attributes.get("gen_ai.response.model", attributes.get("gen_ai.request.model"))
    provider = attributes.get("gen_ai.provider.name")
    request = {
        name.removeprefix(_REQUEST): list(value) if isinstance(value, tuple) else value
        for name, value in attributes.items()
        if name.startswith(_REQUEST) and name != "gen_ai.request.model"
    }
    known = {
        _MODEL_NAMES[kind]: model,
        "llm.provider": provider if kind == "LLM" else None,
        "llm.invocation_parameters": json.dumps(request) if request and kind == "LLM" else None,
        **{ours: attributes.get(name) for name, ours in _USAGE.items()},
    }
    counts = known["llm.token_count.prompt"], known["llm.token_count.completion"]
    if None not in counts:
        known["llm.token_count.total"] = sum(counts)
    found.update((name, value) for name, value in known.items() if value is not None)
    return found


def _content(attributes: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Inputs and outputs, if recorded."""
    arguments = {name[len(_ARGUMENT) :]: value for name, value in attributes.items() if name.startswith(_ARGUMENT)}
    if arguments:
        yield "input.value", cut(json.dumps(arguments, ensure_ascii=False))
        yield "input.mime_type", _JSON
    if _RESULT in attributes:
        yield "output.value", str(attributes[_RESULT])
        yield "output.mime_type", _TEXT
    instructions = _parsed(attributes.get("gen_ai.system_instructions"))
    messages = _parsed(attributes.get("gen_ai.input.messages"))
    if instructions:
        messages = [{"role": "system", "parts": instructions}, *messages]
    if messages:
        yield "input.value", json.dumps({"messages": messages}, ensure_ascii=False)
        yield "input.mime_type", _JSON
        yield from _flattened("llm.input_messages", messages[-_MAX_MESSAGES:])
    answers = _parsed(attributes.get("gen_ai.output.messages"))
    if answers:
        yield "output.value", _text(answers[0]) or json.dumps(answers, ensure_ascii=False)
        yield "output.mime_type", _TEXT if _text(answers[0]) else _JSON
        yield from _flattened("llm.output_messages", answers[:_MAX_MESSAGES])
    for index, tool in enumerate(_parsed(attributes.get("gen_ai.tool.definitions"))[:_MAX_MESSAGES]):
        function = {name: value for name, value in tool.items() if name != "type"}
        schema = {"type": "function", "function": function}
        yield f"llm.tools.{index}.tool.json_schema", json.dumps(schema, ensure_ascii=False)


def _flattened(prefix: str, messages: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Any]]:
    for index, message in enumerate(messages):
        here = f"{prefix}.{index}.message"
        yield f"{here}.role", message.get("role", "user")
        if text := _text(message):
            yield f"{here}.content", text
        parts = message.get("parts", ())
        for response in (part for part in parts if part.get("type") == "tool_call_response"):
            yield f"{here}.content", str(response.get("response", ""))
            yield f"{here}.tool_call_id", str(response.get("id", ""))
        calls = [part for part in parts if part.get("type") == "tool_call"][:_MAX_MESSAGES]
        for number, call in enumerate(calls):
            arguments = call.get("arguments")
            at = f"{here}.tool_calls.{number}.tool_call"
            yield f"{at}.id", str(call.get("id", ""))
            yield f"{at}.function.name", str(call.get("name", ""))
            yield (
                f"{at}.function.arguments",
                arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False),
            )


def _text(message: Mapping[str, Any]) -> str:
    return "\n".join(str(part.get("content", "")) for part in message.get("parts", ()) if part.get("type") == "text")


def _parsed(value: Any) -> list[Any]:
    """The attributes of ``message_content``, which are lists as JSON."""
    return json.loads(value) if isinstance(value, str) else []
