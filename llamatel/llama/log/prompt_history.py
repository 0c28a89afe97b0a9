"""Tracks which prompts a server's KV cache and host prompt cache hold, which they lost, and why.

The log does not identify conversations. A request certainly continues a cached prompt if it reused all of it. Otherwise
a lost prompt counts as the beginning of a later one if it is at least half as long and not longer. That is
reported where it is no accident: only if prompts of this server that continue none hardly ever fit one, or if there are
conversations and every prompt fits one. The cause of the loss is then certain, and the tokens are an upper bound.

llama.cpp: ``get_available_slot``, ``try_clear_idle_slots`` (tools/server/server-context.cpp), ``server_prompt_cache``
(server-task.cpp).
"""

from __future__ import annotations

import math
import re
import statistics
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter, itemgetter
from typing import NamedTuple

from llamatel.llama.log.prompt_reuse import ROUNDING, UNKNOWN_REUSE, Prefill, PromptReuse, SlotSelection, refused_reuse
from llamatel.records import RecomputeCause

_PURGED = re.compile(r"purging slot (\d{1,4}) with \d{1,12} tokens")
_MOST_HELD, _MOST_LOST = 32, 16
"""Prompts that a request is compared with, the newest of each."""
_MOST_IN_MEMORY = 4096
_RECENT = 32
"""Requests that show whether prompts fit each other."""
_CONVERSATIONS = 2
"""Requests that continued a cached prompt which show that there are conversations."""
_ACCIDENT = 0.001
"""Probability below which prompts that all fit lost ones do not fit them by chance."""
_TREND, _SURE = 12, 4.0
"""Prompts that show whether they grow, and standard deviations: by chance in one of 30,000 cases."""
_FEW = 32
"""Tokens below which prompts fit each other by accident."""
_MARKED = 8
"""Tokens from which a common beginning is more than that of every prompt."""
_LRU_SHARE = 0.1
"""Share of a prompt that a slot may have without being selected for it (--slot-prompt-similarity)."""
_length, _task = attrgetter("prompt"), attrgetter("task")
_CLOCK_S = 0.01
"""How exactly the arrival of a request is known."""


@dataclass(slots=True, eq=False)
class CachedPrompt:
    """The content of a slot after a request."""

    task: int
    tokens: int
    prompt: int
    """Tokens of its prompt; the others are its answer."""
    finished: float
    """Log time, in seconds."""
    unshifted: int | None = None
    """Tokens before the first one that a context shift moved; None without a shift."""
    cleared_by: int = 0
    """Number of the newest request when its slot was cleared, to make room for that."""
    continued: bool = False
    """Whether a later request continues the same conversation."""

    def is_whole(self, cached: int, prompt: int) -> bool:
        """Whether a prompt that reused ``cached`` tokens may have all of this one."""
        return _MARKED // 2 < cached <= self.tokens and cached >= min(self.prompt, prompt) - 1

    def is_kept(self, selection: SlotSelection) -> bool:
        """Whether the prompt that its slot was selected for has all of this one's prompt."""
        return selection.keep is not None and selection.keep + ROUNDING >= (self.prompt - 1) / self.tokens

    def may_start(self, prompt: int) -> bool:
        """Whether a prompt of so many tokens may begin with this one."""
        return not self.continued and self.tokens <= prompt <= 2 * self.tokens

    def may_be_shifted(self, prompt: int) -> bool:
        """Whether a prompt of so many tokens may begin with this one, whose answer a context shift moved."""
        return self.unshifted is not None and not self.continued and self.prompt <= prompt <= 2 * self.tokens

    def might_start(self, prompt: int) -> bool:
        """The same, if the answer is not part of it, or much was added."""
        return not self.continued and prompt <= 4 * self.tokens and self.prompt <= prompt


