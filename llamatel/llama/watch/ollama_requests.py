"""Holds requests of an Ollama until their server and their access line are known."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from llamatel.llama.http.server_client import ServerClient, shown_tasks
from llamatel.llama.log.log_process import TASKS_APART, UNKNOWN
from llamatel.llama.log.ollama_separation import OllamaSeparation
from llamatel.llama.watch.access_join import LATE_S, DatedAccess, join
from llamatel.llama.watch.ollama_log_reader import Ended
from llamatel.records import Completion, ServerInfo

_HOLD_S = LATE_S + 0.6
"""A request waits this long for its access line."""
_RESOLVE_S = 5.0
"""The slots are queried for this long for a request whose server is unknown."""
_QUERY_S = 0.3
_MOST_HELD = 4096

Shown = Mapping[int, "tuple[Mapping[int, int] | None, Collection[tuple[int, int]]]"]
"""By server: the task that each slot shows (None if it does not answer), and those that it showed when it was found."""


class RunningModel(Protocol):
    """A model whose server may have run a request."""

    info: ServerInfo
    client: ServerClient | None
    ran_before: frozenset[tuple[int, int]]
    """Slots and tasks of its server when it was found."""


@dataclass
class _Held:
    """A request that waits for its server, or for its access line."""

    ended: Ended
    at: float
    """When it was read (monotonic)."""
    model: RunningModel | None
    given_up: bool = False
    """Whether its server will stay unknown."""
    shown_by: int | None = None
    """The server whose slot showed its task."""

    @property
    def key(self) -> tuple[int | None, int | None]:
        """Its slot and its task."""
        return self.ended.completion.slot, self.ended.completion.task

    @property
    def is_open(self) -> bool:
        """Whether its server may still be found."""
        return self.model is None and self.ended.live and bool(self.ended.candidates) and not self.given_up

    def is_due(self, now: float) -> bool:
        """Whether it need not wait any longer."""
        return now - self.at > _HOLD_S + min(self.ended.error_s, 1.0) and not self.is_open


class OllamaRequests:
    """Thread-safe by its owner's lock: ``add`` is called with it, ``release`` without it by one thread."""

    def __init__(
        self,
        server: ServerInfo,
        model: Callable[[int], RunningModel | None],
        separation: OllamaSeparation,
        lock: threading.RLock,
        *,
        client_addresses: bool,
    ) -> None:
        """``server`` is Ollama's own identity, ``model`` finds the one that a server runs now."""
        self._server = server
        self._model = model
        self._separation = separation
        self._lock = lock
        self._client_addresses = client_addresses
        self._held: list[_Held] = []
        self._claims: dict[tuple[int, int | None, int | None], _Held] = {}
        """Requests by server, slot and task: no server runs a task twice."""
        self._accesses: list[tuple[float, DatedAccess]] = []
        self._seen: list[tuple[float, Ended]] = []
        """Recent requests, which an access line may also match."""
        self._query_at = 0.0

    @property
    def crowded(self) -> bool:
        """Whether so many wait that a source that can wait should."""
        return len(self._held) > _MOST_HELD // 2

    def add(self, ended: Sequence[Ended], accesses: Sequence[DatedAccess]) -> None:
        """Keep requests and access lines that were read."""
        now = time.monotonic()
        for one in ended:
            held = _Held(one, now, self._model(one.server))
            self._held.append(held)
            if held.model is not None:
                self._claim(held, one.server)
        self._accesses += [(now, line) for line in accesses]

    def release(self, *, all_of_them: bool) -> list[Completion]:
        """The requests whose server and access line are known, or will stay unknown."""
        now = time.monotonic()
        self._resolve(at_once=all_of_them)
        with self._lock:
            over = all_of_them or len(self._held) > _MOST_HELD
            ready = [held for held in self._held if over or held.is_due(now)]
            accesses = {}
            if ready:
                due = {id(held) for held in ready}
                everything = [*(seen for _, seen in self._seen), *(held.ended for held in self._held)]
                lines = [line for _, line in self._accesses]
                found = join(everything, lines, with_client=self._client_addresses)
                first = len(self._seen)
                accesses = {id(held): found.get(first + index) for index, held in enumerate(self._held)}
                self._held = [held for held in self._held if id(held) not in due]
                for held in ready:
                    if held.shown_by is not None:
                        self._separation.saw_task(held.shown_by, held.ended.completion.task or 0)
                self._seen += [(now, held.ended) for held in ready]
            old = now - 4 * _HOLD_S
            self._seen = [(at, seen) for at, seen in self._seen if at > old][-_MOST_HELD:]
            self._accesses = [(at, line) for at, line in self._accesses if at > old][-_MOST_HELD:]
        released = []
        for held in ready:
            info = self._server if held.model is None else held.model.info
            server = replace(held.ended.completion.server, model=info.model, address=info.address, port=info.port)
            released.append(replace(held.ended.completion, server=server, access=accesses[id(held)]))
        return released

    def _claim(self, held: _Held, number: int) -> bool:
        """Record that a server ran a request's task; False if it ran another request under that number."""
        key = (number, *held.key)
        other = self._claims.get(key)
        if other is not None and held.ended.server != number:
            held.given_up = True
            return False
        if other is not None and other.shown_by is not None:
            # Its slot showed the task of the request that was read only now.
            other.model, other.shown_by, other.given_up = None, None, True
            self._exclude_others(other, number, again=True)
        self._claims[key] = held
        self._exclude_others(held, number)
        if len(self._claims) > _MOST_HELD:
            del self._claims[next(iter(self._claims))]
        return True

    def _exclude_others(self, held: _Held, number: int, *, again: bool = False) -> None:
        """Record that of all servers that may have run a request, this one did (``again``: not known after all)."""
        slot, task = held.key
        others = [each for each in held.ended.candidates if each != number]
        if slot is not None and task is not None:
            self._separation.owners.exclude(others, slot, task, again=again)

    def _resolve(self, *, at_once: bool) -> None:
        """Find the servers of requests that may be of several: whose slot shows the task."""
        now = time.monotonic()
        if now < self._query_at and not at_once:
            return
        with self._lock:
            open_ = [held for held in self._held if held.is_open]
            keys = [held.key for held in open_]
            wanted = {number for held in open_ for number in held.ended.candidates}
            polled = [
                (number, model.client, model.ran_before) for number in wanted
                if (model := self._model(number)) is not None and model.client is not None
            ]  # fmt: skip
        if not open_:
            return
        self._query_at = now + _QUERY_S
        shown = {number: (shown_tasks(client), ran_before) for number, client, ran_before in polled}
        with self._lock:
            for held, key in zip(open_, keys, strict=True):
                held.given_up = now - held.at > _RESOLVE_S
                number = self._owner(held.ended.candidates, key, shown) if keys.count(key) == 1 else None
                if number is not None and self._claim(held, number):
                    held.model, held.shown_by = self._model(number), number

    def _owner(self, candidates: Sequence[int], key: tuple[int | None, int | None], shown: Shown) -> int | None:
        """Which server ran a task in a slot, by the tasks that the servers' slots show now; None if not certain.

        A slot keeps the number of its last task. The task that it shows is the one that was logged, unless it was there
        before, or was another request's whose server is not known; one that shows an older task did not run it.
        """
        slot, task = key
        if slot is None or task is None:
            return None
        is_only = self._separation.owners.is_only
        possible = []
        for number in candidates:
            tasks, before = shown.get(number, (None, ()))
            last = None if tasks is None else tasks.get(slot, -1)
            if last == task and key not in before:
                proven = _shows(candidates, slot, task, shown) == 1 and is_only(number, slot, task)
                return number if proven else None
            if last is None or last == task or last > task - (0 if tasks and len(tasks) == 1 else TASKS_APART):
                possible.append(number)
        return possible[0] if len(possible) == 1 and possible[0] != UNKNOWN else None


def _shows(candidates: Sequence[int], slot: int, task: int, shown: Shown) -> int:
    """How many servers show this task in this slot."""
    return sum((shown.get(number, (None, ()))[0] or {}).get(slot) == task for number in candidates)
