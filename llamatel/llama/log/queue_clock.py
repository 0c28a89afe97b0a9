"""Estimates how long a request waited for its slot, from llama.cpp's task numbers.

The log records when a task got its slot, not when it arrived. Arrival follows from task numbers: one counter numbers
tasks as they arrive, and also each iteration (turn) of the server's loop (``SERVER_TASK_TYPE_NEXT_RESPONSE``, posted in
``update_slots``, tools/server/server-context.cpp), each cancellation and each poll of /metrics or /slots. Numbers below
a task's own that belong to none of the others are turns: their count is the turn in which the task arrived. The time of
a turn follows from finished requests: a prompt is one turn per batch, a decode of n tokens is n - 1 turns, evenly
spread over its time. A wait is computed when the task finishes, when more turns before it are known.

A task arrives at some moment of its turn. The estimate is the last such moment, so a wait tends to be too short, by
half a turn on average (half a token's time; half a batch's while prompts are processed): a time to first token must not
be above the client's. Single waits may still be too long, as turns are not equally long. The error is larger where
turns or numbers are ambiguous: several long prompts in one batch, requests with several choices that preempt each
other, other pollers; the counts of other slots and requests that found a free slot correct that again. Turns of a
cancelled request are guessed if no other slot counted them; a wait that depends much on such guesses is None, as are
all waits before the first request that found a free slot, in a log read from its middle. Checked against llama.cpp's
own times and clients' clocks in ``tests/test_queue_clock.py``.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from enum import Enum
from typing import NamedTuple

DEFAULT_BATCH = 2048
"""Most prompt tokens in one turn: llama-server's default ``--batch-size``."""
_KEEP = 8192
"""Points and task numbers kept; the wait of a request that saw more of them is unknown."""
_KEEP_TAKEN = 256
_SAME_TURN_S = 0.02
"""A task whose slot is chosen within this time after a release may have waited for it."""
_DOUBT = 0.25
"""A wait is unknown if more than this share of its turns may be guesses."""
_AGREE = 4
"""Requests with a free slot that must see unexplained task numbers before the offset is corrected."""


class _Met(Enum):
    IDLE = "an idle server"
    FREE = "a free slot, others busy"
    BUSY = "possibly busy slots"
    UNKNOWN = "a state from before the log"


class _Launch(NamedTuple):
    """How a task got its slot, as known at that time."""

    time: float
    turns: float
    """Turns made until then."""
    counted: bool
    """Whether they were counted, not guessed."""
    doubt: float
    """The number of guesses among them that no later count corrects."""
    met: _Met


