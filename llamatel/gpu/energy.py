"""The energy of a request: what the cards used while it ran, divided among the requests that ran at the same time."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import pairwise

KEPT_S = 3600.0
"""A request that ran for longer gets no energy figure."""
_SAMPLES = 4 * 3600


class EnergyCurve:
    """One card's energy over time, from samples in order of time."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=_SAMPLES)
        self._joules: deque[float] = deque(maxlen=_SAMPLES)
        self._power: tuple[float, float] | None = None
        self.integrated = False

    @property
    def last(self) -> tuple[float, float] | None:
        """Time and joules of the last sample."""
        return (self._times[-1], self._joules[-1]) if self._times else None

    def counted(self, time: float, joules: float) -> None:
        """Add a reading of the energy counter. After a decrease (a reset) earlier readings are dropped."""
        if self._joules and joules < self._joules[-1]:
            self._times.clear()
            self._joules.clear()
        self._add(time, joules)

    def measured(self, time: float, watts: float) -> None:
        """Add a power reading; the energy is the integral, with the mean of two readings between them."""
        self.integrated = True
        if self._power is None or not self._joules:
            self._add(time, 0.0)
        else:
            before, last = self._power
            self._add(time, self._joules[-1] + (time - before) * (last + watts) / 2)
        self._power = (time, watts)

    def _add(self, time: float, joules: float) -> None:
        if self._times and time <= self._times[-1]:
            return
        self._times.append(time)
        self._joules.append(joules)
        while self._times[0] < time - KEPT_S:
            self._times.popleft()
            self._joules.popleft()

    def at(self, times: Sequence[float]) -> list[float] | None:
        """Joules at these times, interpolated linearly; None unless samples enclose all of them."""
        if not times or not self._times or min(times) < self._times[0] or max(times) > self._times[-1]:
            return None
        stamps, joules = self._since(min(times))
        found = []
        for time in times:
            after = bisect_left(stamps, time)
            if stamps[after] == time:
                found.append(joules[after])
                continue
            start, end = stamps[after - 1], stamps[after]
            part = (time - start) / (end - start)
            found.append(joules[after - 1] + part * (joules[after] - joules[after - 1]))
        return found

    def _since(self, moment: float) -> tuple[list[float], list[float]]:
        """Times and joules from the last sample at or before ``moment``; searched from the end: requests are recent."""
        stamps: list[float] = []
        joules: list[float] = []
        for at, total in zip(reversed(self._times), reversed(self._joules), strict=True):
            stamps.append(at)
            joules.append(total)
            if at <= moment:
                break
        return stamps[::-1], joules[::-1]


class InFlight:
    """When requests ran, from finished requests and the start times of those still running at their end."""

    def __init__(self, kept: int = 4096) -> None:
        self._finished: deque[tuple[float, float]] = deque(maxlen=kept)

    def finish(self, started_at: float, finished_at: float) -> None:
        """Record a finished request."""
        self._finished.append((started_at, finished_at))

    def crowd(self, start: float, end: float, running: Iterable[float]) -> list[tuple[float, float, int]]:
        """Pieces of the time from ``start`` to ``end`` with the number of requests that ran, this one included.

        ``running``: start times of the requests that still ran at ``end``.
        """
        starts = [max(started, start) for started in running if started < end]
        finishes: list[float] = []
        for started, finished in self._finished:
            if finished > start and started < end:
                starts.append(max(started, start))
                finishes.append(min(finished, end))
        starts.sort()
        finishes.sort()
        edges = sorted({start, end, *starts, *finishes})
        pieces = []
        for left, right in pairwise(edges):
            number = 1 + bisect_right(starts, left) - bisect_right(finishes, left)
            pieces.append((left, right, number))
        return pieces


def share(
    curves: Sequence[EnergyCurve], pieces: Sequence[tuple[float, float, int]], start: float, end: float
) -> float | None:
    """Joules from ``start`` to ``end`` of one among the requests that ``pieces`` counts; None where not measured."""
    within = [(max(left, start), min(right, end), n) for left, right, n in pieces if right > start and left < end]
    if not within or not curves:
        return None
    edges = [within[0][0], *(right for _, right, _ in within)]
    total = 0.0
    for curve in curves:
        joules = curve.at(edges)
        if joules is None:
            return None
        total += sum((joules[i + 1] - joules[i]) / n for i, (_, _, n) in enumerate(within))
    return total
