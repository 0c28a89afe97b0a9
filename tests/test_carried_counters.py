"""llama.cpp's counters across restarts of a server: totals are kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llamatel.llama.http.carried_counters import CarriedCounters


def test_carried_counters_empty() -> None:
    counters = CarriedCounters()
    assert (counters.totals(), counters.raw("a_total")) == ({}, None)
    counters.restarted()
    assert counters.totals() == {}


def test_carried_counters_ignore_gauges() -> None:
    counters = CarriedCounters()
    counters.observe({"a_total": 3, "requests_processing": 7, "n_tokens_max": 9})
    assert counters.totals() == {"a_total": 3}


def test_carried_counters_announced_restart() -> None:
    counters = CarriedCounters()
    counters.observe({"a_total": 3, "b_total": 1}, counters.process)
    counters.restarted()
    assert (counters.totals(), counters.raw("a_total")) == ({"a_total": 3, "b_total": 1}, None)
    counters.observe({"a_total": 5}, counters.process)
    assert (counters.totals(), counters.raw("a_total")) == ({"a_total": 8, "b_total": 1}, 5)
    counters.restarted()
    counters.restarted()
    assert counters.totals() == {"a_total": 8, "b_total": 1}


def test_carried_counters_unannounced_restart() -> None:
    counters = CarriedCounters()
    for value in (3, 5, 2, 4):
        counters.observe({"a_total": value, "b_total": 10})
    assert counters.totals() == {"a_total": 9, "b_total": 20}


def test_carried_counters_reordered_responses() -> None:
    counters = CarriedCounters()
    process = counters.process
    counters.observe({"a_total": 9}, process)
    counters.observe({"a_total": 7}, process)
    assert counters.totals() == {"a_total": 9}


def test_carried_counters_response_of_previous_process() -> None:
    counters = CarriedCounters()
    process = counters.process
    counters.observe({"a_total": 9}, process)
    counters.restarted()
    counters.observe({"a_total": 11}, process)
    assert counters.totals() == {"a_total": 9}


def test_carried_counters_nan_and_missing() -> None:
    counters = CarriedCounters()
    counters.observe({"a_total": 3, "b_total": 4})
    counters.observe({"a_total": float("nan"), "c_total": float("inf")})
    assert counters.totals() == {"a_total": 3, "b_total": 4}


@given(st.lists(st.one_of(st.none(), st.integers(0, 100)), max_size=30), st.booleans())
def test_carried_counters_totals_never_decrease(values: list[int | None], announced: bool) -> None:
    counters = CarriedCounters()
    before = 0.0
    for value in values:
        if value is None:
            counters.restarted()
        else:
            counters.observe({"a_total": value}, counters.process if announced else None)
        total = counters.totals().get("a_total", 0.0)
        assert total >= before
        before = total
