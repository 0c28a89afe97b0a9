"""Observer: order of processing, isolation of collectors, sinks and sources, overload, shutdown."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest

from llamatel.collectors import Collector, Sample
from llamatel.records import ClientCall, Completion, Outcome
from llamatel.snapshots import ServerSnapshot, Snapshot
from llamatel.telemetry.observer import Observer
from llamatel.tracing.joining import Origin
from tests.parts import wait_until
from tests.samples import SERVER, completion, server_snapshot


class Source:
    """A stand-in for a server."""

    def __init__(self, state: ServerSnapshot | None = None) -> None:
        self.state = state
        self.listeners: list[Callable[[Completion], None]] = []
        self.error: Exception | None = None

    def subscribe(self, listener: Callable[[Completion], None]) -> Callable[[], None]:
        self.listeners.append(listener)
        return lambda: self.listeners.remove(listener)

    def snapshots(self) -> Sequence[ServerSnapshot]:
        if self.error is not None:
            raise self.error
        return () if self.state is None else (self.state,)


class Counting(Collector):
    """Fails while ``broken``."""

    name = "counting"

    def __init__(self) -> None:
        self.broken = False
        self.snapshots: list[Snapshot] = []

    def on_completion(self, completion: Completion) -> Iterable[Sample]:
        yield Sample("requests", 1, completion.server)
        if self.broken:
            raise ZeroDivisionError("completion")

    def on_snapshot(self, snapshot: Snapshot) -> Iterable[Sample]:
        self.snapshots.append(snapshot)
        yield Sample("servers", len(snapshot.servers))
        if self.broken:
            raise ZeroDivisionError("snapshot")


class Other(Collector):
    """Never fails."""

    name = "other"

    def on_completion(self, completion: Completion) -> Iterable[Sample]:
        yield Sample("others", 1, completion.server)


class Bench:
    """An observer with everything around it."""

    def __init__(self, *collectors: Collector, **arguments: Any) -> None:
        self.recorded: list[tuple[str, object]] = []
        self.observer = Observer(collectors, **{"emit": lambda *_: ("context", "trace"), **arguments})

    def connect(self) -> Bench:
        self.observer.connect(lambda sample, context: self.recorded.append((sample.metric, context)))
        return self

    def values(self) -> dict[tuple[str, str | None], float]:
        """Samples by metric and collector."""
        return {
            (sample.metric, str(sample.attributes["collector"]) if sample.attributes else None): sample.value
            for sample in self.observer.samples()
        }


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(*collectors: Collector, **arguments: Any) -> Bench:
        made.append(Bench(*collectors, **arguments))
        return made[-1]

    yield make
    for one in made:
        one.observer.close(0.1)


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


Make = Callable[..., Bench]


def test_observer_order_spans_collectors_sinks(bench: Make) -> None:
    order: list[object] = []
    done = completion()

    def emit(given: Completion, _: Origin, share: float) -> tuple[object, str]:
        assert share == 1.0
        order.append(given)
        return "its context", "its trace"

    running = bench(Counting(), Other(), emit=emit, sinks=[lambda *given: order.append(given)]).connect()
    running.observer.submit(done)
    assert running.observer.flush()
    assert order == [done, (done, "its trace")]
    assert running.recorded == [("requests", "its context"), ("others", "its context")]
    assert [collector.name for collector in running.observer.collectors] == ["counting", "other"]


def test_observer_calls_only_overridden_hooks(bench: Make) -> None:
    class Grandchild(Other):
        name = "grandchild"

    set_later = Collector()
    setattr(set_later, "complete", lambda request: dataclasses.replace(request, generated=7))  # noqa: B010 - as a person may
    seen: list[int | None] = []
    running = bench(Collector(), Grandchild(), set_later, sinks=[lambda request, _: seen.append(request.generated)])
    running.connect().observer.submit(completion(generated=1))
    assert running.observer.flush()
    assert running.recorded == [("others", "context")]
    assert seen == [7]


def test_observer_full_before_connect_is_counted(bench: Make) -> None:
    collector = Counting()
    running = bench(collector, capacity=3, dropped=lambda: {"queue_full": 2, "observer_full": 10})
    for _ in range(5):
        running.observer.submit(completion())  # nothing is connected yet, and nothing blocks
    running.observer.samples()
    assert collector.snapshots[-1].records_dropped == {"queue_full": 2, "observer_full": 12}
    assert not running.observer.flush(0.01)
    running.connect()
    assert running.observer.flush()
    assert len(running.recorded) == 3


def test_observer_isolates_failing_collector(bench: Make, caplog: pytest.LogCaptureFixture) -> None:
    broken = Counting()
    broken.broken = True
    running = bench(broken, Other()).connect()
    for _ in range(3):
        running.observer.submit(completion())
    assert running.observer.flush()
    assert [metric for metric, _ in running.recorded] == ["requests", "others"] * 3
    for _ in range(3):
        values = running.values()
        assert values["llamatel.collector.success", "counting"] == 0
        assert values["llamatel.collector.success", "other"] == 1
        assert values["llamatel.collector.duration", "counting"] >= 0
        assert ("servers", None) not in values  # an incomplete snapshot is not used
    assert errors(caplog) == ["collector 'counting' failed; until it works again this is not repeated"]
    assert caplog.records[0].exc_info


def test_observer_failing_complete_keeps_the_record(bench: Make, caplog: pytest.LogCaptureFixture) -> None:
    class Adding(Collector):
        name = "adding"

        def start(self) -> None:
            raise ZeroDivisionError("start")

        def stop(self) -> None:
            raise ZeroDivisionError("stop")

        def complete(self, completion: Completion) -> Completion:
            raise ZeroDivisionError("completion")

        def complete_snapshot(self, snapshot: Snapshot) -> Snapshot:
            raise ZeroDivisionError("snapshot")

        def on_call(self, call: ClientCall) -> Iterable[Sample]:
            raise ZeroDivisionError("call")

    done, seen, counting = completion(), [], Counting()
    sinks = [lambda request, _: seen.append(request)]
    running = bench(Adding(), counting, sinks=sinks).connect()
    running.observer.submit(done)
    call = ClientCall(
        key=object(), span=None, server=done.server, operation="chat", started_at=0.0, sent_at=0.0, ended_at=1.0,
        outcome=Outcome.ERROR,
    )  # fmt: skip
    running.observer.submit(call)
    assert running.observer.flush()
    assert seen == [done]
    assert running.values()["servers", None] == 0
    assert len(counting.snapshots) == 1
    assert running.observer.close()
    assert errors(caplog) == ["collector 'adding' failed; until it works again this is not repeated"]


def test_observer_logs_each_collector_failure_after_recovery(bench: Make, caplog: pytest.LogCaptureFixture) -> None:
    collector = Counting()
    running = bench(collector).connect()
    seen = []
    for broken in (False, True, True, False, True):
        collector.broken = broken
        seen.append(running.values()["llamatel.collector.success", "counting"])
    assert seen == [1, 0, 0, 1, 0]
    assert len(errors(caplog)) == 2


def test_observer_completion_failure_shows_in_next_snapshot(bench: Make) -> None:
    collector = Counting()
    running = bench(collector).connect()
    collector.broken = True
    running.observer.submit(completion())
    running.observer.flush()
    collector.broken = False
    seen = [running.values()["llamatel.collector.success", "counting"] for _ in range(2)]
    assert seen == [0, 1]


def test_observer_counts_failing_sinks_and_spans_and_logs_once(bench: Make, caplog: pytest.LogCaptureFixture) -> None:
    kept: list[str | None] = []

    def broken(*_: object) -> None:
        raise OSError("no more room")

    def emit(_: Completion, __: Origin, ___: float) -> tuple[object, str | None]:
        raise RuntimeError("a processor of the application's")

    collector = Counting()
    sinks = [broken, lambda _, trace_id: kept.append(trace_id), broken]
    running = bench(collector, emit=emit, sinks=sinks).connect()
    for _ in range(4):
        running.observer.submit(completion())
    assert running.observer.flush()
    running.observer.samples()
    assert collector.snapshots[-1].records_dropped == {"span_failed": 4, "sink_failed": 8}
    assert kept == [None] * 4
    assert running.recorded == [("requests", None)] * 4
    assert sorted(errors(caplog)) == [
        *["a sink failed; further failures are only counted"] * 2,
        "the spans of a request could not be written; further failures are only counted",
    ]


def test_observer_isolates_a_failing_source(bench: Make, caplog: pytest.LogCaptureFixture) -> None:
    collector = Counting()
    running = bench(collector)
    broken, whole, silent = Source(), Source(server_snapshot()), Source(None)
    broken.error = ValueError("oops")
    for source in (broken, whole, silent):
        running.observer.watch(source)
    for _ in range(2):
        running.observer.samples()
    assert collector.snapshots[-1].servers == (whole.state,)
    assert collector.snapshots[-1].records_dropped == {"snapshot_failed": 2}
    assert errors(caplog) == ["a server's state could not be read; further failures are only counted"]


def test_observer_watch_and_unwatch(bench: Make) -> None:
    collector = Counting()
    running = bench(collector).connect()
    source = Source(server_snapshot())
    running.observer.watch(source)
    running.observer.watch(source)
    assert len(source.listeners) == 1
    source.listeners[0](completion())
    assert running.observer.flush()
    assert len(running.recorded) == 1
    running.observer.unwatch(source)
    running.observer.unwatch(source)
    assert source.listeners == []
    running.observer.samples()
    assert collector.snapshots[-1].servers == ()


def test_observer_last_source_of_an_address_counts(bench: Make) -> None:
    collector = Counting()
    running = bench(collector)
    old = server_snapshot(up=False, counters={"tokens_predicted_total": 900.0})
    new, elsewhere = server_snapshot(), server_snapshot(server=dataclasses.replace(SERVER, port=1))
    sources = [Source(old), Source(elsewhere), Source(new)]  # kept: the observer knows them by their identity
    for source in sources:
        running.observer.watch(source)
    running.observer.samples()
    assert set(map(id, collector.snapshots[-1].servers)) == {id(new), id(elsewhere)}


def test_observer_close_writes_the_queue(bench: Make) -> None:
    collector = Counting()
    kept: list[object] = []

    def slow(*given: object) -> None:
        time.sleep(0.01)
        kept.append(given)

    running = bench(collector, sinks=[slow]).connect()
    source = Source(server_snapshot())
    running.observer.watch(source)
    for _ in range(10):
        running.observer.submit(completion())
    assert running.observer.close(30)
    assert (len(kept), source.listeners) == (10, [])
    running.observer.submit(completion())
    running.observer.watch(Source())
    running.observer.samples()  # of the last export, which comes after it
    assert collector.snapshots[-1].records_dropped == {"observer_closed": 1}
    assert collector.snapshots[-1].servers == (source.state,)
    assert running.observer.close(30)


@pytest.mark.parametrize("capacity", [1, 100])
def test_observer_hanging_sink_blocks_no_caller(bench: Make, capacity: int) -> None:
    let_go = threading.Event()
    running = bench(sinks=[lambda *_: let_go.wait(60) and None], capacity=capacity).connect()
    for _ in range(10):
        running.observer.submit(completion())
    start_time = time.monotonic()
    assert not running.observer.flush(0.2)
    assert not running.observer.close(0.3)
    assert time.monotonic() - start_time < 20
    let_go.set()
    wait_until(lambda: running.observer.flush(0.1))


class Slow:
    """A sink that can be held."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.requests = 0

    def __call__(self, *_: object) -> None:
        self.go.wait(60)
        self.requests += 1


