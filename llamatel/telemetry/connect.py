"""Collectors, an observer and instruments, connected to a tracer and a meter."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from opentelemetry import metrics, trace
from opentelemetry.context import Context

from llamatel.collectors import Collector
from llamatel.metrics import METRICS
from llamatel.records import Completion
from llamatel.snapshots import Snapshot
from llamatel.telemetry.instruments import Instruments
from llamatel.telemetry.metric_store import MetricStore
from llamatel.telemetry.observer import Observer, Sink, SpanQueue
from llamatel.telemetry.request_encoder import RequestEncoder
from llamatel.telemetry.request_spans import Spans, span_count
from llamatel.telemetry.sdk_instruments import Callbacks
from llamatel.tracing.joining import Origin

LATENCY_VARIABLE = "LLAMATEL_LATENCY_ATTRIBUTES"
"""``true`` adds the ``gen_ai.latency.*`` attributes to the spans of requests."""


def connect(
    tracer: trace.Tracer,
    meter: metrics.Meter | None,
    chosen: Sequence[Collector],
    *,
    store: MetricStore | None = None,
    encoder: RequestEncoder | None = None,
    sinks: Sequence[Sink] = (),
    watchers: Sequence[Callable[[Snapshot], None]] = (),
    dropped: Callable[[], Mapping[str, int]] = dict,
    span_queue: SpanQueue | None = None,
    callbacks: Callbacks | None = None,
) -> tuple[Observer, Instruments]:
    """Create a running observer with collectors, for a tracer and a meter or store.

    ``store``, ``encoder`` and ``span_queue`` are those of a pipeline of ours; ``callbacks`` as Instruments have it.
    """
    spans = Spans(tracer, encoder, latency=os.environ.get(LATENCY_VARIABLE, "").strip().lower() == "true")

    def emit(completion: Completion, origin: Origin, share: float) -> tuple[Context | None, str | None]:
        context = spans.emit_from(completion, origin, share)
        span = trace.get_current_span(context).get_span_context()
        return (context, trace.format_trace_id(span.trace_id)) if span.is_valid else (None, None)

    observer = Observer(
        chosen,
        emit=emit,
        emit_observed=spans.emit_observed,
        span_count=span_count,
        sinks=sinks,
        watchers=watchers,
        dropped=dropped,
        span_queue=span_queue,
    )
    rows = (*METRICS, *(row for collector in chosen for row in collector.metrics))
    instruments = Instruments(meter, rows, observer.samples, store=store, callbacks=callbacks)
    observer.connect(instruments.record)  # type: ignore[arg-type]  # the context is opaque to the observer
    return observer, instruments
