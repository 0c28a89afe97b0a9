"""The queue time estimate, compared with a model of llama.cpp's loop, llama.cpp's own times, and clients."""

from __future__ import annotations

import random
import re
import statistics
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamatel.llama.log.log_clock import LogClock
from llamatel.llama.log.log_line import split_line
from llamatel.llama.log.queue_clock import QueueClock
from llamatel.llama.log.reader import LogReader
from llamatel.llama.server.manager import ServerManager
from llamatel.records import Completion, Outcome, ServerInfo
from tests.load import Clients, Request, completion, mixed_load, text
from tests.parts import Child, wait_until

TURN_S = 0.01


# -- a model of the loop ---------------------------------------------------------------------------------------------


@dataclass
class Task:
    """One request of the model: arrival, tokens, outcome."""

    arrives: float
    tokens: int
    cancelled_after: int | None = None
    number: int = -1
    launched: float = 0.0
    left: int = 0
    waited: float | None = None
    """The clock's result."""

    @property
    def waits(self) -> float:
        """The truth."""
        return self.launched - self.arrives


class Loop:
    """A model of llama.cpp's loop: task numbers, turns, slots, first come first served."""

    def __init__(self, slots: int, clock: QueueClock) -> None:
        self.slots, self.clock = slots, clock
        self.now, self.numbers = 0.0, 0
        self.running: list[Task] = []

    def number(self) -> int:
        self.numbers += 1
        return self.numbers - 1

    def run(self, tasks: list[Task], *, polls: tuple[float, ...] = ()) -> list[Task]:
        """``polls``: times of other clients' polls of /metrics, unknown to the clock."""
        coming, foreign = deque(sorted(tasks, key=lambda task: task.arrives)), deque(sorted(polls))
        waiting: deque[Task] = deque()
        while coming or waiting or self.running:
            if not waiting and not self.running:
                self.now = max(self.now, coming[0].arrives)
            while coming and coming[0].arrives <= self.now:
                while foreign and foreign[0] <= coming[0].arrives:
                    foreign.popleft()
                    self.number()
                coming[0].number = self.number()
                waiting.append(coming.popleft())
            while waiting and len(self.running) < self.slots:
                self._launch(waiting.popleft())
            self._turn()
        return tasks

    def _launch(self, task: Task) -> None:
        task.launched, task.left = self.now, task.tokens
        self.clock.launched(task.number, self.now, chosen=self.now, idle=not self.running)
        self.running.append(task)

    def _turn(self) -> None:
        self.number()
        self.now += TURN_S
        for task in list(self.running):
            task.left -= 1
            if task.cancelled_after is not None and task.tokens - task.left >= task.cancelled_after:
                self.running.remove(task)
                self.number()
                self.clock.number_taken(self.now)
                task.waited = self.clock.broken_off(task.number, self.now, 5 + task.tokens - task.left)
            elif task.left == 0:
                self.running.remove(task)
                task.waited = self.clock.completed(
                    task.number, self.now, first_token=task.launched + TURN_S, steps=task.tokens - 1, computed=5
                )


def arrivals(turns: float) -> st.SearchStrategy[list[Task]]:
    """Requests that arrive at most ``turns`` turns after each other."""
    gap = st.floats(0.0, turns).map(lambda value: round(value * TURN_S, 6))
    one = st.tuples(gap, st.integers(1, 30))

    def place(pairs: list[tuple[float, int]]) -> list[Task]:
        at, tasks = 0.0, []
        for pause, tokens in pairs:
            at += pause
            tasks.append(Task(at, tokens))
        return tasks

    return st.lists(one, min_size=1, max_size=60).map(place)


def off_by(task: Task) -> float:
    """The estimate's error in turns."""
    assert task.waited is not None
    return abs(task.waited - task.waits) / TURN_S


