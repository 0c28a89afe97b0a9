"""Overview: health at a glance."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from llamatel.ui import alarm_conditions
from llamatel_dashboards import queries as q
from llamatel_dashboards.board import board
from llamatel_dashboards.figures import (
    DURATION,
    FAILED,
    HEADROOM,
    NAMES,
    TPOT,
    TTFT,
    WAITING,
    headroom_share,
    quantiles,
    servers_table,
    speed,
)
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
    figure,
    lines,
    rows,
)

_BURN = at((None, GREEN), (1, YELLOW), (alarm_conditions.BURN_RATE, ORANGE), (14.4, RED))


def burn(name: str, objective: str, by: str = "", over: str = q.RANGE) -> str:
    """The burn rate of an objective's error budget."""
    return f"(1 - {q.within(name, objective, by, over)}) / $error_budget"


def _state() -> list[Panel]:
    failed = q.increase("llamacpp.requests", outcome="~error|context_full")
    return [
        figure(
            "Servers down",
            q.servers_down(),
            "llama.cpp servers that do not answer, and llamatels that Prometheus discovers and cannot scrape (with "
            "`llamatel serve` their server has exited as well).",
            "The table of alerts below names them. Look at the end of the server's log.",
            thresholds=at((None, GREEN), (1, RED)),
            empty="No server",
        ),
        figure(
            "Requests",
            q.logged(q.rate("llamacpp.requests")),
            "Finished requests a second, whatever their outcome.",
            "Compare with what clients send: llama.cpp does not log requests that it rejects as invalid.",
            unit="reqps",
            empty=NO_LOG,
        ),
        figure(
            "Output",
            q.rate("llamacpp.tokens", type="output"),
            "Tokens generated a second by all selected servers, by llama.cpp's own counter.",
            "If it does not grow with the number of busy slots, the device is at its limit: see the GPU dashboard.",
            unit=TOKENS_A_SECOND,
            empty="Unknown",
        ),
        figure(
            "Failed",
            q.logged(q.share(failed, q.increase("llamacpp.requests"))),
            "Share of requests that failed, in the time shown. Requests that a client cancelled are not failures.",
            "By outcome below. `context_full` means that the KV pool was full: see the KV cache dashboard.",
            unit="percentunit",
            thresholds=at((None, GREEN), (0.001, YELLOW), (0.01, RED)),
            empty=NO_LOG,
        ),
        figure(
            "Busy slots",
            q.total(q.selector("llamacpp.slots", state="busy")),
            "Slots that process a request now, on all selected servers.",
            "All of them busy and requests waiting: raise -np, or add a server.",
            empty="Unknown",
        ),
        figure(
            "Waiting for a slot",
            q.total(q.selector("llamacpp.requests.deferred")),
            "Requests that wait until a slot is free.",
            "Above 0 for long: raise -np (and -c with it, as slots share the pool), or add a server.",
            thresholds=at((None, GREEN), (1, YELLOW), (8, RED)),
            empty="Unknown",
        ),
    ]


def _objectives() -> list[Panel]:
    return [
        figure(
            "TTFT p95",
            q.logged(q.quantile(0.95, TTFT, over=q.RANGE)),
            "Time to first token that 95 % of requests stay within, in the time shown: wait for a slot and prefill.",
            "High: the panel of phases on the Requests dashboard shows whether requests wait or prefill is slow.",
            unit="s",
            empty=NO_LOG,
        ),
        figure(
            "TTFT burn rate",
            q.logged(burn(TTFT, "$ttft_objective")),
            "Share of requests that missed the TTFT objective, over the error budget (both are chosen at the top). "
            "Above 1 the budget will not last.",
            "Choose the objective that your users notice; the alert rules have theirs (docs/alerts.md).",
            thresholds=_BURN,
            empty=NO_LOG,
            decimals=1,
        ),
        figure(
            "TPOT p95",
            q.logged(q.quantile(0.95, TPOT, over=q.RANGE)),
            "Time per output token after the first that 95 % of requests stay within, in the time shown.",
            "High: are all layers on the GPU (-ngl)? Do too many slots share it? `llamatel plan` prints the limit.",
            unit="s",
            empty=NO_LOG,
        ),
        figure(
            "TPOT burn rate",
            q.logged(burn(TPOT, "$tpot_objective")),
            "Share of requests that missed the TPOT objective, over the error budget.",
            "Fewer slots at once make each request faster, and all together slower.",
            thresholds=_BURN,
            empty=NO_LOG,
            decimals=1,
        ),
        figure(
            "KV headroom, fullest",
            headroom_share(),
            "Share of the KV pool that running requests do not hold, on the server with the least. What idle slots "
            "keep counts as free: llama.cpp reuses it when it needs room.",
            "Near 0 every request on a shared pool fails. Raise -c, lower -np, or split with --no-kv-unified.",
            unit="percentunit",
            thresholds=at((None, RED), (alarm_conditions.HEADROOM, YELLOW), (0.3, GREEN)),
            empty="Unknown",
        ),
        figure(
            "Prefix cache hits",
            q.hit_share(),
            "Share of prompt tokens that were in the KV cache already and needed no prefill, in the time shown.",
            "Low with long shared prefixes: put what changes at the prompt's end, and keep a client on one server.",
            unit="percentunit",
        ),
    ]


