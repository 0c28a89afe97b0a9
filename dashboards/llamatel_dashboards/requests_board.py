"""Requests: where their time goes, how long they are, how they end."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from llamatel_dashboards import queries as q
from llamatel_dashboards.board import board
from llamatel_dashboards.overview_board import DURATION, TPOT, TTFT, quantiles
from llamatel_dashboards.panels import TOKENS_A_SECOND, Panel, Query, heat_map, lines, rows

PHASES = ("queue", "prefill", "decode")
LENGTHS = {
    "input_tokens": ("Prompt length", "Tokens of prompts, cached ones included."),
    "cached_tokens": ("Cached part of prompts", "Prompt tokens that needed no prefill."),
    "output_tokens": ("Answer length", "Tokens generated."),
}


def _phases() -> list[Panel]:
    means = [Query(q.mean(f"llamacpp.request.{phase}.duration"), phase) for phase in PHASES]
    tails = [Query(q.quantile(0.95, f"llamacpp.request.{phase}.duration"), phase) for phase in PHASES]
    return [
        lines(
            "Mean time by phase",
            means,
            "What a request's time is made of: waiting for a slot (an estimate), processing the prompt, generating.",
            "queue: raise -np or add a server. prefill: shorter prompts, shared prefixes, a larger -ub. decode: fewer "
            "slots at once, a smaller or more quantised model.",
            unit="s",
            stacked=True,
            size=(12, 9),
        ),
        lines(
            "p95 by phase",
            tails,
            "Time that 95 % of requests stay within, phase by phase. These do not add up: slow queues and slow "
            "prefills need not meet in one request.",
            "The phase with the longest tail is the one to work on.",
            unit="s",
            size=(12, 9),
        ),
    ]


def _heatmaps() -> list[Panel]:
    return [
        heat_map(
            "Time to first token",
            q.buckets(TTFT),
            "How many requests had their first token after how long.",
            "Two bands are common: prompts that hit the cache, and prompts that do not.",
            exemplars=True,
        ),
        heat_map(
            "Time per output token",
            q.buckets(TPOT),
            "How many requests decoded at which pace.",
            "A band that climbs as traffic grows is contention between slots.",
            exemplars=True,
        ),
        heat_map(
            "Request duration",
            q.buckets(DURATION),
            "How many requests took how long in all.",
            "Dots, where there are any, lead to the trace of one of them.",
            exemplars=True,
        ),
        heat_map(
            "Wait for a slot",
            q.buckets("llamacpp.request.queue.duration"),
            "How many requests waited how long, by llamatel's estimate.",
            "Mass above a second: more slots, or more servers.",
        ),
    ]


def _lengths() -> list[Panel]:
    panels: list[Panel] = [
        lines(
            title,
            quantiles(f"llamacpp.request.{name}", exemplars=False),
            means,
            "Compare with the context of a slot (-c over -np): a prompt and its answer have to fit.",
        )
        for name, (title, means) in LENGTHS.items()
    ]
    panels += [
        heat_map(
            f"{title}, distribution",
            q.buckets(f"llamacpp.request.{name}"),
            means,
            "Several bands are several kinds of clients; they may deserve servers of their own.",
            unit="short",
            size=(8, 8),
        )
        for name, (title, means) in LENGTHS.items()
    ]
    return panels


def _slowest() -> list[Panel]:
    by = q.BY_SERVER
    return [
        lines(
            "The slowest request",
            [Query(q.quantile(1, DURATION, q.BY_SERVER), q.SERVER_LEGEND, exemplars=True)],
            "The bound of the histogram that no request exceeded: the slowest one took no longer than this, on each "
            "server.",
            'Search your traces for `{ resource.service.name = "llamatel" && duration > 10s }` (TraceQL).',
            unit="s",
            size=(12, 8),
        ),
        rows(
            "Slow tails",
            {
                "duration p99": q.quantile(0.99, DURATION, by, q.RANGE),
                "TTFT p99": q.quantile(0.99, TTFT, by, q.RANGE),
                "TPOT p99": q.quantile(0.99, TPOT, by, q.RANGE),
                "requests": q.increase("llamacpp.requests", by),
            },
            "What the slowest hundredth of requests exceeds, by server and model, in the time shown.",
            "One server slower than its peers: other model, other flags, a hot or shared device?",
            units={"duration p99": "s", "TTFT p99": "s", "TPOT p99": "s"},
            names={q.ADDRESS: "server", q.PORT: "port", q.MODEL: "model"},
            hidden=("job", "instance"),
            size=(12, 8),
        ),
    ]


def _ends() -> list[Panel]:
    drafted = q.rate("llamacpp.speculative.tokens", type="drafted")
    return [
        lines(
            "Outcomes",
            [Query(q.rate("llamacpp.requests", "outcome"), "{{outcome}}")],
            "How requests end: ok, cancelled by the client, error, context_full.",
            "context_full: the KV cache dashboard. error: the panel beside this.",
            unit="reqps",
            stacked=True,
        ),
        lines(
            "Errors by type",
            [Query(q.count(DURATION, "error_type", error_type="!"), "{{error_type}}")],
            "Requests that did not complete, by error.type; `cancelled` ones were given up by their client.",
            "exceed_context_size_error: the prompt is longer than a slot. server_exited: llama.cpp died under it.",
            unit="reqps",
            stacked=True,
        ),
        lines(
            "Operations",
            [Query(q.count(DURATION, "gen_ai_operation_name"), "{{gen_ai_operation_name}}")],
            "Requests by what they asked for, as far as llama.cpp's log tells: generation or embeddings.",
            "Embeddings beside generation on one server compete for its slots.",
            unit="reqps",
            stacked=True,
        ),
        lines(
            "Decode speed of a request",
            [Query(f"1 / ({q.mean(TPOT)} > 0)", "mean")],
            "Tokens a second that one request gets, on average.",
            "People read at about 5 to 10 tokens a second; machines want more.",
            unit=TOKENS_A_SECOND,
            size=(12, 8),
        ),
        lines(
            "Draft tokens accepted",
            [Query(q.share(q.rate("llamacpp.speculative.tokens", type="accepted"), drafted), "accepted")],
            "With speculative decoding: the share of draft tokens that the model accepted.",
            "Below about a half the draft costs more than it saves: another draft model, or fewer draft tokens.",
            unit="percentunit",
            at_most=1,
            empty="No speculative decoding",
            size=(12, 8),
        ),
    ]


def _clients() -> list[Panel]:
    none = "No LlamaCppClient"
    return [
        lines(
            "Calls",
            quantiles("gen_ai.client.operation.duration"),
            "Time of calls as LlamaCppClient, llamatel's client, saw them; attempts that were repeated included.",
            "Longer than Request duration: the network, or repeated attempts.",
            unit="s",
            empty=none,
            size=(6, 8),
        ),
        lines(
            "First chunk",
            quantiles("gen_ai.client.operation.time_to_first_chunk"),
            "Time from a call to the first chunk of its stream, as the client saw it.",
            "Compare with time to first token: the difference is the way there and back.",
            unit="s",
            empty=none,
            size=(6, 8),
        ),
        lines(
            "Between chunks",
            quantiles("gen_ai.client.operation.time_per_output_chunk"),
            "Time from one chunk to the next, as the client saw it: what a reader feels.",
            "A long tail beside a short median: prefills of other requests hold decoding up; a smaller -ub helps.",
            unit="s",
            empty=none,
            size=(6, 8),
        ),
        lines(
            "Tokens of calls",
            [Query(q.mean("gen_ai.client.token.usage", "gen_ai_token_type"), "{{gen_ai_token_type}}")],
            "Mean tokens of a call, by type; input includes cached ones.",
            "More input than before: does a prompt template grow with the conversation?",
            empty=none,
            size=(6, 8),
        ),
    ]


def dashboard() -> Dashboard:
    """Where requests spend their time."""
    return board(
        "requests",
        "llamatel / Requests",
        "Phases, distributions and outcomes of requests.",
        [
            ("Phases", _phases()),
            ("Latency, every request", _heatmaps()),
            ("Lengths", _lengths()),
            ("Slowest", _slowest()),
            ("Outcomes and decoding", _ends()),
            ("Clients", _clients()),
        ],
    )
