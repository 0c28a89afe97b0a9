"""Parses timestamps of container runtimes, journald, syslog and log collectors to Unix time.

A timestamp is rounded up to its resolution: the line was written then at the latest. Those without a time zone are
local time, and count only where that is not in the future.
"""

from __future__ import annotations

import re
import time
from datetime import datetime, timezone

RFC3339 = r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?:Z|[+-]\d\d:?\d\d)?"
SYSLOG = r"[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d(?:\.\d{1,6})?"
JOURNAL_FULL = r"[A-Z][a-z]{2} \d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d{1,6})? [A-Z+\-\d:]{1,6}"
_EPOCH = r"(?<![\d.])\d{10}\.\d{3,9}(?![\d.])"
_TAI64N = r"@4[0-9a-f]{23}\b"
_STAMP = re.compile(rf"({JOURNAL_FULL})|({RFC3339})|({SYSLOG})|({_EPOCH})|({_TAI64N})")
_PARTS = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,9}))? ?(Z|UTC|GMT|[+-]\d\d:?\d\d)?([A-Z]{1,5})?"
)
_TAI_AHEAD_S = 10
"""The format of daemontools, runit and s6."""
_LATEST = 2**33
"""Unix time: the year 2242."""
_AHEAD_S = 60.0
"""Most difference between the clocks of two machines."""


def find_time(text: str) -> float | None:
    """The first timestamp in a prefix; None where there is none that is certain."""
    found = _STAMP.search(text)
    if found is None:
        return None
    journal, rfc3339, syslog, epoch, tai64n = found.groups()
    if tai64n:
        return _within(int(tai64n[2:17], 16) - _TAI_AHEAD_S + int(tai64n[17:], 16) / 1e9)
    if epoch:
        return from_number(float(epoch))
    return _from_syslog(syslog) if syslog else _from_date(rfc3339 or journal[4:])


def parse_time(value: object) -> float | None:
    """A timestamp as a field of a JSON or logfmt record has it: text, or a number since 1970 of any usual unit."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return from_number(value)
    if not isinstance(value, str) or not 8 <= len(value) <= 64:
        return None
    if re.fullmatch(r"\d{9,19}(?:\.\d{1,9})?", value):
        return from_number(float(value))
    return find_time(value)


def from_number(value: float) -> float | None:
    """Seconds, milliseconds, microseconds or nanoseconds since 1970, by their size; None for any other number."""
    for largest, unit in ((1e11, 1.0), (1e14, 1e3), (1e17, 1e6), (1e20, 1e9)):
        if 1e9 * unit / 10 <= value < largest:
            seconds = value / unit
            resolution = 1.0 if unit == 1.0 and seconds == int(seconds) else 0.0
            return _within(seconds + resolution)
    return None


def _within(unix: float) -> float | None:
    return unix if 0 < unix < _LATEST else None


def _from_date(text: str) -> float | None:
    found = _PARTS.match(text)
    if found is None:
        return None
    *numbers, fraction, zone, other_zone = found.groups()
    try:
        at = datetime(*(int(number) for number in numbers), tzinfo=timezone.utc)  # type: ignore[misc,arg-type]
    except ValueError:
        return None
    seconds = float(f"0.{fraction}") + 10.0 ** -len(fraction) if fraction else 1.0
    if zone is None:
        return _local(at, seconds) if other_zone in (None, *time.tzname) else None
    offset = 0
    if zone[0] in "+-":
        offset = (int(zone[1:3]) * 60 + int(zone[-2:])) * (60 if zone[0] == "+" else -60)
    return _within(at.timestamp() - offset + seconds)


def _local(at: datetime, seconds: float) -> float | None:
    try:
        unix = at.replace(tzinfo=None).timestamp() + seconds
    except (OverflowError, OSError, ValueError):
        return None
    return _within(unix) if unix <= time.time() + _AHEAD_S else None


def _from_syslog(text: str) -> float | None:
    """``Nov 26 10:00:00``: local time, of this year or the last."""
    stamp, _, fraction = text.partition(".")
    seconds = float(f"0.{fraction}") + 10.0 ** -len(fraction) if fraction else 1.0
    this_year = time.localtime().tm_year
    for year in (this_year, this_year - 1):
        try:
            at = datetime.strptime(f"{year} {stamp}", "%Y %b %d %H:%M:%S").replace(tzinfo=timezone.utc)
        except ValueError:  # a month in another language, February 29
            continue
        if (unix := _local(at, seconds)) is not None:
            return unix
    return None
