"""How much of a prompt was in the KV cache of its slot, and how much of that was computed again.

llama.cpp logs the share of the prompt that the chosen slot has (``f_sim_best``, three digits) before it decides what it
can use of it. Where less is reused, the rest is recomputed. The cause follows from the lines in between, or from the
kind of the model's cache; else it is unknown.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from llamatel.records import RecomputeCause

_SIMILARITY = re.compile(r"selected slot by LCP similarity, (?:f_)?sim_best = ([01]\.\d{3}) ")
_UNUSED = re.compile(r"selected slot by LRU, (?:n_tokens = \d{1,12}, )?t_last = -1 {0,16}$")
_ROUNDING = 0.0005


class SlotSelection(NamedTuple):
    """How a slot was selected for a task."""

    similarity: float | None = None
    """Share of the prompt that the slot's cache starts with; None where that was not the reason."""
    unused: bool = False
    """It had never been used."""


class PromptReuse(NamedTuple):
    """Tokens of a prompt; see ``Completion``."""

    reusable: int | None = None
    recomputed: int | None = None
    recompute_s: float | None = None
    cause: RecomputeCause | None = None


UNKNOWN_REUSE = PromptReuse()
_NOTHING = PromptReuse(0, 0, 0.0)
_BY_OTHER_REASON, _NEVER_USED = SlotSelection(), SlotSelection(unused=True)


def parse_selection(message: str) -> SlotSelection:
    """``selected slot by ...`` as a record."""
    if message.startswith("selected slot by LRU"):
        return _NEVER_USED if _UNUSED.match(message) else _BY_OTHER_REASON
    found = _SIMILARITY.match(message)
    return _BY_OTHER_REASON if found is None else SlotSelection(float(found.group(1)))


def prompt_reuse(
    selection: SlotSelection | None,
    *,
    cached: int | None,
    computed: int | None,
    prefill_s: float | None,
    no_checkpoint: bool,
    checkpoint_evicted: bool,
    rewindable: bool | None,
) -> PromptReuse:
    """Reused and recomputed tokens, with seconds at the request's own prefill rate.

    ``no_checkpoint``: it went back to an earlier state, or to none. ``checkpoint_evicted``: it had
    logged before that it erased one of this slot's. ``rewindable``: whether the model's cache can be cut anywhere, as
    opposed to sliding windows and recurrent states; None if that is not known.
    """
    if selection is None or cached is None or computed is None:
        return UNKNOWN_REUSE
    if selection.similarity is None:
        # Tokens from elsewhere than the slot are from the prompt cache in host memory.
        if cached:
            return PromptReuse(cached, 0, 0.0)
        return _NOTHING if selection.unused else UNKNOWN_REUSE
    prompt = cached + computed
    lost = selection.similarity * prompt - cached
    # The last token is always computed.
    if lost <= _ROUNDING * prompt + 1:
        return PromptReuse(cached, 0, 0.0)
    recomputed = min(round(lost), computed)
    if no_checkpoint or rewindable is False:
        cause = RecomputeCause.CHECKPOINT_EVICTED if checkpoint_evicted else RecomputeCause.NO_CHECKPOINT
    elif rewindable and not cached:
        cause = RecomputeCause.CACHE_PROMPT_OFF
    else:
        cause = RecomputeCause.UNKNOWN
    return PromptReuse(
        cached + recomputed, recomputed, None if prefill_s is None else prefill_s * recomputed / computed, cause
    )
