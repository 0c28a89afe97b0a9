"""Places a model's weights and caches on devices, and checks whether they fit; compute buffers are estimates."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from llamatel.flags.server_settings import Cells, ServerSettings, resolve
from llamatel.flags.tensor_override import HOST
from llamatel.plan.cache_plan import CachePlan, cache_plan, draft_settings
from llamatel.plan.compute_buffers import compute_bytes, pipeline_bytes
from llamatel.plan.devices import Device
from llamatel.plan.model_shape import ModelShape
from llamatel.plan.tensor_placement import Placed, device_index, place_weights

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """What one device holds. Weights and cache are exact; ``compute_estimate`` and ``reserved_estimate`` are not."""

    device: Device | None
    """None: the host."""
    layers: int
    """Blocks on this device."""
    weights_bytes: int
    cache_bytes: int
    compute_estimate: int | None
    read_bytes: float = 0.0
    """Bytes of weights on this device that one token reads."""
    expert_cache_bytes: int = 0
    """Cache for experts that are in host memory (``--moe-cache-mib``)."""
    draft: DeviceUse | None = None
    """Bytes of the draft model on this device."""

    @property
    def needed(self) -> int:
        """Bytes free of the memory available to llama.cpp."""
        own = self.weights_bytes + self.cache_bytes + (self.compute_estimate or 0) + self.expert_cache_bytes
        return own + (self.draft.needed if self.draft is not None else 0)

    @property
    def free(self) -> int | None:
        """Negative if it does not fit; None for the host."""
        return None if self.device is None else self.device.usable - self.needed


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """A placement. ``fits`` is None where the weights or a compute buffer are not known."""

    gpu_layers: int
    """The smallest ``-ngl`` that puts this many blocks on devices; blocks + 1 is all, with the output."""
    total_layers: int
    host: DeviceUse
    per_device: tuple[DeviceUse, ...]
    tensor_split: tuple[float, ...]
    fits: bool | None
    """None if unknown, also because of a flag that is not counted."""
    refused: str | None = None
    """llama-server's reason for not loading with these devices."""

    @property
    def offloaded(self) -> bool:
        """Whether everything is on devices."""
        return self.gpu_layers >= self.total_layers


def used_devices(settings: ServerSettings, devices: Sequence[Device]) -> tuple[tuple[int, ...], str | None]:
    """The devices, by index, that ``-dev``, ``-sm none`` and ``-mg`` leave, and llama-server's reason if it refuses."""
    chosen = tuple(range(len(devices)))
    if settings.devices == ("none",):
        return (), None
    if settings.devices:
        found = []
        for name in settings.devices:
            try:
                index = device_index(name, devices)
            except ValueError:
                index = None
            if index is None:
                return chosen, f"invalid device: {name}"
            found.append(index)
        chosen = tuple(dict.fromkeys(found))
    if settings.split_mode == "none" and chosen:
        if settings.main_gpu < 0:
            return (), None
        if settings.main_gpu >= len(chosen):
            return chosen, f"invalid value for main_gpu: {settings.main_gpu} (available devices: {len(chosen)})"
    return chosen, None


def _shares(settings: ServerSettings, devices: Sequence[Device]) -> tuple[float, ...]:
    """``-ts``, or by default free memory, as in llama.cpp (src/llama-model.cpp:1560)."""
    given = settings.tensor_split[: len(devices)]
    if any(given):
        return (*given, *(0.0 for _ in range(len(devices) - len(given))))
    return tuple(float(device.usable) for device in devices)


def _owners(layers: int, gpu_layers: int, shares: Sequence[float], settings: ServerSettings) -> list[int | None]:
    """The device of each block and, last, of the output; None is the host (src/llama-model.cpp:1589)."""
    start, active = max(layers + 1 - gpu_layers, 0), min(gpu_layers, layers + 1)
    if not shares or not active:
        return [None] * (layers + 1)
    total = sum(shares)
    points = [share / total for share in accumulate(shares)]
    single = min(settings.main_gpu, len(shares) - 1) if settings.split_mode == "none" else None
    owners: list[int | None] = []
    for layer in range(layers + 1):
        if layer < start:
            owners.append(None)
        else:
            at = min(bisect_right(points, (layer - start) / active), len(shares) - 1)
            owners.append(at if single is None else single)
    return owners


