"""SpanShedding: what is shed under overload, and what remains."""

from __future__ import annotations

import pytest

from llamatel.telemetry.span_shedding import SpanShedding


class Load:
    """A load and a clock that a test sets."""

    def __init__(self) -> None:
        self.load = 0.0
        self.now = 0.0
        self.shedding = SpanShedding(lambda: self.load, lambda: self.now)

    def run(self, requests: int, every_s: float = 0.001) -> list[float | None]:
        admitted = []
        for _ in range(requests):
            self.now += every_s
            admitted.append(self.shedding.admit())
        return admitted


def test_span_shedding_nothing_without_overload() -> None:
    load = Load()
    load.load = 0.4
    assert load.run(1000) == [1.0] * 1000
    assert load.shedding.shed_ratio == 0.0


def test_span_shedding_doubles_while_overloaded_and_is_even() -> None:
    load = Load()
    load.load = 0.9
    load.run(120)  # two adjustments: at once, after 50 ms, after 100 ms
    assert load.shedding.shed_ratio == 1 - 1 / 8
    load.load = 0.3
    admitted = load.run(800)
    assert [index % 8 for index, share in enumerate(admitted) if share] == [admitted.index(0.125) % 8] * 100
    assert {share for share in admitted if share is not None} == {0.125}


def test_span_shedding_ends_with_the_overload(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    load = Load()
    load.load = 1.0
    load.run(500)
    load.load = 0.0
    load.run(1000)
    assert load.shedding.shed_ratio == 0.0
    assert load.run(10) == [1.0] * 10
    assert len(caplog.records) == 2


def test_span_shedding_keeps_a_minimum_at_any_load() -> None:
    load = Load()
    load.load = 1.0
    load.run(5000)
    assert any(load.run(10000))


def test_span_shedding_shed_all() -> None:
    load = Load()
    load.shedding.shed_all()
    assert load.run(100) == [None] * 100
    assert load.shedding.shed_ratio == 1.0
