"""Changes that would help, each with its flag, the most that it saves, and its memory cost."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from llamatel.flags.server_settings import ServerSettings
from llamatel.plan.cache_plan import cache_plan
from llamatel.plan.model_shape import ModelShape
from llamatel.records import RecomputeCause

_DEFAULT_SLOTS = 4
"""llama-server's default for ``-np``."""
_SIMILARITY = 0.1
"""llama-server's --slot-prompt-similarity: the share of a prompt from which a slot is selected for it."""


@dataclass(frozen=True, slots=True)
class Remedy:
    """One change."""

    change: str
    """What to change: a flag of llama-server with its value, or a field of the request."""
    reason: str
    at_most_s: float | None
    """Most seconds that it would have saved in the observed requests; None if unknown."""
    cost_bytes: int | None = None
    """Additional bytes of KV cache, from the plan; None if none, or unknown."""


def recompute_remedy(
    cause: str, seconds: float, settings: ServerSettings | None, shape: ModelShape | None,
    *, slots: int | None = None, shared: float = 0.0,
) -> Remedy | None:  # fmt: skip
    """What helps against prompts that are computed again for a cause; None for an unknown one.

    ``slots``: the server's, where its flags are not known; ``shared``: largest share of such a prompt that was reused,
    as conversations start the same.
    """
    if cause == RecomputeCause.SLOT_TAKEN:
        return _own_slots(seconds, settings, shape, slots, shared)
    if cause == RecomputeCause.NO_CHECKPOINT and shape is not None and shape.windowed:
        reason = "a sliding-window cache cannot return to an earlier position: keep the full-size cache"
        return Remedy("--swa-full", reason, seconds, _cost(settings, shape, swa_full=True))
    plain = {
        RecomputeCause.PREFIX_CHANGED: (
            "--cache-reuse 256",
            "the client changes its prompt early: move what changes to the end; this flag reuses the chunks after it",
        ),
        RecomputeCause.NO_CHECKPOINT: (
            "--ctx-checkpoints 64",
            "the model's state cannot return to an earlier position without a checkpoint",
        ),
        RecomputeCause.CHECKPOINT_EVICTED: (
            f"--ctx-checkpoints {2 * (settings.ctx_checkpoints if settings is not None else 32)}",
            "checkpoints were evicted before they were used",
        ),
        RecomputeCause.CONTEXT_SHIFT: ("-c", "contexts were full and shifted: a larger context keeps the prefix"),
        RecomputeCause.CACHE_CLEARED: (
            "--sleep-idle-seconds -1",
            "the server unloaded its model, and with it the cache, while it was idle",
        ),
        RecomputeCause.PROMPT_CACHE_MISS: (
            f"--cache-ram {2 * (settings.cache_ram_mib if settings is not None else 8192)}",
            "prompts were evicted from the cache in host memory",
        ),
        RecomputeCause.CACHE_PROMPT_OFF: ('"cache_prompt": true in the request', "the client switches reuse off"),
    }
    found = plain.get(RecomputeCause(cause))
    return None if found is None else Remedy(*found, seconds)


def _own_slots(
    seconds: float, settings: ServerSettings | None, shape: ModelShape | None, slots: int | None, shared: float
) -> Remedy:
    """Where conversations take each other's slots."""
    slots = 2 * _slots(settings, slots)
    flags, alike = f"-np {slots}", ""
    if shared > _SIMILARITY:
        # llama.cpp prefers a slot with a similar prompt to an unused one, so that more slots alone would not help.
        similarity = min(0.9, math.ceil(10 * shared + 0.5) / 10)
        flags += f" --slot-prompt-similarity {similarity:.1f}"
        alike = " that start the same"
    if settings is not None and settings.cache_ram_mib == 0:
        reason = (
            f"conversations{alike} take each other's slots: keep their prompts in host memory, or give each one a slot"
        )
        return Remedy("--cache-ram 8192", f"{reason} ({flags})", seconds)
    reason = (
        f"conversations{alike} take each other's slots: give each one a slot, or pin it with id_slot in the request"
    )
    return Remedy(flags, reason, seconds, _cost(settings, shape, slots=slots))


def slots_remedy(
    queue_s: float, settings: ServerSettings | None, shape: ModelShape | None, slots: int | None = None
) -> Remedy:
    """More slots, if requests wait for one."""
    slots = 2 * _slots(settings, slots)
    reason = "requests wait for a slot; with more slots they share the GPU instead"
    return Remedy(f"-np {slots}", reason, queue_s or None, _cost(settings, shape, slots=slots))


def pool_remedy(settings: ServerSettings | None, shape: ModelShape | None) -> Remedy:
    """A larger KV pool, if it fills up."""
    reason = "the KV pool fills up: a larger one, fewer slots, or a smaller cache type (-ctk q8_0 -ctv q8_0)"
    if settings is None or not settings.ctx_size:
        return Remedy("-c", reason, None)
    larger = 2 * settings.ctx_size
    return Remedy(f"-c {larger}", reason, None, _cost(settings, shape, context=larger))


def _slots(settings: ServerSettings | None, observed: int | None) -> int:
    return (settings.parallel if settings is not None else None) or observed or _DEFAULT_SLOTS


def _cost(
    settings: ServerSettings | None,
    shape: ModelShape | None,
    *,
    slots: int | None = None,
    context: int | None = None,
    swa_full: bool = False,
) -> int | None:
    """Additional bytes of the KV cache; more slots keep each slot's context unless they share one pool."""
    if settings is None or shape is None:
        return None
    changed = settings
    if slots is not None:
        split = settings.parallel is not None and not settings.kv_unified
        grown = (
            settings.ctx_size * slots // settings.parallel if split and settings.ctx_size and settings.parallel else 0
        )
        changed = replace(changed, parallel=slots, ctx_size=grown or settings.ctx_size)
    if context is not None:
        changed = replace(changed, ctx_size=context)
    if swa_full:
        changed = replace(changed, swa_full=True)
    before, after = cache_plan(shape, settings), cache_plan(shape, changed)
    if before.refused is not None or after.refused is not None:
        return None
    return max(0, after.total_bytes - before.total_bytes)
