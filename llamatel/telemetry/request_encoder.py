"""Writes the spans of requests directly to the export queue, if only OTLP needs them.

The SDK's sampler and id generator decide as for any other span. Once an application adds a span processor to our
provider, the SDK creates the spans again, so its processor gets them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from opentelemetry.context import Context
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    TraceFlags,
    get_current_span,
    set_span_in_context,
)

from llamatel.telemetry import otlp_encoding
from llamatel.telemetry.otlp_encoding import Event
from llamatel.telemetry.span_export import SpanExport
from llamatel.tracing.span_values import unix_ns

_LIMITS = (
    "OTEL_ATTRIBUTE_COUNT_LIMIT", "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "OTEL_SPAN_EVENT_COUNT_LIMIT", "OTEL_SPAN_LINK_COUNT_LIMIT",
    "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT", "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT",
)  # fmt: skip
"""If one of these is set, the SDK creates the spans and applies it."""
_ROOT = Context()
_RANDOM_TRACE_ID = 2
"""W3C Trace Context level 2, a flag of the trace id."""


class RequestSpan(NamedTuple):
    """The span of a request, and its phases as its children. Times are Unix seconds."""

    name: str
    kind: SpanKind
    attributes: Mapping[str, Any]
    started_at: float
    ended_at: float
    phases: Sequence[tuple[str, float, float]] = ()
    """Name, start and end."""
    links: Sequence[Link] = ()
    events: Sequence[Event] = ()
    error: str | None = None
    """Description of status ERROR."""


class OwnTracerProvider(TracerProvider):
    """The provider that llamatel makes; it remembers whether the application added a processor."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(shutdown_on_exit=False, **arguments)
        self.shared = False
        """Whether spans have other readers than the export queue."""

    def add_span_processor(self, span_processor: SpanProcessor) -> None:
        """Add a processor of the application's."""
        self.shared = True
        super().add_span_processor(span_processor)

    def add_export(self, span_processor: SpanProcessor) -> None:
        """Add the processor of the export queue."""
        super().add_span_processor(span_processor)


class RequestEncoder:
    """Samples, encodes and queues the spans of a request."""

    def __init__(self, provider: OwnTracerProvider, export: SpanExport) -> None:
        self._provider = provider
        self._export = export
        self._limited = any(os.environ.get(variable) for variable in _LIMITS)

    @property
    def usable(self) -> bool:
        """Whether nothing but the export queue wants the spans."""
        return not (self._provider.shared or self._limited)

    def write(self, request: RequestSpan, parent: Context | None) -> Context:
        """Queue the spans of a request; returns a context with the request's span."""
        above = get_current_span(parent).get_span_context() if parent is not None else None
        if above is not None and not above.is_valid:
            above = None
        ids = self._provider.id_generator
        trace_id = ids.generate_trace_id() if above is None else above.trace_id
        decision = self._provider.sampler.should_sample(
            _ROOT if parent is None else parent, trace_id, request.name, request.kind, request.attributes, request.links
        )
        sampled = decision.decision is Decision.RECORD_AND_SAMPLE
        flags = int(sampled) | (_RANDOM_TRACE_ID if above is None or above.trace_flags & _RANDOM_TRACE_ID else 0)
        context = SpanContext(
            trace_id, ids.generate_span_id(), is_remote=False, trace_flags=TraceFlags(flags),
            trace_state=decision.trace_state,
        )  # fmt: skip
        if sampled:
            spans = [
                otlp_encoding.span(
                    SpanContext(trace_id, ids.generate_span_id(), False, context.trace_flags, context.trace_state),
                    context, phase, SpanKind.INTERNAL, times=(unix_ns(start), unix_ns(end)), attributes={},
                )
                for phase, start, end in request.phases
            ]  # fmt: skip
            spans.append(
                otlp_encoding.span(
                    context, above, request.name, request.kind,
                    times=(unix_ns(request.started_at), unix_ns(request.ended_at)),
                    attributes=decision.attributes or request.attributes,
                    events=request.events, links=request.links, error=request.error,
                )
            )  # fmt: skip
            self._export.put(b"".join(spans), len(spans))
        return set_span_in_context(NonRecordingSpan(context), _ROOT if parent is None else parent)