def _alerts() -> Panel:
    since = q.firing("ALERTS_FOR_STATE").replace('alertstate="firing", ', "")
    severities = {"critical": ("critical", RED), "warning": ("warning", YELLOW), "info": ("info", "semi-dark-blue")}
    return rows(
        "Alerts",
        {"for": Column(f"time() - {since} and ignoring (alertstate) {q.firing()}", unit="s")},
        "Alerts that fire now, by the rules of `llamatel dashboards export`: which, where, and for how long.",
        "docs/alerts.md has an entry for each: what it means, how to find the cause, what helps.",
        names={**NAMES, "alertname": "alert"},
        hidden=("job", "alertstate", "cluster", "namespace", "outcome", "state", "collector", "exported_instance"),
        first=("alert", "severity", "for", "instance", "pod", "server", "port", "model"),
        sort=("for", True),
        texts={"severity": severities},
        widths={"alert": 260, "severity": 90, "for": 90},
        size=(24, 8),
    )


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


def _burn_rates() -> list[Panel]:
    return [
        lines(
            f"{name} burn rate, 1 h",
            [Query(burn(metric, f"${name.lower()}_objective", q.BY_SERVER, "1h"), q.SERVER_LEGEND)],
            f"How many times faster than allowed the error budget of the {name} objective burnt in the last hour, on "
            "each server.",
            "The alerts fire at 14.4 (critical, with the last five minutes) and at 6 (warning, over six hours).",
            thresholds=at((None, GREEN), (1, YELLOW), (alarm_conditions.BURN_RATE, ORANGE), (14.4, RED)),
            size=(12, 8),
        )
        for name, metric in (("TTFT", TTFT), ("TPOT", TPOT))
    ]


def _traffic() -> list[Panel]:
    return [
        lines(
            "Requests by outcome",
            [Query(q.rate("llamacpp.requests", "outcome"), "{{outcome}}")],
            "Finished requests a second by outcome: ok, cancelled by the client, error, context_full.",
            "cancelled: are clients' timeouts too short? context_full: the KV pool was full. error: see the traces.",
            unit="reqps",
            stacked=True,
        ),
        lines(
            "Tokens",
            [Query(q.rate("llamacpp.tokens", "type"), "{{type}}")],
            "Tokens a second by llama.cpp's own counters: prompt tokens computed, prompt tokens from the cache, "
            "generated tokens.",
            "Much input_computed and little output: prefill dominates. Longer shared prefixes help.",
            unit=TOKENS_A_SECOND,
            stacked=True,
        ),
        lines(
            "Busy slots and waiting requests",
            [
                Query(q.total(q.selector("llamacpp.slots"), "state"), "{{state}}"),
                Query(q.total(q.selector("llamacpp.requests.deferred")), "waiting"),
            ],
            "Busy and idle slots, and requests that wait for one.",
            "Waiting requests next to idle slots last a moment only; if longer, report it.",
            empty="Unknown",
        ),
        lines(
            "KV pool, fullest",
            [Query(f"max by (state) ({q.selector('llamacpp.kv_cache.usage')})", "{{state}}")],
            "Share of the KV pool that running requests hold (active) and that idle slots still hold (cached): the "
            "highest of the selected servers.",
            "active near 1 is dangerous, cached near 1 is not: it makes the next prompt cheap.",
            unit="percentunit",
            at_most=1,
            empty="Unknown",
        ),
        lines(
            "Where requests spend their time",
            [Query(q.mean(f"llamacpp.request.{phase}.duration"), phase) for phase in ("queue", "prefill", "decode")],
            "Mean time of a request in each phase.",
            "queue grows: too few slots. prefill grows: longer prompts, fewer cache hits. decode grows: longer "
            "answers, or more slots at once.",
            unit="s",
            stacked=True,
        ),
        lines(
            "Speed by llama.cpp's counters",
            [Query(speed("input_computed", "prefill"), "prefill"), Query(speed("output", "decode"), "decode")],
            "Tokens a second that one request gets in prefill and in decode, on average. Known without a log, too.",
            "decode falls: more slots at once, or longer contexts. prefill falls: short prompts do not fill a batch.",
            unit=TOKENS_A_SECOND,
            empty="Unknown",
        ),
    ]


