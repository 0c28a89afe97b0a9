"""Dates the lines of a backlog, and determines which of several processes wrote them.

Timestamps count from the start of a process, and only the last line has a known time: that of the file. So the lines
are scanned once before they are read. A process that follows another started after the other's last line; of processes
that write at the same time, each line was written after the one before it.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from llamatel.llama.log.log_line import LogLine
from llamatel.llama.log.process_separation import ProcessSeparation

_GAP_S = 5.0
_MOST_GAPS = 10_000


@dataclass(slots=True)
class _Gap:
    """A silence of one clock, by its timestamps."""

    since: float
    until: float
    line: int
    """The one after it."""
    resumed_by: int | None = None
    """The clock that continues the one before the silence."""
    resumed_at: float = 0.0
    before: int = 0
    """The identity of the clock before the silence."""


class BacklogClocks:
    """Call ``add`` for every line with a timestamp, ``finish``, then ``clock`` for each of them in the same order."""

    def __init__(self) -> None:
        self._separation = ProcessSeparation(clocks_only=True)
        self._clocks = array("L")
        self._counts = array("L")
        self._first = array("d")
        self._last = array("d")
        """Runs of lines of one clock: clock, count, first and last timestamp."""
        self._gaps: dict[int, deque[_Gap]] = {}
        """Silences, by clock."""
        self._pieces: dict[int, list[tuple[int, int]]] = {0: [(0, 0)]}
        """Identities by provisional clock, with the line from which each applies."""
        self._identities = 1
        self._newest: dict[int, float] = {}
        """Newest timestamp, by clock."""
        self._lines = 0
        self._seen = 0
        self._starts: dict[int, float] = {}
        self.too_close = False
        """After ``finish``: whether clocks do not distinguish processes that write at the same time."""
        self._replay: Iterator[int] = iter(())

    def add(self, line: str, parts: LogLine) -> None:
        """Scan a line; lines without a timestamp, and those of a router's child, are ignored."""
        separation = self._separation
        separation.route(line, parts, 0.0, live=False)
        separation.events.clear()
        if parts.time is None or parts.child is not None:
            return
        clock, time = separation.clock, parts.time
        if clock > self._seen:
            self._seen = clock
            self._pieces[clock] = [(0, self._new())]
            self._split(clock, time)
        else:
            last = self._newest.get(clock, time)
            if time - last > _GAP_S:
                self._gaps.setdefault(clock, deque(maxlen=_MOST_GAPS)).append(_Gap(last, time, self._lines))
            elif self._clocks and clock == self._clocks[-1]:
                self._counts[-1] += 1
                self._last[-1] = self._newest[clock] = time
                self._lines += 1
                return
        self._newest[clock] = time
        self._clocks.append(clock)
        self._counts.append(1)
        self._first.append(time)
        self._last.append(time)
        self._lines += 1

    def _split(self, clock: int, time: float) -> None:
        """Treat a clock that falls back into another's silence as that other clock until then."""
        for other, gaps in self._gaps.items():
            for gap in reversed(gaps):
                if not gap.since <= time < gap.until or (gap.resumed_by is not None and gap.resumed_at <= time):
                    continue
                pieces = self._pieces[other]
                if gap.resumed_by is not None:
                    self._pieces[gap.resumed_by] = [(0, self._new())]
                    self._pieces[clock] = [(0, gap.before)]
                else:
                    self._pieces[clock] = [(0, pieces[-1][1])]
                    gap.before = pieces[-1][1]
                    # Lines after the silence are another clock's: a known one, or a new one.
                    older = [
                        each for each in self._newest if each not in (other, clock) and self._newest[each] <= gap.until
                    ]
                    nearest = max(older, key=self._newest.__getitem__, default=None)
                    pieces.append((gap.line, self._new() if nearest is None else self._pieces[nearest][-1][1]))
                    self._separation.note_alive(other, clock, *older)
                gap.resumed_by, gap.resumed_at = clock, time
                return

    def _new(self) -> int:
        self._identities += 1
        return self._identities - 1

    def finish(self, at: float) -> None:
        """Finish adding; the last line was written at Unix time ``at`` at the latest."""
        line = self._lines
        next_at = at
        extent: dict[int, tuple[int, int]] = {}
        for index in range(len(self._clocks) - 1, -1, -1):
            line -= self._counts[index]
            clock = self._final(self._clocks[index], line)
            start = min(self._starts.get(clock, float("inf")), next_at - self._last[index])
            self._starts[clock] = start
            extent[clock] = (index, extent.get(clock, (0, index))[1])
            next_at = start + self._first[index]
        self._replay = self._numbers()
        by_start = sorted(self._starts, key=self._starts.__getitem__)
        self.too_close = self._separation.ambiguous or any(
            self._starts[later] - self._starts[earlier] < _GAP_S
            and extent[later][0] <= extent[earlier][1]
            and extent[earlier][0] <= extent[later][1]
            for earlier, later in pairwise(by_start)
        )

    def _final(self, clock: int, line: int) -> int:
        pieces = self._pieces[clock]
        if len(pieces) == 1:
            return pieces[0][1]
        return pieces[bisect_right(pieces, (line, 1 << 60)) - 1][1]

    def _numbers(self) -> Iterator[int]:
        line = 0
        for clock, count in zip(self._clocks, self._counts, strict=True):
            for number in range(line, line + count):
                yield self._final(clock, number)
            line += count

    def clock(self, parts: LogLine) -> tuple[int | None, float | None]:
        """The next line's clock and Unix time; None where it has no timestamp."""
        if parts.time is None or parts.child is not None:
            return None, None
        clock = next(self._replay, None)
        if clock is None:
            return None, None
        return clock, self._starts.get(clock, 0.0) + parts.time
