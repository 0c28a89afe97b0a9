"""The GPUs that a llama-server started here would use, in CUDA's order.

CUDA puts the fastest card first, NVML orders them by bus; ``CUDA_DEVICE_ORDER=PCI_BUS_ID`` makes both the same.
``CUDA_VISIBLE_DEVICES`` chooses cards by number, UUID or the start of one (CUDA C++ programming guide, environment
variables).
"""

from __future__ import annotations

import importlib
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamatel.gpu.system_gpus import SHARED, system_gpus
from llamatel.plan.devices import CONTEXT_MIB, RESERVED_MIB, Device
from llamatel.plan.gpu_catalog import MIB, gpu_named

_log = logging.getLogger(__name__)

_MEMINFO = Path("/proc/meminfo")
_ORDER, _VISIBLE = "CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class _Card:
    """One GPU or one MIG slice of it."""

    uuid: str
    device: Device
    speed: float | None
    """Cores times clock, by which CUDA orders; None where NVML does not have it."""
    slices: tuple[_Card, ...] = ()
    old_name: str | None = None
    """A slice's name in the format of drivers before R470, which CUDA still accepts: ``MIG-GPU-<UUID>/<GI>/<CI>``."""


def visible_devices(
    library: Any = None, environ: Mapping[str, str] = os.environ, meminfo: Path = _MEMINFO
) -> list[Device]:
    """GPUs with memory and bandwidth, in CUDA's order; without NVIDIA GPUs those that the operating system reports.

    ``library`` is pynvml, or a stand-in, which is then the only source.
    """
    if library is not None:
        return _of_nvml(library, environ, meminfo)
    try:
        found = _of_nvml(importlib.import_module("pynvml"), environ, meminfo)
    except ImportError:
        found = []
    return found or system_gpus()


def _of_nvml(library: Any, environ: Mapping[str, str], meminfo: Path) -> list[Device]:
    try:
        library.nvmlInit()
    except library.NVMLError:
        return []
    try:
        cards = _cards(library, meminfo)
    finally:
        library.nvmlShutdown()
    chosen = choose(_in_cuda_order(cards, environ), environ.get(_VISIBLE))
    return [card.device for card in chosen]


def choose(cards: Sequence[_Card], visible: str | None) -> list[_Card]:
    """The cards that ``CUDA_VISIBLE_DEVICES`` selects; CUDA uses at most one slice."""
    if visible is None:
        whole = [card for card in cards if not card.slices]
        return whole or [card.slices[0] for card in cards[:1] if card.slices]
    chosen: list[_Card] = []
    for entry in visible.split(","):
        card = _card(entry.strip(), cards)
        if card is None:
            break  # CUDA ignores the first one that does not exist and all after it
        if any(card is other for other in chosen):
            return []  # and uses none if one is named twice
        chosen.append(card)
    slices = [card for card in chosen if card.uuid.startswith("MIG-")]
    return slices[:1] or chosen


def _card(entry: str, cards: Sequence[_Card]) -> _Card | None:
    if re.fullmatch(r"\d{1,6}", entry):
        return _usable(cards[int(entry)]) if int(entry) < len(cards) else None
    if not entry.startswith(("GPU-", "MIG-")):
        return None
    every = [each for card in cards for each in (card, *card.slices)]
    found = [card for card in every if card.uuid.startswith(entry) or card.old_name == entry]
    if not found and entry.startswith("MIG-GPU-"):  # where NVML does not report the instances: the GPU's first slice
        of_card = [card for card in cards if card.uuid.startswith(entry[4:].partition("/")[0])]
        found = [card for card in of_card if all(each.old_name is None for each in card.slices)]
    return _usable(found[0]) if len(found) == 1 else None


def _usable(card: _Card) -> _Card:
    """The card, or the first slice of a sliced card, whose memory belongs to its slices."""
    return card.slices[0] if card.slices else card


