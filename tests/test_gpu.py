"""GPU figures: placement of a model, memory by part, hardware ceilings, and the collector's samples."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llamatel.errors import UsageError
from llamatel.gguf import parse_gguf_header
from llamatel.gpu.ceilings import (
    bandwidth_utilization,
    decode_bytes,
    decode_ceiling,
    flops_utilization,
    prefill_operations,
)
from llamatel.gpu.gpu_memory import memory_parts
from llamatel.gpu.offload import devices_of, fell_back
from llamatel.llama import ServerManager
from llamatel.llama.log.reader import LogReader
from llamatel.plan import LayerShape, ModelShape, ServerSettings, cache_plan, parse_server_flags, shape_from_gguf
from llamatel.plan.model_shape import Weights
from llamatel.records import RequestGpu
from llamatel.snapshots import DeviceSnapshot, Placement, ServerSnapshot
from llamatel.ui.alarms import Alarms
from llamatel_collectors.gpu import GpuCollector
from llamatel_collectors.model import ModelCollector
from tests.samples import SERVER, completion, server_snapshot, snapshot
from tests.tiny_gguf import write_tiny_model

MIB = 1 << 20
H100 = json.loads((Path(__file__).parent / "data" / "h100_placement.json").read_text())["runs"]
CARD = DeviceSnapshot(
    id="GPU-1", name="NVIDIA H100 80GB HBM3", taken_at=1.0, bandwidth=3352e9, peak_flops=989.5e12,
    memory_limit=81559 * MIB, memory_reserved=480 * MIB, memory_used=4 << 30, processes={4711: 3538 * MIB},
)  # fmt: skip
BLOCK = 2048 * 2048 * 2 + 2 * 2048 * 512 + 3 * 2048 * 8192
"""Weights of one block of the 1B-shaped model, without its norms."""
SHAPE_1B = ModelShape(
    "llama",
    tuple(LayerShape(index, heads=32, kv_heads=8, key_length=64, value_length=64) for index in range(16)),
    context_length=131072,
    embedding_length=2048,
    feed_forward_length=8192,
    verified=True,
    weights=Weights(
        n_bytes=1_949_327_360,
        parameters=974_663_680,
        active_parameters=974_663_680,
        active_bytes=1_947_877_376,
        parts=(
            ("feed-forward", 16 * 3 * 2048 * 8192, 0),
            ("attention", 16 * (BLOCK - 3 * 2048 * 8192), 0),
            ("embeddings", 354 * 2048, 354 * 2048 * 2),
            ("output", 354 * 2048, 354 * 2048 * 2),
        ),
        layer_bytes=(121_651_200,) * 16,
        input_bytes=354 * 2048 * 2,
        output_bytes=1_458_176,
    ),
)


def placed(lines: Sequence[str]) -> Placement | None:
    reader = LogReader(SERVER)
    for line in lines:
        reader.feed(line, 1.0)
    return reader.logged_server.placement


# -- placement, from logs of a real GPU --------------------------------------------------------------------------------


def test_placement_layers_and_buffers_of_real_log() -> None:
    assert placed(H100["half"]["log"]) == Placement(
        gpu_layers=8,
        total_layers=17,
        buffers={
            ("CPU_Mapped", "weights"): round(1046.91 * MIB),
            ("CUDA0", "weights"): round(813.50 * MIB),
            ("CPU", "kv_cache"): 72 * MIB,
            ("CUDA0", "kv_cache"): 56 * MIB,
            ("CUDA0", "compute"): 84 * MIB,
            ("CUDA_Host", "compute"): round(12.01 * MIB),
        },
    )


def test_placement_draft_model_adds_buffers_not_layers() -> None:
    placement = placed(H100["with_draft"]["log"])
    assert placement is not None
    assert (placement.gpu_layers, placement.total_layers) == (17, 17)
    assert placement.buffers["CUDA0", "weights"] == round(1857.64 * MIB) + round(15.35 * MIB)


def test_placement_at_default_verbosity() -> None:
    assert placed(H100["no_gpu_lv3"]["log"]) == Placement(no_gpu=True)
    assert placed(H100["partial_lv3"]["log"]) is None


@pytest.mark.parametrize("name", [name for name in H100 if not name.endswith("lv3") and name != "with_draft"])
def test_cache_plan_equals_reported_gpu_kv_cache(name: str) -> None:
    placement = placed(H100[name]["log"])
    assert placement is not None
    reported = sum(size for (_, part), size in placement.buffers.items() if part == "kv_cache")
    assert cache_plan(SHAPE_1B, parse_server_flags(H100[name]["arguments"], environ={})).total_bytes == reported


def test_process_memory_difference_equals_reported_buffers() -> None:
    short, long = H100["q8_0"], H100["one_slot"]
    before, after = placed(short["log"]), placed(long["log"])
    assert before is not None
    assert after is not None
    on_card = [sum(s for (d, _), s in each.buffers.items() if d == "CUDA0") for each in (before, after)]
    # NVML counts in pages of 2 MiB.
    assert abs((long["process_bytes"] - short["process_bytes"]) - (on_card[1] - on_card[0])) < 2 * MIB


# -- fallback to the CPU -----------------------------------------------------------------------------------------------


def running(arguments: str = "99", **changes: Any) -> ServerSnapshot:
    settings = parse_server_flags(["-ngl", arguments], environ={})
    return server_snapshot(**{"model": SHAPE_1B, "settings": settings, **changes})


@pytest.mark.parametrize(
    ("state", "devices", "expected"),
    [
        (running(placement=Placement(no_gpu=True)), (), True),
        (running("all", placement=Placement(no_gpu=True)), (CARD,), True),
        (running("0", placement=Placement(no_gpu=True)), (), None),
        (running("auto", placement=Placement(no_gpu=True)), (), None),  # auto: uses what is available
        (running("auto", placement=Placement(no_gpu=True)), (CARD,), True),
        (running("99", placement=Placement(17, 17)), (CARD,), False),
        (running("8", placement=Placement(8, 17)), (CARD,), False),
        (running("99", placement=Placement(8, 17)), (CARD,), True),
        (running("auto", placement=Placement(0, 17)), (CARD,), True),
        (running("99"), (CARD,), False),  # as much memory as all weights
        (running("99"), (dataclasses.replace(CARD, processes={4711: 600 * MIB}),), True),
        (running("4"), (dataclasses.replace(CARD, processes={4711: 1200 * MIB}),), False),
        (running("99"), (dataclasses.replace(CARD, processes={1: 600 * MIB}),), True),
        (running("99"), (dataclasses.replace(CARD, processes=None),), None),
        (running("99"), (dataclasses.replace(CARD, processes={}),), None),  # a container: NVML lists no process
        (running("99", model=None), (CARD,), None),
        (running("99"), (), None),
        (running("99", up=False, placement=Placement(no_gpu=True)), (), None),
    ],
)
def test_fell_back_by_settings_and_placement(
    state: ServerSnapshot, devices: tuple[DeviceSnapshot, ...], expected: bool | None
) -> None:
    assert fell_back(state, devices) is expected


def test_fell_back_real_server_without_gpu(llama_server_binary: Path, tiny_model: Path) -> None:
    with ServerManager(backend=str(llama_server_binary)) as server:
        server.start_server(tiny_model, port=0, gpu_layers=99).wait_until_ready(60)
        state = server.snapshot()
    assert state is not None
    assert state.placement is not None
    assert state.placement.no_gpu
    assert fell_back(state, ()) is True
    [sample] = GpuCollector().on_snapshot(snapshot(state))
    assert (sample.metric, sample.value) == ("llamacpp.gpu.fallback", 1)


def test_cpu_fallback_alarm_once_and_model_info() -> None:
    state = running(placement=Placement(no_gpu=True))
    alarms = Alarms()
    assert [alarm.name for alarm in alarms.check(snapshot(state))] == ["on_cpu"]
    assert alarms.check(snapshot(state)) == []
    info = next(s for s in ModelCollector().on_snapshot(snapshot(state)) if s.metric == "llamacpp.model.info")
    assert info.attributes["gpu_layers"] == "no GPU"
    whole = running(placement=Placement(17, 17))
    info = next(s for s in ModelCollector().on_snapshot(snapshot(whole)) if s.metric == "llamacpp.model.info")
    assert info.attributes["gpu_layers"] == "17/17"
    assert Alarms().check(snapshot(whole)) == []


def test_devices_of_server_process_and_mig() -> None:
    other = dataclasses.replace(CARD, id="GPU-2", processes={1: MIB})
    assert devices_of(running(), (CARD, other)) == ((CARD,), False)
    part = dataclasses.replace(CARD, id="MIG-1", parent="GPU-1")
    assert devices_of(running(), (CARD, part)) == ((part,), False)
    hidden = dataclasses.replace(CARD, processes={})
    assert devices_of(running(), (hidden, dataclasses.replace(hidden, memory_used=3 * MIB))) == ((hidden,), True)
    assert devices_of(running("0"), (hidden,)) == ((), False)
    attached = running(server=dataclasses.replace(SERVER, pid=None))
    assert devices_of(attached, (CARD,)) == ((), False)


# -- ceilings ---------------------------------------------------------------------------------------------------------


def test_decode_bytes_weights_and_kv_cache() -> None:
    settings = parse_server_flags(["-c", "32768", "-np", "4"], environ={})
    assert decode_bytes(SHAPE_1B, settings, 2048) == 1_947_877_376 + 2 * 16 * 8 * 64 * 2 * 2048
    quantised = dataclasses.replace(settings, cache_type_k="q8_0", cache_type_v="q8_0")
    assert decode_bytes(SHAPE_1B, quantised, 2048) == 1_947_877_376 + 2 * 16 * 8 * 64 // 32 * 34 * 2048
    windowed = dataclasses.replace(
        SHAPE_1B, layers=tuple(dataclasses.replace(layer, window=512) for layer in SHAPE_1B.layers)
    )
    few, many = (decode_bytes(windowed, settings, context) for context in (8192, 65536))
    assert few == many
    assert decode_bytes(dataclasses.replace(SHAPE_1B, weights=None), settings, 1) is None


def test_prefill_operations_equal_sum_over_tokens() -> None:
    def by_hand(computed: int, cached: int, window: int | None) -> int:
        total = 2 * 2048 * 354
        for position in range(cached, cached + computed):
            seen = min(position + 1, window or 1 << 30)
            total += 16 * (2 * BLOCK + 2 * 32 * (64 + 64) * seen)
        return total

    for computed, cached, window in ((1, 0, None), (300, 0, None), (200, 100, None), (300, 0, 128), (50, 100, 128)):
        shape = dataclasses.replace(
            SHAPE_1B, layers=tuple(dataclasses.replace(layer, window=window) for layer in SHAPE_1B.layers)
        )
        found = prefill_operations(shape, computed, cached)
        assert found == pytest.approx(by_hand(computed, cached, window), rel=1e-3)


def test_utilization_of_real_h100_request() -> None:
    # The H100's log of 2026-11-22: 4000 tokens after a prompt of 7 in 5.43501 s.
    request = completion(
        prompt_computed=1, prompt_cached=6, generated=4000, decode_s=5.43501, prefill_s=0.00226, context_tokens=4006
    )
    settings = ServerSettings()
    share = bandwidth_utilization(request, SHAPE_1B, settings, [CARD])
    rate = 3999 / 5.43501
    assert share == pytest.approx(0.442, abs=0.001)
    ceiling = decode_ceiling(SHAPE_1B, settings, [CARD], 2006)
    assert ceiling is not None
    assert share == pytest.approx(rate / ceiling, rel=1e-6)
    prompt = completion(prompt_computed=2252, prompt_cached=0, prefill_s=0.28459)
    assert flops_utilization(prompt, SHAPE_1B, settings, [CARD]) == pytest.approx(0.0167, abs=0.0002)


def test_decode_ceiling_layer_and_row_split() -> None:
    layer, row = ServerSettings(), ServerSettings(split_mode="row")
    alone = decode_ceiling(SHAPE_1B, layer, [CARD], 1)
    assert decode_ceiling(SHAPE_1B, layer, [CARD, CARD], 1) == alone
    assert decode_ceiling(SHAPE_1B, row, [CARD, CARD], 1) == pytest.approx(2 * (alone or 0))
    slow = dataclasses.replace(CARD, bandwidth=3e11)
    assert decode_ceiling(SHAPE_1B, layer, [CARD, slow], 1) is None
    assert decode_ceiling(SHAPE_1B, layer, [dataclasses.replace(CARD, bandwidth=None)], 1) is None


def test_decode_bytes_of_tiny_model_file(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "half.gguf", embedding=128, half=True)
    shape = shape_from_gguf(parse_gguf_header(path, read_tensors=True))
    assert shape.weights is not None
    read = decode_bytes(shape, ServerSettings(), 256)
    assert read == shape.weights.n_bytes - 354 * 128 * 2 + 2 * 2 * 2 * 32 * 2 * 256


# -- memory and samples -----------------------------------------------------------------------------------------------


def test_memory_parts_planned_estimated_and_reported() -> None:
    placement = placed(H100["whole"]["log"])
    state = running(
        settings=parse_server_flags(["-c", "32768", "-np", "4", "-ngl", "99"], environ={}), placement=placement
    )
    sizes = {(part, source): size for part, source, size in memory_parts(state, [CARD])}
    assert sizes["kv_cache", "planned"] == sizes["kv_cache", "reported"] == 1024 * MIB
    assert sizes["weights", "reported"] == round(1857.64 * MIB)
    assert abs(sizes["weights", "planned"] - sizes["weights", "reported"]) < 0.01 * MIB
    assert sizes["compute", "reported"] == round(68.01 * MIB)
    assert 64 * MIB < sizes["compute", "estimated"] < 80 * MIB
    whole = sum(size for (_, source), size in sizes.items() if source != "reported")
    # The GPU's memory use measured after the first long prompt.
    assert whole == pytest.approx(3646 * MIB, rel=0.02)


def test_memory_parts_without_gpu() -> None:
    assert list(memory_parts(running(), [])) == []


def test_gpu_collector_samples() -> None:
    collector = GpuCollector()
    state = running(
        settings=parse_server_flags(["-c", "32768", "-np", "4", "-ngl", "99"], environ={}), placement=Placement(17, 17)
    )
    card = dataclasses.replace(CARD, power_w=70.0, utilization=0.5, throttled_by=("power_cap",), energy_j=None)
    found: dict[str, list[float]] = {}
    for sample in collector.on_snapshot(snapshot(state, devices=(card,))):
        found.setdefault(sample.metric, []).append(sample.value)
        if sample.metric.startswith("hw."):
            assert sample.attributes["hw.id"] == "GPU-1"
    assert found["hw.power"] == [70.0]
    assert found["hw.gpu.utilization"] == [0.5]
    assert found["llamacpp.gpu.fallback"] == [0]
    assert found["llamacpp.gpu.layers"] == [17, 17]
    assert found["llamacpp.gpu.memory.used"] == [3538 * MIB]
    assert sum(found["llamatel.gpu.throttled"]) == 1
    assert len(found["llamacpp.decode.ceiling"]) == 1
    assert "hw.energy" not in found
    assert "hw.temperature" not in found
    gpu = RequestGpu(energy_j=30.0, prefill_j=10.0, decode_j=20.0, output_j_per_token=1.0, bandwidth_utilization=0.4)
    values = [(s.metric, s.value, s.attributes.get("phase")) for s in collector.on_completion(completion(gpu=gpu))]
    assert values == [
        ("llamacpp.request.energy", 30.0, None),
        ("llamacpp.request.output_token.energy", 1.0, None),
        ("llamacpp.request.bandwidth_utilization", 0.4, None),
        ("llamacpp.energy", 10.0, "prefill"),
        ("llamacpp.energy", 20.0, "decode"),
    ]
    assert list(collector.on_completion(completion())) == []


@pytest.mark.parametrize("price", ["cheap", "-1", "nan", "inf"])
def test_gpu_collector_invalid_price(price: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMATEL_PRICE_PER_KWH", price)
    with pytest.raises(UsageError, match="LLAMATEL_PRICE_PER_KWH"):
        GpuCollector()
