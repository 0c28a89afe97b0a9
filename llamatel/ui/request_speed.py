"""Prefill and decode rate by context length and by number of busy slots, from the requests themselves."""

from __future__ import annotations

import math
import statistics
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from llamatel.records import Completion, Outcome

MIN_POINTS = 8
"""Requests that a fitted line needs."""
_MIN_SPREAD = 0.2
"""... and how far their contexts are apart, as a share of the longest."""
_SIGNIFICANT = 2.0
"""Standard errors by which a term differs from zero; a smaller one is noise."""
_ROUNDS, _LEAST_S, _SINGULAR = 3, 1e-12, 1e-10

Ceiling = Callable[[int], "float | None"]
"""Tokens per second that the hardware allows one request, by its context in tokens; None where unknown."""


@dataclass(frozen=True, slots=True)
class RatePoint:
    """A rate on the line, and what share of the hardware's ceiling it is."""

    context: int
    tokens_per_second: float
    ceiling_share: float | None


@dataclass(frozen=True, slots=True)
class RateLine:
    """Seconds per token as a line over the context, ``base_s + context * slope_s``, of one request."""

    busy_slots: int
    """Slots that were busy meanwhile, its own included: the mean over its time, rounded."""
    requests: int
    base_s: float
    slope_s: float
    """Zero where the context makes no measurable difference."""
    fixed_s: float
    """Seconds for each request besides, however short its prompt; zero for decode."""
    spread: float
    """Standard deviation of the requests from the line, as a share of their time."""
    points: tuple[RatePoint, ...]
    """At the shortest, the middle and the longest context of the requests; the line holds between them."""


class _Timed(NamedTuple):
    """A phase of a request."""

    tokens: int
    seconds: float
    context: float
    """Mean context of its tokens: what a token costs grows linearly with the context."""
    start: float
    end: float


class _BusySlots:
    """How many slots were busy, from the requests that held them."""

    def __init__(self, requests: Sequence[Completion]) -> None:
        steps: dict[float, int] = defaultdict(int)
        for request in requests:
            steps[request.started_at] += 1
            steps[request.ended_at] -= 1
        self._times = sorted(steps)
        self._busy = list(accumulate(steps[time] for time in self._times))
        widths = (after - time for time, after in zip(self._times, self._times[1:], strict=False))
        parts = (busy * width for busy, width in zip(self._busy, widths, strict=False))
        self._integral = list(accumulate(parts, initial=0.0))

    def mean(self, start: float, end: float) -> int:
        """Over a period in which at least one was busy."""
        if end <= start:
            return max(1, self._busy[max(0, bisect_right(self._times, start) - 1)])
        return max(1, round((self._until(end) - self._until(start)) / (end - start)))

    def _until(self, time: float) -> float:
        at = max(0, bisect_right(self._times, time) - 1)
        return self._integral[at] + self._busy[at] * max(0.0, time - self._times[at])


@dataclass(frozen=True, slots=True)
class RequestSpeed:
    """What the requests of one server show."""

    prefill: tuple[RateLine, ...]
    """One for each number of busy slots with ``MIN_POINTS`` requests."""
    decode: tuple[RateLine, ...]
    decode_by_busy_slots: dict[int, float]
    """Median tokens per second of one request, by busy slots."""


def request_speed(
    requests: Sequence[Completion], *, prefill_ceiling: Ceiling | None = None, decode_ceiling: Ceiling | None = None
) -> RequestSpeed:
    """Fit the requests of one server; those without phases only hold slots."""
    busy = _BusySlots(requests)
    prefills: dict[int, list[_Timed]] = defaultdict(list)
    decodes: dict[int, list[_Timed]] = defaultdict(list)
    for request in requests:
        if request.outcome is Outcome.OK:
            for phase, groups in ((_prefill(request), prefills), (_decode(request), decodes)):
                if phase is not None:
                    groups[busy.mean(phase.start, phase.end)].append(phase)
    return RequestSpeed(
        prefill=_lines(prefills, prefill_ceiling, fixed=True),
        decode=_lines(decodes, decode_ceiling, fixed=False),
        decode_by_busy_slots={
            number: statistics.median(phase.tokens / phase.seconds for phase in phases)
            for number, phases in sorted(decodes.items())
        },
    )


def _prefill(request: Completion) -> _Timed | None:
    if request.is_child or not request.prefill_s or not request.prompt_computed or request.prompt_cached is None:
        return None
    computed, start = request.prompt_computed, request.started_at
    context = request.prompt_cached + computed / 2
    return _Timed(computed, request.prefill_s, context, start, start + request.prefill_s)


