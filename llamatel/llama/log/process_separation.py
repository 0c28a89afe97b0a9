"""Which server process wrote a line, in a stream where several may write.

Usually one process follows another (a restart). Several write at once in logs that were merged without a prefix, and in
Ollama's, whose models share one stream. Lines with timestamps belong to the process whose clock they continue. Lines
without timestamps, or with clocks that are too close, are matched by slot and task number: a line belongs to the one
request that runs this task in this slot. A line that fits several servers goes to ``UNKNOWN`` or is dropped.

Parses only what distinguishes processes; a ``LogReader`` per process reads the lines.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from llamatel.llama.log.log_line import LogLine

UNKNOWN = -1
"""The number of a server that is one of several, not known which."""
HELD = -3
"""The number of lines that are repeated as events once it is known which server wrote them."""
_LEFT_OUT = -2
_BACK_S = 0.25
"""A process's lines are in order, up to this: a runtime may merge standard output and error."""
_APART_S = 5.0
"""Processes that started closer together cannot be distinguished by the time at which their lines are read."""
_PROMPT_S = 1.0
"""Lines that are read as they are written are delayed by less."""
_SETTLED = 5
"""Lines read as they were written, this many times, before one that is early counts as another server's."""
_JUST_STARTED_S = 2.0
_MOST_PROCESSES = 16
_MOST_LOADING_LINES = 10_000
_MOST_DISPLACED = 256
MAX_SLOTS = 1000
"""Slot numbers have three digits at most; requests of ``UNKNOWN`` get further ones, so that none share a slot."""
_STARTS = re.compile(
    r"srv +(?:init|llama_server|main): initializing \.\.\.|build: \d|(?:srv +\w+: )?build_info: |main: build|"
    r"system info: n_threads"
)
_LISTENING = re.compile(r"listening on (?:https?://(\S{1,255}):(\d{1,5})\b|unix://(\S{1,4096}))|LISTENING")
_SLOTS = re.compile(r"n_slots = (\d{1,4})\b")
_BY_TASK = re.compile(r"(?:stop: cancel task, id_task|send_error: task id) = (\d{1,12})\b")
_TIMINGS = ("prompt eval time", "eval time", "total time", "draft accept")
_WILD = ("0.0.0.0", "::", "127.0.0.1", "localhost", "::1")  # noqa: S104 - recognised, not bound


class Change(Enum):
    """What happened to a process."""

    LINE = "this line, which was held back, is its next"
    REPLACED = "its process was replaced: its requests failed"
    FORGOTTEN = "another process may have replaced it: the outcome of its requests is unknown"
    LOST = "the request in this slot of it cannot be followed; without a slot, one of which nothing else was read"


class Event(NamedTuple):
    """What to do before the line itself is read."""

    change: Change
    process: int
    line: str = ""
    parts: LogLine | None = None
    now: float = 0.0
    slot: int = -1


@dataclass(slots=True)
class _Process:
    number: int
    clock: int = 0
    """Distinguishes its clock from those of earlier and later processes, which may be the same server's."""
    last: float = 0.0
    """Log time of its last line."""
    started_at: float | None = None
    """Unix time at the latest."""
    prompt: int = 0
    """Number of times that lines were read as they were written, by ``started_at``."""
    prompt_at: float = 0.0
    loading: list[Event] | None = None
    """Its lines, while it was seen to start and does not listen yet."""
    host: str | None = None
    port: int | None = None
    slots: int | None = None
    running: dict[int, int] = field(default_factory=dict)
    """Tasks by slot."""
    newest_task: int = -1
    idle_task: int = -1
    """No task up to this one can start any more: it was idle after it had started."""
    lines_at: int = 0
    """Number of its last line."""
    started_with: set[str] = field(default_factory=set)
    """Lines that a process writes once."""
    alive: bool = False
    """Whether it wrote after another process had written."""
    first_line_at: float = 0.0
    """Unix time of its first line."""

    def start(self, slot: int, task: int) -> None:
        if not self.running:
            self.idle_task = self.newest_task
        self.newest_task = max(self.newest_task, task)
        self.running[slot] = task

    def could_start(self, slot: int, task: int) -> bool:
        return (
            self.loading is None
            and slot not in self.running
            and task > (self.idle_task if self.running else self.newest_task)
            and (self.slots is None or slot < self.slots)
        )


