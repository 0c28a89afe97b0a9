"""What a router's log says of its models: when they were loaded, given up for others, or died.

The router's own lines are those of tools/server/server-models.cpp; its children's come behind ``[port] `` and are read
by a LogReader each, whose requests carry the model's name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from llamatel.llama.log.logged_server import LoggedServer
from llamatel.records import ServerInfo
from llamatel.snapshots import RouterModel

_ROUTER = "starting server in router mode"
_KNOWN = re.compile(r"\[ *(?:models_dir|cache|preset)\] (.+?)(?: \(aliases: [^)]*\))?(?: \[tags: [^\]]*\])?$")
_SPAWNING = re.compile(r"spawning server instance with name=(.{1,512}) on port (\d{1,5})\b")
_EVICTING = re.compile(r"(?:evicting idle LRU|limit reached, removing LRU) name=(.+?)(?: for a queued request)?$")
_STOPPING = re.compile(
    r"(?:stopping model instance|unloading model|force-killing model instance) name=(.+?)(?: \(source| after timeout|$)"
)
_EXITED = re.compile(r"instance name=(.+) exited with status (-?\d{1,10})\b")
_MAX_MODELS = 512


@dataclass(slots=True)
class ModelLife:
    """One model over the lives of its process."""

    state: str | None = None
    """unloaded, loading, loaded, sleeping, failed; None while the log has not said."""
    port: int | None = None
    loads: int = 0
    evictions: int = 0
    failures: int = 0
    loading_s: float | None = None
    """From the start of its process until it was ready, by that process's own clock."""
    stopping: bool = False
    processes: int = 0
    """A new one may be spawned before the old one's exit is logged."""

    @property
    def told(self) -> RouterModel:
        """As a record."""
        return RouterModel(loads=self.loads, evictions=self.evictions, failures=self.failures)


class ChildReader(Protocol):
    """The log reader of one of the router's children."""

    server: ServerInfo
    logged_server: LoggedServer


R = TypeVar("R", bound=ChildReader)


class RouterLog(Generic[R]):
    """Follows a router's log. Not thread-safe: who feeds the log reader feeds it."""

    def __init__(self, make_reader: Callable[[], R]) -> None:
        self._make_reader = make_reader
        self._readers: dict[int, tuple[R, ServerInfo]] = {}
        """By port, and the router that they were told to belong to."""
        self._names: dict[int, str] = {}
        self.models: dict[str, ModelLife] = {}
        self.seen = False
        """Whether this is a router's log at all."""
        self._ended: list[R] = []

    def __iter__(self) -> Iterator[R]:
        """The readers of its children."""
        return iter([reader for reader, _ in self._readers.values()])

    def reader_of(self, name: str) -> R | None:
        """The reader of a model's process; None while it has none, or none of its lines was read."""
        life = self.models.get(name)
        entry = None if life is None or life.port is None else self._readers.get(life.port)
        return None if entry is None else entry[0]

    def child(self, port: int, router: ServerInfo) -> R:
        """The reader for lines of the child on ``port``."""
        entry = self._readers.get(port)
        if entry is None or entry[1] is not router:
            reader = self._make_reader() if entry is None else entry[0]
            name = self._names.get(port)
            reader.server = replace(router, model=name) if name else router
            if entry is None and len(self._readers) >= _MAX_MODELS:  # none has so many: ports out of anybody's text
                del self._readers[next(iter(self._readers))]
            self._readers[port] = entry = (reader, router)
            self.seen = True
        return entry[0]

    def heard(self, port: int, reader: R, time: float | None) -> None:
        """A line of the child on ``port`` was read, written ``time`` seconds after its process began."""
        life = self.models.get(self._names.get(port, ""))
        if life is None or reader.logged_server.host is None:
            return
        if life.state == "loading":
            life.loads += 1
            life.loading_s = time
        life.state = "sleeping" if reader.logged_server.sleeping else "loaded"

    def read(self, text: str) -> bool:
        """Act on one of the router's own lines; False if it is about something else."""
        if _ROUTER in text:
            self.seen = True
            return True
        if "name=" in text:
            return self._read_named(text)
        found = _KNOWN.search(text) if "] " in text else None
        if found is not None:
            life = self._life(found.group(1))
            life.state = life.state or "unloaded"
        return found is not None

    def take_ended(self) -> list[R]:
        """The readers of processes that ended since this was asked last: their requests in flight ended with them."""
        ended, self._ended = self._ended, []
        return ended

    def restart(self) -> None:
        """The router's process was replaced, and with it its children; what was counted goes on."""
        self._readers.clear()
        self._names.clear()
        for life in self.models.values():
            life.state = life.port = life.loading_s = None
            life.stopping, life.processes = False, 0

    def _read_named(self, text: str) -> bool:
        if found := _SPAWNING.search(text):
            name, port = found.group(1), int(found.group(2))
            life = self._life(name)
            if life.port is not None and (entry := self._readers.pop(life.port, None)) is not None:
                self._ended.append(entry[0])
            life.state, life.port, life.loading_s, life.stopping = "loading", port, None, False
            life.processes += 1
            self._readers.pop(port, None)
            self._names[port] = name
            self.seen = True
        elif found := _EVICTING.search(text):
            life = self._life(found.group(1))
            life.evictions += 1
            life.stopping = True
        elif found := _STOPPING.search(text):
            self._life(found.group(1)).stopping = True
        elif found := _EXITED.search(text):
            self._exited(self._life(found.group(1)), int(found.group(2)))
        return found is not None

    def _exited(self, life: ModelLife, status: int) -> None:
        failed = status != 0 and not life.stopping
        life.failures += failed
        life.processes = max(0, life.processes - 1)
        if not life.processes:
            life.state = "failed" if failed else "unloaded"
            entry = None if life.port is None else self._readers.pop(life.port, None)
            if entry is not None:
                self._ended.append(entry[0])
            life.port, life.stopping = None, False

    def _life(self, name: str) -> ModelLife:
        if name not in self.models and len(self.models) >= _MAX_MODELS:
            return ModelLife()
        return self.models.setdefault(name, ModelLife())
