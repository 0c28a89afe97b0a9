"""One request that holds a slot, as logged by that slot's lines. Times are log times, in seconds.

Cached tokens follow from the prompt's length, where a build prints it, or from the release line: n_tokens = cached +
computed + generated - 1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from llamatel.llama.log.prompt_history import CacheContents, CachedPrompt, PromptHistory
from llamatel.llama.log.prompt_reuse import UNKNOWN_REUSE, Prefill, SlotSelection
from llamatel.records import Completion, Outcome, ServerInfo

# Numbers have no more digits than llama.cpp's can have.
_RATE = r"(?: +\( *[\d.]{1,20} ms per token, +(\d{1,12}\.\d\d) tokens per second\))?"
_PREFILL = re.compile(r"prompt eval time = +(\d{1,12}(?:\.\d{1,6})?) ms / +(\d{1,12}) tokens" + _RATE, re.ASCII)
_DECODE = re.compile(r"eval time = +(\d{1,12}(?:\.\d{1,6})?) ms / +(\d{1,12}) (?:tokens|runs)" + _RATE, re.ASCII)
_DRAFT = re.compile(r"draft acceptance[^(\n]{1,64}\( *(\d{1,12}) accepted / +(\d{1,12}) generated\)")
_PROMPT = re.compile(r"new prompt, [^\n]{0,100}?\b(?:task\.n_tokens|n_prompt_tokens) = (\d{1,12})\b")
_SHIFT = re.compile(r"slot context shift, n_keep = (\d{1,12}), n_left = \d{1,12}, n_discard = (\d{1,12})")
_EVICTED = re.compile(r"erasing old context checkpoint \(pos_min = \d{1,12}, pos_max = (\d{1,12})")
CONTEXT_FULL = "Context size has been exceeded"


def _seconds(text: str, printed_rate: str | None, tokens: int) -> float:
    """A time printed to 0.01 ms, refined to microseconds where the rate of ``tokens`` on the line is that precise."""
    printed = float(text)
    if printed_rate is not None and tokens > 0 and (rate := float(printed_rate)) > 0:
        exact = tokens / rate * 1e3
        if exact * 0.005 / rate < 0.0004 and abs(exact - printed) < 0.0055:
            return round(exact, 3) / 1e3
    return printed / 1e3


class LoggedRequest:
    """Its log so far. Most of its attributes are never set: their defaults are the class's."""

    queue_s: float | None = None
    prompt: int | None = None
    mixed: bool = False
    """Whether another server's lines are among its own: a timing was logged twice."""
    prefill_s: float | None = None
    computed: int | None = None
    decode_s: float | None = None
    generated: int | None = None
    timed_at: float | None = None
    draft_generated: int | None = None
    draft_accepted: int | None = None
    shifts: int = 0
    unshifted: int | None = None
    """Tokens before the first that a context shift moved."""
    discarded: int = 0
    """Tokens that context shifts dropped."""
    counted_shifts: int = 0
    """The part of ``shifts`` that its server's total already includes."""
    cancelled: bool = False
    error: str | None = None
    selection: SlotSelection | None = None
    """How its slot was selected."""
    contents: CacheContents | None = None
    """State of the cache when it got its slot."""
    no_checkpoint: bool = False
    """Whether llama.cpp restored an earlier state of the slot's cache, or none."""
    evicted: tuple[int, ...] = ()
    """Tokens of checkpoints that its slot had lost before."""
    evicts: tuple[int, ...] = ()
    """Tokens of those that llama.cpp erased to make room for its own."""

    def __init__(self, slot: int, task: int, started: float, *, is_child: bool = False) -> None:
        self.slot = slot
        self.task = task
        self.started = started
        self.is_child = is_child

    def read_timing(self, message: str, time: float) -> str:
        """Read a message that ``print_timing`` printed.

        Returns the kind of the line: request, malformed, or server where it has no figure.
        """
        reader = _TIMINGS.get(message[:5])
        return "server" if reader is None else reader(self, message, time)

    def read(self, function: str, message: str, time: float) -> str:
        """Read a message that another ``function`` printed; returns as ``read_timing``."""
        functions, reader = _OTHERS.get(message[:5], _UNKNOWN)
        return reader(self, message, time) if function in functions else "server"

    def _prefill(self, text: str, time: float) -> str:
        found = _PREFILL.match(text)
        if found is None:
            # Progress notes start the same; only figures that cannot be read are malformed.
            return "malformed" if text.startswith("prompt eval time") else "request"
        if self.prefill_s is not None:
            self.mixed = True
        printed, tokens, rate = found.groups()
        self.computed = int(tokens)
        self.prefill_s = _seconds(printed, rate, self.computed)
        self.timed_at = time
        return "request"

    def _decode(self, text: str, time: float) -> str:
        found = _DECODE.match(text)
        if found is None:
            return "malformed" if text.startswith("eval time") else "request"
        if self.decode_s is not None:
            self.mixed = True
        printed, tokens, rate = found.groups()
        self.generated = int(tokens)
        self.decode_s = _seconds(printed, rate, self.generated - 1)
        return "request"

    def _draft(self, text: str, time: float) -> str:
        found = _DRAFT.match(text)
        if found is not None:
            self.draft_accepted, self.draft_generated = int(found.group(1)), int(found.group(2))
        return "request"

    def _prompt(self, text: str, time: float) -> str:
        found = _PROMPT.match(text)
        if found is None:
            return "malformed"
        self.prompt = int(found.group(1))
        return "request"

    def _progress(self, text: str, time: float) -> str:
        return "request"

    def _no_checkpoint(self, text: str, time: float) -> str:
        self.no_checkpoint = True
        return "request"

    def _eviction(self, text: str, time: float) -> str:
        if (found := _EVICTED.match(text)) is not None:
            self.evicts = (*self.evicts, int(found.group(1)) + 1)
        return "request"

    def _shift(self, text: str, time: float) -> str:
        if not text.startswith("slot context shift"):
            return "server"
        self.shifts += 1
        if (found := _SHIFT.match(text)) is not None:
            kept = int(found.group(1))
            self.unshifted = kept if self.unshifted is None else min(kept, self.unshifted)
            self.discarded += int(found.group(2))
        return "request"

    def completion(
        self,
        server: ServerInfo,
        time: float,
        *,
        wall: Callable[[float], float],
        tokens: int | None,
        truncated: bool | None,
        others: Sequence[LoggedRequest],
        history: PromptHistory,
    ) -> Completion:
        """Finish it at ``time``, ``tokens`` in its slot. ``wall`` makes log time Unix time; ``others`` still run."""
        cached = self._cached(tokens, truncated)
        reuse = UNKNOWN_REUSE
        if not self.is_child and self.selection and self.contents and cached is not None and self.computed:
            prefill = Prefill(
                self.selection, cached, self.computed, self.prefill_s, self.started - (self.queue_s or 0.0),
                self.no_checkpoint, self.evicted,
            )  # fmt: skip
            reuse = history.reuse(self.contents, prefill)
        first_token = None
        if self.timed_at is not None and self.prefill_s is not None:
            first_token = self.timed_at - (self.decode_s or 0.0)
        return Completion(
            server=server,
            slot=self.slot,
            task=self.task,
            started_at=wall(self.started),
            ended_at=wall(max(time, self.started)),
            outcome=self._outcome(),
            error=self.error,
            queue_s=self.queue_s,
            prefill_s=self.prefill_s,
            decode_s=self.decode_s,
            first_token_at=None if first_token is None else wall(max(first_token, self.started)),
            prompt_computed=self.computed,
            prompt_cached=cached,
            prompt_reusable=reuse.reusable,
            prompt_recomputed=reuse.recomputed,
            recompute_s=reuse.recompute_s,
            recompute_cause=reuse.cause,
            generated=self.generated,
            draft_generated=self.draft_generated,
            draft_accepted=self.draft_accepted,
            context_tokens=tokens,
            truncated=truncated,
            context_shifts=self.shifts,
            is_child=self.is_child,
            in_flight=tuple(wall(other.started) for other in others),
        )

    def left_in_slot(self, tokens: int, time: float) -> CachedPrompt:
        """Its content of the slot, released at ``time`` with ``tokens``; without timings all of it counts as prompt."""
        tokens += self.discarded
        prompt = tokens if self.generated is None else max(1, tokens - max(0, self.generated - 1))
        return CachedPrompt(self.task, tokens, prompt, time, self.unshifted)

    def _outcome(self) -> Outcome:
        if self.error is not None:
            return Outcome.CONTEXT_FULL if CONTEXT_FULL in self.error else Outcome.ERROR
        return Outcome.CANCELLED if self.cancelled and self.prefill_s is None else Outcome.OK

    def _cached(self, tokens: int | None, truncated: bool | None) -> int | None:
        cached = None
        if self.computed is not None:
            if self.prompt is not None:
                cached = self.prompt - self.computed
            elif tokens is not None and self.generated is not None and not truncated and not self.shifts:
                cached = tokens - self.computed - max(0, self.generated - 1)
        return None if cached is not None and cached < 0 else cached


