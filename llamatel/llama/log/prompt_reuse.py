"""Determines how much of a prompt its slot had in the KV cache, and how much of that llama.cpp could not use.

llama.cpp logs the share of the prompt that the chosen slot has (``f_sim_best``) and the share of the slot's tokens that
the prompt keeps (``f_keep``), to three digits, before it decides what it can use of them. Where less is reused, the
rest is recomputed; the cause follows from the lines in between, or from the kind of the model's cache.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from llamatel.records import RecomputeCause

_SIMILARITY = re.compile(
    r"selected slot by LCP similarity, (?:f_)?sim_best = ([01]\.\d{3}) "
    r"(?:\(> [\d.]{1,8} thold\), f_keep = ([01]\.\d{3}))?"
)
_UNUSED = re.compile(r"selected slot by LRU, (?:n_tokens = \d{1,12}, )?t_last = -1 {0,16}$")
ROUNDING = 0.0005
"""Of f_sim_best and f_keep, which have three digits."""


class SlotSelection(NamedTuple):
    """How a slot was selected for a task."""

    similarity: float | None = None
    """Share of the prompt that the slot's cache starts with; None where that was not the reason."""
    unused: bool = False
    """It had never been used."""
    keep: float | None = None
    """Share of the slot's tokens that the prompt starts with."""

    @property
    def replaces(self) -> bool:
        """Whether the prompt has less than half of the slot's tokens, so that llama.cpp saves those in host memory."""
        return self.similarity is None or (self.keep is not None and self.keep < 0.5)

    @property
    def keeps_half(self) -> bool:
        """Whether the prompt is known to have at least half of the slot's tokens."""
        return self.keep is not None and not self.replaces


class Prefill(NamedTuple):
    """The prompt of a finished request, by its log lines."""

    selection: SlotSelection
    cached: int
    """Tokens that were reused."""
    computed: int
    seconds: float | None = None
    arrived: float = 0.0
    """Log time, in seconds."""
    no_checkpoint: bool = False
    """llama.cpp went back to an earlier state of the slot's cache, or to none."""
    evicted: tuple[int, ...] = ()
    """Tokens of the checkpoints of this slot that llama.cpp had erased before."""

    @property
    def prompt(self) -> int:
        """Tokens of the prompt."""
        return self.cached + self.computed

    def recomputed(self, tokens: int, cause: RecomputeCause) -> PromptReuse:
        """``tokens`` of the computed ones had been in the cache; seconds at the request's own prefill rate."""
        tokens = max(0, min(tokens, self.computed))
        seconds = None if self.seconds is None else self.seconds * tokens / self.computed
        return PromptReuse(self.cached + tokens, tokens, seconds, cause)

    def complete(self) -> PromptReuse:
        """No recomputation: nothing that had been in the cache was computed."""
        return PromptReuse(self.cached, 0, 0.0)


class PromptReuse(NamedTuple):
    """Tokens of a prompt; see ``Completion``."""

    reusable: int | None = None
    recomputed: int | None = None
    recompute_s: float | None = None
    cause: RecomputeCause | None = None


UNKNOWN_REUSE = PromptReuse()
_BY_OTHER_REASON, _NEVER_USED = SlotSelection(), SlotSelection(unused=True)


def parse_selection(message: str) -> SlotSelection:
    """``selected slot by ...`` as a record."""
    if message.startswith("selected slot by LRU"):
        return _NEVER_USED if _UNUSED.match(message) else _BY_OTHER_REASON
    found = _SIMILARITY.match(message)
    if found is None:
        return _BY_OTHER_REASON
    similarity, keep = found.groups()
    return SlotSelection(float(similarity), keep=None if keep is None else float(keep))


def refused_reuse(prefill: Prefill, *, rewindable: bool | None, checkpoints: bool | None) -> PromptReuse | None:
    """Tokens of the prompt that the slot had and llama.cpp did not use; None if it used all of them.

    ``rewindable``: whether the model's cache can be cut anywhere, as opposed to sliding windows and recurrent states;
    ``checkpoints``: whether llama.cpp keeps earlier states of it (--ctx-checkpoints). None if that is not known.
    """
    selection = prefill.selection
    if selection.similarity is None:
        return None
    shared = selection.similarity * prefill.prompt
    lost = shared - prefill.cached
    # The last token is always computed.
    if lost <= ROUNDING * prefill.prompt + 1:
        return None
    # A prompt that only appends needs the newest checkpoint at most.
    appends = selection.keep == 1.0 and selection.similarity < 1.0 and checkpoints
    if not prefill.cached and not prefill.no_checkpoint and (rewindable or (rewindable is False and appends)):
        cause = RecomputeCause.CACHE_PROMPT_OFF
    elif prefill.no_checkpoint or rewindable is False:
        evicted = any(prefill.cached < tokens <= shared + 1 for tokens in prefill.evicted)
        cause = RecomputeCause.CHECKPOINT_EVICTED if evicted else RecomputeCause.NO_CHECKPOINT
    else:
        cause = RecomputeCause.UNKNOWN
    return prefill.recomputed(round(lost), cause)
