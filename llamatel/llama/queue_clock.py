"""How long a request waited for its slot, estimated from llama.cpp's task numbers.

The log says when a task got its slot, not when it arrived. But task numbers tell: one counter numbers the tasks as they
arrive, and the server's loop takes one number for each of its turns too (``SERVER_TASK_TYPE_NEXT_RESPONSE``, posted in
``update_slots``, tools/server/server-context.cpp). So of the numbers below a task's own, those that are no tasks are
turns of the loop: task number minus tasks before it is the turn in which it arrived. When that turn was, follows from
the finished requests: a decode of n tokens is n - 1 turns, evenly spread over its time.

The estimate is off by up to the length of one turn (a token's time; the time of a whole batch while prompts are
processed), a little more after a stretch in which something else took numbers (a foreign poller of /slots or /metrics);
every request that meets a free slot sets it right again. Where it does not know, it says so: before the first such
request in a log read from its middle, and after a request that was cancelled or failed, whose turns nobody tells, until
another slot's count or a free slot makes good for it. Checked against the clients' clocks in
``tests/test_queue_clock.py``.
"""

from __future__ import annotations

from bisect import bisect_left, insort

_KEEP = 4096
"""Points and task numbers kept; a request that waits longer than that many took is dated too late."""
_SAME_TURN_S = 0.02
"""A task whose slot is chosen this soon after a release may have waited for it."""


class QueueClock:
    """Counts the loop's turns along the log and dates the arrival of tasks by them. Times are log times in seconds."""

    def __init__(self) -> None:
        self._points: list[tuple[float, float]] = []
        """(time, turns made until then), by time."""
        self._launched_in: dict[int, float | None] = {}
        """The turn in which each task in flight got its slot; None where that is not known."""
        self._tasks: list[int] = []
        """Numbers of recent tasks, ascending; ``_forgotten`` more were before them."""
        self._forgotten = 0
        self._other = 0.0
        """Numbers that were neither tasks nor turns."""
        self._calibrated = False
        self._adrift = False
        """More turns were made than the last point says, and nobody knows how many."""
        self._last_release = float("-inf")

    def polled(self) -> None:
        """We asked the server for /metrics or /slots, which takes a number."""
        self._other += 1.0

    def seen(self, task: int) -> None:
        """A task number was taken by a request (also one that was cancelled before it got a slot)."""
        index = bisect_left(self._tasks, task)
        if index == len(self._tasks) or self._tasks[index] != task:
            insort(self._tasks, task)
            if len(self._tasks) > _KEEP:
                del self._tasks[: _KEEP // 2]
                self._forgotten += _KEEP // 2

    def launched(self, task: int, time: float, *, chosen: float, idle: bool) -> float | None:
        """A task got its slot at ``time``; returns the seconds it waited until then.

        ``chosen``: when the slot was chosen for it (the old prompt is saved in between); ``idle``: whether no slot was
        busy just before.
        """
        self.seen(task)
        arrived = task - self._forgotten - bisect_left(self._tasks, task) - self._other
        turns = self._points[-1][1] if self._points else 0.0
        if chosen - self._last_release > _SAME_TURN_S:
            # A slot had been free before: it came in this very turn, which dates the turn.
            if idle or not self._calibrated or arrived < turns:
                self._other += arrived - turns
                self._calibrated = True
            else:
                turns = arrived
            self._adrift = False
            self._mark(time, turns)
            self._launched_in[task] = turns
            return 0.0
        if not self._calibrated:
            self._launched_in[task] = None
            return None
        if arrived < turns:
            self._launched_in[task] = None if self._adrift else turns
            return max(0.0, time - self._time_of(arrived))
        if self._adrift:
            self._launched_in[task] = None
            return None
        self._mark(time, arrived)
        self._launched_in[task] = arrived
        return 0.0

    def released(self, task: int, time: float, *, first_token: float | None, steps: int | None) -> None:
        """A task's slot was released at ``time``.

        ``first_token``: when its decode began; ``steps``: how many turns that took (one a token after the first, fewer
        with accepted drafts). Both are None for a request that was cancelled or failed.
        """
        self._last_release = time
        began = self._launched_in.pop(task, None)
        if began is None or first_token is None or steps is None:
            self._adrift = True
            return
        # One turn for its prompt (more for a prompt longer than a batch, which the other slots' counts set right).
        self._mark(first_token, began + 1.0)
        self._mark(time, began + 1.0 + steps)
        self._adrift = False

    def _mark(self, time: float, turns: float) -> None:
        """At ``time`` the loop had made at least ``turns`` turns: it never counts backwards."""
        points = self._points
        index = bisect_left(points, (time, turns))
        if index and points[index - 1][1] > turns:
            turns = points[index - 1][1]
        points.insert(index, (time, turns))
        for later in range(index + 1, len(points)):
            if points[later][1] >= turns:
                break
            points[later] = (points[later][0], turns)
        if len(points) > _KEEP:
            del points[: _KEEP // 2]

    def _time_of(self, turn: float) -> float:
        """When the loop had made ``turn`` turns: the latest moment, as the counter stands still while it idles."""
        later = self._points[-1]
        for earlier in reversed(self._points):
            if earlier[1] <= turn:
                span = later[1] - earlier[1]
                share = (turn - earlier[1]) / span if span > 0 else 1.0
                return earlier[0] + (later[0] - earlier[0]) * min(share, 1.0)
            later = earlier
        return self._points[0][0]
