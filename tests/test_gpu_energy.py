"""Energy per request: interpolation between samples, concurrent requests, and shares that sum to the total."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamatel.gpu.energy import EnergyCurve, InFlight, share
from llamatel.gpu.gpu_source import GpuSource
from llamatel.records import Completion, RequestGpu
from llamatel.snapshots import DeviceSnapshot, Snapshot
from tests.golden.reading import reading
from tests.parts.processes import wait_until
from tests.samples import SERVER, START_TIME, completion, server_snapshot


def curve(*points: tuple[float, float]) -> EnergyCurve:
    made = EnergyCurve()
    for at, joules in points:
        made.counted(at, joules)
    return made


def test_energy_curve_interpolates_between_samples() -> None:
    made = curve((10.0, 100.0), (11.0, 300.0), (12.0, 300.0))
    assert made.at([10.0, 10.25, 11.0, 11.5]) == [100.0, 150.0, 300.0, 300.0]
    assert made.at([9.9]) is None
    assert made.at([12.1]) is None
    assert EnergyCurve().at([1.0]) is None


def test_energy_curve_counter_reset() -> None:
    made = curve((1.0, 500.0), (2.0, 600.0), (3.0, 10.0), (4.0, 20.0))
    assert made.at([1.5]) is None
    assert made.at([3.5]) == [15.0]


def test_energy_curve_integrates_power() -> None:
    made = EnergyCurve()
    for at, watts in ((0.0, 100.0), (1.0, 300.0), (3.0, 300.0)):
        made.measured(at, watts)
    assert made.integrated
    assert made.at([0.0, 1.0, 3.0]) == [0.0, 200.0, 800.0]


def test_share_of_concurrent_requests() -> None:
    flight = InFlight()
    flight.finish(1.0, 3.0)
    pieces = flight.crowd(2.0, 5.0, running=[4.0])
    assert pieces == [(2.0, 3.0, 2), (3.0, 4.0, 1), (4.0, 5.0, 2)]
    steady = curve((0.0, 0.0), (10.0, 1000.0))
    assert share([steady], pieces, 2.0, 5.0) == pytest.approx(200.0)
    assert share([steady], pieces, 2.5, 3.5) == pytest.approx(75.0)
    assert share([steady, steady], pieces, 2.0, 5.0) == pytest.approx(400.0)
    assert share([], pieces, 2.0, 5.0) is None


REQUESTS = st.lists(
    st.tuples(st.integers(0, 400), st.integers(1, 200)).map(lambda pair: (pair[0] / 10, (pair[0] + pair[1]) / 10)),
    min_size=1,
    max_size=12,
)
POWER = st.lists(st.floats(0, 700), min_size=61, max_size=61)


@settings(deadline=None, max_examples=40)
@given(REQUESTS, POWER)
def test_shares_sum_to_gpu_energy_while_busy(requests: list[tuple[float, float]], watts: list[float]) -> None:
    # Independent computation: each tenth of a second's energy, split evenly over the requests that cover it.
    joules = [0.0, *itertools.accumulate(watts)]
    card = curve(*((float(second), joules[second]) for second in range(62)))
    flight = InFlight()
    distributed = 0.0
    for index in sorted(range(len(requests)), key=lambda i: (requests[i][1], i)):
        start, end = requests[index]
        later = [r for i, r in enumerate(requests) if (r[1], i) > (end, index)]
        running = [start_s for start_s, _ in later if start_s <= end]
        energy = share([card], flight.crowd(start, end, running), start, end)
        flight.finish(start, end)
        assert energy is not None
        mine = [
            (watts[tenth // 10] / 10) / sum(a <= tenth / 10 < b for a, b in requests)
            for tenth in range(round(start * 10), round(end * 10))
        ]
        assert energy == pytest.approx(sum(mine), abs=1e-6)
        distributed += energy
    busy = [tenth for tenth in range(610) if any(a <= tenth / 10 < b for a, b in requests)]
    assert distributed == pytest.approx(sum(watts[tenth // 10] / 10 for tenth in busy), abs=1e-6)


class SteadyGpu:
    """A GPU that draws 200 W since ``START_TIME`` and runs the server's process."""

    def __init__(self, *, counted: bool = True, processes: dict[int, int | None] | None = None) -> None:
        self.now = START_TIME
        self.counted = counted
        self.processes = {SERVER.pid or 0: 8 << 30} if processes is None else processes

    def read(self) -> tuple[DeviceSnapshot, ...]:
        return (
            DeviceSnapshot(
                id="GPU-1", name="card", taken_at=self.now, processes=self.processes, memory_used=9 << 30,
                bandwidth=1e12, peak_flops=1e14,
            ),
        )  # fmt: skip

    def energy(self) -> dict[str, tuple[float, float | None, float | None]]:
        self.now += 0.5
        joules = 200 * (self.now - START_TIME)
        return {"GPU-1": (self.now, joules if self.counted else None, None if self.counted else 200.0)}

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def read_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every reading advance the GPU's clock by half a second."""
    monkeypatch.setattr("llamatel.gpu.gpu_source.DEVICES_EVERY_S", 0.0)


