"""The GPU driver: a real GPU's NVML responses replayed; drivers without some figures, hanging, lost and back."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pynvml
import pytest

from llamatel.gpu.gpu_source import GpuSource
from llamatel.gpu.nvml import DriverLost, NoGpu, Nvml
from llamatel.snapshots import DeviceSnapshot
from tests.nvml import Recorded, record
from tests.parts.processes import wait_until
from tests.samples import completion, snapshot

H100 = json.loads((Path(__file__).parent / "data" / "nvml_h100.json").read_text())
IDLE: dict[str, Any] = H100["idle"]
LOST = {"error": pynvml.NVML_ERROR_GPU_IS_LOST}
PID, PROCESS_BYTES = 4711, H100["recorded"]["server"]["process_bytes"]


def h100(**changes: Any) -> Recorded:
    """Return the recorded GPU with the given changes; ``Name=…`` replaces ``nvmlDeviceGetName(0)``."""
    calls = {key if "(" in key else f"nvmlDeviceGet{key}(0)": value for key, value in changes.items()}
    return Recorded(IDLE, calls)


def read(library: Recorded) -> DeviceSnapshot:
    driver = Nvml(library, clock=lambda: 5.0)
    [device] = driver.read()
    driver.close()
    assert library.opened == 0
    return device


def test_nvml_reads_recorded_h100() -> None:
    device = read(
        h100(ComputeRunningProcesses=[{"pid": PID, "usedGpuMemory": PROCESS_BYTES}], GraphicsRunningProcesses=[])
    )
    assert device == DeviceSnapshot(
        id="GPU-66184e3a-0000-0000-0000-000000000000",
        name="NVIDIA H100 80GB HBM3",
        taken_at=5.0,
        driver="580.159.04",
        utilization=0.0,
        memory_used=0,
        memory_reserved=480 << 20,
        memory_limit=81559 << 20,
        processes={PID: PROCESS_BYTES},
        power_w=73.137,
        power_limit_w=700.0,
        energy_j=4241.912,
        temperature_c=38.0,
        temperature_limit_c=89.0,
        clocks_hz={"sm": 345e6, "memory": 2619e6},
        clock_limits_hz={"sm": 1980e6, "memory": 2619e6},
        throttled_by=(),
        bandwidth=2 * 2619e6 * 5120 / 8,
        peak_flops=device.peak_flops,
    )
    assert device.peak_flops is not None
    assert 9e14 < device.peak_flops < 1.1e15


def test_nvml_recording_round_trip() -> None:
    assert record(h100()) == IDLE


def test_nvml_unsupported_figures_are_none() -> None:
    name, uuid = "nvmlDeviceGetName(0)", "nvmlDeviceGetUUID(0)"
    device = read(Recorded({name: "An old GPU", uuid: "GPU-1", "nvmlDeviceGetCount()": 1}))
    assert device == DeviceSnapshot(id="GPU-1", name="An old GPU", taken_at=5.0)


def test_nvml_memory_of_older_driver() -> None:
    device = read(h100(**{f"nvmlDeviceGetMemoryInfo(0,{pynvml.nvmlMemory_v2})": {"error": 25}}))
    assert (device.memory_used, device.memory_reserved) == (480 << 20, None)


def test_nvml_throttle_reasons() -> None:
    assert read(h100(CurrentClocksEventReasons=0x1 | 0x4 | 0x20)).throttled_by == ("power_cap", "thermal")
    assert read(h100(CurrentClocksEventReasons={"error": 3})).throttled_by is None


def test_nvml_unknown_gpu_peak_and_bandwidth() -> None:
    device = read(h100(Name="NVIDIA Whatever", MemoryBusWidth=256))
    assert (device.peak_flops, device.bandwidth) == (None, 2 * 2619e6 * 256 / 8)


def test_nvml_mig_devices() -> None:
    part = {
        "nvmlDeviceGetMigMode(0)": [1, 1],
        "nvmlDeviceGetMaxMigDeviceCount(0)": 7,
        "nvmlDeviceGetMigDeviceHandleByIndex(0,0)": 77,
        "nvmlDeviceGetName(77)": "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "nvmlDeviceGetUUID(77)": "MIG-1",
        "nvmlDeviceGetMemoryInfo(77)": {"total": 10 << 30, "used": 1 << 30, "free": 9 << 30},
        "nvmlDeviceGetComputeRunningProcesses(77)": [{"pid": PID, "usedGpuMemory": 1 << 30}],
        "nvmlDeviceGetPowerUsage(77)": 1,
    }
    driver = Nvml(h100(**part))
    whole, slice_ = driver.read()
    assert slice_.parent == whole.id
    assert (slice_.memory_limit, slice_.processes) == (10 << 30, {PID: 1 << 30})
    assert (slice_.power_w, slice_.energy_j, slice_.bandwidth, slice_.utilization) == (None, None, None, None)
    assert list(driver.energy()) == [whole.id]


def test_nvml_several_gpus() -> None:
    second = {key.replace("(0", "(1"): value for key, value in IDLE.items() if "(0" in key}
    library = Recorded(IDLE, {**second, "nvmlDeviceGetCount()": 2, "nvmlDeviceGetUUID(1)": "GPU-2"})
    assert [device.id for device in Nvml(library).read()] == [IDLE["nvmlDeviceGetUUID(0)"], "GPU-2"]


@pytest.mark.parametrize(
    "changes",
    [{"nvmlInit()": {"error": pynvml.NVML_ERROR_DRIVER_NOT_LOADED}}, {"nvmlDeviceGetCount()": 0},
     {"nvmlDeviceGetCount()": {"error": pynvml.NVML_ERROR_UNKNOWN}}],
)  # fmt: skip
def test_nvml_no_gpu(changes: dict[str, Any]) -> None:
    library = Recorded(IDLE, changes)
    with pytest.raises(NoGpu):
        Nvml(library)
    assert library.opened == 0


def test_nvml_lost_gpu() -> None:
    library = h100()
    driver = Nvml(library)
    library.calls["nvmlDeviceGetUtilizationRates(0)"] = LOST
    with pytest.raises(DriverLost):
        driver.read()


# -- the thread -----------------------------------------------------------------------------------------------------


@pytest.fixture
def source() -> Any:
    """Start GPU sources that are stopped after the test."""
    made: list[GpuSource] = []

    def make(open_driver: Callable[[], Any], **options: Any) -> GpuSource:
        found = GpuSource(open_driver, energy_every_s=0.02, **options)
        made.append(found)
        found.start()
        return found

    yield make
    for each in made:
        each.stop()


def test_gpu_source_reads_in_background(source: Any) -> None:
    running = source(lambda: Nvml(h100()))
    wait_until(running.devices)
    [device] = running.complete_snapshot(snapshot()).devices
    assert device.power_w == 73.137


def test_gpu_source_without_gpu_logs_once_and_stops(caplog: pytest.LogCaptureFixture) -> None:
    running = GpuSource(lambda: Nvml(h100(**{"nvmlInit()": {"error": pynvml.NVML_ERROR_LIBRARY_NOT_FOUND}})))
    with caplog.at_level(logging.INFO, logger="llamatel"):
        running.start()
        assert running._thread is not None
        running._thread.join(5)
    assert not running._thread.is_alive()
    assert [each.levelname for each in caplog.records] == ["INFO"]
    assert "no GPU to measure: " in caplog.text
    assert running.devices() == ()
    request = completion()
    assert running.complete(request) is request
    running.stop()


def test_gpu_source_hanging_driver(source: Any) -> None:
    hang = threading.Event()
    now = [1000.0]

    class Hanging(Nvml):
        def read(self) -> tuple[DeviceSnapshot, ...]:
            found = super().read()
            if now[0] > 1000.0:
                hang.wait(30)
            return found

    running = source(lambda: Hanging(h100(), clock=lambda: now[0]), clock=lambda: now[0])
    wait_until(running.devices)
    now[0] = 1003.0
    time.sleep(1.2)  # the thread is inside the driver call by now
    start = time.monotonic()
    assert running.devices()
    now[0] = 1010.0
    assert running.devices() == ()
    assert running.complete(completion(ended_at=1009.0, started_at=1008.0)).gpu is None
    running.stop()
    assert time.monotonic() - start < 2.0
    hang.set()


def test_gpu_source_driver_lost_and_back(
    source: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llamatel.gpu.gpu_source._AGAIN_S", 0.05)
    library = h100()
    running = source(lambda: Nvml(library))
    wait_until(running.devices)
    with caplog.at_level(logging.INFO, logger="llamatel"):
        library.calls["nvmlDeviceGetTotalEnergyConsumption(0)"] = LOST
        library.calls["nvmlInit()"] = {"error": pynvml.NVML_ERROR_DRIVER_NOT_LOADED}
        wait_until(lambda: running.devices() == ())
        library.calls["nvmlDeviceGetTotalEnergyConsumption(0)"] = 5_000_000
        del library.calls["nvmlInit()"]
        wait_until(running.devices)
    assert [each.levelname for each in caplog.records] == ["WARNING", "INFO"]


def test_gpu_source_integrates_power_without_energy_counter(source: Any) -> None:
    running = source(lambda: Nvml(h100(TotalEnergyConsumption={"error": 3}, PowerUsage=100_000)))
    wait_until(lambda: running.devices() and (running.devices()[0].energy_j or 0) > 50)
