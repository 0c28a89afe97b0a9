"""``llamatel attach``: telemetry for running servers, by polling them, and from the log of one.

Exits with 0 after Ctrl-C or SIGTERM, when the output is closed, and when a log without a server to poll ends (standard
input); with 1 if the key of the one server that was named is wrong, and when the log ends with --exit-with-log.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import signal
import time
from collections.abc import Iterator, Mapping
from typing import Any

import click

from llamatel.cli.console import note_console
from llamatel.cli.options import (
    add_times,
    label_option,
    requests_option,
    stalled_after_option,
    telemetry_options,
    verbose_option,
)
from llamatel.cli.server_options import AccessOptions, access_options
from llamatel.cli.service_manager import reload
from llamatel.cli.signals import Interrupted, ending_signals
from llamatel.cli.telemetry_options import (
    RequestLines,
    TelemetryOptions,
    columns,
    options_of,
    otlp_line,
    page_line,
    request_lines,
    telemetry,
)
from llamatel.cli.terminal_alarms import alarms_shown
from llamatel.errors import LogSourceError, UsageError
from llamatel.inputs.http import HttpClient
from llamatel.llama.log.log_file import open_log
from llamatel.llama.log.log_source import LogSource
from llamatel.llama.watch.fleet import Access, Fleet, logged_server
from llamatel.llama.watch.llama_swap import LlamaSwap
from llamatel.llama.watch.log_follower import LogFollower
from llamatel.llama.watch.ollama import DEFAULT_URL, Ollama
from llamatel.llama.watch.ollama_log_location import find_log
from llamatel.llama.watch.process_log import router_log
from llamatel.llama.watch.targets import TargetFiles, parse_label, target
from llamatel.telemetry.observer import Observer
from llamatel.ui.request_statistics import RequestStatistics
from llamatel.ui.view import summary_sentence

log = logging.getLogger(__name__)

_LOOK_S = 0.2


@dataclasses.dataclass(frozen=True, slots=True)
class AttachOptions:
    """The targets, and how to attach."""

    urls: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    log: str | None = None
    no_log: bool = False
    from_start: bool = False
    log_state: str | None = None
    llama_swap: str | None = None
    ollama: str | None = None
    client_addresses: bool = False
    exit_with_log: bool = False
    labels: tuple[str, ...] = ()
    interval: float = 1.0
    stalled_after: float = 60.0


@click.command("attach")
@click.argument("urls", metavar="[URL]...", nargs=-1)
@click.option("--targets", metavar="FILE", multiple=True, help="Addresses in a file; reread when changed.")
@click.option("--log", metavar="FILE|-", help="The server's log; -: standard input.")
@click.option("--no-log", is_flag=True, help="Do not look for the log of a router, or Ollama, on this machine.")
@click.option("--from-start", is_flag=True, help="Also read the log's existing content.")
@click.option(
    "--log-state",
    metavar="FILE",
    help="Keep the read position in this file.",
)
@click.option("--llama-swap", metavar="URL", help="A llama-swap: models and requests.")
@click.option(
    "--ollama",
    metavar="[URL]",
    is_flag=False,
    flag_value=DEFAULT_URL,
    help=f"An Ollama.  [default: {DEFAULT_URL}]",
)
@click.option("--client-addresses", is_flag=True, help="Record the addresses of Ollama's clients.")
@click.option("--exit-with-log", is_flag=True, help="Exit with 1 when the log ends.")
@label_option
@click.option(
    "--interval",
    type=click.FloatRange(min=0.05),
    metavar="SECONDS",
    default=1.0,
    show_default=True,
    help="Time between polls.",
)
@stalled_after_option
@access_options
@telemetry_options
@requests_option
@verbose_option
def command(**values: Any) -> int:
    """Observe llama.cpp servers and routers that are already running.

    Each URL (http://127.0.0.1:8080) is polled for state, slots and, if it was started with --metrics, counters; no poll
    wakes a server. --targets reads addresses, one a line, or Prometheus's file discovery (.json, .yml). With --log each
    request of that server becomes a trace; it may be a pipe: kubectl logs -f POD | llamatel attach --log -
    """
    add_times()
    options = options_of(TelemetryOptions, values)
    what = options_of(AttachOptions, values)
    access = options_of(AccessOptions, values).access()
    source, no_log = _source(what, access)
    if source is None and what.llama_swap is None and what.ollama is None and (options.requests or options.jsonl):
        raise UsageError("--requests and --jsonl show requests, which only a log has: add --log FILE")
    labels = dict(map(parse_label, what.labels))
    targets = TargetFiles(what.targets, [target(url) for url in what.urls], labels=labels)
    engine = _engine(what, source, access, labels)
    lines = None if source is None and not isinstance(engine, LlamaSwap) else request_lines(options)
    statistics = RequestStatistics()
    notes = note_console()
    polled = functools.partial(Fleet, targets, access, interval_s=what.interval, stalled_after_s=what.stalled_after)
    follower: LogFollower | Ollama | None = None
    log_end: LogSourceError | None = None
    try:
        with ending_signals(hangup=reload), telemetry(options, [lines, statistics]) as running:
            if source is None or isinstance(engine, Ollama):
                watch, unwatch = running.observer.watch, running.observer.unwatch
                fleet = polled(added=watch, removed=unwatch)
                follower = engine if source is not None and isinstance(engine, Ollama) else None
            else:
                fleet = polled(has_log=True)
                server = next(iter(fleet.servers), None) or logged_server(labels)
                follower = LogFollower(source, server, added=running.observer.watch)
                running.observer.watch(server)
            if len(fleet.servers) == 1 and not what.targets:
                fleet.servers[0].check()
            notes.print(f"llamatel: {_doing(source, fleet, what)}; Ctrl-C ends it", soft_wrap=True)
            about = {
                "server": _servers(fleet, what),
                "metrics": running.pipeline.metrics_url or "off",
                "page": page_line(running),
                "OTLP": otlp_line(running.settings),
                **_log_line(source, what, no_log),
            }
            for row in columns(about):
                notes.print(row, soft_wrap=True)
            with alarms_shown(running, notes), _started(engine, running.observer):
                if _watch(fleet, follower, lines, exit_with_log=what.exit_with_log) and what.exit_with_log:
                    log_end = LogSourceError("the log has ended")
            if source is not None and source.blocking:
                running.observer.drain()  # everything that was read, of any size
    except Interrupted as interruption:
        if interruption.signum not in (signal.SIGINT, signal.SIGTERM):
            raise
    if source is not None or engine is not None:
        if source is not None and follower is not None and (why := follower.explanation) is not None:
            notes.print(f"llamatel: no request was found in {source.name}: {why}", soft_wrap=True)
        notes.print(f"llamatel: {summary_sentence(statistics.summary())}", soft_wrap=True)
    if log_end is not None:
        raise log_end
    return 0


def _source(what: AttachOptions, access: Access) -> tuple[LogSource | None, str]:
    """The log, which of a local Ollama or router is found, and how to pass it if it is not."""
    if what.log is None:
        if not any((what.urls, what.targets, what.llama_swap, what.ollama)):
            raise UsageError("name servers (http://127.0.0.1:8080, or --targets FILE), the log of one (--log), or both")
        if what.from_start:
            raise UsageError("--from-start needs a log: add --log FILE")
        if what.exit_with_log:
            raise UsageError("--exit-with-log needs a log: add --log FILE")
        if what.log_state is not None:
            raise UsageError("--log-state needs a log: add --log FILE")
        path, command = (None, "") if what.no_log else _found_log(what, access)
        return None if path is None else open_log(path), command if path is None else ""
    if what.no_log:
        raise UsageError("--log and --no-log: give one of them")
    if what.targets or len(what.urls) > (what.ollama is None) or what.llama_swap is not None:
        raise UsageError("a log belongs to one server: use --log with one URL or none")
    return open_log(what.log, from_start=what.from_start, state=what.log_state), ""


def _found_log(what: AttachOptions, access: Access) -> tuple[str | None, str]:
    """The file of the log of the one server, if it can be found and is needed; and else the command to pass it."""
    if what.ollama is not None:
        return find_log(target(what.ollama).location)
    if len(what.urls) != 1 or what.targets or what.llama_swap is not None:
        return None, ""
    where = target(what.urls[0])
    if not where.location.is_local:
        return None, ""
    client = access.client(where)
    try:
        path, command = router_log(client)
    finally:
        client.close()
    return path, f"{command} | llamatel attach {where.url} --log -" if command else ""


def _log_line(source: LogSource | None, what: AttachOptions, no_log: str) -> dict[str, str]:
    """The line about a log that was looked for; none for one that was given."""
    if source is not None and what.log is None:
        return {"log": f"{source.name}, as its process shows; --no-log: only poll"}
    return {"log": f"none, so requests are not seen. With it: {no_log}"} if no_log else {}


def _doing(source: LogSource | None, fleet: Fleet, what: AttachOptions) -> str:
    if source is not None:
        return f"reading {source.name}"
    number = len(fleet.servers) + (what.llama_swap is not None) + (what.ollama is not None)
    return f"polling {number} server{'' if number == 1 else 's'}"


@contextlib.contextmanager
def _started(engine: LlamaSwap | Ollama | None, observer: Observer) -> Iterator[None]:
    """Observe a program that runs llama-servers, if one was given, during the block."""
    if engine is None:
        yield
        return
    observer.watch(engine)
    engine.start()
    try:
        yield
    finally:
        engine.stop()


def _engine(
    what: AttachOptions, source: LogSource | None, access: Access, labels: Mapping[str, str]
) -> LlamaSwap | Ollama | None:
    """The given program. Raises ServerUnreachable if it does not respond and there is nothing else to observe."""
    if what.client_addresses and what.ollama is None:
        raise UsageError("--client-addresses needs Ollama: add --ollama")
    if what.llama_swap is not None and what.ollama is not None:
        raise UsageError("--llama-swap and --ollama: give one of them")
    url = what.llama_swap or what.ollama
    if url is None:
        return None
    where = target(url, labels=labels)
    http = HttpClient(where.url, api_key=access.api_key, headers=access.headers, tls=access.tls)
    if what.llama_swap is not None:
        swap = LlamaSwap(http, where.server)
        swap.check()
        return swap
    ollama = Ollama(
        http, where.server, source, interval_s=what.interval, client_addresses=what.client_addresses
    )  # fmt: skip
    if source is None:
        ollama.check()
    return ollama


def _servers(fleet: Fleet, what: AttachOptions) -> str:
    if what.targets:
        return ", ".join((*what.urls, *what.targets, *filter(None, (what.llama_swap, what.ollama))))
    names = [" ".join(filter(None, (server.url, server.info.model))) for server in fleet.servers]
    for url, name in ((what.llama_swap, "llama-swap"), (what.ollama, "Ollama")):
        if url is not None:
            names.append(f"{url} ({name})")
    return ", ".join(names) or "as its log shows; its state and its counters need a URL"


def _watch(
    fleet: Fleet, follower: LogFollower | Ollama | None, lines: RequestLines | None, *, exit_with_log: bool
) -> bool:
    """Wait for a signal, for closed output, or for the log's end with nothing left to poll; True for the last.

    ``exit_with_log``: stop when the log ends, even if there are servers to poll.
    """
    fleet.start()
    try:
        if isinstance(follower, LogFollower):
            follower.start()
        reading = follower
        while not (lines is not None and lines.closed.is_set()):
            if reading is None:
                time.sleep(_LOOK_S)
            elif reading.wait(_LOOK_S):
                polled = fleet.servers or (isinstance(follower, Ollama) and follower.polled)
                if exit_with_log or not polled:
                    return True
                log.warning("the log has ended; polling continues, without requests")
                reading = None
        return False
    finally:
        if isinstance(follower, LogFollower):
            follower.stop()
        fleet.stop()
