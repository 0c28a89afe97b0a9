"""Reads the state of a router's models from its log: when they were loaded, evicted, or failed.

The router's own lines are those of tools/server/server-models.cpp. Its children's lines follow ``[port] `` and are read
by a LogReader each, whose requests carry the model's name.
"""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from llamatel.llama.log.logged_server import LoggedServer
from llamatel.records import ServerInfo
from llamatel.snapshots import RouterModel

_log = logging.getLogger(__name__)

_ROUTER = "starting server in router mode"
_RERANK = "srv          load:   --rerank"
"""A flag of a model's process; also ``--reranking``."""
_FROM = r"srv +\S{1,12}: "
_NAME = r"([^\n]{1,256}?)"
_KNOWN = re.compile(
    _FROM + r" {2,24}\[ {0,16}(?:models_dir|cache|preset)\] "
    r"([^\n]{1,256}?)(?: \(aliases: [^)\n]{0,256}\))?(?: \[tags: [^\]\n]{0,256}\])?$"
)
_SPAWNING = re.compile(_FROM + rf"spawning server instance with name={_NAME} on port (\d{{1,5}})$")
_EVICTING = re.compile(
    _FROM + rf"(?:evicting idle LRU|models_max limit reached, removing LRU) name={_NAME}(?: for a queued request)?$"
)
_STOPPING = re.compile(
    _FROM + r"(?:stopping model instance|(?:\(reload\) )?unloading model|force-killing model instance) "
    rf"name={_NAME}(?: \(source [^\n]{{0,64}}| after timeout)?$"
)
_EXITED = re.compile(_FROM + rf"instance name={_NAME} exited with status (-?\d{{1,10}})$")
_MAX_MODELS = 512
_MAX_PORTS = 1024
OTHER = "other"
"""Replaces the names of all further models."""


@dataclass(frozen=True, slots=True)
class ExitedProcess:
    """A process of one of the router's models that has exited."""

    model: str
    port: int
    totals: Mapping[str, float]
    """Sums over its requests, by the names of llama.cpp's counters."""
    is_whole: bool = True
    """Whether the log has it from its start."""


@dataclass(slots=True)
class ModelLife:
    """One model, over restarts of its process."""

    state: str | None = None
    """unloaded, loading, loaded, sleeping, failed; None until it was logged."""
    port: int | None = None
    loads: int = 0
    evictions: int = 0
    failures: int = 0
    loading_s: float | None = None
    """From the start of its process until it was ready, by that process's own clock."""
    stopping: bool = False
    is_whole: bool = False
    """Whether the start of its process was logged."""
    processes: int = 0
    """A new one may be spawned before the old one's exit is logged."""

    @property
    def record(self) -> RouterModel:
        """As a record."""
        return RouterModel(loads=self.loads, evictions=self.evictions, failures=self.failures)


class ChildReader(Protocol):
    """The log reader of one of the router's children."""

    server: ServerInfo
    logged_server: LoggedServer
    reranks: bool

    @property
    def totals(self) -> Mapping[str, float]:
        """Sums over its process's requests, by the names of llama.cpp's counters."""


R = TypeVar("R", bound=ChildReader)


