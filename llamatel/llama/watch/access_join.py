"""Joins finished requests with the access lines of the program in front of llama-server.

An access line is written when its response is complete. It matches a request that was launched in an earlier line,
finished just before it and started within its duration. The two are joined only if each matches nothing else. A file's
lines are dated when they are read: they may have been written at any time since the previous read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from llamatel.llama.log.ollama_log import EMBEDDING, AccessLine
from llamatel.records import Access, Completion, Outcome

LATE_S = 0.5
"""An access line is written at most this long after the request finished in llama-server."""
_EARLY_S = 0.1
"""The client gets the response at most this long before llama-server logs the end."""
_DISCONNECTED_EARLY_S = 0.5
"""The line of a client that disconnected is written at most this long before llama-server notices."""
_START_S = 0.1
_WHOLE_SECONDS_S = 60.0
"""gin cuts longer durations to whole seconds."""


class Answered(Protocol):
    """A finished request."""

    @property
    def completion(self) -> Completion:
        """Its record."""

    @property
    def launched(self) -> int:
        """The number of the line that launched it; 0 if unknown."""

    @property
    def late_s(self) -> float:
        """How long before its ``ended_at`` its end may have been logged."""


@dataclass(frozen=True, slots=True)
class DatedAccess:
    """An access line, and when it was written (Unix time)."""

    line: AccessLine
    at: float
    error_s: float = 0.0
    """The error of ``at``; for wrappers that date lines in whole seconds."""
    number: int = 0
    """The line's number in the log."""
    late_s: float = 0.0
    """How long before ``at`` it may have been written."""

    def fits(self, answered: Answered) -> bool:
        """Whether the line may belong to the request."""
        line, error, request = self.line, self.error_s, answered.completion
        cut = 1.0 if line.duration_s > _WHOLE_SECONDS_S else 0.0
        early = _EARLY_S if request.outcome is Outcome.OK else _DISCONNECTED_EARLY_S
        return (
            self.number >= answered.launched
            and -early - answered.late_s - error <= self.at - request.ended_at <= LATE_S + self.late_s + error
            and request.started_at >= self.at - self.late_s - line.duration_s - cut - _START_S - error
            and _same_kind(line, request)
        )


def join(requests: Sequence[Answered], lines: Sequence[DatedAccess], *, with_client: bool = False) -> dict[int, Access]:
    """Access lines by the index of the request that each certainly belongs to; ``with_client``: with addresses."""
    fitting = [[index for index, request in enumerate(requests) if line.fits(request)] for line in lines]
    times = _count(number for found in fitting for number in found)
    return {
        found[0]: _access(line, with_client=with_client)
        for line, found in zip(lines, fitting, strict=True)
        if len(found) == 1 and times[found[0]] == 1
    }


def _same_kind(line: AccessLine, request: Completion) -> bool:
    if request.outcome is not Outcome.OK:
        return True
    return (request.generated is None) == (line.path in EMBEDDING)


def _count(numbers: Iterable[int]) -> dict[int, int]:
    times: dict[int, int] = {}
    for number in numbers:
        times[number] = times.get(number, 0) + 1
    return times


def _access(dated: DatedAccess, *, with_client: bool) -> Access:
    line = dated.line
    return Access(
        started_at=dated.at - line.duration_s,
        ended_at=dated.at,
        method=line.method,
        path=line.path,
        status=line.status,
        client=line.client if with_client else None,
    )
