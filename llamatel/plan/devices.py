"""Memory and bandwidth of GPUs that people run llama.cpp on; from NVML, or from a table where one only plans.

Memory is what nvidia-smi reports as total (error correction already taken off); bandwidth is the maker's peak. Sources:
NVIDIA's data sheet of each product, its GeForce specifications, Apple's technical specifications. Apple's memory is the
machine's: say it behind a colon.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass, replace
from typing import Any

from llamatel.errors import UsageError

MIB = 1 << 20
GB = 10**9


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU. Bytes, and bytes a second; None where unknown."""

    name: str
    memory: int
    bandwidth: float | None
    source: str
    reserved: int = 0
    """Not to be had by llama.cpp: what a driver's context takes (an estimate, see ``RESERVED_MIB``)."""

    @property
    def usable(self) -> int:
        """Memory that weights, caches and compute buffers can share."""
        return self.memory - self.reserved


RESERVED_MIB = 450
"""Estimate of what CUDA takes on a device before the first tensor (context, kernels, cuBLAS workspace); 300 to 500 MiB
are seen on T4 to H100 with CUDA 12."""
_METAL_SHARE = 0.75
"""Of Apple's unified memory, what Metal lets a process keep resident (recommendedMaxWorkingSetSize; two thirds below
36 GB)."""

_DATA_SHEET, _COMPARE, _APPLE = "NVIDIA data sheet", "NVIDIA GeForce specifications", "Apple technical specifications"
_NVIDIA: dict[str, tuple[str, int, float, str]] = {
    "t4": ("Tesla T4", 15360, 320, _DATA_SHEET),
    "p100": ("Tesla P100 16GB", 16384, 732, _DATA_SHEET),
    "v100": ("Tesla V100 16GB", 16384, 900, _DATA_SHEET),
    "v100-32g": ("Tesla V100 32GB", 32768, 900, _DATA_SHEET),
    "l4": ("L4", 23034, 300, _DATA_SHEET),
    "a10": ("A10", 23028, 600, _DATA_SHEET),
    "a10g": ("A10G", 23028, 600, _DATA_SHEET),
    "a100": ("A100 40GB", 40960, 1555, _DATA_SHEET),
    "a100-80g": ("A100 80GB", 81920, 2039, _DATA_SHEET),
    "l40s": ("L40S", 46068, 864, _DATA_SHEET),
    "h100": ("H100 80GB SXM", 81559, 3350, _DATA_SHEET),
    "h100-pcie": ("H100 80GB PCIe", 81559, 2000, _DATA_SHEET),
    "h200": ("H200", 143771, 4800, _DATA_SHEET),
    "rtx3060": ("GeForce RTX 3060 12GB", 12288, 360, _COMPARE),
    "rtx3070": ("GeForce RTX 3070", 8192, 448, _COMPARE),
    "rtx3080": ("GeForce RTX 3080 10GB", 10240, 760, _COMPARE),
    "rtx3090": ("GeForce RTX 3090", 24576, 936, _COMPARE),
    "rtx4060": ("GeForce RTX 4060", 8188, 272, _COMPARE),
    "rtx4060ti-16g": ("GeForce RTX 4060 Ti 16GB", 16380, 288, _COMPARE),
    "rtx4070": ("GeForce RTX 4070", 12282, 504, _COMPARE),
    "rtx4080": ("GeForce RTX 4080", 16376, 716.8, _COMPARE),
    "rtx4090": ("GeForce RTX 4090", 24564, 1008, _COMPARE),
    "rtx5060ti-16g": ("GeForce RTX 5060 Ti 16GB", 16311, 448, _COMPARE),
    "rtx5070": ("GeForce RTX 5070", 12227, 672, _COMPARE),
    "rtx5070ti": ("GeForce RTX 5070 Ti", 16303, 896, _COMPARE),
    "rtx5080": ("GeForce RTX 5080", 16303, 960, _COMPARE),
    "rtx5090": ("GeForce RTX 5090", 32607, 1792, _COMPARE),
}
_APPLE_BANDWIDTH = {
    "m1": 68.25, "m1-pro": 200, "m1-max": 400, "m1-ultra": 800,
    "m2": 100, "m2-pro": 200, "m2-max": 400, "m2-ultra": 800,
    "m3": 100, "m3-max": 400, "m3-ultra": 819, "m4": 120, "m4-pro": 273, "m4-max": 546,
}  # fmt: skip


def known_devices() -> list[str]:
    """Names that ``parse_devices`` takes."""
    return [*_NVIDIA, *(f"{name}:SIZE" for name in _APPLE_BANDWIDTH)]


def _one(name: str, size: str | None) -> Device:
    if name in _APPLE_BANDWIDTH:
        if size is None:
            raise UsageError(f"say how much memory it has: --device {name}:32G")
        total = round(float(size)) << 30
        share = _METAL_SHARE if total >= 36 << 30 else 2 / 3
        return Device(f"Apple {name}", int(total * share), _APPLE_BANDWIDTH[name] * GB, _APPLE)
    if name not in _NVIDIA:
        known = ", ".join(known_devices())
        raise UsageError(f"unknown device '{name}': one of {known}; or {name}:24G,900 (its memory, its GB/s)")
    label, mib, bandwidth, source = _NVIDIA[name]
    device = Device(label, mib * MIB, bandwidth * GB, source, RESERVED_MIB * MIB)
    return device if size is None else replace(device, memory=int(float(size) * (1 << 30)))


def parse_devices(text: str) -> list[Device]:
    """``t4x2``, ``rtx4090``, ``t4x2+a100``, ``m4-max:64G``, ``other:24G,900``. Raises UsageError."""
    devices: list[Device] = []
    for part in text.lower().replace(" ", "").split("+"):
        found = re.fullmatch(r"([a-z0-9_-]+?)(?::([\d.]+)g?b?(?:,([\d.]+))?)?(?:x(\d{1,2}))?", part)
        if found is None:
            raise UsageError(f"'{part}' is no device: say t4x2, rtx4090, m4-max:64G or other:24G,900")
        name, size, bandwidth, number = found.groups()
        if bandwidth is not None:
            speed, memory = float(bandwidth) * GB, int(float(size) * (1 << 30))
            device = Device(name, memory, speed, "the command line", RESERVED_MIB * MIB)
        else:
            device = _one(name, size)
        devices += [device] * int(number or 1)
    return devices


def seen_by_nvml() -> list[Device]:
    """The GPUs of this machine: memory from NVML, bandwidth from its bus and clock. Empty without NVML or a GPU."""
    try:
        pynvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        devices = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            name = pynvml.nvmlDeviceGetName(handle)
            try:
                clock = pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_MEM)
                # Two transfers a clock over the whole bus.
                bandwidth = 2 * clock * 1e6 * pynvml.nvmlDeviceGetMemoryBusWidth(handle) / 8
            except pynvml.NVMLError:
                bandwidth = None
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle).total
            devices.append(Device(str(name), int(memory), bandwidth, "NVML", RESERVED_MIB * MIB))
        return devices
    finally:
        pynvml.nvmlShutdown()
