"""Writes calls to models as CLIENT spans by the GenAI conventions.

Source of names: semantic-conventions-genai, docs/gen-ai/gen-ai-spans.md. A span starts with the call, in its caller's
context, and ends with it; the observer and the call reporter receive a ClientCall. If another instrumentation has
already created the client span, that span is used and none is added.

Each phase of a request appears once: in the server's span, if a llamatel watches the server. Otherwise the call writes
``wait``, ``prefill`` and ``decode`` below its own span, from the response's timings.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any, Protocol

from opentelemetry.context import Context, get_current
from opentelemetry.propagate import inject
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, get_current_span, set_span_in_context

from llamatel.errors import RequestError
from llamatel.llama.client import answer_usage as usage
from llamatel.llama.client.client_call import Call
from llamatel.records import ClientCall, Outcome, ServerInfo
from llamatel.tracing import langchain_runs, message_content, openinference
from llamatel.tracing.joining import OpenCall
from llamatel.tracing.model_span import is_model_span
from llamatel.tracing.request_parameters import parameters, task_count
from llamatel.tracing.semconv import PROVIDER
from llamatel.tracing.span_values import encodable, rate, unix_ns

_NO_CONTENT = message_content.Wanted()
_SHORTEST_S = 0.0001
"""A shorter wait is not written."""
_SAME_MOMENT_S = 0.005
"""Maximum delay between an event in the server and the arrival of its bytes."""
_UNTELLABLE_S = 0.0005
"""Headers that arrive with the first token, as in builds before 2026, do not mark the slot's start."""
_MAX_REASON = 200
_QUOTE = re.compile(r"""["'{}\n]|(?<=\S): |(?<=\S)\[""")
"""The start of quoted request text in llama.cpp's error messages."""


class CallSink(Protocol):
    """Receives calls: the observer of this process, or the reporter to another one."""

    def watches(self, server: ServerInfo) -> bool:
        """Whether it is known to watch this server, which then is llama.cpp; returns at once."""

    def call_started(self, key: object, call: OpenCall) -> None:
        """A call is about to be sent."""

    def call_dropped(self, key: object) -> None:
        """Drop a call that was not one of llama.cpp."""

    def call_finished(self, call: ClientCall) -> None:
        """A call has finished; ``call.resolve`` must be called with whether a server's request was joined with it."""


class _InFlight:
    """A call that has not finished: a ``joining.OpenCall``."""

    def __init__(self, call: Call, server: ServerInfo, context: Context) -> None:
        self.server = server
        self.context = context
        """The caller's context."""
        self.span: Span | None = None
        """None until the server is known to be llama.cpp."""
        self.foreign = False
        """Whether another instrumentation created the span."""
        self.recorder: ClientSpans | None = None
        """Set by a listener that is not the recorder itself."""
        self._call = call

    @property
    def started_at(self) -> float:
        return self._call.started_at

    @property
    def headers_at(self) -> float | None:
        return self._call.headers_at if self._call.stream else None


