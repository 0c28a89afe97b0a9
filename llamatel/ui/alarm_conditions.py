"""Conditions over a server's history: what is currently wrong, and the flag that would help.

Conditions and thresholds are those of the alert rules (``llamatel_dashboards.alerts``), which import them from here.
Nothing here reads a clock or queries a server.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from llamatel.snapshots import KvCacheState, ServerSnapshot
from llamatel.ui.objective_window import WINDOW_S, ObjectiveWindow
from llamatel.ui.objectives import Objectives
from llamatel.ui.remedies import recompute_remedy

HEADROOM = 0.1
"""Warn when less than this share of the KV pool is left for running requests."""
EXHAUSTED_WITHIN_S = 300.0
"""Warn when the pool will be full within this time at the current rate, once half of it is in use."""
DEFERRED_FOR_S = 60.0
"""Warn when requests have waited for a slot without interruption for this long."""
DOWN_FOR_S = 15.0
UNRESPONSIVE_FOR_S = 300.0
"""Warn about a server that accepts connections and has not responded for this long."""
STARTING_FOR_S = 900.0
"""Warn about a model that has been loading for this long."""
RESTARTS = 3
"""Restarts within ``RESTARTS_WITHIN_S`` that count as a restart loop."""
RESTARTS_WITHIN_S = 600.0
BURN_RATE = 6.0
"""The alert fires if the share of requests that miss an objective exceeds the error budget by this factor."""
LEAST_MISSED = 3
"""Requests that have to miss an objective, however small the error budget: one slow request raises nothing."""
MOST_FAIL = 0.5
"""Share of failed requests that is critical, whatever the objective."""
_TREND_S = 60.0
"""Window of the KV pool's trend; samples must cover a quarter of it."""
_STEADY = 0.9
"""Correlation of time and tokens from which growth counts as a trend."""


@dataclass(eq=False)
class History:
    """State kept about one server between snapshots."""

    active: deque[tuple[float, int]] = field(default_factory=deque)
    """Tokens of running requests, by time."""
    deferred_since: float | None = None
    down_since: float | None = None
    stale_since: float | None = None
    starting_since: float | None = None
    restarts: deque[tuple[float, int]] = field(default_factory=deque)
    model_failures: int = 0
    window: ObjectiveWindow = field(default_factory=ObjectiveWindow)
    raised_at: dict[str, float] = field(default_factory=dict)
    """When each warning was last raised."""


_MODEL_FAILED = "failed to load, or its process exited: see the router's log; llamatel plan shows whether it fits"
ON_CPU = (
    "the model was to be on the GPU and decodes on the CPU: does this build of llama.cpp support the GPU, and is "
    "there memory for the model (llamatel plan)?"
)


def context_full(number: int, state: ServerSnapshot) -> str:
    """The warning about ``number`` requests that failed because the KV pool was full."""
    cache = state.kv_cache
    pool = f" of {cache.capacity:,} tokens" if cache is not None and cache.capacity is not None else ""
    shared = f" that {len(state.slots)} slots share" if cache is not None and cache.unified and state.slots else ""
    what = "request" if number == 1 else "requests"
    split = cache is not None and cache.unified is False
    remedy = (
        "raise -c, or lower -np"
        if split
        else "raise -c, lower -np, or give each slot its own share with --no-kv-unified"
    )
    return f"{number} {what} failed because the KV pool{pool}{shared} was full: {remedy}"