class ProcessSeparation:
    """Assigns the lines of one stream to numbered processes. Not thread-safe."""

    def __init__(self, *, clocks_only: bool = False) -> None:
        """``clocks_only``: distinguish processes by their clocks only."""
        self._clocks_only = clocks_only
        self.running: Callable[[], tuple[dict[int, int], int]] | None = None
        """The tasks in flight by slot and the newest task, while there is one process and not all of its lines come
        through ``route``."""
        self.events: deque[Event] = deque()
        """Events of the previous line; to be processed before the line is read."""
        self.mixed = False
        """Whether several servers write at the same time."""
        self.undecided = 0
        """Lines that fit no process or several, and were left out."""
        self._first = self._current = _Process(0)
        self._processes = [self._first]
        self._numbers = 1
        self._clocks = 0
        self._lines = 0
        self._by_task = False
        """Whether clocks do not distinguish them."""
        self._unseen = False
        """Whether there is a process of which no start was seen."""
        self._displaced: dict[tuple[int, int], None] = {}
        """Requests whose slot was given to another before they finished."""
        self._unknown: dict[tuple[int, int], int] = {}
        """Requests of UNKNOWN by slot and task, and the slot that they are given."""
        self._doubled: dict[tuple[int, int], int] = {}
        """Requests of several servers with the same slot and task; ends that are still to come."""
        self._open: dict[tuple[int, int], int] = {}
        """Tasks, by process and slot, whose timings follow on lines of their own."""
        self._unsure: dict[tuple[int, int], int] = {}
        """The same, where such lines cannot be assigned."""
        self._untimed: dict[tuple[int, int], set[str]] = {}
        """Timings that have not come yet."""
        self._chosen: dict[int, Event] = {}
        """Lines about a free slot; the task that gets the slot shows which server wrote them."""

    @property
    def clock(self) -> int:
        """The clock of the last line with a timestamp."""
        return self._current.clock

    def note_alive(self, *clocks: int) -> None:
        """Record that these processes write at the same time."""
        for process in self._processes:
            process.alive = process.alive or process.clock in clocks

    def route(
        self, line: str, parts: LogLine, now: float, *, dated: bool = False, live: bool = True, clock: int | None = None
    ) -> tuple[int | None, LogLine]:
        """The process that wrote a line (None if unknown), and the line as its reader is to get it.

        ``now``: latest Unix time at which it was written, from a wrapper if ``dated``, else the time of reading (right
        after writing if ``live``). ``clock``: whose timestamp it is, where that is known.
        """
        self._lines += 1
        process = self._current
        if len(self._processes) > 1 or self._by_task:
            return self._among(line, parts, now, dated=dated, live=live, clock=clock)
        if parts.child is not None:
            return process.number, parts
        if parts.time is not None:
            fits = clock in (None, process.clock)
            if live and fits:
                fits = self._in_time(process, parts.time, now)
            if not fits or parts.time < process.last - _BACK_S or self._starts_again(process, parts):
                return self._among(line, parts, now, dated=dated, live=live, clock=clock)
        if parts.slot is None:
            return self._server_line(process, line, parts, now)
        process.last = max(process.last, parts.time or 0.0)
        if parts.task is not None and parts.task >= 0:
            self._watch(process, parts.slot, parts.task, parts.slot_message)
            if self._by_task:
                return self._of_task(line, parts, now)
            if self._untimed or len(parts.slot_message) < 2:
                self._open.clear()
                return self._with_timings(process.number, parts.slot, parts)
        return process.number, parts

    def _server_line(self, process: _Process, line: str, parts: LogLine, now: float) -> tuple[int | None, LogLine]:
        """A line of the only process that is not about a slot."""
        if parts.time is None and self._has_worked(process) and _STARTS.match(parts.text):
            self._add_process(now, None)
            return self._hold(self._current, line, parts, now)
        if self._loads_twice(process, parts.text):
            if parts.time is None or parts.time - process.last < _APART_S:
                self._mix(unseen=True)
                return self._leave_out(parts)
            process = self._add_concurrent(parts.time, now)
        process.last = max(process.last, parts.time or 0.0)
        self._learn(process, parts.text)
        if self._open and parts.text.lstrip().startswith(_TIMINGS):
            return self._timing(parts)
        return process.number, parts

    def _starts_again(self, process: _Process, parts: LogLine) -> bool:
        """Whether a line with a timestamp is the first of a process that replaces a short-lived one."""
        return (
            parts.time is not None
            and parts.time < process.last
            and parts.slot is None
            and self._has_worked(process)
            and _STARTS.match(parts.text) is not None
        )

    def _has_worked(self, process: _Process) -> bool:
        return self._clocks_only or (process.newest_task if self.running is None else self.running()[1]) >= 0

    # -- one process --------------------------------------------------------------------------------------------------

    def _watch(self, process: _Process, slot: int, task: int, message: str) -> None:
        """Record what its slots do, and detect what one process cannot do."""
        if self._clocks_only:
            return
        if message.startswith("processing task"):
            running = process.running.get(slot)
            if running == task or task <= (process.idle_task if process.running else process.newest_task):
                self._mix(unseen=True)
                return
            if running is not None:
                self._displaced[slot, running] = None
                if len(self._displaced) > _MOST_DISPLACED:
                    del self._displaced[next(iter(self._displaced))]
            process.start(slot, task)
        elif process.running.get(slot) == task:
            if message.startswith("stop processing"):
                del process.running[slot]
        elif (slot, task) in self._displaced or any(each.running.get(slot) == task for each in self._processes):
            self._mix(unseen=True)  # their clocks are too close

    def _loads_twice(self, process: _Process, text: str) -> bool:
        """Whether another process loads at the same time, with lines that do not distinguish the two."""
        found = _STARTS.match(text) or ("listening on " in text and _LISTENING.search(text)) or None
        if found is None or self._clocks_only:
            return False
        again = found.group() in process.started_with
        process.started_with.add(found.group())
        listens = found.re is _LISTENING and process.port is not None and f":{process.port}" not in found.group()
        return again or listens

    def _learn(self, process: _Process, text: str) -> None:
        if "n_slots = " in text and (found := _SLOTS.search(text)):
            process.slots = int(found.group(1))
        if "listening on " in text and (found := _LISTENING.search(text)):
            process.host = found.group(3) or (found.group(1) or "").strip("[]") or None
            process.port = int(found.group(2)) if found.group(2) else None

    def _in_time(self, process: _Process, time: float, now: float) -> bool:
        """Whether a timestamp read at ``now`` can be this process's, whose lines were read as they were written."""
        started_at = now - time
        if process.started_at is None:
            process.started_at = started_at
        early = process.started_at - started_at
        if early > _PROMPT_S:
            # Early. Its clock cannot jump; but ours may have been set, or its lines were delayed until now.
            if process.prompt >= _SETTLED and early > _APART_S and time - process.last > _APART_S:
                return False
            process.prompt = 0
        elif early > -_PROMPT_S and now != process.prompt_at:
            process.prompt += 1
            process.prompt_at = now
        process.started_at = min(started_at, process.started_at)
        return True

    # -- several ------------------------------------------------------------------------------------------------------

    def _among(
        self, line: str, parts: LogLine, now: float, *, dated: bool, live: bool, clock: int | None
    ) -> tuple[int | None, LogLine]:
        if parts.child is not None:
            return self._first.number, parts
        if parts.time is None or self._by_task:
            if parts.slot is not None and parts.task is not None:
                return self._of_task(line, parts, now)
            return self._without_slot(line, parts, now)
        process = (
            self._by_clock(parts.time, now, dated=dated, live=live)
            if clock is None
            else self._of_clock(clock, parts.time, now)
        )
        if process is not None and clock is None and self._starts_again(process, parts):
            self._add_process(now, now - parts.time if live else None)
            process = self._current
        if process is None:
            self._mix(unseen=True)
            return self._among(line, parts, now, dated=dated, live=live, clock=clock)
        self._current = process
        if process.loading is not None:
            return self._hold(process, line, parts, now)
        process.last = max(process.last, parts.time)
        process.lines_at = self._lines
        if parts.slot is None:
            self._learn(process, parts.text)
        elif parts.task is not None and parts.task >= 0:
            self._watch(process, parts.slot, parts.task, parts.slot_message)
            if self._by_task:
                return self._of_task(line, parts, now)
            return self._with_timings(process.number, parts.slot, parts)
        return process.number, parts

    def _by_clock(self, time: float, now: float, *, dated: bool, live: bool) -> _Process | None:
        """The process whose clock a timestamp continues, a new one, or None if that is ambiguous."""
        started_at = now - time
        candidates = [each for each in self._processes if each.last - _BACK_S <= time]
        if live:
            late = _APART_S if dated else float("inf")
            candidates = [
                each
                for each in candidates
                if each.started_at is None or -_APART_S <= started_at - each.started_at <= late
            ]
        if candidates:
            # The nearest clock: any other process would have been silent for longer.
            if live:
                found = max(candidates, key=lambda each: each.started_at or 0.0)
                found.started_at = min(started_at, found.started_at or started_at)
                return found
            found = max(
                [each for each in candidates if each.alive or each is self._current] or candidates,
                key=lambda each: each.last,
            )
            if found is not self._current:
                found.alive = self._current.alive = True
            return found
        close = live and any(
            each.started_at is not None and abs(started_at - each.started_at) < _APART_S for each in self._processes
        )
        if close:
            return None
        self._add_process(now, started_at if live else None)
        if time > _JUST_STARTED_S:
            self.mixed = True
            self._current.loading = None
            self._number(self._current)
        return self._current

    def _of_clock(self, clock: int, time: float, now: float) -> _Process:
        found = next((each for each in self._processes if each.clock == clock), None)
        if found is None:
            self._add_process(now, None)
            found = self._current
            found.clock = clock
            if time > _JUST_STARTED_S:
                self.mixed, found.loading = True, None
                self._number(found)
        return found

    @property
    def alone(self) -> bool:
        """Whether only one process is known."""
        return len(self._processes) == 1 and not self._by_task

    @property
    def last(self) -> float:
        """The last timestamp of the only process."""
        return self._first.last

    def latest(self, now: float) -> float:
        """The latest timestamp that the only process can have in lines read right after they were written."""
        if self._first.started_at is None or self._first.prompt < _SETTLED:
            return float("inf")
        return max(now - self._first.started_at, self._first.last) + _APART_S

    def note(self, time: float, now: float) -> None:
        """Record that lines of the only process were read at ``now``, up to this timestamp (0: without timestamps)."""
        if time:
            self._in_time(self._first, time, now)
            self._first.last = max(self._first.last, time)

    def another(self) -> None:
        """The next line is another process's: several servers write, and nothing distinguishes them."""
        self._mix(unseen=True)

    def _count_running(self) -> None:
        """Copy the state of the only process before another one is added."""
        if self.running is not None and len(self._processes) == 1:
            self._first.running, self._first.newest_task = self.running()
            self.running = None

    def _add_concurrent(self, time: float, now: float) -> _Process:
        """Add a process that writes at the same time, with a clock of its own."""
        self._add_process(now, now - time)
        self.mixed, self._current.loading = True, None
        self._number(self._current)
        return self._current

    def _add_process(self, now: float, started_at: float | None) -> None:
        """Add a process that starts to write."""
        self._count_running()
        self._clocks += 1
        process = _Process(UNKNOWN - 1, self._clocks, started_at=started_at, first_line_at=now)
        if not self._clocks_only:
            process.loading = []
        process.lines_at = self._lines
        if len(self._processes) >= _MOST_PROCESSES:
            oldest = min(self._processes[1:], key=lambda each: each.lines_at)
            self._processes.remove(oldest)
            self.events.append(Event(Change.FORGOTTEN, oldest.number))
        self._processes.append(process)
        self._current = process

    def _hold(self, process: _Process, line: str, parts: LogLine, now: float) -> tuple[int | None, LogLine]:
        """Hold a line of a loading process until it is known which server it is."""
        held = process.loading
        if held is None:
            return process.number, parts
        if parts.time is not None:
            process.last = max(process.last, parts.time)
        self._learn(process, parts.text)
        if parts.slot is None and "listening on " not in parts.text and len(held) < _MOST_LOADING_LINES:
            held.append(Event(Change.LINE, UNKNOWN, line, parts, now))
            return HELD, parts
        self._settle(process)
        if parts.slot is not None and parts.task is not None and parts.task >= 0:
            self._watch(process, parts.slot, parts.task, parts.slot_message)
        return process.number, parts

    def _settle(self, process: _Process) -> None:
        """Assign a loaded process to its server: the one at its address, a silent one, or a new one."""
        held, process.loading = process.loading or [], None
        start_line = process.lines_at
        others = [each for each in self._processes if each is not process and each.loading is None]
        same = [each for each in others if _same_address(each, process)]
        silent = [each for each in others if (each.port is None or process.port is None) and each.lines_at < start_line]
        before = same or (silent if len(others) == 1 else [])
        if before:
            change = Change.REPLACED if same else Change.FORGOTTEN
            self.events.append(Event(change, before[0].number, now=process.first_line_at))
            process.number = before[0].number
            self._processes.remove(before[0])
            if self._first is before[0]:
                self._first = process
        else:
            self._number(process)
            self.mixed = self.mixed or any(each.running for each in others)
        self.events.extend(event._replace(process=process.number) for event in held)
        process.lines_at = self._lines

    def _number(self, process: _Process) -> None:
        process.number = self._numbers
        self._numbers += 1

    def _mix(self, *, unseen: bool) -> None:
        """Stop using clocks, which do not distinguish the processes: requests in flight cannot be followed."""
        self._count_running()
        self.mixed = self._by_task = True
        self._unseen = self._unseen or unseen
        for process in self._processes:
            for slot, task in process.running.items():
                self.events.append(Event(Change.LOST, process.number, slot=slot))
                self._doubled[slot, task] = 1
            process.running.clear()

    # -- by slot and task ---------------------------------------------------------------------------------------------

    def _of_task(self, line: str, parts: LogLine, now: float) -> tuple[int | None, LogLine]:
        slot, task = parts.slot, parts.task
        if slot is None or task is None or task < 0:
            if slot is not None:
                self._chosen[slot] = Event(Change.LINE, UNKNOWN, line, parts, now)
            return self._leave_out(parts)
        key = (slot, task)
        holders = [each for each in self._processes if each.running.get(slot) == task]
        starts, ends = (
            parts.slot_message.startswith("processing task"),
            parts.slot_message.startswith("stop processing"),
        )
        if key in self._doubled:
            if starts:
                self.events.append(Event(Change.LOST, UNKNOWN))
            self._doubled[key] += starts - ends
            if self._doubled[key] <= 0:
                del self._doubled[key]
            return self._leave_out(parts)
        if starts:
            return self._start(holders, key, parts)
        if key in self._unknown:
            given = self._unknown.pop(key) if ends else self._unknown[key]
            return self._with_timings(UNKNOWN, given, parts._replace(slot=given, time=None))
        if not holders:
            return self._leave_out(parts)
        if ends:
            del holders[0].running[slot]
        holders[0].lines_at = self._lines
        return self._with_timings(holders[0].number, slot, parts)

    def _start(self, holders: list[_Process], key: tuple[int, int], parts: LogLine) -> tuple[int | None, LogLine]:
        slot, task = key
        if holders or key in self._unknown:
            # Two servers run the same task in the same slot: neither can be followed.
            for holder in holders:
                self.events.append(Event(Change.LOST, holder.number, slot=slot))
                del holder.running[slot]
            if key in self._unknown:
                self.events.append(Event(Change.LOST, UNKNOWN, slot=self._unknown.pop(key)))
            self._doubled[key] = 2
            self.events.append(Event(Change.LOST, UNKNOWN))
            if len(self._doubled) > _MOST_DISPLACED:
                del self._doubled[next(iter(self._doubled))]
            return self._leave_out(parts)
        fitting = [] if self._unseen else [each for each in self._processes if each.could_start(slot, task)]
        chosen = self._chosen.pop(slot, None)
        if len(fitting) == 1 and len(self._processes) > 1:
            [process] = fitting
            process.start(slot, task)
            process.lines_at = self._lines
            if chosen is not None:
                self.events.append(chosen._replace(process=process.number))
            return process.number, parts
        taken = set(self._unknown.values())
        given = next(number for number in range(slot, 1 << 30, MAX_SLOTS) if number not in taken)
        self._unknown[key] = given
        if len(self._unknown) > _MOST_DISPLACED:
            oldest = next(iter(self._unknown))
            self.events.append(Event(Change.LOST, UNKNOWN, slot=self._unknown.pop(oldest)))
        return UNKNOWN, parts._replace(slot=given, time=None)

    def _with_timings(self, number: int, slot: int, parts: LogLine) -> tuple[int | None, LogLine]:
        """Record whether timings follow; a request whose timings could not be assigned is lost."""
        place = (number, slot)
        if not parts.slot_message.strip() and parts.task is not None:
            if len(self._unsure) > _MOST_PROCESSES:
                self._unsure.clear()  # lines are missing
            self._open[place] = parts.task
            self._untimed[place] = {"prompt", "eval"}
        elif place in self._untimed:
            self._open.pop(place, None)
            if parts.slot_message.startswith("stop processing") and self._untimed.pop(place):
                self.events.append(Event(Change.LOST, number, slot=slot))
                return self._leave_out(parts)
        return number, parts

    def _without_slot(self, line: str, parts: LogLine, now: float) -> tuple[int | None, LogLine]:
        """A line that is not about a slot: the only loading process's, or that of the request it names."""
        text = parts.text
        if text.lstrip().startswith(_TIMINGS):
            return self._timing(parts)
        if (found := _BY_TASK.search(text)) is not None:
            return self._by_number(int(found.group(1)), parts)
        loading = [each for each in self._processes if each.loading is not None]
        if parts.time is None and _STARTS.match(text):
            already = loading and any(
                held.parts is not None and held.parts.text == text for held in loading[-1].loading or ()
            )
            if not loading or already:
                self._add_process(now, None)
                return self._hold(self._current, line, parts, now)
        if len(loading) == 1:
            return self._hold(loading[0], line, parts, now)
        if len(loading) > 1 and "listening on " in text:
            # They started together: it is unknown which of them is this one.
            for each in loading:
                self._processes.remove(each)
            self._mix(unseen=True)
        return self._leave_out(parts)

    def _timing(self, parts: LogLine) -> tuple[int | None, LogLine]:
        """A timing after its heading, rewritten as a line about the heading's slot."""
        if len(self._open) != 1 or self._unsure:
            # It belongs to one of several requests: drop it, and all of their timings.
            self._unsure.update(self._open)
            for place in self._open:
                self._untimed.setdefault(place, {"prompt", "eval"})
            self._open.clear()
            if parts.text.lstrip().startswith("total time") and self._unsure:
                self._unsure.popitem()
            return self._leave_out(parts)
        [(place, task)] = self._open.items()
        text = parts.text.lstrip()
        if place[0] == _LEFT_OUT:
            return self._leave_out(parts)
        self._untimed.get(place, set()).discard(text.partition(" ")[0])
        if text.startswith("total time"):
            self._open.clear()
        heading = f"slot print_timing: id {place[1]:2d} | task {task} | {text}"
        return place[0], parts._replace(text=heading, slot=place[1], task=task, slot_message=text)

    def _by_number(self, task: int, parts: LogLine) -> tuple[int | None, LogLine]:
        """A line that names only a task: a cancellation, an error."""
        holders = [each for each in self._processes if task in each.running.values()]
        unknown = [key for key in self._unknown if key[1] == task]
        if len(holders) + len(unknown) == 1:
            return (holders[0].number, parts) if holders else (UNKNOWN, parts._replace(time=None))
        for process in holders:
            for slot in [slot for slot, running in process.running.items() if running == task]:
                del process.running[slot]
                self.events.append(Event(Change.LOST, process.number, slot=slot))
        for key in unknown:
            self.events.append(Event(Change.LOST, UNKNOWN, slot=self._unknown.pop(key)))
        return self._leave_out(parts)

    def _leave_out(self, parts: LogLine) -> tuple[None, LogLine]:
        self.undecided += 1
        if parts.slot is not None and parts.task is not None and parts.task >= 0 and not parts.slot_message.strip():
            self._open[_LEFT_OUT, parts.slot] = parts.task  # its timings are not another request's
        return None, parts


def _same_address(one: _Process, other: _Process) -> bool:
    if one.port is None and one.host is None:
        return False
    return one.port == other.port and (one.host == other.host or (one.host in _WILD and other.host in _WILD))
