"""The GPUs of a machine in CUDA's order, from stand-ins for NVML (no available machine has these cards)."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import pynvml
import pytest

from llamatel.cli.main import main
from llamatel.gpu.nvml import DriverLost, NoGpu, Nvml
from llamatel.gpu.offload import fell_back
from llamatel.gpu.system_gpus import system_gpus
from llamatel.gpu.visible_devices import visible_devices
from llamatel.plan import parse_server_flags
from llamatel.plan.devices import parse_devices
from llamatel.snapshots import Placement
from tests.nvml import Recorded
from tests.samples import server_snapshot
from tests.tiny_gguf import write_tiny_model

GIB = 1 << 30
NOT_SUPPORTED = {"error": pynvml.NVML_ERROR_NOT_SUPPORTED}
LOST = {"error": pynvml.NVML_ERROR_GPU_IS_LOST}
MEMORY = {"total": 24 * GIB, "used": GIB, "free": 23 * GIB}
SLOW = {"Name": "NVIDIA GeForce GTX 1660 SUPER", "UUID": "GPU-aaaa1111-0000", "NumGpuCores": 1408, "total": 6 * GIB}
FAST = {"Name": "NVIDIA GeForce RTX 3090", "UUID": "GPU-bbbb2222-0000", "NumGpuCores": 10496, "total": 24 * GIB}


def cards(*rows: dict[str, Any], **changes: Any) -> Recorded:
    """A stand-in for pynvml with these cards."""
    calls: dict[str, Any] = {"nvmlDeviceGetCount()": len(rows)}
    for i, row in enumerate(rows):
        calls |= {
            f"nvmlDeviceGetName({i})": row["Name"],
            f"nvmlDeviceGetUUID({i})": row["UUID"],
            f"nvmlDeviceGetNumGpuCores({i})": row.get("NumGpuCores", NOT_SUPPORTED),
            f"nvmlDeviceGetMaxClockInfo({i},{pynvml.NVML_CLOCK_SM})": row.get("clock", 1800),
            f"nvmlDeviceGetMemoryInfo({i})": {**MEMORY, "total": row["total"]} if row.get("total") else NOT_SUPPORTED,
        }
    return Recorded(calls, changes)


def names(library: Recorded, environ: dict[str, str]) -> list[str]:
    return [device.name.split()[-1] for device in visible_devices(library, environ)]


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ["3090", "SUPER"]),  # CUDA: the fastest first
        ({"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, ["3090", "SUPER"]),
        ({"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, ["SUPER", "3090"]),
        ({"CUDA_VISIBLE_DEVICES": "0"}, ["3090"]),
        ({"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, ["SUPER"]),
        ({"CUDA_VISIBLE_DEVICES": " 1 , 0 "}, ["SUPER", "3090"]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-bbbb2222-0000"}, ["3090"]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-aaaa"}, ["SUPER"]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-"}, []),  # the start of both
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, []),
        ({"CUDA_VISIBLE_DEVICES": "1,-1,0"}, ["SUPER"]),  # up to the first that is not there
        ({"CUDA_VISIBLE_DEVICES": "0,7,1"}, ["3090"]),
        ({"CUDA_VISIBLE_DEVICES": "0,0"}, []),
        ({"CUDA_VISIBLE_DEVICES": "none"}, []),
    ],
)
def test_visible_devices_in_cuda_order(environ: dict[str, str], expected: list[str]) -> None:
    library = cards(SLOW, FAST)
    assert names(library, environ) == expected
    assert library.opened == 0


def test_visible_devices_order_unknown_without_core_counts(caplog: pytest.LogCaptureFixture) -> None:
    old = cards({**SLOW, "NumGpuCores": NOT_SUPPORTED}, {**FAST, "NumGpuCores": NOT_SUPPORTED})
    assert names(old, {}) == ["SUPER", "3090"]
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in caplog.text
    caplog.clear()
    assert names(old, {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}) == ["SUPER", "3090"]
    assert not caplog.records


def test_visible_devices_mig_slices() -> None:
    library = cards(
        {**FAST, "Name": "NVIDIA H100 80GB HBM3", "total": 80 * GIB},
        **{
            "nvmlDeviceGetMigMode(0)": [1, 1],
            "nvmlDeviceGetMaxMigDeviceCount(0)": 2,
            "nvmlDeviceGetMigDeviceHandleByIndex(0,0)": 10,
            "nvmlDeviceGetMigDeviceHandleByIndex(0,1)": 11,
            **{f"nvmlDeviceGetName({i})": f"NVIDIA H100 80GB HBM3 MIG {i}" for i in (10, 11)},
            **{f"nvmlDeviceGetUUID({i})": f"MIG-cccc{i}" for i in (10, 11)},
            **{f"nvmlDeviceGetMemoryInfo({i})": {**MEMORY, "total": i * GIB} for i in (10, 11)},
        },
    )
    assert [device.memory for device in visible_devices(library, {})] == [10 * GIB]  # CUDA uses one slice
    for visible, gib in (
        ("MIG-cccc11", 11),
        ("MIG-cccc11,MIG-cccc10", 11),
        ("0", 10),
        ("MIG-GPU-bbbb2222-0000/1/0", 10),
    ):
        [device] = visible_devices(library, {"CUDA_VISIBLE_DEVICES": visible})
        assert device.memory == gib * GIB
    assert visible_devices(library, {"CUDA_VISIBLE_DEVICES": "MIG-dddd"}) == []
    library.calls |= {f"nvmlDeviceGet{kind}InstanceId({i})": i % 10 for kind in ("Gpu", "Compute") for i in (10, 11)}
    [device] = visible_devices(library, {"CUDA_VISIBLE_DEVICES": "MIG-GPU-bbbb2222-0000/1/1"})
    assert device.memory == 11 * GIB
    assert visible_devices(library, {"CUDA_VISIBLE_DEVICES": "MIG-GPU-bbbb2222-0000/2/0"}) == []


@pytest.mark.parametrize("name", ["NVIDIA GB10", b"NVIDIA GB10", "Orin (nvgpu)", b"caf\xe9"])
def test_visible_devices_unified_memory(
    name: str | bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       125829120 kB\nMemFree: 1 kB\nMemAvailable:   104857600 kB\n")
    library = cards({"Name": name, "UUID": b"GPU-1", "total": None})
    [device] = visible_devices(library, {}, meminfo)
    assert (device.memory, device.usable) == (120 * GIB, 100 * GIB)
    assert "system memory" in device.source
    monkeypatch.setattr("llamatel.cli.plan.visible_devices", lambda: visible_devices(library, {}, meminfo))
    model = write_tiny_model(tmp_path / "tiny.gguf")
    assert main(["plan", str(model), "--json", "-c", "1024"]) == 0
    [use] = json.loads(capsys.readouterr().out)["per_device"]
    assert use["source"] == device.source
    assert Nvml(library).read()[0].memory_limit is None  # the card has none of its own


def test_visible_devices_without_meminfo(tmp_path: Path) -> None:
    [device] = visible_devices(cards({"Name": "NVIDIA GB10", "UUID": "GPU-1"}), {}, tmp_path / "none")
    assert device.memory == 0


@pytest.mark.parametrize("call", ["nvmlDeviceGetName(0)", "nvmlDeviceGetUUID(0)"])
def test_nvml_lost_card_at_start(call: str, caplog: pytest.LogCaptureFixture) -> None:
    assert names(cards(SLOW, FAST, **{call: LOST}), {}) == ["3090"]
    assert "GPU 0 cannot be read" in caplog.text
    assert [device.id for device in Nvml(cards(SLOW, FAST, **{call: LOST})).read()] == ["GPU-bbbb2222-0000"]


def test_nvml_card_lost_later() -> None:
    library = cards(SLOW, FAST)
    driver = Nvml(library)
    library.calls["nvmlDeviceGetUtilizationRates(0)"] = library.calls["nvmlDeviceGetTotalEnergyConsumption(0)"] = LOST
    assert [device.id for device in driver.read()] == ["GPU-bbbb2222-0000"]
    assert list(driver.energy()) == ["GPU-bbbb2222-0000"]
    library.calls["nvmlDeviceGetUtilizationRates(1)"] = LOST
    with pytest.raises(DriverLost):
        driver.read()


@pytest.mark.parametrize(
    "changes", [{"nvmlInit()": {"error": pynvml.NVML_ERROR_DRIVER_NOT_LOADED}}, {"nvmlDeviceGetCount()": NOT_SUPPORTED}]
)
def test_visible_devices_without_driver(changes: dict[str, Any]) -> None:
    assert visible_devices(cards(FAST, **changes), {}) == []
    with pytest.raises(NoGpu):
        Nvml(cards(FAST, **changes))


def test_visible_devices_without_pynvml(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    assert visible_devices(environ={}) == []


@pytest.mark.parametrize(
    ("graphics", "expected"),
    [
        (NOT_SUPPORTED, None),  # Vulkan's processes are listed nowhere
        ([{"pid": 777, "usedGpuMemory": 8 * GIB}], None),  # listed as one that draws; the weights are unknown
        ([], True),
    ],
)
def test_offload_vulkan_server(graphics: Any, expected: bool | None) -> None:
    compute = [{"pid": 4, "usedGpuMemory": GIB}]
    calls = {
        "nvmlDeviceGetComputeRunningProcesses(0)": compute, "nvmlDeviceGetGraphicsRunningProcesses(0)": graphics,
    }  # fmt: skip
    devices = Nvml(cards(FAST, **calls)).read()
    settings = parse_server_flags(["-ngl", "99"], environ={})
    state = server_snapshot(model=None, settings=settings, placement=None)
    state = dataclasses.replace(state, server=dataclasses.replace(state.server, pid=777))
    assert fell_back(state, devices) is expected
    vulkan = Placement(buffers={("Vulkan0", "weights"): GIB})
    assert fell_back(dataclasses.replace(state, placement=vulkan), devices) is None


@pytest.mark.parametrize(
    ("output", "name", "share", "bandwidth"),
    [
        ("Apple M4 Max\n68719476736\n", "Apple m4-max", 0.75, 546e9),
        ("Apple M1\n17179869184\n", "Apple m1", 2 / 3, 68.25e9),
        ("Apple M9 Ultra\n137438953472\n", "Apple m9-ultra", 0.75, None),
    ],
)
def test_system_gpus_apple(output: str, name: str, share: float, bandwidth: float | None, tmp_path: Path) -> None:
    [device] = system_gpus(lambda: output, tmp_path)
    total = int(output.rsplit(maxsplit=1)[-1])
    assert (device.name, device.bandwidth, device.source) == (name, bandwidth, "system memory, shared with the CPU")
    assert device.memory == pytest.approx(total * share, abs=1)


@pytest.mark.parametrize(
    "output", ["", "VirtualApple @ 2.50GHz\n1\n", "Apple M4\n-1\n", "Intel(R) Core(TM) i7\n17179869184\n"]
)
def test_system_gpus_other_output(output: str, tmp_path: Path) -> None:
    assert system_gpus(lambda: output, tmp_path / "none") == []


def amdgpu(folder: Path, revision: int | None, **files: str) -> None:
    """The files of the amdgpu driver, as the kernel documents them."""
    device = folder / "device"
    device.mkdir(parents=True)
    for name, text in files.items():
        (device / name).write_text(f"{text}\n")
    if revision is not None:
        (device / "gpu_metrics").write_bytes(bytes([128, 0, revision, 1]) + bytes(124))


def test_system_gpus_amd(tmp_path: Path) -> None:
    vram = {"mem_info_vram_total": str(GIB // 2), "mem_info_vram_used": str(GIB // 4)}
    gtt = {"mem_info_gtt_total": str(32 * GIB), "mem_info_gtt_used": str(GIB)}
    amdgpu(tmp_path / "card0", 2, **vram, **gtt)
    amdgpu(tmp_path / "card1", 1, mem_info_vram_total=str(24 * GIB), product_name="Radeon RX 7900 XTX", **gtt)
    amdgpu(tmp_path / "card2", None)  # another driver's
    amdgpu(tmp_path / "card3", 3, mem_info_vram_total="much")
    (tmp_path / "card0-DP-1").mkdir()
    card, apu = system_gpus(lambda: "", tmp_path)
    assert (card.name, card.memory, card.source) == ("Radeon RX 7900 XTX", 24 * GIB, "amdgpu")
    assert apu.source == "system memory, shared with the CPU"
    assert (apu.memory, apu.usable) == (32 * GIB + GIB // 2, 31 * GIB + GIB // 4)


def test_visible_devices_without_nvidia_are_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamatel.gpu.visible_devices.system_gpus", lambda: parse_devices("m4:32G"))
    without_driver = cards(**{"nvmlInit()": {"error": pynvml.NVML_ERROR_DRIVER_NOT_LOADED}})
    monkeypatch.setattr(importlib, "import_module", lambda _: without_driver)
    assert [device.name for device in visible_devices(environ={})] == ["Apple m4"]
