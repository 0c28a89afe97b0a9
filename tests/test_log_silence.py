"""A log that stops while the server keeps working is reported."""

from __future__ import annotations

import pytest

from llamatel.llama.log.log_counters import LogCounters


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_log_silence_while_tokens_are_counted(clock: Clock) -> None:
    counters = LogCounters(clock=clock)
    counters.lines["request"] += 5
    counters.timed += 1
    assert counters.snapshot(100).silent_s == 0
    clock.now += 1
    assert counters.snapshot(120).silent_s == 0  # of the last line's request
    clock.now += 30
    quiet = counters.snapshot(120)
    assert (quiet.silent_s, quiet.understood) == (0, True)  # an idle server
    clock.now += 1
    silent = counters.snapshot(140)
    assert (silent.silent_s, silent.understood) == (32, False)
    clock.now += 1
    counters.lines["request"] += 1
    again = counters.snapshot(160)
    assert (again.silent_s, again.understood) == (0, True)


def test_log_silence_of_a_busy_server_after_some_seconds(clock: Clock) -> None:
    counters = LogCounters(clock=clock)
    counters.lines["request"] += 5
    for total in range(5):
        assert counters.snapshot(total).silent_s == 0
        clock.now += 1


def test_log_silence_unknown_without_counter(clock: Clock) -> None:
    assert LogCounters(clock=clock).snapshot(None).silent_s is None


def test_log_silence_after_restart(clock: Clock) -> None:
    counters = LogCounters(clock=clock)
    counters.lines["request"] += 5
    counters.snapshot(1000)
    clock.now += 60
    assert counters.snapshot(0).silent_s == 0
    clock.now += 60
    assert counters.snapshot(0).silent_s == 0
