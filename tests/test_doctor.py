"""``llamatel doctor`` on recorded logs, a running llamatel and a running llama.cpp server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.load import Clients, completion
from tests.parts import wait_until
from tests.servers import without_settings
from tests.serving import Serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser

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


def test_doctor_interrupted() -> None:
    """Ctrl-C in a log that goes on: the page has what was read so far."""
    with subprocess.Popen(
        [*DOCTOR, "--log", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        assert running.stdin is not None
        assert running.stderr is not None
        running.stdin.write(LOG.read_bytes())
        running.stdin.flush()
        running.stderr.readline()
        time.sleep(1.5)  # longer than a stream may be silent before its lines are read
        running.send_signal(signal.SIGINT)
        page, notes = running.communicate(timeout=60)
    assert running.returncode == 0
    assert b"37 requests" in page
    assert notes.decode().splitlines() == ["llamatel: interrupted: this is what was read so far"]


def test_doctor_closed_pipe() -> None:
    """``llamatel doctor --log FILE | head -1``."""
    with subprocess.Popen([*DOCTOR, "--log", str(LOG)], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        running.stdout.close()
        assert running.stderr is not None
        notes = running.stderr.read()
    assert b"Traceback" not in notes
    assert running.returncode == 0


def test_doctor_of_embeddings() -> None:
    """llama.cpp logs no timings of them, so that only their number and slots are known."""
    done = run("--log", LOG.parent / "embeddings.log", "--json")
    found = json.loads(done.stdout)
    assert found["outcomes"] == {"ok": 4, "error": 1}
    assert found["undetermined"][0].startswith("prefill and decode of 4 of 4 requests")
    assert (found["losses"], found["changes"], found["speed"]["decode"]) == ([], [], [])


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


def test_doctor_and_page_speculative_decoding(tiny_model: Path, tmp_path: Path, browser: Browser) -> None:
    """Accepted drafts by position, from the labelled series of llama.cpp's metrics, as its own counters have them."""
    env = {"LLAMA_ARG_SPEC_DRAFT_MODEL": str(tiny_model), "LLAMA_ARG_SPEC_TYPE": "draft-simple"}
    serving = Serving(tmp_path, tiny_model, slots=1, context=1024, env=env)
    try:
        with Clients(serving.url) as clients:
            clients.send_all([completion(f"Number {n}", 40) for n in range(8)], at_once=1)
        counted = {}
        for line in urllib.request.urlopen(f"{serving.url}/metrics", timeout=30).read().decode().splitlines():
            if line.startswith("llamacpp:spec_decode"):
                name, value = line.removeprefix("llamacpp:spec_decode_num_").split()
                counted[name] = float(value)
        drafts = counted["drafts_total"]
        by_position = [v / drafts for name, v in counted.items() if name.startswith("accepted_tokens_per_pos")]
        assert len(by_position) > 1
        wait_until(lambda: live_counters(serving).get("spec_decode_num_drafts_total") == drafts, 60, "a poll")
        found = json.loads(run(serving.page_url, "--json").stdout)["drafting"]
        assert found["by_position"] == pytest.approx(by_position)
        assert found["acceptance"] == pytest.approx(counted["accepted_tokens_total"] / counted["draft_tokens_total"])
        without_log = json.loads(run(serving.url, "--for", "2", "--json").stdout)["drafting"]
        assert without_log["acceptance"] == pytest.approx(found["acceptance"])
        assert without_log["tokens_per_step"] == pytest.approx(1 + counted["accepted_tokens_total"] / drafts)
        page = browser.new_page()
        page.goto(serving.page_url)
        page.wait_for_selector("text=Drafts accepted")
        assert f"by position {100 * by_position[0]:.0f} %" in page.inner_text("#tiles")
        page.wait_for_selector("#speed tr")
        cells = [row.inner_text().split("\t") for row in page.query_selector_all("#speed tr")]
        assert {(row[0], row[1], row[4]) for row in cells if row[0] == "decode"} == {("decode", "1", "8")}
        page.close()
    finally:
        serving.child.stop()


def live_counters(serving: Serving) -> dict[str, float]:
    with urllib.request.urlopen(f"{serving.page_url}/live.json", timeout=30) as answer:
        found: dict[str, float] = json.load(answer)["servers"][0]["counters"]
    return found


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--log", "/nowhere/x.log"], 2, "cannot be read"),
        (["--log", str(LOG.parent)], 2, "it is a directory"),
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
