"""The generated pages are current, and the span table equals real spans."""

from __future__ import annotations

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from llamatel.metrics import METRICS
from llamatel.records import Access, GroupedCall, ObservedRequest, Outcome, RecomputeCause
from llamatel.telemetry.reference import DOCS, pages
from llamatel.telemetry.request_spans import Spans
from llamatel.telemetry.span_table import ATTRIBUTES, OBSERVED, SPANS
from tests.samples import SERVER, completion, cut_short

ACCESS = Access(1.0, 2.0, "POST", "/api/chat", 200, "10.0.0.9")


def test_reference_pages_are_current() -> None:
    for name, text in pages().items():
        assert (DOCS / name).read_text() == text, f"docs/{name} is stale: make docs"


def test_reference_has_every_metric() -> None:
    assert not [row.name for row in METRICS if f"| `{row.name}` |" not in pages()["metrics.md"]]


def test_span_table_equals_the_spans() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    spans = Spans(provider.get_tracer("test"))
    reuse = {"prompt_reusable": 20, "prompt_recomputed": 10, "recompute_s": 0.2}
    spans.emit(
        completion(
            draft_generated=4, draft_accepted=3, context_shifts=1, is_child=True, truncated=True,
            recompute_cause=RecomputeCause.NO_CHECKPOINT, **reuse, access=ACCESS,
        )
    )  # fmt: skip
    spans.emit(cut_short(Outcome.CONTEXT_FULL), share=0.5, has_usage=False, clock_offset_s=-1.5)
    spans.emit(GroupedCall(SERVER, None, 4, 100.0, 101.0, Outcome.OK, operation="rerank", task_count=3))
    provider.shutdown()
    written = exporter.get_finished_spans()
    found = {name: type(value) for span in written for name, value in (span.attributes or {}).items()}
    assert set(found) == {row.name for row in ATTRIBUTES}
    types = {"string": str, "int": int, "double": float, "boolean": bool}
    assert found == {row.name: types[row.type.partition(",")[0]] for row in ATTRIBUTES}
    assert {span.name for span in written} - {row.name for row in SPANS} == {"generate_content tiny", "rerank tiny"}
    assert {(span.kind.name) for span in written} == {row.kind for row in SPANS}


def test_span_table_observed_request() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    seen = ObservedRequest(SERVER, 2, 17, 100.0, 104.5, longest_s=6.25, prompt_tokens=30, decoded=90)
    Spans(provider.get_tracer("test")).emit_observed(seen)
    provider.shutdown()
    [span] = exporter.get_finished_spans()
    attributes = dict(span.attributes or {})
    assert (span.name, span.kind.name, span.start_time, span.end_time) == (
        "observed tiny", "INTERNAL", 100_000_000_000, 104_500_000_000,
    )  # fmt: skip
    assert {row.name for row in OBSERVED} < set(attributes) <= {row.name for row in (*OBSERVED, *ATTRIBUTES)}
    assert (attributes["llamacpp.observed"], attributes["llamacpp.observed.longest"]) == ("polling", 6.25)
    assert "llamacpp.outcome" not in attributes
    assert "gen_ai.operation.name" not in attributes  # so that no query for requests takes it for one
