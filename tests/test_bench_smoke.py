"""The benchmark runs from end to end and counts every request; its figures are not checked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import attach, decorators, header, in_process, instructions, stages
from benchmarks.__main__ import main
from benchmarks.gpu.__main__ import main as gpu
from benchmarks.pieces import read_log
from benchmarks.report import Report

_LOGS = Path(__file__).parent / "golden" / "logs"
_LOG = _LOGS / "llama-server.log"


def test_bench_log_reading() -> None:
    lines, requests = read_log(_LOG.read_bytes())
    assert lines > 7 * requests > 0


def test_bench_stages_run_repeatedly() -> None:
    every = (
        "from benchmarks.stages import COLLECTIONS, STAGES, main\n"
        f"for stage in (*STAGES, *COLLECTIONS): main([stage, '2', {str(_LOG)!r}])"
    )
    ran = subprocess.run([sys.executable, "-c", every], capture_output=True, text=True, check=True)
    lines, requests = read_log(_LOG.read_bytes())
    expected = json.dumps({"lines": lines, "requests": requests})
    assert ran.stdout == expected * len([*stages.STAGES, *stages.COLLECTIONS])


@pytest.mark.slow
@pytest.mark.usefixtures("valgrind")
def test_bench_instructions_within_bounds(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_bytes((_LOGS / "2026.10.11549.log").read_bytes())
    counted, _ = instructions.count_requests(log, instructions.BOUNDS, print, passes=12)
    assert instructions.over_bound(counted) == []


def test_bench_gate_fails_over_a_bound() -> None:
    assert instructions.over_bound(instructions.BOUNDS) == []
    [line] = instructions.over_bound({**instructions.BOUNDS, "log reader": 2 * instructions.BOUNDS["log reader"]})
    assert line.startswith("log reader: ")


def test_bench_header(tmp_path: Path) -> None:
    figures = header.measure(header.make_vocabulary(tmp_path / "vocabulary.gguf", 2000), readings=2)
    report = Report({}, header=figures)
    assert figures.strings == 4000
    assert report.as_json()["header"]["ratio"] == pytest.approx(figures.gguf_py_ms / figures.ours_ms)
    assert [text.partition(",")[0] for text, _ in report.targets()] == ["header", "header"]
    assert "times faster" in report.text()


@pytest.mark.slow
def test_bench_attached_servers(llama_server_binary: Path) -> None:
    figures = attach.measure(llama_server_binary, targets=8, real=2, seconds=1, progress=lambda _: None)
    assert (figures.targets, figures.servers, figures.up) == (8, 2, 8)
    assert figures.polls_per_s > 0
    assert figures.peak_mib >= figures.memory_mib > 0


@pytest.mark.slow
def test_bench_small_run(llama_server_binary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    flags = ["--rounds", "1", "--seconds", "0.2", "--connections", "2", "--no-otlp"]
    flags += ["--only", "ratios", "--only", "cost", "--only", "pieces"]  # gguf-py needs half a minute for the header
    main([*flags, "--backend", str(llama_server_binary), "--json", str(out)])
    found = json.loads(out.read_text())
    assert [row["variant"] for row in found["ratios"]] == ["plain", "plain again", "Prometheus"]
    assert all(row["failed"] == 0 and row["requests_per_second"] > 0 for row in found["ratios"])
    [cost] = found["costs"]
    assert cost["seen"] == cost["requests"] > 0
    assert cost["dropped"] == 0
    assert cost["peak_mib"] >= cost["loaded_mib"] > 0
    assert found["pieces"]["log_request_us"] > 0
    assert found["ready_s"].keys() == {"plain", "Prometheus"}
    shown = capsys.readouterr().out
    assert all(item["target"] in shown for item in found["targets"])
    assert len(found["targets"]) == 5


@pytest.mark.slow
def test_bench_gpu_without_gpu(llama_server_binary: Path) -> None:
    flags = ["--tiny", "--rounds", "1", "--seconds", "0.2", "--connections", "2", "--tokens", "8", "--context", "2048"]
    found = gpu([*flags, "--backend", str(llama_server_binary)])
    for row in found["memory"]:
        sizes = row["seen"]["llamacpp_kv_cache_size_bytes"]
        assert row["planned"]["kv_bytes"] == sum(one["value"] for one in sizes if one["source"] == "reported") > 0
    assert {"prefill", "decode"} <= {span["name"] for span in found["traces"]}
    assert [row["variant"] for row in found["overhead"]] == ["plain", "plain again", "Prometheus"]
    assert all(row["failed"] == 0 and row["tokens_per_second"] > 0 for row in found["overhead"])


def test_bench_decorators() -> None:
    found = decorators.measure(rounds=2, calls=20)
    assert {decorators.PLAIN, decorators.OFF, decorators.BARE, decorators.OURS} <= set(found.us)
    assert all(spent >= 0 for spent in found.us.values())
    assert found.ratio > 0
    assert len(found.lines()) == len(found.us)


@pytest.mark.usefixtures("llama_cpp")
def test_bench_in_process() -> None:
    found = in_process.measure(rounds=1, calls=5)
    assert found.process > 0
    assert found.thread > 0
    assert found.plain > 0
    assert found.token > 0