def _in_cuda_order(cards: Sequence[_Card], environ: Mapping[str, str]) -> list[_Card]:
    if environ.get(_ORDER) == "PCI_BUS_ID" or len({card.device.name for card in cards}) < 2:
        return list(cards)
    if any(card.speed is None for card in cards):
        _log.warning(
            "CUDA puts the fastest card first, NVML orders them by bus: which cards -mg and -ts mean is unknown here; "
            "set %s=PCI_BUS_ID",
            _ORDER,
        )
        return list(cards)
    return sorted(cards, key=lambda card: -(card.speed or 0.0))


def _cards(library: Any, meminfo: Path) -> list[_Card]:
    try:
        number = int(library.nvmlDeviceGetCount())
    except library.NVMLError:
        return []
    cards = []
    for index in range(number):
        try:
            handle = library.nvmlDeviceGetHandleByIndex(index)
            cards.append(_described(library, handle, meminfo))
        except library.NVMLError as error:
            _log.warning("GPU %d cannot be read and is left out: %s", index, error)
    return cards


def _described(library: Any, handle: Any, meminfo: Path) -> _Card:
    """A card. Raises NVMLError where not even its name can be read."""
    device = _device(library, handle, meminfo)
    cores, clock = (
        _query(library, "nvmlDeviceGetNumGpuCores", handle),
        _query(library, "nvmlDeviceGetMaxClockInfo", handle, library.NVML_CLOCK_SM),
    )
    mode = _query(library, "nvmlDeviceGetMigMode", handle)
    uuid, slices = _text(library.nvmlDeviceGetUUID(handle)), []
    if mode is not None and mode[0]:
        for number in range(_query(library, "nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
            part = _query(library, "nvmlDeviceGetMigDeviceHandleByIndex", handle, number)
            if part is not None:
                instances = (
                    _query(library, "nvmlDeviceGetGpuInstanceId", part),
                    _query(library, "nvmlDeviceGetComputeInstanceId", part),
                )
                old_name = None if None in instances else f"MIG-{uuid}/{instances[0]}/{instances[1]}"
                own = _text(library.nvmlDeviceGetUUID(part))
                slices.append(_Card(own, _device(library, part, meminfo), None, old_name=old_name))
    speed = float(cores * clock) if cores and clock else None
    return _Card(uuid, device, speed, tuple(slices))


def _device(library: Any, handle: Any, meminfo: Path) -> Device:
    name = _text(library.nvmlDeviceGetName(handle))
    memory = _query(library, "nvmlDeviceGetMemoryInfo", handle)
    total = None if memory is None else int(memory.total)
    known = gpu_named(name, total)
    clock = _query(library, "nvmlDeviceGetMaxClockInfo", handle, library.NVML_CLOCK_MEM)
    width = _query(library, "nvmlDeviceGetMemoryBusWidth", handle)
    # Two transfers a clock over the whole bus.
    bandwidth = 2 * clock * 1e6 * width / 8 if clock and width else known.bandwidth if known else None
    flops = known.peak_flops if known else None
    if total:
        return Device(name, total, bandwidth, "NVML", _reserved(library, handle), flops)
    # GB10, Jetson: the GPU uses the system's memory.
    total, available = _system_memory(meminfo)
    return Device(name, total, bandwidth, SHARED, total - available, flops)


def _reserved(library: Any, handle: Any) -> int:
    """Memory that the driver reserves, as NVML reports it, and that CUDA's context will use."""
    version = getattr(library, "nvmlMemory_v2", None)
    found = None if version is None else _query(library, "nvmlDeviceGetMemoryInfo", handle, version)
    return RESERVED_MIB * MIB if found is None else int(found.reserved) + CONTEXT_MIB * MIB


def _system_memory(meminfo: Path) -> tuple[int, int]:
    """Total and available bytes of the system's memory; 0 where unknown."""
    try:
        text = meminfo.read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0, 0
    found = {
        name: int(size) << 10
        for name, size in re.findall(r"^(MemTotal|MemAvailable): +(\d{1,15}) kB", text, re.MULTILINE)
    }
    total = found.get("MemTotal", 0)
    return total, min(found.get("MemAvailable", total), total)


def _query(library: Any, call: str, *arguments: Any) -> Any:
    """The result of an NVML call; None where this driver or card does not support it."""
    function = getattr(library, call, None)
    if function is None:
        return None
    try:
        return function(*arguments)
    except library.NVMLError:
        return None


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
