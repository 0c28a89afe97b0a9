"""Reads Ollama's log: the llama-server that wrote each line, finished requests, and Ollama's own access lines.

Clients can forge all of it (docs/security.md): paths and addresses in it are never opened or connected to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from llamatel.llama.log.client_text import ClientText
from llamatel.llama.log.log_contents import LogContents
from llamatel.llama.log.log_line import split_line
from llamatel.llama.log.log_process import UNKNOWN, own_slot
from llamatel.llama.log.log_source import Backlog, Batch
from llamatel.llama.log.ollama_log import (
    AccessLine,
    ChildReady,
    ChildStart,
    Eviction,
    LoadedModels,
    LoadFailure,
    OllamaConfig,
    OllamaEvent,
    OllamaStart,
    parse_ollama,
    written_at,
)
from llamatel.llama.log.ollama_separation import OllamaSeparation
from llamatel.llama.log.wrapped_lines import WrappedLines
from llamatel.llama.log.wrapper_fields import Carried
from llamatel.llama.watch.access_join import DatedAccess
from llamatel.llama.watch.server_log import ServerLog
from llamatel.records import Completion

_MOST_LAUNCHED = 4096
_LONGEST_LINE = 8192
_LATE_S = 2.5
"""A stamp of whole seconds is of less use than the time at which a line was read, unless they differ by more."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A finished request."""

    completion: Completion
    server: int
    candidates: tuple[int, ...]
    """If its server is ``UNKNOWN``: the announced servers that may have run it."""
    live: bool
    error_s: float
    """The error of its times."""
    launched: int = 0
    """The number of the line that launched it; 0 if unknown."""
    late_s: float = 0.0
    """How long before its ``ended_at`` its end may have been logged."""


class Children(Protocol):
    """The interface to the owner of the servers; called while a line is read."""

    def starts(self, start: ChildStart, now: float) -> int:
        """A server is about to start; its number."""

    def ready(self, loading_s: float | None) -> None:
        """The loading server is ready."""

    def failed(self) -> None:
        """The loading server could not be started."""

    def evicting(self) -> None:
        """A model is unloaded to make room for another."""

    def only_newest(self) -> None:
        """Only the model that was loaded last is left."""

    def configured(self, most_loaded: int) -> None:
        """Ollama loads at most this many models (0: its default)."""

    def restarted(self) -> None:
        """Ollama itself has started: there is no server."""

    def log(self, server: int) -> ServerLog | None:
        """The log of a server, or of the unknown ones."""


class OllamaLogReader:
    """Not thread-safe: its owner calls it with its lock."""

    def __init__(self, children: Children, separation: OllamaSeparation) -> None:
        self.contents = LogContents()
        self.requests = 0
        """Requests that were read."""
        self.ended: list[Ended] = []
        """To be taken by the owner."""
        self.accesses: list[DatedAccess] = []
        """The same."""
        self._children = children
        self._separation = separation
        self._lines = WrappedLines()
        self._quotations = ClientText()
        self._number = 0
        """Of the line that is read."""
        self._launched: dict[tuple[int, int | None, int | None], int] = {}
        """The numbers of the lines that launched requests in flight, by server, slot and task."""
        self._late_s = 0.0
        """How long ago the current lines may have been written."""
        self._wall: float | None = None
        """When Ollama's own last dated line was written."""

    def read(self, batch: Batch) -> None:
        """Read new lines; a batch without lines means that none arrived for a while."""
        if not batch.lines:
            for carried in self._lines.flush():
                self._read(carried, batch.at, live=batch.live)
        self._late_s = 0.0 if batch.since is None else max(0.0, batch.at - batch.since)
        self._wall = None if batch.live else self._wall
        for line in batch.lines:
            for carried in self._lines.feed(line):
                self._read(carried, batch.at, live=batch.live)

    def read_backlog(self, backlog: Backlog) -> None:
        """Read lines that were there before."""
        for lines, recorded in backlog.batches():
            for line in lines:
                for carried in self._lines.feed(line):
                    self._read(carried, backlog.at, live=False)
            if recorded:
                self.ended.clear()
                self.accesses.clear()

    def _read(self, carried: Carried, now: float, *, live: bool) -> None:
        self._number += 1
        text = carried.text[:_LONGEST_LINE]
        wall, error_s = carried.wall, 0.0
        if wall is not None and wall.is_integer():
            wall, error_s = (None, 0.0) if live and abs(now - wall) < _LATE_S else (wall, 1.0)
        if not live:
            self._wall = written_at(text) or self._wall
            if wall is None:
                wall, error_s = self._wall, float("inf")
        at, late_s = (now, self._late_s) if wall is None else (wall, 0.0)
        parts = split_line(text)
        self._quotations.stamped |= parts.time is not None and not self._quotations.open
        if (parts.slot is None or self._quotations.open) and self._quotations.contains(text, at):
            return  # also lines that look like Ollama's own
        if not self.requests:
            self.contents.add(text)
        own = parse_ollama(text)
        if own is not None:
            self._event(own, at, error_s, late_s)
            return
        if parts.time is not None:
            parts = parts._replace(time=None)  # not written with Ollama's flags; its stamps are of no use here
        for event in self._separation.route(text, parts, at):
            log = self._children.log(event.process)
            if log is None:
                continue
            if event.parts is None:
                log.lose(event.slot)
                continue
            if event.parts.slot_message.startswith("processing task"):
                self._launched[event.process, event.parts.slot, event.parts.task] = self._number
                if len(self._launched) > _MOST_LAUNCHED:
                    del self._launched[next(iter(self._launched))]
            completed, _ = log.read_all([(event.line, event.parts)], event.now, learned=_nothing)
            self._add(completed, event.process, live=live, error_s=error_s, late_s=late_s)

    def _add(self, completed: Sequence[Completion], server: int, *, live: bool, error_s: float, late_s: float) -> None:
        for request in completed:
            self.requests += 1
            launched = self._launched.pop((server, request.slot, request.task), 0)
            candidates: tuple[int, ...] = ()
            slot = request.slot
            if server == UNKNOWN and slot is not None:
                candidates = self._separation.owners.candidates.pop((slot, request.task or 0), ())
                slot = own_slot(slot)
            # llama-server has no queue here: what waits, waits in Ollama.
            known = replace(request, slot=slot, queue_s=None, in_flight=())
            self.ended.append(Ended(known, server, candidates, live, error_s, launched, late_s))

    def _event(self, event: OllamaEvent, at: float, error_s: float, late_s: float) -> None:
        children = self._children
        if isinstance(event, AccessLine):
            if event.infers and error_s != float("inf"):
                self.accesses.append(DatedAccess(event, at, error_s, self._number, late_s))
        elif isinstance(event, ChildStart):
            number = children.starts(event, at)
            self._separation.add(number, port=event.port, slots=event.slots)
        elif isinstance(event, ChildReady):
            children.ready(event.loading_s)
        elif isinstance(event, LoadFailure):
            children.failed()
        elif isinstance(event, Eviction):
            children.evicting()
        elif isinstance(event, LoadedModels):
            if event.count == 1:
                children.only_newest()
        elif isinstance(event, OllamaConfig):
            children.configured(event.most_loaded)
        elif isinstance(event, OllamaStart):
            children.restarted()


def _nothing() -> None:
    pass
