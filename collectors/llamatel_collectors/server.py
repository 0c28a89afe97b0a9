"""The state of each server and of its process, its build and settings, and our reading of its log."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from llamatel.collectors import Collector, Sample
from llamatel.flags.parse import given_flags
from llamatel.metrics import DROP_REASONS, SETTINGS
from llamatel.records import ServerInfo
from llamatel.snapshots import LogCounts, ServerSnapshot, Snapshot

_RUNNING = frozenset({"ready", "loaded", "sleeping", "stalled"})
"""States of a server, or of a router's model, that is loaded."""


class ServerCollector(Collector):
    """State, process, build and settings of servers; what their logs lost; llamatel's own process."""

    name = "server"

    def on_snapshot(self, snapshot: Snapshot) -> Iterator[Sample]:
        """Samples of each watched server."""
        for state in snapshot.servers:
            for metric, value in (
                ("llamacpp.server.up", None if state.up is None else int(state.up)),
                ("llamacpp.server.stale", int(state.stale) if state.up else None),
                ("llamacpp.server.stalled", int(state.state == "stalled") if state.state in _RUNNING else None),
                ("llamacpp.server.restarts", state.restarts),
                ("llamacpp.server.start_time", state.process_started_at),
                ("llamacpp.server.loading.duration", state.loading_s),
                ("process.memory.usage", None if state.process is None else state.process.memory_bytes),
            ):
                if value is not None:
                    yield Sample(metric, value, state.server)
            if state.process is not None:
                for mode, cpu_s in (("user", state.process.cpu_user_s), ("system", state.process.cpu_system_s)):
                    if cpu_s is not None:
                        yield Sample("process.cpu.time", cpu_s, state.server, {"cpu.mode": mode})
            if state.state is not None and state.router_model is None:
                yield Sample("llamacpp.server.state", 1, state.server, {"state": state.state})
            info = _info(state)
            if info:
                yield Sample("llamacpp.server.info", 1, state.server, info)
            if state.log is not None:
                yield from _log(state.log, state.server)
        for reason, count in {**dict.fromkeys(DROP_REASONS, 0), **snapshot.records_dropped}.items():
            yield Sample("llamatel.records.dropped", count, attributes={"reason": reason})
        yield from _own()


def _own() -> Iterator[Sample]:
    """Llamatel's own process."""
    yield Sample("llamatel.build.info", 1, attributes=_build())
    times = os.times()
    yield Sample("llamatel.process.cpu.time", times.user + times.system)
    with contextlib.suppress(OSError, ValueError, IndexError):  # another system than Linux
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        yield Sample("llamatel.process.memory.usage", pages * os.sysconf("SC_PAGE_SIZE"))


@functools.cache
def _build() -> dict[str, str]:
    try:
        version = metadata.version("llamatel")
    except metadata.PackageNotFoundError:  # a source tree that is not installed
        version = "unknown"
    return {"version": version, "python_version": platform.python_version()}


def _info(state: ServerSnapshot) -> dict[str, str | int]:
    given = {} if state.settings is None else given_flags(state.settings)
    settings = {name.replace("-", "_"): value for name, value in given.items()}
    info = {"build": state.server.build, "backend": state.server.backend}
    info |= {name: settings[name] for name in SETTINGS if name in settings}
    return {name: value for name, value in info.items() if value is not None}


def _log(log: LogCounts, server: ServerInfo) -> Iterator[Sample]:
    for kind, count in log.lines.items():
        yield Sample("llamatel.log.lines", count, server, {"kind": kind})
    for kind, count in log.contradictions.items():
        yield Sample("llamatel.log.contradictions", count, server, {"kind": kind})
    yield Sample("llamatel.log.names.limited", log.names_limited, server)
    yield Sample("llamatel.requests.lost", log.requests_lost, server)
    yield Sample("llamatel.log.lost", log.bytes_lost, server)
    if log.silent_s is not None:
        yield Sample("llamatel.log.silent.duration", log.silent_s, server)
    if log.understood is not None:
        yield Sample("llamatel.log.understood", int(log.understood), server)
