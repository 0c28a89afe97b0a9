"""``llamatel doctor`` on recorded logs, a running llamatel and a running llama.cpp server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.load import Clients, completion
from tests.servers import without_settings
from tests.serving import Serving

DOCTOR = [sys.executable, "-m", "llamatel.cli.main", "doctor"]
LOG = Path(__file__).parent / "golden" / "logs" / "2026.10.11549.log"
CLIENTS = json.loads(LOG.with_suffix(".json").read_text())


def run(*arguments: str | Path, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*DOCTOR, *map(str, arguments)], input=stdin, capture_output=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def serving(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    patch = pytest.MonkeyPatch()
    without_settings(patch)
    running = Serving(tmp_path_factory.mktemp("doctor"), tiny_model, slots=2, context=1024)
    with Clients(running.url) as clients:
        clients.send_all([completion(f"Number {n}", 12) for n in range(12)], at_once=3)
    yield running
    running.child.stop()
    patch.undo()


@pytest.mark.parametrize("through", ["file", "pipe"])
def test_doctor_log(through: str) -> None:
    done = run("--log", LOG) if through == "file" else run("--log", "-", stdin=LOG.read_bytes())
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr
    page = done.stdout.decode()
    for words in ("37 requests", "where the time went", "the KV pool was full", "change 1", "unknown"):
        assert words in page
    assert max(map(len, page.splitlines())) <= 80


def test_doctor_json_agrees_with_clients(tmp_path: Path) -> None:
    done = run("--log", LOG, "--json", "--html", tmp_path / "page.html")
    found = json.loads(done.stdout)
    assert sum(found["outcomes"].values()) == 37
    timings = [one["timings"] for one in CLIENTS["requests"] if one["outcome"] == "ok" and one["timings"]]
    prefill = sum(one["prompt_ms"] for one in timings) / 1e3
    assert found["time_use"]["prefill_s"] + found["time_use"]["recompute_s"] >= prefill * 0.9
    html = (tmp_path / "page.html").read_text()
    assert html.startswith("<!doctype html>")
    assert "<script" not in html


def test_doctor_of_a_log_without_requests(tmp_path: Path) -> None:
    (tmp_path / "other.log").write_text("hello\n" * 20)
    done = run("--log", tmp_path / "other.log")
    assert done.returncode == 0
    assert b"none" in done.stdout


def test_doctor_of_a_running_llamatel(serving: Serving) -> None:
    done = run(serving.page_url, "--json")
    found = json.loads(done.stdout)
    assert found["outcomes"] == {"ok": 12}
    assert found["time_use"]["decode_s"] > 0


def test_doctor_of_a_server(serving: Serving) -> None:
    done = run(serving.url, "--for", "2", "--json")
    found = json.loads(done.stdout)
    assert found["outcomes"] == {}
    assert any("no request log" in sentence for sentence in found["undetermined"])
    assert found["concurrency_limit"]["limit"] in ("none", "unknown")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--log", "/nowhere/x.log"], 2, "cannot be read"),
        (["http://127.0.0.1:9"], 1, "127.0.0.1:9"),
        (["--log", str(LOG), "--html", "/nowhere/x.html"], 2, "cannot be written"),
        (["--for", "0"], 2, "--for"),
    ],
)
def test_doctor_errors_are_one_line(arguments: list[str], code: int, message: str) -> None:
    done = run(*arguments)
    assert done.returncode == code, done.stderr
    [line] = [one for one in done.stderr.decode().splitlines() if "error:" in one]
    assert message in line
