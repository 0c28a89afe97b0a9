"""The largest context, the most slots and the most even split that still fit on the devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llamatel.flags.server_settings import ServerSettings
from llamatel.plan.cache_plan import cache_plan
from llamatel.plan.devices import Device
from llamatel.plan.memory_plan import memory_plan, place
from llamatel.plan.model_shape import ModelShape


def balanced(shape: ModelShape, settings: ServerSettings, devices: Sequence[Device]) -> ServerSettings:
    """The settings with the ``-ts`` that leaves the fuller of two devices the most room."""
    if len(devices) != 2 or not shape.layers or settings.tensor_split or settings.split_mode != "layer":
        return settings
    cache = cache_plan(shape, settings)
    everything = len(shape.layers) + 1

    def room(candidate: ServerSettings) -> int:
        return min(each.free or 0 for each in place(shape, candidate, cache, devices, everything).per_device)

    candidates = [replace(settings, tensor_split=(float(n), float(everything - n))) for n in range(1, everything)]
    best = max(candidates, key=room)
    return best if room(best) > room(settings) else settings


def largest_context(shape: ModelShape, settings: ServerSettings, devices: Sequence[Device]) -> int | None:
    """The most tokens over all slots with which everything fits on the devices; None if none fits, or unknown."""
    trained = shape.context_length
    if trained is None or shape.weights is None:
        return None
    slots = 1 if settings.unified else settings.slots
    step = 256 * slots
    most = max(trained * slots // step, 1)

    def fits(steps: int) -> bool:
        attempt = replace(settings, ctx_size=steps * step, gpu_layers=len(shape.layers) + 1)
        return bool(memory_plan(shape, attempt, devices).fits)

    if not fits(1):
        return None
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low * step


def most_slots(shape: ModelShape, settings: ServerSettings, devices: Sequence[Device], each: int) -> int | None:
    """The most slots with ``each`` tokens each that fit; None if not even one fits, or unknown."""
    if shape.weights is None:
        return None

    def fits(slots: int) -> bool:
        attempt = replace(
            settings, parallel=slots, kv_unified=False, ctx_size=slots * each, gpu_layers=len(shape.layers) + 1
        )
        return bool(memory_plan(shape, attempt, devices).fits)

    if not fits(1):
        return None
    low, high = 1, 256
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