def test_observer_full_queue_measures_on_the_calling_thread(bench: Make) -> None:
    collector, sink = Counting(), Slow()
    running = bench(collector, sinks=[sink], capacity=10, span_count=lambda _: 4).connect()
    for _ in range(100):
        running.observer.submit(completion())
    lost = 100 - sink.requests - running.observer._queue.qsize()
    assert lost > 80
    assert len(running.recorded) > 80
    sink.go.set()
    assert running.observer.flush()
    assert len(running.recorded) == 100
    dropped = running.observer.dropped()
    assert dropped["observer_full"] == 100 - sink.requests
    assert dropped["shed"] >= 4 * dropped["observer_full"]


def test_observer_blocking_source_waits_for_room(bench: Make) -> None:
    class File(Source):
        blocking = True

    sink, source = Slow(), File()
    running = bench(Counting(), sinks=[sink], capacity=10).connect()
    running.observer.watch(source)
    reader = threading.Thread(target=lambda: [source.listeners[0](completion()) for _ in range(100)], daemon=True)
    reader.start()
    time.sleep(0.3)
    assert reader.is_alive()
    assert running.observer._queue.qsize() <= 10
    sink.go.set()
    reader.join(30)
    assert running.observer.drain(10)
    assert (len(running.recorded), sink.requests) == (100, 100)
    assert "observer_full" not in running.observer.dropped()


