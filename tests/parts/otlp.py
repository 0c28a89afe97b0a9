"""An OTLP/HTTP receiver that keeps received data for tests."""

from __future__ import annotations

import gzip
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_UNSPECIFIED, AggregationTemporality
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric as MetricMessage
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from .processes import wait_until

Attributes = Mapping[str, Any]


@dataclass(frozen=True)
class SinkEvent:
    """One event of a span."""

    name: str
    time_ns: int
    attributes: Attributes


@dataclass(frozen=True)
class SinkSpan:
    """One received span. Ids are lower-case hex; ``parent_id`` is empty for a root."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: str
    """INTERNAL, SERVER, CLIENT, PRODUCER or CONSUMER."""
    start_ns: int
    end_ns: int
    status: str
    """UNSET, OK or ERROR."""
    status_message: str
    attributes: Attributes
    events: tuple[SinkEvent, ...]
    links: tuple[tuple[str, str], ...]
    """Trace id and span id of each."""
    resource: Attributes
    scope: str

    @property
    def seconds(self) -> float:
        """Its duration."""
        return (self.end_ns - self.start_ns) / 1e9


@dataclass(frozen=True)
class SinkPoint:
    """One data point of a metric. A number has ``value``; a histogram has the other fields, and no ``value``."""

    attributes: Attributes
    time_ns: int
    start_ns: int
    value: float | int | None = None
    count: int = 0
    sum: float = 0.0
    bounds: tuple[float, ...] = ()
    buckets: tuple[int, ...] = ()
    exemplars: tuple[tuple[str, float], ...] = ()
    """Trace id and value of each."""


@dataclass(frozen=True)
class SinkMetric:
    """One received metric of one export."""

    name: str
    unit: str
    description: str
    kind: str
    """sum, gauge, histogram or exponential_histogram."""
    monotonic: bool
    temporality: str
    """CUMULATIVE, DELTA or UNSPECIFIED."""
    points: tuple[SinkPoint, ...]
    resource: Attributes
    scope: str


@dataclass(frozen=True)
class SinkRequest:
    """One received HTTP request, with any response status."""

    path: str
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes = field(repr=False)
    """Unpacked."""
    status: int
    """The response's status."""


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return tuple(_value(item) for item in value.array_value.values)
    if kind == "kvlist_value":
        return _attributes(value.kvlist_value.values)
    return getattr(value, kind)


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _spans(body: bytes) -> Iterator[SinkSpan]:
    for resource_spans in ExportTraceServiceRequest.FromString(body).resource_spans:
        resource = _attributes(resource_spans.resource.attributes)
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                yield SinkSpan(
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    name=span.name,
                    kind=SpanMessage.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
                    start_ns=span.start_time_unix_nano,
                    end_ns=span.end_time_unix_nano,
                    status=Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
                    status_message=span.status.message,
                    attributes=_attributes(span.attributes),
                    events=tuple(SinkEvent(e.name, e.time_unix_nano, _attributes(e.attributes)) for e in span.events),
                    links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
                    resource=resource,
                    scope=scope_spans.scope.name,
                )


def _points(metric: MetricMessage, kind: str) -> Iterator[SinkPoint]:
    for point in getattr(metric, kind).data_points:
        numbers: dict[str, Any] = {}
        if kind in ("sum", "gauge"):
            which = point.WhichOneof("value")
            numbers["value"] = getattr(point, which) if which else None
        elif kind == "histogram":
            numbers["bounds"], numbers["buckets"] = tuple(point.explicit_bounds), tuple(point.bucket_counts)
        if "histogram" in kind:
            numbers["count"], numbers["sum"] = point.count, point.sum
        yield SinkPoint(
            attributes=_attributes(point.attributes),
            time_ns=point.time_unix_nano,
            start_ns=point.start_time_unix_nano,
            exemplars=tuple((e.trace_id.hex(), e.as_double or float(e.as_int)) for e in point.exemplars),
            **numbers,
        )


def _metrics(body: bytes) -> Iterator[SinkMetric]:
    for resource_metrics in ExportMetricsServiceRequest.FromString(body).resource_metrics:
        resource = _attributes(resource_metrics.resource.attributes)
        for scope_metrics in resource_metrics.scope_metrics:
            for metric in scope_metrics.metrics:
                kind = metric.WhichOneof("data")
                if kind is None:
                    continue
                data = getattr(metric, kind)
                number = getattr(data, "aggregation_temporality", AGGREGATION_TEMPORALITY_UNSPECIFIED)
                temporality = AggregationTemporality.Name(number)
                yield SinkMetric(
                    name=metric.name,
                    unit=metric.unit,
                    description=metric.description,
                    kind=kind,
                    monotonic=getattr(data, "is_monotonic", False),
                    temporality=temporality.removeprefix("AGGREGATION_TEMPORALITY_"),
                    points=tuple(_points(metric, kind)),
                    resource=resource,
                    scope=scope_metrics.scope.name,
                )


