"""Follows the requests that hold slots from launch to release, by the lines of their slots.

Messages and the functions that print them: tools/server/server-context.cpp, server-queue.cpp. llama.cpp
pads a function's name to 12 characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from llamatel.llama.log.log_audit import LogAudit
from llamatel.llama.log.log_counters import LogCounters
from llamatel.llama.log.logged_request import CONTEXT_FULL, LoggedRequest
from llamatel.llama.log.prompt_history import PromptHistory
from llamatel.llama.log.prompt_reuse import SlotSelection, parse_selection
from llamatel.llama.log.queue_clock import DEFAULT_BATCH, QueueClock
from llamatel.llama.log.rejections import launch_rejection

# Numbers have no more digits than llama.cpp's can have.
_RELEASE = re.compile(r"stop processing: (?:n_tokens|n_past) = (\d{1,12}), truncated = (\d)")
_ERROR = re.compile(r"task id = (\d{1,12}), error: ([^\n]*)")
_CANCEL = re.compile(r"cancel task, id_task = (\d{1,12})$")
_TOO_LONG = "exceeds the available context size"
_MAX_SLOTS, _MAX_EVICTED = 1024, 64
_LATE_S, _LATE_LINES = 2.0, 200
"""ik_llama.cpp writes a request's timings on another thread than its release: they follow within this."""


class ForeignLine(Exception):
    """A line that cannot be this process's: another server writes into the same log."""


class OnEnd(Protocol):
    """Called for each finished request, after its slot was released."""

    def __call__(
        self, request: LoggedRequest, time: float, *, tokens: int | None = None, truncated: bool | None = None
    ) -> None:
        """Finish it at ``time`` with ``tokens`` in its slot."""


@dataclass(slots=True)
class _Released:
    """A request whose timings or cancellation may follow its release."""

    request: LoggedRequest
    message: str
    time: float
    lines: int = 0


