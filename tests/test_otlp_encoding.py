"""Our OTLP encoding of spans, compared with the SDK's encoder message by message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from llamatel.records import Call, Completion, Outcome
from llamatel.telemetry import otlp_encoding
from llamatel.telemetry.request_encoder import OwnTracerProvider, RequestEncoder
from llamatel.telemetry.request_spans import Spans
from llamatel.telemetry.span_export import SpanExport, _scope_key
from tests.samples import completion, cut_short
from tests.telemetry import Taking, export_to

ABOUT: dict[str, Any] = {"service.name": "s", "n": 1, "list": ("a", "b")}
REMOTE = SpanContext(7, 8, is_remote=True, trace_flags=TraceFlags(1), trace_state=TraceState([("a", "b")]))

LINKED = SpanContext(9, 10, is_remote=True)
"""The SDK's encoder leaves out the trace state of links; ours does not."""


def request(spans: Sequence[ReadableSpan]) -> ExportTraceServiceRequest:
    """The spans in our encoding."""
    scopes: dict[tuple[bytes, str], list[bytes]] = {}
    for one in spans:
        scopes.setdefault(_scope_key(one.instrumentation_scope), []).append(otlp_encoding.sdk_span(one))
    resource = spans[0].resource
    data = otlp_encoding.export_request(otlp_encoding.resource(resource.attributes), resource.schema_url, scopes)
    return ExportTraceServiceRequest.FromString(data)


def recorded(make: Any, **arguments: Any) -> list[ReadableSpan]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource(ABOUT, "https://a.schema"), **arguments)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    make(provider.get_tracer("scope", "1.0", "https://b.schema", {"k": "v"}))
    provider.shutdown()
    return list(exporter.get_finished_spans())


def test_sdk_span_equals_the_sdk_encoder() -> None:
    def make(tracer: Any) -> None:
        parent = set_span_in_context(NonRecordingSpan(REMOTE))
        span = tracer.start_span(
            "näme", parent, SpanKind.CLIENT,
            {"s": "x" * 300, "i": 5, "neg": -1, "big": 2**62, "f": 0.5, "b": True, "no": False, "l": ("a", "ü")},
            [Link(LINKED, {"why": "so", "n": 2}), Link(SpanContext(1, 2, is_remote=False))], start_time=1,
        )  # fmt: skip
        span.add_event("event", {"m": "x", "n": 1}, 5)
        span.set_status(Status(StatusCode.ERROR, "bad"))
        span.end(2**62)
        tracer.start_span("ok", kind=SpanKind.PRODUCER).end()
        fine = tracer.start_span("fine", kind=SpanKind.CONSUMER)
        fine.set_status(Status(StatusCode.OK))
        fine.end()

    spans = recorded(make)
    assert request(spans) == encode_spans(spans)


def test_sdk_span_dropped_counts_equal_the_sdk_encoder() -> None:
    from opentelemetry.sdk.trace import SpanLimits

    def make(tracer: Any) -> None:
        span = tracer.start_span("a", attributes={str(n): n for n in range(200)}, links=[Link(LINKED)] * 5)
        for _ in range(5):
            span.add_event("e")
        span.end()

    spans = recorded(make, span_limits=SpanLimits(max_attributes=3, max_events=2, max_links=1))
    assert request(spans) == encode_spans(spans)


VALUES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])), st.integers(-(2**63), 2**63 - 1), st.booleans(),
    st.floats(allow_nan=False), st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=3).map(tuple),
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), VALUES, max_size=6),
    st.text(st.characters(exclude_categories=["Cs"])),
)
def test_sdk_span_any_attributes_equal_the_sdk_encoder(attributes: dict[str, Any], name: str) -> None:
    spans = recorded(lambda tracer: tracer.start_span(name, attributes=attributes).end())
    assert request(spans) == encode_spans(spans)


