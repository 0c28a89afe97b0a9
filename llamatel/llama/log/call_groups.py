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
_MOST_TASKS = 4096
_SEVERITY = (Outcome.OK, Outcome.CANCELLED, Outcome.CONTEXT_FULL, Outcome.ERROR)


class _Group:
    """The tasks of a call so far, numbered ``first`` to ``last``."""

    def __init__(self, task: int, started_at: float) -> None:
        self.first = self.last = task
        self.started_at = started_at
        self._parts = 0
        self._completed = False
        """Whether one of its tasks did."""
        self._start: Completion | None = None
        """The task that got its slot first, of those that have finished."""
        self._end: Completion | None = None
        """The one that finished last."""
        self._worst: Completion | None = None
        self._tokens: int | None = 0
        self._truncated: bool | None = False
        self._in_flight: tuple[float, ...] = ()

    def add(self, part: Completion, in_flight: tuple[float, ...]) -> None:
        """Add a task that has finished; ``in_flight``: the starts of other calls that are running."""
        self._parts += 1
        self._completed |= part.outcome is Outcome.OK
        if self._start is None or part.started_at < self._start.started_at:
            self._start = part
        if self._end is None or part.ended_at >= self._end.ended_at:
            self._end = part
        if self._worst is None or _SEVERITY.index(part.outcome) > _SEVERITY.index(self._worst.outcome):
            self._worst = part
        known = self._tokens is not None and part.context_tokens is not None
        self._tokens = (self._tokens or 0) + (part.context_tokens or 0) if known else None
        self._truncated = self._truncated or part.truncated
        self._in_flight = in_flight

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

    A call is complete when its tasks have finished, and a task with a later number runs, or no task has for a moment.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: list[_Group] = []
        self._newest = -1
        """The highest number of a task."""
        self._finished_at = 0.0
        """When a task finished last."""

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
        group.add(part, tuple(other.started_at for other in others))
        self._finished_at = self._clock()
        return self._pop_complete(running, operation, quiet=False)

    def settle(self, running: Mapping[int, float], operation: str, *, at_once: bool = False) -> list[Completion]:
        """The calls that are complete now; to be called now and then. ``at_once``: all without a running task."""
        if not at_once and self._clock() - self._finished_at < _QUIET_S:
            return []
        self._place(running)
        return self._pop_complete(running, operation, quiet=not running or at_once)

    def flush(self, operation: str) -> list[Completion]:
        """All calls: no more of their tasks follow. Another process may follow."""
        self._newest = -1
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
            for group in self._open:
                if group.first <= task <= group.last:
                    break
                if task == group.last + 1 and task - group.first < _MOST_TASKS:
                    group.last = task
                    break
            else:
                self._open.append(_Group(task, started[task]))
            self._newest = max(self._newest, task)

    def _pop_complete(self, running: Mapping[int, float], operation: str, *, quiet: bool) -> list[Completion]:
        idle = [group for group in self._open if not _runs(group, running)]
        return self._pop([group for group in idle if quiet or group.last < self._newest], operation)

    def _pop(self, groups: list[_Group], operation: str) -> list[Completion]:
        self._open = [group for group in self._open if group not in groups]
        calls = [group.call(operation) for group in groups]
        return [call for call in calls if call is not None]


def _runs(group: _Group, running: Mapping[int, float]) -> bool:
    return any(group.first <= task <= group.last for task in running)
