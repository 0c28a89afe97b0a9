"""The log reader under stress: thousands of requests, interleaved over many slots, as fast as they can be read."""

from __future__ import annotations

import gc
import random
import time
from dataclasses import dataclass

import pytest
from opentelemetry.metrics import NoOpMeter
from opentelemetry.trace import NoOpTracer

from llamatel import collectors
from llamatel.llama.log.line_buffer import LineBuffer
from llamatel.llama.log.log_clock import LogClock
from llamatel.llama.log.reader import LogReader
from llamatel.records import Completion, Outcome, ServerInfo
from llamatel.telemetry import connect
from llamatel.ui.live import Live

ZERO = 1_790_000_000.0


@dataclass(frozen=True)
class LoggedFigures:
    """One request of the made-up log."""

    slot: int
    computed: int
    cached: int
    generated: int
    prefill_ms: float
    decode_ms: float
    outcome: Outcome


def made_up_log(requests: int, slots: int, seed: int = 1) -> tuple[list[str], dict[int | None, LoggedFigures]]:
    """A log in which every slot is always busy, and its requests by task."""
    source = random.Random(seed)
    lines: list[tuple[float, str]] = []
    expected: dict[int | None, LoggedFigures] = {}
    free_at = [source.random() * 0.01 for _ in range(slots)]
    for number in range(requests):
        slot = free_at.index(min(free_at))
        task, at = number * 7, free_at[slot]
        ends = source.choice([Outcome.OK] * 8 + [Outcome.CANCELLED, Outcome.ERROR])
        one = LoggedFigures(
            slot, source.randint(1, 500), source.randint(0, 99), source.randint(2, 99),
            round(source.uniform(0.1, 9), 2), round(source.uniform(0.1, 90), 2), ends,
        )  # fmt: skip
        expected[task] = one
        end = at + (one.prefill_ms + one.decode_ms) / 1e3
        name = f"id {slot:2d} | task {task} |"
        slot_lines = [
            (at, f"I slot get_availabl: id {slot:2d} | task -1 | selected slot by LRU, t_last = {number}"),
            (at, f"I slot launch_slot_: {name} processing task, is_child = 0"),
        ]
        if ends is Outcome.OK:
            timing = f"I slot print_timing: {name}"
            slot_lines += [
                (end, f"{timing} prompt eval time = {one.prefill_ms:10.2f} ms / {one.computed:5d} tokens (    0.05 ms"),
                (end, f"{timing}        eval time = {one.decode_ms:10.2f} ms / {one.generated:5d} tokens (    0.11 ms"),
                (end, f"{timing}       total time =       2.74 ms /    33 tokens"),
            ]
        elif ends is Outcome.CANCELLED:
            slot_lines.append((end, f"W srv          stop: cancel task, id_task = {task}"))
        else:
            slot_lines.append((end, f"E srv    send_error: task id = {task}, error: something went wrong"))
        tokens = one.cached + one.computed + one.generated - 1
        slot_lines.append((end, f"I slot      release: {name} stop processing: n_tokens = {tokens}, truncated = 0"))
        lines += slot_lines
        free_at[slot] = end + 0.0001
    lines.sort(key=lambda line: line[0])
    return [f"{_stamp(at)} {text}" for at, text in lines], expected


def _stamp(at: float) -> str:
    micro = round(at * 1e6)
    minutes, seconds = divmod(micro // 1_000_000, 60)
    return f"{minutes}.{seconds:02d}.{micro // 1000 % 1000:03d}.{micro % 1000:03d}"


@pytest.mark.parametrize("slots", [1, 16, 256])
def test_reader_many_requests_and_slots(slots: int) -> None:
    lines, expected = made_up_log(5000, slots)
    data = "".join(line + "\n" for line in lines).encode()
    reader, buffer = LogReader(ServerInfo("x"), LogClock()), LineBuffer()
    source = random.Random(2)
    records: list[Completion] = []
    position = 0
    start_time = time.process_time()
    while position < len(data):
        piece = data[position : position + source.choice((1, 100, 4096, 65536))]
        position += len(piece)
        for line in buffer.feed(piece):
            records += reader.feed(line, ZERO)
    spent = time.process_time() - start_time

    assert reader.busy == 0
    counts = reader.counts()
    assert (len(records), counts.requests_lost, counts.lines["malformed"]) == (5000, 0, 0)
    assert len(records) == len(expected)
    for record in records:
        one = expected[record.task]
        assert (record.slot, record.outcome) == (one.slot, one.outcome)
        if one.outcome is Outcome.OK:
            assert (record.prompt_computed, record.prompt_cached, record.generated) == (
                one.computed, one.cached, one.generated,
            )  # fmt: skip
            assert record.prefill_s == pytest.approx(one.prefill_ms / 1e3)
            assert record.decode_s == pytest.approx(one.decode_ms / 1e3)
    # 0.1 ms on an idle machine: hundreds of requests a second are a few percent of one core.
    assert spent / len(expected) < 0.002


def test_reader_memory_of_a_long_run() -> None:
    """Memory does not grow once the bounded buffers of recent requests are full."""
    lines, _ = made_up_log(9000, 8)
    live = Live()
    observer, _ = connect.connect(NoOpTracer(), NoOpMeter("llamatel"), list(collectors.load()), sinks=(live,))
    reader = LogReader(ServerInfo("x"), LogClock())

    def held_after(some: list[str]) -> int:
        for line in some:
            for completion in reader.feed(line, ZERO):
                observer.submit(completion)
        assert observer.flush(60)
        gc.collect()
        return len(gc.get_objects())

    two_thirds = len(lines) * 2 // 3
    filled = held_after(lines[:two_thirds])
    assert held_after(lines[two_thirds:]) - filled < 500  # 3,000 requests on
    observer.close()
