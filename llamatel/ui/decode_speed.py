"""Decode rate by context length and by concurrency, from finished requests."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llamatel.records import Completion

MIN_POINTS = 8
"""Least number of requests for a fit."""
_MIN_SPREAD = 0.2
"""Least range of their contexts, as a share of the longest."""
_SIGNIFICANT = 2.0
"""A slope counts if it differs from zero by this many standard errors; less is noise."""


@dataclass(frozen=True, slots=True)
class RateLine:
    """Seconds per token as a line over the context: ``base_s + context * slope_s``, with its spread."""

    requests: int
    concurrency: int
    """Concurrency, the same for all of these requests."""
    base_s: float
    slope_s: float
    """0 if the context makes no measurable difference."""
    spread: float
    """Standard deviation of the residuals, as a share of the mean."""
    shortest: int
    longest: int
    """Contexts of the requests, in tokens; the line holds between them."""

    def rate(self, context: int) -> float | None:
        """Tokens per second at a context; None if the line is not positive."""
        seconds = self.base_s + context * self.slope_s
        return 1 / seconds if seconds > 0 else None


@dataclass(frozen=True, slots=True)
class RatePoint:
    """A decode rate on the line, and its share of the ceiling that bandwidth sets."""

    context: int
    tokens_per_second: float
    ceiling_share: float | None


def points_of(line: RateLine, ceiling: Callable[[int], float | None] | None) -> tuple[RatePoint, ...]:
    """The line at its shortest, middle and longest context. ``ceiling``: by context, None where it is not known."""
    found = []
    for context in sorted({line.shortest, (line.shortest + line.longest) // 2, line.longest}):
        rate = line.rate(context)
        if rate is not None:
            most = None if ceiling is None else ceiling(context)
            found.append(RatePoint(context, rate, rate / most if most else None))
    return tuple(found)


def _middle(completion: Completion) -> int | None:
    """The context at half of the answer: the mean for the whole answer, as the cost grows linearly."""
    if completion.context_tokens is None or completion.generated is None:
        return None
    return max(1, completion.context_tokens - completion.generated // 2)


def decode_line(done: Sequence[Completion]) -> RateLine | None:
    """The line through requests of the most frequent concurrency; None below ``MIN_POINTS`` of them."""
    # A line over requests of different concurrency would show the load, not the context.
    groups: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for completion in done:
        context, each = _middle(completion), completion.time_per_output_token_s
        if context is not None and each:
            groups[1 + len(completion.in_flight)].append((context, each))
    concurrency = max(groups, key=lambda number: len(groups[number]), default=0)
    pairs = groups.get(concurrency, [])
    if len(pairs) < MIN_POINTS:
        return None
    contexts, seconds = [float(context) for context, _ in pairs], [each for _, each in pairs]
    slope, base = _fit(contexts, seconds)
    residuals = [each - base - slope * context for context, each in zip(contexts, seconds, strict=True)]
    spread = statistics.pstdev(residuals) / statistics.fmean(seconds)
    return RateLine(len(pairs), concurrency, base, slope, spread, int(min(contexts)), int(max(contexts)))


def _fit(contexts: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Slope and base of the line; the slope is 0 if it is not measurable."""
    level = 0.0, statistics.median(seconds)
    if max(contexts) - min(contexts) < _MIN_SPREAD * max(contexts):
        return level
    slope, base = statistics.linear_regression(contexts, seconds)
    squares = sum((each - base - slope * context) ** 2 for context, each in zip(contexts, seconds, strict=True))
    width = statistics.pvariance(contexts) * len(contexts)
    error = math.sqrt(squares / (len(contexts) - 2) / width)
    return (slope, base) if abs(slope) > _SIGNIFICANT * error else level


def rate_by_concurrency(done: Sequence[Completion]) -> dict[int, float]:
    """Median tokens per second of a request, by concurrency."""
    rates: dict[int, list[float]] = defaultdict(list)
    for completion in done:
        if completion.tokens_per_second:
            rates[1 + len(completion.in_flight)].append(completion.tokens_per_second)
    return {number: statistics.median(found) for number, found in sorted(rates.items())}
