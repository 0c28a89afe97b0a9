"""Reads NVIDIA's GPUs (NVML, through nvidia-ml-py): one reading is one DeviceSnapshot a GPU.

A value that a card or a driver does not have, or that a call failed to read, is None. Only a driver that disappears is
an error. No waiting, retries or state here: those are in ``gpu_source``.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from llamatel.errors import install_command
from llamatel.plan.gpu_catalog import gpu_named
from llamatel.snapshots import DeviceSnapshot

_log = logging.getLogger(__name__)

THROTTLES: dict[int, str] = {
    0x0000000000000002: "application_clocks",
    0x0000000000000004: "power_cap",
    0x0000000000000008: "hardware",
    0x0000000000000010: "sync_boost",
    0x0000000000000020: "thermal",
    0x0000000000000040: "thermal_hardware",
    0x0000000000000080: "power_brake",
    0x0000000000000100: "display_clocks",
}
"""Throttle reasons: NVML's bits (nvml.h, nvmlClocksEventReasons) and our names. An idle card is not throttled."""


class NoGpu(Exception):
    """No NVIDIA GPU can be read; the message has the reason."""


class DriverLost(Exception):
    """The driver disappeared: reset, unloaded, or all its cards fell off the bus."""


class _GpuLost(DriverLost):
    """One card fell off the bus."""


@dataclass(frozen=True, slots=True)
class _Device:
    """A handle, and the properties that do not change."""

    handle: Any
    known: DeviceSnapshot
    power_from: Any
    """The handle for power and temperature; None for a MIG slice, which has none."""


