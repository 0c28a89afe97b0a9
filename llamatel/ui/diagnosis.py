"""Diagnoses why requests were slow: where their time went, what limits the server, which changes would help.

A pure function of finished requests and of samples of the server's state. Every figure is observed or absent; savings
are upper bounds, and what could not be determined is listed.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llamatel.flags.server_settings import ServerSettings
from llamatel.plan.model_shape import ModelShape
from llamatel.records import Completion, Outcome, RecomputeCause
from llamatel.snapshots import LogCounts
from llamatel.ui.drafting import Drafting, drafting
from llamatel.ui.remedies import Remedy, pool_remedy, recompute_remedy, slots_remedy
from llamatel.ui.request_speed import MIN_POINTS, Ceiling, RequestSpeed, request_speed

_TIGHT = 0.1
"""Share of the pool below which headroom counts as a limit."""
_OFTEN = 0.05
"""Share of samples, or of the time, from which a limit is reported."""
_NEAR_CEILING = 0.5
_SHARED = 0.8
"""Of its decode rate at the lowest load: a lower one at the usual load shows that requests share the hardware."""
_CHANGES = 3
LAST_S = 3600.0
"""Savings are those of this time before the last request."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The server's state at one poll."""

    busy: int | None
    slots: int | None
    waiting: int | None
    headroom: float | None
    """Share of the KV pool that running requests can still use."""
    throttled: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Observation:
    """Observations of one server."""

    source: str
    """The log file or the URL."""
    seconds: float
    completions: tuple[Completion, ...] = ()
    samples: tuple[Sample, ...] = ()
    server: str = ""
    build: str | None = None
    model: str | None = None
    settings: ServerSettings | None = None
    slots: int | None = None
    """The server's, where its flags are not known."""
    shape: ModelShape | None = None
    on_cpu: bool | None = None
    prefill_ceiling: Ceiling | None = None
    """By peak arithmetic."""
    decode_ceiling: Ceiling | None = None
    """By memory bandwidth."""
    log: LogCounts | None = None
    counters: Mapping[str, float] = field(default_factory=dict)
    """llama.cpp's own."""


@dataclass(frozen=True, slots=True)
class TimeUse:
    """Seconds of all requests by phase; ``other_s`` is time that the log does not divide."""

    queue_s: float
    prefill_s: float
    recompute_s: float
    """Prefill of tokens that had been in the cache; not in ``prefill_s``."""
    decode_s: float
    other_s: float

    @property
    def total_s(self) -> float:
        """The sum."""
        return self.queue_s + self.prefill_s + self.recompute_s + self.decode_s + self.other_s


@dataclass(frozen=True, slots=True)
class Loss:
    """Recomputed tokens by one cause."""

    cause: str
    requests: int
    tokens: int
    seconds: float
    shared: float
    """Largest share of a prompt that was reused all the same: what conversations have in common."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The result. ``as_dict`` is for JSON: seconds and tokens, null where unknown."""

    source: str
    server: str
    build: str | None
    model: str | None
    seconds: float
    outcomes: dict[str, int]
    time_use: TimeUse | None
    prompt_tokens: int | None
    reused_tokens: int | None
    losses: tuple[Loss, ...]
    speed: RequestSpeed
    prefill_tokens_per_second: float | None
    drafting: Drafting | None
    """None without speculative decoding."""
    decode_limit: tuple[str, str]
    """A word (bandwidth, batch, cpu, throttling, unknown) and its evidence."""
    concurrency_limit: tuple[str, str]
    """A word (slots, kv_pool, none, unknown) and its evidence."""
    changes: tuple[Remedy, ...]
    undetermined: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        document = dataclasses.asdict(self)
        for name in ("decode_limit", "concurrency_limit"):
            limit, evidence = document[name]
            document[name] = {"limit": limit, "evidence": evidence}
        return document


def diagnose(observed: Observation) -> Diagnosis:
    """Diagnose one server from what was observed."""
    done = [completion for completion in observed.completions if completion.outcome is Outcome.OK]
    outcomes = Counter(completion.outcome.value for completion in observed.completions)
    losses = _losses(observed.completions)
    speed = request_speed(
        observed.completions, prefill_ceiling=observed.prefill_ceiling, decode_ceiling=observed.decode_ceiling
    )
    concurrency = _concurrency_limit(observed, outcomes)
    prompts = [completion for completion in done if completion.prompt_cached is not None]
    prefills = [
        completion.prompt_computed / completion.prefill_s
        for completion in done
        if completion.prefill_s and completion.prompt_computed
    ]
    return Diagnosis(
        source=observed.source,
        server=observed.server,
        build=observed.build,
        model=observed.model,
        seconds=observed.seconds,
        outcomes=dict(outcomes),
        time_use=_time_use(observed.completions),
        prompt_tokens=sum(completion.prompt_tokens or 0 for completion in prompts) if prompts else None,
        reused_tokens=sum(completion.prompt_cached or 0 for completion in prompts) if prompts else None,
        losses=losses,
        speed=speed,
        prefill_tokens_per_second=statistics.median(prefills) if prefills else None,
        drafting=drafting(done, observed.counters, observed.decode_ceiling),
        decode_limit=_decode_limit(observed, speed),
        concurrency_limit=concurrency,
        changes=_changes(observed, losses, concurrency[0]),
        undetermined=_undetermined(observed, done, speed),
    )


