"""One line of llama.cpp's log, taken apart: when, what level, what text. Pure functions on text.

llama-server writes ``M.SS.mmm.uuu L text`` to stderr (common/log.cpp), L one of I, W, E, D, the time since the process
started; without ``--log-timestamps`` and ``--log-prefix`` just the text; with ``--log-jsonl`` a JSON object a line. A
router puts ``[port] `` before its children's lines; docker, kubectl and journald put their own prefixes before that.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import NamedTuple

_SLOT_OR_OTHER = r"((?:slot +\S+: id +(-?\d{1,3}) \| task (-?\d{1,12}) \|\s*)?(.*))"
# One expression for both: a busy server writes thousands of lines a second. A slot's number has three digits at most
# (LLAMA_MAX_SEQ).
_STAMPED = re.compile(r"(\d{1,7}\.\d\d\.\d{3}\.\d{3}) ([A-Z]) " + _SLOT_OR_OTHER, re.DOTALL)
_TEXT = re.compile(_SLOT_OR_OTHER, re.DOTALL)
# What is quoted in a line is no prefix: it may be a client's.
_PREFIX = r"(?:[^\"'{}\\]{0,200}?[\s\]:|])??"
_STAMP_AFTER_PREFIX = re.compile(_PREFIX + r"(?=\d{1,7}\.\d\d\.\d{3}\.\d{3} [A-Z] )")
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_ROUTER_CHILD = re.compile(r"(?:^|\s)\[(\d{1,5})\] ?")
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)")
_TEXT_AFTER_PREFIX = re.compile(_PREFIX + r"(?=(?:slot|srv|que) {1,}\S+: |(?:prompt eval|eval|total) time = )")
_LATEST = 2**33
"""Unix time: the year 2242."""
_LONGEST_RUN_US = 6e14
"""Microseconds: no process runs for twenty years."""
_LEVELS = {"info": "I", "warn": "W", "warning": "W", "error": "E", "debug": "D", "trace": "T", "cont": "I"}


class LogLine(NamedTuple):
    """A line's parts. ``time`` is seconds since the server's process started; None where the log has no stamps."""

    text: str
    time: float | None = None
    level: str | None = None
    child: int | None = None
    """Port of the router's child that wrote the line."""
    wall: float | None = None
    """Unix time out of a container runtime's prefix."""
    slot: int | None = None
    """The slot that a line is about; None for any other line."""
    task: int | None = None
    """The task that it works on."""
    said: str = ""
    """What is said of the two: the rest of ``text``."""


def _child_and_wall(prefix: str) -> tuple[int | None, float | None]:
    child = _ROUTER_CHILD.search(prefix)
    stamp = _RFC3339.search(prefix)
    wall = None
    if stamp:
        text = stamp.group().replace(",", ".").replace("Z", "+00:00")
        # datetime takes at most six digits of a second, container runtimes write nine.
        text = re.sub(r"(\.\d{6})\d+", r"\1", text)
        text = re.sub(r"\.(\d{1,5})(?=[+-])", lambda m: "." + m.group(1).ljust(6, "0"), text)
        try:
            wall = datetime.fromisoformat(text).timestamp()
        except (ValueError, OverflowError):
            wall = None  # looked like a date and is none: the line's own time serves
        if wall is not None and not 0 < wall < _LATEST:
            wall = None
    return (int(child.group(1)) if child else None), wall


def _from_json(line: str) -> LogLine | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("msg"), str):
        return None
    time = entry.get("time")
    if not isinstance(time, (int, float)) or isinstance(time, bool) or not 0 <= time < _LONGEST_RUN_US:
        time = None
    return _unstamped(entry["msg"].rstrip("\n").encode("utf-8", "replace").decode())._replace(
        time=None if time is None else time / 1e6,
        level=_LEVELS.get(str(entry.get("level"))),
    )


def _unstamped(text: str) -> LogLine:
    match = _TEXT.match(text)
    if match is None or match.group(2) is None:
        return LogLine(text)
    return LogLine(text, slot=int(match.group(2)), task=int(match.group(3)), said=match.group(4))


def split_line(line: str) -> LogLine:
    """Take a line apart; a line of any other program comes back as text alone."""
    if "\x1b" in line:
        line = _COLOUR.sub("", line)
    child = wall = None
    match = _STAMPED.match(line)
    if match is None:
        if '"msg"' in line:
            start = line.find('{"type":')
            entry = _from_json(line[start:]) if start >= 0 else None
            if entry is not None:
                child, wall = _child_and_wall(line[:start])
                return entry._replace(child=child, wall=wall)
        found = _STAMP_AFTER_PREFIX.match(line)
        if found is None:
            found = _TEXT_AFTER_PREFIX.match(line)
            if found is None:
                return LogLine(line)
            child, wall = _child_and_wall(line[: found.end()])
            return _unstamped(line[found.end() :])._replace(child=child, wall=wall)
        child, wall = _child_and_wall(line[: found.end()])
        match = _STAMPED.match(line, found.end())
        if match is None:
            return LogLine(line)
    stamp, level, text, slot, task, said = match.groups()
    micros = int(stamp.replace(".", ""))
    time = micros // 100_000_000 * 60 + micros % 100_000_000 / 1e6
    if slot is None:
        return LogLine(text, time, level, child, wall)
    return LogLine(text, time, level, child, wall, int(slot), int(task), said)
