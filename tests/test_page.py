"""The web page next to /metrics: responses, access, correctness of its figures."""

from __future__ import annotations

import base64
import json
import urllib.request
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote

import pytest

import llamatel
from llamatel.cli.telemetry_options import read_page_token
from llamatel.errors import ServerUnreachable
from llamatel.records import Outcome, ServerInfo
from llamatel.runtime import Runtime, init
from llamatel.snapshots import KvCacheState, SlotState, Snapshot
from llamatel.telemetry.settings import is_loopback
from llamatel.ui.live import Live
from llamatel.ui.top.live_source import LlamatelSource
from tests.samples import SERVER, completion, server_snapshot


@pytest.fixture
def running(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    # A failed server is shown as long as its manager is referenced, here by an earlier test.
    monkeypatch.setattr("llamatel.llama.server.manager._managers", weakref.WeakSet())
    yield init(**{"metrics_addr": "127.0.0.1:0", **getattr(request, "param", {})})
    llamatel.shutdown()


def get(running: Runtime, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict[str, str], str]:
    assert running.pipeline.metrics_url is not None
    url = running.pipeline.metrics_url.replace("0.0.0.0", "127.0.0.1").removesuffix("/metrics") + path  # noqa: S104
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=10) as answer:
            return answer.status, dict(answer.headers), answer.read().decode()
    except HTTPError as error:
        return error.code, dict(error.headers), error.read().decode()


def test_page_files(running: Runtime) -> None:
    status, headers, text = get(running, "/")
    assert status == 200
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    scripts = [(f"/{name}.js", "text/javascript") for name in ("page", "draw", "format")]
    for path, kind in (*scripts, ("/page.css", "text/css"), ("/live.json", "application/json")):
        status, headers, body = get(running, path)
        assert (status, headers["Content-Type"].partition(";")[0]) == (200, kind)
        assert headers["Cache-Control"] == "no-store"
        text += body
    assert "http:" not in text.replace("http://127.0.0.1", "").replace("http://www.w3.org/2000/svg", "")
    assert "https:" not in text
    assert "innerHTML" not in text


def test_document_requests(running: Runtime) -> None:
    for number in range(150):
        running.observer.submit(completion(task=number, outcome=Outcome.CANCELLED if number == 149 else Outcome.OK))
    assert running.observer.flush()
    document = json.loads(get(running, "/live.json")[2])
    assert [request["task"] for request in document["requests"]] == list(range(50, 150))
    assert document["requests"][0]["ttft_s"] == pytest.approx(0.75)
    assert document["summary_of_all"]["requests"] == {
        "total": 150, "ok": 149, "cancelled": 1, "error": 0, "context_full": 0,
    }  # fmt: skip
    assert document["servers"] == []


def test_document_changes_since_cursor() -> None:
    def state(at: float) -> Snapshot:
        servers = [ServerInfo("127.0.0.1", port, "m") for port in (1, 2)]
        return Snapshot(at, tuple(server_snapshot(server=server) for server in servers))

    live = Live()
    first, second = "127.0.0.1:1 m", "127.0.0.1:2 m"
    requests = [completion(server=ServerInfo("127.0.0.1", port, "m"), task=port * 10) for port in (1, 2)]
    live.observe(state(1.0))
    live(requests[0])
    before = live.document(state(1.0), first)
    assert before["whole"]
    live.observe(state(2.0))
    live(requests[1])
    live(replace(requests[0], task=11))
    after = live.document(state(2.0), first, before["cursor"])
    assert not after["whole"]
    assert (before["history"]["at"], after["history"]["at"]) == ([1.0], [2.0])
    assert [request["task"] for request in before["requests"]] == [10]
    assert [request["task"] for request in after["requests"]] == [11]
    assert after["servers"] == before["servers"][:1]
    assert (before["keys"], after["keys"]) == ([first, second], None)
    # Both servers had a request since: only their lines of the overview are new, and then none.
    assert [(row["key"], row["requests"]) for row in before["overview"]] == [(first, 1), (second, 0)]
    assert [(row["key"], row["requests"]) for row in after["overview"]] == [(first, 2), (second, 1)]
    again = live.document(state(2.0), first, after["cursor"])
    assert (again["history"]["at"], again["requests"], again["cursor"]) == ([], [], after["cursor"])
    assert (again["keys"], again["overview"]) == (None, [])
    # Another server is in focus: all of its state, and none of the first.
    other = live.document(state(2.0), second, after["cursor"], refocus=True)
    assert (other["whole"], other["focus"], other["history"]["at"]) == (False, second, [1.0, 2.0])
    assert [request["task"] for request in other["requests"]] == [20]
    assert [server["port"] for server in other["servers"]] == [2]
    for task in range(100, 200):
        live(replace(requests[0], task=task))
    burst = live.document(state(2.0), first, after["cursor"])
    assert [request["task"] for request in burst["requests"]] == list(range(176, 200))
    # A removed server, and a cursor of another process: the whole document.
    for focus, cursor in (("removed", after["cursor"]), (first, 0), (first, after["cursor"] + 1000)):
        whole = live.document(state(2.0), focus, cursor)
        assert whole["whole"]
        assert whole["history"]["at"] == [1.0, 2.0]
        assert len(whole["requests"]) == 100
    # The busy server displaced the quiet one's request from the shared ring, not from its own.
    quiet = live.document(state(2.0), second)["requests"]
    assert [request["task"] for request in quiet if request["server"] == second] == [20]