class QueueClock:
    """Counts the loop's turns along the log and dates the arrival of tasks by them. Times are log times in seconds."""

    def __init__(self, batch: int = DEFAULT_BATCH) -> None:
        self._batch = batch
        self._times: list[float] = []
        self._turns: list[float] = []
        """Moments, and the turns made until then; both ascending."""
        self._guess: float | None = None
        """Turns made until now, after a request whose turns are not counted (yet)."""
        self._doubt = 0.0
        self._running: dict[int, _Launch] = {}
        self._tasks: list[int] = []
        """Numbers of recent tasks, ascending; ``_forgotten`` more were before them."""
        self._forgotten = 0
        self._offset = 0.0
        """Numbers that were neither tasks nor turns, except those in ``_taken``."""
        self._taken: list[float] = []
        """When such numbers were taken."""
        self._idle_until: float | None = None
        """When a request last found an idle server: all waiting requests arrived later. None before the first."""
        self._met_free: tuple[int, float, set[int]] | None = None
        """Tasks that got a free slot while others were busy: number, launch, and which of the others still run."""
        self._excess: list[float] = []
        self._turn_s = self._token_s = 0.0
        """Last known time of a decode turn, and of a prompt token."""
        self._last_release = float("-inf")

    # -- events of the log ------------------------------------------------------------------------------------------

    def number_taken(self, time: float) -> None:
        """Count a task number that is not a request's: a cancellation, a poll of /metrics or /slots."""
        self._taken.append(time)
        if len(self._taken) > _KEEP_TAKEN:
            del self._taken[: _KEEP_TAKEN // 2]
            self._offset += _KEEP_TAKEN // 2

    def seen(self, task: int) -> None:
        """Record a request's task number (also if it was cancelled before it got a slot)."""
        index = bisect_left(self._tasks, task)
        if index == len(self._tasks) or self._tasks[index] != task:
            insort(self._tasks, task)
            if len(self._tasks) > _KEEP:
                del self._tasks[: _KEEP // 2]
                self._forgotten += _KEEP // 2

    def launched(self, task: int, time: float, *, chosen: float, idle: bool) -> None:
        """Record that a task got its slot at ``time``.

        ``chosen``: when the slot was chosen for it (the old prompt is saved in between); ``idle``: whether no slot was
        busy just before.
        """
        self.seen(task)
        turns = self._turns_now()
        counted = self._guess is None
        free = chosen - self._last_release > _SAME_TURN_S
        calibrated = self._idle_until is not None
        late = self._arrival(task) - turns if calibrated else 0.0
        if (free and not calibrated) or (idle and (free or (calibrated and late >= 0))):
            # No request waits: it arrives in this turn, so the other numbers below its own are known.
            self._calibrate(task, time, turns)
            met, counted = _Met.IDLE, True
        elif free or late >= 1:
            # It arrived after the last release. The turns of the busy slots since then are known when they finish.
            met, counted = _Met.FREE, False
            if free:
                turns += max(0.0, late)
                self._met_free = self._met_free or (task, time, set(self._running))
        else:
            met = _Met.BUSY if calibrated else _Met.UNKNOWN
        if counted:
            self._mark(time, turns)
        self._running[task] = _Launch(time, turns, counted, self._doubt, met)

    def left(self, time: float) -> None:
        """Record that a task from before the log released its slot."""
        self._last_release = time

    def completed(self, task: int, time: float, *, first_token: float, steps: int, computed: int) -> float | None:
        """Record that a task completed and released its slot at ``time``; return its wait for the slot, in seconds.

        ``first_token``: start of decode; ``steps``: turns of the decode (one per token after the first, fewer with
        accepted drafts); ``computed``: prompt tokens that were not cached.
        """
        launch = self._running.get(task)
        if launch is not None and steps and time > first_token:
            self._turn_s = (time - first_token) / steps
            if computed:
                self._token_s = max(0.0, first_token - launch.time) / computed
        prefill = max(1, -(-computed // self._batch))
        return self._released(task, time, prefill=prefill, first_token=first_token, steps=steps)

    def refused(self, task: int, time: float) -> float | None:
        """Record that a task's prompt was too long, so that it released its slot in the same turn; return its wait."""
        return self._released(task, time, prefill=1, first_token=time, steps=0)

    def broken_off(self, task: int, time: float, tokens: int) -> float | None:
        """Record that a task was cancelled or failed with ``tokens`` in its slot; return its wait."""
        self._last_release = time
        launch = self._running.pop(task, None)
        if launch is None:
            return None
        turns, counted, doubt = self._look_back(launch)
        waited = self._waited(task, launch, turns, counted=counted, doubt=doubt)
        before = self._turns_now()
        guess = 1.0
        if self._turn_s:
            # t = prompt * token_s + generated * turn_s, prompt + generated = tokens
            decode_s = time - launch.time - tokens * self._token_s
            guess = decode_s / max(self._turn_s - self._token_s, self._turn_s / 4)
            guess = min(max(1.0, guess), 1.0 + (time - launch.time) / self._turn_s)
        self._guess = max(before, turns + guess)
        self._doubt += self._guess - before
        self._check_offset(task)
        return waited

    def _released(self, task: int, time: float, *, prefill: int, first_token: float, steps: int) -> float | None:
        self._last_release = time
        launch = self._running.pop(task, None)
        if launch is None:
            return None
        turns, counted, doubt = self._look_back(launch)
        if counted or not any(other.counted for other in self._running.values()):
            self._mark(first_token, turns + prefill)
            self._mark(time, turns + prefill + steps)
            self._guess, self._doubt = None, doubt
        else:
            self._guess = max(self._guess or 0.0, turns + prefill + steps)
        waited = self._waited(task, launch, turns, counted=counted, doubt=doubt)
        self._check_offset(task)
        return waited

    def _look_back(self, launch: _Launch) -> tuple[float, bool, float]:
        """Turns until a launch, whether they were counted, and their doubt; other slots may have counted them since."""
        if not launch.counted and self._times and self._times[-1] > launch.time:
            return self._turns_at(launch.time), True, 0.0
        return launch.turns, launch.counted, launch.doubt

    def _waited(self, task: int, launch: _Launch, turns: float, *, counted: bool, doubt: float) -> float | None:
        if launch.met is _Met.IDLE or (launch.met is _Met.FREE and not counted):
            return 0.0
        if launch.met is _Met.UNKNOWN or self._idle_until is None:
            return None
        arrived = turns if launch.met is _Met.FREE else min(turns, self._arrival(task))
        if doubt > _DOUBT * max(1.0, turns - arrived):
            return None
        times, counts = self._times, self._turns
        index = bisect_right(counts, arrived)
        if index == 0:
            return None if times[0] > self._idle_until else launch.time - self._idle_until
        before, done = times[index - 1], counts[index - 1]
        after, more = (times[index], counts[index]) if index < len(times) else (launch.time, turns)
        if after > launch.time:
            after, more = launch.time, turns
        share = (arrived - done) / (more - done) if more > done else 1.0
        return max(0.0, launch.time - max(self._idle_until, before + (after - before) * share))

    # -- turns ------------------------------------------------------------------------------------------------------

    def _turns_now(self) -> float:
        if self._guess is not None:
            return self._guess
        return self._turns[-1] if self._turns else 0.0

    def _mark(self, time: float, turns: float) -> None:
        """Record that the loop had made at least ``turns`` turns at ``time``; counts stay ascending."""
        times, counts = self._times, self._turns
        index = bisect_right(times, time)
        if index and counts[index - 1] > turns:
            turns = counts[index - 1]
        times.insert(index, time)
        counts.insert(index, turns)
        for later in range(index + 1, len(counts)):
            if counts[later] >= turns:
                break
            counts[later] = turns
        if len(times) > _KEEP:
            del times[: _KEEP // 2], counts[: _KEEP // 2]

    def _turns_at(self, time: float) -> float:
        times, counts = self._times, self._turns
        index = bisect_left(times, time)
        if index == 0 or index == len(times):
            return counts[max(0, index - 1)] if counts else 0.0
        before, after = times[index - 1], times[index]
        return counts[index - 1] + (counts[index] - counts[index - 1]) * (time - before) / (after - before)

    # -- numbers ----------------------------------------------------------------------------------------------------

    def _others_before(self, task: int) -> float:
        """Numbers below this task's that belong to no task seen so far."""
        return task - self._forgotten - bisect_left(self._tasks, task)

    def _arrival(self, task: int) -> float:
        """The turn in which a task arrived."""
        turn = self._others_before(task) - self._offset
        # Each other number taken before its arrival is one turn less.
        return turn - bisect_left(range(len(self._taken)), turn, key=lambda i: self._turns_at(self._taken[i]) + i)

    def _calibrate(self, task: int, time: float, turns: float) -> None:
        """This task arrives now, after ``turns`` turns."""
        self._offset = self._others_before(task) - turns
        self._taken.clear()
        self._excess.clear()
        self._met_free = self._guess = None
        self._doubt = 0.0
        self._idle_until = time

    def _check_offset(self, task: int) -> None:
        """Compare count and numbers at the launch of a task with a free slot, after those busy then have finished."""
        if self._met_free is None:
            return
        other, launched_at, busy = self._met_free
        busy.discard(task)
        if busy:
            return
        self._met_free = None
        excess = self._arrival(other) - self._turns_at(launched_at)
        if excess < 0:
            self._offset += excess
            self._excess.clear()
            return
        # Too many numbers: of other pollers, or of tasks that still wait. The latter vary from time to time.
        self._excess.append(excess)
        if len(self._excess) == _AGREE:
            self._offset += min(self._excess)
            self._excess.clear()
