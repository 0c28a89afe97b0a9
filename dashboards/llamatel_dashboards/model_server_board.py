"""Model and server: what runs, with which settings, since when; and llamatel itself."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from llamatel_dashboards import queries as q
from llamatel_dashboards.board import board
from llamatel_dashboards.panels import (
    GREEN,
    RED,
    TOKENS_A_SECOND,
    YELLOW,
    Panel,
    Query,
    at,
    figure,
    lines,
    rows,
    states,
)

_NAMES = {q.ADDRESS: "server", q.PORT: "port", q.MODEL: "model"}
_PLACE = ("job", "instance")


def _model() -> list[Panel]:
    by = q.BY_SERVER
    return [
        rows(
            "Models",
            {"": q.selector("llamacpp.model.info")},
            "What each model's GGUF says: architecture, quantisation, attention, layers and heads.",
            "kv_heads times layers is what the KV cache costs a token: `llamatel inspect MODEL` has the details.",
            names=_NAMES,
            hidden=_PLACE,
            empty="No model file that llamatel can read",
            size=(24, 6),
        ),
        rows(
            "Sizes",
            {
                "parameters": q.total(q.selector("llamacpp.model.parameters"), by),
                "active parameters": q.total(q.selector("llamacpp.model.active_parameters"), by),
                "bytes": q.total(q.selector("llamacpp.model.size"), by),
                "context length": q.total(q.selector("llamacpp.model.context_length"), by),
            },
            "Weights of each model, those that one token uses (of experts a few), their bytes, and the context it was "
            "made for.",
            "bytes over the device's bandwidth is the least time a token can take.",
            units={"bytes": "bytes"},
            names=_NAMES,
            hidden=_PLACE,
            empty="No model file that llamatel can read",
            size=(24, 6),
        ),
    ]


def _settings() -> list[Panel]:
    return [
        rows(
            "Settings",
            {"": q.selector("llamacpp.server.info")},
            "llama.cpp's build, what runs it, and the settings that explain how it behaves, as they were given.",
            "A setting that is not here was left at llama.cpp's default.",
            names=_NAMES,
            hidden=_PLACE,
            empty="No server",
            size=(24, 6),
        ),
    ]


def _life() -> list[Panel]:
    return [
        figure(
            "Up since, youngest",
            f"min(time() - {q.selector('llamacpp.server.start_time')})",
            "Age of the server process that started last.",
            "Small, and nobody restarted it: it crashed. Its log says why.",
            unit="s",
            empty="Unknown",
            size=(6, 4),
        ),
        figure(
            "Restarts",
            q.increase("llamacpp.server.restarts"),
            "Times llamatel restarted a server after a failure, in the time shown.",
            "Each has a reason at the end of the log of that life.",
            thresholds=at((None, GREEN), (1, YELLOW), (3, RED)),
            empty="None",
            size=(6, 4),
        ),
        figure(
            "Slowest load",
            f"max({q.selector('llamacpp.server.loading.duration')})",
            "Time from a process's start until its model was ready; of the slowest server.",
            "Long: is the file on a slow disk, or fetched from the network? --no-mmap can help on network disks.",
            unit="s",
            empty="Unknown",
            size=(6, 4),
        ),
        figure(
            "Decoding now",
            q.total(q.selector("llamacpp.decode.rate")),
            "Tokens a second that all slots together generate, between the last two collections.",
            "`llamatel plan` says the most that the device's memory bandwidth allows.",
            unit=TOKENS_A_SECOND,
            empty="Unknown",
            size=(6, 4),
        ),
        states(
            "States",
            Query(q.selector("llamacpp.server.state"), f"{q.SERVER_LEGEND} {{{{state}}}}"),
            "The state of each server over time: starting, ready, sleeping, stopping, stopped, failed.",
            "failed: its log. sleeping: the first request wakes it, and waits for it.",
        ),
        lines(
            "CPU of llama.cpp",
            [Query(q.rate("process.cpu.time", q.BY_SERVER), q.SERVER_LEGEND)],
            "Cores that each server's process uses.",
            "With all layers on a GPU one core is normal; many say that layers run on the CPU.",
            empty="Unknown",
            size=(12, 8),
        ),
        lines(
            "Memory of llama.cpp",
            [Query(q.total(q.selector("process.memory.usage"), q.BY_SERVER), q.SERVER_LEGEND)],
            "Resident memory of each server's process; a mapped model counts as it is touched.",
            "Growth without end: --cache-ram bounds the prompts that it keeps.",
            unit="bytes",
            empty="Unknown",
            size=(12, 8),
        ),
        lines(
            "Restarts and loads",
            [
                Query(q.total(q.selector("llamacpp.server.restarts"), q.BY_SERVER), f"{q.SERVER_LEGEND} restarts"),
                Query(
                    q.total(q.selector("llamacpp.server.loading.duration"), q.BY_SERVER), f"{q.SERVER_LEGEND} load (s)"
                ),
            ],
            "Restarts since llamatel began to watch, and how long the last load took.",
            "A staircase of restarts is a crash loop.",
            empty="Unknown",
            size=(24, 7),
        ),
    ]


def _llamatel() -> list[Panel]:
    return [
        lines(
            "Log lines",
            [Query(q.rate("llamatel.log.lines", "kind"), "{{kind}}")],
            "Lines of llama.cpp's log that llamatel read, a second. `malformed` ones looked familiar and could not be "
            "read.",
            "malformed above 0: lines are cut or mixed on their way; send the log through a file of its own.",
            stacked=True,
            empty="No log",
        ),
        lines(
            "Telemetry lost",
            [
                Query(q.increase("llamatel.records.dropped", "reason", q.RATE), "{{reason}}"),
                Query(q.selector("llamatel.spans.shed_ratio"), "spans shed"),
            ],
            "Records that llamatel lost, by reason, and the share of spans that it sheds under overload.",
            "queue_full and export_failed: the OTLP endpoint. observer_full: more requests than llamatel can write.",
            empty="None",
        ),
        lines(
            "Collectors",
            [Query(q.total(q.selector("llamatel.collector.duration"), "collector"), "{{collector}}")],
            "Time that each collector took for the last snapshot.",
            "A slow one delays a scrape, never a request.",
            unit="s",
            empty="No llamatel",
        ),
        lines(
            "Working as it should",
            [
                Query(f"min by (collector) ({q.selector('llamatel.collector.success')})", "{{collector}}"),
                Query(f"min({q.selector('llamatel.log.understood')})", "log understood"),
            ],
            "1 for each collector that works, and while the log shows what llama.cpp counts.",
            "0: llamatel's own log says why.",
            at_most=1,
            empty="No llamatel",
            size=(12, 7),
        ),
        lines(
            "Requests not seen to end",
            [Query(q.increase("llamatel.requests.lost", q.BY_SERVER, q.RATE), q.SERVER_LEGEND)],
            "Requests whose end was not in the log.",
            "Does the log arrive whole, and in order?",
            empty="None",
            size=(12, 7),
        ),
        lines(
            "Rejected requests",
            [Query(q.increase("llamacpp.requests.rejected", "reason", q.RATE), "{{reason}}")],
            "Requests that llama.cpp rejected before they took a slot, by reason, as far as its log shows them.",
            "Not failures of the server: clients send what it does not accept, or a wrong key.",
            empty="None",
            size=(12, 7),
        ),
        lines(
            "Contradictions in the log",
            [Query(q.increase("llamatel.log.contradictions", "kind", q.RATE), "{{kind}}")],
            "What the log reports against llama.cpp's own figures, by kind.",
            "Above 0: a client may have written into the log, see docs/security.md.",
            empty="None",
            size=(12, 7),
        ),
    ]


def dashboard() -> Dashboard:
    """What runs, with which settings."""
    return board(
        "model-server",
        "llamatel / Model and server",
        "Models and their shape, servers and their settings, starts, restarts, memory; llamatel's own health.",
        [("Model", _model()), ("Settings", _settings()), ("Life", _life()), ("llamatel itself", _llamatel())],
    )
