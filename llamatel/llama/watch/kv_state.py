"""The KV cache of a server, derived from its log, its slots and its plan. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from llamatel.flags.server_settings import ServerSettings, padded
from llamatel.inputs.documents import count
from llamatel.llama.log.logged_server import LoggedServer
from llamatel.plan.cache_plan import CachePart, CachePlan
from llamatel.plan.model_shape import ModelShape
from llamatel.snapshots import KvCacheState, SlotState


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What is known of a server's model from its file and flags; all None if they cannot be read."""

    shape: ModelShape | None = None
    settings: ServerSettings | None = None
    plan: CachePlan | None = None
    plan_error_bytes: int | None = None
    """Bytes that llama.cpp reported minus the plan; None if it reported nothing, or the plan is not exact."""

    @property
    def sure(self) -> CachePlan | None:
        """The plan, if it is exact and agrees with what llama.cpp reported."""
        return self.plan if self.plan is not None and self.plan.exact and self.plan.refused is None else None

    @property
    def rewindable(self) -> bool | None:
        """Whether its cache can be cut at any token: no recurrent state and no window. None: unknown."""
        if self.shape is None or self.settings is None or self.shape.cache in ("compressed", "none"):
            return None
        return self.shape.cache == "attention" and (self.settings.swa_full or not self.shape.windowed)

    @property
    def drafts(self) -> bool:
        """Whether speculative decoding with a separate context is requested."""
        own = self.shape.draft.drafts_as if self.shape is not None and self.shape.draft is not None else ()
        requested = self.settings.spec_types if self.settings is not None else ()
        return any(kind.startswith("draft-") for kind in requested or own)


@dataclass(frozen=True, slots=True)
class Polled:
    """The data about the cache that polling provides."""

    slots: Sequence[SlotState] | None = None
    trained_context: int | None = None
    """The model's trained context, from ``/v1/models``."""
    gauges: Mapping[str, float] = field(default_factory=dict)
    sleeping: bool | None = None
    """None if known only from the log."""


def kv_cache_state(logged: LoggedServer, polled: Polled, model: LoadedModel) -> KvCacheState:
    """The current state; a sleeping server has freed its memory, including its slots."""
    capacity, unified = _pool(logged, polled, model)
    planned = {} if model.sure is None else parts_of(model.sure.parts)
    if logged.sleeping if polled.sleeping is None else polled.sleeping:
        return KvCacheState(
            capacity=capacity,
            unified=unified,
            active=0,
            cached=0,
            planned_bytes=dict.fromkeys(planned, 0),
            reported_bytes=dict.fromkeys(logged.reported, 0),
            plan_error_bytes=model.plan_error_bytes,
            used_bytes=dict.fromkeys(planned, 0),
        )
    active, cached = (_tokens(polled.slots, busy=busy) for busy in (True, False))
    active, cached = _from_gauge(polled, active, cached)
    if capacity is not None:  # slots also count a batch that did not fit, and choices of one prompt share cells
        active = None if active is None else min(active, capacity)
        cached = None if cached is None else min(cached, capacity - (active or 0))
    return KvCacheState(
        capacity=capacity,
        unified=unified,
        active=active,
        cached=cached,
        planned_bytes=planned,
        reported_bytes=logged.reported,
        plan_error_bytes=model.plan_error_bytes,
        used_bytes={} if polled.slots is None else _used(polled.slots, model),
    )


def pool_capacity(logged: LoggedServer, polled: Polled, model: LoadedModel) -> int | None:
    """Tokens that fit into the KV cache; None if unknown, or if tokens use no cells (recurrent models).

    At ``-lv 4`` the log has it. Otherwise it has the size for one slot, ``n_ctx_slot``, with a warning that has the
    uncapped size if it was capped (to the model's training context, or ``--kv-unified-per-slot``). That is the size of
    a shared pool, else of each slot's part (src/llama-context.cpp:290 pads the context so that it divides evenly).
    Builds from April to summer 2026 log neither, and other servers have no log: then the slots and flags are used.
    """
    return _pool(logged, polled, model)[0]