class ClientSpans:
    """A listener of calls that writes their spans and passes them to the sinks."""

    def __init__(self, tracer: Tracer, *sinks: CallSink, content: message_content.Wanted = _NO_CONTENT) -> None:
        """``content``: where prompts and answers are also written."""
        self._tracer = tracer
        self._sinks = sinks
        self._content = content

    def started(self, call: Call) -> Mapping[str, str]:
        """Start its span, unless the server is still unknown; returns the headers that carry its context."""
        model = call.body.get("model")
        server = ServerInfo(call.address, call.port, model if isinstance(model, str) and model else None)
        call.state = flight = _InFlight(call, server, get_current())
        self._recognise(call, server)
        current = get_current_span(flight.context)
        foreign = current if is_model_span(current) else langchain_runs.current_span()
        if foreign is not None:
            flight.span, flight.foreign = foreign, True
        elif call.is_llama_cpp:
            self._start(call, flight)
        elif self._content.on_spans or self._content.on_events:
            call.output = []
        for sink in self._sinks:
            sink.call_started(call, flight)
        headers: dict[str, str] = {}
        if flight.span is not None:
            inject(headers, set_span_in_context(flight.span, flight.context))
        return headers

    def context_of(self, call: Call) -> Context | None:
        """The context for code that runs inside the call, such as instrumented HTTP; None where it is the caller's."""
        flight: _InFlight = call.state
        own = flight.span is not None and not flight.foreign
        return set_span_in_context(flight.span, flight.context) if own and flight.span is not None else None

    def finished(self, call: Call) -> None:
        """Write its span and pass its record to the sinks."""
        flight: _InFlight = call.state
        self._recognise(call, flight.server)
        if not call.is_llama_cpp:
            for sink in self._sinks:
                sink.call_dropped(call)
            return
        if flight.span is None:
            self._start(call, flight)
        assert flight.span is not None  # noqa: S101 - for the type checker
        context = set_span_in_context(flight.span, Context())
        parts = _OwnParts(self, len(self._sinks))
        record = _record(call, flight, context, parts.resolve)
        parts.call, parts.record, parts.wanted = call, record, flight.span.is_recording() and not flight.foreign
        if not flight.foreign:
            if flight.span.is_recording():
                self._write(call, record, flight.span)
            flight.span.end(unix_ns(record.ended_at))
            if self._content.on_events and record.generates:
                self._emit_event(call, record, context)
        for sink in self._sinks:
            sink.call_finished(record)
        if not self._sinks:
            parts.write()

    def _recognise(self, call: Call, server: ServerInfo) -> None:
        """Fail without a response: the server is unknown then, unless it is watched, which is always llama.cpp."""
        call.is_llama_cpp = call.is_llama_cpp or any(sink.watches(server) for sink in self._sinks)

    def _start(self, call: Call, flight: _InFlight) -> None:
        server = flight.server
        flight.span = span = self._tracer.start_span(
            encodable(f"{call.operation} {server.model}" if server.model else call.operation),
            context=flight.context,
            kind=SpanKind.CLIENT,
            attributes=encodable({**_identity(call.operation, server), **parameters(call.body)}),
            start_time=unix_ns(call.started_at),
        )
        if call.output is None and (self._content.on_events or (self._content.on_spans and span.is_recording())):
            call.output = []
        if self._content.on_spans and span.is_recording():
            openinference.set_attributes(span, message_content.as_text(message_content.requested(call.body)))

    def _emit_event(self, call: Call, record: ClientCall, context: Context) -> None:
        attributes = {**_identity(record.operation, record.server), **parameters(call.body), **_results(call, record)}
        known = {key: value for key, value in attributes.items() if value is not None}
        event = {key: value for key, value in known.items() if not key.startswith(("llamacpp.", "http."))}
        content = {**message_content.requested(call.body), **message_content.generated(call.output or ())}
        message_content.emit(encodable({**event, **content}), context, unix_ns(record.ended_at))

    def _write(self, call: Call, record: ClientCall, span: Span) -> None:
        known = {key: value for key, value in _results(call, record).items() if value is not None}
        openinference.set_attributes(span, encodable(known))
        if record.error_type is not None:
            span.set_status(Status(StatusCode.ERROR, encodable(_description(call))))
        if self._content.on_spans and call.output is not None:
            openinference.set_attributes(span, message_content.as_text(message_content.generated(call.output)))

    def write_parts(self, call: Call, record: ClientCall) -> None:
        """Write the parts of a call that no server's span shows."""
        context = record.span if isinstance(record.span, Context) else None
        for name, start, end in _parts(call, record):
            self._tracer.start_span(name, context=context, start_time=unix_ns(start)).end(unix_ns(end))


class _OwnParts:
    """Writes a call's own parts once no sink has joined it with a server's request."""

    call: Call
    record: ClientCall
    wanted = False

    def __init__(self, spans: ClientSpans, sinks: int) -> None:
        self._spans = spans
        self._open = sinks
        self._joined = False
        self._lock = Lock()

    def resolve(self, joined: bool) -> None:
        """A sink's result."""
        with self._lock:
            self._open -= 1
            self._joined |= joined
            last = self._open == 0
        if last:
            self.write()

    def write(self) -> None:
        """Write them, unless the call was joined."""
        if self.wanted and not self._joined:
            self._spans.write_parts(self.call, self.record)


def _identity(operation: str, server: ServerInfo) -> dict[str, Any]:
    attributes = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": server.model,
        "server.address": server.address,
        "server.port": server.port,
    }
    return {key: value for key, value in attributes.items() if value is not None}