def test_overview_labels() -> None:
    info = replace(SERVER, labels=(("env", "prod"), ("pod", "a" * 300), ("server.path", "/llm")))
    [row] = Live().document(Snapshot(1.0, (replace(server_snapshot(), server=info),)))["overview"]
    assert row["labels"].startswith("env=prod pod=aaa")
    assert (len(row["labels"]), row["labels"][-1]) == (200, "…")
    assert "/llm " in row["key"]


def test_overview_labels_that_differ_most_come_first() -> None:
    labels = [(("cluster", "eu"), ("env", ("prod", "test")[number % 2]), ("pod", str(number))) for number in range(4)]
    servers = [replace(SERVER, port=number, labels=each) for number, each in enumerate(labels)]
    states = tuple(replace(server_snapshot(), server=server) for server in servers)
    rows = Live().document(Snapshot(1.0, states))["overview"]
    assert [row["labels"] for row in rows[:2]] == ["pod=0 env=prod cluster=eu", "pod=1 env=test cluster=eu"]


def test_overview_rows() -> None:
    def row(**changes: Any) -> dict[str, Any]:
        state = server_snapshot(**changes)
        [row] = Live().document(Snapshot(1.0, (state,)))["overview"]
        return dict(row)

    slots = (SlotState(0, True), SlotState(1, False))
    cache = KvCacheState(capacity=1000, active=950, cached=10)
    full = row(slots=slots, kv_cache=cache, deferred=3, decode_rate=12.34567)
    assert (full["busy"], full["slots"], full["deferred"], full["headroom"]) == (1, 2, 3, 0.05)
    assert (full["decode_rate"], full["trouble"], full["requests"], full["failed"]) == (12.35, None, 0, 0)
    unknown = row(log=None, restarts=None)
    assert {name for name, value in unknown.items() if value is None} == {
        "state", "trouble", "busy", "slots", "deferred", "decode_rate", "headroom", "ttft_p95_s", "requests", "failed",
        "restarts", "down_since",
    }  # fmt: skip
    assert row(up=False)["trouble"] == "down"
    assert row(up=False, state="starting")["trouble"] is None
    assert row(up=None, state="failed")["trouble"] == "down"


def test_overview_alarm_expires() -> None:
    live = Live()
    full = server_snapshot(kv_cache=KvCacheState(capacity=1000, active=950, cached=0))
    well = server_snapshot(kv_cache=KvCacheState(capacity=1000, active=0, cached=0))
    live.observe(Snapshot(1.0, (full,)))

    def trouble(at: float) -> object:
        return live.document(Snapshot(at, (well,)))["overview"][0]["trouble"]

    assert [trouble(at) for at in (2.0, 600.0, 602.0)] == ["warned", "warned", None]


def test_overview_cancelled_is_not_failed() -> None:
    live = Live()
    for outcome in Outcome:
        live(completion(outcome=outcome))
    [row] = live.document(Snapshot(1.0, (server_snapshot(),)))["overview"]
    assert (row["requests"], row["failed"], row["ttft_p95_s"]) == (4, 2, 0.75)


def test_overview_percentiles_age() -> None:
    live, place = Live(), server_snapshot()

    def late(at: float, focus: str | None = None) -> tuple[int, float]:
        [row] = live.document(Snapshot(at, (place,)), focus)["overview"]
        return row["requests"], row["ttft_p95_s"]

    live(completion())
    assert late(10.0) == (1, 0.75)
    for _ in range(30):
        live(completion(queue_s=9.25))
    # For the server in focus they are current, and then so in its row.
    assert live.document(Snapshot(11.0, (place,)))["summary"]["time_to_first_token_s"]["p95"] == pytest.approx(9.75)
    assert late(12.0) == (31, 9.75)
    live.document(Snapshot(13.0, (place,)))
    other = server_snapshot(server=ServerInfo("127.0.0.1", 1, "m"))
    for _ in range(900):
        live(completion(queue_s=0.25))

    def row_at(at: float) -> tuple[int, float]:
        row = live.document(Snapshot(at, (other, place)))["overview"][1]
        return row["requests"], row["ttft_p95_s"]

    assert row_at(14.0) == (931, 9.75)
    assert row_at(20.0) == (931, 0.75)


