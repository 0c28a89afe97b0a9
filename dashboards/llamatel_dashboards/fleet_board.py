"""Fleet and router: compares servers, and models."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from llamatel_dashboards import queries as q
from llamatel_dashboards.board import board
from llamatel_dashboards.figures import (
    DURATION,
    FAILED,
    HEADROOM,
    TPOT,
    TTFT,
    WAITING,
    headroom_share,
    servers_table,
    speed,
)
from llamatel_dashboards.panels import NO_REQUESTS, TOKENS_A_SECOND, Column, Panel, Query, lines, states

_BY = q.BY_SERVER


def _per_server(
    title: str, expr: str, meaning: str, action: str, *, unit: str = "short", empty: str = NO_REQUESTS
) -> Panel:
    return lines(title, [Query(expr, q.SERVER_LEGEND)], meaning, action, unit=unit, empty=empty)


def _table() -> Panel:
    failed = q.share(
        q.increase("llamacpp.requests", _BY, outcome="~error|context_full"), q.increase("llamacpp.requests", _BY)
    )
    return servers_table(
        {
            "restarts": Column(q.increase("llamacpp.server.restarts", _BY), decimals=0),
            "requests": Column(q.increase("llamacpp.requests", _BY), "none", decimals=0),
            "failed": Column(failed, "percentunit", FAILED),
            "output tokens": Column(q.increase("llamacpp.tokens", _BY, type="output"), "short"),
            "TTFT p95": Column(q.quantile(0.95, TTFT, _BY, q.RANGE), "s"),
            "TPOT p95": Column(q.quantile(0.95, TPOT, _BY, q.RANGE), "s"),
            "decode": Column(speed("output", "decode", _BY), TOKENS_A_SECOND),
            "busy": q.total(q.selector("llamacpp.slots", state="busy"), _BY),
            "slots": q.total(q.selector("llamacpp.slots"), _BY),
            "waiting": Column(q.total(q.selector("llamacpp.requests.deferred"), _BY), None, WAITING),
            "KV headroom": Column(headroom_share(_BY), "percentunit", HEADROOM),
        },
        "Every server, and of a router every model, in the time shown. Empty latencies: the log is not read.",
        "Sort by a column: look at the outlier first.",
        10,
    )


def _balance() -> list[Panel]:
    busy, slots = (q.total(q.selector("llamacpp.slots", **of), _BY) for of in ({"state": "busy"}, {}))
    return [
        _per_server(
            "Requests by server",
            q.rate("llamacpp.requests", _BY),
            "Finished requests a second, on each server.",
            "Uneven: does the balancer count requests, or tokens? Sticky sessions are good for the prompt cache.",
            unit="reqps",
        ),
        _per_server(
            "Share of slots busy",
            q.share(busy, slots),
            "Busy slots over all slots of each server.",
            "One at 1 and others near 0: the balancer does not consider load.",
            unit="percentunit",
            empty="Unknown",
        ),
        _per_server(
            "Waiting by server",
            q.total(q.selector("llamacpp.requests.deferred"), _BY),
            "Requests that wait for a slot, on each server.",
            "Requests wait on one server while another has idle slots: balance by waiting requests.",
            empty="Unknown",
        ),
        _per_server(
            "Output by server",
            q.rate("llamacpp.tokens", _BY, type="output"),
            "Tokens generated a second, on each server.",
            "Same hardware and model, different figures: compare settings on Model and server.",
            unit=TOKENS_A_SECOND,
        ),
        _per_server(
            "TTFT p95 by server",
            q.quantile(0.95, TTFT, _BY),
            "Time to first token that 95 % of each server's requests stay within.",
            "One high: its requests wait, or its prompts miss the cache.",
            unit="s",
        ),
        _per_server(
            "TPOT p95 by server",
            q.quantile(0.95, TPOT, _BY),
            "Time per output token that 95 % of each server's requests stay within.",
            "One high: its device is shared, throttled or slower.",
            unit="s",
        ),
        _per_server(
            "KV headroom by server",
            headroom_share(_BY),
            "Share of each pool that running requests do not hold.",
            "Scale on this and on waiting requests, not on GPU utilisation, which is 100 % with one busy slot.",
            unit="percentunit",
            empty="Unknown",
        ),
        _per_server(
            "Prompt tokens from the cache, by server",
            q.hit_share(_BY, q.RATE),
            "Share of prompt tokens that needed no prefill.",
            "A balancer that spreads one conversation over servers lowers it on all of them.",
            unit="percentunit",
        ),
        _per_server(
            "Busy slots per step",
            q.total(q.selector("llamacpp.decode.busy_slots"), _BY),
            "Mean number of busy slots in a decode step since each server started, by llama.cpp's own gauge: known "
            "without a request log, too.",
            "Close to 1 with many clients: requests come one after another, or the balancer prefers another server.",
            empty="Unknown",
        ),
        _per_server(
            "Tokens per step",
            q.share(q.rate("llamacpp.tokens", _BY, type="output"), q.rate("llamacpp.decode.steps", _BY)),
            "Tokens generated per decode step: busy slots in decode, and with a draft model the accepted tokens.",
            "Below the number of busy slots: steps are spent on prefill.",
            empty="Unknown",
        ),
        _per_server(
            "Prefill lost by server",
            q.rate("llamacpp.prompt_cache.recompute.duration", _BY),
            "Seconds of prefill in a second that went to tokens which had been in the cache. Needs the request log.",
            "The row Prompt cache of the KV cache dashboard has the causes.",
            unit="s",
        ),
        _per_server(
            "Failed by server",
            q.rate("llamacpp.requests", _BY, outcome="~error|context_full"),
            "Requests that failed, a second.",
            "context_full or error: see the Requests dashboard with this server selected.",
            unit="reqps",
        ),
    ]


def _models() -> list[Panel]:
    model = q.MODEL
    legend = f"{{{{{model}}}}}"
    return [
        lines(
            "Requests by model",
            [Query(q.rate("llamacpp.requests", model), legend)],
            "Finished requests a second, by model.",
            "An unused model takes memory that others could use.",
            unit="reqps",
            stacked=True,
        ),
        lines(
            "Output by model",
            [Query(q.rate("llamacpp.tokens", model, type="output"), legend)],
            "Tokens generated a second, by model.",
            "Compare with what each model's size would allow.",
            unit=TOKENS_A_SECOND,
            stacked=True,
        ),
        lines(
            "Duration p95 by model",
            [Query(q.quantile(0.95, DURATION, model), legend)],
            "Time that 95 % of each model's requests stay within.",
            "With a router: a model that has to be loaded first makes its first request wait.",
            unit="s",
        ),
        lines(
            "Servers by state",
            [Query(q.total(q.selector("llamacpp.server.state"), "state"), "{{state}}")],
            "How many servers are in which state.",
            "failed or stopped: the Model and server dashboard shows which one, its log the reason.",
            stacked=True,
            empty="No server",
            size=(24, 7),
        ),
    ]


_LIFE = {
    "loads": (
        "Loads",
        "Times a router loaded a model. Without the router's log, loads between two polls are missed.",
        "The first request for a model waits for its load: keep frequently used models loaded.",
    ),
    "evictions": (
        "Evictions",
        "Times a router unloaded a model to make room for another; only in its log.",
        "Many: --models-max is too small for the models in use.",
    ),
    "failures": (
        "Failures",
        "Times a router's model failed to load, or its process crashed.",
        "The router's log has the reason; memory is the usual one.",
    ),
}


def _router() -> list[Panel]:
    none = "No router"
    return [
        lines(
            "A router's models by state",
            [Query(q.total(q.selector("llamacpp.model.state"), "state"), "{{state}}")],
            "How many models of routers are loaded, loading, sleeping, unloaded, failed or being downloaded.",
            "failed: the router's log has the reason. loading for long: a slow disk, or a large model.",
            stacked=True,
            empty=none,
            size=(6, 7),
        ),
        *(
            lines(
                title,
                [Query(q.increase(f"llamacpp.model.{name}", _BY, q.RATE), q.SERVER_LEGEND)],
                meaning,
                action,
                empty=none,
                size=(6, 7),
            )
            for name, (title, meaning, action) in _LIFE.items()
        ),
        states(
            "State of each model",
            Query(q.selector("llamacpp.model.state"), f"{q.SERVER_LEGEND} {{{{state}}}}"),
            "Green while a router's model is in that state.",
            "Models whose bars alternate displace each other: raise --models-max.",
            size=(24, 7),
        ),
    ]


def dashboard() -> Dashboard:
    """The Fleet and router dashboard."""
    return board(
        "fleet",
        "llamatel / Fleet and router",
        "Servers compared with each other, and models of a router compared with each other.",
        [("", [_table()]), ("Balance", _balance()), ("Models", _models()), ("Router", _router())],
    )
