"""Each stage of a request's way through llamatel on its own, to be counted by ``instructions``.

``python -m benchmarks.stages STAGE PASSES LOG`` runs one stage so many times over the requests of a recorded log and
prints what a pass has. All that is made beforehand is made once, so it drops out of the difference of two runs.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import NoOpTracer

from benchmarks.pieces import read_lines
from llamatel import collectors
from llamatel.llama.log.log_line import split_line
from llamatel.llama.log.reader import LogReader
from llamatel.metrics import METRICS
from llamatel.records import ClientCall, Completion, ServerInfo
from llamatel.snapshots import KvCacheState, LogCounts, ServerSnapshot, SlotState
from llamatel.telemetry import connect
from llamatel.telemetry.exposition import Exposition
from llamatel.telemetry.instruments import Instruments
from llamatel.telemetry.metric_store import MetricStore
from llamatel.telemetry.observer import Observer
from llamatel.telemetry.otlp_delivery import Delivery
from llamatel.telemetry.otlp_transport import Sent
from llamatel.telemetry.request_encoder import OwnTracerProvider, RequestEncoder
from llamatel.telemetry.request_spans import Spans
from llamatel.telemetry.resource import resource_of
from llamatel.telemetry.settings import Settings
from llamatel.telemetry.span_export import OtlpSpanProcessor, SpanExport
from llamatel.tracing import call_reports
from llamatel.tracing.joining import Joiner, Origin
from llamatel.ui.live import Live

MANY = 50
"""Servers of the larger collection."""
_BATCH = 512
"""Spans that leave together, as is the SDK's default."""
_QUEUE = 1 << 16
_SERVER = ServerInfo("127.0.0.1", 8090, "tiny.gguf")


@dataclasses.dataclass(frozen=True, slots=True)
class Recording:
    """What stages work on."""

    log: bytes
    lines: Sequence[str]
    completions: Sequence[Completion]

    @classmethod
    def of(cls, path: Path) -> Recording:
        """The requests of a log."""
        log = path.read_bytes()
        lines = read_lines(log)
        return cls(log, lines, _completions(lines))


def _completions(lines: Sequence[str]) -> list[Completion]:
    reader = LogReader(_SERVER)
    return [completion for line in lines for completion in reader.feed(line, 1.8e9)]


def _lines(recording: Recording) -> Callable[[], None]:
    return lambda: read_lines(recording.log).clear()


def _log_reader(recording: Recording) -> Callable[[], None]:
    return lambda: _completions(recording.lines).clear()


def _records_reader(recording: Recording) -> Callable[[], None]:
    """As ``serve`` reads a server with ``--log-jsonl``."""
    stamped = [parts for parts in map(split_line, recording.lines) if parts.time is not None]
    records = [
        json.dumps(
            {"type": "log", "time": round((parts.time or 0.0) * 1e6), "level": "info", "msg": parts.text + "\n"},
            separators=(",", ":"),
        )
        for parts in stamped
    ]
    assert len(LogReader(_SERVER).feed_records(records, 1.8e9)) == len(recording.completions)
    return lambda: LogReader(_SERVER).feed_records(records, 1.8e9).clear()


def _observer(recording: Recording) -> Callable[[], None]:
    """Queue, joiner and thread, with nothing to be done for a request."""
    observer = Observer((), emit=_no_spans)
    observer.connect(lambda _sample, _context: None)
    return lambda: _through(observer, recording)


def _no_spans(_completion: Completion, _origin: Origin, _share: float) -> tuple[object, str | None]:
    return None, None


def _through(observer: Observer, recording: Recording) -> None:
    for completion in recording.completions:
        observer.submit(completion)
    assert observer.flush(), "the observer hangs"


def _samples(recording: Recording) -> Callable[[], None]:
    loaded = list(collectors.load())

    def all_of_them() -> None:
        for completion in recording.completions:
            for collector in loaded:
                for _ in collector.on_completion(collector.complete(completion)):
                    pass

    return all_of_them


