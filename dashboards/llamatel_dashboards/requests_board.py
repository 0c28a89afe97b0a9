"""Requests: time by phase, lengths, outcomes."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from llamatel_dashboards import queries as q
from llamatel_dashboards.board import board
from llamatel_dashboards.figures import DURATION, TPOT, TTFT, quantiles
from llamatel_dashboards.panels import TOKENS_A_SECOND, Column, Panel, Query, heat_map, lines, rows

PHASES = ("queue", "prefill", "decode")
LENGTHS = {
    "input_tokens": ("Prompt length", "Tokens of prompts, cached ones included."),
    "cached_tokens": ("Cached part of prompts", "Prompt tokens that needed no prefill."),
    "output_tokens": ("Answer length", "Tokens generated."),
}


def _phases() -> list[Panel]:
    averages = [Query(q.mean(f"llamacpp.request.{phase}.duration"), phase) for phase in PHASES]
    tails = [Query(q.quantile(0.95, f"llamacpp.request.{phase}.duration"), phase) for phase in PHASES]
    return [
        lines(
            "Mean time by phase",
            averages,
            "Mean time of a request in each phase: waiting for a slot (an estimate), prefill, decode.",
            "queue: raise -np or add a server. prefill: shorter prompts, shared prefixes, a larger -ub. decode: fewer "
            "slots at once, a smaller or more quantised model.",
            unit="s",
            stacked=True,
            size=(12, 9),
        ),
        lines(
            "p95 by phase",
            tails,
            "Time that 95 % of requests stay within, phase by phase. These do not add up: the slowest "
            "queue and the slowest prefill are rarely those of one request.",
            "Start with the phase that has the longest tail.",
            unit="s",
            size=(12, 9),
        ),
    ]


def _heatmaps() -> list[Panel]:
    return [
        heat_map(
            "Time to first token",
            q.buckets(TTFT),
            "Distribution of the time to first token.",
            "Two bands are common: prompts that hit the cache, and prompts that do not.",
            exemplars=True,
        ),
        heat_map(
            "Time per output token",
            q.buckets(TPOT),
            "Distribution of the time per output token.",
            "A band that rises with traffic is contention between slots.",
            exemplars=True,
        ),
        heat_map(
            "Request duration",
            q.buckets(DURATION),
            "Distribution of the whole duration.",
            "Dots are exemplars: they lead to the trace of a request.",
            exemplars=True,
        ),
        heat_map(
            "Wait for a slot",
            q.buckets("llamacpp.request.queue.duration"),
            "Distribution of the wait for a slot, by llamatel's estimate.",
            "Many above a second: more slots, or more servers.",
        ),
        heat_map(
            "Time in Ollama before llama-server",
            q.buckets("llamacpp.request.outside.duration"),
            "Distribution of the time from a request's arrival at Ollama until its llama-server had it.",
            "Seconds are loads of a model: OLLAMA_KEEP_ALIVE, OLLAMA_MAX_LOADED_MODELS. Less is waiting: "
            "OLLAMA_NUM_PARALLEL.",
        ),
    ]


def _lengths() -> list[Panel]:
    panels: list[Panel] = [
        lines(
            title,
            quantiles(f"llamacpp.request.{name}", exemplars=False),
            meaning,
            "Compare with the context of a slot (-c over -np): a prompt and its answer have to fit.",
        )
        for name, (title, meaning) in LENGTHS.items()
    ]
    panels += [
        heat_map(
            f"{title}, distribution",
            q.buckets(f"llamacpp.request.{name}"),
            meaning,
            "Several bands are several kinds of clients; separate servers may suit them better.",
            unit="short",
            size=(8, 8),
        )
        for name, (title, meaning) in LENGTHS.items()
    ]
    return panels


def _slowest() -> list[Panel]:
    by = q.BY_SERVER
    return [
        lines(
            "The slowest request",
            [Query(q.quantile(1, DURATION, q.BY_SERVER), q.SERVER_LEGEND, exemplars=True)],
            "Upper bound of the slowest request's bucket, on each server.",
            'Search your traces for `{ resource.service.name = "llamatel" && duration > 10s }` (TraceQL).',
            unit="s",
            size=(24, 7),
        ),
        rows(
            "Slow tails",
            {
                "duration p99": Column(q.quantile(0.99, DURATION, by, q.RANGE), "s"),
                "TTFT p99": Column(q.quantile(0.99, TTFT, by, q.RANGE), "s"),
                "TPOT p99": Column(q.quantile(0.99, TPOT, by, q.RANGE), "s"),
                "requests": Column(q.increase("llamacpp.requests", by), "none", decimals=0),
            },
            "99th percentiles by server and model, in the time shown.",
            "One server slower than its peers: another model, other flags, a throttled or shared device?",
            names={q.ADDRESS: "server", q.PORT: "port", q.MODEL: "model"},
            hidden=("job", "cluster"),
            first=("namespace", "pod", "instance", "server", "port", "model"),
            sort=("duration p99", True),
            size=(24, 7),
        ),
    ]


def _ends() -> list[Panel]:
    drafted = q.rate("llamacpp.speculative.tokens", type="drafted")
    return [
        lines(
            "Outcomes",
            [Query(q.rate("llamacpp.requests", "outcome"), "{{outcome}}")],
            "Finished requests a second by outcome: ok, cancelled by the client, error, context_full.",
            "context_full: the KV cache dashboard. error: Errors by type.",
            unit="reqps",
            stacked=True,
        ),
        lines(
            "Errors by type",
            [Query(q.count(DURATION, "error_type", error_type="!"), "{{error_type}}")],
            "Requests that did not complete, by error.type; `cancelled` ones were aborted by their client.",
            "exceed_context_size_error: the prompt is longer than a slot. server_exited: llama.cpp crashed.",
            unit="reqps",
            stacked=True,
            empty="No error in this time, or no request log",
        ),
        lines(
            "Operations",
            [Query(q.count(DURATION, "gen_ai_operation_name"), "{{gen_ai_operation_name}}")],
            "Requests by operation, as far as llama.cpp's log shows it: generation or embeddings.",
            "Embeddings and generation on one server compete for its slots.",
            unit="reqps",
            stacked=True,
        ),
        lines(
            "Decode speed of a request",
            [Query(f"1 / ({q.mean(TPOT)} > 0)", "mean")],
            "Tokens a second that one request gets, on average.",
            "People read 5 to 10 tokens a second.",
            unit=TOKENS_A_SECOND,
            size=(12, 8),
        ),
        lines(
            "Draft tokens accepted",
            [Query(q.share(q.rate("llamacpp.speculative.tokens", type="accepted"), drafted), "accepted")],
            "With speculative decoding: the share of draft tokens that the model accepted.",
            "Below about a half the draft costs more than it saves: use another draft model, or fewer draft tokens.",
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
            "Time of calls as measured by LlamaCppClient, retries included.",
            "Longer than Request duration: the network, or retries.",
            unit="s",
            empty=none,
            size=(6, 8),
        ),
        lines(
            "First chunk",
            quantiles("gen_ai.client.operation.time_to_first_chunk"),
            "Time from a call to the first chunk of its stream, as measured by the client.",
            "Compare with time to first token: the difference is the network.",
            unit="s",
            empty=none,
            size=(6, 8),
        ),
        lines(
            "Between chunks",
            quantiles("gen_ai.client.operation.time_per_output_chunk"),
            "Time from one chunk to the next, as measured by the client.",
            "A long tail with a short median: prefills of other requests delay decoding; a smaller -ub helps.",
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
    """The Requests dashboard."""
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