def _time_use(completions: Sequence[Completion]) -> TimeUse | None:
    if not completions:
        return None
    queue = sum(completion.queue_s or 0.0 for completion in completions)
    again = sum(completion.recompute_s or 0.0 for completion in completions)
    prefill = sum(completion.prefill_s or 0.0 for completion in completions)
    decode = sum(completion.decode_s or 0.0 for completion in completions)
    total = sum(completion.duration_s for completion in completions)
    return TimeUse(queue, max(0.0, prefill - again), again, decode, max(0.0, total - queue - prefill - decode))


def _losses(completions: Sequence[Completion]) -> tuple[Loss, ...]:
    by_cause: dict[RecomputeCause, list[Completion]] = defaultdict(list)
    for completion in completions:
        if completion.prompt_recomputed:
            by_cause[completion.recompute_cause or RecomputeCause.UNKNOWN].append(completion)
    losses = [
        Loss(
            cause.value,
            len(found),
            sum(completion.prompt_recomputed or 0 for completion in found),
            sum(completion.recompute_s or 0.0 for completion in found),
            max((completion.prompt_cached or 0) / max(1, completion.prompt_tokens or 1) for completion in found),
        )
        for cause, found in by_cause.items()
    ]
    return tuple(sorted(losses, key=lambda loss: loss.seconds, reverse=True))


def _decode_limit(observed: Observation, speed: RequestSpeed) -> tuple[str, str]:
    throttled = [sample.throttled for sample in observed.samples if sample.throttled]
    if observed.samples and len(throttled) > _OFTEN * len(observed.samples):
        reasons = Counter(reason for found in throttled for reason in found)
        share = len(throttled) / len(observed.samples)
        return "throttling", f"the GPU was throttled in {share:.0%} of the samples ({', '.join(reasons)})"
    ceiling, batch = _of_ceiling(speed), _of_batch(speed)
    if observed.on_cpu:
        return "cpu", "; ".join(filter(None, ("the model runs on the CPU", ceiling, batch)))
    if batch is not None:
        return "batch", "; ".join(filter(None, (batch, ceiling)))
    if ceiling is not None:
        shares = [point.ceiling_share or 0.0 for point in speed.decode[0].points]
        return ("bandwidth" if max(shares) >= _NEAR_CEILING else "unknown"), ceiling
    return "unknown", "the GPU's bandwidth, or the model's weights, are unknown"


def _of_ceiling(speed: RequestSpeed) -> str | None:
    """The decode rate at the longest context and the lowest load, against the ceiling."""
    points = [point for line in speed.decode[:1] for point in line.points if point.ceiling_share is not None]
    if not points:
        return None
    return (
        f"at {points[-1].context:,} tokens of context a request decodes {_rate(points[-1].tokens_per_second)} tok/s, "
        f"{points[-1].ceiling_share:.0%} of what the memory bandwidth allows"
    )


def _of_batch(speed: RequestSpeed) -> str | None:
    """How much slower a request decodes at the usual load than at the lowest; None where that makes no difference."""
    rates = speed.decode_by_busy_slots
    usual = max(speed.decode, key=lambda line: line.requests, default=None)
    fewest = min(rates, default=0)
    if usual is None or usual.busy_slots == fewest or rates[usual.busy_slots] > _SHARED * rates[fewest]:
        return None
    busy, each = usual.busy_slots, rates[usual.busy_slots]
    return (
        f"a request decodes {_rate(rates[fewest])} tok/s with {fewest} busy slot{'s' * (fewest > 1)}, "
        f"{_rate(each)} tok/s with {busy} ({_rate(busy * each)} tok/s all together)"
    )


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _concurrency_limit(observed: Observation, outcomes: Counter[str]) -> tuple[str, str]:
    full = outcomes[Outcome.CONTEXT_FULL.value]
    if full:
        return "kv_pool", f"{full} request{'s' * (full > 1)} failed because the KV pool was full"
    tight = [one for one in observed.samples if one.headroom is not None and one.headroom < _TIGHT]
    if observed.samples and len(tight) > _OFTEN * len(observed.samples):
        return "kv_pool", f"the KV pool was over 90% full in {len(tight) / len(observed.samples):.0%} of the samples"
    waits = [one for one in observed.samples if one.waiting and one.slots and one.busy == one.slots]
    if observed.samples and len(waits) > _OFTEN * len(observed.samples):
        return "slots", f"requests waited for a slot in {len(waits) / len(observed.samples):.0%} of the samples"
    known = [completion for completion in observed.completions if completion.queue_s is not None]
    if known:
        queued = sum(completion.queue_s or 0.0 for completion in known)
        share = queued / max(sum(completion.duration_s for completion in known), 1e-9)
        if share > _OFTEN:
            return "slots", f"{share:.0%} of the requests' time was spent waiting for a slot (estimated)"
        return "none", f"{share:.0%} of the requests' time was spent waiting for a slot (estimated)"
    if observed.samples:
        return "none", "no request waited for a slot in any sample"
    return "unknown", "neither samples nor queue times"


