"""Completions as spans: one SERVER span a request, with ``queue``, ``prefill`` and ``decode`` below it.

All spans are written after the fact, at the times that the log gives. Names and attributes follow the GenAI
conventions (semantic-conventions-genai, docs/gen-ai/gen-ai-spans.md); what they have no name for is ``llamacpp.*``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    get_current_span,
    set_span_in_context,
)

from llamatel.records import Call, Completion, ObservedRequest, RequestGpu
from llamatel.semconv import PROVIDER, error_type, operation
from llamatel.tracing.joining import Origin
from llamatel.tracing.span_values import rate, unix_ns

_SHORTEST_QUEUE_S = 0.0001
"""Less is within the estimate's error, and nothing that anyone waits for."""
_ROOT = Context()
_CANDIDATE = {"llamacpp.join": "candidate"}
"""On a link to a call that the request may have been."""


class Spans:
    """Writes the spans of requests with one tracer."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def emit(
        self, completion: Completion, parent: Context | None = None, links: Sequence[Link] = (), share: float = 1.0
    ) -> Context:
        """Write a request's spans and return the context that holds its SERVER span, for exemplars.

        ``parent`` is the context that the request came from; without one, and where the request itself names none, it
        makes a trace of its own, whatever span is current in this thread. ``links`` name spans that it may belong to.
        ``share`` is the share of requests that get spans, below 1 under overload.
        """
        call = completion.call
        if parent is None and call is not None:
            parent = _caller(call)
        attributes = _attributes(completion)
        if share < 1.0:
            attributes["llamatel.sampling.ratio"] = share
        model = completion.server.model
        name = attributes["gen_ai.operation.name"]
        span = self._tracer.start_span(
            f"{name} {model}" if model else str(name),
            context=_ROOT if parent is None else parent,
            kind=SpanKind.INTERNAL if call is not None and call.in_process else SpanKind.SERVER,
            attributes=attributes,
            links=links,
            start_time=unix_ns(completion.arrived_at),
        )
        context = set_span_in_context(span, _ROOT if parent is None else parent)
        if span.is_recording():
            for phase, start, end in _phases(completion):
                self._tracer.start_span(phase, context=context, start_time=unix_ns(start)).end(unix_ns(end))
            if "error.type" in attributes:
                span.set_status(Status(StatusCode.ERROR, completion.error or completion.outcome.value))
                if call is not None and call.error_type is not None:
                    exception = {"exception.type": call.error_type, "exception.message": completion.error or ""}
                    span.add_event("exception", exception, unix_ns(completion.ended_at))
            span.end(unix_ns(completion.ended_at))
        return context

    def emit_observed(self, request: ObservedRequest) -> None:
        """Write the span of a request that was only seen in its slot: the time in which it certainly ran."""
        server = request.server
        known: dict[str, str | int | float | None] = {
            "gen_ai.provider.name": PROVIDER,
            "gen_ai.request.model": server.model,
            "server.address": server.address,
            "server.port": server.port,
            "gen_ai.usage.input_tokens": request.prompt_tokens,
            "llamacpp.slot.id": request.slot,
            "llamacpp.task.id": request.task,
            "llamacpp.observed": "polling",
            "llamacpp.observed.longest": request.longest_s,
            "llamacpp.observed.output_tokens": request.decoded,
        }
        self._tracer.start_span(
            f"observed {server.model}" if server.model else "observed",
            context=_ROOT,
            kind=SpanKind.INTERNAL,
            attributes={key: value for key, value in known.items() if value is not None},
            start_time=unix_ns(request.first_seen_at),
        ).end(unix_ns(request.last_seen_at))

    def emit_from(self, completion: Completion, origin: Origin, share: float = 1.0) -> Context:
        """``emit`` below the call of our client that the request was, or linked to those that it may have been.

        No request arrives before it was sent: that bounds the estimate of its queue.
        """
        parent = origin.parent
        if parent is not None and completion.queue_s is not None:
            waited = max(0.0, completion.started_at - parent.sent_at)
            completion = replace(completion, queue_s=min(completion.queue_s, waited))
        links = [
            Link(get_current_span(call.span).get_span_context(), _CANDIDATE)
            for call in origin.candidates
            if isinstance(call.span, Context)
        ]
        context = parent.span if parent is not None and isinstance(parent.span, Context) else None
        return self.emit(completion, context, links, share)


def _caller(call: Call) -> Context | None:
    """The context of the span that made the call; None if there was none."""
    parts = (call.traceparent or "").split("-")
    if len(parts) != 4:
        return None
    try:
        trace, span, flags = (int(part, 16) for part in parts[1:])
    except ValueError:
        return None
    about = SpanContext(trace, span, is_remote=not call.in_process, trace_flags=TraceFlags(flags))
    return set_span_in_context(NonRecordingSpan(about), _ROOT) if about.is_valid else None


def span_count(completion: Completion) -> int:
    """How many spans a request has."""
    return 1 + len(_phases(completion))


def _phases(completion: Completion) -> list[tuple[str, float, float]]:
    """The parts of a request that are known: name, start, end (Unix seconds).

    The log's times are rounded, so a part could stick out of its request by some microseconds: it is cut there.
    """
    if completion.call is not None:
        return [(phase.name, phase.started_at, phase.ended_at) for phase in completion.call.phases]
    phases = []
    queue, prefill, decode = completion.queue_s, completion.prefill_s, completion.decode_s
    first_token = completion.first_token_at
    if queue is not None and queue > _SHORTEST_QUEUE_S:
        phases.append(("queue", completion.arrived_at, completion.started_at))
    if prefill is not None:
        end = completion.started_at + prefill if first_token is None else first_token
        phases.append(("prefill", max(end - prefill, completion.started_at), min(end, completion.ended_at)))
    if decode is not None:
        start = completion.ended_at - decode if first_token is None else first_token
        phases.append(("decode", start, min(start + decode, completion.ended_at)))
    return phases


def _attributes(completion: Completion) -> dict[str, str | int | float | bool | tuple[str, ...]]:
    """All that is known of a request; given when the span starts, so that samplers see it."""
    server = completion.server
    call = completion.call
    attributes: dict[str, str | int | float | bool | tuple[str, ...] | None] = {
        **(call.attributes if call is not None else {}),
        "gen_ai.operation.name": operation(completion),
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": server.model,
        "server.address": server.address,
        "server.port": server.port,
        "gen_ai.usage.input_tokens": completion.prompt_tokens,
        "gen_ai.usage.output_tokens": completion.generated,
        "gen_ai.usage.cache_read.input_tokens": completion.prompt_cached,
        "error.type": error_type(completion),
        "llamacpp.outcome": completion.outcome.value,
        "llamacpp.slot.id": completion.slot,
        "llamacpp.task.id": completion.task,
        "llamacpp.prompt.computed_tokens": completion.prompt_computed,
        "llamacpp.prefill.tokens_per_second": rate(completion.prompt_computed, completion.prefill_s),
        "llamacpp.decode.tokens_per_second": completion.tokens_per_second,
        "llamacpp.draft.tokens": completion.draft_generated,
        "llamacpp.draft.accepted_tokens": completion.draft_accepted,
        "llamacpp.context.tokens": completion.context_tokens,
        "llamacpp.context.shifts": completion.context_shifts or None,
        "llamacpp.truncated": completion.truncated,
        "llamacpp.choice.is_child": completion.is_child or None,
        "llamacpp.prefill.compute_time": completion.prefill_s if call is not None else None,
        "llamacpp.decode.compute_time": completion.decode_s if call is not None else None,
        "llamacpp.queue.estimated": None if completion.queue_s is None else True,
    }
    if completion.gpu is not None:
        attributes.update(_gpu(completion.gpu))
    return {key: value for key, value in attributes.items() if value is not None}


def _gpu(gpu: RequestGpu) -> dict[str, float | bool | None]:
    """Energy and utilisation; that a figure is a share or an estimate stands beside it."""
    return {
        "llamacpp.energy.joules": gpu.energy_j,
        "llamacpp.energy.prefill_joules": gpu.prefill_j,
        "llamacpp.energy.decode_joules": gpu.decode_j,
        "llamacpp.energy.joules_per_output_token": gpu.output_j_per_token,
        "llamacpp.energy.shared": gpu.shared or None,
        "llamacpp.energy.integrated": gpu.integrated or None,
        "llamacpp.energy.devices_assumed": gpu.assumed or None,
        "llamacpp.energy.cost": gpu.cost,
        "llamacpp.decode.bandwidth_utilization": gpu.bandwidth_utilization,
        "llamacpp.prefill.flops_utilization": gpu.flops_utilization,
    }
