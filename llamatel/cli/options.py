"""Options that commands share. Options for llama-server's flags have the same names."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, TypeVar

import click

from llamatel.errors import shown_line

_C = TypeVar("_C", bound=Callable[..., Any])

_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)
_LOGGERS = ("llamatel", "llamatel_collectors", "opentelemetry")


def time_prefix(at: float) -> str:
    """The time prefix of a log line; empty under systemd, whose journal adds it."""
    if "JOURNAL_STREAM" in os.environ:
        return ""
    return datetime.fromtimestamp(at).astimezone().isoformat(timespec="seconds") + " "


class _OneLine(logging.Formatter):
    timed = False

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the base class's name
        text = shown_line(super().formatMessage(record))
        return (time_prefix(record.created) if self.timed else "") + text

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the base class's name
        return "\n".join(shown_line(line) for line in super().formatException(ei).splitlines())


def set_verbosity(number: int) -> None:
    """0: warnings; 1: decisions and their reasons; 2: debug. One line each on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("llamatel: %(levelname)s: %(message)s"))
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(_LEVELS[min(number, 2)])


def add_times() -> None:
    """Prefix log lines with the time from now on, for commands that run until they are stopped."""
    for handler in logging.getLogger(_LOGGERS[0]).handlers:
        if isinstance(handler.formatter, _OneLine):
            handler.formatter.timed = True


class _Kept(logging.Handler):
    """Keeps the last warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: deque[logging.LogRecord] = deque(maxlen=8)

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextlib.contextmanager
def warnings_kept() -> Iterator[deque[logging.LogRecord]]:
    """Keep warnings for display instead of logging them to stderr, while the whole terminal is drawn."""
    kept = _Kept()
    before = {name: logging.getLogger(name).handlers for name in _LOGGERS}
    for name in _LOGGERS:
        logging.getLogger(name).handlers = [kept]
    try:
        yield kept.records
    finally:
        for name, handlers in before.items():
            logging.getLogger(name).handlers = handlers


def verbosity() -> int:
    """Number of -v flags, at most 2."""
    return sum(logging.getLogger(_LOGGERS[0]).isEnabledFor(level) for level in _LEVELS[1:])


def _raise_verbosity(_ctx: click.Context, _parameter: click.Parameter, number: int) -> None:
    if number > verbosity():
        set_verbosity(number)


def verbose_option(command: _C) -> _C:
    """``-v``, before or after the command."""
    return click.option(
        "-v",
        "--verbose",
        count=True,
        expose_value=False,
        callback=_raise_verbosity,
        help="Log decisions; -vv: everything.",
    )(command)


def _all(command: _C, options: tuple[Callable[[_C], _C], ...]) -> _C:
    for option in reversed(options):
        command = option(command)
    return command


_MODEL_FLAGS: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (
        ("-c", "--ctx-size"),
        {"type": click.IntRange(min=0), "metavar": "N", "help": "Context in tokens; 0: the model's."},
    ),
    (
        ("-np", "--parallel", "n_parallel"),
        {"type": int, "metavar": "N", "help": "Slots.  [default: 4 that share a pool]"},
    ),
    (("-ngl", "--gpu-layers"), {"metavar": "N|auto|all", "help": "Layers on the GPU.  [default: what fits]"}),
    (("-ctk", "--cache-type-k"), {"metavar": "TYPE", "help": "KV cache type of K: f16, q8_0, ..."}),
    (("-ctv", "--cache-type-v"), {"metavar": "TYPE", "help": "KV cache type of V."}),
)
_MORE_MODEL_FLAGS: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (("-b", "--batch-size"), {"type": click.IntRange(min=1), "metavar": "N", "help": "Logical batch in tokens."}),
    (("-ub", "--ubatch-size"), {"type": click.IntRange(min=1), "metavar": "N", "help": "Physical batch in tokens."}),
    (("-fa", "--flash-attn"), {"metavar": "on|off|auto", "help": "Flash attention."}),
    (("-kvu/-no-kvu", "--kv-unified/--no-kv-unified"), {"default": None, "help": "One KV pool for all slots."}),
    (("--swa-full",), {"is_flag": True, "default": None, "help": "Full-size cache for sliding-window layers."}),
    (("-ts", "--tensor-split"), {"metavar": "N0,N1,...", "help": "Share of the model on each GPU."}),
    (("-sm", "--split-mode"), {"metavar": "MODE", "help": "How to split over GPUs: none, layer, row."}),
    (("-mg", "--main-gpu"), {"type": click.IntRange(min=0), "metavar": "N", "help": "GPU for --split-mode none."}),
)


def model_options(*, brief: bool = False) -> Callable[[_C], _C]:
    """llama-server's flags that determine memory; ``brief`` hides the less common ones in the help."""

    def decorate(command: _C) -> _C:
        options = [click.option(*names, **settings) for names, settings in _MODEL_FLAGS]
        options += [click.option(*names, hidden=brief, **settings) for names, settings in _MORE_MODEL_FLAGS]
        return _all(command, tuple(options))

    return decorate