def place(
    shape: ModelShape,
    settings: ServerSettings,
    cache: CachePlan,
    devices: Sequence[Device],
    gpu_layers: int,
) -> MemoryPlan:
    """The placement with ``gpu_layers`` on devices, and that of the draft model."""
    layers = len(shape.layers)
    chosen, _ = used_devices(settings, devices)
    own = replace(settings, gpu_layers=gpu_layers)
    uses = _uses(shape, own, cache.by_layer(layers), cache.cells, devices)
    known = shape.weights is not None and cache.refused is None and cache.cells is not None
    draft_on: tuple[int, ...] = ()
    if shape.draft is not None and cache.cells is not None:
        draft, second = shape.draft, draft_settings(settings, cache.cells)
        draft_on, _ = used_devices(second, devices)
        everything = len(draft.layers) + 1
        most = everything if second.gpu_layers is None else min(second.gpu_layers, everything)
        cached = cache.by_layer(len(draft.layers), separate=True)
        cells = resolve(second, None, causal=draft.causal)
        second = replace(second, gpu_layers=most if draft_on else 0)
        drafting = _uses(draft, second, cached, cells, devices)
        uses = [replace(use, draft=other) for use, other in zip(uses, drafting, strict=True)]
        known = known and draft.weights is not None and all(use.compute_estimate is not None for use in drafting)
    host, on_devices = uses[0], uses[1:]
    shown = dict.fromkeys((*chosen, *draft_on, *(i for i, use in enumerate(on_devices) if use.weights_bytes)))
    per_device = tuple(on_devices[index] for index in shown)
    fits: bool | None = None
    if known and per_device and not uncounted(settings) and all(use.compute_estimate is not None for use in uses):
        fits = all(each.free is not None and each.free >= 0 for each in per_device)
    return MemoryPlan(min(gpu_layers, layers + 1), layers + 1, host, per_device, settings.tensor_split, fits)


def uncounted(settings: ServerSettings) -> tuple[str, ...]:
    """Given flags whose allocations the plan does not count."""
    return (*settings.not_counted, *settings.not_understood)


def projector_device(settings: ServerSettings, devices: Sequence[Device]) -> int | None:
    """The device of a multimodal projector: by default the first of ``-dev``; None: the host (common/arg.cpp:890)."""
    name = settings.mmproj_device or next(iter(settings.devices), None)
    if not settings.mmproj_offload or not devices or name == "none":
        return None
    return 0 if name is None else device_index(name, devices)


def _uses(
    shape: ModelShape,
    settings: ServerSettings,
    cached: Sequence[int],
    cells: Cells | None,
    devices: Sequence[Device],
) -> list[DeviceUse]:
    """Bytes that one model needs on the host, then on each device, as placed by the settings."""
    layers = len(shape.layers)
    chosen, _ = used_devices(settings, devices)
    shares = _shares(settings, [devices[index] for index in chosen])
    places = _owners(layers, settings.gpu_layers or 0, shares, settings)
    owners = [None if place is None else chosen[place] for place in places]
    weights = shape.weights
    placed = Placed()
    if weights is not None:
        of_input = sum(size for name, size in shape.adapters if name.startswith("token_embd."))
        others = tuple(each for each in shape.adapters if not each[0].startswith("token_embd."))
        weights = replace(weights, tensors=weights.tensors + others)
        placed = place_weights(weights, owners, settings.tensor_overrides, devices)
        placed.add(None, weights.input_bytes + of_input, 0.0)
        if owners[-1] is None:
            placed.add(None, -weights.tied_bytes, 0.0)  # one tensor that is used twice
    if shape.projector_bytes:
        placed.add(projector_device(settings, devices), shape.projector_bytes, 0.0)
    flash = shape.flash_attention and settings.flash_attn != "off"
    compute = compute_bytes(shape, cells, flash=flash) if cells else None
    if compute is not None and cells is not None and _pipelined(settings, owners):
        compute += pipeline_bytes(shape, cells)
    experts = (
        settings.moe_cache_mib * MIB if any(override.buffer == HOST for override in settings.tensor_overrides) else 0
    )

    def use(index: int | None, device: Device | None) -> DeviceUse:
        mine = [layer for layer, owner in enumerate(owners) if owner == index]
        in_blocks = [layer for layer in mine if layer < layers]
        holds_cache = in_blocks if settings.kv_offload else (range(layers) if index is None else ())
        busy = bool(mine) or (index is None and not chosen)
        return DeviceUse(
            device,
            len(in_blocks),
            placed.stored.get(index, 0),
            sum(cached[i] for i in holds_cache),
            _with_copies(compute, placed.largest_away.get(index, 0)) if busy else 0,
            placed.read.get(index, 0.0),
            round(experts * shares[chosen.index(index)] / sum(shares)) if index is not None and index in chosen else 0,
        )

    return [use(None, None), *(use(index, device) for index, device in enumerate(devices))]