class RouterLog(Generic[R]):
    """Follows a router's log. Not thread-safe: used with the lock of the log reader."""

    def __init__(self, make_reader: Callable[[bool], R]) -> None:
        """``make_reader`` makes a child's reader; its argument: whether the child's start was logged."""
        self._make_reader = make_reader
        self._readers: dict[int, tuple[R, ServerInfo]] = {}
        """Readers by port, and the router that they were assigned to."""
        self._names: dict[int, str] = {}
        self._reranking: set[str] = set()
        """Models whose flags make them rerank."""
        self._spawning: str | None = None
        """The model whose flags are being logged."""
        self.models: dict[str, ModelLife] = {}
        self.seen = False
        """Whether this is a router's log."""
        self.names_dropped = 0
        """Messages about models beyond the number that is kept apart."""
        self._disconnected: list[R] = []
        self._exited_processes: deque[ExitedProcess] = deque(maxlen=_MAX_PORTS)

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
            name = self._names.get(port)
            reader = self._make_reader(name is not None) if entry is None else entry[0]
            reader.server = replace(router, model=name) if name else router
            reader.reranks = name in self._reranking
            if entry is None and len(self._readers) >= _MAX_MODELS:  # no router has so many
                del self._readers[next(iter(self._readers))]
            self._readers[port] = entry = (reader, router)
            self.seen = True
        return entry[0]

    def name_processes(self, names: Mapping[int, str], reranking: frozenset[str] = frozenset()) -> None:
        """Which model's process listens on which port, by the router's list, where its start was not logged.

        ``reranking``: the models whose flags make them rerank.
        """
        for port, name in names.items():
            if port in self._names or (name not in self.models and len(self.models) >= _MAX_MODELS):
                continue
            self._names[port] = name
            self.models.setdefault(name, ModelLife("loaded", port, loads=1, processes=1))
            if (entry := self._readers.get(port)) is not None:
                entry[0].server = replace(entry[0].server, model=name)
        self._reranking = {*reranking, *(self._reranking & self.models.keys())}
        for port, (reader, _) in self._readers.items():
            reader.reranks = self._names.get(port) in self._reranking

    def child_line(self, port: int, reader: R, time: float | None) -> None:
        """A line of the child on ``port`` was read, written ``time`` seconds after its process started."""
        life = self.models.get(self._names.get(port, ""))
        if life is None or reader.logged_server.host is None:
            return
        if life.state == "loading":
            life.loads += 1
            life.loading_s = time
        life.state = "sleeping" if reader.logged_server.sleeping else "loaded"

    def read(self, text: str) -> bool:
        """Act on one of the router's own messages; False if it is about something else."""
        if not text.startswith("srv "):
            return False
        if text[19:].startswith(_ROUTER):
            self.seen = True
            return True
        if "name=" in text:
            return self._read_named(text)
        if self._spawning is not None and text.startswith(_RERANK):
            self._reranking.add(self._spawning)
            return True
        found = _KNOWN.match(text) if "] " in text else None
        if found is not None:
            _, life = self._life(found.group(1))
            life.state = life.state or "unloaded"
        return found is not None

    def pop_disconnected(self) -> list[R]:
        """The readers of processes that exited since the last call: their requests in flight failed with them."""
        readers, self._disconnected = self._disconnected, []
        return readers

    def pop_exited(self) -> list[ExitedProcess]:
        """The processes that exited since the last call."""
        exited = list(self._exited_processes)
        self._exited_processes.clear()
        return exited

    def restart(self) -> None:
        """Reset for a new router process with new children; counters are kept."""
        self._readers.clear()
        self._names.clear()
        for life in self.models.values():
            life.state = life.port = life.loading_s = None
            life.stopping, life.processes = False, 0

    def _read_named(self, text: str) -> bool:
        if found := _SPAWNING.match(text):
            self._spawned(found.group(1), int(found.group(2)))
        elif found := _EVICTING.match(text):
            _, life = self._life(found.group(1))
            life.evictions += 1
            life.stopping = True
        elif found := _STOPPING.match(text):
            self._life(found.group(1))[1].stopping = True
        elif found := _EXITED.match(text):
            self._exited(*self._life(found.group(1)), int(found.group(2)))
        return found is not None

    def _spawned(self, name: str, port: int) -> None:
        name, life = self._life(name)
        self._disconnect(name, life)
        life.state, life.port, life.loading_s, life.stopping, life.is_whole = "loading", port, None, False, True
        life.processes += 1
        self._readers.pop(port, None)
        self._names.pop(port, None)
        if len(self._names) >= _MAX_PORTS:
            del self._names[next(iter(self._names))]
        self._names[port] = name
        self._reranking.discard(name)
        self._spawning = name
        self.seen = True

    def _exited(self, name: str, life: ModelLife, status: int) -> None:
        failed = status != 0 and not life.stopping
        life.failures += failed
        life.processes = max(0, life.processes - 1)
        if not life.processes:
            life.state = "failed" if failed else "unloaded"
            self._disconnect(name, life)
            life.port, life.stopping = None, False

    def _disconnect(self, name: str, life: ModelLife) -> None:
        """Its process has exited."""
        if life.port is not None and (entry := self._readers.pop(life.port, None)) is not None:
            self._disconnected.append(entry[0])
            self._exited_processes.append(ExitedProcess(name, life.port, entry[0].totals, life.is_whole))

    def _life(self, name: str) -> tuple[str, ModelLife]:
        """A model and its label: ``other`` beyond the first 512."""
        if name not in self.models and len(self.models) >= _MAX_MODELS:
            if not self.names_dropped:
                _log.warning(
                    "the router's log names more than %d models: further ones count as '%s'", _MAX_MODELS, OTHER
                )
            self.names_dropped += 1
            name = OTHER
        return name, self.models.setdefault(name, ModelLife())