def _decode(request: Completion) -> _Timed | None:
    each = request.time_per_output_token_s
    if not each or request.decode_s is None or request.context_tokens is None or request.generated is None:
        return None
    context = max(1, request.context_tokens - request.generated // 2)
    return _Timed(round(request.decode_s / each), request.decode_s, context, request.ended_at - request.decode_s,
                  request.ended_at)  # fmt: skip


def _lines(groups: dict[int, list[_Timed]], ceiling: Ceiling | None, *, fixed: bool) -> tuple[RateLine, ...]:
    return tuple(
        _line(number, phases, ceiling, fixed=fixed)
        for number, phases in sorted(groups.items())
        if len(phases) >= MIN_POINTS
    )


def _line(busy: int, phases: Sequence[_Timed], ceiling: Ceiling | None, *, fixed: bool) -> RateLine:
    """Least squares of seconds = fixed + tokens * (base + slope * context)."""
    contexts = [phase.context for phase in phases]
    shortest, longest = min(contexts), max(contexts)
    columns: list[list[float]] = [[float(phase.tokens) for phase in phases]]
    sloped = longest - shortest >= _MIN_SPREAD * longest
    if sloped:
        columns.append([phase.tokens * phase.context / longest for phase in phases])
    if fixed:
        columns.append([1.0] * len(phases))
    seconds = [phase.seconds for phase in phases]
    expected = seconds
    for _ in range(_ROUNDS):  # errors are relative to the time that the line expects
        terms = _fit(columns, seconds, expected)
        slope, overhead = terms[1] / longest if sloped else 0.0, terms[-1] if fixed else 0.0
        base = terms[0]
        if not slope and not overhead:
            base = statistics.median(phase.seconds / phase.tokens for phase in phases)
        expected = [max(overhead + phase.tokens * (base + slope * phase.context), _LEAST_S) for phase in phases]
    spread = statistics.pstdev(time / line for time, line in zip(seconds, expected, strict=True))
    points = []
    for context in sorted({int(shortest), int(shortest + longest) // 2, int(longest)}):
        each = base + slope * context
        if each > 0:
            most = None if ceiling is None else ceiling(context)
            points.append(RatePoint(context, 1 / each, 1 / each / most if most else None))
    return RateLine(busy, len(phases), base, slope, overhead, spread, tuple(points))


# -- least squares -----------------------------------------------------------------------------------------------------


def _fit(columns: Sequence[Sequence[float]], values: Sequence[float], errors: Sequence[float]) -> list[float]:
    """Coefficients of the sum of ``columns`` that is nearest to ``values`` in units of ``errors``.

    All but the first are zero unless they are positive and measurable, and the first is positive, too.
    """
    scaled = [[value / error for value, error in zip(column, errors, strict=True)] for column in (*columns, values)]
    target = scaled.pop()
    used = list(range(len(columns)))
    while True:
        inverse = _inverse([[_dot(scaled[i], scaled[j]) for j in used] for i in used])
        if inverse is None:
            if len(used) == 1:
                return [0.0] * len(columns)
            used.pop()
            continue
        sums = [_dot(scaled[i], target) for i in used]
        terms = dict(zip(used, (_dot(row, sums) for row in inverse), strict=True))
        left = [value - sum(term * scaled[i][row] for i, term in terms.items()) for row, value in enumerate(target)]
        variance = _dot(left, left) / max(1, len(target) - len(used))
        # Standard errors of each term from zero.
        sure = {
            i: terms[i] / max(math.sqrt(max(0.0, inverse[at][at] * variance)), _LEAST_S)
            for at, i in enumerate(used)
            if i
        }
        worst = min(sure, key=lambda i: sure[i], default=0)
        if not worst or (sure[worst] > _SIGNIFICANT and terms[0] > 0):
            return [terms.get(column, 0.0) for column in range(len(columns))]
        used.remove(worst)


def _dot(first: Sequence[float], second: Sequence[float]) -> float:
    return math.fsum(a * b for a, b in zip(first, second, strict=True))


def _inverse(matrix: Sequence[Sequence[float]]) -> list[list[float]] | None:
    """By Gauss and Jordan; None if it is singular."""
    size = len(matrix)
    rows = [[*row, *(float(i == j) for j in range(size))] for i, row in enumerate(matrix)]
    for column in range(size):
        pivot = max(range(column, size), key=lambda at: abs(rows[at][column]))
        if abs(rows[pivot][column]) <= _SINGULAR * abs(matrix[column][column]):
            return None
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = [value / rows[column][column] for value in rows[column]]
        for at in range(size):
            if at != column:
                factor = rows[at][column]
                rows[at] = [a - factor * b for a, b in zip(rows[at], rows[column], strict=True)]
    return [row[size:] for row in rows]
