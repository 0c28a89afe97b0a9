"""Parses a record of ``--log-jsonl``: one JSON object per line, so that a message with a line end stays one record.

llama.cpp (October 2026 on; common/log.cpp) writes ``{"type":"log","time":US,"level":"info","msg":TEXT}`` to stdout.
"""

from __future__ import annotations

import json
import re

from llamatel.llama.log.log_line import LogLine

# A message without an escape needs no JSON parser: the same expression splits it.
_PLAIN = re.compile(
    r'\{"type":"log","time":(0|[1-9]\d{0,14}),"level":"([a-z]{1,8})","msg":"'
    r'((?:slot ([^"\\\x00-\x1f]{12}): id +(-?\d{1,3}) \| task (-?\d{1,12}) \| {0,16})?([^"\\\x00-\x1f]*))\\n"\}$',
    re.ASCII,
)
_SLOT = re.compile(r"slot (.{12}): id +(-?\d{1,3}) \| task (-?\d{1,12}) \| {0,16}(.*)", re.DOTALL | re.ASCII)
_UNUSED = re.compile(
    r'\{"type":"log","time":\d{1,15},"level":"info","msg":"slot print_timing: id +\d{1,3} \| task \d{1,12} \| {1,16}'
    r'(?:total time = +[\d.]{1,20} ms / +\d{1,12} tokens|graphs reused = +\d{1,12})\\n"\}',
    re.ASCII,
)
_LEVELS = {"info": "I", "warn": "W", "error": "E", "debug": "D", "cont": "C", "none": "N"}
_LONGEST_RUN_US = 6e14
"""Microseconds: no process runs for twenty years."""
_new = tuple.__new__  # as in ``log_line``
FRAGMENTS = frozenset("CN")
"""Levels of records that continue a message, or are a line of a router's child."""


def parse_record(line: str) -> LogLine | None:
    """Parse a line of stdout as a record; None for any other line.

    ``text`` is the whole message, line ends included.
    """
    found = _PLAIN.match(line)
    if found is None:
        return _parse_json(line) if line.startswith('{"') else None
    time, level, text, function, slot, task, rest = found.groups()
    at, level = int(time) / 1e6, _LEVELS.get(level, "N")
    if slot is None:
        return _new(LogLine, (text, at, level, None, None, None, None, "", ""))
    return _new(LogLine, (text, at, level, None, None, int(slot), int(task), function, rest))


def is_unused(line: str) -> bool:
    """Whether a record is one of the two timings of each request that nothing is read from; the whole line decides."""
    return ("total time =" in line or "graphs reused =" in line) and _UNUSED.fullmatch(line) is not None


def _parse_json(line: str) -> LogLine | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("type"), str):
        return None
    time, text = record.get("time"), record.get("msg")
    if not isinstance(time, (int, float)) or isinstance(time, bool) or not 0 <= time < _LONGEST_RUN_US:
        time = None
    if record["type"] != "log" or not isinstance(text, str):
        return LogLine("", None if time is None else time / 1e6, "N")
    text = text.rstrip("\n").encode("utf-8", "replace").decode()
    parts = LogLine(text, None if time is None else time / 1e6, _LEVELS.get(str(record.get("level")), "N"))
    found = _SLOT.match(text)
    if found is None:
        return parts
    function, slot, task, rest = found.groups()
    return parts._replace(slot=int(slot), task=int(task), function=function, slot_message=rest)


def readable(line: str) -> str:
    """A record as llama.cpp prints it without ``--log-jsonl``, on one line; other lines unchanged."""
    record = parse_record(line) if line.startswith('{"type":') else None
    if record is None or not record.text:
        return line
    text = record.text
    if record.level == "N" and text.startswith("["):
        port, mark, rest = text.partition("] ")
        text = port + mark + readable(rest)
    text = text.replace("\r", "\\r").replace("\n", "\\n")
    if record.time is None or record.level is None or record.level in FRAGMENTS:
        return text
    micros = round(record.time * 1e6)
    minutes, micros = divmod(micros, 60_000_000)
    millis, micros = divmod(micros, 1000)
    return f"{minutes}.{millis // 1000:02d}.{millis % 1000:03d}.{micros:03d} {record.level} {text}"
