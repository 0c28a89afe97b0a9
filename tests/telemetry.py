"""A pipeline with everything on it, fed with made-up records."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from llamatel import collectors
from llamatel.collectors import Sample
from llamatel.metrics import METRICS
from llamatel.records import ClientCall, Completion
from llamatel.snapshots import Snapshot
from llamatel.telemetry import pipeline
from llamatel.telemetry.instruments import Instruments
from llamatel.telemetry.pipeline import Pipeline
from llamatel.telemetry.request_spans import Spans
from llamatel.telemetry.settings import Settings
from llamatel_collectors.requests import RequestsCollector
from tests.samples import snapshot


class Telemetry:
    """Spans, instruments and collectors on a pipeline."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.state: Snapshot = snapshot()
        self._spans = Spans(pipeline.tracer)
        self._requests = RequestsCollector()
        self._others = tuple(collectors.load(without=("requests",)))
        self._instruments = Instruments(pipeline.meter, METRICS, self._samples)
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
        """Measure a call of our client."""
        for collector in self._others:
            for sample in collector.on_call(call):
                self._instruments.record(sample, None)


@contextlib.contextmanager
def telemetry(
    env: Mapping[str, str] | None = None, resource: Mapping[str, str | int] | None = None, **arguments: Any
) -> Iterator[Telemetry]:
    """Telemetry as these settings have it; without a metrics endpoint unless one is asked for."""
    settings = Settings.from_env(env or {}, **{"metrics_addr": "none", **arguments})
    running = Telemetry(pipeline.build(settings, resource))
    try:
        yield running
    finally:
        running.pipeline.shutdown(0.2)