def conditions(
    state: ServerSnapshot, history: History, now: float, objectives: Objectives
) -> Iterator[tuple[str, str]]:
    """Current alarms of a server: names with texts. ``history`` is updated."""
    if state.state == "stalled":
        remedy = "restart it; llamatel serve --restart on-stall does that"
        if state.router_model is not None:
            remedy = "unload the model (POST /models/unload), or kill its process: the router loads it again"
        yield "server_stalled", f"the server has work and makes no progress: see its log and {remedy}"
    if state.router_model is not None:
        before, history.model_failures = history.model_failures, state.router_model.failures or 0
        if history.model_failures > before:
            yield "model_failed", f"the router's model {state.server.model!r} {_MODEL_FAILED}"
    if not state.stale:
        history.stale_since = None
    elif history.stale_since is None:
        history.stale_since = now
    if state.stale:
        if history.stale_since is not None and now - history.stale_since >= UNRESPONSIVE_FOR_S:
            minutes = (now - history.stale_since) / 60
            yield (
                "server_unresponsive",
                (
                    f"the server has answered health checks only for {minutes:.0f} minutes: restart it if its "
                    "log shows no progress"
                ),
            )
        return  # its other metrics are stale
    yield from _down(state, history, now)
    yield from _restarting(state, history, now)
    yield from _pool(state, history, now)
    yield from _waiting(state, history, now)
    yield from _objectives_missed(history, now, objectives)
    yield from _prefixes_lost(state, history, objectives)
    yield from _disagreeing(state)
    if state.log is not None and state.log.silent_s:
        yield (
            "log_silent",
            (
                f"the server generates tokens, and its log has been silent for {state.log.silent_s:.0f} s: was it "
                "rotated away, or has the program that passes it on (kubectl logs -f) stopped?"
            ),
        )
    elif state.log is not None and state.log.understood is False:
        yield (
            "log_not_understood",
            (
                "the server generates tokens for requests that its log does not show: traces and histograms lack them "
                "(was it started with --log-disable or -lv below 3?)"
            ),
        )


def _down(state: ServerSnapshot, history: History, now: float) -> Iterator[tuple[str, str]]:
    if state.state != "starting":
        history.starting_since = None
    elif history.starting_since is None:
        history.starting_since = now
    elif now - history.starting_since >= STARTING_FOR_S:
        minutes = (now - history.starting_since) / 60
        yield "server_starting", f"the server has been loading its model for {minutes:.0f} minutes: see its log"
    if state.up is not False or state.state == "starting":
        history.down_since = None
        return
    if history.down_since is None:
        history.down_since = now
    if now - history.down_since >= DOWN_FOR_S:
        yield (
            "server_down",
            "the server does not answer: see the end of its log (serve --restart on-failure restarts its own server)",
        )


def _restarting(state: ServerSnapshot, history: History, now: float) -> Iterator[tuple[str, str]]:
    if state.restarts is None:
        return
    seen = history.restarts
    if not seen or seen[-1][1] != state.restarts:
        seen.append((now, state.restarts))
    while len(seen) > 1 and now - seen[1][0] > RESTARTS_WITHIN_S:
        seen.popleft()
    if seen[-1][1] - seen[0][1] >= RESTARTS:
        yield (
            "restart_loop",
            (
                f"the server was restarted {seen[-1][1] - seen[0][1]} times in {RESTARTS_WITHIN_S / 60:.0f} minutes: "
                "see the end of its log before each restart"
            ),
        )


def _pool(state: ServerSnapshot, history: History, now: float) -> Iterator[tuple[str, str]]:
    cache = state.kv_cache
    if cache is None or not cache.capacity or cache.active is None:
        history.active.clear()
        return
    trend = history.active
    trend.append((now, cache.active))
    while len(trend) > 1 and now - trend[0][0] > _TREND_S:
        trend.popleft()
    left = cache.capacity - cache.active
    remedy = _more_room(state, cache)
    if left < HEADROOM * cache.capacity:
        yield "kv_headroom", f"the KV pool has {left:,} of {cache.capacity:,} tokens left: {remedy}"
        return
    growth = _growth(trend)
    if growth > 0 and left < 0.5 * cache.capacity and left / growth < EXHAUSTED_WITHIN_S:
        yield (
            "kv_exhaustion",
            (
                f"the KV pool will be full in about {left / growth:.0f} s at this rate ({left:,} of {cache.capacity:,} "
                f"tokens left): {remedy}"
            ),
        )


