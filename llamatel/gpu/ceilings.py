"""Hardware utilisation of a request: memory bandwidth while decoding, arithmetic while prefilling.

Both are the work that the model's shape requires, divided by what the cards can do in the same time: model bandwidth
utilisation and model FLOPs utilisation. Extra work of llama.cpp does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from llamatel.flags.server_settings import ServerSettings
from llamatel.gpu.offload import devices_of
from llamatel.plan.cache_plan import cache_plan
from llamatel.plan.model_shape import ModelShape
from llamatel.records import Completion
from llamatel.snapshots import DeviceSnapshot, ServerSnapshot

_PARALLEL_SPLITS = ("row", "tensor")
"""Split modes in which all cards compute the same layer at once; in others one card works after another."""
_BATCH = 512
"""Tokens that llama.cpp computes at once by default (--ubatch-size)."""


def decode_bytes(shape: ModelShape, settings: ServerSettings, context: int) -> int | None:
    """Bytes that one token reads: the weights that it uses, and the keys, values and states of its own sequence.

    llama.cpp reads whole groups of 256 cells. None where the weights are not known or the cache's size is not.
    """
    if shape.weights is None or not shape.weights.active_bytes:
        return None
    plain = ServerSettings()
    alone = replace(
        settings, ctx_size=max(1, context), parallel=1, kv_unified=False, kv_unified_per_slot=None, ubatch_size=1,
        swa_full=False, spec_types=plain.spec_types, draft_model=None,
    )  # fmt: skip
    cache = cache_plan(replace(shape, draft=None), alone)
    if cache.refused is not None or cache.cells is None:
        return None
    return shape.weights.active_bytes + cache.total_bytes


def prefill_operations(shape: ModelShape, computed: int, cached: int) -> float | None:
    """Floating-point operations for ``computed`` prompt tokens after ``cached`` ones.

    Two per weight and token (for the output layer only one token), plus attention. None where the
    weights are not known.
    """
    weights = shape.weights
    if weights is None or not weights.parameters:
        return None
    by_part = {part: parameters for part, parameters, _ in weights.parts}
    tied = weights.tied_bytes > 0
    output = by_part.get("embeddings" if tied else "output", 0)
    body = weights.active_parameters - by_part.get("embeddings", 0) - (0 if tied else output)
    operations = 2.0 * (body * computed + output)
    for layer in shape.trunk:
        if layer.attends and layer.heads:
            # Scores and weighted sums, over all tokens before it or those in the window.
            seen = _attended(computed, cached, layer.window)
            operations += 2.0 * layer.heads * (layer.key_length + (layer.value_length or layer.key_length)) * seen
    return operations


def _attended(computed: int, cached: int, window: int | None) -> float:
    """Sum, over the computed tokens, of the tokens that each attends to."""
    total = cached + computed
    if window is None or total <= window:
        return computed * (cached + (computed + 1) / 2)
    growing = max(0, min(total, window) - cached)
    return growing * (cached + (growing + 1) / 2) + (computed - growing) * window


def _together(values: Sequence[float | None], settings: ServerSettings) -> float | None:
    """The cards' combined rate: the sum if all work at once, else that of one card, if all are the same."""
    if not values or any(value is None for value in values):
        return None
    known = [value for value in values if value is not None]
    if len(known) > 1 and settings.split_mode in _PARALLEL_SPLITS:
        return sum(known)
    return known[0] if max(known) <= min(known) * 1.01 else None


def decode_ceiling(
    shape: ModelShape, settings: ServerSettings, devices: Sequence[DeviceSnapshot], context: int
) -> float | None:
    """The most tokens a second that bandwidth allows one request after ``context`` tokens."""
    bandwidth = _together([device.bandwidth for device in devices], settings)
    each = decode_bytes(shape, settings, context)
    return bandwidth / each if bandwidth is not None and each else None


def prefill_ceiling(
    shape: ModelShape, settings: ServerSettings, devices: Sequence[DeviceSnapshot], context: int
) -> float | None:
    """The most prompt tokens a second that the cards' peak arithmetic allows around ``context`` tokens."""
    peak = _together([device.peak_flops for device in devices], settings)
    operations = prefill_operations(shape, _BATCH, max(0, context - _BATCH // 2))
    return _BATCH * peak / operations if peak is not None and operations else None


class Ceilings(NamedTuple):
    """The most tokens a second that the hardware allows one request, by its context in tokens."""

    prefill: Callable[[int], float | None]
    """By peak arithmetic."""
    decode: Callable[[int], float | None]
    """By memory bandwidth."""


def server_ceilings(state: ServerSnapshot, devices: Sequence[DeviceSnapshot]) -> Ceilings | None:
    """For a server's model and its GPUs; None where one of them is not known."""
    used, _ = devices_of(state, devices)
    if state.model is None or state.settings is None or not used:
        return None
    return Ceilings(*(partial(each, state.model, state.settings, used) for each in (prefill_ceiling, decode_ceiling)))


def bandwidth_utilization(
    completion: Completion, shape: ModelShape, settings: ServerSettings, devices: Sequence[DeviceSnapshot]
) -> float | None:
    """Share of the cards' memory bandwidth that decoding this request used, as if no other request had run."""
    if completion.decode_s is None or not completion.generated or completion.generated < 2 or completion.decode_s <= 0:
        return None
    bandwidth = _together([device.bandwidth for device in devices], settings)
    if bandwidth is None or completion.context_tokens is None:
        return None
    steps = completion.generated - 1 - (completion.draft_accepted or 0)
    # Bytes read grow linearly with the context, so the middle of the answer is the mean.
    middle = max(1, completion.context_tokens - completion.generated // 2)
    each = decode_bytes(shape, settings, middle)
    return None if each is None else steps * each / completion.decode_s / bandwidth


def flops_utilization(
    completion: Completion, shape: ModelShape, settings: ServerSettings, devices: Sequence[DeviceSnapshot]
) -> float | None:
    """Share of the cards' peak arithmetic (dense FP16) that prefilling this request used."""
    if not completion.prefill_s or not completion.prompt_computed or completion.prompt_cached is None:
        return None
    peak = _together([device.peak_flops for device in devices], settings)
    operations = prefill_operations(shape, completion.prompt_computed, completion.prompt_cached)
    return None if peak is None or operations is None else operations / completion.prefill_s / peak
