"""Overview: is it healthy? The page to have open."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from llamatel.ui import alarms
from llamatel_dashboards import queries as q
from llamatel_dashboards.board import board
from llamatel_dashboards.panels import (
    GREEN,
    ORANGE,
    RED,
    TOKENS_A_SECOND,
    YELLOW,
    Panel,
    Query,
    at,
    figure,
    lines,
    rows,
)

TTFT = "gen_ai.server.time_to_first_token"
TPOT = "gen_ai.server.time_per_output_token"
DURATION = "gen_ai.server.request.duration"
_SHARE_KEPT = at((None, RED), (0.9, YELLOW), (0.95, GREEN))


def quantiles(name: str, *, exemplars: bool = True) -> list[Query]:
    """p50, p95 and p99 of a histogram, over time."""
    return [Query(q.quantile(share, name), f"p{share * 100:.0f}", exemplars) for share in (0.5, 0.95, 0.99)]


def headroom_share(by: str = "") -> str:
    """How much of the KV pool requests could still take; of the fullest server, or by server."""
    free, capacity = (q.selector(f"llamacpp.kv_cache.{name}") for name in ("headroom", "capacity"))
    return f"min by ({by}) ({free} / {capacity})" if by else f"min({free} / {capacity})"


def _state() -> list[Panel]:
    up = q.selector("llamacpp.server.up")
    failed = q.increase("llamacpp.requests", outcome="~error|context_full")
    return [
        figure(
            "Servers down",
            f"count({up}) - sum({up})",
            "llama.cpp servers that do not answer, of those that llamatel watches.",
            "Look at the end of the server's log; `llamatel serve --restart on-failure` restarts one that crashes.",
            thresholds=at((None, GREEN), (1, RED)),
            empty="No server",
        ),
        figure(
            "Requests",
            q.rate("llamacpp.requests"),
            "Requests that ended, a second, however they ended.",
            "Compare with what clients send: a request that llama.cpp refuses for its form is not in its log.",
            unit="reqps",
        ),
        figure(
            "Output",
            q.rate("llamacpp.tokens", type="output"),
            "Tokens generated a second by all servers chosen above, by llama.cpp's own counter.",
            "If it does not grow with the number of busy slots, the device is at its limit: see the GPU dashboard.",
            unit=TOKENS_A_SECOND,
        ),
        figure(
            "Failed",
            q.share(failed, q.increase("llamacpp.requests")),
            "Share of requests that failed, in the time shown. Those that a client cancelled are no failures.",
            "By outcome below. `context_full` means that the KV pool was full: see the KV cache dashboard.",
            unit="percentunit",
            thresholds=at((None, GREEN), (0.001, YELLOW), (0.01, RED)),
        ),
        figure(
            "Busy slots",
            q.total(q.selector("llamacpp.slots", state="busy")),
            "Slots that work on a request now, over all servers chosen.",
            "All of them busy and requests waiting: raise -np, or add a server.",
            empty="Unknown",
        ),
        figure(
            "Waiting for a slot",
            q.total(q.selector("llamacpp.requests.deferred")),
            "Requests that llama.cpp holds back until a slot is free.",
            "Above 0 for long: raise -np (and -c with it, as slots share the pool), or add a server.",
            thresholds=at((None, GREEN), (1, YELLOW), (8, RED)),
            empty="Unknown",
        ),
    ]


def _objectives() -> list[Panel]:
    return [
        figure(
            "TTFT p95",
            q.quantile(0.95, TTFT, over=q.RANGE),
            "Time to first token that 95 % of requests stay within, in the time shown: wait for a slot and prefill.",
            "High: the panel of phases on the Requests dashboard says whether requests wait or prefill is slow.",
            unit="s",
            thresholds=at((None, GREEN), (1, YELLOW), (2.5, RED)),
        ),
        figure(
            "TPOT p95",
            q.quantile(0.95, TPOT, over=q.RANGE),
            "Time per output token after the first that 95 % of requests stay within, in the time shown.",
            "High: are all layers on the GPU (-ngl)? Do too many slots share it? `llamatel plan` says what it can do.",
            unit="s",
            thresholds=at((None, GREEN), (0.05, YELLOW), (0.1, RED)),
        ),
        figure(
            "TTFT objective kept",
            q.within(TTFT, "$ttft_objective"),
            "Share of requests whose first token came within the objective chosen above, in the time shown.",
            "Choose the objective that your users feel; the alert rules have theirs (docs/alerts.md).",
            unit="percentunit",
            thresholds=_SHARE_KEPT,
        ),
        figure(
            "TPOT objective kept",
            q.within(TPOT, "$tpot_objective"),
            "Share of requests whose tokens came, on average, within the objective chosen above, in the time shown.",
            "Fewer slots at once make each request faster, and all together slower.",
            unit="percentunit",
            thresholds=_SHARE_KEPT,
        ),
        figure(
            "KV headroom, fullest",
            headroom_share(),
            "Share of the KV pool that running requests do not hold, on the server that has least. What idle slots "
            "keep counts as free: llama.cpp gives it up when it needs room.",
            "Near 0 every request on a shared pool fails. Raise -c, lower -np, or split with --no-kv-unified.",
            unit="percentunit",
            thresholds=at((None, RED), (alarms.HEADROOM, YELLOW), (0.3, GREEN)),
            empty="Unknown",
        ),
        figure(
            "Prompt tokens from the cache",
            q.share(q.increase("llamacpp.prompt_cache.hits"), q.increase("llamacpp.prompt_cache.lookups")),
            "Share of prompt tokens that were in the KV cache already and needed no prefill, in the time shown.",
            "Low with long shared prefixes: put what changes at the prompt's end, and see that clients reach the same "
            "server.",
            unit="percentunit",
        ),
    ]


def _time() -> list[Panel]:
    return [
        lines(
            "Time to first token",
            quantiles(TTFT),
            "Wait for a slot and prefill, of requests that completed. The wait is an estimate.",
            "Dots, where there are any, are requests: they lead to the trace.",
            unit="s",
        ),
        lines(
            "Time per output token",
            quantiles(TPOT),
            "Decode time over the tokens after the first.",
            "Grows with the number of busy slots and with the length of contexts.",
            unit="s",
        ),
        lines(
            "Request duration",
            quantiles(DURATION),
            "From arrival to the end, of all requests, also cancelled and failed ones.",
            "Long answers make it grow as slow ones do: compare with time per output token.",
            unit="s",
        ),
    ]


def _traffic() -> list[Panel]:
    return [
        lines(
            "Requests by outcome",
            [Query(q.rate("llamacpp.requests", "outcome"), "{{outcome}}")],
            "Requests that ended, a second, by how: ok, cancelled by the client, error, context_full.",
            "cancelled: are clients' timeouts too short? context_full: the KV pool was full. error: see the traces.",
            unit="reqps",
            stacked=True,
        ),
        lines(
            "Tokens",
            [Query(q.rate("llamacpp.tokens", "type"), "{{type}}")],
            "Tokens a second by llama.cpp's own counters: prompt tokens computed, prompt tokens from the cache, "
            "generated tokens.",
            "Much input_computed beside little output: prefill dominates. Longer shared prefixes help.",
            unit=TOKENS_A_SECOND,
            stacked=True,
        ),
        lines(
            "Busy slots and waiting requests",
            [
                Query(q.total(q.selector("llamacpp.slots"), "state"), "{{state}}"),
                Query(q.total(q.selector("llamacpp.requests.deferred")), "deferred"),
            ],
            "Slots by what they do, and requests that wait for one.",
            "Requests wait while slots are idle only for a moment; if it lasts, report it.",
            empty="Unknown",
            stacked=True,
        ),
        lines(
            "KV pool",
            [Query(f"avg by (state) ({q.selector('llamacpp.kv_cache.usage')})", "{{state}}")],
            "Share of the KV pool: tokens of running requests (active) and what idle slots still hold (cached); mean "
            "of the servers chosen.",
            "active near 1 is dangerous, cached near 1 is not: it is what makes the next prompt cheap.",
            unit="percentunit",
            stacked=True,
            at_most=1,
            empty="Unknown",
            size=(12, 8),
        ),
        lines(
            "Where requests spend their time",
            [Query(q.mean(f"llamacpp.request.{phase}.duration"), phase) for phase in ("queue", "prefill", "decode")],
            "Mean time of a request in each phase.",
            "queue grows: too few slots. prefill grows: longer prompts, fewer cache hits. decode grows: longer "
            "answers, or more slots at once.",
            unit="s",
            stacked=True,
            size=(12, 8),
        ),
    ]


def _servers() -> Panel:
    by = q.BY_SERVER
    return rows(
        "Servers",
        {
            "up": f"max by ({by}) ({q.selector('llamacpp.server.up')})",
            "requests/s": q.rate("llamacpp.requests", by),
            "output tok/s": q.rate("llamacpp.tokens", by, type="output"),
            "TTFT p95": q.quantile(0.95, TTFT, by),
            "busy": q.total(q.selector("llamacpp.slots", state="busy"), by),
            "waiting": q.total(q.selector("llamacpp.requests.deferred"), by),
            "KV headroom": headroom_share(by),
        },
        "One row for each server and model that llamatel watches.",
        "A row with few requests beside busy ones: look at the balancer. Details are on the Fleet dashboard.",
        units={"requests/s": "reqps", "output tok/s": TOKENS_A_SECOND, "TTFT p95": "s", "KV headroom": "percentunit"},
        names={q.ADDRESS: "server", q.PORT: "port", q.MODEL: "model"},
        empty="No server",
    )


def _own() -> list[Panel]:
    return [
        figure(
            "Telemetry lost",
            q.increase("llamatel.records.dropped"),
            "Records that llamatel could not deliver in the time shown: its queue was full, or the OTLP endpoint did "
            "not take them. Inference is never touched.",
            "Is the OTLP endpoint up and fast enough? llamatel's log says which it is.",
            thresholds=at((None, GREEN), (1, RED)),
            empty="None",
            size=(6, 4),
        ),
        figure(
            "Requests not seen to end",
            q.increase("llamatel.requests.lost"),
            "Requests whose end was not in the log: lines were lost on the way to llamatel.",
            "With attach: does the log arrive whole, and in order?",
            thresholds=at((None, GREEN), (1, YELLOW)),
            empty="None",
            size=(6, 4),
        ),
        figure(
            "Log understood",
            f"min({q.selector('llamatel.log.understood')})",
            "1 while the log shows the requests that llama.cpp counts; 0 if it words them in a way that llamatel does "
            "not know, or hides them.",
            "0: was llama.cpp started with --log-disable or -lv below 3? If not, report the build.",
            thresholds=at((None, RED), (1, GREEN)),
            empty="Unknown",
            size=(6, 4),
        ),
        figure(
            "Collectors that fail",
            f"count({q.selector('llamatel.collector.success')} == 0) or 0 * count("
            f"{q.selector('llamatel.collector.success')})",
            "Parts of llamatel that could not measure what they are for.",
            "llamatel's log says why; `--no-collector NAME` leaves one out.",
            thresholds=at((None, GREEN), (1, ORANGE)),
            empty="No llamatel",
            size=(6, 4),
        ),
    ]


def dashboard() -> Dashboard:
    """Is it healthy."""
    return board(
        "overview",
        "llamatel / Overview",
        "llama.cpp servers at a glance: are they up, fast enough, and is there room.",
        [
            ("", [*_state(), *_objectives()]),
            ("Latency", _time()),
            ("Traffic and saturation", _traffic()),
            ("Servers", [_servers()]),
            ("llamatel itself", _own()),
        ],
    )