def _changes(observed: Observation, losses: Sequence[Loss], limit: str) -> tuple[Remedy, ...]:
    """The changes with the largest expected effect, at most three; savings are those of the last hour's requests."""
    latest = max((completion.ended_at for completion in observed.completions), default=0.0)
    recent = [completion for completion in observed.completions if completion.ended_at >= latest - LAST_S]
    saved = {loss.cause: loss.seconds for loss in _losses(recent)}
    found = [
        recompute_remedy(
            loss.cause,
            saved.get(loss.cause, 0.0),
            observed.settings,
            observed.shape,
            slots=observed.slots,
            shared=loss.shared,
        )
        for loss in losses
    ]
    if limit == "slots":
        queue_s = sum(completion.queue_s or 0.0 for completion in recent)
        found.append(slots_remedy(queue_s, observed.settings, observed.shape, observed.slots))
    if limit == "kv_pool":
        found.append(pool_remedy(observed.settings, observed.shape))
    if observed.on_cpu and observed.settings is not None and observed.settings.gpu_layers:
        found.append(
            Remedy("-ngl", "GPU layers were requested, but the model runs on the CPU: check the backend", None)
        )
    by_change: dict[str, Remedy] = {}
    for remedy in sorted(filter(None, found), key=lambda remedy: remedy.at_most_s or 0.0, reverse=True):
        known = by_change.setdefault(remedy.change, remedy)
        if known is not remedy:  # two reasons for one change
            by_change[remedy.change] = dataclasses.replace(known, reason=f"{known.reason}; {remedy.reason}")
    return tuple(by_change.values())[:_CHANGES]


def _undetermined(observed: Observation, done: Sequence[Completion], speed: RequestSpeed) -> tuple[str, ...]:
    if not observed.completions:
        return (_without_requests(observed),)
    missing = []
    if observed.log is not None and observed.log.understood is False:
        missing.append("requests: llama.cpp counts tokens that the log does not show")
    timed = [completion for completion in done if completion.prefill_s is not None]
    if len(timed) < len(done):
        untimed = f"{len(done) - len(timed)} of {len(done)} requests"
        missing.append(f"prefill and decode of {untimed}: llama.cpp logs no timings of embeddings and reranking")
    unknown = sum(completion.queue_s is None for completion in done)
    if unknown:
        missing.append(f"the queue time of {unknown} of {len(done)} requests")
    unknown = sum(completion.prompt_reusable is None for completion in timed)
    if unknown and unknown == len(timed):
        missing.append("prompt reuse: the log does not show slot selection, or not --cache-ram")
    elif unknown:
        missing.append(
            f"whether the prompts of {unknown} of {len(timed)} requests had been cached before: the log does "
            "not prove it; the server's flags may (give its URL, too)"
        )
    for name, lines in (("prefill", (*speed.prefill, *speed.prefill_short)), ("decode", speed.decode)):
        if timed and not lines:
            missing.append(f"{name} rate by context: fewer than {MIN_POINTS} comparable requests")
    if observed.shape is None:
        missing.append("memory costs of changes: the model's file cannot be read from here")
    if not observed.samples:
        missing.append("slot and KV pool usage over time: only a log was read")
    return tuple(missing)


def _without_requests(observed: Observation) -> str:
    lines = {} if observed.log is None else observed.log.lines
    total = sum(lines.values())
    if observed.log is None:
        return "requests, and with them where the time went: there is no request log (--log FILE)"
    if total and total == lines.get("other"):
        return f"requests: none of the log's {total:,} lines is from llama.cpp"
    return f"requests: none in {total:,} lines of the log"
