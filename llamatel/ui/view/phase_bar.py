"""A request's time as a bar: queue, prefill, decode, and time that no phase covers."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from llamatel.records import Completion
from llamatel.ui.view.glyphs import STYLES, Glyphs


def phases(completion: Completion) -> list[tuple[str, float]]:
    """The known phases in order, with ``unattributed`` for the time that none covers. Seconds, none negative."""
    known = [
        (name, max(value, 0.0))
        for name, value in (
            ("queue", completion.queue_s),
            ("prefill", completion.prefill_s),
            ("decode", completion.decode_s),
        )
        if value is not None
    ]
    if completion.prefill_s is None and completion.decode_s is None:
        rest = completion.duration_s - sum(value for _, value in known)
        known.append(("unattributed", max(rest, 0.0)))
    return known


def shares(values: Sequence[float], cells: int) -> list[int]:
    """Whole cells in proportion to ``values``; they add up to ``cells`` (to 0 where all values are 0)."""
    total = sum(values)
    if total <= 0:
        return [0] * len(values)
    exact = [value / total * cells for value in values]
    whole = [int(part) for part in exact]
    by_remainder = sorted(range(len(values)), key=lambda i: whole[i] - exact[i])
    for index in by_remainder[: cells - sum(whole)]:
        whole[index] += 1
    return whole


def phase_bar(completion: Completion, cells: int, glyphs: Glyphs) -> Text:
    """The whole request over ``cells`` columns; every request has the same length, so shares can be compared."""
    parts = phases(completion)
    bar = Text()
    for (name, _), length in zip(parts, shares([value for _, value in parts], cells), strict=True):
        bar.append(getattr(glyphs, name) * length, STYLES[name])
    return bar
