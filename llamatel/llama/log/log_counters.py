"""Counters of a log reader: lines by kind, requests, and whether the log was understood."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from llamatel.llama.log.log_audit import KINDS
from llamatel.llama.log.rejections import REASONS
from llamatel.snapshots import LogCounts

_SILENT_S = 10.0
"""Seconds without a line, while tokens are counted, after which the log counts as silent."""


def _line_kinds() -> dict[str, int]:
    return {"request": 0, "server": 0, "other": 0, "malformed": 0}


@dataclass(slots=True)
class LogCounters:
    """Counts of one server's log; those of a router include its models."""

    lines: dict[str, int] = field(default_factory=_line_kinds)
    started: int = 0
    lost: int = 0
    untimed: int = 0
    """Requests that completed without timings."""
    timed: int = 0
    context_shifts: int = 0
    slot_lines: int = 0
    """Lines about slots."""
    rejected: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    """By reason."""
    contradictions: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    """By kind; see ``log_audit``."""
    clock: Callable[[], float] = time.monotonic
    _lines_seen: int = -1
    _last_line_at: float = 0.0
    _counter_steps: int = 0
    """Times that llama.cpp's counter has grown since the last line."""
    _counted_from: float | None = None
    _generated_before: float = 0.0
    """llama.cpp's token counter at the previous poll."""

    def reject(self, reason: str) -> None:
        """Count a rejected request."""
        self.rejected[reason] += 1

    def _silence(self, generated_total: float) -> float:
        """Seconds without a line while llama.cpp's counter increased.

        It increases when a request finishes, which is logged: the first increase may be the last line's request.
        """
        now, lines = self.clock(), sum(self.lines.values())
        if lines != self._lines_seen:
            self._lines_seen, self._last_line_at, self._counter_steps = lines, now, 0
        elif generated_total > self._generated_before:
            self._counter_steps += 1
        silent = now - self._last_line_at
        return silent if self._counter_steps > 1 and silent > _SILENT_S else 0.0

    def snapshot(self, generated_total: float | None) -> LogCounts:
        """The counts so far; ``generated_total`` is llama.cpp's own token counter, where it is known.

        The log is not understood if llama.cpp generated tokens while the log showed no request, or showed completed
        requests without a single timing. Tokens count from the second poll on, as the lines of the newest may be late.
        """
        understood: bool | None = True if self.timed else None
        silent_s = None if generated_total is None else self._silence(generated_total)
        if silent_s:
            understood = False
        if generated_total is not None:
            if self._counted_from is None:
                self._counted_from = 0.0 if self.started else generated_total
            elif generated_total < self._counted_from:
                self._counted_from = 0.0
            generated_before = min(generated_total, self._generated_before)
            self._generated_before = generated_total
            if generated_before > self._counted_from and not self.timed and (not self.started or self.untimed):
                understood = False
        return LogCounts(
            lines=dict(self.lines),
            requests_lost=self.lost,
            understood=understood,
            silent_s=silent_s,
            rejected=dict(self.rejected),
            contradictions=dict(self.contradictions),
        )