class CacheContents(NamedTuple):
    """What the cache had when a request got its slot."""

    in_slot: CachedPrompt | None
    lost: tuple[tuple[CachedPrompt, RecomputeCause], ...]
    held: tuple[CachedPrompt, ...]
    """In other idle slots, and in host memory, where the former and the one in its slot may also be."""
    number: int = 0
    """Of the request, counted from 1."""
    finished: float = math.inf
    """Log time when the last of them was finished, or later."""

    def all(self) -> list[CachedPrompt]:
        """All of them."""
        found = [*(prompt for prompt, _ in self.lost), *self.held]
        return found if self.in_slot is None else [*found, self.in_slot]

    def before(self, arrived: float) -> CacheContents:
        """Without prompts that were not finished when a request arrived: it was sent without their answers."""
        latest = arrived + _CLOCK_S
        if self.finished <= latest:
            return self
        in_slot = self.in_slot if self.in_slot is not None and self.in_slot.finished <= latest else None
        return CacheContents(
            in_slot,
            tuple(entry for entry in self.lost if entry[0].finished <= latest),
            tuple(held for held in self.held if held.finished <= latest),
            self.number,
        )


def _newest(prompts: dict[int, CachedPrompt]) -> Iterator[CachedPrompt]:
    return islice(reversed(prompts.values()), _MOST_HELD)