@settings(max_examples=150, deadline=None)
@given(tasks=st.one_of(arrivals(2), arrivals(10), arrivals(100)), slots=st.integers(1, 4))
def test_queue_clock_error_within_two_turns(tasks: list[Task], slots: int) -> None:
    for task in Loop(slots, QueueClock()).run(tasks):
        assert off_by(task) <= 2


def some_cancelled(tasks: list[Task], source: random.Random) -> list[Task]:
    for task in tasks:
        if task.tokens > 4 and source.random() < 0.2:
            task.cancelled_after = source.randint(1, task.tokens - 1)
    return tasks


@settings(max_examples=50, deadline=None)
@given(tasks=arrivals(2), slots=st.integers(1, 4), seed=st.integers(0, 1000))
def test_queue_clock_wait_is_bounded(tasks: list[Task], slots: int, seed: int) -> None:
    Loop(slots, QueueClock()).run(some_cancelled(tasks, random.Random(seed)))
    for task in tasks:
        assert task.waited is None or 0 <= task.waited <= task.launched - tasks[0].arrives + 1e-9


@pytest.mark.parametrize("slots", [2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_queue_clock_cancelled_requests(slots: int, seed: int) -> None:
    source = random.Random(seed)
    # More requests than the slots can serve: the queue grows, and no free slot corrects the estimate.
    tasks = [Task(number * 10 * TURN_S / slots, source.randint(1, 30)) for number in range(400)]
    Loop(slots, QueueClock()).run(some_cancelled(tasks, source))
    late = tasks[200:]
    known = [off_by(task) for task in late if task.waited is not None]
    assert len(known) > 0.9 * len(late)
    assert statistics.median(known) < 0.05 * statistics.mean(task.waits for task in late) / TURN_S


def test_queue_clock_foreign_poller() -> None:
    tasks = [Task(number * 0.001, 20) for number in range(40)]
    tasks += [Task(5.0 + number * 0.001, 20) for number in range(40)]
    Loop(2, QueueClock()).run(tasks, polls=(0.0105, 0.0205, 4.0, 4.5))
    assert max(off_by(task) for task in tasks[:40]) <= 3
    assert max(off_by(task) for task in tasks[40:]) <= 1.01


def test_queue_clock_unknown_before_calibration() -> None:
    clock = QueueClock()
    clock.left(9.99)  # a request that started before the log
    clock.launched(500, 10.0, chosen=10.0, idle=True)
    assert clock.completed(500, 10.2, first_token=10.01, steps=19, computed=5) is None
    clock.launched(530, 10.2, chosen=10.2, idle=True)
    assert clock.completed(530, 10.4, first_token=10.21, steps=19, computed=5) is None
    clock.launched(541, 11.0, chosen=11.0, idle=True)
    assert clock.completed(541, 11.2, first_token=11.01, steps=19, computed=5) == 0.0
    clock.launched(553, 11.2, chosen=11.2, idle=True)  # 541, then 11 of its 20 turns, then 553
    assert clock.completed(553, 11.4, first_token=11.21, steps=19, computed=5) == pytest.approx(0.095, abs=0.01)


def test_queue_clock_long_prompt() -> None:
    clock = QueueClock(batch=512)
    clock.launched(0, 0.0, chosen=0.0, idle=True)
    # 4 batches in 0.4 s, then 10 tokens; the next one came in the second batch, number 3.
    clock.completed(0, 0.5, first_token=0.4, steps=9, computed=2000)
    clock.launched(3, 0.5, chosen=0.5, idle=True)
    assert clock.completed(3, 0.6, first_token=0.51, steps=9, computed=5) == pytest.approx(0.35, abs=0.051)


def test_queue_clock_unknown_task() -> None:
    clock = QueueClock()
    assert clock.completed(7, 1.0, first_token=0.5, steps=3, computed=5) is None
    assert clock.refused(8, 1.0) is None
    assert clock.broken_off(9, 1.0, 0) is None


def test_queue_clock_memory() -> None:
    clock = QueueClock()
    tasks = [Task(number * 2.5 * TURN_S, 10, 3 if number % 7 == 0 else None) for number in range(20_000)]
    start_time = time.process_time()
    Loop(4, clock).run(tasks)
    sizes = {name: len(value) for name, value in vars(clock).items() if isinstance(value, (list, dict))}
    assert max(sizes.values()) <= 8192
    assert (time.process_time() - start_time) / len(tasks) < 0.002
    assert statistics.median(off_by(task) for task in tasks if task.waited is not None) <= 1


# -- llama.cpp -------------------------------------------------------------------------------------------------------

FLAGS = ("--threads-http", "64", "-t", "1", "--cache-ram", "0")
CONTEXT = 4096
_STAMP = re.compile(r"(?=(?<!\d)\d+\.\d\d\.\d{3}\.\d{3} [A-Z] )")
_NEW = re.compile(r"new task, id = (\d+)[,/]")


def plain_load(number: int) -> list[Request]:
    source = random.Random(number)
    lengths = (20, 50, 120)
    return [
        completion(text(source, source.randint(3, 60)), source.choice(lengths), cache_prompt=False)
        for _ in range(number)
    ]


@pytest.fixture
def telling(llama_server_binary: Path, tiny_model: Path, tmp_path: Path) -> Iterator[Telling]:
    running = Telling(llama_server_binary, tiny_model, tmp_path / "log")
    yield running
    running.stop()


class Telling:
    """A llama-server at a verbosity at which it logs the arrival of each task."""

    def __init__(self, binary: Path, model: Path, log: Path) -> None:
        self.binary, self.model, self.log = binary, model, log
        self.child: Child | None = None

    def start(self, slots: int) -> str:
        size = ("-np", str(slots), "-c", str(slots * CONTEXT))
        child = Child([self.binary, "-m", self.model, "--port", "0", *size, *FLAGS, "-lv", "5"], self.log)
        self.child = child
        address = re.compile(r"listening on (http://\S+:\d+)")
        found = wait_until(lambda: address.search(child.output()), 30, "the server's address")
        assert found is not None
        return found.group(1)

    def stop(self) -> None:
        if self.child is not None:
            self.child.stop()

    def read(self) -> tuple[list[Completion], dict[int | None, float]]:
        """Our reader's records of the lines that it would see, and the true arrival of each task."""
        reader = LogReader(ServerInfo("x"), LogClock(live=False, anchor=0.0))
        arrived: dict[int | None, float] = {}
        completions: list[Completion] = []
        # At this verbosity llama.cpp does not end all of its lines.
        for line in _STAMP.split(self.log.read_text(errors="replace")):
            parts = split_line(line.rstrip("\n"))
            if parts.time is not None and parts.level in ("I", "W", "E"):
                completions.extend(reader.feed(line.rstrip("\n"), parts.time))
            elif parts.time is not None and (new := _NEW.search(parts.text)):
                arrived.setdefault(int(new.group(1)), parts.time)
        return completions, arrived


@pytest.mark.parametrize(("slots", "at_once", "kind"), [(4, 14, "plain"), (1, 6, "plain"), (4, 14, "mixed")])
def test_queue_clock_agrees_with_llama_cpp(telling: Telling, slots: int, at_once: int, kind: str) -> None:
    requests = plain_load(150) if kind == "plain" else mixed_load(150, context=CONTEXT)
    with Clients(telling.start(slots)) as clients:
        clients.send_all(requests, at_once=at_once)
    telling.stop()
    completions, arrived = telling.read()
    known = [c for c in completions if c.task in arrived and not c.is_child and c.queue_s is not None]
    assert len(known) >= 0.75 * sum(not c.is_child for c in completions)
    truth = [c.started_at - arrived[c.task] for c in known]
    errors = [abs((c.queue_s or 0.0) - waited) for c, waited in zip(known, truth, strict=True)]
    assert statistics.mean(truth) > 0.01, "no request waited"
    assert statistics.median(errors) < 0.15 * statistics.mean(truth)


@pytest.mark.parametrize(("slots", "at_once"), [(4, 14), (1, 6)])
def test_queue_clock_agrees_with_clients(tiny_model: Path, slots: int, at_once: int) -> None:
    records: list[Completion] = []
    with ServerManager() as server:
        server.subscribe(records.append)
        server.start_server(
            tiny_model, port=0, n_parallel=slots, ctx_size=slots * CONTEXT, extra_args=FLAGS
        ).wait_until_ready(60)
        with Clients(server.base_url) as clients:
            alone = clients.send_all(plain_load(5), at_once=1)
            answers = clients.send_all(plain_load(150), at_once=at_once)
        wait_until(lambda: len(records) == len(alone) + len(answers), 10, "the last record")
    assert [record.queue_s for record in records[: len(alone)]] == [0.0] * len(alone)

    by_timings = {_timings(record): record for record in records if record.outcome is Outcome.OK}
    truth, errors = [], []
    for answer in answers:
        [timings] = answer.timings
        record = by_timings[(timings["prompt_n"], f"{timings['prompt_ms']:.2f}", f"{timings['predicted_ms']:.2f}")]
        assert record.queue_s is not None
        # All its time but prefill and decode: queue and network.
        outside_s = answer.seconds - float(timings["prompt_ms"] + timings["predicted_ms"]) / 1e3
        truth.append(outside_s)
        errors.append(abs(record.queue_s - outside_s))
    assert statistics.median(errors) < 0.15 * statistics.mean(truth)


def stream(request: Request) -> Request:
    assert isinstance(request.body, dict)
    return replace(request, body={**request.body, "stream": True})


@pytest.mark.parametrize(("slots", "at_once"), [(1, 1), (1, 6), (2, 12), (4, 4), (4, 14)])
def test_time_to_first_token_not_above_clients(tiny_model: Path, slots: int, at_once: int) -> None:
    records: list[Completion] = []
    with ServerManager() as server:
        server.subscribe(records.append)
        server.start_server(
            tiny_model, port=0, n_parallel=slots, ctx_size=slots * CONTEXT, extra_args=FLAGS
        ).wait_until_ready(60)
        asks = [stream(ask) for ask in plain_load(100)]
        with Clients(server.base_url) as clients:
            answers = clients.send_all(asks, at_once=at_once)
        wait_until(lambda: len(records) == len(answers), 10, "the last record")
    by_timings = {_timings(record): record for record in records}
    ours, theirs = [], []
    for answer in answers:
        [timings] = answer.timings
        record = by_timings[(timings["prompt_n"], f"{timings['prompt_ms']:.2f}", f"{timings['predicted_ms']:.2f}")]
        assert answer.first_at is not None
        if record.time_to_first_token_s is not None:
            ours.append(record.time_to_first_token_s)
            theirs.append(answer.first_at - answer.sent_at)
    assert len(ours) >= 0.9 * len(answers)
    # Arrivals are estimated and the two clocks are read by two processes: equal is within one percent.
    assert statistics.mean(ours) <= 1.01 * statistics.mean(theirs)
    for share in (0.5, 0.9):
        assert sorted(ours)[int(share * len(ours))] <= 1.01 * sorted(theirs)[int(share * len(theirs))]


def _timings(record: Completion) -> tuple[int | None, str, str]:
    assert record.prefill_s is not None
    assert record.decode_s is not None
    return record.prompt_computed, f"{record.prefill_s * 1e3:.2f}", f"{record.decode_s * 1e3:.2f}"


def test_queue_clock_loop_model() -> None:
    """One slot: each request waits until the previous one has finished."""
    tasks = Loop(1, QueueClock()).run([Task(0.0, 10), Task(0.001, 10), Task(0.002, 10)])
    assert [round(task.launched, 6) for task in tasks] == [0.0, 0.1, 0.2]
    assert [b.number - a.number for a, b in pairwise(tasks)] == [2, 1]
