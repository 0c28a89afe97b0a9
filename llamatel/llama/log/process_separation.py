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
from time import monotonic

from llamatel.llama.log.heading_timings import HeadingTimings
from llamatel.llama.log.log_line import LogLine
from llamatel.llama.log.log_process import APART_S, LISTENING, SETTLED, UNKNOWN, Change, Event, LogProcess
from llamatel.llama.log.task_owners import TaskOwners

HELD = -3
"""Returned for a line that follows as an event once it is known which server wrote it."""
_BACK_S = 0.25
"""A process's timestamps may decrease by so much: a runtime may merge standard output and error."""
_JUST_STARTED_S = 2.0
_MOST_PROCESSES = 16
_MOST_LOADING_LINES = 10_000
_MOST_DISPLACED = 256
_STARTS = re.compile(
    r"srv +(?:init|llama_server|main): initializing \.\.\.|build: \d|(?:srv +\w+: )?build_info: |main: build|"
    r"system info: n_threads"
)
_BY_TASK = re.compile(r"(?:stop: cancel task, id_task|send_error: task id) = (\d{1,12})\b")


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
        self.ambiguous = False
        """Whether a timestamp fitted the clocks of two processes, one of them only as a line out of order."""
        self._first = self._current = LogProcess(0)
        self._processes = [self._first]
        self._numbers = 1
        self._clocks = 0
        self._lines = 0
        self._by_task = False
        """Whether clocks do not distinguish them."""
        self._stepped_at: float | None = None
        """When our clock was set (monotonic), for a moment: lines of before and after it are mixed."""
        self._displaced: dict[tuple[int, int], None] = {}
        """Requests whose slot was given to another before they finished."""
        self._timings = HeadingTimings(self.events)
        self._tasks = TaskOwners(self._processes, self.events, complete=True)

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
            return self._one_of_several(line, parts, now, dated=dated, live=live, clock=clock)
        if parts.child is not None:
            return process.number, parts
        if self._stepped_at is not None and self._is_settling(process) and not self._starts_again(process, parts):
            process.last = parts.time or process.last
        elif parts.time is not None:
            fits = clock in (None, process.clock)
            if live and fits:
                fits = process.in_time(parts.time, now)
            if not fits or parts.time < process.last - _BACK_S or self._starts_again(process, parts):
                return self._one_of_several(line, parts, now, dated=dated, live=live, clock=clock)
        if parts.slot is None:
            return self._server_line(process, line, parts, now)
        process.last = max(process.last, parts.time or 0.0)
        if parts.task is not None and parts.task >= 0:
            self._watch(process, parts.slot, parts.task, parts.slot_message)
            if self._needs_task(parts.slot, parts.task):
                return self._by_slot(line, parts, now)
            if self._timings.due or len(parts.slot_message) < 2:
                self._timings.close()
                return self._counted(*self._timings.slot_line(process.number, parts.slot, parts))
        return process.number, parts

    def clock_stepped(self) -> None:
        """The wall clock was set, which timestamps follow: for a moment those of the only process prove nothing."""
        self._stepped_at = monotonic()

    def _is_settling(self, process: LogProcess) -> bool:
        """Whether the clock was set a moment ago; afterwards the process's clock is found again."""
        if self._stepped_at is not None and monotonic() - self._stepped_at < APART_S:
            return True
        self._stepped_at, process.started_at, process.on_time = None, None, 0
        return False

    def _server_line(self, process: LogProcess, line: str, parts: LogLine, now: float) -> tuple[int | None, LogLine]:
        """A line of the only process that is not about a slot."""
        if parts.time is None and self._has_worked(process) and _STARTS.match(parts.text):
            self._add_process(now, None)
            return self._hold(self._current, line, parts, now)
        if self._loads_twice(process, parts.text):
            if parts.time is None or parts.time - process.last < APART_S:
                self._stop_using_clocks()
                return self._leave_out(parts)
            process = self._add_concurrent(parts.time, now)
        process.last = max(process.last, parts.time or 0.0)
        process.learn(parts.text)
        if self._timings.open and self._timings.is_timing(parts.text):
            return self._counted(*self._timings.timing(parts))
        return process.number, parts

    def _starts_again(self, process: LogProcess, parts: LogLine) -> bool:
        """Whether a line with a timestamp is the first of a process that replaces a short-lived one."""
        return (
            parts.time is not None
            and parts.time < process.last
            and parts.slot is None
            and self._has_worked(process)
            and _STARTS.match(parts.text) is not None
        )

    def _has_worked(self, process: LogProcess) -> bool:
        return self._clocks_only or (process.newest_task if self.running is None else self.running()[1]) >= 0

    # -- one process --------------------------------------------------------------------------------------------------

    def _watch(self, process: LogProcess, slot: int, task: int, message: str) -> None:
        """Record what its slots do, and detect what one process cannot do."""
        if self._clocks_only or self._tasks.is_lost(slot, task):
            return
        if message.startswith("processing task"):
            running = process.running.get(slot)
            if running == task or task <= (process.idle_task if process.running else process.newest_task):
                self._stop_using_clocks()
                return
            if any(
                each.running.get(slot) == task and abs(each.last - process.last) < APART_S for each in self._processes
            ):
                self._stop_using_clocks()  # another process runs the same, and their clocks are close
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
            self._stop_using_clocks()  # their clocks are too close

    def _loads_twice(self, process: LogProcess, text: str) -> bool:
        """Whether another process loads at the same time, with lines that do not distinguish the two."""
        found = _STARTS.match(text) or ("listening on " in text and LISTENING.search(text)) or None
        if found is None or self._clocks_only:
            return False
        again = found.group() in process.started_with
        process.started_with.add(found.group())
        listens = found.re is LISTENING and process.port is not None and f":{process.port}" not in found.group()
        return again or listens

    # -- several ------------------------------------------------------------------------------------------------------

    def _one_of_several(
        self, line: str, parts: LogLine, now: float, *, dated: bool, live: bool, clock: int | None
    ) -> tuple[int | None, LogLine]:
        if parts.child is not None:
            return self._first.number, parts
        if parts.time is None or self._by_task:
            if parts.slot is not None and parts.task is not None:
                return self._by_slot(line, parts, now)
            return self._without_slot(line, parts, now)
        process = (
            self._by_clock(parts.time, now, dated=dated, live=live)
            if clock is None
            else self._by_known_clock(clock, parts.time, now)
        )
        if process is not None and clock is None and self._starts_again(process, parts):
            self._add_process(now, now - parts.time if live else None)
            process = self._current
        if process is None:
            self._stop_using_clocks()
            return self._one_of_several(line, parts, now, dated=dated, live=live, clock=clock)
        self._current = process
        if process.loading is not None:
            return self._hold(process, line, parts, now)
        process.last = max(process.last, parts.time)
        process.lines_at = self._lines
        if parts.slot is None:
            process.learn(parts.text)
        elif parts.task is not None and parts.task >= 0:
            self._watch(process, parts.slot, parts.task, parts.slot_message)
            if self._needs_task(parts.slot, parts.task):
                return self._by_slot(line, parts, now)
            return self._counted(*self._timings.slot_line(process.number, parts.slot, parts))
        return process.number, parts

    def _by_clock(self, time: float, now: float, *, dated: bool, live: bool) -> LogProcess | None:
        """The process whose clock a timestamp continues, a new one, or None if that is ambiguous."""
        started_at = now - time
        candidates = [each for each in self._processes if each.last - _BACK_S <= time]
        if live:
            late = APART_S if dated else float("inf")
            candidates = [
                each
                for each in candidates
                if each.started_at is None or -APART_S <= started_at - each.started_at <= late
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
            if time < found.last and any(each.last <= time < each.last + APART_S for each in candidates):
                self.ambiguous = True
            if found is not self._current:
                found.alive = self._current.alive = True
            return found
        close = live and any(
            each.started_at is not None and abs(started_at - each.started_at) < APART_S for each in self._processes
        )
        if close:
            return None
        self._add_process(now, started_at if live else None)
        if time > _JUST_STARTED_S:
            self.mixed = True
            self._current.loading = None
            self._number(self._current)
        return self._current

    def _by_known_clock(self, clock: int, time: float, now: float) -> LogProcess:
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
        return len(self._processes) == 1 and not self._by_task and not self._tasks.any_lost

    @property
    def last(self) -> float:
        """The last timestamp of the only process."""
        return self._first.last

    def latest(self, now: float) -> float:
        """The latest timestamp that the only process can have in lines read right after they were written."""
        if self._first.started_at is None or self._first.on_time < SETTLED:
            return float("inf")
        return max(now - self._first.started_at, self._first.last) + APART_S

    def note(self, time: float, now: float) -> None:
        """Record that lines of the only process were read at ``now``, up to this timestamp (0: without timestamps)."""
        if time:
            self._first.in_time(time, now)
            self._first.last = max(self._first.last, time)

    def another(self) -> None:
        """The next line is another process's: several servers write, and nothing distinguishes them."""
        self._stop_using_clocks()

    def _count_running(self) -> None:
        """Copy the state of the only process before another one is added."""
        if self.running is not None and len(self._processes) == 1:
            self._first.running, self._first.newest_task = self.running()
            self.running = None

    def _add_concurrent(self, time: float, now: float) -> LogProcess:
        """Add a process that writes at the same time, with its own clock."""
        self._add_process(now, now - time)
        self.mixed, self._current.loading = True, None
        self._number(self._current)
        return self._current

    def _add_process(self, now: float, started_at: float | None) -> None:
        """Add a process that starts to write."""
        self._count_running()
        self._clocks += 1
        process = LogProcess(UNKNOWN - 1, self._clocks, started_at=started_at, first_line_at=now)
        if not self._clocks_only:
            process.loading = []
        process.lines_at = self._lines
        if len(self._processes) >= _MOST_PROCESSES:
            oldest = min(self._processes[1:], key=lambda each: each.lines_at)
            self._processes.remove(oldest)
            self._tasks.forget(oldest)
            self.events.append(Event(Change.FORGOTTEN, oldest.number))
        self._processes.append(process)
        self._current = process

    def _hold(self, process: LogProcess, line: str, parts: LogLine, now: float) -> tuple[int | None, LogLine]:
        """Hold a line of a loading process until it is known which server it is."""
        held = process.loading
        if held is None:
            return process.number, parts
        if parts.time is not None:
            process.last = max(process.last, parts.time)
        process.learn(parts.text)
        if parts.slot is None and "listening on " not in parts.text and len(held) < _MOST_LOADING_LINES:
            held.append(Event(Change.LINE, UNKNOWN, line, parts, now))
            return HELD, parts
        self._settle(process)
        if parts.slot is not None and parts.task is not None and parts.task >= 0:
            self._watch(process, parts.slot, parts.task, parts.slot_message)
        return process.number, parts

    def _settle(self, process: LogProcess) -> None:
        """Assign a loaded process to its server: the one at its address, a silent one, or a new one."""
        held, process.loading = process.loading or [], None
        start_line = process.lines_at
        others = [each for each in self._processes if each is not process and each.loading is None]
        same = [each for each in others if each.has_address_of(process)]
        silent = [each for each in others if (each.port is None or process.port is None) and each.lines_at < start_line]
        before = same or (silent if held and len(others) == 1 else [])  # without a start it replaces none
        if before:
            change = Change.REPLACED if same else Change.FORGOTTEN
            self.events.append(Event(change, before[0].number, now=process.first_line_at))
            process.number = before[0].number
            self._processes.remove(before[0])
            if not same:
                self._tasks.forget(before[0])
            if self._first is before[0]:
                self._first = process
        else:
            self._number(process)
            self.mixed = self.mixed or any(each.running for each in others)
        self.events.extend(event._replace(process=process.number) for event in held)
        process.lines_at = self._lines

    def _number(self, process: LogProcess) -> None:
        process.number = self._numbers
        self._numbers += 1

    def _stop_using_clocks(self) -> None:
        """Clocks do not distinguish the processes: requests in flight cannot be followed."""
        self._count_running()
        self.mixed = self._by_task = True
        self._tasks.complete = False
        self._tasks.lose_running()

    # -- by slot and task ---------------------------------------------------------------------------------------------

    def _needs_task(self, slot: int, task: int) -> bool:
        """Whether clocks do not show whose a line with this slot and task is."""
        return self._by_task or self._tasks.is_lost(slot, task)

    def _by_slot(self, line: str, parts: LogLine, now: float) -> tuple[int | None, LogLine]:
        """A line about a slot: that of the request that it belongs to."""
        number, parts = self._tasks.slot_line(line, parts, now)
        if number is None or parts.slot is None:
            return self._leave_out(parts)
        for process in self._processes:
            if process.number == number:
                process.lines_at = self._lines
        return self._counted(*self._timings.slot_line(number, parts.slot, parts))

    def _without_slot(self, line: str, parts: LogLine, now: float) -> tuple[int | None, LogLine]:
        """A line that is not about a slot: the only loading process's, or that of the request it names."""
        text = parts.text
        if self._timings.is_timing(text):
            return self._counted(*self._timings.timing(parts))
        if (found := _BY_TASK.search(text)) is not None:
            return self._counted(*self._tasks.task_line(int(found.group(1)), parts))
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
            self._stop_using_clocks()
        return self._leave_out(parts)

    def _counted(self, number: int | None, parts: LogLine) -> tuple[int | None, LogLine]:
        return self._leave_out(parts) if number is None else (number, parts)

    def _leave_out(self, parts: LogLine) -> tuple[None, LogLine]:
        self._timings.left_out(parts)
        return None, parts
