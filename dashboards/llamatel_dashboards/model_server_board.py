"""Model and server: models, settings, uptime; and llamatel itself."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from llamatel_dashboards import queries as q
from llamatel_dashboards.board import board
from llamatel_dashboards.panels import (
    GREEN,
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
    states,
)

_NAMES = {q.ADDRESS: "server", q.PORT: "port", q.MODEL: "model"}
_HIDDEN = ("job", "cluster")
_OWN = "{{namespace}} {{pod}} {{instance}}"
_FIRST = ("namespace", "pod", "instance", "server", "port", "model")


def _model() -> list[Panel]:
    by = q.BY_SERVER
    return [
        rows(
            "Models",
            {"": q.selector("llamacpp.model.info")},
            "Architecture, quantisation, attention, layers and heads, from each model's GGUF.",
            "The KV cache grows with kv_heads times layers: `llamatel inspect MODEL` has the details.",
            names=_NAMES,
            hidden=_HIDDEN,
            first=_FIRST,
            size=(24, 6),
        ),
        rows(
            "Sizes",
            {
                "parameters": q.total(q.selector("llamacpp.model.parameters"), by),
                "active parameters": q.total(q.selector("llamacpp.model.active_parameters"), by),
                "bytes": Column(q.total(q.selector("llamacpp.model.size"), by), "bytes"),
                "context length": q.total(q.selector("llamacpp.model.context_length"), by),
            },
            "Weights of each model, those that one token uses (few of the experts), their bytes, and the trained "
            "context.",
            "bytes over the device's bandwidth is the lower limit of the time per token.",
            names=_NAMES,
            hidden=_HIDDEN,
            first=_FIRST,
            size=(24, 6),
        ),
    ]


def _settings() -> list[Panel]:
    return [
        rows(
            "Settings",
            {"": q.selector("llamacpp.server.info")},
            "llama.cpp's build, its backend, and the settings that explain its behaviour, as they were given.",
            "A setting that is missing has llama.cpp's default.",
            names=_NAMES,
            hidden=_HIDDEN,
            first=_FIRST,
            size=(24, 6),
        ),
    ]


def _life() -> list[Panel]:
    return [
        figure(
            "Up since, youngest",
            f"min(time() - {q.selector('llamacpp.server.start_time')})",
            "Age of the youngest server process.",
            "Small without a planned restart: it crashed. Its log has the reason.",
            unit="s",
            empty="Unknown",
            size=(6, 4),
        ),
        figure(
            "Restarts",
            q.increase("llamacpp.server.restarts"),
            "Times llamatel restarted a server after a failure, in the time shown.",
            "The end of the log before each restart has the reason.",
            decimals=0,
            thresholds=at((None, GREEN), (1, YELLOW), (3, RED)),
            empty="None",
            size=(6, 4),
        ),
        figure(
            "Slowest load",
            f"max({q.selector('llamacpp.server.loading.duration')})",
            "Time from the process's start until its model was ready, on the slowest server.",
            "Long: is the file on a slow disk or a network mount? --no-mmap can help there.",
            unit="s",
            empty="Unknown",
            size=(6, 4),
        ),
        figure(
            "Decoding now",
            q.total(q.selector("llamacpp.decode.rate")),
            "Tokens a second that all slots together generate, between the last two collections.",
            "`llamatel plan` prints the most that the device's memory bandwidth allows.",
            unit=TOKENS_A_SECOND,
            empty="Unknown",
            size=(6, 4),
        ),
        states(
            "States",
            Query(q.selector("llamacpp.server.state"), f"{q.SERVER_LEGEND} {{{{state}}}}"),
            "The state of each server over time: starting, ready, stalled, sleeping, stopping, stopped, failed.",
            "failed: see its log. sleeping: the first request wakes it, and waits.",
        ),
        lines(
            "CPU of llama.cpp",
            [Query(q.rate("process.cpu.time", q.BY_SERVER), q.SERVER_LEGEND)],
            "Cores that each server's process uses.",
            "With all layers on a GPU one core is normal; with many, layers run on the CPU.",
            unit="suffix: cores",
            empty="Unknown",
            size=(12, 8),
        ),
        lines(
            "Memory of llama.cpp",
            [Query(q.total(q.selector("process.memory.usage"), q.BY_SERVER), q.SERVER_LEGEND)],
            "Resident memory of each server's process; a mapped model counts as its pages are read.",
            "Unbounded growth: --cache-ram limits the prompts that it keeps.",
            unit="bytes",
            empty="Unknown",
            size=(12, 8),
        ),
        lines(
            "Restarts",
            [Query(q.increase("llamacpp.server.restarts", q.BY_SERVER, q.RATE), q.SERVER_LEGEND)],
            "Restarts of each server's process.",
            "Several in a row: the end of the log before each one has the reason.",
            empty="Unknown",
            size=(12, 7),
        ),
        lines(
            "Time of the last load",
            [Query(q.total(q.selector("llamacpp.server.loading.duration"), q.BY_SERVER), q.SERVER_LEGEND)],
            "Time from the process's start until the model was ready.",
            "Longer than before: a slower disk, or a model that was not in the page cache.",
            unit="s",
            empty="Unknown",
            size=(12, 7),
        ),
    ]


def _llamatel() -> list[Panel]:
    return [
        lines(
            "Log lines",
            [Query(q.rate("llamatel.log.lines", "kind"), "{{kind}}")],
            "Lines of llama.cpp's log that llamatel read, a second. `malformed` ones have a known beginning and cannot "
            "be parsed.",
            "malformed above 0: lines are cut or interleaved on their way; use a log file for each server.",
            unit="suffix: lines/s",
            stacked=True,
            empty="No log",
        ),
        lines(
            "Log silent for",
            [Query(q.selector("llamatel.log.silent.duration"), q.SERVER_LEGEND)],
            "Time without a log line while llama.cpp counted tokens.",
            "Above a minute: the log was rotated away, or what passes it on has stopped.",
            unit="s",
            empty="No log",
        ),
        lines(
            "Log lost",
            [Query(q.increase("llamatel.log.lost", q.BY_SERVER, q.RATE), q.SERVER_LEGEND)],
            "Bytes of the log that were removed before llamatel could read them.",
            "Rotate by renaming instead of truncating, or rotate later.",
            unit="bytes",
            empty="No log",
        ),
        lines(
            "Telemetry lost",
            [
                Query(q.increase("llamatel.records.dropped", "reason", q.RATE), "{{reason}}"),
                Query(q.selector("llamatel.spans.shed_ratio"), "spans shed"),
                Query(q.increase("llamatel.label_values.limited", "attribute", q.RATE), "other {{attribute}}"),
            ],
            "Records that llamatel lost, by reason, the share of spans that it sheds under overload, and label "
            "values that it replaced by `other`.",
            "queue_full and export_failed: the OTLP endpoint. observer_full, shed: too many requests a second.",
            empty="None",
            size=(12, 8),
        ),
        lines(
            "Collectors",
            [Query(q.total(q.selector("llamatel.collector.duration"), "collector"), "{{collector}}")],
            "Time that each collector needed for the last snapshot.",
            "A slow one delays a scrape, never a request.",
            unit="s",
            empty="No llamatel",
            size=(12, 8),
        ),
        lines(
            "CPU of llamatel",
            [Query(q.rate("llamatel.process.cpu.time", "namespace, pod, instance"), _OWN)],
            "Cores that llamatel itself uses.",
            "More than a few percent of a core without many requests a second: report it.",
            unit="percentunit",
            empty="No llamatel",
        ),
        lines(
            "Memory of llamatel",
            [Query(q.total(q.selector("llamatel.process.memory.usage"), "namespace, pod, instance"), _OWN)],
            "Resident memory of llamatel itself.",
            "Growth without end: report it.",
            unit="bytes",
            empty="No llamatel",
        ),
        rows(
            "Versions of llamatel",
            {"": q.selector("llamatel.build.info")},
            "The build of each llamatel.",
            "Different versions in one fleet may measure differently.",
            hidden=_HIDDEN,
            first=("namespace", "pod", "instance", "version", "python_version"),
            size=(8, 8),
        ),
        lines(
            "Spans exported",
            [Query(q.total(f"rate({q.selector('llamatel.spans.exported')}[{q.RATE}])"), "spans")],
            "Spans a second that the OTLP endpoint accepted.",
            "0 with traffic: see Telemetry lost.",
            unit="ops",
            empty="No OTLP endpoint",
            size=(24, 6),
        ),
        lines(
            "Collectors and log",
            [
                Query(f"min by (collector) ({q.selector('llamatel.collector.success')})", "{{collector}}"),
                Query(f"min({q.selector('llamatel.log.understood')})", "log understood"),
            ],
            "1 for each collector that works, and while the log shows the requests that llama.cpp counts.",
            "0: llamatel's own log has the reason.",
            at_most=1,
            empty="No llamatel",
            size=(12, 7),
        ),
        lines(
            "Requests without an end",
            [
                Query(q.increase("llamatel.requests.lost", q.BY_SERVER, q.RATE), q.SERVER_LEGEND),
                Query(
                    q.increase("llamatel.unloads.unread", q.BY_SERVER, q.RATE), f"{q.SERVER_LEGEND}, models unloaded"
                ),
            ],
            "Requests not seen from start to end; models that a router unloaded before their last counts were read.",
            "Does the log arrive whole, and in order? Does a router that swaps models have one (attach --log)?",
            empty="None",
            size=(12, 7),
        ),
        lines(
            "Rejected requests",
            [Query(q.increase("llamacpp.requests.rejected", "reason", q.RATE), "{{reason}}")],
            "Requests that llama.cpp rejected before they got a slot, by reason, as far as its log shows them.",
            "Not failures of the server: clients send what it does not accept, or a wrong key.",
            empty="None",
            size=(12, 7),
        ),
        lines(
            "Contradictions in the log",
            [
                Query(q.increase("llamatel.log.contradictions", "kind", q.RATE), "{{kind}}"),
                Query(q.increase("llamatel.log.names.limited", over=q.RATE), "models counted as other"),
            ],
            "What the log reports against llama.cpp's own figures, by kind, and models beyond the most that are kept.",
            "Above 0: a client may have written into the log, see docs/security.md.",
            empty="None",
            size=(12, 7),
        ),
    ]


def dashboard() -> Dashboard:
    """The Model and server dashboard."""
    return board(
        "model-server",
        "llamatel / Model and server",
        "Models and their shape, servers and their settings, starts, restarts, memory; llamatel's own health.",
        [("Model", _model()), ("Settings", _settings()), ("Life", _life()), ("llamatel itself", _llamatel())],
    )
