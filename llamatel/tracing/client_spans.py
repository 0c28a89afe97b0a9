"""Calls of our client as CLIENT spans by the GenAI conventions, with ``queue``, ``prefill`` and ``decode`` below them.

Source of names: semantic-conventions-genai, docs/gen-ai/gen-ai-spans.md. A span begins with the call, in its caller's
context, and is written when the call ends; what the observer needs of it goes on as a ClientCall.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from opentelemetry.context import Context
from opentelemetry.propagate import inject
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context

from llamatel.errors import BadRequest, ContextTooLong, InvalidResponse, ServerFailure
from llamatel.llama.client import answer_usage as facts
from llamatel.llama.client.client_call import Call
from llamatel.records import ClientCall, Outcome, ServerInfo
from llamatel.semconv import PROVIDER
from llamatel.tracing import message_content
from llamatel.tracing.span_values import rate, unix_ns

_NO_CONTENT = message_content.Wanted()
_SHORTEST_S = 0.0001
"""Less is nothing that anyone waits for."""
_SAME_MOMENT_S = 0.005
"""What may lie between an event in the server and its bytes here."""
_UNTELLABLE_S = 0.0005
"""Headers that come with the first token do not say when the slot began; builds before 2026 send them so."""

_NUMBERS: tuple[tuple[str, tuple[str, ...], type], ...] = (
    ("gen_ai.request.max_tokens", ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict"), int),
    ("gen_ai.request.temperature", ("temperature",), float),
    ("gen_ai.request.top_p", ("top_p",), float),
    ("gen_ai.request.top_k", ("top_k",), int),
    ("gen_ai.request.frequency_penalty", ("frequency_penalty",), float),
    ("gen_ai.request.presence_penalty", ("presence_penalty",), float),
    ("gen_ai.request.seed", ("seed",), int),
    ("gen_ai.embeddings.dimension.count", ("dimensions",), int),
)


class _Told:
    """What is kept of a call while it is under way: a ``joining.OpenCall``."""

    def __init__(self, call: Call, span: Span, server: ServerInfo) -> None:
        self.span = span
        self.server = server
        self._call = call

    @property
    def started_at(self) -> float:
        return self._call.started_at

    @property
    def headers_at(self) -> float | None:
        return self._call.headers_at if self._call.request.stream else None


class ClientSpans:
    """Listens to calls, writes their spans, and tells the observer."""

    def __init__(
        self,
        tracer: Tracer,
        *,
        began: Callable[[object, Any], None],
        ended: Callable[[ClientCall], None],
        content: message_content.Wanted = _NO_CONTENT,
    ) -> None:
        """``content``: where prompts and answers are written, too."""
        self._tracer = tracer
        self._began = began
        self._ended = ended
        self._content = content

    def began(self, call: Call) -> Mapping[str, str]:
        """Start its span; returns the headers that carry its context."""
        body = call.request.body if isinstance(call.request.body, Mapping) else {}
        model = body.get("model")
        server = ServerInfo(call.address, call.port, model if isinstance(model, str) and model else None)
        operation = str(call.request.operation)
        span = self._tracer.start_span(
            f"{operation} {server.model}" if server.model else operation,
            kind=SpanKind.CLIENT,
            attributes={**_asked(operation, server), **_parameters(body)},
            start_time=unix_ns(call.started_at),
        )
        call.told = _Told(call, span, server)
        if self._content.on_events or (self._content.on_spans and span.is_recording()):
            call.output = []
        if self._content.on_spans and span.is_recording():
            span.set_attributes(message_content.as_text(message_content.asked(body)))
        self._began(call, call.told)
        headers: dict[str, str] = {}
        inject(headers, set_span_in_context(span))
        return headers

    def ended(self, call: Call) -> None:
        """Write its span, and hand on what it was."""
        told: _Told = call.told
        context = set_span_in_context(told.span, Context())
        record = _record(call, told.server, context)
        if told.span.is_recording():
            self._write(call, record, told.span, context)
        told.span.end(unix_ns(record.ended_at))
        self._ended(record)
        if self._content.on_events and record.generates:
            self._tell(call, record, context)

    def _tell(self, call: Call, record: ClientCall, context: Context) -> None:
        body = call.request.body if isinstance(call.request.body, Mapping) else {}
        about = {**_asked(record.operation, record.server), **_parameters(body), **_answered(call, record)}
        told = {key: value for key, value in about.items() if value is not None and not key.startswith("llamacpp.")}
        content = {**message_content.asked(body), **message_content.answered(call.output or ())}
        message_content.emit({**told, **content}, context, unix_ns(record.ended_at))

    def _write(self, call: Call, record: ClientCall, span: Span, context: Context) -> None:
        span.set_attributes({key: value for key, value in _answered(call, record).items() if value is not None})
        if record.error_type is not None:
            span.set_status(Status(StatusCode.ERROR, _said(call.error)))
        if self._content.on_spans and call.output is not None:
            span.set_attributes(message_content.as_text(message_content.answered(call.output)))
        for name, start, end, attributes in _phases(call, record):
            child = self._tracer.start_span(name, context=context, attributes=attributes, start_time=unix_ns(start))
            child.end(unix_ns(end))


def _asked(operation: str, server: ServerInfo) -> dict[str, Any]:
    attributes = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": server.model,
        "server.address": server.address,
        "server.port": server.port,
    }
    return {key: value for key, value in attributes.items() if value is not None}


def _parameters(body: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a request that the conventions name; those of a wrong type are the server's to refuse."""
    found: dict[str, Any] = {}
    for attribute, fields, kind in _NUMBERS:
        value = next((body[field] for field in fields if field in body), None)
        if isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool):
            found[attribute] = kind(value)
    stop = body.get("stop", body.get("stop_sequences"))
    stops = [stop] if isinstance(stop, str) else stop
    if isinstance(stops, (list, tuple)) and all(isinstance(one, str) for one in stops):
        found["gen_ai.request.stop_sequences"] = list(stops)
    choices = body.get("n")
    if isinstance(choices, int) and choices != 1:
        found["gen_ai.request.choice.count"] = choices
    if body.get("stream") is True:
        found["gen_ai.request.stream"] = True
    encoding = body.get("encoding_format")
    if isinstance(encoding, str):
        found["gen_ai.request.encoding_formats"] = [encoding]
    wanted = body.get("response_format")
    if isinstance(wanted, Mapping) and isinstance(wanted.get("type"), str):
        found["gen_ai.output.type"] = "json" if wanted["type"].startswith("json") else "text"
    return found


