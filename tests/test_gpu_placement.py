"""Placement: tensor overrides, devices and splits, against buffers that llama.cpp reported on H100 GPUs."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from llamatel.cli.main import main
from llamatel.flags.parse import parse_server_flags
from llamatel.gguf import parse_gguf_header
from llamatel.plan import ModelShape, shape_from_gguf
from llamatel.plan.devices import Device, parse_devices
from llamatel.plan.expert_search import search
from llamatel.plan.llama_build import parse_build
from llamatel.plan.memory_plan import DeviceUse, memory_plan
from llamatel.plan.plan_report import make_report
from llamatel.plan.presets import PRESETS, choose
from tests.exact.real import REAL, TABLE, write_sparse
from tests.exact.writer import read_table
from tests.parts import Child, accepts, free_port, llama_server, wait_until
from tests.tiny_gguf import write_tiny_model

MIB = 1 << 20
RECORDED = json.loads((Path(__file__).parent / "data" / "gpu_buffers.json").read_text())
"""llama-server 0.5.0-dev with CUDA on one and two H100 80GB HBM3: models of real dimensions, weights of zeros."""
MOE = "qwen3moe:30B-A3B"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models of real dimensions with quantised weights, as sparse files."""
    folder, table = tmp_path_factory.mktemp("real"), read_table(TABLE)
    names = {row["model"] for row in RECORDED}
    return {
        model.name: write_sparse(folder / f"{i}.gguf", model, table[model.name], quantised=True)
        for i, model in enumerate(REAL)
        if model.name in names
    }


def shape_of(path: Path) -> ModelShape:
    return shape_from_gguf(parse_gguf_header(path, read_tensors=True), parse_build("0.5.0-dev"))


@pytest.mark.parametrize("row", RECORDED, ids=[f"{row['model']} {row['flags']}" for row in RECORDED])
def test_placement_equals_real_gpus(row: dict[str, Any], files: dict[str, Path]) -> None:
    settings = parse_server_flags(row["flags"].split(), environ={})
    plan = memory_plan(shape_of(files[row["model"]]), settings, parse_devices(row["devices"]))
    uses: dict[str, DeviceUse] = {f"CUDA{i}": use for i, use in enumerate(plan.per_device)}
    if settings.devices:
        uses = dict(zip(settings.devices, plan.per_device, strict=True))
    for name, reported in row["buffers_mib"].items():
        use = uses[name]
        assert use.weights_bytes / MIB == pytest.approx(reported["model"], abs=0.15)  # CUDA pads some tensors
        assert use.cache_bytes / MIB == pytest.approx(reported.get("KV", 0.0), abs=0.02)
        whole = settings.kv_offload and plan.offloaded and "=CUDA1" not in row["flags"]
        assert use.compute_estimate is not None
        if whole:
            assert use.compute_estimate / MIB == pytest.approx(reported["compute"], rel=0.12)
    assert {name for name, use in uses.items() if use.weights_bytes} == set(row["buffers_mib"])