class _Missing(NamedTuple):
    """A prompt that was no longer in the cache."""

    prompt: CachedPrompt
    cause: RecomputeCause
    candidates: tuple[CachedPrompt, ...]
    """The prompts that it was chosen from."""


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
        """Reset for another process."""
        self._slots: dict[int, CachedPrompt] = {}
        """The content of idle slots."""
        self._in_memory: dict[int, CachedPrompt] = {}
        """By task, the oldest first."""
        self._shifted = False
        """Whether a context shift has moved a prompt."""
        self._finished = -math.inf
        """Log time when the last prompt was finished."""
        self._lost: deque[tuple[CachedPrompt, RecomputeCause]] = deque(maxlen=_MOST_LOST)
        self._fits: deque[bool] = deque(maxlen=_RECENT)
        """Whether prompts fitted those that were lost, from the first that did."""
        self._added: deque[int] = deque(maxlen=_RECENT)
        """Tokens that requests added to the cached prompt which they continued."""
        self._new: deque[tuple[int, int]] = deque(maxlen=_RECENT)
        """Numbers and lengths of prompts that continue none that is known."""
        self._started = 0
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
        held = (*_newest(self._slots), *_newest(self._in_memory))
        self._started += 1
        contents = CacheContents(in_slot, tuple(self._lost), held, self._started, self._finished)
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
        self._finished = max(self._finished, content.finished)
        self._shifted = self._shifted or content.unshifted is not None

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
            content.cleared_by = self._started
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

    def reuse(self, contents: CacheContents, prefill: Prefill) -> PromptReuse:
        """Reused and recomputed tokens of a finished request."""
        refused = refused_reuse(prefill, rewindable=self.rewindable, checkpoints=self.checkpoints)
        if refused is not None:
            return refused
        if self._continues(contents, prefill):
            return prefill.complete()
        unproven = prefill.complete()
        if prefill.selection.similarity is None and not prefill.cached and not prefill.selection.unused:
            might = not self.complete or any(held.might_start(prefill.prompt) for held in contents.all())
            unproven = UNKNOWN_REUSE if might else unproven
        found = self._missing(contents.before(prefill.arrived), prefill)
        if found is None or self._is_accident(found.candidates):
            self._new.append((contents.number, prefill.prompt))
            return unproven
        self._settle(found.prompt)
        tokens = min(found.prompt.tokens, prefill.prompt - 1) - prefill.cached
        if tokens < _FEW or found.cause is RecomputeCause.UNKNOWN:
            return unproven
        return prefill.recomputed(tokens, found.cause)

    def _continues(self, contents: CacheContents, prefill: Prefill) -> bool:
        """Whether it reused all of a cached prompt, or all but the last token of its own prompt."""
        cached, prompt, similarity = prefill.cached, prefill.prompt, prefill.selection.similarity
        shared = (_LRU_SHARE if similarity is None else similarity + ROUNDING) * prompt + 1
        known = contents.held if cached > shared else ()  # else it is what the slot had
        best = contents.in_slot
        if best is None or not best.is_whole(cached, prompt):
            best = max((held for held in known if held.is_whole(cached, prompt)), key=_length, default=None)
            if best is None:
                return False
            self.host_cache = True
        self._settle(best)
        self._added.append(prompt - best.tokens)
        return True

    def _missing(self, contents: CacheContents, prefill: Prefill) -> _Missing | None:
        """The prompt that it may continue and that was lost, with the reason; None: nothing fits."""
        cached, prompt = prefill.cached, prefill.prompt
        in_slot = contents.in_slot
        here = contents.held if in_slot is None else (in_slot, *contents.held)
        newest = max(here, key=_task, default=None)
        follows = newest is not None and newest.may_start(prompt)
        position, self._changed_at = self._changed_at, cached if follows else None
        for held in here if self._shifted else ():
            if held.may_be_shifted(prompt) and (held is not in_slot or cached >= (held.unshifted or 0)):
                return _Missing(held, RecomputeCause.CONTEXT_SHIFT, (held,))
        known = not {cached - 1, cached, cached + 1}.isdisjoint(self._beginnings)
        if in_slot is not None and not known and in_slot.may_start(prompt) and prefill.selection.keeps_half:
            return _Missing(in_slot, RecomputeCause.PREFIX_CHANGED, (in_slot,))
        if cached >= _MARKED:
            self._beginnings.append(cached)
        if cached >= _FEW and not known:
            return None  # its slot had this conversation, or one with the same beginning
        # As ``may_start``, without a call for each.
        half = (prompt + 1) // 2
        lost = [entry for entry in contents.lost if half <= entry[0].tokens <= prompt and not entry[0].continued]
        if contents.lost and (lost or self._fits):
            self._fits.append(bool(lost))
        if lost:
            # The one to which as many tokens were added as is usual.
            added = statistics.median(self._added) if self._added else 0
            best, cause = min(lost, key=lambda entry: abs(prompt - entry[0].tokens - added))
            return _Missing(best, cause, tuple(entry[0] for entry in contents.lost))
        if newest is not None and cached >= _MARKED and position == cached:
            self._fits.append(follows)
            if all(self._fits):
                return _Missing(newest, RecomputeCause.PREFIX_CHANGED, (newest,))
        return None

    def _settle(self, prompt: CachedPrompt) -> None:
        """Record that a later request continues this conversation."""
        prompt.continued = True
        self._in_memory.pop(prompt.task, None)
        if prompt in map(itemgetter(0), self._lost):
            self._lost = deque((entry for entry in self._lost if entry[0] is not prompt), _MOST_LOST)

    def _prompts_grow(self) -> bool:
        """Whether the recent ones keep getting longer, as conversations do (Mann and Kendall's test)."""
        lengths = [length for _, length in self._new]
        n = len(lengths)
        if n < _TREND:
            return False
        rises = sum((b > a) - (b < a) for at, a in enumerate(lengths) for b in lengths[at + 1 :])
        return rises > _SURE * math.sqrt(n * (n - 1) * (2 * n + 5) / 18)

    def _is_accident(self, candidates: Sequence[CachedPrompt]) -> bool:
        """Whether a prompt that continues none may fit one of these, as the recent ones show."""
        new = len(self._new)
        if all(self._fits) and self._prompts_grow():
            return False
        doubtful = len(self._added) < _CONVERSATIONS or not all(self._fits)
        left = [each for each in candidates if not each.continued]
        cleared = [each for each in left if each.cleared_by]
        tokens = sorted(each.tokens for each in left if not each.cleared_by)
        fitting = 0
        for number, length in self._new:
            at = bisect_left(tokens, (length + 1) // 2)  # the shortest that may start it
            if (at < len(tokens) and tokens[at] <= length) or any(
                each.may_start(length) and number != each.cleared_by for each in cleared
            ):
                fitting += 1
                if doubtful and fitting > new // 10:
                    return True
        if fitting <= new // 10:
            return fitting > 0 and 2 * self._fits.count(False) > self._fits.count(True)
        # Where there are conversations, and every prompt fits a lost one, that is no accident.
        return ((fitting + 1) / (new + 2)) ** len(self._fits) > _ACCIDENT
