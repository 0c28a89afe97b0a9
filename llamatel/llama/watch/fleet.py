"""Polls many attached servers on time with a few threads; adds and removes servers that discovery finds.

One thread schedules the polls and reads the discovery files again. The polls, which wait for responses, run on further
threads: as many as needed, up to a limit.
"""

from __future__ import annotations

import heapq
import logging
import queue
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from llamatel.errors import LlamatelError
from llamatel.inputs.credentials import api_key_of
from llamatel.inputs.rotated_files import RotatedFiles
from llamatel.llama.http.server_client import ServerClient
from llamatel.llama.log.log_clock import LogClock
from llamatel.llama.watch.observed_server import ObservedServer
from llamatel.llama.watch.progress import STALLED_AFTER_S
from llamatel.llama.watch.server_log import ServerLog
from llamatel.llama.watch.targets import Target, TargetFiles, check_labels
from llamatel.outputs.log_once import LogOnce
from llamatel.records import ServerInfo

_log = logging.getLogger(__name__)

_THREADS = 32
_CHECK_S = 1.0
"""Interval of checking the discovery files."""
_STAGGER_S = 0.002


@dataclass(frozen=True, slots=True)
class Access:
    """Credentials, headers and TLS settings for servers."""

    api_key: str | RotatedFiles[str] | None = field(default=None, repr=False)
    headers: Mapping[str, str] | RotatedFiles[Mapping[str, str]] = field(default_factory=dict, repr=False)
    tls: ssl.SSLContext | RotatedFiles[ssl.SSLContext] | None = None

    def client(self, target: Target, *, timeout_s: float = 2.0) -> ServerClient:
        """A client of a target, with its own key if it has one. Raises UsageError for a key that cannot be read."""
        key = self.api_key if target.api_key_file is None else api_key_of(target.api_key_file)
        return ServerClient(target.url, api_key=key, headers=self.headers, tls=self.tls, timeout_s=timeout_s)


def logged_server(labels: Mapping[str, str] | None = None) -> ObservedServer:
    """A server that is observed only through its log. Raises UsageError for invalid labels."""
    info = ServerInfo("unknown", labels=check_labels(labels or {}))
    return ObservedServer(info, log=ServerLog(info, LogClock()))


class Fleet:
    """Polls servers; ``added`` and ``removed`` are called with each server that discovery adds or removes."""

    def __init__(
        self,
        targets: TargetFiles,
        access: Access,
        *,
        interval_s: float = 1.0,
        stalled_after_s: float = STALLED_AFTER_S,
        has_log: bool = False,
        added: Callable[[ObservedServer], None] = lambda _: None,
        removed: Callable[[ObservedServer], None] = lambda _: None,
    ) -> None:
        """``added`` is called at once for known servers. Raises UsageError if a target's key cannot be read.

        ``has_log``: the servers have a log, which the caller feeds.
        """
        self._targets = targets
        self._access = access
        self._interval_s = interval_s
        self._stalled_after_s = stalled_after_s
        self._has_log = has_log
        self._added, self._removed = added, removed
        self._servers: dict[Target, ObservedServer] = {}
        self._polled: set[ObservedServer] = set()
        """The same servers, without their targets."""
        self._changed = threading.Condition()
        self._timetable: list[tuple[float, int, ObservedServer]] = []
        self._order = 0
        """Number of the last entry; orders entries of the same time."""
        self._due: queue.SimpleQueue[tuple[float, ObservedServer] | None] = queue.SimpleQueue()
        self._waiting = 0
        """Idle threads."""
        self._threads: list[threading.Thread] = []
        self._stopped = False
        self._once = LogOnce(_log)
        self._clock = threading.Thread(target=self._run, name="llamatel-fleet", daemon=True)
        self._update(strict=True)

    @property
    def servers(self) -> tuple[ObservedServer, ...]:
        """Servers that are currently polled."""
        with self._changed:
            return tuple(self._servers.values())

    def start(self) -> Fleet:
        """Start to poll."""
        self._clock.start()
        return self

    def stop(self) -> None:
        """Stop, without waiting for polls in progress."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            servers = list(self._servers.values())
        for _ in self._threads:
            self._due.put(None)
        for server in servers:
            server.close()

    # -- the scheduler's thread -------------------------------------------------------------------------------------

    def _run(self) -> None:
        check_at = time.monotonic() + _CHECK_S
        while True:
            with self._changed:
                if self._stopped:
                    return
                now = time.monotonic()
                next_at = self._timetable[0][0] if self._timetable else now + _CHECK_S
                if self._targets.watched:
                    next_at = min(next_at, check_at)
                if next_at > now:
                    self._changed.wait(next_at - now)
                now = time.monotonic()
                while self._timetable and self._timetable[0][0] <= now:
                    at, _, server = heapq.heappop(self._timetable)
                    self._hand_out(at, server)
            if self._targets.watched and now >= check_at:
                check_at = now + _CHECK_S
                try:
                    if self._targets.changed():
                        self._update(strict=False)
                except Exception:  # noqa: BLE001 - the boundary to discovery: its failure must not end the polls
                    self._once.error("targets", "the targets could not be read again", exc_info=True)

    def _hand_out(self, at: float, server: ObservedServer) -> None:
        """Assign a poll that is due ``at`` to a thread; called with the lock held."""
        self._due.put((at, server))
        if self._waiting < self._due.qsize() and len(self._threads) < _THREADS:
            thread = threading.Thread(target=self._work, name=f"llamatel-poll-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _update(self, *, strict: bool) -> None:
        """Add and remove servers as the targets have changed."""
        wanted = self._targets.targets()
        with self._changed:
            removed = [self._servers.pop(target) for target in self._servers.keys() - set(wanted)]
            self._polled.difference_update(removed)
            new = [target for target in wanted if target not in self._servers]
        for server in removed:
            self._removed(server)
            server.close()
        now = time.monotonic()
        # Spread over one interval, so that they are never all polled at once.
        pause = min(_STAGGER_S, self._interval_s / max(1, len(new)))
        for number, target in enumerate(new):
            try:
                server = self._observe(target)
            except LlamatelError as error:
                if strict:
                    raise
                _log.warning("%s is left out: %s", target.url, error)
                continue
            self._added(server)
            with self._changed:
                self._servers[target] = server
                self._polled.add(server)
                self._plan(now + number * pause, server)

    def _observe(self, target: Target) -> ObservedServer:
        info = target.server
        return ObservedServer(
            info,
            client=self._access.client(target),
            log=ServerLog(info, LogClock()) if self._has_log else None,
            interval_s=self._interval_s,
            stalled_after_s=self._stalled_after_s,
        )

    def _plan(self, at: float, server: ObservedServer) -> None:
        """Schedule the next poll; called with the lock held."""
        self._order += 1
        heapq.heappush(self._timetable, (at, self._order, server))
        if self._timetable[0][2] is server:
            self._changed.notify_all()

    # -- the polls' threads -----------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._changed:
                self._waiting += 1
            due = self._due.get()
            with self._changed:
                self._waiting -= 1
                if due is None or self._stopped:
                    return
                at, server = due
                if server not in self._polled:
                    continue
            try:
                server.poll()
            except Exception:  # noqa: BLE001 - the boundary to what servers answer: one must not end the others' polls
                self._once.error(
                    "poll", "a poll of %s failed; further failures are not logged", server.url, exc_info=True
                )
            with self._changed:
                # A late poll does not shift the schedule of the next one.
                self._plan(max(at + server.due_in_s, time.monotonic()), server)
