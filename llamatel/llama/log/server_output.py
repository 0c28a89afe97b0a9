"""Selects the lines of a launched server's stdout and stderr that are its log.

With ``--log-jsonl`` the log is on stdout, which then has nothing else; stderr, where a grammar parser may print a
client's text unchanged, is read for crash messages only. Builds without it log to stderr (and a router's children to
stdout). The first line that is a record or has a timestamp decides: it is printed before the server listens, so no
client can affect it.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from llamatel.llama.log.jsonl_record import parse_record, readable
from llamatel.llama.log.log_line import split_line

JSONL_VARIABLE = "LLAMA_ARG_LOG_JSONL"
"""llama.cpp's environment variable for ``--log-jsonl``: builds that do not know it ignore it."""
_PREFIXES = ("srv ", "slot ", "que ", "cmn ")


class LineKind(Enum):
    """How the log reader treats a line."""

    RECORD = "a JSONL record"
    TEXT = "a line of a text log"
    STARTUP = "a line outside the log, before any client connected"
    OTHER = "not part of the log"


class OutputLines(NamedTuple):
    """Consecutive lines of one kind that the server wrote."""

    kind: LineKind
    lines: Sequence[str]

    @property
    def readable(self) -> Sequence[str]:
        """Readable form: records as llama.cpp's text."""
        return [readable(line) for line in self.lines] if self.kind is LineKind.RECORD else self.lines


class ServerOutput:
    """Classifies the lines of one server process after the other. Not thread-safe."""

    def __init__(self) -> None:
        self._jsonl: bool | None = None

    @property
    def jsonl(self) -> bool | None:
        """Whether it logs records; None until it is known."""
        return self._jsonl

    def restart(self) -> None:
        """Reset for another process."""
        self._jsonl = None

    def lines(self, stdout: Sequence[str], stderr: Sequence[str], *, listening: bool) -> Sequence[OutputLines]:
        """The lines in reading order, by kind; ``listening``: whether clients may have sent requests."""
        if self._jsonl is None and not listening:
            self._decide(stdout, stderr)
        if self._jsonl:
            kinds = LineKind.OTHER if listening else LineKind.STARTUP, LineKind.RECORD
        else:
            # Without a log before it listens there is none later, except text that clients cause.
            kinds = (LineKind.OTHER if self._jsonl is None and listening else LineKind.TEXT,) * 2
        # A router logs the start of a child on stderr, and only then come lines of the child on stdout.
        return [OutputLines(kind, lines) for kind, lines in zip(kinds, (stderr, stdout), strict=True) if lines]

    def _decide(self, stdout: Sequence[str], stderr: Sequence[str]) -> None:
        if any(parse_record(line) is not None for line in stdout):
            self._jsonl = True
        elif any(line.startswith(_PREFIXES) or split_line(line[:256]).time is not None for line in (*stderr, *stdout)):
            self._jsonl = False
