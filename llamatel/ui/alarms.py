"""Warnings before the wall: what is wrong with a server now, in one plain line with the flag that would help.

The conditions are those of the alert rules (``llamatel_dashboards.rules``), which take their thresholds from here.
Nothing here reads a clock or asks a server: it looks at snapshots and finished requests that others took.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from llamatel.gpu.offload import fell_back
from llamatel.records import Completion, Outcome, ServerInfo, ServerKey
from llamatel.snapshots import KvCacheState, ServerSnapshot, Snapshot

T = TypeVar("T")

HEADROOM = 0.1
"""Of the KV pool: less than this share left for the requests that run is a warning."""
EXHAUSTED_WITHIN_S = 300.0
"""As is a pool that will be full so soon at the rate of the last minutes, once half of it is taken."""
DEFERRED_FOR_S = 60.0
"""Requests that wait for a slot without a break for so long."""
DOWN_FOR_S = 15.0
STARTING_FOR_S = 900.0
"""A model that has not been loaded for so long will perhaps never be."""
RESTARTS = 3
"""In ``RESTARTS_WITHIN_S``: a restart loop."""
RESTARTS_WITHIN_S = 600.0
DISAGREEMENT = 0.01
"""Planned and reported bytes of the KV cache may differ by this share: llama.cpp's log is rounded to 0.01 MiB."""
RESOLUTION_BYTES = 4 * 10486
"""What that rounding adds up to over the parts of a small cache."""
TIME_TO_FIRST_TOKEN_S = 2.5
TIME_PER_OUTPUT_TOKEN_S = 0.1
"""Objectives that the alert rules take for granted; both are bounds of histogram buckets."""
OBJECTIVE = 0.95
"""The share of requests that shall keep them."""
BURN_RATE = 6.0
"""The share of requests that miss an objective, over the share that may: above this the alert fires."""

_TREND_S = 60.0
"""Terminal: the pool's trend is taken over so long; it must cover a quarter of that before it says anything."""
_STEADY = 0.9
"""The correlation of time and tokens that makes a trend."""
_QUIET_S = 600.0
"""The same warning about the same server is not repeated for so long."""
_SERVERS = 1024
"""Beyond so many those are forgotten that are not watched any more."""
_REQUESTS = 4096
"""Finished requests remembered at most."""
_RECENT_S = 300.0
_ENOUGH = 20
"""So many requests must have ended lately before their share beyond an objective says anything."""