def _servers() -> Panel:
    by = q.BY_SERVER
    failed = q.share(
        q.increase("llamacpp.requests", by, outcome="~error|context_full"), q.increase("llamacpp.requests", by)
    )
    return servers_table(
        {
            "requests/s": Column(q.rate("llamacpp.requests", by), "reqps"),
            "failed": Column(failed, "percentunit", FAILED),
            "output tok/s": Column(q.rate("llamacpp.tokens", by, type="output"), TOKENS_A_SECOND),
            "TTFT p95": Column(q.quantile(0.95, TTFT, by), "s"),
            "busy": q.total(q.selector("llamacpp.slots", state="busy"), by),
            "waiting": Column(q.total(q.selector("llamacpp.requests.deferred"), by), None, WAITING),
            "KV headroom": Column(headroom_share(by), "percentunit", HEADROOM),
            "process age": Column(
                f"max by ({by}) (time() - {q.selector('llamacpp.server.start_time')})", "s", at((None, "transparent"))
            ),
        },
        "One row for each server and model. Empty latencies: the server's log is not read.",
        "A row with few requests next to busy ones: look at the balancer. Details are on the Fleet dashboard.",
        8,
    )


def _own() -> list[Panel]:
    local = "~127[.].*|localhost|::1|0[.]0[.]0[.]0|/.*|"
    remote = q.selector("llamacpp.server.up", server_address=local).replace(
        'server_address=~"127', 'server_address!~"127'
    )
    site = ", ".join(("cluster", "namespace", *q.SERVER_LABELS[5:]))
    twice = f"count(count by ({site}) (count by (job, instance, {site}) ({remote})) > 1)"
    failing = f"{q.selector('llamatel.collector.success')} == 0"
    return [
        figure(
            "Telemetry lost",
            q.increase("llamatel.records.dropped"),
            "Records that llamatel could not deliver in the time shown: its queue was full, or the OTLP endpoint did "
            "not accept them. Inference is not affected.",
            "Is the OTLP endpoint up and fast enough? llamatel's log has the reason.",
            thresholds=at((None, GREEN), (1, RED)),
            empty="No llamatel",
            decimals=0,
        ),
        figure(
            "Requests without an end",
            q.increase("llamatel.requests.lost"),
            "Requests not seen from start to end: lines of the log were lost, or a router unloaded their model.",
            "With attach: does the log arrive complete, and in order?",
            thresholds=at((None, GREEN), (1, YELLOW)),
            empty=NO_LOG,
            decimals=0,
        ),
        figure(
            "Log understood",
            f"min({q.selector('llamatel.log.understood')})",
            "Whether the log shows the requests that llama.cpp counts; no, where its format is unknown or it is off.",
            "no: was llama.cpp started with --log-disable or -lv below 3? If not, report the build.",
            thresholds=at((None, RED), (1, GREEN)),
            texts={"1": ("yes", GREEN), "0": ("no", RED)},
            empty=NO_LOG,
        ),
        figure(
            "Collectors that fail",
            f"count({failing}) or 0 * count({q.selector('llamatel.collector.success')})",
            "Parts of llamatel that fail to measure.",
            "llamatel's log has the reason; `--no-collector NAME` turns one off.",
            thresholds=at((None, GREEN), (1, ORANGE)),
            empty="No llamatel",
        ),
        figure(
            "Watched twice",
            f"{twice} or 0 * count({q.selector('llamatel.collector.success')})",
            "llama.cpp servers that two llamatels report. Sums on these dashboards count them twice.",
            "Choose one llamatel at the top, or remove the second watcher.",
            thresholds=at((None, GREEN), (1, ORANGE)),
            empty="No llamatel",
        ),
        figure(
            "llamatels",
            f"count(group by ({', '.join(q.SERVER_LABELS[:5])}) ({q.selector('llamatel.collector.success')}))",
            "llamatels that Prometheus scrapes.",
            "Fewer than before and not on purpose: see Servers down.",
            empty="No llamatel",
        ),
    ]


def dashboard() -> Dashboard:
    """The Overview dashboard."""
    return board(
        "overview",
        "llamatel / Overview",
        "llama.cpp servers at a glance: are they up, fast enough, and is there room.",
        [
            ("", [*_state(), *_objectives(), _alerts(), _servers()]),
            ("Latency", [*_time(), *_burn_rates()]),
            ("Traffic and saturation", _traffic()),
            ("llamatel itself", _own()),
        ],
    )
