"""The web page beside /metrics: what it answers, to whom, and that it says what is so."""

from __future__ import annotations

import base64
import json
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from urllib.error import HTTPError
from urllib.parse import quote

import pytest

import llamatel
from llamatel.live import Live
from llamatel.records import Outcome, ServerInfo, Snapshot
from llamatel.runtime import Runtime, init
from llamatel.settings import is_loopback
from tests.samples import completion, server_snapshot


@pytest.fixture
def running(request: pytest.FixtureRequest) -> Iterator[Runtime]:
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


def test_everything_comes_from_here(running: Runtime) -> None:
    status, headers, text = get(running, "/")
    assert status == 200
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    for path, kind in (("/page.js", "text/javascript"), ("/page.css", "text/css"), ("/live.json", "application/json")):
        status, headers, body = get(running, path)
        assert (status, headers["Content-Type"].partition(";")[0]) == (200, kind)
        assert headers["Cache-Control"] == "no-store"
        text += body
    assert "http:" not in text.replace("http://127.0.0.1", "").replace("http://www.w3.org/2000/svg", "")
    assert "https:" not in text
    assert "innerHTML" not in text


def test_the_document_has_the_requests_and_no_more_of_them_than_it_should(running: Runtime) -> None:
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


def test_who_follows_gets_what_is_new_once() -> None:
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
    assert after["servers"][1] == {"key": second}
    assert after["servers"][0] == before["servers"][0]
    again = live.document(state(2.0), first, after["cursor"])
    assert (again["history"]["at"], again["requests"], again["cursor"]) == ([], [], after["cursor"])
    for task in range(100, 200):
        live(replace(requests[0], task=task))
    burst = live.document(state(2.0), first, after["cursor"])
    assert [request["task"] for request in burst["requests"]] == list(range(176, 200))
    # A server that is gone, and a cursor of another process: all of it.
    for focus, cursor in (("gone", after["cursor"]), (first, 0), (first, after["cursor"] + 1000)):
        whole = live.document(state(2.0), focus, cursor)
        assert whole["whole"]
        assert whole["history"]["at"] == [1.0, 2.0]
        assert len(whole["requests"]) == 100


@pytest.mark.parametrize("after", ["", "x", "-1", "9" * 30, "\u0661"])
def test_a_cursor_that_is_none_gets_all_of_it(running: Runtime, after: str) -> None:
    assert json.loads(get(running, f"/live.json?server=a&after={quote(after)}")[2])["whole"]


@pytest.mark.parametrize("path", ["/nothing", "/page/../pyproject.toml", "/..%2fpage.js", "/live.json/"])
def test_there_is_nothing_else(running: Runtime, path: str) -> None:
    assert get(running, path)[0] == 404


def test_metrics_are_where_they_were(running: Runtime) -> None:
    status, headers, text = get(running, "/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain")
    assert "target_info{" in text


@pytest.mark.parametrize("host", ["evil.example", "evil.example:9464", "127.0.0.1.evil.example", "[2001:db8::1]", ""])
def test_a_name_that_was_made_to_lead_here_sees_nothing(running: Runtime, host: str) -> None:
    for path in ("/", "/live.json"):
        assert get(running, path, Host=host)[0] == 403
    assert get(running, "/metrics", Host=host)[0] == 200


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:9464", "[::1]:9464"])
def test_this_machines_own_names_do(running: Runtime, host: str) -> None:
    assert get(running, "/live.json", Host=host)[0] == 200


@pytest.mark.parametrize("running", [{"metrics_addr": "0.0.0.0:0"}], indirect=True)
def test_beyond_loopback_there_is_no_page_without_a_token(running: Runtime) -> None:
    status, _, text = get(running, "/")
    assert status == 403
    assert "--page-token-file" in text
    assert get(running, "/live.json")[0] == 403
    assert get(running, "/metrics")[0] == 200


@pytest.mark.parametrize("running", [{"metrics_addr": "0.0.0.0:0", "page_token": "s3cret é"}], indirect=True)
def test_with_a_token_it_is_shown_to_who_has_it(running: Runtime) -> None:
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


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("10.0.0.1", False), ("", False)],
)
def test_what_loopback_is(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize("running", [{"page_token": "s3cret é"}, {"metrics_addr": "0.0.0.0:0"}], indirect=True)
def test_calls_are_told_under_the_pages_own_rules(running: Runtime) -> None:
    refused = 401 if running.settings.page_token else 403
    assert get(running, "/servers.json")[0] == refused
    told = {"Content-Type": "application/json"}
    assert get(running, "/calls.json", b'{"servers":[],"calls":[]}', **told)[0] == refused
    if running.settings.page_token:
        token = base64.b64encode(b"any:" + "s3cret é".encode()).decode()
        assert json.loads(get(running, "/servers.json", Authorization=f"Basic {token}")[2])["servers"] == []
        told["Authorization"] = f"Basic {token}"
        assert get(running, "/calls.json", b'{"servers":[],"calls":[]}', **told)[0] == 204
    assert get(running, "/calls.json")[0] == 404
    assert get(running, "/servers.json", b"{}")[0] == 404
