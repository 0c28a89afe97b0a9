"""Which of several processes a line of a request belongs to, by slot and task, where clocks do not distinguish them."""

from __future__ import annotations

from collections.abc import MutableSequence, Sequence

from llamatel.llama.log.heading_timings import HeadingTimings
from llamatel.llama.log.log_line import LogLine
from llamatel.llama.log.log_process import UNKNOWN, Change, Event, LogProcess, spare_slot

_MOST_REQUESTS = 256


class TaskOwners:
    """Assigns slots' lines to processes; None where that is not certain. ``events`` gets the requests that are lost."""

    def __init__(
        self, processes: Sequence[LogProcess], timings: HeadingTimings, events: MutableSequence[Event]
    ) -> None:
        """``processes``: those that write; the caller adds and removes them."""
        self._processes = processes
        self._timings = timings
        self._events = events
        self.unseen_process = False
        """Whether there is a process of which no start was seen."""
        self._unknown: dict[tuple[int, int], int] = {}
        """Requests of UNKNOWN by slot and task, and the slot that they are given."""
        self._doubled: dict[tuple[int, int], int] = {}
        """Requests of several servers with the same slot and task; ends that are still to come."""
        self._chosen: dict[int, Event] = {}
        """Lines about a free slot; the task that gets the slot shows which server wrote them."""

    def lose_running(self) -> None:
        """Requests in flight cannot be followed any more."""
        for process in self._processes:
            for slot, task in process.running.items():
                self._events.append(Event(Change.LOST, process.number, slot=slot))
                self._doubled[slot, task] = 1
            process.running.clear()

    def slot_line(self, line: str, parts: LogLine, now: float, line_number: int) -> tuple[int | None, LogLine]:
        """The process of a line about a slot, None if unknown, and the line as its reader is to get it."""
        slot, task = parts.slot, parts.task
        if slot is None or task is None or task < 0:
            if slot is not None:
                self._chosen[slot] = Event(Change.LINE, UNKNOWN, line, parts, now)
            return None, parts
        key = (slot, task)
        holders = [each for each in self._processes if each.running.get(slot) == task]
        starts, ends = (
            parts.slot_message.startswith("processing task"),
            parts.slot_message.startswith("stop processing"),
        )
        if key in self._doubled:
            if starts:
                self._events.append(Event(Change.LOST, UNKNOWN))
            self._doubled[key] += starts - ends
            if self._doubled[key] <= 0:
                del self._doubled[key]
            return None, parts
        if starts:
            return self._start(holders, key, parts, line_number)
        if key in self._unknown:
            given = self._unknown.pop(key) if ends else self._unknown[key]
            return self._timings.slot_line(UNKNOWN, given, parts._replace(slot=given, time=None))
        if not holders:
            return None, parts
        if ends:
            del holders[0].running[slot]
        holders[0].lines_at = line_number
        return self._timings.slot_line(holders[0].number, slot, parts)

    def _start(
        self, holders: list[LogProcess], key: tuple[int, int], parts: LogLine, line_number: int
    ) -> tuple[int | None, LogLine]:
        slot, task = key
        if holders or key in self._unknown:
            # Two servers run the same task in the same slot: neither can be followed.
            for holder in holders:
                self._events.append(Event(Change.LOST, holder.number, slot=slot))
                del holder.running[slot]
            if key in self._unknown:
                self._events.append(Event(Change.LOST, UNKNOWN, slot=self._unknown.pop(key)))
            self._doubled[key] = 2
            self._events.append(Event(Change.LOST, UNKNOWN))
            if len(self._doubled) > _MOST_REQUESTS:
                del self._doubled[next(iter(self._doubled))]
            return None, parts
        fitting = [] if self.unseen_process else [each for each in self._processes if each.could_start(slot, task)]
        chosen = self._chosen.pop(slot, None)
        if len(fitting) == 1 and len(self._processes) > 1:
            [process] = fitting
            process.start(slot, task)
            process.lines_at = line_number
            if chosen is not None:
                self._events.append(chosen._replace(process=process.number))
            return process.number, parts
        given = spare_slot(slot, set(self._unknown.values()))
        self._unknown[key] = given
        if len(self._unknown) > _MOST_REQUESTS:
            oldest = next(iter(self._unknown))
            self._events.append(Event(Change.LOST, UNKNOWN, slot=self._unknown.pop(oldest)))
        return UNKNOWN, parts._replace(slot=given, time=None)

    def by_number(self, task: int, parts: LogLine) -> tuple[int | None, LogLine]:
        """A line that names only a task: a cancellation, an error."""
        holders = [each for each in self._processes if task in each.running.values()]
        unknown = [key for key in self._unknown if key[1] == task]
        if len(holders) + len(unknown) == 1:
            return (holders[0].number, parts) if holders else (UNKNOWN, parts._replace(time=None))
        for process in holders:
            for slot in [slot for slot, running in process.running.items() if running == task]:
                del process.running[slot]
                self._events.append(Event(Change.LOST, process.number, slot=slot))
        for key in unknown:
            self._events.append(Event(Change.LOST, UNKNOWN, slot=self._unknown.pop(key)))
        return None, parts
