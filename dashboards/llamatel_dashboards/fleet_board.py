"""Fleet and router: servers side by side, models side by side."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from llamatel_dashboards import queries as q
from llamatel_dashboards.board import board
from llamatel_dashboards.overview_board import DURATION, TPOT, TTFT, headroom_share
from llamatel_dashboards.panels import NO_TRAFFIC, TOKENS_A_SECOND, Panel, Query, lines, rows

_BY = q.BY_SERVER


def _per_server(title: str, expr: str, means: str, act: str, *, unit: str = "short", empty: str = NO_TRAFFIC) -> Panel:
    return lines(title, [Query(expr, q.SERVER_LEGEND)], means, act, unit=unit, empty=empty)


def _table() -> Panel:
    return rows(
        "Servers",
        {
            "up": f"max by ({_BY}) ({q.selector('llamacpp.server.up')})",
            "restarts": f"sum by ({_BY}) ({q.selector('llamacpp.server.restarts')})",
            "requests": q.increase("llamacpp.requests", _BY),
            "failed": q.increase("llamacpp.requests", _BY, outcome="~error|context_full"),
            "output tokens": q.increase("llamacpp.tokens", _BY, type="output"),
            "TTFT p95": q.quantile(0.95, TTFT, _BY, q.RANGE),
            "TPOT p95": q.quantile(0.95, TPOT, _BY, q.RANGE),
            "busy": q.total(q.selector("llamacpp.slots", state="busy"), _BY),
            "slots": q.total(q.selector("llamacpp.slots"), _BY),
            "waiting": q.total(q.selector("llamacpp.requests.deferred"), _BY),
            "KV headroom": headroom_share(_BY),
        },
        "Every server, and of a router every model, in the time shown.",
        "Sort by a column: the outlier is where to look.",
        units={"TTFT p95": "s", "TPOT p95": "s", "KV headroom": "percentunit"},
        names={q.ADDRESS: "server", q.PORT: "port", q.MODEL: "model"},
        empty="No server",
        size=(24, 9),
    )


def _balance() -> list[Panel]:
    busy, slots = (q.total(q.selector("llamacpp.slots", **of), _BY) for of in ({"state": "busy"}, {}))
    return [
        _per_server(
            "Requests by server",
            q.rate("llamacpp.requests", _BY),
            "Requests that ended, a second, on each server.",
            "Uneven: does the balancer count requests, or tokens? Sticky sessions are good for the prompt cache.",
            unit="reqps",
        ),
        _per_server(
            "Share of slots busy",
            q.share(busy, slots),
            "Busy slots over all slots of each server.",
            "One at 1 and others near 0: the balancer does not see load.",
            unit="percentunit",
            empty="Unknown",
        ),
        _per_server(
            "Waiting by server",
            q.total(q.selector("llamacpp.requests.deferred"), _BY),
            "Requests that wait for a slot, on each server.",
            "Wait on one and idle slots on another: balance by waiting requests (deploy/kubernetes has an example).",
            empty="Unknown",
        ),
        _per_server(
            "Output by server",
            q.rate("llamacpp.tokens", _BY, type="output"),
            "Tokens generated a second, on each server.",
            "Same hardware, same model, other figure: compare settings on Model and server.",
            unit=TOKENS_A_SECOND,
        ),
        _per_server(
            "TTFT p95 by server",
            q.quantile(0.95, TTFT, _BY),
            "Time to first token that 95 % of each server's requests stay within.",
            "One high: it waits (see beside), or its prompts miss the cache.",
            unit="s",
        ),
        _per_server(
            "TPOT p95 by server",
            q.quantile(0.95, TPOT, _BY),
            "Time per output token that 95 % of each server's requests stay within.",
            "One high: its device is shared, hot or slower.",
            unit="s",
        ),
        _per_server(
            "KV headroom by server",
            headroom_share(_BY),
            "Share of each pool that running requests do not hold.",
            "Scale on this one and on waiting requests, not on GPU utilisation, which is 100 % at one busy slot.",
            unit="percentunit",
            empty="Unknown",
        ),
        _per_server(
            "Prompt tokens from the cache, by server",
            q.share(q.rate("llamacpp.prompt_cache.hits", _BY), q.rate("llamacpp.prompt_cache.lookups", _BY)),
            "Share of prompt tokens that needed no prefill.",
            "A balancer that spreads one conversation over servers makes this low on all of them.",
            unit="percentunit",
        ),
        _per_server(
            "Failed by server",
            q.rate("llamacpp.requests", _BY, outcome="~error|context_full"),
            "Requests that failed, a second.",
            "context_full or error: the Requests dashboard, with this server chosen above.",
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
            "Requests that ended, a second, by model.",
            "A model nobody asks for takes memory that others could use.",
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
            "failed or stopped: the Model and server dashboard says which, its log says why.",
            stacked=True,
            empty="No server",
            size=(24, 7),
        ),
    ]


_LIFE = {
    "loads": (
        "Loads",
        "Times a router loaded a model. Without the router's log, loads between two polls are missed.",
        "The first request for a model waits for its load: keep what is asked for often loaded.",
    ),
    "evictions": (
        "Evictions",
        "Times a router unloaded a model to make room for another; only its log tells.",
        "Many: --models-max is too small for the models that are asked for.",
    ),
    "failures": (
        "Failures",
        "Times the process of a router's model did not load it, or died.",
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
                means,
                act,
                empty=none,
                size=(6, 7),
            )
            for name, (title, means, act) in _LIFE.items()
        ),
        lines(
            "State of each model",
            [Query(q.selector("llamacpp.model.state"), f"{q.SERVER_LEGEND} {{{{state}}}}")],
            "1 while a router's model is in that state.",
            "Lines that alternate are models that displace each other.",
            at_most=1,
            empty=none,
            size=(24, 7),
        ),
    ]


def dashboard() -> Dashboard:
    """Servers and models side by side."""
    return board(
        "fleet",
        "llamatel / Fleet and router",
        "Servers compared with each other, and models of a router compared with each other.",
        [("", [_table()]), ("Balance", _balance()), ("Models", _models()), ("Router", _router())],
    )