def answers(path: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["plan", str(path), "--json", *words]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize(
    ("flags", "blocks"),
    [
        ("-ngl 99 -ncmoe 48", 48), ("-ngl 99 --cpu-moe", 48), ("-ngl 99 -ot exps=CPU", 48), ("-ngl 99 -ncmoe 24", 24),
        (r"-ngl 99 -ot blk\.([0-9]|1[0-9])\.ffn_.*_exps=CPU", 20), ("-ngl 99", 0),
    ],
)  # fmt: skip
def test_placement_experts_on_host(
    flags: str, blocks: int, files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    found = answers(files[MOE], capsys, "--device", "rtx3090", "--", "-c", "8192", *flags.split())
    assert found["flags_not_counted"] == []
    assert found["fits"] is True
    each = (
        found["host"]["weights_bytes"]
        - answers(files[MOE], capsys, "--device", "rtx3090", "--", "-ngl", "99", "-c", "8192")["host"]["weights_bytes"]
    )
    assert each == blocks * 3 * 128 * 2048 * 768 // 256 * 144


@pytest.mark.parametrize(
    "environ",
    [{"LLAMA_ARG_N_CPU_MOE": "30"}, {"LLAMA_ARG_CPU_MOE": "1"}, {"LLAMA_ARG_OVERRIDE_TENSOR": "exps=CPU"}],
)
def test_placement_overrides_from_environment(
    environ: dict[str, str], files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    found = answers(files[MOE], capsys, "--device", "rtx3060", "-c", "8192", "-ngl", "99")
    assert found["fits"] is True
    assert found["host"]["weights_bytes"] > 9 << 30


@pytest.mark.parametrize(
    "flags", ["--rpc 127.0.0.1:5", "--mmproj eyes.gguf", "--lora adapter.gguf", "-ot exps=CPU --rpc 127.0.0.1:5"]
)
def test_placement_uncounted_flags_leave_fits_unknown(
    flags: str, files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    found = answers(files[MOE], capsys, "--device", "rtx3060", "--", "-c", "8192", "-ngl", "99", *flags.split())
    assert found["fits"] is None
    assert "unknown" in found["advice"][0]
    assert "does not fit" not in " ".join(found["advice"])


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("-sm none -mg 1", "invalid value for main_gpu: 1 (available devices: 1)"),
        ("-dev CUDA3", "invalid device: CUDA3"),
        ("-dev GPU", "invalid device: GPU"),
        ("-ot exps=CUDA7", "unknown buffer type"),
    ],
)
def test_placement_refused_devices(
    flags: str, reason: str, files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--device", "rtx3060", "--", *flags.split())
    found = answers(files["llama:3.1-8B"], capsys, *words)
    assert found["refused"] == reason
    assert found["fits"] is None
    assert main(["plan", str(files["llama:3.1-8B"]), *words]) == 0
    page = " ".join(capsys.readouterr().out.split())
    assert reason in page
    assert "fits on" not in page


def test_placement_main_gpu_and_device_list(files: dict[str, Path]) -> None:
    shape, devices = shape_of(files["llama:3.1-8B"]), parse_devices("t4+rtx3090")
    one = memory_plan(
        shape, parse_server_flags(["-c", "4096", "-ngl", "99", "-sm", "none", "-mg", "1"], environ={}), devices
    )
    assert [bool(use.weights_bytes) for use in one.per_device] == [False, True]
    listed = memory_plan(shape, parse_server_flags(["-c", "4096", "-ngl", "99", "-dev", "CUDA1"], environ={}), devices)
    assert [use.device and use.device.name for use in listed.per_device] == ["GeForce RTX 3090"]
    for flags in ("-dev none", "-sm none -mg -1"):
        host = memory_plan(shape, parse_server_flags(["-c", "4096", *flags.split()], environ={}), devices)
        assert host.per_device == ()
        assert host.host.layers == len(shape.layers)


def test_draft_devices_follow_the_models_or_their_own_flag(files: dict[str, Path]) -> None:
    shape = shape_of(files["llama:3.1-8B"])
    shape, devices = replace(shape, draft=shape), parse_devices("t4+rtx3090")

    def drafted(flags: str) -> dict[str, bool]:
        words = ["-c", "4096", "-ngl", "0", "-md", "x.gguf", *flags.split()]
        plan = memory_plan(shape, parse_server_flags(words, environ={}), devices)
        assert plan.refused is None
        return {use.device.name: bool(use.draft and use.draft.weights_bytes) for use in plan.per_device if use.device}

    assert drafted("") == {"Tesla T4": True, "GeForce RTX 3090": True}
    assert drafted("-devd CUDA1") == {"Tesla T4": False, "GeForce RTX 3090": True}
    assert drafted("-dev CUDA0") == {"Tesla T4": True}
    assert drafted("-dev CUDA0 -devd CUDA1") == {"Tesla T4": False, "GeForce RTX 3090": True}
    assert drafted("-dev CUDA1 -devd none") == {"GeForce RTX 3090": False}
    words = ["-c", "4096", "-md", "x.gguf", "-devd", "CUDA2"]
    assert memory_plan(shape, parse_server_flags(words, environ={}), devices).refused == "invalid device: CUDA2"


def test_override_device_without_layers(files: dict[str, Path]) -> None:
    shape, devices = shape_of(files[MOE]), parse_devices("rtx3090x2")
    words = ["-c", "4096", "-ngl", "99", "-dev", "CUDA0", "-ot", "exps=CUDA1"]
    plan = memory_plan(shape, parse_server_flags(words, environ={}), devices)
    assert plan.refused is None
    assert [use.layers for use in plan.per_device] == [48, 0]
    assert plan.per_device[1].weights_bytes > 10 * plan.per_device[0].weights_bytes


def test_fit_target_not_met_is_reported(files: dict[str, Path]) -> None:
    def advice(flags: str) -> str:
        settings = parse_server_flags(["-c", "8192", *flags.split()], environ={})
        return " ".join(make_report("m", shape_of(files["llama:3.1-8B"]), settings, parse_devices("rtx3060")).advice)

    assert "(-fitt)" not in advice("")
    for flags in ("-fitt 9000", "-fitt 9000,0"):
        assert f"without -ngl llama-server leaves {flags[6:]} MiB free (-fitt)" in advice(flags)
    for flags in ("-fitt 9000 -ngl 99", "-fitt 9000 -fit off", "-fitt 100"):
        assert "(-fitt)" not in advice(flags)


def test_expert_search_fits_a_30b_model_into_12_gb(files: dict[str, Path]) -> None:
    shape, devices = shape_of(files[MOE]), parse_devices("rtx3060")
    ways = search(shape, parse_server_flags(["-np", "1", "-c", "32768"], environ={}), devices, 60e9)
    assert [way.settings.cache_type_k for way in ways] == ["f16", "q8_0"]
    for way in ways:
        assert way.memory.fits
        fewer = memory_plan(shape, parse_server_flags(way.command_line.split(), environ={}), devices)
        assert fewer == way.memory  # the printed command line is what was planned
        less = way.command_line.replace(f"-ncmoe {way.blocks}", f"-ncmoe {way.blocks - 1}")
        assert memory_plan(shape, parse_server_flags(less.split(), environ={}), devices).fits is False
        assert way.ceiling is not None
        assert 1 / way.ceiling == pytest.approx(sum(part.seconds or 0 for part in way.reads))
    assert ways[1].blocks < ways[0].blocks
    anything = search(shape, parse_server_flags(["-np", "1"], environ={}), devices)
    assert {way.settings.ctx_size for way in anything} >= {4096, 32768, 131072}
    assert all(way.ceiling is None for way in anything)  # the host's bandwidth is not known


def test_expert_search_on_plan_page(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", str(files[MOE]), "--device", "rtx3060", "--host-bandwidth", "60", "-c", "32768", "-np", "1"]
    assert main(words) == 0
    page = " ".join(capsys.readouterr().out.split())
    assert re.search(r"blocks in host memory: -ngl 49 -c 32768 -np 1 .*-ncmoe \d+ \(at most \d[\d.]* tokens/s\)", page)
    assert main([word for word in words if word not in ("--host-bandwidth", "60")]) == 0
    assert "GB in host memory: --host-bandwidth" in " ".join(capsys.readouterr().out.split())


def test_reads_by_part(files: dict[str, Path]) -> None:
    settings = parse_server_flags(["-c", "8192", "-np", "1", "-ngl", "99", "-ncmoe", "24"], environ={})
    report = make_report("m", shape_of(files[MOE]), settings, parse_devices("rtx3060"), host_bandwidth=50e9)
    device, host = report.reads
    assert host.n_bytes == 24 * 3 * 8 * 2048 * 768 // 256 * 144  # 8 of 128 experts
    assert report.ceiling == pytest.approx(1 / ((device.seconds or 0) + host.n_bytes / 50e9))


def test_preset_fits_with_given_flags(files: dict[str, Path]) -> None:
    shape, preset = shape_of(files["gpt-oss:20B"]), PRESETS["kaggle-t4x2"]
    for flags in ("-ncmoe 24", "-cmoe", "--rpc 127.0.0.1:5", "--mmproj x.gguf"):
        given = parse_server_flags(flags.split(), environ={})
        found = choose(preset, "m.gguf", shape, given)
        assert found.settings.tensor_overrides == given.tensor_overrides
        assert found.settings.gpu_layers == 25


def test_placement_moe_cache_uses_device_memory(files: dict[str, Path]) -> None:
    shape, devices = shape_of(files[MOE]), parse_devices("rtx3090x2")
    plain = parse_server_flags(["-c", "8192", "-ngl", "99", "-cmoe"], environ={})
    cached = parse_server_flags(
        ["-c", "8192", "-ngl", "99", "-cmoe", "--moe-cache-mib", "4096", "-ts", "3,1"], environ={}
    )
    assert [use.expert_cache_bytes for use in memory_plan(shape, plain, devices).per_device] == [0, 0]
    assert [use.expert_cache_bytes // MIB for use in memory_plan(shape, cached, devices).per_device] == [3072, 1024]


@contextmanager
def rpc_servers(program: Path, number: int, folder: Path) -> Iterator[list[str]]:
    """``ggml-rpc-server`` on loopback ports: devices of their own, on the CPU."""
    with ExitStack() as stack:
        addresses = []
        for index in range(number):
            port = free_port()
            child = Child([program, "-H", "127.0.0.1", "-p", str(port), "-d", "CPU"], folder / f"rpc{index}.log")
            stack.callback(child.stop)
            wait_until(lambda port=port: accepts(port), 30, "an RPC server")  # type: ignore[misc]
            addresses.append(f"127.0.0.1:{port}")
        yield addresses


def reported_by_rpc_devices(
    sid_server: Path, model: Path, flags: Sequence[str], folder: Path
) -> list[dict[str, float]]:
    """Start llama-server on two RPC devices: MiB of the model and KV buffers that it reported, by device."""
    log = folder / "server.log"
    with rpc_servers(sid_server.with_name("ggml-rpc-server"), 2, folder) as addresses:
        address = ["-m", str(model), "--port", str(free_port()), "--rpc", ",".join(addresses)]
        child = Child([sid_server, *address, *flags, "-lv", "4"], log)
        try:
            wait_until(lambda: "listening on http" in log.read_text(), 60, "llama-server")
        finally:
            child.stop()
    found: list[dict[str, float]] = []
    for each in addresses:  # the number in RPC0 is that of the device on its own server
        lines = re.findall(
            rf"RPC\d+\[{re.escape(each)}\] +(model|KV|LoRA) buffer size = +([\d.]+) MiB", log.read_text()
        )
        found.append({kind: float(size) for kind, size in lines})
    return found


@pytest.mark.parametrize(
    "words",
    [
        "-ngl 99 -ts 1,1", "-ngl 99 -ts 3,1", "-ngl 99 -sm none -mg 1", "-ngl 99 -ts 1,1 -nkvo", "-ngl 3 -ts 1,1",
        "-ngl 99 -dev RPC1", r"-ngl 99 -ts 1,1 -ot blk\.[01]\.ffn=CPU,attn_q=CPU", "-ngl 99 -ts 1,1 -ncffn 2",
    ],
)  # fmt: skip
def test_placement_rpc_devices(words: str, sid_server: Path, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "tiny.gguf", embedding=256, layers=4, feed_forward=1024)
    flags = ["-c", "4096", "-np", "2", *words.split()]
    reported = reported_by_rpc_devices(sid_server, model, flags, tmp_path)
    shape = shape_from_gguf(parse_gguf_header(model, read_tensors=True))
    devices = [Device(name, 1 << 33, None, "test", remote=True) for name in ("first", "second")]
    used = {use.device: use for use in memory_plan(shape, parse_server_flags(flags, environ={}), devices).per_device}
    for device, buffers in zip(devices, reported, strict=True):
        use = used.get(device)
        assert (use.cache_bytes if use else 0) / MIB == pytest.approx(buffers.get("KV", 0.0), abs=0.011)
        assert (use.weights_bytes if use else 0) / MIB == pytest.approx(buffers.get("model", 0.0), abs=0.011)


def test_draft_device_on_rpc_devices(sid_server: Path, tiny_model: Path, tmp_path: Path) -> None:
    flags = [
        "-c",
        "4096",
        "-np",
        "2",
        "-ngl",
        "99",
        "-ngld",
        "99",
        "-ctkd",
        "f32",
        "-ctvd",
        "f32",
        "--spec-type",
        "draft-simple",
        "-dev",
        "RPC0",
        "-devd",
        "RPC1",
    ]
    flags += ["-md", str(tiny_model)]
    reported = reported_by_rpc_devices(sid_server, tiny_model, flags, tmp_path)
    shape = shape_from_gguf(parse_gguf_header(tiny_model, read_tensors=True))
    devices = [Device("RPC", 1 << 33, None, "test")] * 2
    first, second = memory_plan(replace(shape, draft=shape), parse_server_flags(flags, environ={}), devices).per_device
    assert second.draft is not None
    assert first.cache_bytes / MIB == pytest.approx(reported[0]["KV"], abs=0.011)
    assert second.draft.cache_bytes / MIB == pytest.approx(reported[1]["KV"], abs=0.011)
    assert first.weights_bytes / MIB == pytest.approx(reported[0]["model"], abs=0.011)
    assert second.draft.weights_bytes / MIB == pytest.approx(reported[1]["model"], abs=0.011)


def write_lora(path: Path, model: Path, rank: int = 64, architecture: str = "llama", more: str = "") -> Path:
    """A LoRA adapter for all attention and feed-forward tensors of a model."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 16.0)
    for tensor in parse_gguf_header(model, read_tensors=True).tensors or ():
        if re.search(r"\.(attn_(q|k|v|output)|ffn_(up|down|gate))\.", tensor.name):
            width, height = tensor.shape
            writer.add_tensor(f"{tensor.name}{more}.lora_a", np.zeros((rank, width), np.float32))
            writer.add_tensor(f"{tensor.name}{more}.lora_b", np.zeros((height, rank), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_lora_on_rpc_devices(sid_server: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_tiny_model(tmp_path / "tiny.gguf", embedding=256, layers=4, feed_forward=1024)
    lora = write_lora(tmp_path / "lora.gguf", model)
    flags = ["-c", "4096", "-np", "2", "-ngl", "99", "-ts", "1,1", "--lora", str(lora)]
    reported = reported_by_rpc_devices(sid_server, model, flags, tmp_path)
    words = ("--device", "rpc:8G+rpc:8G", "--", *flags, "--rpc", "127.0.0.1:1,127.0.0.1:2")
    found = answers(model, capsys, *words)
    assert found["flags_not_counted"] == []
    assert found["fits"] is True
    assert sum(device["LoRA"] for device in reported) > 1
    for device, planned in zip(reported, found["per_device"], strict=True):
        assert planned["weights_bytes"] / MIB == pytest.approx(device["model"] + device["LoRA"], abs=0.021)
        assert planned["kv_cache_bytes"] / MIB == pytest.approx(device["KV"], abs=0.011)


@pytest.mark.parametrize(
    ("another", "reason"),
    [
        ({"architecture": "qwen3"}, "model arch and LoRA arch mismatch"),
        ({"more": "x"}, "does not exist in base model"),
    ],
)
def test_lora_of_another_model_is_refused(
    another: dict[str, Any], reason: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = write_lora(tmp_path / "lora.gguf", tiny_model, **another)
    found = answers(tiny_model, capsys, "--device", "t4", "--", "--lora", str(lora))
    assert reason in found["refused"]
    words = [str(llama_server()), "-m", str(tiny_model), "--lora", str(lora), "--port", str(free_port())]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert found["refused"] in done.stderr + done.stdout


def write_projector(path: Path, width: int, embedding: int = 256, layers: int = 4) -> Path:
    """A vision tower of zeros with LLaVA's projector, for a model of that width."""
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_bool("clip.use_gelu", False)
    writer.add_string("clip.projector_type", "mlp")
    sizes = {"image_size": 56, "patch_size": 14, "embedding_length": embedding, "feed_forward_length": 512}
    sizes |= {"block_count": layers, "projection_dim": width, "attention.head_count": 4}
    for key, value in sizes.items():
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    for key in ("image_mean", "image_std"):
        writer.add_array(f"clip.vision.{key}", [0.5] * 3)
    shapes: dict[str, tuple[int, ...]] = {
        "v.patch_embd.weight": (embedding, 3, 14, 14), "v.class_embd": (embedding,),
        "v.position_embd.weight": (17, embedding), "mm.0.weight": (width, embedding), "mm.0.bias": (width,),
        "mm.2.weight": (width, width), "mm.2.bias": (width,),
    }  # fmt: skip
    matrices = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_out"), (embedding, embedding))
    matrices |= {"ffn_up": (512, embedding), "ffn_down": (embedding, 512)}
    for block in range(layers):
        for name, matrix in matrices.items():
            shapes |= {f"v.blk.{block}.{name}.weight": matrix, f"v.blk.{block}.{name}.bias": matrix[:1]}
    norms = ["v.pre_ln", "v.post_ln", *(f"v.blk.{block}.ln{n}" for block in range(layers) for n in (1, 2))]
    shapes |= {f"{norm}.{part}": (embedding,) for norm in norms for part in ("weight", "bias")}
    for name, shape in shapes.items():
        writer.add_tensor(name, np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("words", "at"),
    [("", 0), ("-mmdev RPC1", 1), ("-dev RPC1", 1), ("--no-mmproj-offload", None), ("-mmdev none", None)],
)
def test_projector_on_rpc_devices(
    words: str, at: int | None, sid_server: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_tiny_model(tmp_path / "tiny.gguf", embedding=256, layers=4, feed_forward=1024)
    flags = ["-c", "1024", "-ngl", "0", "-mm", str(write_projector(tmp_path / "p.gguf", 256)), *words.split()]
    buffers = reported_by_rpc_devices(sid_server, model, [*flags, "-fit", "off"], tmp_path)
    assert not any(buffers)  # no layer is there
    log = (tmp_path / "server.log").read_text()
    backend = re.search(r"CLIP using (\S+) backend", log)
    size = re.search(r"load_hparams: model size: +([\d.]+) MiB", log)
    assert backend is not None
    assert size is not None
    found = answers(model, capsys, "--device", "rpc:8G+rpc:8G", "--", *flags, "--rpc", "a:1,b:1")
    weights = [device["weights_bytes"] for device in found["per_device"]]
    if at is None:
        assert backend[1] == "CPU"
        assert not any(weights)
        assert (found["fits"], found["flags_not_counted"]) == (True, [])
        return
    port = re.fullmatch(r"RPC0\[127\.0\.0\.1:(\d+)\]", backend[1])
    assert port is not None
    assert port[1] in (tmp_path / f"rpc{at}.log").read_text()
    assert max(weights) / MIB == pytest.approx(float(size[1]), abs=0.011)
    assert sum(weights) == max(weights)
    assert weights.index(max(weights)) == (0 if len(weights) == 1 else at)
    assert (found["fits"], found["flags_not_counted"]) == (None, ["the projector's compute buffer"])


def test_projector_unknown_device(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    projector = write_projector(tmp_path / "p.gguf", 96)
    found = answers(tiny_model, capsys, "--device", "t4", "--", "-mm", str(projector), "-mmdev", "CUDA4")
    assert found["refused"] == "invalid device: CUDA4"


def test_rpc_devices_come_before_others(files: dict[str, Path]) -> None:
    shape, devices = shape_of(files["llama:3.1-8B"]), parse_devices("rtx3090+rpc:8G")
    assert [device.remote for device in devices] == [True, False]

    def weights(flags: str) -> list[bool]:
        settings = parse_server_flags(["-c", "4096", "-ngl", "99", "--rpc", "a:1", *flags.split()], environ={})
        return [bool(use.weights_bytes) for use in memory_plan(shape, settings, devices).per_device]

    assert weights("-ts 1,0") == [True, False]
    assert weights("-dev CUDA0") == [True]
    assert weights("-ts 0,1 -ot ffn_up=RPC0") == [True, True]
    assert memory_plan(shape, parse_server_flags(["-dev", "CUDA1"], environ={}), devices).refused is not None
