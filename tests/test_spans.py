"""Completions as spans."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags, get_current_span
from opentelemetry.trace.propagation import set_span_in_context

from llamatel.records import Completion, Outcome, ServerInfo
from llamatel.telemetry.request_spans import Spans
from tests.samples import START_TIME, completion, cut_short


class Written:
    """Spans, and what they wrote."""

    def __init__(self) -> None:
        self._kept = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._kept))
        self.spans = Spans(self.provider.get_tracer("tests"))

    def of(self, request: Completion) -> dict[str, ReadableSpan]:
        """The spans of one request, by name."""
        self._kept.clear()
        self.spans.emit(request)
        return {span.name: span for span in self._kept.get_finished_spans()}


@pytest.fixture
def written() -> Iterator[Written]:
    written = Written()
    yield written
    written.provider.shutdown()


def times(span: ReadableSpan) -> tuple[float, float]:
    """Start and end relative to the assignment of the slot."""
    assert span.start_time is not None
    assert span.end_time is not None
    return round(span.start_time / 1e9 - START_TIME, 6), round(span.end_time / 1e9 - START_TIME, 6)


def test_spans_phases_of_a_completed_request(written: Written) -> None:
    spans = written.of(completion())
    assert {name: times(span) for name, span in spans.items()} == {
        "generate_content tiny": (-0.25, 1.5),
        "queue": (-0.25, 0.0),
        "prefill": (0.0, 0.5),
        "decode": (0.5, 1.5),
    }
    root = spans.pop("generate_content tiny")
    assert root.kind is SpanKind.SERVER
    assert root.parent is None
    assert root.context is not None
    assert root.status.status_code is StatusCode.UNSET
    for child in spans.values():
        assert child.kind is SpanKind.INTERNAL
        assert child.parent == root.context
        assert child.context is not None
        assert child.context.trace_id == root.context.trace_id


def test_spans_attributes_of_a_completed_request(written: Written) -> None:
    root = written.of(completion(draft_generated=16, draft_accepted=8))["generate_content tiny"]
    assert dict(root.attributes or {}) == {
        "gen_ai.operation.name": "generate_content",
        "gen_ai.provider.name": "llama.cpp",
        "gen_ai.request.model": "tiny",
        "server.address": "127.0.0.1",
        "server.port": 8090,
        "gen_ai.usage.input_tokens": 40,
        "gen_ai.usage.output_tokens": 21,
        "gen_ai.usage.cache_read.input_tokens": 10,
        "llamacpp.outcome": "ok",
        "llamacpp.slot.id": 2,
        "llamacpp.task.id": 17,
        "llamacpp.prompt.computed_tokens": 30,
        "llamacpp.prefill.tokens_per_second": 60.0,
        "llamacpp.decode.tokens_per_second": 20.0,
        "llamacpp.draft.tokens": 16,
        "llamacpp.draft.accepted_tokens": 8,
        "llamacpp.context.tokens": 60,
        "llamacpp.truncated": False,
        "llamacpp.queue.estimated": True,
    }


def test_spans_unknown_values_are_absent(written: Written) -> None:
    request = cut_short(Outcome.CANCELLED, server=ServerInfo("unknown"), context_tokens=None, truncated=None)
    spans = written.of(request)
    assert list(spans) == ["generate_content"]
    root = spans["generate_content"]
    assert times(root) == (0.0, 1.5)
    assert root.status.status_code is StatusCode.UNSET
    assert dict(root.attributes or {}) == {
        "gen_ai.operation.name": "generate_content",
        "gen_ai.provider.name": "llama.cpp",
        "server.address": "unknown",
        "llamacpp.outcome": "cancelled",
        "llamacpp.slot.id": 2,
        "llamacpp.task.id": 17,
    }


def test_spans_no_queue_below_its_error(written: Written) -> None:
    assert "queue" not in written.of(completion(queue_s=0.0))
    assert "queue" not in written.of(completion(queue_s=0.00005))


def test_spans_embedding(written: Written) -> None:
    spans = written.of(cut_short(Outcome.OK))
    assert list(spans) == ["embeddings tiny"]


@pytest.mark.parametrize(
    ("outcome", "text", "error_type"),
    [
        (
            Outcome.ERROR,
            "request (600 tokens) exceeds the available context size (512 tokens), try increasing it",
            "exceed_context_size_error",
        ),
        (
            Outcome.ERROR,
            "input (900 tokens) is too large to process. increase the physical batch size",
            "input_too_large",
        ),
        (Outcome.ERROR, "the server ended with signal 9", "server_exited"),
        (Outcome.ERROR, "the server was stopped", "server_exited"),
        (Outcome.ERROR, "something new", "_OTHER"),
        (Outcome.CONTEXT_FULL, "Context size has been exceeded.", "context_full"),
    ],
)
def test_spans_error_has_llama_cpps_text(written: Written, outcome: Outcome, text: str, error_type: str) -> None:
    root = written.of(cut_short(outcome, text))["generate_content tiny"]
    assert (root.status.status_code, root.status.description) == (StatusCode.ERROR, text)
    assert (root.attributes or {})["error.type"] == error_type


def test_spans_emit_returns_the_context(written: Written) -> None:
    context = written.spans.emit(completion())
    assert get_current_span(context).get_span_context().is_valid


def test_spans_with_a_parent(written: Written) -> None:
    client = SpanContext(trace_id=7, span_id=9, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    context = written.spans.emit(completion(), set_span_in_context(NonRecordingSpan(client)))
    assert get_current_span(context).get_span_context().trace_id == 7


def test_spans_ignore_the_current_span(written: Written) -> None:
    with written.provider.get_tracer("tests").start_as_current_span("someone else's"):
        assert written.of(completion())["generate_content tiny"].parent is None


def test_spans_not_sampled() -> None:
    kept = InMemorySpanExporter()
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    context = Spans(provider.get_tracer("tests")).emit(completion())
    assert not get_current_span(context).get_span_context().trace_flags.sampled
    assert kept.get_finished_spans() == ()
    provider.shutdown()


def test_spans_phases_are_within_the_request(written: Written) -> None:
    spans = written.of(completion(first_token_at=START_TIME + 0.499997, ended_at=START_TIME + 1.499995, queue_s=None))
    assert times(spans["prefill"]) == (0.0, 0.499997)
    assert times(spans["decode"]) == (0.499997, 1.499995)
