"""``llamatel plan``: its document, its page, its plan for two T4s, compared with llama.cpp's own figures."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from llamatel.cli.main import main
from llamatel.errors import UsageError
from llamatel.gguf import parse_gguf_header
from llamatel.llama import LlamaCppClient, ServerManager
from llamatel.plan import LayerShape, ModelShape, ServerSettings, cache_plan, shape_from_gguf
from llamatel.plan.devices import parse_devices
from llamatel.plan.fit_params import parse_measured
from llamatel.plan.fit_search import largest_context
from llamatel.plan.gpu_catalog import GB, GPUS, gpu_named
from llamatel.plan.memory_plan import memory_plan
from llamatel.plan.model_shape import Weights
from llamatel.plan.plan_report import make_report
from tests.parts import MissingPart, in_ci, llama_server
from tests.tiny_gguf import write_tiny_model

GIB = 1 << 30


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("plan") / "tiny.gguf", embedding=256, layers=4, feed_forward=1024)


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMA_ARG_CTX_SIZE", raising=False)


def plan(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["plan", "--json", *words]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def big_model(gib: float) -> ModelShape:
    """A 32-layer model of the shape of Llama-3-8B that weighs so much."""
    layer = int(gib * GIB / 33)
    layers = tuple(LayerShape(index, 32, 8, 128, 128) for index in range(32))
    weights = Weights(33 * layer, 8 * GB, 8 * GB, 33 * layer, (), (layer,) * 32, 0, layer)
    return ModelShape(
        "llama",
        layers,
        context_length=131072,
        embedding_length=4096,
        feed_forward_length=14336,
        weights=weights,
        verified=True,
    )


def test_plan_json_document(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(capsys, str(tiny), "-c", "4096", "-np", "2", "--device", "t4x2")
    cache = found["kv_cache"]
    assert cache["k_bytes"] == cache["v_bytes"] == 4 * 2 * 64 * 2 * 4096
    assert cache["total_bytes"] == cache["k_bytes"] + cache["v_bytes"]
    assert (cache["r_bytes"], cache["s_bytes"], cache["other_bytes"]) == (0, 0, 0)
    assert (cache["cells"], cache["streams"], cache["exact"], cache["why_not_exact"]) == (2048, 2, True, None)
    assert found["refused"] is None
    assert found["fits"] is True
    assert [device["name"] for device in found["per_device"]] == ["Tesla T4", "Tesla T4"]
    assert found["weights_bytes"] == parse_gguf_header(tiny, read_tensors=True).n_bytes
    assert found["advice"][0].startswith("fits on 2 x Tesla T4: -ngl 5 -c 4096")
    assert re.search(r"llama.cpp b\d+ to b\d+", found["verified_with"])


def test_plan_model_from_pasted_command_line(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(capsys, "--device", "none", "--", "-m", str(tiny), "-c", "1024", "--temp", "0.2", "-ctk", "q8_0")
    assert found["kv_cache"]["cells"] == 1024
    assert found["kv_cache"]["k_bytes"] * 2 == found["kv_cache"]["v_bytes"] * 17 // 16
    assert found["fits"] is None


def test_plan_draft_model(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = write_tiny_model(tmp_path / "small.gguf", layers=2)
    words = (str(tiny), "-c", "4096", "-np", "1", "--device", "t4x2", "--", "-md", str(small))
    alone, both = plan(capsys, *words[:-3]), plan(capsys, *words, "--spec-type", "draft-simple")
    own = plan(capsys, str(small), "-c", "4096", "-np", "1", "--device", "none")
    sizes = [found["kv_cache"]["total_bytes"] for found in (alone, own, both)]
    assert sizes[0] + sizes[1] == sizes[2]
    assert both["kv_cache"]["exact"] is True
    assert both["draft_model"]["weights_bytes"] == own["weights_bytes"]
    draft_uses = [use["draft_model"] for use in (*both["per_device"], both["host"])]
    assert sum(use["kv_cache_bytes"] for use in draft_uses) == sizes[1]
    assert both["per_device"][0]["free_bytes_estimate"] < alone["per_device"][0]["free_bytes_estimate"]
    assert "only with --spec-type draft-simple" in plan(capsys, *words)["advice"][0]
    on_host = plan(capsys, *words, "-ngld", "0")
    assert on_host["host"]["draft_model"]["kv_cache_bytes"] == sizes[1]
    assert main(["plan", *words]) == 0
    assert "draft model" in capsys.readouterr().out
    assert main(["plan", *words[:-1], str(tmp_path / "nowhere.gguf")]) == 1


def test_plan_names_uncounted_flags(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "--",
        "-c",
        "1024",
        "--jinja",
        "--temp",
        "-1",
        "--rpc",
        "127.0.0.1:5",
        "--ctxsize",
        "2048",
        "--mmproj",
        "eyes.gguf",
    )
    found = plan(capsys, str(tiny), "--device", "none", *words)
    assert found["kv_cache"]["cells"] == 1024
    assert found["flags_not_counted"] == ["--rpc", "--mmproj"]
    assert found["flags_unknown"] == ["--ctxsize"]
    assert main(["plan", str(tiny), "--device", "none", *words]) == 0
    page = " ".join(capsys.readouterr().out.split())
    assert "what --rpc, --mmproj changes" in page
    assert (
        "--ctxsize: llama-server of October and November 2026 (0.5.0-dev to 0.7.0) has no such flag; --ctx-size?"
        in page
    )


def test_plan_unknown_word(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(tiny), "other.gguf"]) == 2
    assert "'other.gguf' belongs to no flag" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-ngl", "some"], "a number of layers, auto or all"),
        (["-fa", "maybe"], "on, off or auto"),
        (["-ts", "a,b"], "shares, as in 3,1"),
        (["-c", "99999999999"], "a whole number below 2^31"),
        (["--device", "t4x0"], "unknown device 't4x0'"),
    ],
)
def test_plan_invalid_value(tiny: Path, words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(tiny), *words]) == 2
    assert expected in capsys.readouterr().err


def test_plan_slot_capped_at_training_context(
    tiny: Path, llama_server_binary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = plan(capsys, str(tiny), "--device", "none")["trained_context"]
    words = ["-c", str(4 * trained), "-np", "2"]
    assert main(["plan", str(tiny), *words]) == 0
    assert f"a slot uses {trained:,} at most" in capsys.readouterr().out
    assert main(["plan", str(tiny), "-c", str(2 * trained), "-np", "2"]) == 0
    assert "at most: the model" not in capsys.readouterr().out
    with ServerManager(backend=str(llama_server_binary)) as server:
        server.start_server(tiny, extra_args=words, port=0).wait_until_ready(timeout=60)
        with LlamaCppClient(server.base_url) as client:
            assert client.props().n_ctx == trained


def test_plan_refused_by_llama_server(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(capsys, str(tiny), "-c", "1024", "-fa", "off", "-ctv", "q8_0", "--device", "t4")
    assert found["refused"] == "quantized V cache requires flash_attn to be enabled"
    assert found["kv_cache"]["total_bytes"] is None
    assert main(["plan", str(tiny), "-c", "1024", "-fa", "off", "-ctv", "q8_0"]) == 0
    assert "refused" in capsys.readouterr().out


def test_plan_page(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(tiny), "-c", "4096", "--device", "t4x2"]) == 0
    page = capsys.readouterr().out
    assert "to the byte" in page
    assert "fits on 2 x Tesla T4" in page
    assert "* estimated" in page
    assert max(map(len, page.splitlines())) <= 80


def test_plan_without_context_is_not_exact(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = plan(capsys, str(tiny), "--device", "none")["kv_cache"]
    assert cache["exact"] is False
    assert "lowers the context" in cache["why_not_exact"]
    assert cache["cells"] == 4096


@pytest.mark.parametrize("words", [("--device", "abacus"), ("-ctk", "q9_9"), ("-np", "0")])
def test_plan_errors_are_one_line(tiny: Path, words: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(tiny), *words]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_plan_prints_a_complete_command_line(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("-c", "4096", "-np", "2", "-ub", "128", "-kvu", "--swa-full")
    [answer] = plan(capsys, str(tiny), "--device", "t4", *flags)["advice"]
    assert answer.partition(": ")[2] == "-ngl 5 -c 4096 -np 2 -ub 128 -kvu --swa-full"


def test_plan_without_model_is_a_usage_error() -> None:
    assert main(["plan"]) == 2


def test_plan_fits_two_t4s_but_not_one() -> None:
    shape, settings = big_model(18), ServerSettings(ctx_size=8192, parallel=1)
    assert memory_plan(shape, settings, parse_devices("t4")).offloaded is False
    two = make_report("big", shape, settings, parse_devices("t4x2"))
    assert two.memory.fits
    assert two.memory.offloaded
    assert two.advice[0] == "fits on 2 x Tesla T4: -ngl 33 -c 8192 -np 1"


def test_plan_suggests_smaller_context_or_host_layers() -> None:
    report = make_report("big", big_model(24), ServerSettings(ctx_size=131072, parallel=1), parse_devices("t4x2"))
    assert report.advice[0] == "does not fit on 2 x Tesla T4 with -c 131072"
    assert any("-ctk q4_0" in line for line in report.advice)
    assert any("on the host" in line for line in report.advice)


def test_plan_largest_context_is_maximal() -> None:
    shape, devices = big_model(24), parse_devices("t4x2")
    settings = ServerSettings(ctx_size=8192, parallel=1)
    edge = largest_context(shape, settings, devices)
    assert edge is not None
    for context, fits in ((edge, True), (edge + 256, False)):
        assert memory_plan(shape, ServerSettings(ctx_size=context, parallel=1, gpu_layers=33), devices).fits is fits


def test_plan_layer_placement_equals_llama_cpp() -> None:
    shape = big_model(4)
    settings = ServerSettings(ctx_size=4096, parallel=1, gpu_layers=20, tensor_split=(3.0, 1.0))
    plan = memory_plan(shape, settings, parse_devices("t4x2"))
    assert plan.host.layers == 13
    assert [use.layers for use in plan.per_device] == [15, 4]  # the output is the 20th


def test_plan_no_kv_offload() -> None:
    shape = big_model(4)
    settings = ServerSettings(ctx_size=4096, parallel=1, kv_offload=False)
    plan = memory_plan(shape, settings, parse_devices("t4x2"))
    assert plan.host.cache_bytes == cache_plan(shape, settings).total_bytes
    assert [use.cache_bytes for use in plan.per_device] == [0, 0]


def test_plan_ceiling_from_bandwidth() -> None:
    report = make_report("big", big_model(8), ServerSettings(ctx_size=8192, parallel=1), parse_devices("rtx4090"))
    assert report.ceiling == pytest.approx(1008 * GB / (8 * GIB + GIB), rel=0.001)


def test_plan_devices() -> None:
    two, other = parse_devices("T4x2"), parse_devices("other:24G,900")[0]
    assert [device.name for device in two] == ["Tesla T4"] * 2
    assert (other.memory, other.bandwidth) == (24 * GIB, 900 * GB)
    assert parse_devices("m4-max:64g")[0].memory == 48 * GIB
    assert [device.name for device in parse_devices("t4+l4")] == ["Tesla T4", "L4"]
    for wrong in ("m4-max", "t4x", "", "t4:x"):
        with pytest.raises(UsageError):
            parse_devices(wrong)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Tesla T4", "t4"),
        ("NVIDIA T4", "t4"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("GeForce RTX 3090", "rtx3090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("", None),
    ],
)
def test_device_by_nvml_name(name: str, key: str | None) -> None:
    found = gpu_named(name)
    assert (found.key if found else None) == key


def test_device_with_several_memory_sizes() -> None:
    assert gpu_named("NVIDIA GeForce RTX 3060", 12288 << 20) is not None
    assert gpu_named("NVIDIA GeForce RTX 3060", 8192 << 20) is None
    assert gpu_named("Tesla P100-PCIE-16GB", 16276 << 20) is not None


def test_device_keys_and_names_are_unique() -> None:
    assert len({gpu.key for gpu in GPUS}) == len({gpu.name for gpu in GPUS}) == len(GPUS)
    assert all(parse_devices(gpu.key)[0].peak_flops == gpu.peak_flops for gpu in GPUS)
    # Reading a byte takes the time of 20 to 400 operations on every card: a wrong digit would show.
    assert all(20 < gpu.peak_flops / gpu.bandwidth < 450 for gpu in GPUS if gpu.peak_flops)


def test_plan_agrees_with_llama_fit_params(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights and cache in whole MiB; its compute buffer is the one of a batch of logits."""
    try:
        server = llama_server()
    except MissingPart as missing:
        if in_ci():
            raise
        pytest.skip(str(missing))
    monkeypatch.setenv("LLAMATEL_LLAMA_SERVER", str(server))
    found = plan(capsys, str(tiny), "-c", "16384", "-np", "1", "--device", "none", "--measure")
    [host] = found["measured"]
    assert host["model_mib"] == found["host"]["weights_bytes"] >> 20
    assert host["context_mib"] == found["kv_cache"]["total_bytes"] >> 20


def test_plan_agrees_with_measured_command_lines() -> None:
    [gpu, host] = parse_measured("CUDA0 512 32 258 \nHost 16 0 10\nnoise 1 2\n")
    assert (gpu.device, gpu.model_mib, gpu.context_mib, gpu.compute_mib) == ("CUDA0", 512, 32, 258)
    assert host.device == "Host"


def test_plan_tied_output_copied_to_device(tmp_path: Path) -> None:
    shape = shape_from_gguf(parse_gguf_header(write_tiny_model(tmp_path / "m.gguf"), read_tensors=True))
    assert shape.weights is not None
    assert shape.weights.tied_bytes == 0
    assert sum(part[2] for part in shape.weights.parts) == shape.weights.n_bytes
