"""Compares a log with llama.cpp's own counters, as clients can forge a text log.

Kinds of contradiction:

- ``slot``: a request in a slot that the server does not have;
- ``task``: a task that was launched twice, or whose number llama.cpp has not given out yet;
- ``time``: a line from the future;
- ``tokens``: more generated tokens than llama.cpp's counter.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, MutableMapping, Sequence

from llamatel.snapshots import SlotState

_log = logging.getLogger(__name__)

KINDS = ("slot", "task", "time", "tokens")
_REMEMBERED = 4096
"""Launched tasks."""
_SETTLED_S = 30.0
"""After this time llama.cpp's counters include what the log reported."""
_SAMPLES = 256
_MAX_TASKS_APART = 64
"""Tasks are not launched strictly in the order of their numbers."""


class LogAudit:
    """Not thread-safe: used with the lock of the log reader."""

    def __init__(
        self,
        contradictions: MutableMapping[str, int] | None = None,
        *,
        supervised: bool = False,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """``contradictions``: their counts by kind, to add to. ``supervised``: see ``LogReader``."""
        self._counts = {} if contradictions is None else contradictions
        self._supervised = supervised
        self.generated = 0
        """Tokens of the requests that completed, of this process."""
        self.slots: int | None = None
        """Slots that the server has."""
        self._clock, self._wall = clock, wall
        self._started_at: tuple[float, float] | None = None
        """By both clocks."""
        self._launched: dict[int, None] = {}
        self._newest_task = -1
        self._history: deque[tuple[float, int, int]] = deque(maxlen=_SAMPLES)
        """When (monotonic), ``generated`` and the newest task at that time."""
        self._counter_at_start: float | None = None
        self._generated_at_start: int | None = None
        self._logged = False

    def restart(self) -> None:
        """Reset for another process. A supervised one starts now, and its log is read from the first line."""
        self.generated, self.slots, self._newest_task = 0, None, -1
        self._started_at = (self._clock(), self._wall()) if self._supervised else None
        self._counter_at_start, self._generated_at_start = (0.0, 0) if self._supervised else (None, None)
        self._launched.clear()
        self._history.clear()

    def configured(self, slots: int | None) -> None:
        """Record the number of slots. Of a supervised server the first report counts: no client was there before."""
        if self.slots is None or not self._supervised:
            self.slots = slots

    def launch(self, slot: int, task: int) -> bool:
        """Whether a launch is plausible."""
        if self.slots is not None and not 0 <= slot < self.slots:
            self._found("slot")
            return False
        if self._supervised:  # else it may be another process, which counts from 0 again
            if task in self._launched:
                self._found("task")
                return False
            self._launched[task] = None
            if len(self._launched) > _REMEMBERED:
                del self._launched[next(iter(self._launched))]
        if task > self._newest_task:  # noqa: PLR1730 - for every request
            self._newest_task = task
        return True

    def is_future(self, log_time: float) -> bool:
        """Whether a line's time (seconds since the process started) is in the future; only of a supervised server.

        llama.cpp takes it from the wall clock, which may be set while it runs.
        """
        if self._started_at is None:
            return False
        elapsed = max(self._clock() - self._started_at[0], self._wall() - self._started_at[1])
        if log_time <= elapsed + 1.0:
            return False
        self._found("time")
        return True

    def compare(self, generated_total: float | None, slots: Sequence[SlotState] | None) -> None:
        """Compare with llama.cpp's current token counter and slots (None: unknown)."""
        now = self._clock()
        if slots:
            self.slots = len(slots)
        settled = next((sample for sample in reversed(self._history) if now - sample[0] >= _SETTLED_S), None)
        self._history.append((now, self.generated, self._newest_task))
        if generated_total is not None:
            self._compare_tokens(generated_total, settled)
        numbers = [slot.task for slot in slots or () if slot.task is not None]
        if settled is not None and numbers and settled[2] > max(numbers) + _MAX_TASKS_APART:
            self._found("task")
            self._newest_task = max(numbers)
            self._history.clear()

    def _compare_tokens(self, total: float, settled: tuple[float, int, int] | None) -> None:
        if self._counter_at_start is None or total < self._counter_at_start:
            self._counter_at_start, self._generated_at_start = total, None
            self._history.clear()
        elif settled is None:
            return
        elif self._generated_at_start is None:
            # Read late: tokens counted before the first poll may be logged after it.
            self._generated_at_start = self.generated
            self._history.clear()
        elif settled[1] - self._generated_at_start > total - self._counter_at_start:
            self._found("tokens")
            self._counter_at_start, self._generated_at_start = total, None
            self._history.clear()

    def _found(self, kind: str) -> None:
        self._counts[kind] = self._counts.get(kind, 0) + 1
        if not self._logged:
            self._logged = True
            _log.warning(
                "the server's log contradicts llama.cpp's own figures (%s): a client may have written into it, see "
                "docs/security.md; further ones are only counted (llamatel_log_contradictions_total)",
                kind,
            )
