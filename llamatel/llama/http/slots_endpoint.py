"""Parses ``/slots``, and computes the current decode rate from two responses.

``/slots`` wakes a sleeping server and keeps it awake: the caller decides when to poll.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from llamatel.inputs.documents import count
from llamatel.snapshots import SlotState

_MOST_SLOTS = 1024
"""llama.cpp has no more than 256 (LLAMA_MAX_SEQ in src/llama-cparams.h)."""


def parse_slots(document: object) -> tuple[SlotState, ...] | None:
    """The slots of a response, in its order; missing fields are None.

    None if it is not such a list, or has more slots, or higher numbers, than llama.cpp can have.

    Source: ``server_slot::to_json``, tools/server/server-context.cpp. ``n_prompt_tokens`` are the tokens in the slot's
    part of the KV cache: of the old prompt until processing of the new one starts, then those kept and those
    processed, a running batch included, then the generated ones too, drafted ones while they are verified; they stay
    after the request. A slot that never had a task has no such field: it holds none.
    """
    if not isinstance(document, list) or len(document) > _MOST_SLOTS:
        return None
    found = [_slot(entry) for entry in document if isinstance(entry, dict)]
    slots = tuple(slot for slot in found if slot is not None)
    return slots if all(slot.id < _MOST_SLOTS for slot in slots) else None


def _slot(entry: Mapping[str, object]) -> SlotState | None:
    number, busy = count(entry.get("id")), entry.get("is_processing")
    if busy is None and (state := count(entry.get("state"))) in (0, 1):
        busy = state == 1  # builds before November 2024, and their forks
    if number is None or not isinstance(busy, bool):
        return None
    task = count(entry.get("id_task"))  # builds before 2026 have -1 where it is left out now
    tokens = count(entry.get("n_prompt_tokens"))
    progress, speculative = entry.get("next_token"), entry.get("speculative")
    if isinstance(progress, list) and progress:  # an object in builds before 2026
        progress = progress[0]
    return SlotState(
        id=number,
        busy=busy,
        context_size=count(entry.get("n_ctx")),
        context_tokens=0 if tokens is None and task is None and not busy else tokens,
        task=task,
        prompt_computed=count(entry.get("n_prompt_tokens_processed")) if busy else None,
        prompt_cached=count(entry.get("n_prompt_tokens_cache")) if busy else None,
        decoded=count(progress.get("n_decoded")) if busy and isinstance(progress, dict) else None,
        speculative=speculative if isinstance(speculative, bool) else None,
    )


class DecodeRate:
    """Tokens per second that all slots together generated since the previous observation. Not thread-safe.

    llama.cpp's own counter changes when a request finishes, a slot's while it runs; together they are complete. As they
    are polled separately, the rest of a request that finishes in between counts in the next interval.
    """

    def __init__(self) -> None:
        self._at: float | None = None
        self._running: dict[tuple[int, int | None], int] = {}
        self._counted: float | None = None
        self._owed = 0.0
        self._by_slot: dict[int, float] = {}

    def paced(self, slots: Iterable[SlotState]) -> tuple[SlotState, ...]:
        """The slots of the last ``observe``, each with its own rate if its request was in the previous one."""
        rates = ((slot, self._by_slot.get(slot.id)) for slot in slots)
        return tuple(slot if slot.decode_rate == rate else replace(slot, decode_rate=rate) for slot, rate in rates)

    def observe(self, slots: Iterable[SlotState], generated_total: float | None, at: float) -> float | None:
        """The rate, from ``/slots`` and ``tokens_predicted_total`` (polled first) at ``at`` (monotonic, seconds).

        None the first time, and for a server whose slots do not report progress. Without the counter, tokens generated
        between a request's last poll and its end are left out.
        """
        slots = tuple(slots)
        running = {(slot.id, slot.task): slot.decoded for slot in slots if slot.busy and slot.decoded is not None}
        known = all(slot.decoded is not None for slot in slots if slot.busy)
        before, self._at = self._at, at
        was, self._running = self._running, running
        counted, self._counted = self._counted, generated_total
        self._by_slot = {}
        if before is None or at <= before or not known:
            self._owed = 0.0
            return None
        self._by_slot = {key[0]: max(0, now - was[key]) / (at - before) for key, now in running.items() if key in was}
        tokens = float(sum(max(0, now - was.get(key, 0)) for key, now in running.items()))
        if generated_total is not None and counted is not None:
            if generated_total < counted:  # another process
                self._owed = 0.0
                self._by_slot = {}
                return None
            finished = sum(seen for key, seen in was.items() if key not in running)
            rest = generated_total - counted - finished + self._owed
            self._owed = min(0.0, rest)
            tokens += max(0.0, rest)
        return tokens / (at - before)
