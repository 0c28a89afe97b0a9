"""Which of several llama-servers wrote a line, where their lines have no stamps and their starts are announced.

Ollama runs its models' servers with ``--no-log-prefix --no-log-timestamps``, all into one stream. A line about a slot
belongs to the request that runs this task in this slot; a request belongs to the one server that can have started it:
its slot is free and the task is newer than all it has had. What fits several servers is followed under ``UNKNOWN``,
with the servers that it may be of; two requests with the same slot and task at the same time are lost.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from llamatel.llama.log.log_line import LogLine
from llamatel.llama.log.log_process import UNKNOWN, own_slot, spare_slot

TASKS_APART = 64
"""Where a server has several slots, tasks are not launched strictly in the order of their numbers."""
_MOST_OPEN = 1024
_MOST_UNKNOWN = 1024
_BY_TASK = re.compile(r"srv +(?:stop: cancel task, id_task|send_error: task id) = (\d{1,12})\b")
_CACHE_STATE = re.compile(r"srv +update: +- cache state: ")
_LISTENING = re.compile(r"srv +\w{1,12}: (?:server is )?listening on https?://\S{1,255}:(\d{1,5})$")


class Line(NamedTuple):
    """This line is the server's."""

    server: int
    line: str
    parts: LogLine


class Lost(NamedTuple):
    """The request in this slot of the server cannot be followed any further; below 0: one that was not read at all."""

    server: int
    slot: int


@dataclass(slots=True)
class _Server:
    port: int | None
    slots: int | None
    newest_task: int
    loading: bool
    running: dict[int, int] = field(default_factory=dict)
    """Tasks by slot."""

    def could_start(self, slot: int, task: int) -> bool:
        return (
            not self.loading
            and slot not in self.running
            and task > self.newest_task - (0 if self.slots == 1 else TASKS_APART)
            and (self.slots is None or slot < self.slots)
        )


@dataclass(slots=True)
class _Open:
    """A request in flight."""

    server: int
    slot: int
    """As its reader gets it."""


