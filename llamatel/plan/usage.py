"""How much of a planned cache so many tokens take."""

from __future__ import annotations

from collections.abc import Sequence

from llamatel.plan.cache import CachePart, CachePlan

_COLUMNS = {"k": "k", "v": "v", "r": "recurrent", "s": "recurrent", "other": "other"}
_STATES = ("recurrent", "state")


def bytes_of_parts(plan: CachePlan) -> dict[str, int]:
    """The plan's bytes as metrics divide them: k, v, recurrent, other; a part that takes none is left out."""
    sizes: dict[str, int] = {}
    for column, name in _COLUMNS.items():
        if size := plan.bytes_of(column):
            sizes[name] = sizes.get(name, 0) + size
    return sizes


def bytes_used(plan: CachePlan, sequences: Sequence[int]) -> dict[str, int]:
    """Bytes, by part, of the cells that sequences of so many tokens take.

    A sliding window holds no more tokens of a sequence than it has cells, and may hold fewer than that: llama.cpp frees
    those behind the window when it needs room, so this is the most. States are of one size from a sequence's first
    token on. Empty where that is not known: compressed caches take a cell for several tokens.
    """
    sizes: dict[str, int] = {}
    if any(part.kind == "compressed" for part in plan.parts):
        return sizes
    for part in plan.parts:
        taken = _cells(part, sequences)
        for column, name in _COLUMNS.items():
            if size := part.bytes_of(column):
                sizes[name] = sizes.get(name, 0) + size * taken // (part.cells * part.streams)
    return sizes


def _cells(part: CachePart, sequences: Sequence[int]) -> int:
    """Cells of all streams that are taken."""
    if part.kind in _STATES:
        return min(part.cells * part.streams, sum(tokens > 0 for tokens in sequences))
    return min(part.cells * part.streams, sum(min(tokens, part.cells) for tokens in sequences))
