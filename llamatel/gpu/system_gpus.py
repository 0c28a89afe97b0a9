"""GPUs without NVML, as the operating system reports them: Apple's, and those of the amdgpu driver.

Sources: ``sysctl(3)`` of macOS; the Linux kernel's documentation of amdgpu (``mem_info_*``, ``gpu_metrics``). No such
machine was at hand: tests use files and output as documented.
"""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from llamatel.plan.devices import RESERVED_MIB, Device, parse_devices
from llamatel.plan.gpu_catalog import APPLE, MIB

SHARED = "system memory, shared with the CPU"
_DRM = Path("/sys/class/drm")
_APU_METRICS = (2, 3)
"""Format revisions of ``gpu_metrics`` that integrated GPUs have; cards have 1."""


def _sysctl() -> str:
    """Output of macOS' ``sysctl``; empty elsewhere."""
    if (platform.system(), platform.machine()) != ("Darwin", "arm64"):
        return ""
    command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string", "hw.memsize"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def system_gpus(sysctl: Callable[[], str] = _sysctl, drm: Path = _DRM) -> list[Device]:
    """The GPU of an Apple chip, or those of amdgpu, cards before integrated ones; empty on other machines."""
    found = re.fullmatch(r"Apple (M\d{1,2}(?: (?:Pro|Max|Ultra))?)\n(\d{9,15})\n?", sysctl())
    if found is not None:
        return [_apple(found[1].lower().replace(" ", "-"), int(found[2]))]
    folders = [path / "device" for path in sorted(drm.glob("card*")) if re.fullmatch(r"card\d+", path.name)]
    cards = [card for folder in folders if (card := _amd(folder)) is not None]
    return sorted(cards, key=lambda card: SHARED in card.source)


def _apple(chip: str, memory: int) -> Device:
    """The GPU with the part of the machine's memory that Metal lets a process keep resident."""
    known = chip if chip in APPLE else "m1"
    [device] = parse_devices(f"{known}:{memory / (1 << 30):g}G")
    bandwidth = device.bandwidth if known == chip else None
    return replace(device, name=f"Apple {chip}", bandwidth=bandwidth, source=SHARED)


def _amd(folder: Path) -> Device | None:
    """A GPU of amdgpu. An integrated one has a part set aside at start (VRAM) and what it may map (GTT)."""
    card = _number(folder / "mem_info_vram_total")
    if card is None:
        return None
    name = _text(folder / "product_name") or "AMD GPU"
    metrics = _bytes(folder / "gpu_metrics")
    if len(metrics) > 2 and metrics[2] in _APU_METRICS:
        total = card + (_number(folder / "mem_info_gtt_total") or 0)
        used = [_number(folder / f"mem_info_{part}_used") or 0 for part in ("vram", "gtt")]
        return Device(f"{name} (integrated)", total, None, SHARED, min(sum(used), total))
    return Device(name, card, None, "amdgpu", RESERVED_MIB * MIB)


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4096)
    except OSError:
        return b""


def _text(path: Path) -> str:
    """The printable text of a one-line file."""
    text = _bytes(path).decode(errors="replace").strip()
    return text[:64] if text.isprintable() else ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if re.fullmatch(r"\d{1,15}", text) else None
