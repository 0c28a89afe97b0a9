"""The metric table conforms to the semantic conventions (docs/semconv.json), and that file to Python's package."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import pytest
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics, hw_metrics, process_metrics

from llamatel.metrics import METRICS, SERVER_ATTRIBUTES, Kind
from llamatel.records import Outcome
from llamatel.telemetry.request_spans import Spans
from llamatel.tracing.semconv import SCHEMA_URL
from tests.genai_conventions import DOCUMENT
from tests.parts import OtlpSink
from tests.recording import Recording
from tests.samples import completion, cut_short
from tests.telemetry import telemetry

INSTRUMENTS = {
    Kind.HISTOGRAM: "histogram", Kind.COUNTER: "counter", Kind.TOTAL: "counter", Kind.UP_DOWN: "updowncounter",
    Kind.GAUGE: "gauge",
}  # fmt: skip
OURS = ("llamacpp.", "llamatel.")


def test_metric_table_conforms_to_the_conventions() -> None:
    rows = {row.name: row for row in METRICS if not row.name.startswith(OURS)}
    assert set(rows) == set(DOCUMENT["metrics"])
    for name, row in rows.items():
        expected = DOCUMENT["metrics"][name]
        assert (INSTRUMENTS[row.kind], row.unit) == (expected["instrument"], expected["unit"]), name
        assert set(expected["required"]) <= {*row.attributes, *SERVER_ATTRIBUTES}, name


class Meter:
    """Records what the conventions' package would create."""

    def __init__(self) -> None:
        self.made: dict[str, tuple[str, str]] = {}

    def __getattr__(self, create: str) -> Any:
        kind = create.removeprefix("create_").removeprefix("observable_").replace("_", "").removesuffix("instrument")

        def made(name: str, *arguments: Any, unit: str = "", **options: Any) -> None:
            self.made[name] = (kind, unit or str(options.get("unit", "")) or _unit(arguments))

        return made


def _unit(arguments: tuple[Any, ...]) -> str:
    return next((str(one) for one in arguments if isinstance(one, str)), "")


@pytest.mark.parametrize(
    "module", [gen_ai_metrics, hw_metrics, process_metrics], ids=lambda module: str(module.__name__)
)
def test_semconv_document_agrees_with_the_python_package(module: ModuleType) -> None:
    meter = Meter()
    for name, create in inspect.getmembers(module, inspect.isfunction):
        if name.startswith("create_"):
            create(meter, *[()] * (len(inspect.signature(create).parameters) - 1))
    common = meter.made.keys() & DOCUMENT["metrics"].keys()
    assert common
    for name in common:
        expected = DOCUMENT["metrics"][name]
        assert meter.made[name] == (expected["instrument"], expected["unit"]), name


def test_scopes_have_the_schema_url(otlp_sink: OtlpSink) -> None:
    assert DOCUMENT["versions"]["semantic-conventions"] in SCHEMA_URL
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    with telemetry(otlp_endpoint=otlp_sink.endpoint, otlp_protocol="http/protobuf") as running:
        running.send(completion())
        assert running.pipeline.shutdown(10)
    for request in otlp_sink.requests:
        if request.path == "/v1/traces":
            traces = ExportTraceServiceRequest.FromString(request.body)
            assert traces.resource_spans[0].scope_spans[0].schema_url == SCHEMA_URL
        else:
            metrics = ExportMetricsServiceRequest.FromString(request.body)
            assert metrics.resource_metrics[0].scope_metrics[0].schema_url == SCHEMA_URL


def test_latency_attributes_are_optional() -> None:
    recording = Recording()
    Spans(recording.tracer).emit(completion())
    Spans(recording.tracer, latency=True).emit(completion())
    Spans(recording.tracer, latency=True).emit(cut_short(Outcome.CANCELLED))
    without, full, cut = (
        {name: value for name, value in (span.attributes or {}).items() if name.startswith("gen_ai.latency.")}
        for span in recording.spans
        if span.parent is None
    )
    assert without == {}
    assert full == {
        "gen_ai.latency.time_in_queue": 0.25,
        "gen_ai.latency.time_to_first_token": 0.75,
        "gen_ai.latency.e2e": 1.75,
        "gen_ai.latency.time_in_model_prefill": 0.5,
        "gen_ai.latency.time_in_model_decode": 1.0,
        "gen_ai.latency.time_in_model_inference": 1.5,
    }
    assert cut == {"gen_ai.latency.e2e": 1.5}