def _unpack(body: bytes, encoding: str) -> bytes:
    if encoding == "gzip":
        return gzip.decompress(body)
    if encoding == "deflate":
        return zlib.decompress(body)
    return body


class OtlpSink:
    """An OTLP/HTTP (protobuf) receiver on 127.0.0.1 that keeps received data. A context manager.

    ``status`` and ``delay`` (seconds before the response) can be changed while it runs, to simulate a receiver that is
    slow or refuses. Refused data is in ``requests`` but neither in ``spans()`` nor in ``metrics()``.
    """

    def __init__(self, port: int = 0, *, status: int = 200, delay: float = 0.0) -> None:
        self.status = status
        self.delay = delay
        self.paths: dict[str, int] = {}
        """Statuses of single paths, before ``status``."""
        self.location = ""
        """Location of a 3xx."""
        self.rejected = 0
        """Spans or data points that each response says were rejected."""
        self._requests: list[SinkRequest] = []
        self._closing = threading.Event()
        sink = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                packed = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                sink._closing.wait(sink.delay)
                status = sink.paths.get(self.path, sink.status)
                headers = {name.lower(): value for name, value in self.headers.items()}
                body = _unpack(packed, headers.get("content-encoding", ""))
                sink._requests.append(SinkRequest(self.path, headers, body, status))
                traces = self.path == "/v1/traces"
                response = ExportTraceServiceResponse() if traces else ExportMetricsServiceResponse()
                if sink.rejected:
                    partial = response.partial_success
                    setattr(partial, "rejected_spans" if traces else "rejected_data_points", sink.rejected)
                    partial.error_message = "too many\nattributes"
                answer = response.SerializeToString()
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "application/x-protobuf")
                    if sink.location:
                        self.send_header("Location", sink.location)
                    self.send_header("Content-Length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)
                except ConnectionError:  # the sender timed out, as intended by tests of a slow receiver
                    self.close_connection = True

            def log_message(self, *_: Any) -> None:
                """Requests are kept, not printed."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

        self._server = Server(("127.0.0.1", port), Handler)
        self.port = int(self._server.server_address[1])
        self.endpoint = f"http://127.0.0.1:{self.port}"
        """Value for OTEL_EXPORTER_OTLP_ENDPOINT."""
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def __enter__(self) -> OtlpSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening; received data can still be read."""
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def clear(self) -> None:
        """Discard received data."""
        self._requests.clear()

    @property
    def requests(self) -> list[SinkRequest]:
        """Every request, in the order of the responses."""
        return list(self._requests)

    def _bodies(self, path: str) -> Iterator[bytes]:
        return (r.body for r in self.requests if r.path == path and 200 <= r.status < 300)

    def spans(self, name: str | None = None) -> list[SinkSpan]:
        """The received spans in order; with ``name`` only those."""
        spans = (span for body in self._bodies("/v1/traces") for span in _spans(body))
        return [span for span in spans if name in (None, span.name)]

    def traces(self) -> dict[str, list[SinkSpan]]:
        """The spans by trace id."""
        traces: dict[str, list[SinkSpan]] = {}
        for span in self.spans():
            traces.setdefault(span.trace_id, []).append(span)
        return traces

    def metrics(self, name: str | None = None) -> list[SinkMetric]:
        """The metrics of every export in order; with ``name`` only those."""
        metrics = (metric for body in self._bodies("/v1/metrics") for metric in _metrics(body))
        return [metric for metric in metrics if name in (None, metric.name)]

    def latest(self) -> dict[str, SinkMetric]:
        """The last received data of each metric, by name."""
        return {metric.name: metric for metric in self.metrics()}

    def wait_for(self, condition: Callable[[OtlpSink], Any], timeout: float = 20.0, what: str = "arrivals") -> Any:
        """Wait until ``condition(sink)`` is true and return its result. Raises TimeoutError."""
        return wait_until(lambda: condition(self), timeout, f"{what} at {self.endpoint}", every=0.05)
