"""Whether a server offloaded to GPUs what was requested, from its flags, its log and the driver."""

from __future__ import annotations

from collections.abc import Sequence

from llamatel.plan.model_shape import ModelShape
from llamatel.snapshots import DeviceSnapshot, ServerSnapshot

_IN_USE_BYTES = 200 << 20
"""A card with less memory in use holds no model: a CUDA context alone uses more than 100 MiB."""


def requested_layers(state: ServerSnapshot) -> int | None:
    """``-ngl`` as a number; None if llama.cpp decides. ``all`` is a number larger than any model's layers."""
    return None if state.settings is None else state.settings.gpu_layers


def devices_of(state: ServerSnapshot, devices: Sequence[DeviceSnapshot]) -> tuple[tuple[DeviceSnapshot, ...], bool]:
    """The GPUs that hold a server's process, and whether that is assumed.

    In a container or a notebook the driver may list no process, or by numbers of another namespace. Then, for a server
    that we started and that found a GPU, all cards with memory in use are assumed.
    """
    pid = state.server.pid
    sliced = {device.parent for device in devices}
    candidates = [device for device in devices if device.id not in sliced]
    if pid is None:
        return (), False
    holding = tuple(device for device in candidates if device.processes and pid in device.processes)
    if holding:
        return holding, False
    if any(device.processes for device in candidates):
        return (), False
    if state.placement is not None and (state.placement.no_gpu or state.placement.gpu_layers == 0):
        return (), False
    if requested_layers(state) == 0:
        return (), False
    return tuple(device for device in candidates if (device.memory_used or 0) >= _IN_USE_BYTES), True


def process_bytes(state: ServerSnapshot, device: DeviceSnapshot) -> int | None:
    """Memory of the server's process on a GPU, by the driver."""
    if device.processes is None or state.server.pid is None:
        return None
    return device.processes.get(state.server.pid)


def fell_back(state: ServerSnapshot, devices: Sequence[DeviceSnapshot]) -> bool | None:
    """Whether fewer layers are on GPUs than were requested; None where that is unknown.

    llama.cpp logs at ``-lv 3`` only that it has no GPU at all, at ``-lv 4`` how many layers went there. In between the
    driver helps: a process that holds less than the weights cannot have all of them there.
    """
    if state.up is not True:
        return None
    requested, placement, shape = requested_layers(state), state.placement, state.model
    if requested == 0:
        return None
    if placement is not None and placement.no_gpu:
        # Without a number llama.cpp uses what is available: it is a fallback only if there is a card.
        return True if requested is not None or devices else None
    if placement is not None and placement.gpu_layers is not None and placement.total_layers is not None:
        if requested is None:
            return bool(devices) and placement.gpu_layers == 0
        return placement.gpu_layers < min(requested, placement.total_layers)
    holding, assumed = devices_of(state, devices)
    if assumed or not devices or requested is None:
        return None
    if not holding:
        # Vulkan's processes may not be listed.
        listed = all(device.processes_complete for device in devices) and not _by_other_backend(state)
        return True if listed and any(device.processes for device in devices) else None
    return _too_small(state, holding, requested, shape)


def _by_other_backend(state: ServerSnapshot) -> bool:
    """Whether the log shows devices that are not CUDA's, such as ``Vulkan0``."""
    devices = () if state.placement is None else (device for device, _ in state.placement.buffers)
    return any(not device.startswith(("CUDA", "CPU")) for device in devices)


def _too_small(
    state: ServerSnapshot, holding: Sequence[DeviceSnapshot], requested: int, shape: ModelShape | None
) -> bool | None:
    sizes = [process_bytes(state, device) for device in holding]
    if shape is None or shape.weights is None or None in sizes:
        return None
    layers = [*shape.weights.layer_bytes, shape.weights.output_bytes]
    wanted = sum(layers[max(0, len(layers) - requested) :])
    return sum(size for size in sizes if size is not None) < wanted