def _with_copies(compute: int | None, largest: int) -> int | None:
    """Compute buffer of a device that computes large batches with weights from the host, one tensor at a time.

    Measured on an H100: the rest of the buffer is then smaller by a fifth.
    """
    return None if compute is None else max(compute, round(0.8 * compute) + largest) if largest else compute


def _pipelined(settings: ServerSettings, owners: Sequence[int | None]) -> bool:
    """Whether devices work on several batches at a time, with copies of their inputs (src/llama-context.cpp:432)."""
    spread = None not in owners and len(set(owners)) > 1
    plain = settings.split_mode == "layer" and settings.kv_offload and not settings.tensor_overrides
    return spread and plain and not settings.rpc_servers


def memory_plan(
    shape: ModelShape, settings: ServerSettings, devices: Sequence[Device], cache: CachePlan | None = None
) -> MemoryPlan:
    """The placement for the settings; without ``-ngl`` the most layers that fit."""
    cache = cache_plan(shape, settings) if cache is None else cache
    _, refused = used_devices(settings, devices)
    if refused is None and shape.draft is not None and cache.cells is not None:
        _, refused = used_devices(draft_settings(settings, cache.cells), devices)
    if refused is None and settings.mmproj_device not in (None, "none"):
        _, refused = used_devices(replace(settings, devices=(settings.mmproj_device,)), devices)
    if refused is not None:  # the placement on the devices that exist
        settings = replace(settings, devices=(), draft_devices=(), mmproj_device=None)
    try:
        plan = _placed(shape, settings, cache, devices)
    except ValueError:
        refused = "unknown buffer type" if refused is None else refused
        plan = _placed(shape, replace(settings, tensor_overrides=(), draft_tensor_overrides=()), cache, devices)
    if refused is None:
        return plan
    return replace(plan, refused=refused, fits=None)


def _placed(shape: ModelShape, settings: ServerSettings, cache: CachePlan, devices: Sequence[Device]) -> MemoryPlan:
    everything = len(shape.layers) + 1
    if settings.gpu_layers is not None or not used_devices(settings, devices)[0]:
        return place(shape, settings, cache, devices, min(settings.gpu_layers or 0, everything))
    best = place(shape, settings, cache, devices, everything)
    if best.fits is not False:
        return best
    return next(
        (found for n in range(everything - 1, -1, -1) if (found := place(shape, settings, cache, devices, n)).fits),
        place(shape, settings, cache, devices, 0),
    )


@dataclass(frozen=True, slots=True)
class HostGrowth:
    """Most host memory that a running server uses."""

    prompt_cache_bytes: int | None
    """None has no limit."""
    checkpoint_bytes: int
    """Bytes of one context checkpoint of a full slot."""
    checkpoints: int
    """Most checkpoints over all slots."""


def host_growth(settings: ServerSettings, cache: CachePlan) -> HostGrowth:
    """Prompt cache and context checkpoints (tools/server/server-context.cpp:2290)."""
    ram = settings.cache_ram_mib
    prompt = None if ram < 0 else ram * MIB
    slots = settings.slots
    windowed = sum(part.total_bytes for part in cache.parts if part.kind == "window" and not part.drafting)
    states = sum(part.total_bytes for part in cache.parts if part.kind == "recurrent")
    size = (0 if settings.swa_full else windowed // max(slots, 1)) + states // max(slots, 1)
    return HostGrowth(prompt, size, settings.ctx_checkpoints * slots if size else 0)
