"""llama-server's key=value log lines, which ik_llama.cpp and other forks of its 2024 code still write.

``INFO [   launch_slot_with_task] slot is processing task | tid="140" timestamp=1790000000 id_slot=0 id_task=3``, or the
same as a JSON object (``--log-format json``). They are turned into the text that llama.cpp prints today, so that one
reader serves both. Source: ``server_log`` in examples/server/server-common.cpp of ik_llama.cpp.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

START = re.compile(r" {0,2}(INFO|WARN|ERR|VERB|DBG) \[ *(\S{1,64})\] ")
_PAIR = re.compile(r'(\w{1,64})=("(?:[^"\\]|\\.)*"|\S*)')
_LEVELS = {"INFO": "I", "WARN": "W", "ERR": "E", "VERB": "D", "DBG": "D"}
_NUMBER = re.compile(r"-?\d{1,12}")


class KeyValueLine(NamedTuple):
    """The line as current builds write it."""

    text: str
    level: str
    wall: float | None
    slot: int | None = None
    task: int | None = None
    function: str = ""
    slot_message: str = ""


def read_key_values(line: str) -> KeyValueLine | None:
    """A line of that form; None for any other."""
    found = START.match(line)
    if found is None:
        return None
    message, bar, rest = line[found.end() :].rpartition(" | ")
    if not bar:
        message, rest = line[found.end() :].removesuffix(" |"), ""
    values = {key: _plain(value) for key, value in _PAIR.findall(rest)}
    return _translated(message.rstrip(), values, _LEVELS[found.group(1)])


def read_json_record(record: Mapping[str, object]) -> KeyValueLine | None:
    """The same from the JSON form; None for any other record."""
    message = record.get("msg")
    if "tid" not in record or "function" not in record or not isinstance(message, str):
        return None
    values = {str(key): str(value).lower() if isinstance(value, bool) else str(value) for key, value in record.items()}
    return _translated(message, values, _LEVELS.get(values.get("level", ""), "I"))


def _plain(value: str) -> str:
    if value[:1] != '"':
        return value
    try:
        text = json.loads(value)
    except ValueError:
        text = value.strip('"')
    return str(text)


def _translated(message: str, values: Mapping[str, str], level: str) -> KeyValueLine:
    stamp = values.get("timestamp", "")
    # Whole seconds: it was written before the next second.
    wall = float(stamp) + 1.0 if _NUMBER.fullmatch(stamp) and int(stamp) > 0 else None
    slot, task = (_number(values.get(name)) for name in ("id_slot", "id_task"))
    function, text_of_slot = _of_slot(message, values)
    if slot is not None and task is not None and 0 <= slot < 1000 and function:
        function = f"{function:>12}"
        text = f"slot {function}: id {slot:2d} | task {task} | {text_of_slot}"
        return KeyValueLine(text, level, wall, slot, task, function, text_of_slot)
    return KeyValueLine(_of_server(message, values), level, wall)


def _number(value: str | None) -> int | None:
    return int(value) if value is not None and _NUMBER.fullmatch(value) else None


def _of_slot(message: str, values: Mapping[str, str]) -> tuple[str, str]:
    """The function that prints it in current builds, and its text; empty for messages without an equivalent."""
    if message == "slot is processing task":
        return "launch_slot_", "processing task, is_child = 0"
    if message == "slot released":
        truncated = int(values.get("truncated") == "true")
        return "release", f"stop processing: n_tokens = {values.get('n_past', '')}, truncated = {truncated}"
    timing = message.lstrip()
    if timing.startswith(("prompt eval time", "eval time", "generation eval time")):
        return "print_timing", re.sub(r"time +=", "time =", timing.removeprefix("generation "), count=1)
    if message == "slot context shift":
        shifted = f"n_keep = {values.get('n_keep')}, n_discard = {values.get('n_discard')}"
        return "update_slots", f"slot context shift, {shifted}"
    return "", ""


def _of_server(message: str, values: Mapping[str, str]) -> str:
    if message == "task error":
        return f"srv    send_error: task id = {values.get('id_task')}, error: {values.get('error')}"
    if message == "HTTP server listening":
        host, port = values.get("hostname", ""), values.get("port", "")
        return f"srv          init: listening on http://{f'[{host}]' if ':' in host else host}:{port}"
    if message == "build info":
        return f"build: {values.get('build')} ({values.get('commit')})"
    if message == "initializing slots":
        return f"srv    load_model: initializing slots, n_slots = {values.get('n_slots')}"
    if message == "unable to load model":
        return f"srv    load_model: failed to load model '{values.get('model')}'"
    return message
