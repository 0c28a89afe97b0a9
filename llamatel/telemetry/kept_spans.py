"""The last spans of this process in memory, for ``last_trace()`` and ``report()``."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.trace import SpanKind

KEPT = 5000
"""Default number of kept spans: at most some 10 MiB."""


@dataclass(frozen=True, slots=True)
class KeptSpan:
    """A finished span. Times are Unix seconds."""

    trace_id: str
    span_id: int
    parent_id: int | None
    name: str
    kind: str
    started_at: float
    ended_at: float
    failed: bool
    attributes: Mapping[str, object]
    linked: frozenset[str] = frozenset()
    """Traces that its links refer to."""
    reason: str | None = None
    """The status description of a failed span."""


class KeptSpans(SpanProcessor):
    """Keeps the last ``number`` finished spans, by reference."""

    def __init__(self, number: int) -> None:
        self._lock = threading.Lock()
        self._closed = False
        self._spans: deque[ReadableSpan] = deque(maxlen=number)

    def on_end(self, span: ReadableSpan) -> None:
        """Keep a span; the oldest is dropped when there is no room."""
        with self._lock:
            if not self._closed:
                self._spans.append(span)

    def close(self) -> None:
        """Stop keeping spans: a processor cannot be removed from the application's provider."""
        with self._lock:
            self._closed = True

    def trace(self, trace_id: str | None = None) -> tuple[KeptSpan, ...]:
        """The spans of a trace by their start; without an id, of the trace that finished last. Empty if there is none.

        A trace that links to a kept one is not chosen, such as a request that links to the call it may belong to.
        """
        with self._lock:
            spans = list(self._spans)
        kept = [_kept(span) for span in spans]
        if trace_id is None and kept:
            known = {span.trace_id for span in kept}
            follows = {span.trace_id for span in kept if span.linked & known}
            trace_id = max(kept, key=lambda span: (span.trace_id not in follows, span.ended_at)).trace_id
        return tuple(sorted((span for span in kept if span.trace_id == trace_id), key=_place))

    def failed_calls(self, number: int) -> tuple[KeptSpan, ...]:
        """The last client calls that failed, one for each reason."""
        with self._lock:
            spans = list(self._spans)
        failed = {
            span.status.description: _kept(span)
            for span in spans
            if span.kind is SpanKind.CLIENT and not span.status.is_ok and span.status.description
        }
        return tuple(failed.values())[-number:]


def _place(span: KeptSpan) -> tuple[float, float]:
    return span.started_at, -span.ended_at


def _kept(span: ReadableSpan) -> KeptSpan:
    context = span.get_span_context()
    trace_id = f"{context.trace_id:032x}" if context is not None else ""
    return KeptSpan(
        trace_id=trace_id,
        span_id=context.span_id if context is not None else 0,
        parent_id=span.parent.span_id if span.parent is not None else None,
        name=span.name,
        kind=span.kind.name,
        started_at=(span.start_time or 0) / 1e9,
        ended_at=(span.end_time or 0) / 1e9,
        failed=not span.status.is_ok,
        attributes=dict(span.attributes or {}),
        linked=frozenset(f"{link.context.trace_id:032x}" for link in span.links) - {trace_id},
        reason=None if span.status.is_ok else span.status.description,
    )


def in_order(spans: Sequence[KeptSpan]) -> list[tuple[KeptSpan, int]]:
    """Each span with its depth, children after their parent; one whose parent is missing is at the root."""
    known = {span.span_id for span in spans}
    children: dict[int | None, list[KeptSpan]] = {}
    for span in spans:
        children.setdefault(span.parent_id if span.parent_id in known else None, []).append(span)
    rows: list[tuple[KeptSpan, int]] = []
    waiting = [(span, 0) for span in reversed(children.get(None, []))]
    while waiting:
        span, depth = waiting.pop()
        rows.append((span, depth))
        waiting += [(child, depth + 1) for child in reversed(children.get(span.span_id, []))]
    return rows