def _measurements(recording: Recording) -> Callable[[], None]:
    loaded = list(collectors.load())
    samples = [
        sample
        for completion in recording.completions
        for collector in loaded
        for sample in collector.on_completion(completion)
    ]
    instruments = Instruments(None, METRICS, tuple, store=MetricStore())
    context = Spans(NoOpTracer()).emit(recording.completions[0])

    def record() -> None:
        for sample in samples:
            instruments.record(sample, context)

    return record


class _Nowhere:
    """A transport that takes everything."""

    def send(self, message: bytes, timeout_s: float) -> Sent:
        return Sent(True)

    def reset(self) -> None:
        pass

    def close(self) -> None:
        pass


def _export() -> SpanExport:
    about, scope = resource_of(Settings()), InstrumentationScope("llamatel")
    return SpanExport(
        Delivery("spans", "nowhere", _Nowhere(), 10.0), resource=lambda: about, scope=scope, queue_size=_QUEUE,
        batch_size=_BATCH,
    )  # fmt: skip


def _provider(export: SpanExport) -> OwnTracerProvider:
    provider = OwnTracerProvider(resource=resource_of(Settings()))
    provider.add_export(OtlpSpanProcessor(export))
    return provider


def _unseen_spans(recording: Recording) -> Callable[[], None]:
    return _emitting(Spans(NoOpTracer()), recording)


def _sdk_spans(recording: Recording) -> Callable[[], None]:
    """As where the application has span processors of its own."""
    export = _export()
    return _exporting(Spans(_provider(export).get_tracer("llamatel")), export, recording)


def _spans(recording: Recording) -> Callable[[], None]:
    export = _export()
    provider = _provider(export)
    return _exporting(Spans(provider.get_tracer("llamatel"), RequestEncoder(provider, export)), export, recording)


def _exporting(spans: Spans, export: SpanExport, recording: Recording) -> Callable[[], None]:
    emit = _emitting(spans, recording)

    def write() -> None:
        emit()
        assert export.flush(60.0)

    return write


def _emitting(spans: Spans, recording: Recording) -> Callable[[], None]:
    unjoined = Origin()

    def emit() -> None:
        for completion in recording.completions:
            spans.emit_from(completion, unjoined)

    return emit


def _live(recording: Recording) -> Callable[[], None]:
    live = Live()

    def note() -> None:
        for completion in recording.completions:
            live(completion, "0" * 32)

    return note


def _calls(recording: Recording) -> list[ClientCall]:
    """The calls that these requests were, by one client."""
    span = Spans(_provider(_export()).get_tracer("llamatel")).emit(recording.completions[0])
    return [
        ClientCall(
            key=number,
            span=span,
            server=completion.server,
            operation="chat",
            started_at=completion.arrived_at,
            sent_at=completion.arrived_at,
            ended_at=completion.ended_at,
            outcome=completion.outcome,
            output_tokens=completion.generated,
            prompt_computed=completion.prompt_computed,
            prefill_s=completion.prefill_s,
            decode_s=completion.decode_s,
            slot=completion.slot,
        )
        for number, completion in enumerate(recording.completions)
    ]


@dataclasses.dataclass
class _Underway:
    server: ServerInfo
    started_at: float
    headers_at: float | None = None


def _joined(recording: Recording) -> Callable[[], None]:
    """Requests that are each the child of a call: four at a time, as so many slots would have them."""
    calls = _calls(recording)

    def join() -> None:
        now = [0.0]
        joiner = Joiner(clock=lambda: now[0])
        for start in range(0, len(calls), 4):
            now[0] = calls[start].sent_at
            for call in calls[start : start + 4]:
                joiner.started(call.key, _Underway(call.server, call.started_at))
            now[0] = max(call.ended_at for call in calls[start : start + 4])
            for call, completion in zip(
                calls[start : start + 4], recording.completions[start : start + 4], strict=True
            ):
                joiner.completed(completion)
                joiner.finished(call)
            now[0] += 0.2
            for _ in joiner.due():
                pass

    return join


def _reports(recording: Recording) -> Callable[[], None]:
    """Calls reported by one process and read by another, sixteen a message."""
    calls = _calls(recording)

    def report() -> None:
        for start in range(0, len(calls), 16):
            report = call_reports.CallReport((), calls[start : start + 16])
            call_reports.read(call_reports.write(report))

    return report