def test_sdk_span_lone_surrogates_are_replaced() -> None:
    def make(tracer: Any) -> None:
        span = tracer.start_span("a\udcff", attributes={"k\udcff": "v\ud800", "fine": "yes"})
        span.add_event("e", {"m": "\udc00"})
        span.set_status(Status(StatusCode.ERROR, "\udc01"))
        span.end()

    [one] = request(recorded(make)).resource_spans[0].scope_spans[0].spans
    assert one.name == "a?"
    assert {pair.key: pair.value.string_value for pair in one.attributes} == {"k?": "v?", "fine": "yes"}
    assert one.status.message == "?"


IN_PROCESS = Call("chat", attributes={"gen_ai.request.seed": 1}, traceparent=None, error_type="Oops")


@pytest.mark.parametrize(
    "done",
    [
        completion(),
        completion(draft_generated=4, draft_accepted=3, context_shifts=1, is_child=True, truncated=True),
        cut_short(Outcome.CONTEXT_FULL, "Context size has been exceeded."),
        cut_short(Outcome.CANCELLED),
        cut_short(Outcome.ERROR, "it broke", call=IN_PROCESS),
    ],
)
def test_request_encoder_equals_the_sdk_path(done: Completion, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both paths write the same spans, but for their ids."""
    written = []
    for encoded in (True, False):
        transport = Taking()
        export = export_to(transport)
        provider = OwnTracerProvider(resource=Resource({}))
        from llamatel.telemetry.span_export import OtlpSpanProcessor

        provider.add_export(OtlpSpanProcessor(export))
        monkeypatch.setattr(provider, "id_generator", Numbers())
        tracer = provider.get_tracer("llamatel")
        Spans(tracer, RequestEncoder(provider, export) if encoded else None).emit(
            done, set_span_in_context(NonRecordingSpan(REMOTE)), [Link(SpanContext(1, 2, is_remote=False))]
        )
        assert export.flush(10)
        [message] = transport.messages
        spans = ExportTraceServiceRequest.FromString(message).resource_spans[0].scope_spans[0].spans
        written.append(sorted(map(comparable, spans)))
    assert written[0] == written[1]
    assert export.exported == len(written[0])


def comparable(span: Any) -> str:
    span.ClearField("span_id")
    if span.name in ("queue", "prefill", "decode"):
        span.ClearField("parent_span_id")
    return str(span)


class Numbers:
    """Sequential ids."""

    def __init__(self) -> None:
        self._next = 100

    def generate_span_id(self) -> int:
        self._next += 1
        return self._next

    generate_trace_id = generate_span_id

    def is_trace_id_random(self) -> bool:
        return True


def test_request_encoder_off_with_application_span_processor() -> None:
    export = export_to(Taking())
    provider = OwnTracerProvider(resource=Resource({}))
    encoder = RequestEncoder(provider, export)
    assert encoder.usable
    kept = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    assert not encoder.usable
    Spans(provider.get_tracer("llamatel"), encoder).emit(completion())
    assert len(kept.get_finished_spans()) == 4


def test_request_encoder_uses_the_sampler() -> None:
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased

    export = export_to(Taking())
    provider = OwnTracerProvider(resource=Resource({}), sampler=ParentBased(ALWAYS_OFF))
    spans = Spans(provider.get_tracer("llamatel"), RequestEncoder(provider, export))
    spans.emit(completion())
    assert export.flush(0.1) or export.exported == 0
    spans.emit(completion(), set_span_in_context(NonRecordingSpan(REMOTE)))
    assert export.flush(10)
    assert export.exported == 4


def test_span_export_counts_losses() -> None:
    transport = Taking()
    export: SpanExport = export_to(transport, queue_size=10)
    provider = OwnTracerProvider(resource=Resource({}))
    spans = Spans(provider.get_tracer("llamatel"), RequestEncoder(provider, export))
    transport.hold.clear()
    for _ in range(100):
        spans.emit(completion())
    transport.hold.set()
    assert export.flush(10)
    assert export.exported + sum(export.lost().values()) == 400
    assert export.lost()["queue_full"] >= 380
