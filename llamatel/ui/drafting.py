"""Evaluates speculative decoding: accepted tokens, tokens per step, speed compared with plain decoding."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llamatel.records import Completion
from llamatel.ui.request_speed import Ceiling

_POSITION = re.compile(r'spec_decode_num_accepted_tokens_per_pos_total\{position="(\d{1,3})"\}')
_STEPS, _TOTALS = "spec_decode_num_drafts_total", ("draft", "accepted")
_ENOUGH = 3
"""Least number of requests with, and without, drafts for a comparison."""


@dataclass(frozen=True, slots=True)
class Drafting:
    """Speculative decoding of the observed requests."""

    acceptance: float
    """Share of the draft tokens that were accepted."""
    tokens_per_step: float | None
    """Over all decode steps; if requests do not show their drafts, over the steps with a draft."""
    by_position: tuple[float, ...]
    """Share of the drafts whose first, second, ... token was accepted, since the server started; empty where llama.cpp
    does not count it."""
    tokens_per_second: float | None
    """Median decode rate of requests with drafts."""
    ceiling_share: float | None
    """Median share of that rate in what the memory bandwidth allows without drafts; above 1, drafting pays for sure."""
    speedup: float | None
    """Decode rate of requests with drafts divided by that of requests without, at the same concurrency; None unless
    there are ``_ENOUGH`` of both."""


def drafting(
    done: Sequence[Completion], counters: Mapping[str, float], ceiling: Ceiling | None = None
) -> Drafting | None:
    """``counters``: llama.cpp's own. None where nothing was drafted."""
    with_drafts = [completion for completion in done if completion.draft_generated]
    drafted = sum(completion.draft_generated or 0 for completion in with_drafts)
    accepted = sum(completion.draft_accepted or 0 for completion in with_drafts)
    tokens = sum(max(0, (completion.generated or 1) - 1) for completion in with_drafts)
    steps: float = tokens - accepted
    if not drafted:  # no request log, or a page, whose requests lack it
        drafted, accepted = (int(counters.get(f"spec_decode_num_{name}_tokens_total", 0)) for name in _TOTALS)
        steps = counters.get(_STEPS, 0.0)
        tokens = int(steps) + accepted
    if not drafted:
        return None
    rates = [(request.tokens_per_second, request.context_tokens) for request in with_drafts]
    most = [(rate, None if ceiling is None or context is None else ceiling(context)) for rate, context in rates]
    shares = [rate / allowed for rate, allowed in most if rate and allowed]
    return Drafting(
        acceptance=accepted / drafted,
        tokens_per_step=tokens / steps if steps > 0 else None,
        by_position=_by_position(counters),
        tokens_per_second=statistics.median(found) if (found := [rate for rate, _ in rates if rate]) else None,
        ceiling_share=statistics.median(shares) if shares else None,
        speedup=_speedup(done),
    )


def _by_position(counters: Mapping[str, float]) -> tuple[float, ...]:
    drafts = counters.get(_STEPS)
    if not drafts:
        return ()
    found = {int(match.group(1)): value for name, value in counters.items() if (match := _POSITION.fullmatch(name))}
    return tuple(found[position] / drafts for position in sorted(found))


def _speedup(done: Sequence[Completion]) -> float | None:
    rates: dict[int, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for completion in done:
        if completion.tokens_per_second:
            rates[len(completion.in_flight)][bool(completion.draft_generated)].append(completion.tokens_per_second)
    pairs = [(plain, fast) for plain, fast in rates.values() if min(len(plain), len(fast)) >= _ENOUGH]
    if not pairs:
        return None
    plain, fast = max(pairs, key=lambda pair: len(pair[0]) + len(pair[1]))
    return statistics.median(fast) / statistics.median(plain)