class TaskSeparation:
    """Assigns the lines of one stream to announced servers. Not thread-safe."""

    def __init__(self) -> None:
        self._servers: dict[int, _Server] = {}
        self._open: dict[tuple[int, int], _Open] = {}
        self._doubled: dict[tuple[int, int], int] = {}
        """Requests of several servers with the same slot and task; ends that are still to come."""
        self.complete = False
        """Whether every server that may write was announced; else what fits one may be of another, too."""
        self._selected: dict[int, list[Line]] = {}
        """Lines about a slot that is free, since a task was last launched in a slot of that number."""
        self.candidates: dict[tuple[int, int], tuple[int, ...]] = {}
        """Of requests of ``UNKNOWN``, by slot and task: the servers that may have run them; ``UNKNOWN``
        among them where it may be one that was not announced."""

    # -- servers ------------------------------------------------------------------------------------------------------

    def add(
        self, server: int, *, port: int | None, slots: int | None, newest_task: int = -1, loading: bool = True
    ) -> None:
        """A server starts (``loading``), or is there already and has had tasks up to ``newest_task``."""
        self._servers[server] = _Server(port, slots, newest_task, loading)

    def remove(self, server: int) -> None:
        """A server has ended; its requests in flight are not followed any further."""
        self._servers.pop(server, None)
        for key in [key for key, request in self._open.items() if request.server == server]:
            del self._open[key]

    def remove_others(self, server: int) -> list[int]:
        """Only this server is left; which were removed."""
        others = [number for number in self._servers if number != server]
        for number in others:
            self.remove(number)
        return others

    def ready(self, server: int) -> None:
        """It has loaded its model."""
        if (found := self._servers.get(server)) is not None:
            found.loading = False

    def saw_task(self, server: int, task: int) -> None:
        """A server is known to have run a task with this number."""
        if (found := self._servers.get(server)) is not None:
            found.newest_task = max(found.newest_task, task)

    # -- lines --------------------------------------------------------------------------------------------------------

    def route(self, line: str, parts: LogLine) -> Iterator[Line | Lost]:
        """What a line means for the readers of the servers' logs."""
        slot, task = parts.slot, parts.task
        if slot is None or task is None:
            yield from self._server_line(line, parts)
        elif task < 0:
            if parts.slot_message.startswith("selected slot"):
                kept = self._selected.setdefault(own_slot(slot), [])
                del kept[2:]
                kept.append(Line(UNKNOWN, line, parts))
        else:
            yield from self._task_line(line, parts, (slot, task))

    def _task_line(self, line: str, parts: LogLine, key: tuple[int, int]) -> Iterator[Line | Lost]:
        starts, ends = (
            parts.slot_message.startswith("processing task"),
            parts.slot_message.startswith("stop processing"),
        )
        if key in self._doubled:
            if starts:
                yield Lost(UNKNOWN, -1)
            self._doubled[key] += starts - ends
            if self._doubled[key] <= 0:
                del self._doubled[key]
            return
        request = self._open.get(key)
        if starts:
            if request is not None:
                yield from self._double(key, request)
                return
            request, selection = self._start(key)
            if selection is not None:
                moved = selection.parts._replace(slot=request.slot)
                yield Line(request.server, selection.line, moved)
        if request is None:
            return  # it started before the log was read
        yield Line(request.server, line, parts._replace(slot=request.slot))
        if ends:
            self._forget(key)

    def _start(self, key: tuple[int, int]) -> tuple[_Open, Line | None]:
        slot, task = key
        fitting = [number for number, server in self._servers.items() if server.could_start(slot, task)]
        waiting = self._selected.pop(slot, [])
        selection = waiting[0] if len(waiting) == 1 else None
        if len(fitting) == 1 and self.complete:
            server = self._servers[fitting[0]]
            server.newest_task, server.running[slot] = max(task, server.newest_task), task
            request = _Open(fitting[0], slot)
        else:
            given = spare_slot(slot, {each.slot for each in self._open.values() if each.server == UNKNOWN})
            request = _Open(UNKNOWN, given)
            if len(self.candidates) >= _MOST_UNKNOWN:
                del self.candidates[next(iter(self.candidates))]
            self.candidates[given, task] = tuple(fitting) if self.complete else (*fitting, UNKNOWN)
        if len(self._open) >= _MOST_OPEN:
            self._forget(next(iter(self._open)))
        self._open[key] = request
        return request, selection

    def _double(self, key: tuple[int, int], request: _Open) -> Iterator[Lost]:
        """Two servers run the same task in the same slot: neither can be followed."""
        self._forget(key)
        self._doubled[key] = 2
        if len(self._doubled) > _MOST_OPEN:
            del self._doubled[next(iter(self._doubled))]
        yield Lost(request.server, request.slot)
        yield Lost(UNKNOWN, -1)

    def _forget(self, key: tuple[int, int]) -> None:
        request = self._open.pop(key)
        server = self._servers.get(request.server)
        if server is not None and server.running.get(key[0]) == key[1]:
            del server.running[key[0]]

    def _server_line(self, line: str, parts: LogLine) -> Iterator[Line | Lost]:
        """A line about no slot: of the request that it names, else of the one server that loads, or the only one."""
        text = parts.text
        if (found := _BY_TASK.match(text)) is not None:
            yield from self._named(int(found.group(1)), line, parts)
            return
        loading = [number for number, server in self._servers.items() if server.loading]
        if len(loading) == 1 and not _CACHE_STATE.match(text):
            [number] = loading
            yield Line(number, line, parts)
            if (listening := _LISTENING.match(text)) and int(listening.group(1)) == self._servers[number].port:
                self._servers[number].loading = False
        elif self.complete and len(self._servers) == 1:
            yield Line(next(iter(self._servers)), line, parts)

    def _named(self, task: int, line: str, parts: LogLine) -> Iterator[Line | Lost]:
        """A cancellation, or an error, of a task."""
        keys = [key for key in self._open if key[1] == task]
        if len(keys) == 1:
            yield Line(self._open[keys[0]].server, line, parts)
            return
        for key in keys:
            request = self._open[key]
            yield Lost(request.server, request.slot)
            self._forget(key)
