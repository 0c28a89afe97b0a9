"""Log time as Unix time: late reading, sleeping machines, clocks that are set."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamatel.llama.log.log_clock import LogClock

START = 1_790_000_000.0


class Machine:
    """A machine: time asleep and clock adjustments, in seconds."""

    def __init__(self) -> None:
        self.slept = START

    def __call__(self) -> float:
        return self.slept


@given(lags=st.lists(st.floats(0.0, 4.0), min_size=1, max_size=50))
def test_log_clock_least_lag(lags: list[float]) -> None:
    clock = LogClock(slept=Machine())
    for second, lag in enumerate(lags):
        clock.observe(float(second), START + second + lag)
    assert clock.wall(0.0) == pytest.approx(START + min(lags), abs=1e-6)


@pytest.mark.parametrize("stall", [2.0, 6.0, 60.0])
def test_log_clock_stalled_reader(stall: float) -> None:
    clock = LogClock(slept=Machine())
    clock.observe(1.0, START + 1.0)
    for tenth in range(int(stall * 10)):
        clock.observe(1.0 + tenth / 10, START + 1.0 + stall + tenth / 1e5)
        assert clock.wall(0.0) == START
    clock.observe(2.0 + stall, START + 2.0 + stall)
    assert clock.wall(0.0) == START


def test_log_clock_first_line_read_late() -> None:
    clock = LogClock(slept=Machine())
    clock.observe(1.0, START + 61.0)
    assert clock.wall(0.0) == START + 60.0
    clock.observe(62.0, START + 62.0)
    assert clock.wall(0.0) == START


def test_log_clock_local_sleep() -> None:
    machine = Machine()
    clock = LogClock(slept=machine)
    clock.observe(1.0, START + 1.0)
    machine.slept += 3600
    clock.observe(2.0, START + 3602.5)
    assert clock.wall(2.0) == START + 3602.0


def test_log_clock_set_back() -> None:
    machine = Machine()
    clock = LogClock(slept=machine)
    clock.observe(1.0, START + 1.0)
    machine.slept -= 100
    clock.observe(2.0, START - 97.9)
    assert clock.wall(2.0) == START - 98.0


def test_log_clock_remote_sleep() -> None:
    clock = LogClock(slept=Machine())
    clock.observe(1.0, START + 1.0)
    for second in range(2, 6):
        clock.observe(float(second), START + 3600 + second)
    assert clock.wall(5.0) == START + 3605.0


def test_log_clock_not_live() -> None:
    clock = LogClock(live=False, anchor=0.0, slept=Machine())
    clock.observe(1.0, 1.0)
    for second in range(2, 6):
        clock.observe(float(second), 3600.0 + second)
    assert clock.wall(5.0) == 5.0


def test_log_clock_restart() -> None:
    clock = LogClock(slept=Machine())
    with pytest.raises(ValueError, match="no line"):
        clock.wall(0.0)
    clock.observe(1.0, START + 1.0)
    clock.restart()
    assert clock.process_started_at is None
    clock.observe(1.0, START + 100.0)
    assert clock.wall(1.0) == START + 100.0
