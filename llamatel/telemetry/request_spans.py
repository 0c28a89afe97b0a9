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
    NoOpTracer,
    ProxyTracer,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    get_current_span,
    get_tracer_provider,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from llamatel.records import Call, ClientCall, Completion, GroupedCall, ObservedRequest, Outcome, RequestGpu
from llamatel.telemetry.otlp_encoding import Event
from llamatel.telemetry.request_encoder import RequestEncoder, RequestSpan
from llamatel.telemetry.sdk_adapter import is_placeholder
from llamatel.tracing import openinference
from llamatel.tracing.joining import Origin
from llamatel.tracing.semconv import PROVIDER, error_type, operation
from llamatel.tracing.span_values import rate, unix_ns

_SHORTEST_QUEUE_S = 0.0001
"""Less is within the estimate's error and negligible."""
_SHORTEST_NETWORK_S = 0.002
"""Less is within the error of the log's clock."""
_ROOT = Context()
_PROPAGATOR = TraceContextTextMapPropagator()
_CANDIDATE = {"llamacpp.join": "candidate"}
"""Attribute of a link to a call that may be the same request."""


class Spans:
    """Writes the spans of requests with one tracer, or directly if only OTLP needs them."""

    def __init__(self, tracer: Tracer, encoder: RequestEncoder | None = None, *, latency: bool = False) -> None:
        """``latency``: add the ``gen_ai.latency.*`` attributes of vLLM and SGLang."""
        self._tracer = tracer
        self._encoder = encoder
        self._latency = latency

    def emit(
        self,
        completion: Completion,
        parent: Context | None = None,
        links: Sequence[Link] = (),
        share: float = 1.0,
        *,
        has_usage: bool = True,
        clock_offset_s: float = 0.0,
    ) -> Context:
        """Write a request's spans and return the context that holds its SERVER span, for exemplars.

        ``parent`` is the context that the request came from; without one, in the request either, it starts a new trace,
        whatever span is current in this thread. ``links``: spans that it may belong to.
        ``share`` is the share of requests that get spans, below 1 under overload. ``has_usage``: whether it has the
        token counts, which a trace has once. ``clock_offset_s``: by which the times of ``completion`` were changed.
        """
        call = completion.call
        if parent is None and call is not None:
            parent = _caller(call)
        attributes = _attributes(completion)
        if not has_usage:
            attributes = {name: value for name, value in attributes.items() if not name.startswith("gen_ai.usage.")}
            # If an LLM span has an LLM span below it, Phoenix leaves the upper one's tokens out of its sums.
            attributes[openinference.KIND] = openinference.CHAIN
        if self._latency:
            attributes.update(_latency(completion))
        if clock_offset_s:
            attributes["llamatel.clock.offset"] = clock_offset_s
        if share < 1.0:
            attributes["llamatel.sampling.ratio"] = share
        model = completion.server.model
        name = str(attributes["gen_ai.operation.name"])
        error = (completion.error or completion.outcome.value) if "error.type" in attributes else None
        events = []
        if error is not None and call is not None and call.error_type is not None:
            exception = {"exception.type": call.error_type, "exception.message": completion.error or ""}
            events.append(Event("exception", unix_ns(completion.ended_at), exception))
        request = RequestSpan(
            f"{name} {model}" if model else name,
            SpanKind.SERVER if call is None else SpanKind.INTERNAL,
            attributes, *_bounds(completion), _phases(completion), links, events, error,
        )  # fmt: skip
        if self._encoder is not None and self._encoder.usable:
            return self._encoder.write(request, parent)
        return self._write(request, parent)

    def _write(self, request: RequestSpan, parent: Context | None) -> Context:
        """As ``RequestEncoder.write``, with the SDK's spans."""
        above = _ROOT if parent is None else parent
        span = self._tracer.start_span(
            request.name, context=above, kind=request.kind, attributes=request.attributes, links=request.links,
            start_time=unix_ns(request.started_at),
        )  # fmt: skip
        context = set_span_in_context(span, above)
        if span.is_recording():
            for phase, start, end in request.phases:
                self._tracer.start_span(phase, context=context, start_time=unix_ns(start)).end(unix_ns(end))
            if request.error is not None:
                span.set_status(Status(StatusCode.ERROR, request.error))
            for event in request.events:
                span.add_event(event.name, event.attributes, event.at_ns)
            span.end(unix_ns(request.ended_at))
        return context

    def _leads_nowhere(self) -> bool:
        """Whether no tracer provider gets the spans, at this moment."""
        if isinstance(self._tracer, NoOpTracer):
            return True
        return isinstance(self._tracer, ProxyTracer) and is_placeholder(get_tracer_provider())

    def emit_observed(self, request: ObservedRequest) -> None:
        """Write the span of a request that was only observed in its slot: the time in which it certainly ran."""
        server = request.server
        known: dict[str, str | int | float | None] = {
            **server.attributes,
            "gen_ai.provider.name": PROVIDER,
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
        """``emit`` below the client call of the request, or linked to calls that it may belong to.

        Below a call the server's spans start no earlier than it was sent, and the time between client and server is
        written as parts of the call. The times of one trace are by one clock, the client's. A call that was not sampled
        leaves its request unsampled.
        """
        parent = origin.parent
        if parent is None and not origin.candidates and completion.call is None and self._leads_nowhere():
            return _ROOT
        if parent is not None and isinstance(parent.span, Context):
            above, offset = parent.span, parent.clock_offset_s
            completion = _after(completion, parent.sent_at)
            if offset:
                completion = _shifted(completion, -offset)
                parent = replace(parent, sent_at=parent.sent_at - offset, ended_at=parent.ended_at - offset)
            context = self.emit(completion, above, share=share, has_usage=not parent.has_usage, clock_offset_s=offset)
            if get_current_span(context).get_span_context().trace_flags.sampled:
                for name, start, end in _between(parent, completion):
                    self._tracer.start_span(name, context=above, start_time=unix_ns(start)).end(unix_ns(end))
            return context
        contexts = [call.span for call in origin.candidates if isinstance(call.span, Context)]
        callers = [get_current_span(context).get_span_context() for context in contexts]
        if callers and not any(caller.trace_flags.sampled for caller in callers):
            return self.emit(completion, contexts[0], share=share)
        return self.emit(completion, links=[Link(caller, _CANDIDATE) for caller in callers], share=share)


def _after(completion: Completion, sent_at: float) -> Completion:
    """The request with times after it was sent: its queue starts no earlier, and the log's clock may be late."""
    completion = _shifted(completion, max(0.0, sent_at - completion.started_at))
    queue = completion.queue_s
    return replace(completion, queue_s=None if queue is None else min(queue, completion.started_at - sent_at))


def _shifted(completion: Completion, seconds: float) -> Completion:
    """A request at other times."""
    first, access = completion.first_token_at, completion.access
    if access is not None:
        access = replace(access, started_at=access.started_at + seconds, ended_at=access.ended_at + seconds)
    return replace(
        completion,
        started_at=completion.started_at + seconds,
        ended_at=completion.ended_at + seconds,
        first_token_at=None if first is None else first + seconds,
        access=access,
    )


def _between(call: ClientCall, completion: Completion) -> list[tuple[str, float, float]]:
    """The time between client and server: name, start, end (Unix seconds)."""
    before = "wait" if completion.queue_s is None else "network.request"
    parts = [(before, call.sent_at, completion.arrived_at)]
    # A stream arrives while it is generated.
    if call.headers_at is None and call.outcome is Outcome.OK and call.tasks == completion.tasks:
        parts.append(("network.response", completion.ended_at, call.ended_at))
    return [part for part in parts if part[2] - part[1] > _SHORTEST_NETWORK_S]


def _caller(call: Call) -> Context | None:
    """The context of the span that made the call; None if there was none."""
    if call.traceparent is None:
        return None
    found = _PROPAGATOR.extract({"traceparent": call.traceparent}, _ROOT)
    about = get_current_span(found).get_span_context()
    if not about.is_valid:
        return None
    about = SpanContext(about.trace_id, about.span_id, is_remote=False, trace_flags=about.trace_flags)
    return set_span_in_context(NonRecordingSpan(about), _ROOT)


def span_count(completion: Completion) -> int:
    """How many spans a request has."""
    return 1 + len(_phases(completion))


def _bounds(completion: Completion) -> tuple[float, float]:
    """Start and end (Unix seconds); those of a program in front of llama-server, if known."""
    start, end, access = completion.arrived_at, completion.ended_at, completion.access
    return (start, end) if access is None else (min(start, access.started_at), max(end, access.ended_at))


def _phases(completion: Completion) -> list[tuple[str, float, float]]:
    """The known phases of a request: name, start, end (Unix seconds).

    The log's times are rounded, so a phase could exceed its request by some microseconds: it is cut there.
    """
    if completion.call is not None:
        return [(phase.name, phase.started_at, phase.ended_at) for phase in completion.call.phases]
    phases = []
    if completion.access is not None and (completion.outside_s or 0.0) > _SHORTEST_QUEUE_S:
        phases.append(("outside llama-server", completion.access.started_at, completion.arrived_at))
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
    """All attributes of a request; set when the span starts, so that samplers see them."""
    server = completion.server
    call = completion.call
    attributes: dict[str, str | int | float | bool | tuple[str, ...] | None] = {
        **(call.attributes if call is not None else {}),
        **server.attributes,
        "gen_ai.operation.name": operation(completion),
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.usage.input_tokens": completion.prompt_tokens,
        "gen_ai.usage.output_tokens": completion.generated,
        "gen_ai.usage.cache_read.input_tokens": completion.prompt_cached,
        "error.type": error_type(completion),
        "llamacpp.outcome": completion.outcome.value,
        "llamacpp.slot.id": completion.slot,
        "llamacpp.task.id": completion.task,
        "llamacpp.prompt.computed_tokens": completion.prompt_computed,
        "llamacpp.prompt.reusable_tokens": completion.prompt_reusable,
        "llamacpp.prompt.recomputed_tokens": completion.prompt_recomputed or None,
        "llamacpp.prompt.recompute_time": completion.recompute_s or None,
        "llamacpp.prompt.recompute_cause": cause.value if (cause := completion.recompute_cause) is not None else None,
        "llamacpp.prefill.tokens_per_second": rate(completion.prompt_computed, completion.prefill_s),
        "llamacpp.decode.tokens_per_second": completion.tokens_per_second,
        "llamacpp.draft.tokens": completion.draft_generated,
        "llamacpp.draft.accepted_tokens": completion.draft_accepted,
        "llamacpp.context.tokens": completion.context_tokens,
        "llamacpp.context.shifts": completion.context_shifts or None,
        "llamacpp.truncated": completion.truncated,
        "llamacpp.choice.is_child": completion.is_child or None,
        "llamacpp.request.tasks": completion.tasks if isinstance(completion, GroupedCall) else None,
        "llamacpp.prefill.compute_time": completion.prefill_s if call is not None else None,
        "llamacpp.decode.compute_time": completion.decode_s if call is not None else None,
        "llamacpp.queue.estimated": None if completion.queue_s is None else True,
    }
    if (access := completion.access) is not None:
        attributes["http.request.method"] = access.method
        attributes["url.path"] = access.path
        attributes["http.response.status_code"] = access.status
        attributes["client.address"] = access.client
        attributes["llamacpp.outside.duration"] = completion.outside_s
    if completion.gpu is not None:
        attributes.update(_gpu(completion.gpu))
    return {key: value for key, value in attributes.items() if value is not None}


def _latency(completion: Completion) -> dict[str, float]:
    """Times under the names that vLLM and SGLang use (docs/semconv.md); seconds."""
    prefill, decode = completion.prefill_s, completion.decode_s
    known = {
        "gen_ai.latency.time_in_queue": completion.queue_s,
        "gen_ai.latency.time_to_first_token": completion.time_to_first_token_s,
        "gen_ai.latency.e2e": completion.duration_s,
        "gen_ai.latency.time_in_model_prefill": prefill,
        "gen_ai.latency.time_in_model_decode": decode,
        "gen_ai.latency.time_in_model_inference": None if prefill is None or decode is None else prefill + decode,
    }
    return {name: seconds for name, seconds in known.items() if seconds is not None}


def _gpu(gpu: RequestGpu) -> dict[str, float | bool | None]:
    """Energy and utilisation, with an attribute if a value is a share or an estimate."""
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
