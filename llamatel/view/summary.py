"""Many requests in a few figures."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from llamatel.records import Completion, Outcome
from llamatel.view.figures import exact, plural, seconds
from llamatel.view.glyphs import OUTCOME_STYLES, UNICODE, Glyphs


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
            place = share * (len(ordered) - 1)
            below = int(place)
            above = min(below + 1, len(ordered) - 1)
            return ordered[below] + (ordered[above] - ordered[below]) * (place - below)

        return cls(len(ordered), percentile(0.5), percentile(0.95), percentile(0.99))

    def as_dict(self) -> dict[str, float | int | None]:
        """For JSON."""
        return {"n": self.n, "p50": self.p50, "p95": self.p95, "p99": self.p99}


@dataclass(frozen=True, slots=True)
class Summary:
    """What a load looked like. Times and tokens are those of completed requests (outcome ok)."""

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
        """All of them, whatever their outcome."""
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


def _plus(total: int | None, value: int | None) -> int | None:
    return total if value is None else (total or 0) + value


class Tally:
    """Adds requests up as they finish. A sink, safe to read from another thread.

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
        with self._lock:
            self._outcomes[completion.outcome.value] += 1
            if completion.outcome is not Outcome.OK:
                return
            self._in = _plus(self._in, completion.prompt_tokens)
            self._cached = _plus(self._cached, completion.prompt_cached)
            self._out = _plus(self._out, completion.generated)
            self._times.append(
                (
                    completion.time_to_first_token_s,
                    completion.time_per_output_token_s,
                    completion.duration_s,
                    completion.queue_s,
                )
            )

    @property
    def requests(self) -> int:
        """How many requests have ended."""
        with self._lock:
            return self._outcomes.total()

    def summary(self) -> Summary:
        """The figures so far."""
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


def summary_sentence(summary: Summary) -> str:
    """One line without colours: ``12 requests: 9 ok, 2 cancelled, 1 error``."""
    parts = [f"{number} {name}" for name, number in summary.outcomes.items() if number]
    return plural(summary.requests, "request") + (": " + ", ".join(parts) if parts else "")


def summary_table(summary: Summary, glyphs: Glyphs = UNICODE) -> Text:
    """Several lines of at most 80 columns, without a line break at the end."""
    text = Text(no_wrap=True)
    text.append(f"{plural(summary.requests, 'request')}", "bold")
    for name, number in summary.outcomes.items():
        text.append("  ")
        text.append(f"{number} {name}", OUTCOME_STYLES[name] if number else "dim")
    completed = summary.outcomes[Outcome.OK.value]
    text.append(f"\n{f'of the {completed} ok':28}{'p50':>9}{'p95':>9}{'p99':>9}", "bold")
    for label, distribution in (
        ("waited for a slot", summary.queue),
        ("time to first token", summary.time_to_first_token),
        ("time per output token", summary.time_per_output_token),
        ("end to end", summary.end_to_end),
    ):
        text.append(f"\n{label:28}")
        for value in (distribution.p50, distribution.p95, distribution.p99):
            text.append(f"{seconds(value, glyphs):>9}")
    text.append(
        f"\n{'tokens':28}{exact(summary.tokens_in, glyphs)} in "
        f"({exact(summary.tokens_cached, glyphs)} from the KV cache), "
        f"{exact(summary.tokens_out, glyphs)} out"
    )
    return text
