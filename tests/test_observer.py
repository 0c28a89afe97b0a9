"""The observer: what is anybody's (collectors, sinks, processors, sources) may fail, hang and come back."""

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
    """A server that does what a test wants."""

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
    """Fails while told to."""

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


def test_a_request_goes_to_spans_then_collectors_then_sinks(bench: Make) -> None:
    order: list[object] = []
    done = completion()

    def emit(given: Completion, _: Origin) -> tuple[object, str]:
        order.append(given)
        return "its context", "its trace"

    running = bench(Counting(), Other(), emit=emit, sinks=[lambda *given: order.append(given)]).connect()
    running.observer.submit(done)
    assert running.observer.flush()
    assert order == [done, (done, "its trace")]
    assert running.recorded == [("requests", "its context"), ("others", "its context")]
    assert [collector.name for collector in running.observer.collectors] == ["counting", "other"]


def test_a_collector_takes_part_where_it_has_a_method_of_its_own(bench: Make) -> None:
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


def test_what_waits_is_bounded_and_what_is_lost_is_counted(bench: Make) -> None:
    collector = Counting()
    running = bench(collector, capacity=3, dropped=lambda: {"queue_full": 2, "observer_full": 10})
    for _ in range(5):
        running.observer.submit(completion())  # nobody takes them yet, and nobody waits
    running.observer.samples()
    assert collector.snapshots[-1].records_dropped == {"queue_full": 2, "observer_full": 12}
    assert not running.observer.flush(0.01)
    running.connect()
    assert running.observer.flush()
    assert len(running.recorded) == 3


def test_a_collector_that_fails_costs_the_others_nothing(bench: Make, caplog: pytest.LogCaptureFixture) -> None:
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
        assert ("servers", None) not in values  # half a snapshot is none
    assert errors(caplog) == ["collector 'counting' failed; until it works again this is not repeated"]
    assert caplog.records[0].exc_info


def test_what_a_collector_fails_to_add_to_is_left_as_it_was(bench: Make, caplog: pytest.LogCaptureFixture) -> None:
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


def test_a_collector_that_recovers_is_believed_and_a_relapse_is_said(
    bench: Make, caplog: pytest.LogCaptureFixture
) -> None:
    collector = Counting()
    running = bench(collector).connect()
    seen = []
    for broken in (False, True, True, False, True):
        collector.broken = broken
        seen.append(running.values()["llamatel.collector.success", "counting"])
    assert seen == [1, 0, 0, 1, 0]
    assert len(errors(caplog)) == 2


def test_a_failure_on_a_request_shows_in_the_next_snapshot(bench: Make) -> None:
    collector = Counting()
    running = bench(collector).connect()
    collector.broken = True
    running.observer.submit(completion())
    running.observer.flush()
    collector.broken = False
    seen = [running.values()["llamatel.collector.success", "counting"] for _ in range(2)]
    assert seen == [0, 1]


def test_sinks_and_spans_that_fail_are_counted_and_said_once(bench: Make, caplog: pytest.LogCaptureFixture) -> None:
    kept: list[str | None] = []

    def broken(*_: object) -> None:
        raise OSError("no more room")

    def emit(_: Completion, __: Origin) -> tuple[object, str | None]:
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


def test_a_source_that_fails_costs_the_others_nothing(bench: Make, caplog: pytest.LogCaptureFixture) -> None:
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
    assert errors(caplog) == ["a server's state could not be taken; further failures are only counted"]


def test_sources_come_and_go(bench: Make) -> None:
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


def test_a_server_in_anothers_place_is_counted_once(bench: Make) -> None:
    collector = Counting()
    running = bench(collector)
    old = server_snapshot(up=False, counters={"tokens_predicted_total": 900.0})
    new, elsewhere = server_snapshot(), server_snapshot(server=dataclasses.replace(SERVER, port=1))
    sources = [Source(old), Source(elsewhere), Source(new)]  # kept: the observer knows them by their identity
    for source in sources:
        running.observer.watch(source)
    running.observer.samples()
    assert set(map(id, collector.snapshots[-1].servers)) == {id(new), id(elsewhere)}


def test_closing_writes_what_waits_and_takes_no_more(bench: Make) -> None:
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
def test_a_sink_that_hangs_holds_nobody_up(bench: Make, capacity: int) -> None:
    let_go = threading.Event()
    running = bench(sinks=[lambda *_: let_go.wait(60) and None], capacity=capacity).connect()
    for _ in range(10):
        running.observer.submit(completion())
    begun = time.monotonic()
    assert not running.observer.flush(0.2)
    assert not running.observer.close(0.3)
    assert time.monotonic() - begun < 20
    let_go.set()
    wait_until(lambda: running.observer.flush(0.1))


def test_one_that_was_never_connected_can_be_closed(bench: Make) -> None:
    assert bench().observer.close(0.1)
