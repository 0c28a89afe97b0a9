"""The KV cache of a server, put together from what its log, its slots and its plan say. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from llamatel.flags.server_settings import ServerSettings
from llamatel.llama.log.logged_server import LoggedServer
from llamatel.plan.cache_plan import CachePart, CachePlan
from llamatel.plan.model_shape import ModelShape
from llamatel.snapshots import KvCacheState, SlotState


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What can be known of a server's model before it runs; all None where its file or its flags cannot be read."""

    shape: ModelShape | None = None
    settings: ServerSettings | None = None
    plan: CachePlan | None = None

    @property
    def sure(self) -> CachePlan | None:
        """The plan, if it is what llama.cpp allocates, to the byte."""
        return self.plan if self.plan is not None and self.plan.exact and self.plan.refused is None else None

    @property
    def drafts(self) -> bool:
        """Whether a kind of speculative decoding is asked for that has a context of its own."""
        own = self.shape.draft.drafts_as if self.shape is not None and self.shape.draft is not None else ()
        asked = self.settings.spec_types if self.settings is not None else ()
        return any(kind.startswith("draft-") for kind in asked or own)


def kv_cache_state(facts: LoggedServer, slots: Sequence[SlotState] | None, model: LoadedModel) -> KvCacheState:
    """The state now; a server that sleeps has freed its memory, and its slots with it."""
    unified = _unified(facts, model)
    planned = {} if model.sure is None else parts_of(model.sure.parts)
    capacity = pool_capacity(facts, slots, model)
    if facts.sleeping:
        return KvCacheState(
            capacity=capacity,
            unified=unified,
            active=0,
            cached=0,
            planned_bytes=dict.fromkeys(planned, 0),
            reported_bytes=dict.fromkeys(facts.reported, 0),
            used_bytes=dict.fromkeys(planned, 0),
        )
    return KvCacheState(
        capacity=capacity,
        unified=unified,
        active=_tokens(slots, busy=True),
        cached=_tokens(slots, busy=False),
        planned_bytes=planned,
        reported_bytes=facts.reported,
        used_bytes={} if slots is None else _used(slots, model),
    )


def pool_capacity(facts: LoggedServer, slots: Sequence[SlotState] | None, model: LoadedModel) -> int | None:
    """Tokens that fit into the KV cache; None where that is not known, or tokens take no room (recurrent models).

    The log says it outright at ``-lv 4``, and else what one slot gets: ``n_ctx_slot``, with a warning that names the
    uncapped size where it was capped (to the model's training context, or ``--kv-unified-per-slot``). One pool is as
    large as that; else every slot has one (src/llama-context.cpp:290 pads the context so that it comes out even).
    Builds from April to summer 2026 say neither: there the slots tell it unless they may be capped, or the flags.
    """
    if model.shape is not None and model.shape.cache in ("recurrent", "none"):
        return None
    unified, number = _unified(facts, model), facts.slots or (len(slots) if slots else None)
    if model.shape is not None and model.shape.cache == "compressed":
        unified = False  # each slot has its own, whatever the flag says
    elif facts.pool is not None:
        return facts.pool
    sequence = facts.sequence_context or facts.slot_context
    if sequence is None and slots:
        trained = None if model.shape is None else model.shape.context_length
        per_slot = None if model.settings is None else model.settings.kv_unified_per_slot
        size = slots[0].context_size
        if size is not None and trained is not None and size < trained and per_slot is None:
            sequence = size
    if sequence is not None and unified is not None and number is not None:
        return sequence if unified else sequence * number
    return model.sure.cells.context if model.sure is not None and model.sure.cells is not None else None


def parts_of(parts: Iterable[CachePart]) -> dict[str, int]:
    """Bytes by part: k and v, recurrent states, other (DeepSeek-V4's)."""
    sizes: dict[str, int] = {}
    for part in parts:
        for name, size in _columns(part).items():
            sizes[name] = sizes.get(name, 0) + size
    return sizes


def _columns(part: CachePart) -> dict[str, int]:
    if part.kind == "recurrent":
        return {"recurrent": part.total_bytes}
    if part.kind == "state":
        return {"other": part.total_bytes}
    return {"k": part.bytes_of("k"), "v": part.bytes_of("v")}


def _unified(facts: LoggedServer, model: LoadedModel) -> bool | None:
    if facts.kv_unified is not None:
        return facts.kv_unified
    return None if model.settings is None else model.settings.unified


def _tokens(slots: Sequence[SlotState] | None, *, busy: bool) -> int | None:
    if slots is None:
        return None
    held = [slot.context_tokens for slot in slots if slot.busy is busy]
    return sum(tokens for tokens in held if tokens is not None) if None not in held else None


def _used(slots: Sequence[SlotState], model: LoadedModel) -> Mapping[str, int]:
    """Bytes that the slots' tokens take. The context that drafts mirrors them, if anything drafts with it."""
    if model.sure is None:
        return {}
    parts = model.sure.parts
    if any(part.drafting for part in parts):
        speculate = {slot.speculative for slot in slots}
        if len(speculate) != 1 or None in speculate:
            return {}
        if not (speculate == {True} and model.drafts):
            parts = tuple(part for part in parts if not part.drafting)
    return used_of(parts, [slot.context_tokens for slot in slots])


def used_of(parts: Iterable[CachePart], held: Sequence[int | None]) -> Mapping[str, int]:
    """Bytes, by part, that the tokens take which each slot holds.

    A cache holds no more tokens than it has cells: of a window's layers that is an upper bound, as cells that the
    window has left behind count until they are overwritten. A recurrent layer holds one state for each slot that is in
    use, however long its text is. Empty where a slot does not say what it holds, or a token's share is not the same
    everywhere (compressed caches).
    """
    tokens = [number for number in held if number is not None]
    parts = tuple(parts)
    if len(tokens) != len(held) or any(part.kind in ("compressed", "state") for part in parts):
        return {}
    used: dict[str, int] = {}
    for part in parts:
        if part.kind == "recurrent":
            share = sum(number > 0 for number in tokens) / len(tokens) if tokens else 0.0
        else:
            streams = [sum(tokens)] if part.streams == 1 else tokens
            share = sum(min(number, part.cells) for number in streams) / (part.cells * part.streams)
        for name, size in _columns(part).items():
            used[name] = used.get(name, 0) + round(size * share)
    return used
