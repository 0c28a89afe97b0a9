"""Flags that verbs share. Those that mean a llama-server flag have its name."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click

_C = TypeVar("_C", bound=Callable[..., Any])

_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)
_LOGGERS = ("llamatel", "llamatel_collectors", "opentelemetry")


def one_line(text: str) -> str:
    """Text that a stranger may have had a say in, without what a terminal obeys, or what looks like a line of ours."""
    return "".join(letter if letter.isprintable() else " " if letter in "\r\n\t" else "?" for letter in text)


class _OneLine(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the base class's name
        return one_line(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the base class's name
        return "\n".join(map(one_line, super().formatException(ei).splitlines()))


def set_verbosity(number: int) -> None:
    """0: warnings; 1: what was chosen and why; 2 and more: everything. To stderr, one line each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("llamatel: %(levelname)s: %(message)s"))
    # Of an exporter's trouble we say ourselves when it begins and ends; its own words come at every try.
    handler.addFilter(lambda record: number > 0 or not hasattr(record, "llamatel_told"))
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(_LEVELS[min(number, 2)])


class _Kept(logging.Handler):
    """Keeps the last warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: deque[logging.LogRecord] = deque(maxlen=8)

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextlib.contextmanager
def warnings_kept() -> Iterator[deque[logging.LogRecord]]:
    """For a block that draws on the whole terminal: nothing is logged to it, the last warnings are here to be shown."""
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
    """How often -v was given, 2 at most."""
    return sum(logging.getLogger(_LOGGERS[0]).isEnabledFor(level) for level in _LEVELS[1:])


def _raise_verbosity(_ctx: click.Context, _parameter: click.Parameter, number: int) -> None:
    if number > verbosity():
        set_verbosity(number)


def verbose_option(command: _C) -> _C:
    """``-v``, before the verb or behind it."""
    return click.option(
        "-v",
        "--verbose",
        count=True,
        expose_value=False,
        callback=_raise_verbosity,
        help="Say what was chosen and why; -vv for everything.",
    )(command)


def _all(command: _C, options: tuple[Callable[[_C], _C], ...]) -> _C:
    for option in reversed(options):
        command = option(command)
    return command


def server_options(command: _C) -> _C:
    """How the server runs: arguments of ``ServerManager.start_server``, by the same names."""
    return _all(
        command,
        (
            click.option(
                "-c",
                "--ctx-size",
                type=click.IntRange(min=0),
                metavar="N",
                help="Context in tokens; 0: the model's own.",
            ),
            click.option(
                "-np", "--parallel", "n_parallel", type=int, metavar="N", help="Slots: requests served at once."
            ),
            click.option("-ngl", "--gpu-layers", metavar="N|auto|all", help="Layers kept on the GPU."),
            click.option("-ctk", "--cache-type-k", metavar="TYPE", help="Type of the KV cache's keys: f16, q8_0, ..."),
            click.option("-ctv", "--cache-type-v", metavar="TYPE", help="Type of the KV cache's values."),
            click.option(
                "-b", "--batch-size", type=click.IntRange(min=1), metavar="N", help="Logical batch, in tokens."
            ),
            click.option(
                "-ub", "--ubatch-size", type=click.IntRange(min=1), metavar="N", help="Physical batch, in tokens."
            ),
            click.option("-fa", "--flash-attn", metavar="on|off|auto", help="Flash attention."),
            click.option(
                "-kvu/-no-kvu",
                "--kv-unified/--no-kv-unified",
                default=None,
                help="One KV pool for all slots, or one each.",
            ),
            click.option("--swa-full", is_flag=True, default=None, help="Full-size cache for sliding-window layers."),
            click.option("-ts", "--tensor-split", metavar="N0,N1,...", help="Shares of the model on each GPU."),
            click.option("-sm", "--split-mode", metavar="MODE", help="How to split over GPUs: none, layer, row."),
            click.option(
                "-mg", "--main-gpu", type=click.IntRange(min=0), metavar="N", help="The GPU to use where there is one."
            ),
            click.option("-a", "--alias", metavar="NAME", help="The model's name for clients, traces and metrics."),
            click.option("--host", default="127.0.0.1", show_default=True, help="Where the server listens."),
            click.option(
                "--port",
                type=click.IntRange(0, 65535),
                metavar="N",
                default=8090,
                show_default=True,
                help="0: one that is free.",
            ),
            click.option("--api-key-file", metavar="FILE", help="Keys that clients must show, one a line."),
            click.option(
                "--backend", metavar="NAME|PATH", help="llama-server, xllamacpp, or a path; default: the first found."
            ),
            click.option(
                "--restart",
                type=click.Choice(["never", "on-failure"]),
                default="never",
                show_default=True,
                help="Bring a server back that died.",
            ),
            click.option(
                "--max-restarts",
                type=click.IntRange(min=0),
                metavar="N",
                default=5,
                show_default=True,
                help="And how often.",
            ),
            click.option("--server-log", metavar="FILE|-", help="Where llama.cpp's own log goes; -: stderr."),
            click.option(
                "--ready-timeout",
                type=click.FloatRange(min=0, min_open=True),
                metavar="SECONDS",
                default=600.0,
                show_default=True,
                help="How long loading may take.",
            ),
        ),
    )


def telemetry_options(command: _C) -> _C:
    """Where telemetry goes. What is not given comes from the OTEL_* environment."""
    return _all(
        command,
        (
            click.option(
                "--metrics-addr", metavar="HOST:PORT|none", help="Metrics for Prometheus.  [default: 127.0.0.1:9464]"
            ),
            click.option(
                "--page-token-file",
                metavar="FILE",
                help="Show the web page beside /metrics beyond loopback, too: to who knows the token in FILE.",
            ),
            click.option(
                "--otlp-endpoint", metavar="URL", help="An OpenTelemetry collector, e.g. http://localhost:4317."
            ),
            click.option("--service-name", metavar="NAME", help="service.name of what is sent."),
            click.option("--collector", "collectors", metavar="NAME", multiple=True, help="Only these; repeatable."),
            click.option("--no-collector", "no_collectors", metavar="NAME", multiple=True, help="All but these."),
            click.option("--jsonl", metavar="FILE|-", help="One JSON object a request; -: standard output."),
        ),
    )


def requests_option(command: _C) -> _C:
    """One line a request, for the verbs that run until they are ended."""
    return click.option(
        "--requests/--no-requests",
        default=None,
        help="One line a request on standard output.  [default: where that is a terminal]",
    )(command)