def _more_room(state: ServerSnapshot, cache: KvCacheState) -> str:
    """Advice on how to make room in the pool."""
    if state.slots is not None and len(state.slots) == 1:
        return "raise -c, or shorten prompts and answers"
    return "raise -c, or lower -np" + (" or the requests' lengths" if cache.unified else "")


def _growth(trend: deque[tuple[float, int]]) -> float:
    """Growth in tokens per second; 0 without a clear trend, as while requests come and go."""
    times, tokens = [at for at, _ in trend], [number for _, number in trend]
    if times[-1] - times[0] < _TREND_S / 4 or min(tokens) == max(tokens):
        return 0.0
    slope = statistics.linear_regression(times, tokens).slope
    return slope if statistics.correlation(times, tokens) > _STEADY else 0.0


def _waiting(state: ServerSnapshot, history: History, now: float) -> Iterator[tuple[str, str]]:
    if not state.deferred:
        history.deferred_since = None
        return
    if history.deferred_since is None:
        history.deferred_since = now
    if now - history.deferred_since >= DEFERRED_FOR_S:
        waits = "1 request waits" if state.deferred == 1 else f"{state.deferred} requests wait"
        yield "deferred", f"{waits} for a slot: raise -np (and -c with it), or add a server"


def _objectives_missed(history: History, now: float, objectives: Objectives) -> Iterator[tuple[str, str]]:
    window = history.window
    window.expire(now)
    if len(window) < objectives.min_requests:
        return
    if window.failed > objectives.error_rate * len(window):
        share = f"{window.failed} of the last {len(window)} requests"
        yield "error_rate", f"{share} failed: see their error.type in the traces and the log"
    for name, what, objective, latency, remedy in (
        ("ttft_objective", "to the first token", objectives.ttft_s, window.ttft,
         "raise -np if requests wait; shorten prompts or let them share a prefix if prefill is long"),
        ("tpot_objective", "per token", objectives.tpot_s, window.tpot,
         "lower -np, offload more layers (-ngl), or use a smaller quantisation"),
    ):  # fmt: skip
        known, late = latency.known, latency.late
        limit = max(LEAST_MISSED - 1, burn_limit(BURN_RATE, objectives.error_budget) * known)
        if known >= objectives.min_requests and late > limit:
            yield name, f"{late} of the last {known} requests needed more than {objective:g} s {what}: {remedy}"


def _prefixes_lost(state: ServerSnapshot, history: History, objectives: Objectives) -> Iterator[tuple[str, str]]:
    """Of the requests that ``_objectives_missed`` keeps."""
    lost = history.window.lost_prefill()
    if not lost:
        return
    cause = max(lost, key=lambda each: lost[each])
    a_minute = lost[cause] * 60 / WINDOW_S
    if a_minute > objectives.lost_prefill_s:
        remedy = recompute_remedy(cause, lost[cause], state.settings, state.model)
        yield (
            "prefix_reuse_lost",
            (
                f"prefix reuse is being lost: up to {a_minute:.1f} s of prefill per minute, cause {cause.value}"
                + (f": {remedy.change}, as {remedy.reason}" if remedy is not None else "")
            ),
        )


def burn_limit(factor: float, budget: float) -> float:
    """The share of misses at which an error budget burns at ``factor`` times its pace.

    With a large budget it would be above 1, where no alert fires: it is limited to 0.9, or to the middle between the
    budget and 1.
    """
    return round(min(factor * budget, max(0.9, (1 + budget) / 2)), 6)


def _disagreeing(state: ServerSnapshot) -> Iterator[tuple[str, str]]:
    cache = state.kv_cache
    if cache is not None and cache.plan_error_bytes:
        reported = sum(cache.reported_bytes.values())
        planned = reported - cache.plan_error_bytes
        yield (
            "kv_size_disagrees",
            (
                f"llama.cpp reports {reported / 2**20:,.1f} MiB of KV cache, {planned / 2**20:,.1f} MiB were planned: "
                "please report this with the model's name"
            ),
        )
