"""Counts, tokens and percentiles of many requests."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from llamatel.providers import HtmlRepresentation
from llamatel.records import Completion, Outcome


@dataclass(frozen=True, slots=True)
class Distribution:
    """Percentiles in seconds, interpolated linearly between the nearest values; None without a value."""

    n: int
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None

    @classmethod
    def of(cls, values: Sequence[float]) -> Distribution:
        """The distribution of ``values``."""
        if not values:
            return cls(0)
        ordered = sorted(values)

        def percentile(share: float) -> float:
            position = share * (len(ordered) - 1)
            below = int(position)
            above = min(below + 1, len(ordered) - 1)
            return ordered[below] + (ordered[above] - ordered[below]) * (position - below)

        return cls(len(ordered), percentile(0.5), percentile(0.95), percentile(0.99))

    def as_dict(self) -> dict[str, float | int | None]:
        """For JSON."""
        return {"n": self.n, "p50": self.p50, "p95": self.p95, "p99": self.p99}


@dataclass(frozen=True, slots=True)
class Summary(HtmlRepresentation):
    """A summary of many requests. Times and tokens are those of completed requests (outcome ok)."""

    outcomes: dict[str, int]
    tokens_in: int | None
    tokens_cached: int | None
    tokens_out: int | None
    time_to_first_token: Distribution
    time_per_output_token: Distribution
    end_to_end: Distribution
    queue: Distribution

    @property
    def requests(self) -> int:
        """Requests of any outcome."""
        return sum(self.outcomes.values())

    def as_dict(self) -> dict[str, object]:
        """For JSON: seconds and tokens, null where unknown."""
        return {
            "requests": {"total": self.requests, **self.outcomes},
            "tokens": {"input": self.tokens_in, "input_cached": self.tokens_cached, "output": self.tokens_out},
            "time_to_first_token_s": self.time_to_first_token.as_dict(),
            "time_per_output_token_s": self.time_per_output_token.as_dict(),
            "end_to_end_s": self.end_to_end.as_dict(),
            "queue_s": self.queue.as_dict(),
        }


class Figures(NamedTuple):
    """What is kept of a request."""

    outcome: str
    input: int | None
    cached: int | None
    output: int | None
    times: tuple[float | None, float | None, float, float | None]
    """To the first token, per output token, duration, queue."""

    @classmethod
    def of(cls, completion: Completion) -> Figures:
        """Those of a request."""
        return cls(
            completion.outcome.value, completion.prompt_tokens, completion.prompt_cached, completion.generated,
            (
                completion.time_to_first_token_s, completion.time_per_output_token_s, completion.duration_s,
                completion.queue_s,
            ),
        )  # fmt: skip


def _plus(total: int | None, value: int | None) -> int | None:
    return total if value is None else (total or 0) + value


class RequestStatistics:
    """Counts requests as they finish. A sink; thread-safe.

    Counts are exact; percentiles are those of the last ``keep`` completed requests, so memory stays bounded.
    """

    def __init__(self, keep: int = 10_000) -> None:
        self._lock = threading.Lock()
        self._outcomes: Counter[str] = Counter()
        self._in: int | None = None
        self._cached: int | None = None
        self._out: int | None = None
        self._times: deque[tuple[float | None, float | None, float, float | None]] = deque(maxlen=keep)

    def __call__(self, completion: Completion, _trace_id: str | None = None) -> None:
        """Count one request."""
        self.add(Figures.of(completion))

    def add(self, figures: Figures) -> None:
        """Count one request, whose figures several statistics may share."""
        with self._lock:
            self._outcomes[figures.outcome] += 1
            if figures.outcome != Outcome.OK:
                return
            self._in = _plus(self._in, figures.input)
            self._cached = _plus(self._cached, figures.cached)
            self._out = _plus(self._out, figures.output)
            self._times.append(figures.times)

    @property
    def requests(self) -> int:
        """Number of finished requests."""
        with self._lock:
            return self._outcomes.total()

    def outcomes(self) -> dict[str, int]:
        """Number of requests by outcome; every outcome is present."""
        with self._lock:
            return {outcome.value: self._outcomes[outcome.value] for outcome in Outcome}

    def summary(self) -> Summary:
        """The summary so far."""
        with self._lock:
            columns = list(zip(*self._times, strict=True)) or [(), (), (), ()]
            first, per_token, whole, queue = (
                Distribution.of([value for value in column if value is not None]) for column in columns
            )
            return Summary(
                outcomes={outcome.value: self._outcomes[outcome.value] for outcome in Outcome},
                tokens_in=self._in,
                tokens_cached=self._cached,
                tokens_out=self._out,
                time_to_first_token=first,
                time_per_output_token=per_token,
                end_to_end=whole,
                queue=queue,
            )
