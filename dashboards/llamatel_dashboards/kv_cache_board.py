"""KV cache: usage, time until full, prompt reuse, planned and reported size."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from llamatel.ui import alarm_conditions
from llamatel_dashboards import queries as q
from llamatel_dashboards.board import board
from llamatel_dashboards.figures import headroom_share
from llamatel_dashboards.panels import (
    GREEN,
    NO_LOG,
    ORANGE,
    RED,
    TOKENS_A_SECOND,
    YELLOW,
    Column,
    Panel,
    Query,
    at,
    bars,
    figure,
    lines,
    rows,
)

_UNKNOWN = "Unknown"
_SLOT = f"{q.SERVER_LEGEND} slot {{{{slot}}}}"


def _kv(name: str, **labels: str) -> str:
    return q.selector(f"llamacpp.kv_cache.{name}", **labels)


def seconds_left(by: str = "") -> str:
    """Until the pool is full, at the rate of the last five minutes; nothing where it does not fill up."""
    left = f"{_kv('headroom')} / -(deriv({_kv('headroom')}[5m]) < 0)"
    return f"min by ({by}) ({left})" if by else f"min({left})"


def _now() -> list[Panel]:
    return [
        figure(
            "Headroom, fullest",
            headroom_share(),
            "Share of the pool that running requests do not hold, on the server with the least.",
            "Below a tenth: raise -c, lower -np, or split the pool with --no-kv-unified. A shared pool that is full "
            "fails every request that runs.",
            unit="percentunit",
            thresholds=at((None, RED), (alarm_conditions.HEADROOM, YELLOW), (0.3, GREEN)),
            empty=_UNKNOWN,
        ),
        figure(
            "Full in",
            seconds_left(),
            "Time until the first pool is full at the rate of the last five minutes: an extrapolation.",
            "Minutes: hold back long requests first. Not in sight: nothing to do.",
            unit="s",
            thresholds=at((None, RED), (alarm_conditions.EXHAUSTED_WITHIN_S, YELLOW), (3600, GREEN)),
            empty="Not in sight",
        ),
        figure(
            "Active",
            q.total(_kv("tokens", state="active")),
            "Tokens of running requests.",
            "llama.cpp cannot reuse them: only these count against the pool.",
            empty=_UNKNOWN,
        ),
        figure(
            "Cached",
            q.total(_kv("tokens", state="cached")),
            "Tokens that idle slots still hold from their last request.",
            "Nothing: they make the next prompt with the same prefix cheap, and are reused when room is needed.",
            empty=_UNKNOWN,
        ),
        figure(
            "Capacity",
            q.total(_kv("capacity")),
            "Tokens that fit into the pool that all slots share, or into the slots' own shares together.",
            "`-c` sets it; `llamatel plan MODEL -- FLAGS` shows what more would cost.",
            empty=_UNKNOWN,
        ),
        figure(
            "Failed for lack of room",
            q.logged(q.increase("llamacpp.requests", outcome="context_full")),
            "Requests that failed in the time shown because the pool was full.",
            "Raise -c, lower -np, or split the pool with --no-kv-unified so that a long request fails alone.",
            thresholds=at((None, GREEN), (1, RED)),
            decimals=0,
            empty=NO_LOG,
        ),
    ]


def _pool() -> list[Panel]:
    free = f"{q.total(_kv('capacity'))} - {q.total(_kv('tokens'))}"
    return [
        lines(
            "The pool in tokens",
            [Query(q.total(_kv("tokens"), "state"), "{{state}}"), Query(free, "free")],
            "Tokens of running requests, tokens that idle slots keep, and free ones, of all selected servers.",
            "cached fills what active does not need: that is healthy.",
            stacked=True,
            empty=_UNKNOWN,
            size=(12, 9),
        ),
        lines(
            "Headroom by server",
            [Query(headroom_share(q.BY_SERVER), q.SERVER_LEGEND)],
            "Share of each server's pool that running requests do not hold.",
            "One server low and others not: its clients send longer contexts, or the balancer is uneven.",
            unit="percentunit",
            thresholds=at((None, RED), (alarm_conditions.HEADROOM, GREEN)),
            at_most=1,
            empty=_UNKNOWN,
            size=(12, 9),
        ),
        lines(
            "Active and cached by server",
            [Query(f"{_kv('usage')}", f"{q.SERVER_LEGEND} {{{{state}}}}")],
            "Share of each server's pool.",
            "active close to 1 for long needs a larger -c.",
            unit="percentunit",
            at_most=1,
            empty=_UNKNOWN,
            size=(12, 8),
        ),
        lines(
            "Full in, by server",
            [Query(f"({seconds_left(q.BY_SERVER)}) < 86400", q.SERVER_LEGEND)],
            "Time until each pool is full at the rate of the last five minutes; no line where that is a day or never.",
            "A line that falls towards 0: requests will fail.",
            unit="s",
            thresholds=at((None, RED), (alarm_conditions.EXHAUSTED_WITHIN_S, GREEN)),
            empty="Not in sight",
            size=(12, 8),
        ),
    ]


def _bytes() -> list[Panel]:
    by = f"{q.BY_SERVER}, part"
    planned, reported = (q.total(_kv("size", source=source), by) for source in ("planned", "reported"))
    return [
        lines(
            "Allocated, by part",
            [Query(q.total(_kv("size", source="reported"), "part"), "{{part}}")],
            "Bytes that llama.cpp allocated for keys, values and recurrent states, by its log.",
            "-ctk and -ctv q8_0 need half of f16.",
            unit="bytes",
            stacked=True,
            empty=_UNKNOWN,
        ),
        lines(
            "In use, by part",
            [Query(q.total(_kv("used"), "part"), "{{part}}")],
            "Bytes that hold tokens of running requests or of idle slots. Layers with a sliding window never use more "
            "than their window; a recurrent state is the same whatever the length.",
            "Far below the allocation for weeks: a smaller -c leaves room for more layers on the GPU.",
            unit="bytes",
            stacked=True,
            empty=_UNKNOWN,
        ),
        lines(
            "Planned and reported",
            [Query(q.total(_kv("size"), "source"), "{{source}}")],
            "Size of the cache as computed from the model's header, and as llama.cpp reported it.",
            "They differ: do not rely on figures in bytes for this model; report it with its flags.",
            unit="bytes",
            empty=_UNKNOWN,
        ),
        lines(
            "Plan error",
            [Query(q.selector("llamacpp.kv_cache.plan_error"), q.SERVER_LEGEND)],
            "Reported minus planned bytes; if they differ, planned figures are no longer exported.",
            "Not 0: report the model, the flags and the build.",
            unit="bytes",
            empty=_UNKNOWN,
            size=(24, 7),
        ),
        rows(
            "Planned against reported",
            {
                "planned": Column(planned, "bytes"),
                "reported": Column(reported, "bytes"),
                "difference": Column(f"{planned} - {reported}", "bytes"),
            },
            "By server and part. llama.cpp's log rounds to 0.01 MiB. planned is absent where the plan is not known to "
            "be exact for the model's architecture.",
            "A difference above the rounding: report the model, the flags and the build.",
            names={q.ADDRESS: "server", q.PORT: "port", q.MODEL: "model"},
            hidden=("job", "cluster"),
            first=("namespace", "pod", "instance", "server", "port", "model"),
            size=(24, 7),
        ),
    ]


def _slots() -> list[Panel]:
    held, most = (q.selector(f"llamacpp.slot.{name}") for name in ("context_tokens", "context_size"))
    return [
        bars(
            "How full each slot is",
            [Query(f"{held} / {most}", _SLOT)],
            "Tokens in a slot's context, against the most that it may hold. Idle slots keep their last request's.",
            "Near 1 while busy: the request will be truncated, or its context shifted.",
            unit="percentunit",
            thresholds=at((None, GREEN), (0.8, YELLOW), (0.95, ORANGE)),
            at_most=1,
            empty=_UNKNOWN,
            size=(12, 9),
        ),
        lines(
            "Tokens by slot",
            [Query(held, _SLOT)],
            "Tokens that each slot holds, over time.",
            "Each drop is a new request. A slot that never drops keeps one conversation.",
            stacked=True,
            empty=_UNKNOWN,
            size=(12, 9),
        ),
        lines(
            "Requests in their slots",
            [Query(q.selector("llamacpp.slot.tokens"), f"{_SLOT} {{{{type}}}}")],
            "How far the request in each busy slot is: prompt tokens computed, taken from the cache, tokens "
            "generated. Absent while a slot is idle.",
            "input_computed that grows slowly is a long prefill: other slots wait for it.",
            empty="No request runs",
            size=(12, 8),
        ),
        lines(
            "Context shifts",
            [Query(q.increase("llamacpp.context_shifts", q.BY_SERVER, q.RATE), q.SERVER_LEGEND)],
            "Times a running request lost the oldest part of its context to make room (--context-shift).",
            "Raise -c if requests should keep their whole context.",
            empty="Unknown",
            size=(12, 8),
        ),
    ]


def _prompt_cache() -> list[Panel]:
    hits, lookups = (q.rate(f"llamacpp.prompt_cache.{name}") for name in ("hits", "lookups"))
    return [
        figure(
            "Hit share",
            q.hit_share(),
            "Share of prompt tokens that needed no prefill, in the time shown, by llama.cpp's own counters.",
            "Low with shared prefixes: put what changes at the end, keep conversations on one server.",
            unit="percentunit",
            size=(6, 5),
        ),
        figure(
            "Reuse of what was there",
            q.logged(q.share(q.increase("llamacpp.prompt_cache.reused"), q.increase("llamacpp.prompt_cache.reusable"))),
            "Of the tokens that the chosen slots had in the KV cache, the share that was reused, in the time shown.",
            "Below 1: the causes below.",
            unit="percentunit",
            thresholds=at((None, RED), (0.9, YELLOW), (0.99, GREEN)),
            empty=NO_LOG,
            size=(6, 5),
        ),
        figure(
            "Tokens computed again",
            q.logged(q.increase("llamacpp.prompt_cache.recomputed")),
            "Prompt tokens that were computed although the slot had them, in the time shown.",
            "By cause below.",
            thresholds=at((None, GREEN), (1, YELLOW)),
            decimals=0,
            empty=NO_LOG,
            size=(6, 5),
        ),
        figure(
            "Prefill lost",
            q.logged(q.increase("llamacpp.prompt_cache.recompute.duration")),
            "Seconds of prefill for those tokens, at each request's own rate, in the time shown.",
            "`llamatel doctor` shows what each remedy would save and cost.",
            unit="s",
            thresholds=at((None, GREEN), (60, YELLOW), (600, RED)),
            empty=NO_LOG,
            size=(6, 5),
        ),
        lines(
            "Prompt tokens from the cache",
            [Query(q.hit_share(over=q.RATE), "share")],
            "Share of prompt tokens that needed no prefill.",
            "Low with shared prefixes: put what changes at the end, keep conversations on one server.",
            unit="percentunit",
            at_most=1,
            size=(12, 8),
        ),
        lines(
            "Prompt tokens looked up and found",
            [Query(lookups, "looked up"), Query(hits, "found")],
            "Prompt tokens a second, and those found in the cache, by llama.cpp's own counters.",
            "The gap between the lines is what prefill has to compute.",
            unit=TOKENS_A_SECOND,
            size=(12, 8),
        ),
        lines(
            "Prefill lost by cause",
            [Query(q.rate("llamacpp.prompt_cache.recompute.duration", "cause"), "{{cause}}")],
            "Seconds of prefill in a second that went to tokens which had been in the KV cache.",
            "slot_taken: -np. prompt_cache_miss: --cache-ram. prefix_changed, cache_prompt_off: the clients. "
            "no_checkpoint, checkpoint_evicted: --ctx-checkpoints, --swa-full.",
            unit="s",
            empty="None",
            size=(12, 8),
        ),
        lines(
            "Reuse of prompt tokens",
            [
                Query(q.rate("llamacpp.prompt_cache.reusable"), "reusable"),
                Query(q.rate("llamacpp.prompt_cache.reused"), "reused"),
                Query(q.rate("llamacpp.prompt_cache.recomputed"), "computed again"),
            ],
            "Tokens a second that were reused or had been in the KV cache, and what became of them.",
            "Reused far below reusable: see the causes.",
            empty="None",
            size=(12, 8),
        ),
        lines(
            "Prompts kept in host memory",
            [Query(q.total(q.selector("llamacpp.prompt_cache.entries")), "prompts")],
            "Prompts in llama.cpp's cache in host memory (--cache-ram). llama.cpp logs it only at -lv 4, which is "
            "slow.",
            "Nothing: unknown is the normal case.",
            empty="Unknown at this verbosity",
            size=(12, 7),
        ),
        lines(
            "Host memory of prompts",
            [Query(q.total(q.selector("llamacpp.prompt_cache.size")), "size")],
            "Host memory of those prompts.",
            "--cache-ram limits it.",
            unit="bytes",
            empty="Unknown at this verbosity",
            size=(12, 7),
        ),
    ]


def dashboard() -> Dashboard:
    """The KV cache dashboard."""
    return board(
        "kv-cache",
        "llamatel / KV cache",
        "The KV cache of llama.cpp servers in tokens and in bytes, slot by slot.",
        [
            ("Now", _now()),
            ("Pool", _pool()),
            ("Bytes", _bytes()),
            ("Slots", _slots()),
            ("Prompt cache", _prompt_cache()),
        ],
    )
