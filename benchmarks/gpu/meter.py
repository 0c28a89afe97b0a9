"""A second source for power and energy: NVML polled directly every few milliseconds, without llamatel's code."""

from __future__ import annotations

import threading
import time
from itertools import pairwise
from types import TracebackType
from typing import Any

_INSTANT = 186
"""NVML_FI_DEV_POWER_INSTANT, in milliwatts; ``nvmlDeviceGetPowerUsage`` is a mean over a second on newer cards."""


class Meter:
    """The first GPU's power, integrated by us, and its energy counter, over a block of code."""

    def __init__(self, library: Any, every_s: float = 0.02) -> None:
        self._nvml = library
        self._handle = library.nvmlDeviceGetHandleByIndex(0)
        self._every = every_s
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.samples: list[tuple[float, float, float | None]] = []
        """Time, watts now, joules of the counter."""

    def _read(self) -> tuple[float, float, float | None]:
        nvml = self._nvml
        watts = None
        try:
            value = nvml.nvmlDeviceGetFieldValues(self._handle, [_INSTANT])[0]
            if value.nvmlReturn == 0:
                watts = value.value.uiVal / 1e3
        except nvml.NVMLError:
            pass
        if not watts:
            watts = nvml.nvmlDeviceGetPowerUsage(self._handle) / 1e3
        now = time.time()
        try:
            joules = nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1e3
        except nvml.NVMLError:
            joules = None
        return now, watts, joules

    def _run(self) -> None:
        while not self._ending.is_set():
            self.samples.append(self._read())
            self._ending.wait(self._every)

    def __enter__(self) -> Meter:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join(5)

    def integrated(self, start: float, end: float) -> float | None:
        """Joules from ``start`` to ``end`` (Unix time): the power, in a line between samples."""
        return _between([(at, watts) for at, watts, _ in self.samples], start, end)

    def counted(self, start: float, end: float) -> float | None:
        """The same by the card's counter, which moves in steps."""
        inside = [(at, joules) for at, _, joules in self.samples if joules is not None]
        ends = [_line(inside, moment) for moment in (start, end)]
        return None if None in ends else float(ends[1] or 0) - float(ends[0] or 0)

    def counter_steps_s(self) -> list[float]:
        """Times between changes of the counter."""
        changes: list[float] = []
        last = None
        for at, _, joules in self.samples:
            if joules is not None and joules != last:
                changes.append(at)
                last = joules
        return [later - earlier for earlier, later in pairwise(changes)]


def _line(points: list[tuple[float, float]], moment: float) -> float | None:
    for (left, low), (right, high) in pairwise(points):
        if left <= moment <= right:
            return low + (high - low) * (moment - left) / (right - left)
    return None


def _between(points: list[tuple[float, float]], start: float, end: float) -> float | None:
    first, last = _line(points, start), _line(points, end)
    if first is None or last is None:
        return None
    inner = [(start, first), *((at, value) for at, value in points if start < at < end), (end, last)]
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(inner))