class SlotRequests:
    """The requests in flight of one llama.cpp process. Times are log times, in seconds."""

    def __init__(self, counters: LogCounters, audit: LogAudit, on_end: OnEnd) -> None:
        self._counters = counters
        self._audit = audit
        self._on_end = on_end
        self._batch = DEFAULT_BATCH
        self._queue = QueueClock()
        self.history = PromptHistory()
        self._active: dict[int, LoggedRequest] = {}
        self._selected: dict[int, tuple[float, SlotSelection]] = {}
        """When, and how, each slot was last selected for a task."""
        self._evicted: dict[int, tuple[int, ...]] = {}
        """Tokens of the checkpoints that each slot lost since another prompt was in it."""
        self._heading: tuple[int, int] | None = None
        """The slot and task whose timings follow on separate lines."""
        self.written_apart = False
        """Whether timings are written by another thread than the lines of slots, perhaps after them."""
        self._released: dict[int, _Released] = {}
        """By task."""
        self._first_task: int | None = None
        """Requests of later tasks started while the log was read: the first one of a launch line, -1 for a process that
        is read from its start, None before either."""
        self.newest_task = -1
        self._idle_task = -1
        """No task up to this one can start any more: it was idle after it had started."""
        self._displaced: set[tuple[int, int]] | None = None
        """Requests that lost their slot before they finished; None where the log is certainly one server's."""

    def __iter__(self) -> Iterator[LoggedRequest]:
        """The requests in flight."""
        return iter(self._active.values())

    def __len__(self) -> int:
        return len(self._active)

    def watch_for_others(self, *, on: bool) -> None:
        """Make ``slot_line`` raise ForeignLine for lines that show several servers in one log."""
        self._displaced = set() if on else None

    # -- messages ---------------------------------------------------------------------------------------------------

    def slot_line(self, function: str, slot: int, task: int, message: str, time: float) -> str:
        """Read a slot's message; returns the kind of the line."""
        self._heading = None
        self._counters.slot_lines += 1
        if function == "print_timing":  # half of all lines
            request = self._active.get(slot)
            if request is None or request.task != task:
                return self._late_timing(slot, task, message, time) if task in self._released else "server"
            if message:
                return request.read_timing(message, time)
            self._heading = slot, task
            return "server"
        if function == "launch_slot_":
            if message.startswith("processing task"):
                return self._launch(slot, task, message, time)
        elif function == "get_availabl":
            return self._select(slot, message, time)
        request = self._active.get(slot)
        is_release = function == "     release" and message.startswith("stop processing")
        if request is None or request.task != task:
            return self._without_start(slot, task, time, is_release=is_release)
        if is_release:
            return self._release(request, message, time)
        kind = request.read(function, message, time)
        self._follow(request)
        return kind

    def _select(self, slot: int, message: str, time: float) -> str:
        if not message.startswith("selected slot"):
            return "server"
        if len(self._selected) < _MAX_SLOTS:
            selection = parse_selection(message)
            self._selected[slot] = time, selection
            self.history.selected(slot, selection)
        return "request"

    def _without_start(self, slot: int, task: int, time: float, *, is_release: bool) -> str:
        """A line of a request that started before the log was read, or whose start is missing."""
        if is_release:
            if self._displaced and (slot, task) in self._displaced:
                raise ForeignLine
            self._queue.left(time)
            if self._first_task is not None and task > self._first_task:
                self._counters.started += 1
                self._counters.lost += 1
        return "server"

    def _follow(self, request: LoggedRequest) -> None:
        """Record a request's effects on its slot."""
        self._counters.context_shifts += request.shifts - request.counted_shifts
        request.counted_shifts = request.shifts
        if request.evicts:
            self._evicted[request.slot] = (*self._evicted.get(request.slot, ()), *request.evicts)[-_MAX_EVICTED:]
            request.evicts = ()

    def continuation(self, text: str, time: float) -> bool:
        """Whether a line is a timing that follows its heading (builds until April 2026), even after foreign lines."""
        if self._heading is None:
            return False
        slot, task = self._heading
        request = self._active.get(slot)
        message = text.lstrip()
        if not message.startswith(("prompt eval time", "eval time", "total time", "draft accept")):
            return False
        if task in self._released:
            self._late_timing(slot, task, message, time)
            return True
        if request is not None:
            request.read_timing(message, time)
        return request is not None

    def _late_timing(self, slot: int, task: int, message: str, time: float) -> str:
        """A timing of a request that has released its slot, or the heading of its timings."""
        if not message:
            self._heading = slot, task
            return "server"
        kind = self._released[task].request.read_timing(message, time)
        if message.startswith("total time"):
            self._finish_released(task)
        return kind

    def finish_released(self, time: float = float("inf")) -> None:
        """Finish requests whose timings did not follow their release until ``time``; call for each line."""
        for task, released in list(self._released.items()):
            released.lines += 1
            if time > released.time + _LATE_S or released.lines > _LATE_LINES:
                self._finish_released(task)

    def _finish_released(self, task: int) -> None:
        released = self._released.pop(task)
        self._finish(released.request, released.message, released.time)

    def cancel(self, message: str, time: float) -> str:
        """``stop: cancel task``: the client disconnected, or an error was sent."""
        found = _CANCEL.match(message)
        if found is None:
            return "malformed"
        task = int(found.group(1))
        self._queue.number_taken(time)
        request = self._by_task(task)
        if request is not None:
            request.cancelled = True
        else:
            self._queue.seen(task)
        return "request"

    def error(self, message: str) -> str:
        """``send_error``: a request failed, or could not be launched."""
        found = _ERROR.match(message)
        if found is None:
            return "malformed"
        request, error = self._by_task(int(found.group(1))), found.group(2).strip()
        if request is not None:
            request.error = error
        elif (reason := launch_rejection(error)) is not None:
            self._counters.reject(reason)
        return "request"

    def number_taken(self, time: float) -> None:
        """Count a task number that is not a request's."""
        self._queue.number_taken(time)

    # -- end of the process -------------------------------------------------------------------------------------------

    def abort(self, time: float, error: str) -> None:
        """The process exited: every request in flight fails."""
        self.finish_released()
        for request in self._active.values():
            request.error = error
            request.queue_s = self._queue.broken_off(request.task, time, 0)
            self._on_end(request, time)
        self.reset()

    def reset(self, batch: int | None = None) -> None:
        """Drop the requests in flight, as another process follows or the log ends. ``batch``: its batch size."""
        self._batch = batch or self._batch
        self._queue = QueueClock(self._batch)
        self._active.clear()
        self._selected.clear()
        self._evicted.clear()
        self.history.reset()
        self._heading = None
        self._released.clear()
        self._first_task = self.newest_task = self._idle_task = -1
        if self._displaced is not None:
            self._displaced = set()

    def drop(self, slot: int) -> bool:
        """Stop following the request in this slot; True if there was one."""
        if self._heading is not None and self._heading[0] == slot:
            self._heading = None
        return self._active.pop(slot, None) is not None

    # -- one request ------------------------------------------------------------------------------------------------

    def _launch(self, slot: int, task: int, message: str, time: float) -> str:
        if slot < 0 or task < 0 or len(self._active) >= _MAX_SLOTS or not self._audit.launch(slot, task):
            return "other"
        if not self._active:
            self._idle_task = self.newest_task
        lost = self._active.get(slot)
        if self._displaced is not None and (task <= self._idle_task or (lost is not None and lost.task == task)):
            raise ForeignLine
        if self._first_task is None:
            self._first_task = task
        if task > self.newest_task:  # noqa: PLR1730 - for every request
            self.newest_task = task
        if lost is not None:
            if self._displaced is not None and len(self._displaced) < _MAX_SLOTS:
                self._displaced.add((slot, lost.task))
            self._counters.lost += 1
            self._queue.broken_off(lost.task, time, 0)
        selected_at, selection = self._selected.pop(slot, (time, None))
        self._queue.launched(task, time, chosen=selected_at, idle=not self._active)
        if selection is None or selection.similarity is None:
            self._evicted.pop(slot, None)
        request = LoggedRequest(slot, task, time, is_child=message.rstrip().endswith("is_child = 1"))
        request.selection, request.evicted = selection, self._evicted.get(slot, ())
        request.contents = self.history.launched(slot, selection)
        self._active[slot] = request
        self._counters.started += 1
        return "request"

    def _release(self, request: LoggedRequest, message: str, time: float) -> str:
        del self._active[request.slot]
        if self.written_apart and request.timed_at is None and request.error is None and not request.cancelled:
            self._released[request.task] = _Released(request, message, time)
            return "request"
        return self._finish(request, message, time)

    def _finish(self, request: LoggedRequest, message: str, time: float) -> str:
        found = _RELEASE.match(message)
        tokens = int(found.group(1)) if found is not None else 0
        queue_s = self._waited(request, time, tokens)
        request.queue_s = None if self.written_apart else queue_s  # timestamps of whole seconds do not show it
        if found is None:
            self._counters.lost += 1
            return "malformed"
        truncated = found.group(2) != "0"
        if request.mixed or ((request.computed or 0) > tokens and not truncated and not request.shifts):
            # The timings are of another server's request: more than its slot holds were not computed.
            self._counters.lost += 1
            return "other"
        self._on_end(request, time, tokens=tokens, truncated=truncated)
        self._left(request, tokens, time)
        return "request"

    def _left(self, request: LoggedRequest, tokens: int, time: float) -> None:
        """Record what a request left in its slot."""
        if (
            request.slot in self._active
            or request.is_child
            or not tokens
            or (request.computed is None and not request.cancelled)
        ):
            return  # a further choice's slot is emptied; an embedding's is of no use to another request
        self.history.released(request.slot, request.left_in_slot(tokens, time))
        if request.error is not None and CONTEXT_FULL in request.error:
            self.history.clear_slot(request.slot)

    def _waited(self, request: LoggedRequest, time: float, tokens: int) -> float | None:
        """How long a request that releases its slot had waited for it."""
        if request.timed_at is not None and request.decode_s is not None and request.generated is not None:
            return self._queue.completed(
                request.task,
                time,
                first_token=request.timed_at - request.decode_s,
                steps=max(0, request.generated - 1 - (request.draft_accepted or 0)),
                computed=request.computed or 0,
            )
        if request.error is not None and _TOO_LONG in request.error:
            return self._queue.refused(request.task, time)
        return self._queue.broken_off(request.task, time, tokens)

    def _by_task(self, task: int) -> LoggedRequest | None:
        if (released := self._released.get(task)) is not None:
            return released.request
        return next((request for request in self._active.values() if request.task == task), None)