def _record(call: Call, flight: _InFlight, context: Context, resolve: Callable[[bool], None]) -> ClientCall:
    answer = call.answer
    tasks = task_count(call.operation, call.body)
    # A client may stop reading once the generation is over.
    cancelled = call.cancelled and len(answer.get("finish_reasons", ())) < tasks
    # llama.cpp gives the first choice's figures for all.
    timings: Mapping[str, Any] = answer.get("timings", {}) if tasks == 1 else {}
    prefill, decode = timings.get("prompt_ms"), timings.get("predicted_ms")
    return ClientCall(
        key=call,
        span=context,
        server=flight.server,
        operation=call.operation,
        started_at=call.started_at,
        # Attempts that timed out have run as requests, too.
        sent_at=(call.first_sent_at if call.status is None else call.sent_at) or call.sent_at or call.started_at,
        ended_at=call.ended_at or call.started_at,
        outcome=Outcome.CANCELLED if cancelled else Outcome.ERROR if call.failed else Outcome.OK,
        error_type=call.error_type,
        http_status=call.status,
        headers_at=call.headers_at if call.stream else None,
        first_chunk_at=call.first_token_at,
        chunk_gaps=call.chunk_gaps,
        response_model=answer.get("model"),
        input_tokens=usage.input_tokens(answer),
        output_tokens=usage.output_tokens(answer) if tasks == 1 else None,
        cached_tokens=usage.cached_tokens(answer) if tasks == 1 else None,
        prompt_computed=timings.get("prompt_n"),
        prefill_s=None if prefill is None else prefill / 1e3,
        decode_s=None if decode is None else decode / 1e3,
        slot=answer.get("slot"),
        modality="unknown" if _has_media(call.body) else "text",
        tasks=tasks,
        foreign_span=flight.foreign,
        # Another instrumentation writes the token counts of the response's usage, but no timings.
        has_usage="usage" in answer or (not flight.foreign and "timings" in answer),
        resolve=resolve,
    )


def _has_media(body: Mapping[str, Any]) -> bool:
    messages = body.get("messages")
    return isinstance(messages, list) and any(
        isinstance(part, Mapping) and part.get("type") not in ("text", None)
        for message in messages
        if isinstance(message, Mapping) and isinstance(message.get("content"), list)
        for part in message["content"]
    )


def _results(call: Call, record: ClientCall) -> dict[str, Any]:
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
        "http.response.status_code": record.http_status if record.error_type is not None else None,
        "llamacpp.outcome": record.outcome.value,
        "llamacpp.slot.id": record.slot,
        "llamacpp.prompt.computed_tokens": record.prompt_computed,
        "llamacpp.prefill.tokens_per_second": rate(record.prompt_computed, record.prefill_s),
        "llamacpp.decode.tokens_per_second": rate(decoded - 1, record.decode_s) if decoded and decoded > 1 else None,
        "llamacpp.draft.tokens": timings.get("draft_n"),
        "llamacpp.draft.accepted_tokens": timings.get("draft_n_accepted"),
        "llamacpp.truncated": answer.get("truncated"),
    }


def _description(call: Call) -> str:
    """The server's reason without quoted request text; for other errors the exception and its text."""
    if call.reason is not None:
        quoted = _QUOTE.search(call.reason)
        reason = call.reason if quoted is None else call.reason[: quoted.start()]
        status = f"{call.status} " if call.status is not None else ""
        return f"{status}{call.error_type}: {reason[:_MAX_REASON]}".rstrip(": ")
    if isinstance(call.error, RequestError):  # our own text, on the connection
        return f"{type(call.error).__name__}: {call.error}"
    return type(call.error).__name__ if call.error is not None else str(call.error_type)


def _parts(call: Call, record: ClientCall) -> list[tuple[str, float, float]]:
    """Name, start and end (Unix seconds) of each part of a call.

    From llama.cpp's timings where there are any. Headers of a stream mark the time when it got its slot, the first
    token the end of prefill. Without a stream, prefill and decode end with the response, and ``wait`` is all time
    before them: network, proxies and the server's queue, which a client cannot separate.
    """
    if not record.generates or record.tasks != 1:
        return []
    start, first = record.headers_at, record.first_chunk_at
    decode: tuple[float, float] | None
    if record.prefill_s is not None and record.decode_s is not None:
        if start is None:
            start = (call.headers_at or record.ended_at) - record.decode_s - record.prefill_s
        elif first is not None and start + record.prefill_s > first + _SAME_MOMENT_S:
            start = first - record.prefill_s
        start = max(start, record.sent_at)
        first = min(start + record.prefill_s, record.ended_at)
        decode = first, min(first + record.decode_s, record.ended_at)
    elif start is None:
        return []
    else:
        if first is not None and first - start < _UNTELLABLE_S:
            start = None
        decode = (first, record.ended_at) if first is not None else None
    parts: list[tuple[str, float, float]] = []
    if start is not None and start - record.sent_at > _SHORTEST_S:
        parts.append(("wait", record.sent_at, start))
    if start is not None and first is not None:
        parts.append(("prefill", start, first))
    if decode is not None:
        parts.append(("decode", *decode))
    return parts