@pytest.mark.parametrize("after", ["", "x", "-1", "9" * 30, "\u0661"])
def test_document_invalid_cursor(running: Runtime, after: str) -> None:
    assert json.loads(get(running, f"/live.json?server=a&after={quote(after)}")[2])["whole"]


@pytest.mark.parametrize("path", ["/nothing", "/page/../pyproject.toml", "/..%2fpage.js", "/live.json/"])
def test_page_unknown_paths(running: Runtime, path: str) -> None:
    assert get(running, path)[0] == 404


def test_page_metrics_path(running: Runtime) -> None:
    status, headers, text = get(running, "/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain")
    assert "target_info{" in text


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:9464", "127.0.0.1.evil.example", "[2001:db8::1]", "[::1].evil", ""]
)
def test_page_rejects_foreign_host_header(running: Runtime, host: str) -> None:
    for path in ("/", "/live.json"):
        assert get(running, path, Host=host)[0] == 403
    assert get(running, "/metrics", Host=host)[0] == 200


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:9464", "[::1]:9464"])
def test_page_accepts_loopback_host_header(running: Runtime, host: str) -> None:
    assert get(running, "/live.json", Host=host)[0] == 200


@pytest.mark.parametrize("running", [{"metrics_addr": "0.0.0.0:0"}], indirect=True)
def test_page_beyond_loopback_without_token(running: Runtime) -> None:
    status, _, text = get(running, "/")
    assert status == 403
    assert "--page-token-file" in text
    assert get(running, "/live.json")[0] == 403
    assert get(running, "/metrics")[0] == 200


@pytest.mark.parametrize("running", [{"metrics_addr": "0.0.0.0:0", "page_token": "s3cret é"}], indirect=True)
def test_page_token(running: Runtime) -> None:
    status, headers, _ = get(running, "/")
    assert status == 401
    assert headers["WWW-Authenticate"].startswith("Basic ")

    def basic(text: str) -> str:
        return "Basic " + base64.b64encode(text.encode()).decode()

    for wrong in (basic("me:s3cret"), basic("s3cret é"), "Basic %%%", "Bearer no", "Digest x", ""):
        assert get(running, "/live.json", Authorization=wrong)[0] == 401
    assert get(running, "/live.json", Authorization=basic("me:s3cret é"))[0] == 200
    assert get(running, "/", Host="llama.example", Authorization=basic(":s3cret é"))[0] == 200
    assert "s3cret" not in repr(running.settings)


def test_page_and_top_token_file_is_rotated(tmp_path: Path) -> None:
    """A Secret that is replaced while llamatel and ``top`` run."""
    served, given = tmp_path / "served", tmp_path / "given"
    served.write_text("first\n")
    given.write_text("first\n")
    running = init(metrics_addr="127.0.0.1:0", page_token=read_page_token(str(served)))
    try:
        assert running.pipeline.metrics_url is not None
        source = LlamatelSource(running.pipeline.metrics_url, read_page_token(str(given)))
        assert source.document(None)["servers"] == []
        served.write_text("second\n")
        with pytest.raises(ServerUnreachable, match="token"):
            source.document(None)
        given.write_text("second\n")
        assert source.document(None)["servers"] == []
        source.close()
    finally:
        llamatel.shutdown()


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("10.0.0.1", False), ("", False)],
)
def test_is_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize("running", [{"page_token": "s3cret é"}, {"metrics_addr": "0.0.0.0:0"}], indirect=True)
def test_page_call_reports_access(running: Runtime) -> None:
    refused = 401 if running.settings.page_token else 403
    assert get(running, "/servers.json")[0] == refused
    request_headers = {"Content-Type": "application/json"}
    assert get(running, "/calls.json", b'{"servers":[],"calls":[]}', **request_headers)[0] == refused
    if running.settings.page_token:
        token = base64.b64encode(b"any:" + "s3cret é".encode()).decode()
        assert json.loads(get(running, "/servers.json", Authorization=f"Basic {token}")[2])["servers"] == []
        request_headers["Authorization"] = f"Basic {token}"
        assert get(running, "/calls.json", b'{"servers":[],"calls":[]}', **request_headers)[0] == 204
    assert get(running, "/calls.json")[0] == 404
    assert get(running, "/servers.json", b"{}")[0] == 404
