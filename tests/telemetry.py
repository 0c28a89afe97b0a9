"""A complete pipeline, fed with made-up records; a transport that keeps the messages."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from llamatel import collectors, runtime
from llamatel.collectors import Sample
from llamatel.metrics import METRICS
from llamatel.records import ClientCall, Completion
from llamatel.snapshots import Snapshot
from llamatel.telemetry import pipeline_builder
from llamatel.telemetry.instruments import Instruments
from llamatel.telemetry.otlp_delivery import Delivery
from llamatel.telemetry.otlp_transport import Sent, Transport
from llamatel.telemetry.pipeline import Pipeline
from llamatel.telemetry.request_spans import Spans
from llamatel.telemetry.settings import Settings
from llamatel.telemetry.span_export import SpanExport
from llamatel_collectors.requests import RequestsCollector
from tests.samples import snapshot

INTERVALS = ("OTEL_BSP_SCHEDULE_DELAY", "OTEL_METRIC_EXPORT_INTERVAL")


class Taking:
    """A stand-in for a transport that accepts every message."""

    def __init__(self, *outcomes: Sent) -> None:
        self.messages: list[bytes] = []
        self.outcomes = list(outcomes)
        """Results of the first messages; later ones are delivered."""
        self.hold = threading.Event()
        self.hold.set()

    def send(self, message: bytes, timeout_s: float) -> Sent:
        self.hold.wait(timeout_s)
        self.messages.append(message)
        return self.outcomes.pop(0) if self.outcomes else Sent(True)

    def reset(self) -> None:
        pass

    def close(self) -> None:
        pass


def export_to(transport: Transport, **arguments: Any) -> SpanExport:
    """A queue of spans for this transport."""
    about = Resource({"service.name": "tests"})
    delivery = Delivery("spans", "http://test/v1/traces", transport, 10.0)
    return SpanExport(delivery, resource=lambda: about, scope=InstrumentationScope("llamatel"), **arguments)


class Telemetry:
    """Spans, instruments and collectors on a pipeline."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.state: Snapshot = snapshot()
        self._spans = Spans(pipeline.tracer, pipeline.encoder)
        self._requests = RequestsCollector()
        self._others = tuple(collectors.load(without=("requests",)))
        self._instruments = Instruments(pipeline.meter, METRICS, self._samples, store=pipeline.store)
        # As init() does: what an earlier init() of this process left on no provider would be reported by ours.
        runtime._CALLBACKS.reset()
        pipeline.publish()

    def _samples(self) -> Iterator[Sample]:
        for collector in self._others:
            yield from collector.on_snapshot(self.state)

    def send(self, request: Completion) -> None:
        """Write one request."""
        context = self._spans.emit(request)
        for collector in (self._requests, *self._others):
            for sample in collector.on_completion(request):
                self._instruments.record(sample, context)

    def call(self, call: ClientCall) -> None:
        """Measure a client call."""
        for collector in self._others:
            for sample in collector.on_call(call):
                self._instruments.record(sample, None)


@contextlib.contextmanager
def telemetry(
    env: Mapping[str, str] | None = None, resource: Mapping[str, str | int] | None = None, **arguments: Any
) -> Iterator[Telemetry]:
    """Telemetry with these settings; without a metrics endpoint unless one is requested.

    Only the intervals are read from the process's environment.
    """
    intervals = {name: os.environ[name] for name in INTERVALS if name in os.environ}
    settings = Settings.from_env({**intervals, **(env or {})}, **{"metrics_addr": "none", **arguments})
    running = Telemetry(pipeline_builder.build(settings, resource))
    try:
        yield running
    finally:
        running.pipeline.shutdown(0.2)