def _record(call: Call, server: ServerInfo, context: Context) -> ClientCall:
    answer = call.answer
    tasks = _tasks(call)
    # Of several choices llama.cpp gives the first one's figures for all.
    timings: Mapping[str, Any] = answer.get("timings", {}) if tasks == 1 else {}
    prefill, decode = timings.get("prompt_ms"), timings.get("predicted_ms")
    outcome = Outcome.CANCELLED if call.cancelled else Outcome.ERROR if call.error is not None else Outcome.OK
    return ClientCall(
        key=call,
        span=context,
        server=server,
        operation=str(call.request.operation),
        started_at=call.started_at,
        sent_at=call.sent_at or call.started_at,
        ended_at=call.ended_at or call.started_at,
        outcome=outcome,
        error_type=call.error_kind,
        headers_at=call.headers_at if call.request.stream else None,
        first_chunk_at=call.first_token_at,
        chunk_gaps=call.chunk_gaps,
        response_model=answer.get("model"),
        input_tokens=facts.input_tokens(answer),
        output_tokens=facts.output_tokens(answer) if tasks == 1 else None,
        cached_tokens=facts.cached_tokens(answer) if tasks == 1 else None,
        prompt_computed=timings.get("prompt_n"),
        prefill_s=None if prefill is None else prefill / 1e3,
        decode_s=None if decode is None else decode / 1e3,
        slot=answer.get("slot"),
        modality="unknown" if _has_media(call.request.body) else "text",
        tasks=tasks,
    )


def _has_media(body: object) -> bool:
    messages = body.get("messages") if isinstance(body, Mapping) else None
    return isinstance(messages, list) and any(
        isinstance(part, Mapping) and part.get("type") not in ("text", None)
        for message in messages
        if isinstance(message, Mapping) and isinstance(message.get("content"), list)
        for part in message["content"]
    )


