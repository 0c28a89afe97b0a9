"""Prompt reuse of a request on a real server, wherever requests are shown: lines, JSON, page, top, traces, report."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import urllib3

from llamatel.records import RecomputeCause
from llamatel.ui.top.screen import Choices, screen
from llamatel.ui.view import request_line, reuse_line
from llamatel.ui.view.reuse_text import CAUSES, reuse_text
from tests.parts import wait_until
from tests.samples import completion
from tests.servers import without_settings
from tests.serving import Serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PROMPT = "abcdefghij" * 30
"""A token a character, and two before them."""
SHOWN = "302 tokens in the slot's cache: 0 reused, 302 computed again in"
SCRIPT = """
import sys
import llamatel
from llamatel.llama import LlamaCppClient, ServerManager
llamatel.init(metrics_addr="none", keep_traces=True)
with ServerManager(backend="xllamacpp") as server:
    server.start_server(sys.argv[1], port=0, n_parallel=1, ctx_size=2048, extra_args=["-t", "1"])
    server.wait_until_ready(60)
    client = LlamaCppClient(server.base_url)
    while server.snapshot().model is None: pass
    for options in ({}, {"cache_prompt": False}):
        client.complete(sys.argv[2], n_predict=3, ignore_eos=True, **options)
    while not any(span.kind == "SERVER" for span in llamatel.last_trace().spans): pass
    print(llamatel.last_trace())
    print(llamatel.report().html)
llamatel.shutdown()
"""


@pytest.fixture(scope="module")
def serving(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server that had a prompt twice, the second time with reuse switched off."""
    patch = pytest.MonkeyPatch()
    without_settings(patch)
    running = Serving(tmp_path_factory.mktemp("reuse"), tiny_model, "--requests", slots=1, context=2048)
    wait_until(lambda: live(running)["servers"][0]["shape"], 60, "the model's file is read")
    for options in ({}, {"cache_prompt": False}):
        body = {"prompt": PROMPT, "n_predict": 3, "ignore_eos": True, **options}
        answer = urllib3.PoolManager(retries=False).request("POST", f"{running.url}/completion", json=body, timeout=60)
        assert answer.status == 200
    wait_until(lambda: len(live(running)["requests"]) == 2, 60, "both requests")
    yield running
    running.child.stop()
    patch.undo()


def live(serving: Serving) -> dict[str, Any]:
    with urllib.request.urlopen(f"{serving.page_url}/live.json", timeout=30) as answer:
        document: dict[str, Any] = json.load(answer)
        return document


def test_reuse_on_request_lines_and_in_jsonl(serving: Serving) -> None:
    wait_until(lambda: SHOWN in serving.child.output(), 60, "the line below the request's")
    [line] = [line for line in serving.child.output().splitlines() if SHOWN in line]
    assert line.rstrip().endswith("the request switched reuse off (cache_prompt_off)")
    first, last = map(json.loads, serving.rows.read_text().splitlines())
    assert (first["prompt_reusable"], first["recompute_cause"]) == (0, None)
    assert (last["prompt_reusable"], last["prompt_cached"], last["prompt_recomputed"]) == (302, 0, 302)
    assert last["recompute_cause"] == "cache_prompt_off"
    assert last["recompute_s"] == pytest.approx(last["prefill_s"])


def test_reuse_in_top(serving: Serving) -> None:
    document = live(serving)
    shown = screen(document, Choices(), 120, 40)
    assert shown.plain.count("(0)") == 2
    details = " ".join(screen(document, Choices(waterfall=True), 120, 40).plain.split())
    assert SHOWN in details
    assert "(cache_prompt_off)" in details


def test_reuse_on_the_page(serving: Serving, browser: Browser) -> None:
    page = browser.new_page()
    page.goto(serving.page_url)
    page.wait_for_selector("#requests tr")
    head = page.inner_text("#requests-table thead")
    assert "Computed again" in head
    rows = [row.inner_text() for row in page.query_selector_all("#requests tr")]
    assert "302, " in rows[0]
    assert "cache prompt off" in rows[0]
    assert "cache prompt off" not in rows[1]
    page.close()


def test_reuse_in_last_trace_and_report(tiny_model: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-c", SCRIPT, str(tiny_model), PROMPT]
    done = subprocess.run(words, cwd=tmp_path, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    trace, _, report = done.stdout.partition("<")
    assert "302 of 302 cached computed again in " in " ".join(trace.split())
    assert "cache_prompt_off" in trace
    assert (
        "302 prompt tokens were in the slot&#x27;s cache" in report or "302 prompt tokens were in the slot's" in report
    )
    assert CAUSES[RecomputeCause.CACHE_PROMPT_OFF] in report


def test_reuse_text() -> None:
    assert set(CAUSES) == set(RecomputeCause)
    assert reuse_text(None, None, None, None) is None
    assert reuse_text(0, 0, 0.0, None) is None
    assert reuse_text(1200, 0, 0.0, None) == "1,200 tokens in the slot's cache: 1,200 reused"
    assert reuse_text(50, 10, 0.5, "unknown") == (
        "50 tokens in the slot's cache: 40 reused, 10 computed again in 500 ms; cause not in the log (unknown)"
    )
    assert reuse_text(60, 50, 0.5, "slot_taken") == (
        "at most 60 tokens had been in the cache: 10 reused, 50 computed again in 500 ms; "
        "other conversations had taken the slots (slot_taken)"
    )


def test_reuse_line_only_where_tokens_were_lost() -> None:
    lost = completion(
        prompt_reusable=20, prompt_recomputed=10, recompute_s=0.25, recompute_cause=RecomputeCause.NO_CHECKPOINT
    )
    assert reuse_line(completion(prompt_reusable=10, prompt_recomputed=0)) is None
    for width in (1, 30, 80):
        line = reuse_line(lost, width)
        assert line is not None
        assert line.cell_len <= width
        assert request_line(lost, max(width, 65)).cell_len <= max(width, 65)
    whole = reuse_line(lost, 30, cut=False)
    assert whole is not None
    assert whole.plain.endswith("(no_checkpoint)")
