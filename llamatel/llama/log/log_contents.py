"""Classifies the lines of a log in which no request was found, to explain why."""

from __future__ import annotations

import re
from dataclasses import dataclass

from llamatel.llama.log.log_line import is_own_line, starts_like_llama_cpp

_WORDS = re.compile(r"(?:launch_slot_|print_timing|get_availabl|release): id|eval time +=|slot is processing task")
_VERBOSITY = re.compile(r"verbosity = (\d{1,3})\b")
_BLOB = re.compile(r"\[\S{1,12} blob data\]")
_NEWEST_FIRST = 5
"""Lines that are older than the one before, of a log that is sorted so."""
_ENOUGH = 100_000
"""Lines that are classified."""


@dataclass(slots=True)
class LogContents:
    """Counts of lines by kind."""

    lines: int = 0
    empty: int = 0
    llama_cpp: int = 0
    about_requests: int = 0
    """Of these, those about a request."""
    quoted: int = 0
    """Lines with words of llama.cpp's requests in a place where llamatel does not read them."""
    json: int = 0
    blobs: int = 0
    """Messages that journalctl does not show."""
    verbosity: int | None = None
    later: int = 0
    """Lines with a later time than the one before."""
    earlier: int = 0
    last: float | None = None

    def add(self, text: str, at: float | None = None) -> None:
        """Classify a line, without its wrapper. ``at``: its time, by any clock."""
        self.lines += 1
        if self.lines > _ENOUGH:
            return
        if at is not None:
            if self.last is not None:
                self.later += at > self.last
                self.earlier += at < self.last
            self.last = at
        if not text.strip():
            self.empty += 1
        elif is_own_line(text) or starts_like_llama_cpp(text):
            self.llama_cpp += 1
            self.about_requests += _WORDS.search(text) is not None or " time = " in text
            if "verbosity = " in text and (found := _VERBOSITY.search(text)) is not None:
                self.verbosity = int(found.group(1))
        elif _WORDS.search(text):
            self.quoted += 1
        elif _BLOB.search(text):
            self.blobs += 1
        elif text.lstrip()[:1] == "{":
            self.json += 1

    def explanation(self) -> str:
        """Why no request was found, and the remedy, in one or two sentences."""
        if not self.lines:
            return "nothing was written to it: is it the log of a llama.cpp server, or was --log-disable given?"
        counted = f"{self.lines} line{'' if self.lines == 1 else 's'}"
        if self.earlier >= _NEWEST_FIRST and self.earlier > 10 * self.later:
            return (
                f"its {counted} are newest first: give them oldest first (tac FILE, logcli --forward, Loki's "
                "direction=forward, an export that is sorted by time)"
            )
        if self.quoted:
            return (
                f"{self.quoted} of its {counted} hold words of llama.cpp's requests, but not at the start of a message "
                "or in a separate field: llamatel does not read them there. Give it llama.cpp's own log, or a "
                "format of docs/attach.md"
            )
        if self.blobs:
            return f'{self.blobs} of its {counted} are "blob data": add --all to journalctl, or --log-colors off'
        if self.verbosity is not None and self.verbosity < 3:
            return f"its {counted} are llama.cpp's at verbosity {self.verbosity}: requests are logged from -lv 3 on"
        if self.about_requests:
            return (
                f"{self.about_requests} of its {counted} are about requests, but none shows its start and its end: "
                "give llamatel the whole log, not a filtered one"
            )
        if self.llama_cpp:
            return (
                f"{self.llama_cpp} of its {counted} are llama.cpp's, none about a request: none came, or the server's "
                "verbosity is below 3 (-lv 3 is llama.cpp's default), or a filter left them out"
            )
        if self.json:
            return f"{self.json} of its {counted} are JSON without llama.cpp's lines in them: another program's log"
        if self.empty == self.lines:
            return f"its {counted} are empty"
        return f"none of its {counted} is llama.cpp's: another program's log"