def _tasks(call: Call) -> int:
    body = call.request.body if isinstance(call.request.body, Mapping) else {}
    operation = call.request.operation
    many = body.get("documents") if operation == "rerank" else body.get("input", body.get("prompt"))
    count = body.get("n", body.get("n_cmpl", 1))
    if operation in ("chat", "text_completion"):
        texts = many if operation == "text_completion" else None
        lists = isinstance(texts, list) and any(isinstance(text, (str, list)) for text in texts)
        return (count if isinstance(count, int) else 1) * (len(texts) if lists and texts else 1)
    lists = isinstance(many, list) and any(isinstance(text, (str, list)) for text in many)
    return len(many) if lists and many else 1


def _answered(call: Call, record: ClientCall) -> dict[str, Any]:
    answer = call.answer
    timings = answer.get("timings", {}) if record.tasks == 1 else {}
    first = record.first_chunk_at
    decoded = record.output_tokens
    return {
        "gen_ai.response.id": answer.get("id"),
        "gen_ai.response.model": record.response_model,
        "gen_ai.response.finish_reasons": answer.get("finish_reasons"),
        "gen_ai.response.time_to_first_chunk": None if first is None else first - record.started_at,
        "gen_ai.usage.input_tokens": record.input_tokens,
        "gen_ai.usage.output_tokens": decoded,
        "gen_ai.usage.cache_read.input_tokens": record.cached_tokens,
        "error.type": record.error_type,
        "llamacpp.outcome": record.outcome.value,
        "llamacpp.slot.id": record.slot,
        "llamacpp.prompt.computed_tokens": record.prompt_computed,
        "llamacpp.prefill.tokens_per_second": rate(record.prompt_computed, record.prefill_s),
        "llamacpp.decode.tokens_per_second": rate(decoded - 1, record.decode_s) if decoded and decoded > 1 else None,
        "llamacpp.draft.tokens": timings.get("draft_n"),
        "llamacpp.draft.accepted_tokens": timings.get("draft_n_accepted"),
        "llamacpp.truncated": answer.get("truncated"),
    }


def _said(error: BaseException | None) -> str:
    """An error without what may repeat a prompt: llama.cpp quotes what it cannot parse."""
    quotes = isinstance(error, (BadRequest, ServerFailure, InvalidResponse)) and not isinstance(error, ContextTooLong)
    return type(error).__name__ if quotes else f"{type(error).__name__}: {error}"


def _phases(call: Call, record: ClientCall) -> list[tuple[str, float, float, dict[str, bool] | None]]:
    """The parts of a call: name, start and end (Unix seconds), attributes.

    By llama.cpp's timings where there are any. Of a stream the headers tell when a slot took it, and the first token
    when prefill was over. Of what is not streamed prefill and decode end with the answer: what was before them is
    ``queue``, with the way there, so that is an estimate.
    """
    if not record.generates or record.tasks != 1:
        return []
    start, first = record.headers_at, record.first_chunk_at
    decode: tuple[float, float] | None
    estimated = start is None
    if record.prefill_s is not None and record.decode_s is not None:
        if start is None:
            start = (call.headers_at or record.ended_at) - record.decode_s - record.prefill_s
        elif first is not None and start + record.prefill_s > first + _SAME_MOMENT_S:
            start, estimated = first - record.prefill_s, True
        start = max(start, record.sent_at)
        first = min(start + record.prefill_s, record.ended_at)
        decode = first, min(first + record.decode_s, record.ended_at)
    elif start is None:
        return []
    else:
        if first is not None and first - start < _UNTELLABLE_S:
            start = None
        decode = (first, record.ended_at) if first is not None else None
    phases: list[tuple[str, float, float, dict[str, bool] | None]] = []
    if start is not None and start - record.sent_at > _SHORTEST_S:
        phases.append(("queue", record.sent_at, start, {"llamacpp.queue.estimated": True} if estimated else None))
    if start is not None and first is not None:
        phases.append(("prefill", start, first, None))
    if decode is not None:
        phases.append(("decode", *decode, None))
    return phases
