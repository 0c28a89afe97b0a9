"""Which prompts a server's KV cache and its prompt cache in host memory hold, which they lost, and why.

The log names no conversations. A request continues a cached prompt for certain if it reused all of it. Otherwise a
prompt that was lost stands for the beginning of a later one if it is at least half as long and not longer: then the
cause of the loss is certain, and the tokens are an upper bound. Where prompts mostly do not fit each other, as in a
batch of unrelated ones, no cause is given.

llama.cpp: ``get_available_slot``, ``try_clear_idle_slots`` (tools/server/server-context.cpp), ``server_prompt_cache``
(server-task.cpp).
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from itertools import chain, islice
from typing import NamedTuple

from llamatel.llama.log.prompt_reuse import UNKNOWN_REUSE, PromptReuse, SlotSelection, recomputed, refused_reuse
from llamatel.records import RecomputeCause

_PURGED = re.compile(r"purging slot (\d{1,4}) with \d{1,12} tokens")
_MOST_HELD, _MOST_LOST = 32, 16
"""Prompts that a request is compared with, the newest of each."""
_MOST_IN_MEMORY = 4096
_RECENT = 16
"""Requests that show whether prompts fit each other."""
_MISFITS = 4
"""... and how many of them may not."""
_FEW = 32
"""Tokens below which prompts fit each other by accident."""
_MARKED = 8
"""Tokens from which a common beginning is more than that of every prompt."""
_LRU_SHARE = 0.1
"""Share of a prompt that a slot may have without being selected for it (--slot-prompt-similarity)."""
_ROUNDING = 0.0005
_CLOCK_S = 0.01
"""How exactly the arrival of a request is known."""


@dataclass(slots=True, eq=False)
class CachedPrompt:
    """What a request left in its slot."""

    task: int
    tokens: int
    prompt: int
    """Tokens of its prompt; the others are its answer."""
    finished: float
    """Log time, in seconds."""
    unshifted: int | None = None
    """Tokens before the first one that a context shift moved; None without a shift."""
    continued: bool = False
    """Whether a later request stands for the same conversation."""

    def is_whole(self, cached: int, prompt: int) -> bool:
        """Whether a prompt that reused ``cached`` tokens may have all of this one."""
        return _MARKED // 2 < cached <= self.tokens and cached >= min(self.prompt, prompt) - 1

    def is_kept(self, selection: SlotSelection) -> bool:
        """Whether the prompt that its slot was selected for has all of this one's prompt."""
        return selection.keep is not None and selection.keep + _ROUNDING >= (self.prompt - 1) / self.tokens

    def may_start(self, prompt: int) -> bool:
        """Whether a prompt of so many tokens may begin with this one."""
        return not self.continued and self.tokens <= prompt <= 2 * self.tokens

    def might_start(self, prompt: int) -> bool:
        """The same, if the answer is not part of it, or much was added."""
        return not self.continued and prompt <= 4 * self.tokens and self.prompt <= prompt


class CacheContents(NamedTuple):
    """What the cache had when a request got its slot."""

    in_slot: CachedPrompt | None
    lost: tuple[tuple[CachedPrompt, RecomputeCause], ...]
    held: tuple[CachedPrompt, ...]
    """In other idle slots and in host memory."""

    def all(self) -> list[CachedPrompt]:
        """All of them."""
        found = [*(prompt for prompt, _ in self.lost), *self.held]
        return found if self.in_slot is None else [*found, self.in_slot]

    def before(self, arrived: float) -> CacheContents:
        """Without prompts that were not finished when a request arrived: it was sent without their answers."""
        latest = arrived + _CLOCK_S
        in_slot = self.in_slot if self.in_slot is not None and self.in_slot.finished <= latest else None
        return CacheContents(
            in_slot,
            tuple(entry for entry in self.lost if entry[0].finished <= latest),
            tuple(held for held in self.held if held.finished <= latest),
        )


