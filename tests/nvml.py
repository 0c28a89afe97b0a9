"""NVML recorded on a real GPU and replayed at the library's boundary on machines without one.

A recording is a JSON object of calls: ``"nvmlDeviceGetClockInfo(0,1)"`` to a value, or to ``{"error": number}``. The
first argument of a call about a device is the device's number. ``Recorded`` replaces the module ``pynvml``: its
constants and errors are the real ones, and calls that were not recorded are not supported.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

_PLAIN = (
    "nvmlSystemGetDriverVersion", "nvmlDeviceGetCount",
)  # fmt: skip
_ABOUT_DEVICE: tuple[tuple[Any, ...], ...] = (
    ("nvmlDeviceGetName",), ("nvmlDeviceGetUUID",), ("nvmlDeviceGetMemoryInfo",),
    ("nvmlDeviceGetMemoryInfo", "nvmlMemory_v2"), ("nvmlDeviceGetUtilizationRates",), ("nvmlDeviceGetPowerUsage",),
    ("nvmlDeviceGetEnforcedPowerLimit",), ("nvmlDeviceGetTotalEnergyConsumption",),
    ("nvmlDeviceGetCurrentClocksEventReasons",), ("nvmlDeviceGetComputeRunningProcesses",),
    ("nvmlDeviceGetMemoryBusWidth",), ("nvmlDeviceGetMigMode",), ("nvmlDeviceGetMaxMigDeviceCount",),
    ("nvmlDeviceGetTemperature", "NVML_TEMPERATURE_GPU"),
    ("nvmlDeviceGetTemperatureThreshold", "NVML_TEMPERATURE_THRESHOLD_SLOWDOWN"),
    ("nvmlDeviceGetClockInfo", "NVML_CLOCK_SM"), ("nvmlDeviceGetClockInfo", "NVML_CLOCK_MEM"),
    ("nvmlDeviceGetMaxClockInfo", "NVML_CLOCK_SM"), ("nvmlDeviceGetMaxClockInfo", "NVML_CLOCK_MEM"),
    ("nvmlDeviceGetFanSpeed",),
)  # fmt: skip


def _key(call: str, *arguments: Any) -> str:
    return f"{call}({','.join(map(str, arguments))})"


def _plain(value: Any) -> Any:
    """Return a value of the library as JSON; structures become objects."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if hasattr(value, "_fields_"):
        return {name: _plain(getattr(value, name)) for name, *_ in value._fields_}
    if hasattr(value, "__dict__") and not isinstance(value, int | float | str):
        return {name: _plain(each) for name, each in vars(value).items()}
    inner = getattr(value, "value", value)
    return inner if isinstance(inner, int | float | str | bool | None) else str(inner)


def record(library: Any) -> dict[str, Any]:
    """Call the library for every device and return the recording."""

    def call_library(call: str, *arguments: Any) -> Any:
        try:
            return _plain(getattr(library, call)(*arguments))
        except library.NVMLError as error:
            return {"error": error.value}

    found = {_key(call): call_library(call) for call in _PLAIN}
    for index in range(library.nvmlDeviceGetCount()):
        handle = library.nvmlDeviceGetHandleByIndex(index)
        for call, *names in _ABOUT_DEVICE:
            arguments = [getattr(library, name) for name in names]
            found[_key(call, index, *arguments)] = call_library(call, handle, *arguments)
    return found


class Recorded:
    """Replays a recording; ``changes`` replace recorded values."""

    def __init__(self, recording: Mapping[str, Any], changes: Mapping[str, Any] | None = None) -> None:
        self._real = importlib.import_module("pynvml")
        self.calls: dict[str, Any] = {**recording, **(changes or {})}
        self.opened = 0

    def nvmlInit(self) -> None:
        """Number of open handles, so that a test can check that all are closed."""
        self._answer("nvmlInit()", default=None)
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.opened -= 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvmlDevice") and not name.startswith("nvmlSystem"):
            return getattr(self._real, name)
        return lambda *arguments: self._answer(_key(name, *arguments))

    def _answer(self, key: str, **default: Any) -> Any:
        value = self.calls.get(key, default.get("default", {"error": self._real.NVML_ERROR_NOT_SUPPORTED}))
        if isinstance(value, dict) and set(value) == {"error"}:
            raise self._real.NVMLError(value["error"])
        return _structured(value)


def _structured(value: Any) -> Any:
    if isinstance(value, dict):
        return SimpleNamespace(**{name: _structured(each) for name, each in value.items()})
    if isinstance(value, list):
        return [_structured(each) for each in value]
    return value
