"""Conversions of attribute values and times for all spans."""

from __future__ import annotations

from typing import Any, TypeVar

_LATEST = 2**33
"""Unix time: the year 2242."""
MAX_TEXT = 1000
"""Most characters of one external value."""

T = TypeVar("T")


def encodable(value: T) -> T:
    """A value (text, or a list or dict of them) whose text is valid UTF-8: a lone surrogate costs a whole export."""
    found: Any = value
    if isinstance(found, str):
        return found if found.isascii() else found.encode("utf-8", "replace").decode()  # type: ignore[return-value]
    if isinstance(found, dict):
        return {encodable(key): encodable(one) for key, one in found.items()}  # type: ignore[return-value]
    if isinstance(found, (list, tuple)):
        return type(found)(encodable(one) for one in found)  # type: ignore[return-value]
    return value


def cut(text: str) -> str:
    """Text of at most ``MAX_TEXT`` characters."""
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def rate(tokens: int | None, seconds: float | None) -> float | None:
    """Tokens a second; None where either is unknown or no time passed."""
    return tokens / seconds if tokens is not None and seconds else None


def unix_ns(seconds: float) -> int:
    """Unix seconds in nanoseconds. Raises ValueError for a time that no span can have."""
    # In two parts: a product of this size is only exact to 256 ns.
    if not 0 <= seconds < _LATEST:  # one time that does not fit into OTLP would fail the whole export
        raise ValueError(f"{seconds} is not a Unix time")
    whole = int(seconds)
    return whole * 1_000_000_000 + round((seconds - whole) * 1e9)
