"""Places each tensor on its layer's device, unless an override (``-ot``, ``-ncmoe``, ...) names another."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from llamatel.flags.tensor_override import HOST, TensorOverride
from llamatel.plan.devices import Device
from llamatel.plan.model_shape import Weights
from llamatel.plan.weights import block_of, part_of


@dataclass(slots=True)
class Placed:
    """Bytes on the host (None) and on each device, by its index."""

    stored: dict[int | None, int] = field(default_factory=dict)
    read: dict[int | None, float] = field(default_factory=dict)
    """The bytes of these that one token reads."""
    largest_away: dict[int | None, int] = field(default_factory=dict)
    """By device: its layers' largest tensor in host memory, which is copied to it for large batches."""

    def add(self, device: int | None, stored: int, read: float) -> None:
        """Add bytes to a device."""
        self.stored[device] = self.stored.get(device, 0) + stored
        self.read[device] = self.read.get(device, 0.0) + read


def device_index(buffer: str, devices: Sequence[Device]) -> int | None:
    """The device of llama.cpp's buffer type (``CUDA1``); None for host memory. Raises ValueError for an unknown one."""
    if buffer == HOST:
        return None
    found = re.fullmatch(r"([A-Za-z]+)(\d{1,3})(\[[^]]*\])?", buffer)
    indices: Sequence[int] = range(len(devices))
    if found is not None and any(device.remote for device in devices):
        indices = [index for index in indices if devices[index].remote is (found[1] == "RPC")]
    if found is None or int(found[2]) >= len(indices):
        raise ValueError(buffer)
    return indices[int(found[2])]


def place_weights(
    weights: Weights, owners: Sequence[int | None], overrides: Sequence[TensorOverride], devices: Sequence[Device]
) -> Placed:
    """The weights except the input embeddings. ``owners``: the devices of the blocks and, last, of the output.

    Raises ValueError for an override with an unknown device.
    """
    placed = Placed()
    blocks = len(owners) - 1
    if not weights.tensors:  # only sums are known
        stored = weights.n_bytes - weights.input_bytes + weights.tied_bytes
        share = weights.active_bytes / stored if stored else 1.0
        for owner, size in zip(owners, (*weights.layer_bytes, weights.output_bytes), strict=True):
            placed.add(owner, size, size * share)
        return placed
    targets = {override: device_index(override.buffer, devices) for override in overrides}
    for block, override, size, read, largest in _grouped(weights.tensors, tuple(overrides), weights.expert_share):
        if block is None or block < blocks:
            owner = owners[-1 if block is None else block]
            device = owner if override is None else targets[override]
            placed.add(device, size, read)
            if device is None and (owner is not None or block is not None):
                # A large batch of a layer on the host is computed on the first device.
                at = owner if owner is not None else 0
                placed.largest_away[at] = max(placed.largest_away.get(at, 0), largest)
    if weights.tied_bytes:
        placed.add(owners[-1], weights.tied_bytes, weights.tied_bytes)
    return placed


@lru_cache(16)
def _grouped(
    tensors: tuple[tuple[str, int], ...], overrides: tuple[TensorOverride, ...], expert_share: float
) -> tuple[tuple[int | None, TensorOverride | None, int, float, int], ...]:
    """All bytes, bytes that one token reads, and the largest tensor, by block and override."""
    sums: dict[tuple[int | None, TensorOverride | None], list[float]] = {}
    for name, size in tensors:
        override = next((each for each in overrides if each.matches(name)), None)
        group = sums.setdefault((block_of(name), override), [0, 0.0, 0])
        group[0] += size
        group[1] += size * (expert_share if part_of(name) == "experts" else 1.0)
        group[2] = max(group[2], size)
    return tuple((block, override, int(s), read, int(most)) for (block, override), (s, read, most) in sums.items())