@dataclass(eq=False)
class _History:
    """What has to be remembered of one server."""

    active: deque[tuple[float, int]] = field(default_factory=deque)
    """Tokens of running requests, by time."""
    deferred_since: float | None = None
    down_since: float | None = None
    starting_since: float | None = None
    restarts: deque[tuple[float, int]] = field(default_factory=deque)
    requests: deque[tuple[float, float | None, float | None]] = field(default_factory=lambda: deque(maxlen=_REQUESTS))
    """When each ended, its time to the first token and per token: a fifth of what the whole would take."""
    said: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that a person should know now."""

    name: str
    """As in the alert rules: ``kv_headroom``."""
    server: ServerInfo | None
    text: str

    def __str__(self) -> str:
        """``127.0.0.1:8090: …``; without a server, about llamatel itself."""
        if self.server is None:
            return self.text
        return f"{self.server.shown_address}: {self.text}"


class Alarms:
    """Looks at one snapshot after another and says what has become wrong.

    ``ended`` and ``look`` may run in two threads; neither may run in two at once.
    """

    def __init__(self) -> None:
        self._servers: dict[ServerKey, _History] = {}
        self._ours = _History()
        self._dropped = 0
        self._ended: deque[Completion] = deque(maxlen=_REQUESTS)

    def ended(self, completion: Completion) -> None:
        """Take note of a finished request; cheap, for the observer's thread."""
        self._ended.append(completion)

    def look(self, snapshot: Snapshot) -> list[Alarm]:
        """What is wrong now and was not said lately."""
        now = snapshot.taken_at
        forget_removed(self._servers, snapshot, _SERVERS)
        found: list[Alarm] = []
        failed: dict[_History, int] = {}
        while self._ended:
            completion = self._ended.popleft()
            history = self._history(completion.server)
            history.requests.append(
                (completion.ended_at, completion.time_to_first_token_s, completion.time_per_output_token_s)
            )
            if completion.outcome is Outcome.CONTEXT_FULL and not completion.is_child:
                failed[history] = failed.get(history, 0) + 1
        for state in snapshot.servers:
            history = self._history(state.server)
            if count := failed.get(history):
                found.append(Alarm("context_full", state.server, _context_full(count, state)))
            found += [Alarm(name, state.server, text) for name, text in _conditions(state, history, now)]
            if fell_back(state, snapshot.devices):
                found.append(Alarm("on_cpu", state.server, _ON_CPU))
        found += self._about_us(snapshot)
        return [alarm for alarm in found if self._is_news(alarm, now)]

    def _about_us(self, snapshot: Snapshot) -> Iterator[Alarm]:
        dropped = sum(snapshot.records_dropped.values())
        if dropped > self._dropped:
            reasons = ", ".join(sorted(snapshot.records_dropped))
            yield Alarm(
                "telemetry_dropped", None,
                f"{dropped - self._dropped} spans or requests of telemetry were lost ({reasons}): "
                "is the OTLP endpoint up and fast enough?",
            )  # fmt: skip
        self._dropped = dropped

    def _history(self, server: ServerInfo) -> _History:
        return self._servers.setdefault(server.key, _History())

    def _is_news(self, alarm: Alarm, now: float) -> bool:
        said = (self._ours if alarm.server is None else self._history(alarm.server)).said
        last = said.get(alarm.name)
        if last is not None and now - last < _QUIET_S:
            return False
        said[alarm.name] = now
        return True


def forget_removed(remembered: dict[ServerKey, T], snapshot: Snapshot, limit: int) -> None:
    """Beyond ``limit`` servers, drop what is remembered of those that are not in the snapshot."""
    if len(remembered) > limit:
        present = {state.server.key for state in snapshot.servers}
        for place in remembered.keys() - present:
            del remembered[place]


_ON_CPU = (
    "the model is not on the GPU as it was asked to be, and decodes on the CPU: is this build of llama.cpp made for "
    "the GPU, and is there memory for it (llamatel plan)?"
)


def _context_full(count: int, state: ServerSnapshot) -> str:
    cache = state.kv_cache
    pool = f" of {cache.capacity:,} tokens" if cache is not None and cache.capacity is not None else ""
    shared = f" that {len(state.slots)} slots share" if cache is not None and cache.unified and state.slots else ""
    what = "request" if count == 1 else "requests"
    split = cache is not None and cache.unified is False
    help_ = (
        "raise -c, or lower -np"
        if split
        else "raise -c, lower -np, or give each slot its own share with --no-kv-unified"
    )
    return f"{count} {what} failed as the KV pool{pool}{shared} was full: {help_}"


def _conditions(state: ServerSnapshot, history: _History, now: float) -> Iterator[tuple[str, str]]:
    if state.stale:
        return  # its figures are old ones
    yield from _down(state, history, now)
    yield from _restarting(state, history, now)
    yield from _pool(state, history, now)
    yield from _waiting(state, history, now)
    yield from _late(history, now)
    yield from _disagreeing(state)
    if state.log is not None and state.log.understood is False:
        yield (
            "log_not_understood",
            (
                "the server generates tokens that its log does not show: traces and histograms lack them "
                "(was it started with --log-disable or -lv below 3?)"
            ),
        )


def _down(state: ServerSnapshot, history: _History, now: float) -> Iterator[tuple[str, str]]:
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
        yield "server_down", "the server does not answer: see its log; llamatel serve --restart on-failure restarts it"


def _restarting(state: ServerSnapshot, history: _History, now: float) -> Iterator[tuple[str, str]]:
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
                "its log says why"
            ),
        )


