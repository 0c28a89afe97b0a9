"""Describes in words what a request reused of the KV cache, what was computed again, and why."""

from __future__ import annotations

from llamatel.records import RecomputeCause
from llamatel.ui.view.glyphs import UNICODE, Glyphs
from llamatel.ui.view.number_format import exact, seconds

CAUSES = {
    RecomputeCause.SLOT_TAKEN: "other conversations had taken the slots",
    RecomputeCause.PREFIX_CHANGED: "the client changed the prompt after the tokens that were reused",
    RecomputeCause.NO_CHECKPOINT: "no checkpoint of a sliding-window or recurrent state",
    RecomputeCause.CHECKPOINT_EVICTED: "the checkpoint had been evicted",
    RecomputeCause.CONTEXT_SHIFT: "the context was full and had been shifted",
    RecomputeCause.CACHE_CLEARED: "the cache had been cleared",
    RecomputeCause.PROMPT_CACHE_MISS: "evicted from the prompt cache in host memory",
    RecomputeCause.CACHE_PROMPT_OFF: "the request switched reuse off",
    RecomputeCause.UNKNOWN: "cause not in the log",
}
"""Each cause for people; the enumeration's value is for queries."""


def reuse_text(
    reusable: int | None,
    recomputed: int | None,
    recompute_s: float | None,
    cause: RecomputeCause | str | None,
    glyphs: Glyphs = UNICODE,
) -> str | None:
    """``302 tokens in the slot's cache: 0 reused, 302 computed again in 41 ms (…)``.

    None where that is not known, or where nothing was in the cache.
    """
    found = None if cause is None else RecomputeCause(cause)
    if not reusable and cause is None:
        return None
    parts = []
    if reusable:
        lost = recomputed or 0
        again = f", {exact(lost, glyphs)} computed again in {seconds(recompute_s, glyphs)}" if lost else ""
        kept = exact(reusable - lost, glyphs)
        where = "in the slot's cache" if found is None or not found.at_most else "had been in the cache"
        most = "" if found is None or not found.at_most else "at most "
        parts.append(f"{most}{exact(reusable, glyphs)} token{'s' * (reusable != 1)} {where}: {kept} reused{again}")
    if found is not None:
        parts.append(f"{CAUSES[found]} ({found.value})")
    return "; ".join(parts)
