"""Which of Ollama's llama-servers wrote a line: they share its log, and it reports their starts.

Their lines have no timestamps (``--no-log-prefix --no-log-timestamps``), so slots and tasks show whose they are.
"""

from __future__ import annotations

import re
from collections import deque

from llamatel.llama.log.log_line import LogLine
from llamatel.llama.log.log_process import Change, Event, LogProcess
from llamatel.llama.log.task_owners import TaskOwners

_BY_TASK = re.compile(r"srv +(?:stop: cancel task, id_task|send_error: task id) = (\d{1,12})\b")
_CACHE_STATE = re.compile(r"srv +update: +- cache state: ")
_LISTENING = re.compile(r"srv +\w{1,12}: (?:server is )?listening on https?://\S{1,255}:(\d{1,5})$")


class OllamaSeparation:
    """Assigns the lines of Ollama's log to its servers. Not thread-safe."""

    def __init__(self) -> None:
        self._servers: list[LogProcess] = []
        self._events: deque[Event] = deque()
        self.owners = TaskOwners(self._servers, self._events, complete=False)
        self._late: int | None = None
        """The server that was ready before its last lines of loading were logged: Ollama copies its output."""

    # -- servers ------------------------------------------------------------------------------------------------------

    def add(self, server: int, *, port: int | None, slots: int | None, loading: bool = True) -> None:
        """Add a server that starts (``loading``), or already runs."""
        process = LogProcess(server, port=port, slots=slots, loading=[] if loading else None, all_known=loading)
        self._servers.append(process)

    def remove(self, server: int) -> None:
        """Remove a server that has exited; its requests in flight are no longer followed."""
        self._servers[:] = [each for each in self._servers if each.number != server]
        self._late = None if self._late == server else self._late

    def ready(self, server: int) -> None:
        """It has loaded its model."""
        for each in self._servers:
            if each.number == server and each.loading is not None:
                each.loading, self._late = None, server

    def _loaded(self, server: LogProcess) -> None:
        """All lines of its loading were logged."""
        server.loading = None
        self._late = None if self._late == server.number else self._late

    def saw_task(self, server: int, task: int) -> None:
        """A server is known to have run a task with this number."""
        for each in self._servers:
            if each.number == server:
                each.newest_task = max(each.newest_task, task)

    # -- lines --------------------------------------------------------------------------------------------------------

    def route(self, line: str, parts: LogLine, now: float) -> list[Event]:
        """Events of a line that was written at Unix time ``now``: lines to read, requests lost."""
        number, parts = self._assign(line, parts, now)
        events = [*self._events]
        self._events.clear()
        if number is not None:
            events.append(Event(Change.LINE, number, line, parts, now))
        return events

    def _assign(self, line: str, parts: LogLine, now: float) -> tuple[int | None, LogLine]:
        """The server of a line: of its slot and task, else the one that loads, or the only one."""
        text = parts.text
        if parts.slot is not None:
            return self.owners.slot_line(line, parts, now)
        if (found := _BY_TASK.match(text)) is not None:
            return self.owners.task_line(int(found.group(1)), parts)
        loading = [each for each in self._servers if each.loading is not None or each.number == self._late]
        if (listening := _LISTENING.match(text)) is not None:
            loading = [each for each in loading if each.port == int(listening.group(1))] or loading
        if len(loading) == 1 and not _CACHE_STATE.match(text):
            [server] = loading
            if listening is not None and int(listening.group(1)) == server.port:
                self._loaded(server)
            return server.number, parts
        if self.owners.complete and len(self._servers) == 1:
            return self._servers[0].number, parts
        return None, parts