stalled_after_option = click.option(
    "--stalled-after",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    default=60.0,
    show_default=True,
    help="Time without progress until a server is stalled.",
)


label_option = click.option(
    "--label", "labels", metavar="NAME=VALUE", multiple=True, help="Label for all series and spans; repeatable."
)


def server_options(command: _C) -> _C:
    """Arguments of ``ServerManager.start_server``, with the same names."""
    return _all(
        command,
        (
            model_options(brief=True),
            click.option("-a", "--alias", metavar="NAME", help="The model's name for clients and metrics."),
            click.option("--host", default="127.0.0.1", show_default=True, help="Address of the server."),
            click.option(
                "--port",
                type=click.IntRange(0, 65535),
                metavar="N",
                default=8090,
                show_default=True,
                help="Port of the server; 0: any.",
            ),
            click.option("--api-key-file", metavar="FILE", help="API keys that clients must send."),
            click.option("--backend", metavar="NAME|PATH", help="llama-server, xllamacpp or a path."),
            click.option(
                "--restart",
                type=click.Choice(["never", "on-failure", "on-stall"]),
                default="never",
                show_default=True,
                metavar="WHEN",
                help="Restart it: never, on-failure or on-stall (also if it hangs).",
            ),
            stalled_after_option,
            click.option(
                "--max-restarts",
                type=click.IntRange(min=0),
                metavar="N",
                default=5,
                show_default=True,
                help="Maximum number of restarts.",
            ),
            click.option("--server-log", metavar="FILE|-", help="Write llama.cpp's log here; -: stderr."),
            click.option(
                "--ready-timeout",
                type=click.FloatRange(min=0, min_open=True),
                metavar="SECONDS",
                default=600.0,
                show_default=True,
                help="Limit for loading the model.",
            ),
        ),
    )


def telemetry_options(command: _C) -> _C:
    """Options of telemetry. Defaults come from the OTEL_* environment variables."""
    return _all(
        command,
        (
            click.option(
                "--metrics-addr",
                metavar="HOST:PORT|none",
                help="Serve /metrics.  [default: 127.0.0.1:9464]",
            ),
            click.option(
                "--page-token-file",
                metavar="FILE",
                help="Serve the web page beyond loopback, with this token as password.",
            ),
            click.option("--otlp-endpoint", metavar="URL", help="Send traces and metrics to this URL."),
            click.option(
                "--otlp-protocol",
                type=click.Choice(["grpc", "http/protobuf"]),
                metavar="NAME",
                help="grpc or http/protobuf.  [default: by URL]",
            ),
            click.option("--otlp-spool", metavar="DIR", help="Keep spans here until they are accepted."),
            click.option("--service-name", metavar="NAME", help="OpenTelemetry's service.name."),
            click.option(
                "--collector",
                "collectors",
                metavar="NAME",
                multiple=True,
                help="Enable only this collector; repeatable.",
            ),
            click.option(
                "--no-collector",
                "no_collectors",
                metavar="NAME",
                multiple=True,
                help="Disable this collector; repeatable.",
            ),
            click.option("--jsonl", metavar="FILE|-", help="Write a JSON line per request; -: stdout."),
        ),
    )


def requests_option(command: _C) -> _C:
    """One line per request, for commands that run until they are stopped."""
    return click.option(
        "--requests/--no-requests",
        default=None,
        help="Print a line per request.  [default: on a terminal]",
    )(command)
