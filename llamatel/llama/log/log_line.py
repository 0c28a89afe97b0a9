"""Parses one line of llama.cpp's log: time, level, text. Pure functions on text.

llama-server writes ``M.SS.mmm.uuu L text`` to stderr (common/log.cpp), L one of I, W, E, D, the time since the process
started; without ``--log-timestamps`` and ``--log-prefix`` just the text; with ``--log-jsonl`` a JSON object a line. A
router puts ``[port] `` before its children's lines; forks of its 2024 code write key=value lines. What container
runtimes and log collectors add is removed before (``log_wrapper``).
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from llamatel.llama.log.client_text import quoted_from
from llamatel.llama.log.key_value_line import START, KeyValueLine, read_json_record, read_key_values

_SLOT_OR_OTHER = r"((?:slot ( *\S+): id +(-?\d{1,3}) \| task (-?\d{1,12}) \|\s*)?(.*))"
# One expression for both: a busy server writes thousands of lines a second. A slot's number has three digits at most
# (LLAMA_MAX_SEQ).
_STAMPED = re.compile(r"(\d{1,7}\.\d\d\.\d{3}\.\d{3}) ([A-Z]) " + _SLOT_OR_OTHER, re.DOTALL | re.ASCII)
_TEXT = re.compile(_SLOT_OR_OTHER, re.DOTALL | re.ASCII)
_BEFORE_START = re.compile(r"-?\d{1,7}\.-?\d\d?\.-?\d{1,3}\.-?\d{1,3} [A-Z] ", re.ASCII)
"""A timestamp by a wall clock that was set back to before the server's start: its parts are negative numbers."""
OWN_START = (
    r"(?:\[\d{1,5}\] {0,16})?(?:\d{1,7}\.\d\d\.\d{3}\.\d{3} [A-Z] |(?:slot|srv|que|cmn) {1,16}\S{1,64}: "
    r"|(?:prompt eval|eval|total) time = )"
)
"""How llama.cpp's own lines start, as a regular expression; the library's unstamped lines have no fixed start."""
OWN_QUOTED = rf"(?:{OWN_START}|\{{(?:\\?\"|\"\")t(?:ype|id)(?:\\?\"|\"\"):)"
"""The same in quotes of another format, ``--log-jsonl`` included."""
_OWN_START = re.compile(rf" {{0,16}}{OWN_START}")
_OWN_JSON = re.compile(r'(?:\[\d{1,5}\] ?)?\{"(?:type":"\w|tid":")')
_LIBRARY = re.compile(
    r"(?:llama|ggml|load|print|common|build|system|main|init|graph|sched|set|clip|mtmd)\w{0,60}(?: info)?: "
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_ROUTER_CHILD = re.compile(r"\[(\d{1,5})\] ?")
_LONGEST_RUN_US = 6e14
"""Microseconds: no process runs for twenty years."""
_SPACES = frozenset(" \t\r")
_DECODER = json.JSONDecoder()
_new = tuple.__new__
"""Makes a LogLine of all its parts in a third of the time that its own constructor takes."""
_LEVELS = {"info": "I", "warn": "W", "warning": "W", "error": "E", "debug": "D", "trace": "T", "cont": "I"}


class LogLine(NamedTuple):
    """A line's parts. ``time`` is seconds since the server's process started; None where the log has no timestamps."""

    text: str
    time: float | None = None
    level: str | None = None
    child: int | None = None
    """Port of the router's child that wrote the line."""
    wall: float | None = None
    """Unix time at which it was written at the latest, where the line itself has it."""
    slot: int | None = None
    """The slot that a line is about; None for any other line."""
    task: int | None = None
    """The task that it works on."""
    function: str = ""
    """The function that printed it, as llama.cpp pads it: to 12 characters."""
    slot_message: str = ""
    """The rest of ``text`` after slot and task."""


def starts_like_llama_cpp(text: str) -> bool:
    """Whether a text starts like a line of llama-server's log, its library's lines included."""
    return (
        _OWN_START.match(text) is not None
        or _OWN_JSON.match(text) is not None
        or START.match(text) is not None
        or _LIBRARY.match(text) is not None
        or quoted_from(text) is not None
    )


def is_own_line(text: str) -> bool:
    """Whether a text starts as only llama-server's lines do."""
    return _OWN_START.match(text) is not None or _OWN_JSON.match(text) is not None or START.match(text) is not None


def _from_json(line: str) -> LogLine | None:
    try:
        entry, _ = _DECODER.raw_decode(line)  # another program's words may follow
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("msg"), str):
        return None
    if (older := read_json_record(entry)) is not None:
        return _from_key_values(older)
    time = entry.get("time")
    if not isinstance(time, (int, float)) or isinstance(time, bool) or not 0 <= time < _LONGEST_RUN_US:
        time = None
    return _unstamped(entry["msg"].rstrip("\n").encode("utf-8", "replace").decode())._replace(
        time=None if time is None else time / 1e6,
        level=_LEVELS.get(str(entry.get("level"))),
    )


def _from_key_values(parts: KeyValueLine) -> LogLine:
    return LogLine(
        parts.text, None, parts.level, None, parts.wall, parts.slot, parts.task, parts.function, parts.slot_message
    )


def _unstamped(text: str) -> LogLine:
    match = _TEXT.match(text)
    if match is None or match.group(2) is None:
        return LogLine(text)
    _, function, slot, task, slot_message = match.groups()
    return LogLine(text, slot=int(slot), task=int(task), function=function, slot_message=slot_message)


def split_line(line: str) -> LogLine:
    """Parse a line; a line of another program is returned as text only."""
    if "\x1b" in line:
        line = _COLOUR.sub("", line)
    if line[-1:] in _SPACES:
        line = line.rstrip()
    match = _STAMPED.match(line)
    if match is None:
        return _other_form(line)
    return _stamped(match)


def _stamped(match: re.Match[str]) -> LogLine:
    stamp, level, text, function, slot, task, slot_message = match.groups()
    micros = int(stamp.replace(".", ""))
    time = (micros - micros // 100_000_000 * 40_000_000) / 1e6  # minutes have 60 seconds, not 100
    if slot is None:
        return _new(LogLine, (text, time, level, None, None, None, None, "", ""))
    return _new(LogLine, (text, time, level, None, None, int(slot), int(task), function, slot_message))


def _other_form(line: str) -> LogLine:
    if line[:1] == "[" and (child := _ROUTER_CHILD.match(line)) is not None:
        stamped = _STAMPED.match(line, child.end())
        parts = _stamped(stamped) if stamped is not None else _unmarked(line[child.end() :])
        return parts._replace(child=int(child.group(1)))
    return _unmarked(line)


def _unmarked(line: str) -> LogLine:
    if line[:1] == "{" and '"msg"' in line:
        return _from_json(line) or LogLine(line)
    if "-" in line[:16] and (negative := _BEFORE_START.match(line)) is not None:
        return _unstamped(line[negative.end() :])
    if "] " in line[:80] and (older := read_key_values(line)) is not None:
        return _from_key_values(older)
    return _unstamped(line)