def test_observer_drain_returns_false_when_it_stalls(bench: Make) -> None:
    sink = Slow()
    running = bench(sinks=[sink]).connect()
    running.observer.submit(completion())
    assert not running.observer.drain(0.1)
    sink.go.set()
    assert running.observer.drain(10)


def test_observer_overload_sheds_spans_and_keeps_counts(bench: Make, caplog: pytest.LogCaptureFixture) -> None:
    shares: list[float] = []

    def emit(_: Completion, __: Origin, share: float) -> tuple[object, str]:
        shares.append(share)
        time.sleep(0.001)
        return "context", "trace"

    collector = Counting()
    running = bench(collector, emit=emit, capacity=200, span_count=lambda _: 4).connect()
    for _ in range(5000):
        running.observer.submit(completion())
    assert running.observer.drain(10)
    assert len(running.recorded) == 5000
    running.observer.samples()
    assert 4 * len(shares) + collector.snapshots[-1].records_dropped["shed"] == 4 * 5000
    assert min(shares) < 1.0
    assert len([record for record in caplog.records if "are left out" in record.getMessage()]) == 1


def test_observer_close_logs_remaining_requests(bench: Make, caplog: pytest.LogCaptureFixture) -> None:
    sink = Slow()
    running = bench(Counting(), sinks=[sink]).connect()
    for _ in range(3):
        running.observer.submit(completion())
    assert not running.observer.close(0.2)
    assert any(
        record.getMessage().startswith("3 requests that were read are not in telemetry") for record in caplog.records
    )
    assert running.observer.dropped() == {"shutdown": 3}
    sink.go.set()


def test_observer_close_sheds_spans_when_time_is_short(bench: Make) -> None:
    def emit(_: Completion, __: Origin, ___: float) -> tuple[object, str]:
        time.sleep(0.02)
        return "context", "trace"

    running = bench(Counting(), emit=emit).connect()
    for _ in range(1000):
        running.observer.submit(completion())
    assert running.observer.close(4)
    assert len(running.recorded) == 1000
    assert running.observer.dropped()["shed"] > 0


def test_observer_counts_losses_of_sinks(bench: Make) -> None:
    class Lossy:
        def __call__(self, *_: object) -> None:
            pass

        def losses(self) -> dict[str, int]:
            return {"jsonl_failed": 2}

    assert bench(sinks=[Lossy()]).observer.dropped() == {"jsonl_failed": 2}


def test_observer_close_without_connect(bench: Make) -> None:
    assert bench().observer.close(0.1)