class PromptHistory:
    """The prompts of one llama.cpp process, by the lines of its log. Not thread-safe."""

    def __init__(self) -> None:
        self.rewindable: bool | None = None
        """Whether the model's KV cache can be cut anywhere; None: not known."""
        self.checkpoints: bool | None = None
        """Whether earlier states of it are kept (--ctx-checkpoints); None: not known."""
        self.host_cache: bool | None = None
        """Whether prompts are also kept in host memory (--cache-ram); None: not known."""
        self.unified: bool | None = None
        """Whether slots share one pool: then idle slots are moved to host memory when a request starts."""
        self.complete = False
        """Whether the log was read since the server started."""
        self.reset()

    def reset(self) -> None:
        """Another process follows."""
        self._slots: dict[int, CachedPrompt] = {}
        """The content of idle slots."""
        self._in_memory: dict[int, CachedPrompt] = {}
        """By task, the oldest first."""
        self._lost: deque[tuple[CachedPrompt, RecomputeCause]] = deque(maxlen=_MOST_LOST)
        self._fits: deque[bool] = deque(maxlen=_RECENT)
        self._since_return = 0
        """Requests since one continued a cached prompt."""
        self._beginnings: deque[int] = deque(maxlen=_RECENT)
        """Lengths of what different conversations start with."""
        self._changed_at: int | None = None
        """Where the previous request differed from the prompts in the cache."""

    # -- what the log shows -------------------------------------------------------------------------------------------

    def selected(self, slot: int, selection: SlotSelection) -> None:
        """A slot was selected; llama.cpp saves its content if the prompt has little of it."""
        content = self._slots.get(slot)
        if content is not None and selection.replaces:
            self._save(content)

    def launched(self, slot: int, selection: SlotSelection | None) -> CacheContents:
        """A request got a slot."""
        in_slot = self._slots.pop(slot, None)
        others = chain(reversed(self._slots.values()), reversed(self._in_memory.values()))
        held = dict.fromkeys(islice((prompt for prompt in others if prompt is not in_slot), _MOST_HELD))
        contents = CacheContents(in_slot, tuple(self._lost), tuple(held))
        if in_slot is not None and selection is not None and not in_slot.is_kept(selection):
            saved = selection.replaces and self.host_cache is not False
            if not saved or self.host_cache is None:
                self._lose(in_slot, RecomputeCause.UNKNOWN if saved else RecomputeCause.SLOT_TAKEN)
        if self.host_cache is not False:
            for content in self._slots.values():
                self._save(content)
            if self.unified and self.host_cache:
                self._slots.clear()
        return contents

    def released(self, slot: int, content: CachedPrompt) -> None:
        """A request left its prompt and answer in its slot."""
        self._slots[slot] = content

    def read(self, message: str) -> None:
        """Read a message of the server that is about its caches."""
        if "removing oldest entry" in message:
            self.host_cache = True
            if self._in_memory:
                self._evict(next(iter(self._in_memory)))
        elif "exceeds cache size limit" in message:
            self.host_cache = True
            if self._in_memory:
                self._evict(next(reversed(self._in_memory)))
        elif (found := _PURGED.match(message)) is not None:
            self.clear_slot(int(found.group(1)))
        elif message.startswith("prompt cache is "):
            self.host_cache = message.startswith("prompt cache is enabled")

    def clear(self) -> None:
        """The model was unloaded."""
        for prompt in {**self._in_memory, **{content.task: content for content in self._slots.values()}}.values():
            self._lose(prompt, RecomputeCause.CACHE_CLEARED)
        self._slots.clear()
        self._in_memory.clear()

    def clear_slot(self, slot: int) -> None:
        """A slot was emptied."""
        content = self._slots.pop(slot, None)
        if content is not None:
            self._lose(content, RecomputeCause.CACHE_CLEARED)

    def polled_empty(self, slot: int, task: int | None) -> None:
        """llama.cpp reports that an idle slot, last used by ``task``, holds no tokens."""
        content = self._slots.get(slot)
        if content is not None and content.task == task:
            self.clear_slot(slot)

    def _save(self, prompt: CachedPrompt) -> None:
        if self.host_cache is not False and len(self._in_memory) < _MOST_IN_MEMORY:
            self._in_memory.setdefault(prompt.task, prompt)

    def _evict(self, task: int) -> None:
        prompt = self._in_memory.pop(task)
        if prompt not in self._slots.values():
            self._lose(prompt, RecomputeCause.PROMPT_CACHE_MISS)

    def _lose(self, prompt: CachedPrompt, cause: RecomputeCause) -> None:
        if not prompt.continued:
            self._lost.append((prompt, cause))

    # -- what a request reused ----------------------------------------------------------------------------------------

    def reuse(
        self,
        contents: CacheContents,
        selection: SlotSelection,
        *,
        cached: int,
        computed: int,
        prefill_s: float | None,
        no_checkpoint: bool,
        checkpoint_evicted: bool,
        arrived: float,
    ) -> PromptReuse:
        """Reused and recomputed tokens of a finished request, which arrived at log time ``arrived``."""
        refused = refused_reuse(
            selection, cached=cached, computed=computed, prefill_s=prefill_s, no_checkpoint=no_checkpoint,
            checkpoint_evicted=checkpoint_evicted, rewindable=self.rewindable, checkpoints=self.checkpoints,
        )  # fmt: skip
        if refused is not None:
            return refused
        prompt = cached + computed
        if self._continues(contents, selection, cached, prompt):
            return PromptReuse(cached, 0, 0.0)
        shown = selection.similarity is not None or cached > 0 or selection.unused
        found = self._missing(contents.before(arrived), selection, cached, prompt)
        if found is None:
            might = not self.complete or any(held.might_start(prompt) for held in contents.all())
            return UNKNOWN_REUSE if might and not shown else PromptReuse(cached, 0, 0.0)
        missed, cause = found
        self._settle(missed)
        tokens = min(missed.tokens, prompt - 1) - cached
        if tokens < _FEW or cause is RecomputeCause.UNKNOWN or not self._are_conversations():
            return PromptReuse(cached, 0, 0.0) if shown else UNKNOWN_REUSE
        return recomputed(tokens, cause, cached=cached, computed=computed, prefill_s=prefill_s)

    def _continues(self, contents: CacheContents, selection: SlotSelection, cached: int, prompt: int) -> bool:
        """Whether it reused all of a cached prompt, or all but the last token of its own."""
        self._since_return += 1
        shared = (_LRU_SHARE if selection.similarity is None else selection.similarity + _ROUNDING) * prompt + 1
        known = contents.held if cached > shared else ()  # else it is what the slot had
        best = contents.in_slot
        if best is None or not best.is_whole(cached, prompt):
            best = max((held for held in known if held.is_whole(cached, prompt)), key=_length, default=None)
            if best is None:
                return False
            self.host_cache = True
        self._settle(best)
        self._since_return = 0
        return True

    def _missing(
        self, contents: CacheContents, selection: SlotSelection, cached: int, prompt: int
    ) -> tuple[CachedPrompt, RecomputeCause] | None:
        """The prompt that it may continue and that was not there, with the reason; None: nothing fits."""
        in_slot = contents.in_slot
        newest = max((*contents.held, in_slot) if in_slot is not None else contents.held, key=_task, default=None)
        lost = [entry for entry in contents.lost if entry[0].may_start(prompt)]
        follows = newest is not None and newest.may_start(prompt)
        if newest is not None or contents.lost:
            # Of many lost prompts one always fits; if conversations take turns, it is the oldest one.
            self._fits.append(contents.lost[0][0].may_start(prompt) if contents.lost else follows)
        position, self._changed_at = self._changed_at, cached if follows else None
        for held in contents.held if in_slot is None else (in_slot, *contents.held):
            kept = held.unshifted
            if (
                kept is not None
                and not held.continued
                and held.prompt <= prompt
                and (held is not in_slot or cached >= kept)
            ):
                return held, RecomputeCause.CONTEXT_SHIFT
        changed = (
            in_slot is not None
            and selection.keep is not None
            and not selection.replaces
            and in_slot.may_start(prompt)
            and not any(abs(beginning - cached) <= 1 for beginning in self._beginnings)
        )
        if in_slot is not None and changed:
            return in_slot, RecomputeCause.PREFIX_CHANGED
        if cached >= _MARKED:
            self._beginnings.append(cached)
        if lost:
            return lost[0]  # slots are taken by turns
        if newest is not None and follows and cached >= _MARKED and position == cached:
            return newest, RecomputeCause.PREFIX_CHANGED
        return None

    def _settle(self, prompt: CachedPrompt) -> None:
        """A later request stands for this conversation."""
        prompt.continued = True
        self._in_memory.pop(prompt.task, None)
        if any(entry[0] is prompt for entry in self._lost):
            self._lost = deque((entry for entry in self._lost if entry[0] is not prompt), _MOST_LOST)

    def _are_conversations(self) -> bool:
        """Whether the prompts of this server continue each other, as far as the recent ones show."""
        return self._since_return < 2 * _RECENT or len(self._fits) < _RECENT or self._fits.count(False) <= _MISFITS


def _length(prompt: CachedPrompt) -> int:
    return prompt.prompt


def _task(prompt: CachedPrompt) -> int:
    return prompt.task
