"""Values that spans of the server and of the client have in common."""

from __future__ import annotations

_LATEST = 2**33
"""Unix time: the year 2242."""


def rate(tokens: int | None, seconds: float | None) -> float | None:
    """Tokens a second; None where either is unknown or no time passed."""
    return tokens / seconds if tokens is not None and seconds else None


def unix_ns(seconds: float) -> int:
    """Unix seconds in nanoseconds. Raises ValueError for what is no time that a span can have."""
    # In two parts: a product of this size is only exact to 256 ns.
    if not 0 <= seconds < _LATEST:  # one time that does not fit into OTLP costs all spans of an export
        raise ValueError(f"{seconds} is no Unix time")
    whole = int(seconds)
    return whole * 1_000_000_000 + round((seconds - whole) * 1e9)