def _pool(state: ServerSnapshot, history: _History, now: float) -> Iterator[tuple[str, str]]:
    cache = state.kv_cache
    if cache is None or not cache.capacity or cache.active is None:
        history.active.clear()
        return
    trend = history.active
    trend.append((now, cache.active))
    while len(trend) > 1 and now - trend[0][0] > _TREND_S:
        trend.popleft()
    left = cache.capacity - cache.active
    help_ = _room(state, cache)
    if left < HEADROOM * cache.capacity:
        yield "kv_headroom", f"the KV pool has {left:,} of {cache.capacity:,} tokens left for what runs: {help_}"
        return
    growth = _growth(trend)
    if growth > 0 and left < 0.5 * cache.capacity and left / growth < EXHAUSTED_WITHIN_S:
        yield (
            "kv_exhaustion",
            (
                f"the KV pool will be full in about {left / growth:.0f} s at this rate ({left:,} of {cache.capacity:,} "
                f"tokens left): {help_}"
            ),
        )


def _room(state: ServerSnapshot, cache: KvCacheState) -> str:
    """What makes room in the pool."""
    if state.slots is not None and len(state.slots) == 1:
        return "raise -c, or shorten prompts and answers"
    return "raise -c, or lower -np" + (" or the requests' lengths" if cache.unified else "")


def _growth(trend: deque[tuple[float, int]]) -> float:
    """Tokens a second; 0 where it goes up and down, as it does while requests come and go."""
    times, tokens = [at for at, _ in trend], [count for _, count in trend]
    if times[-1] - times[0] < _TREND_S / 4 or min(tokens) == max(tokens):
        return 0.0
    slope = statistics.linear_regression(times, tokens).slope
    return slope if statistics.correlation(times, tokens) > _STEADY else 0.0


def _waiting(state: ServerSnapshot, history: _History, now: float) -> Iterator[tuple[str, str]]:
    if not state.deferred:
        history.deferred_since = None
        return
    if history.deferred_since is None:
        history.deferred_since = now
    if now - history.deferred_since >= DEFERRED_FOR_S:
        waits = "1 request waits" if state.deferred == 1 else f"{state.deferred} requests wait"
        yield "deferred", f"{waits} for a slot: raise -np (and -c with it), or add a server"


def _late(history: _History, now: float) -> Iterator[tuple[str, str]]:
    requests = history.requests
    while requests and now - requests[0][0] > _RECENT_S:
        requests.popleft()
    for name, what, objective, values, help_ in (
        ("ttft_objective", "for the first token", TIME_TO_FIRST_TOKEN_S,
         [first for _, first, _ in requests],
         "raise -np if requests wait, shorten prompts or let them share a prefix if prefill is long"),
        ("tpot_objective", "per token", TIME_PER_OUTPUT_TOKEN_S,
         [per_token for _, _, per_token in requests],
         "lower -np, offload more layers (-ngl), or take a smaller quantisation"),
    ):  # fmt: skip
        known = [value for value in values if value is not None]
        late = sum(value > objective for value in known)
        if len(known) >= _ENOUGH and late > BURN_RATE * (1 - OBJECTIVE) * len(known):
            yield name, f"{late} of the last {len(known)} requests took more than {objective:g} s {what}: {help_}"


def _disagreeing(state: ServerSnapshot) -> Iterator[tuple[str, str]]:
    cache = state.kv_cache
    if cache is None or not cache.planned_bytes or not cache.reported_bytes:
        return
    planned, reported = sum(cache.planned_bytes.values()), sum(cache.reported_bytes.values())
    if abs(planned - reported) > DISAGREEMENT * reported + RESOLUTION_BYTES:
        yield (
            "kv_size_disagrees",
            (
                f"llama.cpp reports {reported / 2**20:,.1f} MiB of KV cache, planned were {planned / 2**20:,.1f} MiB: "
                "please report this with the model's name"
            ),
        )
