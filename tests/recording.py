"""Spans kept in memory, for tests of the code that writes them."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from llamatel.records import ClientCall


class Recording:
    """A tracer and its finished spans."""

    def __init__(self) -> None:
        self._kept = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._kept))
        self.tracer = self.provider.get_tracer("tests")

    @property
    def spans(self) -> list[ReadableSpan]:
        """All finished spans, in the order in which they finished."""
        return list(self._kept.get_finished_spans())

    def named(self, name: str) -> ReadableSpan:
        """The one span of this name."""
        [found] = [span for span in self.spans if span.name == name]
        return found

    def parents(self) -> dict[str, str | None]:
        """The name of each span's parent, by the name of the span."""
        names = {span.context.span_id: span.name for span in self.spans if span.context is not None}
        return {span.name: names.get(span.parent.span_id) if span.parent is not None else None for span in self.spans}


class CallRecorder:
    """A sink that keeps calls; none is joined with a request."""

    def __init__(self) -> None:
        self.calls: list[ClientCall] = []

    def watches(self, server: object) -> bool:
        return False

    def call_started(self, key: object, call: Any) -> None:
        pass

    def call_dropped(self, key: object) -> None:
        pass

    def call_finished(self, call: ClientCall) -> None:
        self.calls.append(call)
        call.resolved(False)
