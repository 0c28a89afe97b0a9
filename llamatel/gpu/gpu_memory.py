"""A server's GPU memory by part: planned, estimated, and as llama.cpp reported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llamatel.plan.cache_plan import cache_plan
from llamatel.plan.devices import CONTEXT_MIB, Device
from llamatel.plan.memory_plan import memory_plan
from llamatel.snapshots import DeviceSnapshot, ServerSnapshot

_CONTEXT = CONTEXT_MIB << 20
_ON_HOST = ("CPU", "CUDA_Host")


def memory_parts(state: ServerSnapshot, holding: Sequence[DeviceSnapshot]) -> Iterator[tuple[str, str, int]]:
    """Part, source and bytes, summed over the server's GPUs."""
    yield from _planned(state, holding)
    if state.placement is not None:
        sizes: dict[str, int] = {}
        for (device, part), size in state.placement.buffers.items():
            if not device.startswith(_ON_HOST):
                sizes[part] = sizes.get(part, 0) + size
        for part, size in sizes.items():
            yield part, "reported", size


def _planned(state: ServerSnapshot, holding: Sequence[DeviceSnapshot]) -> Iterator[tuple[str, str, int]]:
    settings = state.settings
    shape = state.model
    if settings is None or settings.not_understood or shape is None or shape.weights is None or not holding:
        return
    devices = [
        Device(each.name, each.memory_limit or 0, each.bandwidth, "NVML", (each.memory_reserved or 0) + _CONTEXT)
        for each in holding
    ]
    cache = cache_plan(shape, settings)
    if cache.refused is not None or cache.cells is None:
        return
    plan = memory_plan(shape, settings, devices, cache)
    yield "weights", "planned", sum(each.weights_bytes for each in plan.per_device)
    if cache.exact:
        yield "kv_cache", "planned", sum(each.cache_bytes for each in plan.per_device)
    compute = [each.compute_estimate for each in plan.per_device]
    if None not in compute:
        yield "compute", "estimated", sum(size for size in compute if size is not None)
    yield "context", "estimated", _CONTEXT * len(devices)
