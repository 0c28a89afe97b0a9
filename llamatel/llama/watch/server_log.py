"""Reads the log of one server: returns finished requests, and keeps the server's state."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from llamatel.flags.server_settings import ServerSettings
from llamatel.llama.log.log_clock import LogClock
from llamatel.llama.log.log_line import LogLine
from llamatel.llama.log.logged_server import LoggedServer
from llamatel.llama.log.reader import LogReader
from llamatel.llama.log.router_log import RouterLog
from llamatel.llama.log.server_output import LineKind, OutputLines
from llamatel.llama.log.slot_requests import ForeignLine
from llamatel.outputs.log_once import LogOnce
from llamatel.records import Completion, ServerInfo
from llamatel.snapshots import LogCounts, SlotState

_log = logging.getLogger(__name__)
T = TypeVar("T")

_LINES_PER_LOCK = 256


@dataclass(frozen=True, slots=True)
class Activity:
    """State of the slots, from the log."""

    lines: int
    """Lines about slots so far."""
    sleeping: bool = False


@dataclass(frozen=True, slots=True)
class LogState:
    """The state so far, from the log."""

    server: LoggedServer
    counts: LogCounts
    context_shifts: int
    process_started_at: float | None
    is_router: bool


class ServerLog:
    """Reads the log of one server, including restarts of its process. Thread-safe."""

    def __init__(self, server: ServerInfo, clock: LogClock | None = None, *, supervised: bool = False) -> None:
        """``supervised``: the owner calls ``restart`` when the server's process is replaced."""
        self._reader = LogReader(server, clock, supervised=supervised)
        self._lock = threading.Lock()
        self.bytes_lost: Callable[[], int] = int
        """Bytes of the log that could not be read."""

    @property
    def logged(self) -> LoggedServer:
        """What the log shows about the server itself."""
        return self._reader.logged_server

    @property
    def busy(self) -> int:
        """Requests in flight."""
        with self._lock:
            return self._reader.busy

    @property
    def is_router(self) -> bool:
        """Whether it is the log of a router."""
        return self._reader.router.seen

    @property
    def process_started_at(self) -> float | None:
        """When the process started to log (Unix time)."""
        return self._reader.process_started_at

    def identify(self, server: ServerInfo) -> None:
        """Set the server of the next requests."""
        with self._lock:
            self._reader.server = server

    def feed(self, lines: Sequence[str], now: float) -> list[Completion]:
        """Read lines that were written at about Unix time ``now``; returns the requests that they finish."""
        return self.feed_output((OutputLines(LineKind.TEXT, lines),), now)

    def feed_output(self, output: Sequence[OutputLines], now: float) -> list[Completion]:
        """``feed`` for lines of a launched server."""
        finished: list[Completion] = []
        for kind, lines in output:
            for start in range(0, len(lines), _LINES_PER_LOCK):  # so that other threads do not wait long for the lock
                with self._lock:
                    finished += self._reader.feed_output(OutputLines(kind, lines[start : start + _LINES_PER_LOCK]), now)
        return finished

    def identify_unlocked(self, server: ServerInfo) -> None:
        """``identify`` for ``learned``, which is called within ``read_all``."""
        self._reader.server = server

    def read_all(
        self, lines: Sequence[tuple[str, LogLine]], now: float, *, learned: Callable[[], None]
    ) -> tuple[list[Completion], int]:
        """Read parsed lines until one of another server; returns requests, and the number of lines read."""
        completed: list[Completion] = []
        with self._lock:
            reader = self._reader
            feed, logged, number = reader.feed, reader.logged_server, 0
            try:
                for line, parts in lines:
                    if finished := feed(line, now, parts):
                        completed += finished
                    number += 1
                    if reader.logged_server is not logged:
                        logged = reader.logged_server
                        learned()
            except ForeignLine:
                pass
        return completed, number

    def watch_for_others(self, *, on: bool = True) -> None:
        """``read_all`` ends at lines that show another server."""
        with self._lock:
            self._reader.watch_for_others(on=on)

    def running(self) -> tuple[dict[int, int], int]:
        """The tasks in flight by slot, and the newest task."""
        with self._lock:
            return self._reader.running, self._reader.newest_task

    def describe_cache(self, *, rewindable: bool | None, settings: ServerSettings | None) -> None:
        """See ``LogReader.describe_cache``."""
        with self._lock:
            self._reader.describe_cache(rewindable=rewindable, settings=settings)

    def skip(self) -> None:
        """Count a line whose server is unknown."""
        with self._lock:
            self._reader.skip()

    def lose(self, slot: int) -> None:
        """Stop following the request in this slot; a negative slot: a request that was not read at all."""
        with self._lock:
            self._reader.lose(slot)

    def restart(self, server: ServerInfo, *, batch: int | None = None) -> None:
        """Prepare for a new process; ``batch`` is its --batch-size."""
        with self._lock:
            self._reader.restart(batch=batch)
            self._reader.server = server

    def abort(self, now: float, error: str) -> list[Completion]:
        """The process has exited: fail its requests in flight at Unix time ``now`` with this error."""
        with self._lock:
            return self._reader.abort(now, error)

    @property
    def holds(self) -> bool:
        """Whether ``settle`` is to be called."""
        return self._reader.holds

    def settle(self, *, at_once: bool = False) -> list[Completion]:
        """Requests that were held for lines that did not follow for a moment, or ``at_once``; call it now and then."""
        if not self._reader.holds:
            return []
        with self._lock:
            return self._reader.settle(at_once=at_once)

    def forget(self) -> list[Completion]:
        """No more lines follow: requests that were held. The outcome of those in flight is unknown."""
        with self._lock:
            return self._reader.forget()

    def polled(self, model: str | None = None) -> None:
        """Record a poll of the server, or of one of its models, that uses a task number (/metrics, /slots)."""
        with self._lock:
            reader = self._reader if model is None else self._reader.router.reader_of(model)
            if reader is not None:
                reader.polled()

    def audit(self, generated_total: float | None, slots: Sequence[SlotState] | None) -> None:
        """Compare the log with llama.cpp's own figures, just polled; None: unknown."""
        with self._lock:
            self._reader.audit(generated_total, slots)

    def activity(self) -> Activity:
        """The state of the slots."""
        with self._lock:
            return Activity(self._reader.activity, self._reader.logged_server.sleeping)

    def state(self, generated_total: float | None) -> LogState:
        """The state so far; ``generated_total`` is llama.cpp's own token counter, if available."""
        with self._lock:
            reader = self._reader
            return LogState(
                reader.logged_server,
                replace(reader.counts(generated_total), bytes_lost=self.bytes_lost()),
                reader.context_shifts,
                reader.process_started_at,
                reader.router.seen,
            )

    def with_router(self, read: Callable[[RouterLog[LogReader]], T]) -> T:
        """Apply ``read`` to the logs of a router's models."""
        with self._lock:
            return read(self._reader.router)


def warn_unless_understood(log: LogState, info: ServerInfo, once: LogOnce) -> None:
    """Warn once about a log that is silent while tokens are generated, or that shows no requests."""
    if log.counts.silent_s:
        once.warning(
            "silent",
            "%s generates tokens, but its log has been silent for %.0f s: requests are missing from traces and "
            "histograms",
            info.shown_address,
            log.counts.silent_s,
        )
    elif once.reset("silent"):
        _log.warning("the log of %s goes on", info.shown_address)
    elif log.counts.understood is False:
        once.warning(
            "log",
            "this server generates tokens, but its log shows no requests that llamatel understands: there are no "
            "traces and no latency histograms for it. Is its log switched off, or its verbosity lowered? Else "
            "this llama.cpp build (%s) words its log in a new way",
            info.build or "unknown",
        )
