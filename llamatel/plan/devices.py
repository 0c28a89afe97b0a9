"""The devices that a plan is for, as ``--device`` names them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from llamatel.errors import UsageError
from llamatel.plan.gpu_catalog import APPLE, APPLE_SOURCE, BY_KEY, GB, MIB


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU. Bytes, bytes a second, operations a second; None where unknown."""

    name: str
    memory: int
    bandwidth: float | None
    source: str
    reserved: int = 0
    """Memory not available to llama.cpp, used by the driver's context (an estimate, see ``RESERVED_MIB``)."""
    peak_flops: float | None = None
    """Dense FP16/BF16 arithmetic (see ``gpus``)."""
    remote: bool = False
    """Of an RPC server (``--rpc``): llama.cpp puts these before its own devices."""

    @property
    def usable(self) -> int:
        """Memory that weights, caches and compute buffers can share."""
        return self.memory - self.reserved


RESERVED_MIB = 450
"""Estimate of the memory not available on a card: reserved by the driver, and used by CUDA itself."""
HOPPER_RESERVED_MIB = 1190
"""Seen on an H100 80GB HBM3 (driver 580, CUDA 13): the driver keeps 480 MiB of what NVML calls the total; context,
kernels and cuBLAS use 588 MiB once a model is loaded, 697 to 772 after the first long prompt, whatever the model."""
CONTEXT_MIB = 710
"""The part that CUDA uses, for cards whose driver reports what it reserves. Older cards may use less."""
_HOPPER = ("H100", "H200")
_METAL_SHARE = 0.75
"""Share of Apple's unified memory that Metal lets a process keep resident (recommendedMaxWorkingSetSize; below 36 GB it
is two thirds)."""


def known_devices() -> list[str]:
    """Names that ``parse_devices`` accepts."""
    return [*BY_KEY, *(f"{name}:SIZE" for name in APPLE)]


def _one(name: str, size: str | None) -> Device:
    if name in APPLE:
        if size is None:
            raise UsageError(f"name its memory: --device {name}:32G")
        total = round(float(size)) << 30
        share = _METAL_SHARE if total >= 36 << 30 else 2 / 3
        return Device(f"Apple {name}", int(total * share), APPLE[name] * GB, APPLE_SOURCE)
    if name not in BY_KEY:
        known = ", ".join(known_devices())
        raise UsageError(f"unknown device '{name}': one of {known}; or {name}:24G,900 (its memory, its GB/s)")
    gpu = BY_KEY[name]
    reserved = HOPPER_RESERVED_MIB if gpu.name.startswith(_HOPPER) else RESERVED_MIB
    device = Device(gpu.name, gpu.memory, gpu.bandwidth, gpu.source, reserved * MIB, gpu.peak_flops)
    return device if size is None else replace(device, memory=int(float(size) * (1 << 30)))


def parse_devices(text: str) -> list[Device]:
    """``t4x2``, ``rtx4090``, ``t4x2+a100``, ``m4-max:64G``, ``other:24G,900``, ``rpc:24G``. Raises UsageError."""
    devices: list[Device] = []
    for part in text.lower().replace(" ", "").split("+"):
        found = re.fullmatch(r"([a-z0-9_-]+?)(?::([\d.]+)g?b?(?:,([\d.]+))?)?(?:x([1-9]\d?))?", part)
        if found is None:
            raise UsageError(f"'{part}' is not a device: use t4x2, rtx4090, m4-max:64G or other:24G,900")
        name, size, bandwidth, number = found.groups()
        if bandwidth is not None:
            speed, memory = float(bandwidth) * GB, int(float(size) * (1 << 30))
            device = Device(name, memory, speed, "the command line", RESERVED_MIB * MIB)
        elif name == "rpc" and size is not None:
            device = Device("RPC", int(float(size) * (1 << 30)), None, "the command line", remote=True)
        else:
            device = _one(name, size)
        devices += [device] * int(number or 1)
    return sorted(devices, key=lambda device: not device.remote)
