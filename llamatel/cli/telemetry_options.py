"""Telemetry of serve, attach and demo, for the command's duration."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from rich.console import Console
from rich.text import Text

from llamatel import runtime
from llamatel.cli.console import output_console
from llamatel.errors import UsageError
from llamatel.inputs.rotated_files import RotatedFiles
from llamatel.inputs.text_file import read_token
from llamatel.llama.server.backends import Backend, build_of
from llamatel.records import Completion
from llamatel.runtime import Runtime
from llamatel.telemetry.jsonl import JsonLines, Sink
from llamatel.telemetry.resource import installed_version
from llamatel.telemetry.settings import PAGE_TOKEN_VARIABLE, Settings, is_loopback
from llamatel.ui.view import glyphs_for, request_header, request_line, reuse_line
from llamatel.ui.view.text_page import printable

log = logging.getLogger(__name__)

T = TypeVar("T")

_LONGEST_VALUE = 2000
_STALLED_S = 1.0
_DRAIN_S = 30.0
"""How long the exit waits for requests that were read: without progress, and in total."""


@dataclasses.dataclass(frozen=True, slots=True)
class TelemetryOptions:
    """The values of ``options.telemetry_options`` and ``options.requests_option``, by the flags' names."""

    metrics_addr: str | None = None
    page_token_file: str | None = None
    otlp_endpoint: str | None = None
    otlp_protocol: str | None = None
    otlp_spool: str | None = None
    service_name: str | None = None
    collectors: tuple[str, ...] = ()
    no_collectors: tuple[str, ...] = ()
    jsonl: str | None = None
    requests: bool | None = None


def options_of(kind: type[T], values: dict[str, object]) -> T:
    """A dataclass of those ``values`` that are its fields; they are removed from ``values``."""
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: values.pop(name) for name in names if name in values})


class RequestLines:
    """Prints one line per request. A sink.

    When the reader of the output disconnects, ``closed`` is set and nothing is written any more.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._glyphs = glyphs_for(console.encoding)
        self._lock = threading.Lock()
        self._started = False
        self.closed = threading.Event()

    def __call__(self, completion: Completion, _trace_id: str | None = None) -> None:
        """Print one line, after a heading the first time."""
        with self._lock:
            if self.closed.is_set():
                return
            try:
                if not self._started:
                    self._started = True
                    self._console.print(request_header(self._glyphs), soft_wrap=True)
                width, cut = self._console.width, self._console.is_terminal
                self._console.print(request_line(completion, width, self._glyphs, cut=cut), soft_wrap=True)
                if (below := reuse_line(completion, width, self._glyphs, cut=cut)) is not None:
                    self._console.print(below, soft_wrap=True)
            except OSError:  # a pipe without a reader, a terminal that was closed
                self.closed.set()
                log.info("the reader of the output disconnected: no more request lines")


def request_lines(options: TelemetryOptions) -> RequestLines | None:
    """Request lines if they were requested, or standard output is a terminal."""
    if options.requests and options.jsonl == "-":
        raise UsageError("--requests and --jsonl - both write to standard output: give --jsonl a file")
    wanted = options.requests if options.requests is not None else sys.stdout.isatty() and options.jsonl != "-"
    return RequestLines(output_console()) if wanted else None


@contextlib.contextmanager
def telemetry(
    options: TelemetryOptions,
    sinks: Sequence[Sink | None] = (),
    *,
    backend: Backend | None = None,
    metrics_port_may_move: bool = False,
) -> Iterator[Runtime]:
    """Run telemetry during the block; it is flushed and shut down afterwards in any case.

    Every server that is started in the block is watched. Flags override the OTEL_* environment. A metrics port that is
    in use is an error, as Prometheus would not find another one, unless the port was not named and
    ``metrics_port_may_move``. ``backend`` becomes resource attributes.
    """
    about: dict[str, str | None] = (
        {} if backend is None else {"llamacpp.backend": backend.name, "llamacpp.build": build_of(backend)}
    )
    if options.service_name is None and "service.version" not in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        about["service.version"] = installed_version()
    resource = {name: value for name, value in about.items() if value is not None}
    with contextlib.ExitStack() as stack:
        chosen = [sink for sink in sinks if sink is not None]
        if options.jsonl is not None:
            lines = JsonLines.open(options.jsonl)
            stack.callback(lines.close)
            chosen.append(lines)
        arguments: dict[str, Any] = {
            "service_name": options.service_name,
            "otlp_endpoint": options.otlp_endpoint,
            "otlp_protocol": options.otlp_protocol,
            "otlp_spool": options.otlp_spool,
            "metrics_addr": options.metrics_addr,
            "page_token": read_page_token(options.page_token_file),
            "collectors": options.collectors,
            "without": options.no_collectors,
        }
        named = options.metrics_addr is not None or any(map(os.environ.get, runtime.METRICS_ADDRESS_VARIABLES))
        running = (
            runtime.init(sinks=chosen, resource=resource, **arguments)
            if metrics_port_may_move and not named
            else runtime.init(Settings.from_env(**arguments), sinks=chosen, resource=resource)
        )
        stack.callback(runtime.shutdown)
        stack.callback(running.observer.drain, _STALLED_S, _DRAIN_S)  # what was read is counted, also after a backlog
        yield running


def read_page_token(path: str | None) -> RotatedFiles[str] | None:
    """The web page's token; None without a file."""
    return None if path is None else RotatedFiles([path], partial(read_token, path, "the page's token file"))


def page_token(path: str | None, *, named: bool) -> str | RotatedFiles[str] | None:
    """The token for requesting a page: from the file, else from the environment.

    ``named``: whether the user gave the address; the environment's token is sent to no other.
    """
    return read_page_token(path) or (os.environ.get(PAGE_TOKEN_VARIABLE) if named else None)


def page_line(running: Runtime) -> str | None:
    """The URL of the web page; None where it is not shown."""
    url, address = running.pipeline.metrics_url, running.settings.metrics_addr
    if url is None or address is None or not (running.settings.page_token or is_loopback(address[0])):
        return None
    return url.removesuffix("metrics")


def otlp_line(settings: Settings) -> str:
    """The OTLP endpoint, or how to configure one."""
    targets = {target.shown: None for target in (settings.traces_otlp, settings.metrics_otlp) if target is not None}
    return ", ".join(targets) or "off; --otlp-endpoint URL sends traces and metrics"


def columns(lines: Mapping[str, str | None]) -> list[Text]:
    """Names and values in two columns; None is left out. Values may be untrusted, such as a model's name."""
    return [
        Text().append(f"  {name:12}", "dim").append(printable(value, _LONGEST_VALUE))
        for name, value in lines.items()
        if value is not None
    ]
