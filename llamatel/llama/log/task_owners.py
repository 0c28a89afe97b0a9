"""Assigns lines about slots to one of several processes by slot and task, if nothing else distinguishes them.

Such a line belongs to the request that runs this task in this slot, and a request to the one process that can have
started it. One that fits several processes is followed under ``UNKNOWN``; two with the same slot and task at the same
time are lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, MutableSequence, Sequence

from llamatel.llama.log.log_line import LogLine
from llamatel.llama.log.log_process import UNKNOWN, Change, Event, LogProcess, own_slot, spare_slot

_MOST_REQUESTS = 256
_MOST_CANDIDATES = 1024
_MOST_SELECTIONS = 2
_MOST_STARTS = 16_384


class TaskOwners:
    """Assigns lines about slots to processes. ``events`` receives lost requests, and lines that were held back."""

    def __init__(self, processes: Sequence[LogProcess], events: MutableSequence[Event], *, complete: bool) -> None:
        """``processes``: those that write; the caller adds and removes them."""
        self._processes = processes
        self._events = events
        self.complete = complete
        """Whether every process that may write is in ``processes``; else any request may be another one's."""
        self.candidates: dict[tuple[int, int], tuple[int, ...]] = {}
        """The processes that may run a request of ``UNKNOWN``, by slot and task; ``UNKNOWN`` among them unless
        ``complete``."""
        self._unknown: dict[tuple[int, int], int] = {}
        """The slot given to each request of ``UNKNOWN`` in flight, by the slot and task that were logged."""
        self._not_followed: dict[tuple[int, int], int] = {}
        """Slots and tasks of requests that are not followed: of several processes at once, or of unknown or forgotten
        ones. The number of ends that are still to come."""
        self._starts: dict[tuple[int, int], Counter[int]] = {}
        """How many requests with this slot and task each process may have run, followed or not."""
        self._selected: dict[int, list[Event]] = {}
        """Selections of a free slot, by its number, since a task was last launched in a slot of that number."""

    def lose_running(self) -> None:
        """Stop following requests in flight."""
        for process in self._processes:
            self._events.extend(Event(Change.LOST, process.number, slot=slot) for slot in process.running)
            self.forget(process)

    def forget(self, process: LogProcess) -> None:
        """A process is not followed any more; its requests in flight may go on, and are not another process's."""
        self._not_followed.update(dict.fromkeys(process.running.items(), 1))
        process.running.clear()
        self._limit()

    def is_lost(self, slot: int, task: int) -> bool:
        """Whether lines with this slot and task may be those of a request that is not followed."""
        return (slot, task) in self._not_followed

    @property
    def any_lost(self) -> bool:
        """Whether lines of requests that are not followed may still come."""
        return bool(self._not_followed)

    def is_only(self, process: int, slot: int, task: int) -> bool:
        """Whether no more than one request with this slot and task may have been a process's."""
        return self._starts.get((slot, task), Counter())[process] == 1

    def exclude(self, processes: Iterable[int], slot: int, task: int, *, again: bool = False) -> None:
        """Record that these processes did not run a request with this slot and task (``again``: may have)."""
        if (starts := self._starts.get((slot, task))) is not None:
            (starts.update if again else starts.subtract)(processes)

    def slot_line(self, line: str, parts: LogLine, now: float) -> tuple[int | None, LogLine]:
        """The process of a line about a slot, None if unknown, and the line as its reader is to get it."""
        slot, task, message = parts.slot, parts.task, parts.slot_message
        if slot is None or task is None:
            return None, parts
        if task < 0:
            self._select(slot, Event(Change.LINE, UNKNOWN, line, parts, now))
            return None, parts
        key = (slot, task)
        starts, ends = message.startswith("processing task"), message.startswith("stop processing")
        if key in self._not_followed:
            if starts:
                self._count_start(slot, task, self._processes)
                self._events.append(Event(Change.LOST, UNKNOWN))
            self._not_followed[key] += starts - ends
            if self._not_followed[key] <= 0:
                del self._not_followed[key]
            return None, parts
        holders = self._holders(slot, task)
        if starts:
            if holders or key in self._unknown:
                self._double(slot, task)
                return None, parts
            return self._start(slot, task, parts)
        if key in self._unknown:
            given = self._unknown.pop(key) if ends else self._unknown[key]
            return UNKNOWN, parts._replace(slot=given, time=None)
        if not holders and not ends:
            # It started before the log was read: until its end, no other request gets its lines.
            self._not_followed[key] = 1
            self._limit()
        if len(holders) != 1:
            return None, parts
        if ends:
            del holders[0].running[slot]
        return holders[0].number, parts

    def _select(self, slot: int, event: Event) -> None:
        """Hold back the selection of a free slot: the task that gets the slot shows which process wrote it."""
        if event.parts is not None and event.parts.slot_message.startswith("selected slot"):
            selections = self._selected.setdefault(own_slot(slot), [])
            if len(selections) < _MOST_SELECTIONS:
                selections.append(event)

    def task_line(self, task: int, parts: LogLine) -> tuple[int | None, LogLine]:
        """The same for a line that names only a task: a cancellation, an error."""
        running = [(slot, each) for each in self._processes for slot, number in each.running.items() if number == task]
        unknown = [slot for slot, number in self._unknown if number == task]
        if len(running) + len(unknown) == 1:
            return (running[0][1].number, parts) if running else (UNKNOWN, parts._replace(time=None))
        for slot in {*unknown, *(slot for slot, _ in running)}:
            self._lose(slot, task)
        return None, parts

    def _holders(self, slot: int, task: int) -> list[LogProcess]:
        return [each for each in self._processes if each.running.get(slot) == task]

    def _start(self, slot: int, task: int, parts: LogLine) -> tuple[int, LogLine]:
        fitting = [each for each in self._processes if each.could_start(slot, task)]
        self._count_start(slot, task, fitting)
        selections = self._selected.pop(slot, [])
        if self.complete and len(fitting) == 1:
            fitting[0].start(slot, task)
            number, given = fitting[0].number, slot
        else:
            number, given = UNKNOWN, self._start_unknown(slot, task, fitting)
            parts = parts._replace(slot=given, time=None)
        if len(selections) == 1 and (selected := selections[0].parts) is not None:
            selected = selected._replace(slot=given, time=None if number == UNKNOWN else selected.time)
            self._events.append(selections[0]._replace(process=number, parts=selected))
        return number, parts

    def _start_unknown(self, slot: int, task: int, candidates: Sequence[LogProcess]) -> int:
        """Follow a request that several processes may run; the slot that it is given."""
        for process in candidates:
            process.all_known = False
        given = spare_slot(slot, set(self._unknown.values()))
        if len(self._unknown) >= _MOST_REQUESTS:
            self._lose(*next(iter(self._unknown)))
        self._unknown[slot, task] = given
        if len(self.candidates) >= _MOST_CANDIDATES:
            del self.candidates[next(iter(self.candidates))]
        numbers = [each.number for each in candidates]
        self.candidates[given, task] = tuple(numbers if self.complete else (*numbers, UNKNOWN))
        return given

    def _count_start(self, slot: int, task: int, processes: Iterable[LogProcess]) -> None:
        self._starts.setdefault((slot, task), Counter()).update(each.number for each in processes)
        if len(self._starts) > _MOST_STARTS:
            del self._starts[next(iter(self._starts))]

    def _double(self, slot: int, task: int) -> None:
        """Two processes run the same task in the same slot: neither request can be followed."""
        self._count_start(slot, task, self._processes)
        self._lose(slot, task)
        self._events.append(Event(Change.LOST, UNKNOWN))
        self._not_followed[slot, task] = 2
        self._limit()

    def _limit(self) -> None:
        while len(self._not_followed) > _MOST_REQUESTS:
            del self._not_followed[next(iter(self._not_followed))]

    def _lose(self, slot: int, task: int) -> None:
        """Stop following the requests with this slot and task."""
        for process in self._holders(slot, task):
            self._events.append(Event(Change.LOST, process.number, slot=slot))
            del process.running[slot]
        if (given := self._unknown.pop((slot, task), None)) is not None:
            self._events.append(Event(Change.LOST, UNKNOWN, slot=given))
