"""The recorded logs, read by the log reader."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from llamatel.llama.log.line_buffer import LineBuffer
from llamatel.llama.log.log_clock import LogClock
from llamatel.llama.log.log_line import split_line
from llamatel.llama.log.log_source import Backlog, Batch
from llamatel.llama.log.reader import LogReader
from llamatel.llama.watch.log_streams import LogStreams
from llamatel.llama.watch.observed_server import ObservedServer
from llamatel.llama.watch.server_log import ServerLog
from llamatel.records import Completion, ServerInfo
from llamatel.snapshots import LogCounts

LOGS = Path(__file__).parent / "logs"
ZERO = 1_790_000_000.0
SERVER = ServerInfo("127.0.0.1", 8090, model="tiny")


class Reading(NamedTuple):
    completions: list[Completion]
    counts: LogCounts
    reader: LogReader


@cache
def log_lines(name: str) -> tuple[str, ...]:
    buffer = LineBuffer()
    return tuple(buffer.feed((LOGS / f"{name}.log").read_bytes()) + buffer.flush())


def timed(lines: Iterable[str]) -> list[tuple[str, float]]:
    """Return each line with the Unix time at which a reader without delay reads it."""
    at, out = 0.0, []
    for line in lines:
        stamp = split_line(line).time
        at = at + 1e-4 if stamp is None else stamp
        out.append((line, ZERO + at))
    return out


def read(lines: Iterable[tuple[str, float]]) -> Reading:
    reader = LogReader(SERVER, LogClock())
    completions: list[Completion] = []
    now = ZERO
    for line, now in lines:
        completions.extend(reader.feed(line, now))
    completions.extend(reader.abort(now, "the server is gone"))
    return Reading(completions, reader.counts(), reader)


def read_streams(batches: Iterable[Batch | Backlog], info: ServerInfo | None = None) -> list[Completion]:
    """Return the requests of an attached log, of all its servers, in the order of completion."""
    completions: list[Completion] = []

    def watch(server: ObservedServer) -> None:
        server.subscribe(lambda finished: completions.append(finished) if isinstance(finished, Completion) else None)

    info = info or ServerInfo("unknown")
    first = ObservedServer(info, log=ServerLog(info))
    watch(first)
    streams = LogStreams(first, added=watch)
    for batch in batches:
        if isinstance(batch, Backlog):
            streams.read_backlog(batch)
        else:
            streams.read(batch)
    streams.forget()
    return completions


def read_attached(lines: Iterable[tuple[str, float]]) -> list[Completion]:
    """Like ``read_streams``, for lines that are read as they are written."""
    return read_streams(Batch(line.split("\n"), now) for line, now in lines)


@cache
def reading(name: str) -> Reading:
    return read(timed(log_lines(name)))
