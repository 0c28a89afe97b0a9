"""Formats numbers for people: three significant digits, bounded width, a dash for unknown."""

from __future__ import annotations

from llamatel.ui.view.glyphs import UNICODE, Glyphs


def _three_digits(value: float) -> str:
    for decimals, limit in ((2, 10), (1, 100)):
        text = f"{value:.{decimals}f}"
        if float(text) < limit:
            return text
    return f"{value:.0f}"


def seconds(value: float | None, glyphs: Glyphs = UNICODE) -> str:
    """A duration in at most 7 columns: ``0.42 ms``, ``412 ms``, ``1.23 s``, ``12m03s``, ``3h05m``."""
    if value is None:
        return glyphs.unknown
    if value == 0:
        return "0 ms"
    if round(value * 1000) < 1000:
        return f"{_three_digits(value * 1000)} ms"
    whole = round(value)
    if whole < 100:
        return f"{_three_digits(value)} s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def count(value: int | None, glyphs: Glyphs = UNICODE, *, width: int = 5) -> str:
    """A number of tokens in at most ``width`` (4 or more) columns: exact while it fits, then ``131k``, ``12M``."""
    if value is None:
        return glyphs.unknown
    if value < 10**width:
        return str(value)
    for unit, name in ((10**3, "k"), (10**6, "M")):
        if round(value / unit) < 1000:
            return f"{round(value / unit)}{name}"
    return f"{round(value / 10**9)}G"


def exact(value: int | None, glyphs: Glyphs = UNICODE) -> str:
    """A number of tokens in full, for running text."""
    return glyphs.unknown if value is None else f"{value:,}"


def rate(value: float | None, glyphs: Glyphs = UNICODE) -> str:
    """Tokens a second, in at most 5 columns."""
    if value is None:
        return glyphs.unknown
    if value == 0:
        return "0"
    return _three_digits(value) if value < 99.95 else count(round(value), glyphs)


def plural(number: int, noun: str) -> str:
    """``1 request``, ``2 requests``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