_Reader = Callable[[LoggedRequest, str, float], str]
_TIMINGS: dict[str, _Reader] = {
    "promp": LoggedRequest._prefill,
    "eval ": LoggedRequest._decode,
    "total": LoggedRequest._progress,
    "graph": LoggedRequest._progress,
    "draft": LoggedRequest._draft,
    "n_gen": LoggedRequest._progress,
    "n_dec": LoggedRequest._progress,  # its name until summer 2026
}
"""Readers of ``print_timing``'s messages, by their first five characters."""
_PROMPT_LOOP = frozenset({"update_slots", "  operator()", "  pre_decode"})
_CHECKPOINT = _PROMPT_LOOP | {"create_check"}
_UNKNOWN: tuple[frozenset[str], _Reader] = (frozenset(), LoggedRequest._progress)
_OTHERS: dict[str, tuple[frozenset[str], _Reader]] = {
    "new p": (_PROMPT_LOOP, LoggedRequest._prompt),
    "slot ": (_PROMPT_LOOP, LoggedRequest._shift),
    "forci": (_PROMPT_LOOP, LoggedRequest._no_checkpoint),
    "resto": (_PROMPT_LOOP, LoggedRequest._no_checkpoint),
    "erasi": (_CHECKPOINT, LoggedRequest._eviction),
}
"""Those of other functions' messages: the functions that print them, and the reader."""
