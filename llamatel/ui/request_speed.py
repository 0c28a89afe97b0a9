"""Prefill and decode rate by context length and by number of busy slots, from finished requests."""

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
"""Standard deviations by which the rise of a line differs from chance."""
_MOST_PAIRED = 300
"""Requests that a slope is computed from, evenly chosen."""
SHORT = 512
"""New tokens below which a prompt's rate is mostly overhead: llama.cpp computes so many at once."""

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
    spread: float
    """Half of the requests are this close to the line, as a share of its time."""
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
    """A line for each number of busy slots with ``MIN_POINTS`` prompts of ``SHORT`` new tokens or more."""
    prefill_short: tuple[RateLine, ...]
    """Of prompts with fewer new tokens."""
    decode: tuple[RateLine, ...]
    decode_by_busy_slots: dict[int, float]
    """Median tokens per second of one request, by busy slots."""


def request_speed(
    requests: Sequence[Completion], *, prefill_ceiling: Ceiling | None = None, decode_ceiling: Ceiling | None = None
) -> RequestSpeed:
    """Fit the requests of one server; those without phases only hold slots."""
    busy = _BusySlots(requests)
    long, short, decodes = (defaultdict[int, list[_Timed]](list) for _ in range(3))
    for request in requests:
        if request.outcome is Outcome.OK:
            prefills = short if (request.prompt_computed or 0) < SHORT else long
            for phase, groups in ((_prefill(request), prefills), (_decode(request), decodes)):
                if phase is not None:
                    groups[busy.mean(phase.start, phase.end)].append(phase)
    return RequestSpeed(
        prefill=_lines(long, prefill_ceiling),
        prefill_short=_lines(short, prefill_ceiling),
        decode=_lines(decodes, decode_ceiling),
        decode_by_busy_slots={
            number: statistics.median(phase.tokens / phase.seconds for phase in phases)
            for number, phases in sorted(decodes.items())
        },
    )


def _prefill(request: Completion) -> _Timed | None:
    if request.is_child or not request.prefill_s or not request.prompt_computed or request.prompt_cached is None:
        return None
    computed = request.prompt_computed
    # A slot that is assigned may wait for others' prompts before its own is processed.
    end = request.started_at + request.prefill_s if request.first_token_at is None else request.first_token_at
    return _Timed(computed, request.prefill_s, request.prompt_cached + computed / 2, end - request.prefill_s, end)


def _decode(request: Completion) -> _Timed | None:
    each = request.time_per_output_token_s
    if not each or request.decode_s is None or request.context_tokens is None or request.generated is None:
        return None
    context = max(1, request.context_tokens - request.generated // 2)
    return _Timed(round(request.decode_s / each), request.decode_s, context, request.ended_at - request.decode_s,
                  request.ended_at)  # fmt: skip


def _lines(groups: dict[int, list[_Timed]], ceiling: Ceiling | None) -> tuple[RateLine, ...]:
    return tuple(_line(number, found, ceiling) for number, found in sorted(groups.items()) if len(found) >= MIN_POINTS)


def _line(busy: int, phases: Sequence[_Timed], ceiling: Ceiling | None) -> RateLine:
    """The line of Theil and Sen, which single slow requests do not move."""
    contexts = [phase.context for phase in phases]
    each = [phase.seconds / phase.tokens for phase in phases]
    shortest, longest = min(contexts), max(contexts)
    slope = _slope(contexts, each) if longest - shortest >= _MIN_SPREAD * longest else 0.0
    base = statistics.median(y - slope * x for x, y in zip(contexts, each, strict=True))
    expected = [base + slope * context for context in contexts]
    spread = statistics.median(abs(y / line - 1) if line > 0 else 1.0 for y, line in zip(each, expected, strict=True))
    points = []
    for context in sorted({int(shortest), int(shortest + longest) // 2, int(longest)}):
        seconds = base + slope * context
        if seconds > 0:
            most = None if ceiling is None else ceiling(context)
            points.append(RatePoint(context, 1 / seconds, 1 / seconds / most if most else None))
    return RateLine(busy, len(phases), base, slope, spread, tuple(points))


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The median slope of all pairs; 0 unless y rises with x measurably (by the test of Mann and Kendall)."""
    step = -(-len(x) // _MOST_PAIRED)
    pairs = sorted(zip(x[::step], y[::step], strict=True))
    slopes = [(b - y0) / (a - x0) for at, (x0, y0) in enumerate(pairs) for a, b in pairs[at + 1 :] if a > x0]
    n = len(pairs)
    rises = sum((slope > 0) - (slope < 0) for slope in slopes)
    return statistics.median(slopes) if rises > _SIGNIFICANT * math.sqrt(n * (n - 1) * (2 * n + 5) / 18) else 0.0
