"""Service level objectives, chosen by the user: the thresholds of alert rules, dashboards and terminal warnings.

``LLAMATEL_OBJECTIVES`` holds them for serve and attach: ``ttft=1s,tpot=80ms,error-budget=0.5%``, or the path of a YAML
file with the same keys, which ``llamatel dashboards export --values`` reads too.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamatel.errors import UsageError
from llamatel.inputs.documents import InvalidDocument, parse_yaml
from llamatel.inputs.text_file import read_text

VARIABLE = "LLAMATEL_OBJECTIVES"
_LARGEST_FILE = 1 << 16
_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0}


def seconds(text: str) -> float:
    """``80ms``, ``1.5s``, ``2m``, or a number of seconds. Raises ValueError."""
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m)?", text.strip())
    value = float(found[1]) * _UNITS[found[2] or "s"] if found else 0.0
    if value <= 0:
        raise ValueError(f"{text!r} is not a duration such as 80ms or 1.5s")
    return round(value, 9)


def ratio(text: str) -> float:
    """``0.5%`` or ``0.005``, above 0 and below 1. Raises ValueError."""
    found = re.fullmatch(r"([0-9]{0,9}(?:\.[0-9]{1,9})?)(%?)", text.strip())
    value = float(found[1]) / (100 if found[2] else 1) if found and found[1] else 0.0
    if not 0 < value < 1:
        raise ValueError(f"{text!r} is not a share such as 0.5% or 0.005")
    return round(value, 9)


def count(text: str) -> int:
    """A number of requests, at least 1. Raises ValueError."""
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text.strip()):
        raise ValueError(f"{text!r} is not a number of requests")
    return int(text)


@dataclasses.dataclass(frozen=True, slots=True)
class Objectives:
    """Objectives of a server."""

    ttft_s: float = 2.5
    """Time to first token."""
    tpot_s: float = 0.1
    """Time per output token after the first."""
    error_budget: float = 0.05
    """Share of requests that may miss each of the two."""
    error_rate: float = 0.05
    """Share of requests that may fail before a warning."""
    min_requests: int = 20
    """An alert needs at least this many requests in its longer window."""
    lost_prefill_s: float = 6.0
    """Seconds of prefill a minute that may go to tokens which had been in the cache before a warning."""

    @classmethod
    def parse(cls, values: Mapping[str, Any], base: Objectives | None = None) -> Objectives:
        """From texts by the names of ``KEYS``. Raises UsageError for an unknown key and for a value out of range."""
        changed: dict[str, Any] = {}
        for key, value in values.items():
            if key not in KEYS:
                raise UsageError(f"{key!r} is not an objective: use {', '.join(KEYS)}")
            field, parse = KEYS[key]
            try:
                changed[field] = parse(str(value))
            except ValueError as error:
                raise UsageError(f"{key}: {error}") from error
        return dataclasses.replace(base or cls(), **changed)

    @classmethod
    def read(cls, path: Path) -> Objectives:
        """From a YAML file. Raises UsageError."""
        try:
            values = parse_yaml(read_text(path, "the file of objectives"), largest=_LARGEST_FILE)
        except InvalidDocument as error:
            raise UsageError(f"{path}: {error}") from error
        if not isinstance(values, dict) or any(isinstance(value, (dict, list)) for value in values.values()):
            raise UsageError(f"{path} has to be a mapping such as 'ttft: 1s': {', '.join(KEYS)}")
        return cls.parse(values)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Objectives:
        """From ``LLAMATEL_OBJECTIVES``, else the defaults. Raises UsageError."""
        text = (os.environ if environ is None else environ).get(VARIABLE, "").strip()
        if not text:
            return cls()
        if "=" not in text:
            return cls.read(Path(text))
        pairs = [pair.partition("=") for pair in text.split(",")]
        try:
            return cls.parse({key.strip(): value for key, _, value in pairs})
        except UsageError as error:
            raise UsageError(f"{VARIABLE}: {error}") from error


KEYS = {
    "ttft": ("ttft_s", seconds),
    "tpot": ("tpot_s", seconds),
    "error-budget": ("error_budget", ratio),
    "error-rate": ("error_rate", ratio),
    "min-requests": ("min_requests", count),
    "lost-prefill": ("lost_prefill_s", seconds),
}
"""Each key of the file and the environment variable: the field and its parser."""
