"""Many attached servers: polled on time by a few threads, with those that discovery finds added and removed.

One thread keeps the timetable and reads the discovery files again; the polls themselves, which wait for answers, are
made by as many threads as have something to wait for, up to a bound.
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
from llamatel.inputs.credentials import read_api_key
from llamatel.llama.http.server_client import ServerClient
from llamatel.llama.watch.server_poller import ServerPoller
from llamatel.llama.watch.targets import Target, TargetFiles

_log = logging.getLogger(__name__)

_THREADS = 32
_LOOK_S = 1.0
"""How often the discovery files are looked at."""
_STAGGER_S = 0.002


@dataclass(frozen=True, slots=True)
class Access:
    """How servers are talked to."""

    api_key: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    tls: ssl.SSLContext | None = None

    def client(self, target: Target, *, timeout_s: float = 2.0) -> ServerClient:
        """A client of a target, with its own key if it has one. Raises UsageError for a key that cannot be read."""
        key = self.api_key if target.api_key_file is None else read_api_key(target.api_key_file)
        return ServerClient(target.url, api_key=key, headers=self.headers, tls=self.tls, timeout_s=timeout_s)


class Fleet:
    """Polls servers; ``added`` and ``removed`` are told of each that comes and goes."""

    def __init__(
        self,
        targets: TargetFiles,
        access: Access,
        *,
        interval_s: float = 1.0,
        added: Callable[[ServerPoller], None] = lambda _: None,
        removed: Callable[[ServerPoller], None] = lambda _: None,
    ) -> None:
        """``added`` is called at once for those that are known. Raises UsageError if a target's key cannot be read."""
        self._targets = targets
        self._access = access
        self._interval_s = interval_s
        self._added, self._removed = added, removed
        self._pollers: dict[Target, ServerPoller] = {}
        self._changed = threading.Condition()
        self._timetable: list[tuple[float, int, ServerPoller]] = []
        self._order = 0
        """Tells entries of the same time apart."""
        self._due: queue.SimpleQueue[ServerPoller | None] = queue.SimpleQueue()
        self._waiting = 0
        """Threads that have nothing to do."""
        self._threads: list[threading.Thread] = []
        self._stopped = False
        self._failures = 0
        self._clock = threading.Thread(target=self._run, name="llamatel-fleet", daemon=True)
        self._take_targets(strict=True)

    @property
    def pollers(self) -> tuple[ServerPoller, ...]:
        """Those that are polled now."""
        with self._changed:
            return tuple(self._pollers.values())

    def start(self) -> Fleet:
        """Begin to poll."""
        self._clock.start()
        return self

    def stop(self) -> None:
        """End; polls that wait for an answer are not waited for."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            pollers = list(self._pollers.values())
        for _ in self._threads:
            self._due.put(None)
        for poller in pollers:
            poller.close()

    # -- the timetable's thread -------------------------------------------------------------------------------------

    def _run(self) -> None:
        look_at = time.monotonic() + _LOOK_S
        while True:
            with self._changed:
                if self._stopped:
                    return
                now = time.monotonic()
                next_at = self._timetable[0][0] if self._timetable else now + _LOOK_S
                if self._targets.watched:
                    next_at = min(next_at, look_at)
                if next_at > now:
                    self._changed.wait(next_at - now)
                now = time.monotonic()
                while self._timetable and self._timetable[0][0] <= now:
                    self._hand_out(heapq.heappop(self._timetable)[2])
            if self._targets.watched and now >= look_at:
                look_at = now + _LOOK_S
                if self._targets.changed():
                    self._take_targets(strict=False)

    def _hand_out(self, poller: ServerPoller) -> None:
        """Give a poll to a thread; our lock is held."""
        self._due.put(poller)
        if self._waiting < self._due.qsize() and len(self._threads) < _THREADS:
            thread = threading.Thread(target=self._work, name=f"llamatel-poll-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _take_targets(self, *, strict: bool) -> None:
        wanted = self._targets.targets()
        with self._changed:
            gone = [self._pollers.pop(target) for target in self._pollers.keys() - set(wanted)]
            new = [target for target in wanted if target not in self._pollers]
        for poller in gone:
            self._removed(poller)
            poller.close()
        now = time.monotonic()
        # Spread over one interval, so that they never all ask at once.
        pause = min(_STAGGER_S, self._interval_s / max(1, len(new)))
        for number, target in enumerate(new):
            try:
                poller = ServerPoller(target, self._access.client(target), interval_s=self._interval_s)
            except LlamatelError as error:
                if strict:
                    raise
                _log.warning("%s is left out: %s", target.url, error)
                continue
            self._added(poller)
            with self._changed:
                self._pollers[target] = poller
                self._plan(now + number * pause, poller)

    def _plan(self, at: float, poller: ServerPoller) -> None:
        """Poll it then; our lock is held."""
        self._order += 1
        heapq.heappush(self._timetable, (at, self._order, poller))
        if self._timetable[0][2] is poller:
            self._changed.notify_all()

    # -- the polls' threads -----------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._changed:
                self._waiting += 1
            poller = self._due.get()
            with self._changed:
                self._waiting -= 1
                if poller is None or self._stopped:
                    return
                if self._pollers.get(poller.target) is not poller:
                    continue
            begun = time.monotonic()
            try:
                poller.poll()
            except Exception:  # noqa: BLE001 - the boundary to what servers answer: one must not end the others' polls
                if not self._failures:
                    _log.exception("a poll of %s failed; further failures are only counted", poller.target.url)
                self._failures += 1
            with self._changed:
                # After a late one the next comes when it would have come, not at once.
                self._plan(max(begun + poller.due_in_s, time.monotonic()), poller)
