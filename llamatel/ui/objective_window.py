"""Counts the requests of the last minutes that missed an objective, as they finish and expire.

Each poll needs the counts; a busy server finishes thousands of requests in the window.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from llamatel.records import FAILED, Completion, RecomputeCause
from llamatel.ui.objectives import Objectives

REQUESTS = 4096
"""Finished requests kept per server."""
WINDOW_S = 300.0


@dataclass(slots=True)
class Latency:
    """Requests whose latency is known, and those of them above the objective."""

    known: int = 0
    late: int = 0


class _Finished(NamedTuple):
    at: float
    failed: bool
    ttft_late: bool | None
    tpot_late: bool | None


class ObjectiveWindow:
    """One server's requests of the last five minutes."""

    def __init__(self) -> None:
        self._requests: deque[_Finished] = deque()
        self._lost: deque[tuple[float, RecomputeCause, float]] = deque(maxlen=REQUESTS)
        """Time, cause and seconds of prefill of tokens that had been in the cache."""
        self.failed = 0
        self.ttft, self.tpot = Latency(), Latency()

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, request: Completion, objectives: Objectives) -> None:
        """Add a finished request."""
        if len(self._requests) == REQUESTS:
            self._count(self._requests.popleft(), -1)
        finished = _Finished(
            request.ended_at,
            request.outcome in FAILED,
            _is_late(request.time_to_first_token_s, objectives.ttft_s),
            _is_late(request.time_per_output_token_s, objectives.tpot_s),
        )
        self._requests.append(finished)
        self._count(finished, 1)
        if request.recompute_cause is not None:
            self._lost.append((request.ended_at, request.recompute_cause, request.recompute_s or 0.0))

    def expire(self, now: float) -> None:
        """Drop requests that finished before the window."""
        while self._requests and now - self._requests[0].at > WINDOW_S:
            self._count(self._requests.popleft(), -1)
        while self._lost and now - self._lost[0][0] > WINDOW_S:
            self._lost.popleft()

    def lost_prefill(self) -> dict[RecomputeCause, float]:
        """Seconds of prefill that were computed again, by cause."""
        lost: dict[RecomputeCause, float] = {}
        for _, cause, seconds in self._lost:
            lost[cause] = lost.get(cause, 0.0) + seconds
        return lost

    def _count(self, finished: _Finished, by: int) -> None:
        self.failed += by * finished.failed
        for latency, late in ((self.ttft, finished.ttft_late), (self.tpot, finished.tpot_late)):
            if late is not None:
                latency.known += by
                latency.late += by * late


def _is_late(seconds: float | None, objective: float) -> bool | None:
    return None if seconds is None else seconds > objective