def _pool(logged: LoggedServer, polled: Polled, model: LoadedModel) -> tuple[int | None, bool | None]:
    """The pool's size in tokens, and whether the slots share it."""
    unified = _unified(logged, model)
    shape, shared = model.shape, unified
    if shape is not None and shape.cache in ("recurrent", "none"):
        return None, unified
    if shape is not None and shape.cache == "compressed":
        shared = False  # each slot has its own cells, whatever the flag is
    elif logged.pool is not None:
        return logged.pool, unified
    sequence = logged.sequence_context or logged.slot_context
    number = logged.slots or (len(polled.slots) if polled.slots else None)
    if sequence is None and polled.slots:
        seen = _pool_of_slots(polled, model, unified)
        if seen is not None:
            return seen
        sequence = _uncapped(polled, model)
    if sequence is not None and number is not None and (shared is not None or number == 1):
        return (sequence if shared else sequence * number), unified
    if (gauged := _gauged(polled.gauges)) is not None:
        return gauged, unified
    planned = model.sure.cells if model.sure is not None else None
    return (None if planned is None else planned.context), unified


def _from_gauge(polled: Polled, active: int | None, cached: int | None) -> tuple[int | None, int | None]:
    """Active and cached tokens by llama.cpp's gauge of both, where slots do not report theirs (forks)."""
    total, slots = polled.gauges.get("kv_cache_tokens"), polled.slots or ()
    tokens = None if total is None else count(round(total))
    if tokens is None or not slots or (active is not None and cached is not None):
        return active, cached
    if not any(slot.busy for slot in slots):
        return 0, tokens
    return (tokens, 0) if all(slot.busy for slot in slots) else (active, cached)


def _gauged(gauges: Mapping[str, float]) -> int | None:
    """llama.cpp's own gauges until May 2025, which forks still have."""
    ratio, tokens = gauges.get("kv_cache_usage_ratio"), gauges.get("kv_cache_tokens")
    return count(round(tokens / ratio)) if ratio and tokens and 1e-9 < ratio <= 1 else None


def _slot_size(slots: Sequence[SlotState]) -> int | None:
    """Most tokens per slot: the whole pool if it is shared, its part if it is split, unless it is capped."""
    sizes = {slot.context_size for slot in slots}
    return sizes.pop() if len(sizes) == 1 else None


def _pool_of_slots(polled: Polled, model: LoadedModel, unified: bool | None) -> tuple[int | None, bool | None] | None:
    """The pool's size if the slots agree with the flag that sets it; None without such a flag.

    The sum of several slots' tokens proves nothing: choices of one prompt share cells.
    """
    slots = polled.slots or ()
    requested = padded((model.settings.ctx_size if model.settings is not None else None) or 0)
    size, number = _slot_size(slots), len(slots)
    if not requested or size is None or number == 1:
        return None
    if size == requested:
        return requested, True
    if size == padded(-(-requested // number)):
        return size * number, False
    if size < requested and unified and (size == _trained(polled, model) or _capped_per_slot(model) is not None):
        return requested, True
    return None, unified


def _uncapped(polled: Polled, model: LoadedModel) -> int | None:
    """Most tokens of a slot, if that is certainly not capped."""
    size, trained = _slot_size(polled.slots or ()), _trained(polled, model)
    below = size is not None and trained is not None and size < trained
    return size if below and _capped_per_slot(model) is None else None


def _trained(polled: Polled, model: LoadedModel) -> int | None:
    own = None if model.shape is None else model.shape.context_length
    return own if own is not None else polled.trained_context


def _capped_per_slot(model: LoadedModel) -> int | None:
    return None if model.settings is None else model.settings.kv_unified_per_slot


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


def _unified(logged: LoggedServer, model: LoadedModel) -> bool | None:
    if logged.kv_unified is not None:
        return logged.kv_unified
    return None if model.settings is None else model.settings.unified


def _tokens(slots: Sequence[SlotState] | None, *, busy: bool) -> int | None:
    if slots is None:
        return None
    held = [slot.context_tokens for slot in slots if slot.busy is busy]
    return sum(tokens for tokens in held if tokens is not None) if None not in held else None


def _used(slots: Sequence[SlotState], model: LoadedModel) -> Mapping[str, int]:
    """Bytes that the slots' tokens use, including their copy in a drafting context."""
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
    """Bytes, by part, that the given tokens of each slot use.

    A cache has at most as many tokens as cells; for layers with a window that is an upper bound, as cells outside the
    window count until they are overwritten. A recurrent layer has one state for each slot in use, whatever its length.
    Empty if the tokens of a slot are unknown, or tokens differ in size (compressed caches).
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
