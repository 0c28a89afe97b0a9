"""Checks a live document of another llamatel: an untrusted peer may send any JSON.

Fields that the screen reads must have the types of ``llamatel.ui.live``, and their text is made printable. Other
fields are passed through for ``top --json``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llamatel.records import Outcome, RecomputeCause
from llamatel.ui.live import VERSION
from llamatel.ui.view.text_page import printable

Check = Callable[[object], Any]
"""Returns the accepted value. Raises InvalidDocument."""

_MAX_TEXT = 1000
_MAX_NUMBER = 1e15
"""Larger than any byte count, token count or Unix time."""
_MAX_ITEMS = 10_000


class InvalidDocument(ValueError):
    """The document does not have the form that llamatel sends."""


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise InvalidDocument("a text is expected")
    return printable(value, _MAX_TEXT)


def _number(value: object) -> float | int:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidDocument("a number is expected")
    if not math.isfinite(value) or abs(value) > _MAX_NUMBER:
        raise InvalidDocument("a number is out of range")
    return value


def _count(value: object) -> int:
    number = _number(value)
    if not isinstance(number, int) or number < 0:
        raise InvalidDocument("a count is expected")
    return number


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidDocument("true or false is expected")
    return value


def _outcome(value: object) -> str:
    return Outcome(value).value


def _cause(value: object) -> str:
    return RecomputeCause(value).value


def _optional(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def _list(check: Check) -> Check:
    def checked(value: object) -> list[Any]:
        if not isinstance(value, list) or len(value) > _MAX_ITEMS:
            raise InvalidDocument("a list is expected")
        return [check(one) for one in value]

    return checked


def _mapping(check: Check) -> Check:
    def checked(value: object) -> dict[str, Any]:
        if not isinstance(value, dict) or len(value) > _MAX_ITEMS:
            raise InvalidDocument("an object is expected")
        return {_text(key): check(one) for key, one in value.items()}

    return checked


@dataclass(frozen=True, slots=True)
class _Object:
    """An object with these fields, all of them required."""

    fields: Mapping[str, Check]

    def __call__(self, value: object) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise InvalidDocument("an object is expected")
        checked = dict(value)
        for name, check in self.fields.items():
            if name not in value:
                raise InvalidDocument(f"{name} is missing")
            try:
                checked[name] = check(value[name])
            except ValueError as error:
                raise InvalidDocument(f"{name}: {error}") from error
        return checked


_TEXT, _NUMBER, _COUNT, _FLAG = _optional(_text), _optional(_number), _optional(_count), _optional(_flag)

_LINES = _list(
    _Object({"points": _list(_Object({"context": _count, "tokens_per_second": _number, "ceiling_share": _NUMBER}))})
)
SPEED = _Object({"prefill": _LINES, "decode": _LINES})
"""What ``llamatel doctor`` reads of ``speed``; absent in documents of older versions."""

_ROW = _Object(
    {
        "key": _text, "labels": _text, "up": _FLAG, "state": _TEXT, "stale": _flag, "trouble": _TEXT, "busy": _COUNT,
        "slots": _COUNT, "deferred": _COUNT, "decode_rate": _NUMBER, "headroom": _NUMBER, "ttft_p95_s": _NUMBER,
        "requests": _COUNT, "failed": _COUNT, "restarts": _COUNT, "down_since": _NUMBER,
    }
)  # fmt: skip
_SLOT = _Object(
    {
        "id": _count, "busy": _flag, "context_size": _COUNT, "context_tokens": _COUNT, "prompt_computed": _COUNT,
        "prompt_cached": _COUNT, "decoded": _COUNT, "decode_rate": _NUMBER,
    }
)  # fmt: skip
_KV_CACHE = _Object({"active": _COUNT, "cached": _COUNT, "capacity": _COUNT, "used_bytes": _mapping(_number)})
_SERVER = _Object(
    {
        "key": _text, "address": _TEXT, "port": _COUNT, "model": _TEXT, "up": _FLAG, "state": _TEXT, "stale": _flag,
        "started_at": _NUMBER, "deferred": _COUNT, "decode_rate": _NUMBER, "counters": _mapping(_number),
        "slots": _optional(_list(_SLOT)), "kv_cache": _optional(_KV_CACHE),
    }
)  # fmt: skip
_DISTRIBUTION = _Object({"n": _count, "p50": _NUMBER, "p95": _NUMBER, "p99": _NUMBER})
_SUMMARY = _Object(
    {
        "requests": _Object(dict.fromkeys(("total", *(outcome.value for outcome in Outcome)), _count)),
        "time_to_first_token_s": _DISTRIBUTION,
        "time_per_output_token_s": _DISTRIBUTION,
    }
)
_REQUEST = _Object(
    {
        "server": _text, "trace_id": _TEXT, "slot": _COUNT, "task": _COUNT, "outcome": _outcome, "error": _TEXT,
        "started_at": _number, "ended_at": _number, "queue_s": _NUMBER, "prefill_s": _NUMBER,
        "decode_s": _NUMBER, "first_token_at": _NUMBER, "prompt_tokens": _COUNT, "prompt_cached": _COUNT,
        "prompt_reusable": _COUNT, "prompt_recomputed": _COUNT, "recompute_s": _NUMBER,
        "recompute_cause": _optional(_cause), "generated": _COUNT, "context_tokens": _COUNT, "truncated": _FLAG,
        "context_shifts": _count, "bandwidth_utilization": _NUMBER,
    }
)  # fmt: skip
_DEVICE = _Object(
    {
        "name": _text, "utilization": _NUMBER, "memory_used": _NUMBER, "memory_limit": _NUMBER, "power_w": _NUMBER,
        "temperature_c": _NUMBER, "throttled_by": _optional(_list(_text)),
    }
)  # fmt: skip
_DOCUMENT = _Object(
    {
        "version": _count,
        "taken_at": _number,
        "keys": _list(_text),
        "overview": _list(_ROW),
        "alarms": _list(_Object({"at": _number, "text": _text})),
        "servers": _list(_SERVER),
        "focus": _TEXT,
        "history": _Object({"busy": _list(_NUMBER), "decode_rate": _list(_NUMBER)}),
        "summary": _SUMMARY,
        "requests": _list(_REQUEST),
        "devices": _list(_DEVICE),
    }
)


def check_document(value: object) -> dict[str, Any]:
    """The checked document. Raises InvalidDocument with the name of an unexpected field."""
    if not isinstance(value, dict) or value.get("version") != VERSION:
        raise InvalidDocument("no live document of this version")
    document = _DOCUMENT(value)
    keys = document["keys"]
    for name in ("overview", "servers"):
        if sorted(row["key"] for row in document[name]) != sorted(keys):
            raise InvalidDocument(f"{name} and keys name different servers")
    if len(set(keys)) != len(keys) or document["focus"] not in (keys or [None]):
        raise InvalidDocument("keys and focus do not fit together")
    return document
