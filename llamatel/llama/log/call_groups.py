"""Groups the tasks of one call, on servers where a call is several tasks: reranking servers and decision models.

llama.cpp logs tasks, not calls. A call takes a task number for each document, one after the other, and so does each
turn of the server's loop: the tasks of a call have consecutive numbers, and calls that arrive in different turns do not
(``post_rerank``, ``post_systemone`` and ``update_slots``, tools/server/server-context.cpp). That is an estimate: calls
that arrive during one turn count as one, and a call that arrives while a turn starts may count as two. The tasks and
their tokens are exact.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from llamatel.records import Completion, GroupedCall, Outcome

RERANK, DECISION = "rerank", "decision"
_UNKNOWN = "generate_content"
"""A decision model may generate text, too."""
_QUIET_S = 0.3
"""Tasks that wait for a slot get it at once when an earlier one releases it."""
_HELD_S = 1.0
"""On a busy server, tasks of calls that arrived together may run later: their numbers are mixed."""
_MOST_HELD = 32
_MOST_TASKS = 4096
_SEVERITY = (Outcome.OK, Outcome.CANCELLED, Outcome.CONTEXT_FULL, Outcome.ERROR)


class _Group:
    """The tasks of a call so far, numbered ``first`` to ``last``."""

    def __init__(self, task: int, started_at: float) -> None:
        self.first = self.last = task
        self.started_at = started_at
        self.finished_at = float("-inf")
        """When its last task finished, by our clock."""
        self._completed = False
        """Whether one of its tasks did."""
        self._parts = 0
        self._start: Completion | None = None
        """The task that got its slot first, of those that have finished."""
        self._end: Completion | None = None
        """The one that finished last."""
        self._worst: Completion | None = None
        self._tokens: int | None = 0
        self._truncated: bool | None = False
        self._in_flight: tuple[float, ...] = ()

    def add(self, part: Completion, in_flight: tuple[float, ...], now: float) -> None:
        """Add a task that has finished; ``in_flight``: the starts of other calls that are running."""
        self.finished_at, self._in_flight = now, in_flight
        self._completed |= part.outcome is Outcome.OK
        self._parts += 1
        self._tokens = _sum(self._tokens, part.context_tokens)
        self._truncated = self._truncated or part.truncated
        self._choose(part, part, part)

    def absorb(self, later: _Group) -> None:
        """Add the tasks of the group that follows."""
        self.last = later.last
        self.started_at = min(self.started_at, later.started_at)
        if later.finished_at > self.finished_at:
            self.finished_at, self._in_flight = later.finished_at, later._in_flight
        self._completed |= later._completed
        self._parts += later._parts
        self._tokens = _sum(self._tokens, later._tokens)
        self._truncated = self._truncated or later._truncated
        if later._start is not None and later._end is not None and later._worst is not None:
            self._choose(later._start, later._end, later._worst)

    def _choose(self, start: Completion, end: Completion, worst: Completion) -> None:
        if self._start is None or start.started_at < self._start.started_at:
            self._start = start
        if self._end is None or end.ended_at >= self._end.ended_at:
            self._end = end
        if self._worst is None or _SEVERITY.index(worst.outcome) > _SEVERITY.index(self._worst.outcome):
            self._worst = worst

    def call(self, operation: str) -> Completion | None:
        """The call as one request; None if none of its tasks has finished."""
        start, end, worst = self._start, self._end, self._worst
        if start is None or end is None or worst is None:
            return None
        return GroupedCall(
            server=end.server,
            slot=start.slot if self._parts == 1 else None,
            task=self.first,
            started_at=start.started_at,
            ended_at=end.ended_at,
            outcome=worst.outcome,
            error=worst.error,
            queue_s=start.queue_s,
            context_tokens=self._tokens,
            truncated=self._truncated,
            in_flight=self._in_flight,
            operation=operation if self._completed or operation == RERANK else _UNKNOWN,
            task_count=self._parts,
        )


class CallGroups:
    """The calls of one llama.cpp process.

    A call is complete when its tasks have finished and none has run on the server for a moment, or a while later.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: list[_Group] = []

    def __bool__(self) -> bool:
        """Whether any call may be incomplete."""
        return bool(self._open)

    def finished(self, part: Completion, running: Mapping[int, float], operation: str) -> list[Completion]:
        """Add a task that has finished; ``running``: the numbers and starts of those that run. Returns calls."""
        if part.task is None:
            return [part]
        self._place({**running, part.task: part.started_at})
        group = next(group for group in self._open if group.first <= part.task <= group.last)
        others = [other for other in self._open if other is not group and _runs(other, running)]
        now = self._clock()
        group.add(part, tuple(other.started_at for other in others), now)
        return self._pop_complete(running, operation, _HELD_S)

    def settle(self, running: Mapping[int, float], operation: str, *, at_once: bool = False) -> list[Completion]:
        """The calls that are complete now; to be called now and then. ``at_once``: all without a running task."""
        self._place(running)
        return self._pop_complete(running, operation, 0.0 if at_once else _HELD_S if running else _QUIET_S)

    def flush(self, operation: str) -> list[Completion]:
        """All calls: no more of their tasks follow. Another process may follow."""
        return self._pop(list(self._open), operation)

    def forget(self, running: Mapping[int, float], operation: str) -> tuple[list[Completion], int]:
        """The log ends: the calls without a running task, and the number of the others, whose outcome is unknown."""
        self._place(running)
        lost = [group for group in self._open if _runs(group, running)]
        self._open = [group for group in self._open if group not in lost]
        return self.flush(operation), len(lost)

    def _place(self, started: Mapping[int, float]) -> None:
        """Assign tasks, given with their starts, to calls."""
        for task in sorted(started):
            if any(group.first <= task <= group.last for group in self._open):
                continue
            new = _Group(task, started[task])
            before = next((group for group in self._open if group.last == task - 1), None)
            after = next((group for group in self._open if group.first == task + 1), None)
            if before is not None and task - before.first < _MOST_TASKS:
                before.absorb(new)
                new = before
            else:
                self._open.append(new)
            if after is not None and after.last - new.first < _MOST_TASKS:
                self._open.remove(after)
                new.absorb(after)

    def _pop_complete(self, running: Mapping[int, float], operation: str, held_s: float) -> list[Completion]:
        idle = [group for group in self._open if not _runs(group, running)]
        until = self._clock() - held_s
        crowded = len(idle) - _MOST_HELD
        return self._pop(
            [group for number, group in enumerate(idle) if group.finished_at <= until or number < crowded], operation
        )

    def _pop(self, groups: list[_Group], operation: str) -> list[Completion]:
        self._open = [group for group in self._open if group not in groups]
        calls = [group.call(operation) for group in groups]
        return [call for call in calls if call is not None]


def _runs(group: _Group, running: Mapping[int, float]) -> bool:
    return any(group.first <= task <= group.last for task in running)


def _sum(tokens: int | None, more: int | None) -> int | None:
    return None if tokens is None or more is None else tokens + more