def measure(
    card: SteadyGpu, *requests: Completion, price: float | None = None, **state: Any
) -> list[RequestGpu | None]:
    """Return the GPU figures of requests that finished one after another."""
    running = GpuSource(lambda: card, price_per_kwh=price, energy_every_s=0.01, clock=lambda: card.now)
    running.start()
    try:
        wait_until(lambda: card.now > START_TIME + 10)
        running.complete_snapshot(Snapshot(START_TIME, (server_snapshot(**state),)))
        return [running.complete(request).gpu for request in requests]
    finally:
        running.stop()


def test_request_energy_by_phase_and_cost() -> None:
    # 0.5 s of prefill and 1 s of decoding 21 tokens at 200 W.
    [gpu] = measure(
        SteadyGpu(),
        completion(started_at=START_TIME + 1, ended_at=START_TIME + 2.5, first_token_at=START_TIME + 1.5),
        price=0.3,
    )
    assert gpu is not None
    assert gpu.energy_j == pytest.approx(300.0)
    assert gpu.prefill_j == pytest.approx(100.0)
    assert gpu.decode_j == pytest.approx(200.0)
    assert gpu.output_j_per_token == pytest.approx(10.0)
    assert gpu.cost == pytest.approx(300 / 3.6e6 * 0.3)
    assert (gpu.shared, gpu.integrated, gpu.assumed) == (False, False, False)


def test_request_energy_integrated_flag() -> None:
    [gpu] = measure(
        SteadyGpu(counted=False),
        completion(started_at=START_TIME + 2, ended_at=START_TIME + 3, first_token_at=START_TIME + 2.5),
    )
    assert gpu is not None
    assert gpu.energy_j == pytest.approx(200.0)
    assert gpu.integrated


def test_request_energy_shared() -> None:
    first, second = measure(
        SteadyGpu(),
        completion(
            started_at=START_TIME + 2,
            ended_at=START_TIME + 4,
            first_token_at=START_TIME + 2.5,
            in_flight=(START_TIME + 3,),
        ),
        completion(started_at=START_TIME + 3, ended_at=START_TIME + 5, first_token_at=START_TIME + 3.5),
    )
    assert first is not None
    assert second is not None
    assert [first.energy_j, second.energy_j] == pytest.approx([300.0, 300.0])
    assert first.shared
    assert second.shared


def test_request_energy_unknown_before_first_reading() -> None:
    [gpu] = measure(
        SteadyGpu(), completion(started_at=START_TIME - 3, ended_at=START_TIME + 3, first_token_at=START_TIME)
    )
    assert gpu == RequestGpu()


def test_request_energy_server_without_gpu_and_hidden_processes() -> None:
    request = completion(started_at=START_TIME + 1, ended_at=START_TIME + 2, first_token_at=START_TIME + 1.5)
    assert measure(SteadyGpu(processes={1: 5 << 30}), request) == [None]
    [gpu] = measure(SteadyGpu(processes={}), request)
    assert gpu is not None
    assert gpu.assumed


@pytest.mark.parametrize("name", ["llama-server", "queued"])
def test_shares_of_recorded_log_sum_to_gpu_energy(name: str) -> None:
    requests = reading(name).completions
    start, end = min(r.started_at for r in requests), max(r.ended_at for r in requests)
    card = curve((start - 1, 0.0), (end + 1, 200 * (end - start + 2)))
    flight = InFlight()
    distributed = 0.0
    for each in requests:
        pieces = flight.crowd(each.started_at, each.ended_at, each.in_flight)
        energy = share([card], pieces, each.started_at, each.ended_at)
        flight.finish(each.started_at, each.ended_at)
        distributed += energy or 0.0
    busy, until = 0.0, start
    for start_s, end_s in sorted((r.started_at, r.ended_at) for r in requests):
        busy += max(0.0, end_s - max(start_s, until))
        until = max(until, end_s)
    assert any(each.in_flight for each in requests)
    assert distributed == pytest.approx(200 * busy, rel=1e-6)
