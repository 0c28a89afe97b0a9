"""What a log reader counts: lines by kind, requests, and whether the log can be understood at all."""

from __future__ import annotations

from dataclasses import dataclass, field

from llamatel.llama.log.log_audit import KINDS
from llamatel.llama.log.rejections import REASONS
from llamatel.snapshots import LogCounts


def _line_kinds() -> dict[str, int]:
    return {"request": 0, "server": 0, "other": 0, "malformed": 0}


@dataclass(slots=True)
class LogCounters:
    """Counts of one server's log; of a router's, its models' included."""

    lines: dict[str, int] = field(default_factory=_line_kinds)
    started: int = 0
    lost: int = 0
    untimed: int = 0
    """Requests that ended well without timings."""
    timed: int = 0
    context_shifts: int = 0
    slot_lines: int = 0
    """Lines about slots."""
    rejected: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    """By reason."""
    contradictions: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    """By kind; see ``log_audit``."""
    _counted_from: float | None = None
    _generated_before: float = 0.0
    """llama.cpp's token counter at the previous look."""

    def reject(self, reason: str) -> None:
        """A request was rejected."""
        self.rejected[reason] += 1

    def snapshot(self, generated_total: float | None) -> LogCounts:
        """The counts so far; ``generated_total`` is llama.cpp's own token counter, where it is known.

        The log counts as not understood once llama.cpp generated tokens while we read and the log showed no request,
        or showed requests end well without a single timing. Tokens count from the second look on: the lines of those
        that are new may be on their way.
        """
        understood: bool | None = True if self.timed else None
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
            requests_started=self.started,
            requests_lost=self.lost,
            understood=understood,
            rejected=dict(self.rejected),
            contradictions=dict(self.contradictions),
        )