def _whole(recording: Recording) -> Callable[[], None]:
    """From bytes to encoded spans, as ``llamatel serve`` with Prometheus and OTLP; all but the sending."""
    export = _export()
    provider = _provider(export)
    observer, _ = connect.connect(
        provider.get_tracer("llamatel"), None, list(collectors.load()), store=MetricStore(),
        encoder=RequestEncoder(provider, export), sinks=(Live(),),
    )  # fmt: skip

    def whole() -> None:
        reader = LogReader(_SERVER)
        for line in read_lines(recording.log):
            for completion in reader.feed(line, 1.8e9):
                observer.submit(completion)
        observer.flush()
        assert export.flush(60.0)

    return whole


class _Server:
    """A server with four slots, in which something is always new."""

    def __init__(self, number: int) -> None:
        self.about = dataclasses.replace(_SERVER, port=8090 + number)
        self._tokens = 0

    def subscribe(self, listener: object) -> Callable[[], None]:
        return lambda: None

    def snapshots(self) -> Sequence[ServerSnapshot]:
        self._tokens += 100
        names = ("prompt_tokens_total", "prompt_tokens_cached_total", "tokens_predicted_total")
        return [
            ServerSnapshot(
                self.about, up=True, state="ready", deferred=0, restarts=0, process_started_at=1.8e9,
                counters=dict.fromkeys(names, float(self._tokens)), log=LogCounts({"request": self._tokens}),
                slots=tuple(SlotState(slot, busy=slot < 2, context_tokens=self._tokens % 4096) for slot in range(4)),
                kv_cache=KvCacheState(4096, unified=True, active=self._tokens % 4096, cached=0),
            )
        ]  # fmt: skip


def _scrapes(servers: int) -> Callable[[Recording], Callable[[], None]]:
    """One collection and its text for Prometheus, after requests of each server."""

    def scrapes(recording: Recording) -> Callable[[], None]:
        store = MetricStore()
        exposition = Exposition(store, resource_of(Settings()).attributes)
        MeterProvider([exposition.reader], shutdown_on_exit=False)
        live = Live()
        observer = Observer(collectors.load(), emit=_no_spans, sinks=(live,), watchers=(live.observe,))
        moments = itertools.count()  # each scrape a second after the one before
        instruments = Instruments(None, METRICS, observer.samples, store=store, clock=lambda: float(next(moments)))
        observer.connect(instruments.record)  # type: ignore[arg-type]  # the context is opaque to the observer
        for number in range(servers):
            server = _Server(number)
            observer.watch(server)
            observer.submit(dataclasses.replace(recording.completions[-1], server=server.about))
        observer.flush()

        def scrape() -> None:
            exposition.page()

        return scrape

    return scrapes


STAGES: dict[str, Callable[[Recording], Callable[[], None]]] = {
    "bytes to lines": _lines,
    "log reader": _log_reader,
    "log reader, JSONL": _records_reader,
    "observer: queue and thread": _observer,
    "collectors: samples": _samples,
    "histograms and counters": _measurements,
    "spans, without a tracer provider": _unseen_spans,
    "spans, encoded for OTLP": _spans,
    "spans, by the SDK and encoded for OTLP": _sdk_spans,
    "live: for the page and top": _live,
    "all of the above at once": _whole,
    "a call joined with its request": _joined,
    "a call reported by another process": _reports,
}
"""By request."""
COLLECTIONS: dict[str, Callable[[Recording], Callable[[], None]]] = {
    "a scrape, 1 server": _scrapes(1),
    f"a scrape, {MANY} servers": _scrapes(MANY),
}
"""By pass."""


def main(arguments: Sequence[str]) -> None:
    """Run a stage."""
    name, passes, path = arguments
    recording = Recording.of(Path(path))
    one_pass = {**STAGES, **COLLECTIONS}[name](recording)
    gc.collect()
    gc.freeze()  # what was made beforehand is no work for the collector
    for _ in range(int(passes)):
        one_pass()
    json.dump({"lines": len(recording.lines), "requests": len(recording.completions)}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