class Nvml:
    """An open NVML library. ``library`` is ``pynvml``; tests pass one that plays back a recording."""

    def __init__(self, library: Any = None, *, clock: Callable[[], float] = time.time) -> None:
        """Raises NoGpu."""
        if library is None:
            try:
                library = importlib.import_module("pynvml")
            except ImportError:
                raise NoGpu(f"the package nvidia-ml-py is not installed ({install_command('gpu')})") from None
        self._nvml = library
        self._clock = clock
        self._lost = (library.NVMLError_Uninitialized, library.NVMLError_DriverNotLoaded)
        try:
            library.nvmlInit()
        except library.NVMLError as error:
            raise NoGpu(f"NVML cannot be used: {error}") from None
        try:
            self._devices = tuple(self._find())
        except library.NVMLError as error:
            self.close()
            raise NoGpu(f"NVML does not list its GPUs: {error}") from None
        if not self._devices:
            self.close()
            raise NoGpu("the driver sees no GPU")

    def close(self) -> None:
        """Close the driver."""
        with contextlib.suppress(self._nvml.NVMLError):
            self._nvml.nvmlShutdown()

    @property
    def names(self) -> tuple[str, ...]:
        """The GPUs' names."""
        return tuple(device.known.name for device in self._devices)

    def read(self) -> tuple[DeviceSnapshot, ...]:
        """Current readings of all GPUs except lost ones, in some milliseconds each. Raises DriverLost."""
        found = []
        lost: _GpuLost | None = None
        for device in self._devices:
            try:
                found.append(self._read(device))
            except _GpuLost as error:
                lost = error
        if not found and lost is not None:
            raise lost
        return tuple(found)

    def energy(self) -> dict[str, tuple[float, float | None, float | None]]:
        """By UUID: the time, the energy counter in joules, the power in watts; of GPUs, not of MIG slices."""
        found = {}
        for device in self._devices:
            if device.power_from is None:
                continue
            with contextlib.suppress(_GpuLost):
                joules = self._get("nvmlDeviceGetTotalEnergyConsumption", device.power_from)
                power = None if joules is not None else self._get("nvmlDeviceGetPowerUsage", device.power_from)
                found[device.known.id] = (self._clock(), _milli(joules), _milli(power))
        return found

    def _find(self) -> Iterator[_Device]:
        driver = self._text("nvmlSystemGetDriverVersion")
        for index in range(self._nvml.nvmlDeviceGetCount()):
            try:
                handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
                whole = self._describe(handle, driver)
            except (self._nvml.NVMLError, _GpuLost) as error:
                _log.warning("GPU %d cannot be read and is left out: %s", index, error)
                continue
            yield _Device(handle, whole, handle)
            mode = self._get("nvmlDeviceGetMigMode", handle)
            if mode is not None and mode[0]:
                for number in range(self._get("nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
                    slice_ = self._get("nvmlDeviceGetMigDeviceHandleByIndex", handle, number)
                    if slice_ is not None:
                        # A slice has a part of the card's bandwidth and arithmetic that NVML does not report.
                        part = replace(self._describe(slice_, driver), bandwidth=None, peak_flops=None)
                        yield _Device(slice_, replace(part, parent=whole.id), None)

    def _describe(self, handle: Any, driver: str | None) -> DeviceSnapshot:
        name = str(_decoded(self._nvml.nvmlDeviceGetName(handle)))
        memory = self._get("nvmlDeviceGetMemoryInfo", handle)
        known = gpu_named(name, None if memory is None else int(memory.total))
        clock = self._get("nvmlDeviceGetMaxClockInfo", handle, self._nvml.NVML_CLOCK_MEM)
        width = self._get("nvmlDeviceGetMemoryBusWidth", handle)
        # Two transfers a clock over the whole bus.
        bandwidth = 2 * clock * 1e6 * width / 8 if clock and width else known.bandwidth if known else None
        return DeviceSnapshot(
            id=str(_decoded(self._nvml.nvmlDeviceGetUUID(handle))),
            name=name,
            taken_at=0.0,
            driver=driver,
            memory_limit=None if memory is None else int(memory.total),
            power_limit_w=_milli(self._get("nvmlDeviceGetEnforcedPowerLimit", handle)),
            temperature_limit_c=self._temperature_limit(handle),
            clock_limits_hz=self._clocks("nvmlDeviceGetMaxClockInfo", handle),
            bandwidth=bandwidth,
            peak_flops=known.peak_flops if known else None,
        )

    def _read(self, device: _Device) -> DeviceSnapshot:
        handle, power = device.handle, device.power_from
        memory = self._memory(handle)
        rates = self._get("nvmlDeviceGetUtilizationRates", handle)
        reasons = self._reasons(handle) if power is not None else None
        computing = self._get("nvmlDeviceGetComputeRunningProcesses", handle)
        drawing = self._get("nvmlDeviceGetGraphicsRunningProcesses", handle)  # Vulkan's are among these
        return replace(
            device.known,
            taken_at=self._clock(),
            utilization=None if rates is None else rates.gpu / 100,
            memory_used=None if memory is None else int(memory.used),
            memory_reserved=int(memory.reserved) if memory is not None and hasattr(memory, "reserved") else None,
            processes=None if computing is None else _by_pid([*(drawing or ()), *computing]),
            processes_complete=computing is None or drawing is not None,
            power_w=None if power is None else _milli(self._get("nvmlDeviceGetPowerUsage", power)),
            energy_j=None if power is None else _milli(self._get("nvmlDeviceGetTotalEnergyConsumption", power)),
            temperature_c=None
            if power is None
            else _float(self._get("nvmlDeviceGetTemperature", power, self._nvml.NVML_TEMPERATURE_GPU)),
            clocks_hz=self._clocks("nvmlDeviceGetClockInfo", handle),
            throttled_by=None
            if reasons is None
            else tuple(word for bit, word in THROTTLES.items() if int(reasons) & bit),
        )

    def _memory(self, handle: Any) -> Any:
        """The newer call separates what the driver reserves from what processes use; the older one adds them."""
        version = getattr(self._nvml, "nvmlMemory_v2", None)
        found = None if version is None else self._get("nvmlDeviceGetMemoryInfo", handle, version)
        return self._get("nvmlDeviceGetMemoryInfo", handle) if found is None else found

    def _reasons(self, handle: Any) -> Any:
        newer = getattr(self._nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
        found = None if newer is None else self._get("nvmlDeviceGetCurrentClocksEventReasons", handle)
        return self._get("nvmlDeviceGetCurrentClocksThrottleReasons", handle) if found is None else found

    def _clocks(self, call: str, handle: Any) -> dict[str, float]:
        domains = {"sm": self._nvml.NVML_CLOCK_SM, "memory": self._nvml.NVML_CLOCK_MEM}
        found = {name: self._get(call, handle, domain) for name, domain in domains.items()}
        return {name: mhz * 1e6 for name, mhz in found.items() if mhz is not None}

    def _temperature_limit(self, handle: Any) -> float | None:
        """The temperature at which the card slows down."""
        which = getattr(self._nvml, "NVML_TEMPERATURE_THRESHOLD_SLOWDOWN", None)
        return None if which is None else _float(self._get("nvmlDeviceGetTemperatureThreshold", handle, which))

    def _text(self, call: str) -> str | None:
        found = self._get(call)
        return None if found is None else str(_decoded(found))

    def _get(self, call: str, *arguments: Any) -> Any:
        """The result of an NVML call; None where this driver or card does not support it."""
        function = getattr(self._nvml, call, None)
        if function is None:
            return None
        try:
            return function(*arguments)
        except self._lost as error:
            raise DriverLost(f"{call}: {error}") from None
        except self._nvml.NVMLError_GpuIsLost as error:
            raise _GpuLost(f"{call}: {error}") from None
        except self._nvml.NVMLError:
            return None


def _by_pid(listed: Iterable[Any]) -> Mapping[int, int | None]:
    return {int(each.pid): None if each.usedGpuMemory is None else int(each.usedGpuMemory) for each in listed}


def _decoded(text: Any) -> Any:
    return text.decode(errors="replace") if isinstance(text, bytes) else text


def _milli(value: float | None) -> float | None:
    return None if value is None else value / 1e3


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)
