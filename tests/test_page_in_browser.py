"""The web page in a real browser: no console error, figures of a real load, server restart, accessibility."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.load import Clients, completion, endless
from tests.parts import Child, wait_until
from tests.servers import without_settings
from tests.serving import Serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SLOTS = 2
CONTEXT = 1024
_RULES = ["wcag2a", "wcag2aa", "wcag21aa", "wcag22aa", "best-practice"]


@pytest.fixture(scope="module")
def serving(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    patch = pytest.MonkeyPatch()
    without_settings(patch)
    folder = tmp_path_factory.mktemp("page")
    running = Serving(folder, tiny_model, "--restart", "on-failure", "--alias", "tiny", slots=SLOTS, context=CONTEXT)
    yield running
    running.child.stop()
    patch.undo()


@pytest.fixture(scope="module")
def fleet(serving: Serving, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page of a llamatel that polls twelve servers, of which only the last one runs."""
    folder = tmp_path_factory.mktemp("fleet")
    urls = [*(f"http://127.0.0.1:{port}" for port in range(1, 12)), serving.url]
    (folder / "targets.txt").write_text("\n".join(urls))
    argv = [sys.executable, "-m", "llamatel.cli.main", "attach", "--targets", str(folder / "targets.txt")]
    child = Child([*argv, "--metrics-addr", "127.0.0.1:0"], folder / "attach.log")
    child.wait_ready(lambda: "OTLP" in child.output(), 60)
    found = re.search(r"page +(http://\S+)", child.output())
    assert found is not None
    url = found[1].rstrip("/")

    def polled() -> bool:
        rows = live(url)["overview"]
        return sum(row["trouble"] == "down" for row in rows) == 11 and rows[-1]["decode_rate"] is not None

    wait_until(polled, 30)
    yield url
    child.stop()


class Opened:
    """The page in its own tab, with the browser's console messages and the requested addresses."""

    def __init__(self, browser: Browser, url: str, **context: Any) -> None:
        self.context = browser.new_context(**context)
        self.page: Page = self.context.new_page()
        self.console_messages: list[str] = []
        self.page.on("console", lambda message: self.console_messages.append(message.text))
        self.page.on("pageerror", lambda error: self.console_messages.append(str(error)))
        self.requested: list[str] = []
        self.page.on("request", lambda request: self.requested.append(request.url))
        self.page.goto(url)
        self.page.wait_for_selector("#content:not([hidden])")

    def text(self, selector: str) -> str:
        return " ".join(self.page.inner_text(selector).split())

    def until(self, found: Callable[[], object], timeout_s: float = 30.0) -> None:
        """Wait until ``found``; Playwright's wait_for_function uses eval, which the page's policy forbids."""
        end = time.monotonic() + timeout_s
        while not found():
            assert time.monotonic() < end, self.page.inner_text("body")
            self.page.wait_for_timeout(100)


@pytest.fixture
def opened(browser: Browser, serving: Serving) -> Iterator[Opened]:
    tab = Opened(browser, serving.page_url)
    yield tab
    tab.context.close()


def live(serving: Serving | str) -> dict[str, Any]:
    url = serving if isinstance(serving, str) else serving.page_url
    with urllib.request.urlopen(f"{url}/live.json", timeout=10) as answer:
        document: dict[str, Any] = json.load(answer)
        return document


def test_page_shows_load_and_history(serving: Serving, opened: Opened) -> None:
    page = opened.page
    before = live(serving)["summary"]["requests"]["total"]
    with Clients(serving.url) as clients:
        answers = clients.send_all([completion(f"Number {n}", 12) for n in range(5)], at_once=1)
        assert all(answer.outcome == "ok" for answer in answers)
        completed = before + len(answers)
        opened.until(lambda: f"Requests {completed}" in opened.text("#tiles"))
        opened.until(lambda: page.locator("#requests tr").count() == min(24, completed))
        # Each request generated 12 tokens.
        headings = page.locator("#requests-table th:visible").all_inner_texts()
        column = headings.index("Out") + 1
        assert set(page.locator(f"#requests tr > :nth-child({column})").all_inner_texts()[:5]) == {"12"}
        running = [endless(f"Tell {n}", context=CONTEXT, stream=True, hang_up=float("inf")) for n in range(SLOTS)]
        with clients.keep_sending(running, at_once=SLOTS):
            opened.until(lambda: f"{SLOTS} of {SLOTS}" in opened.text("#tiles"))
            opened.until(lambda: page.locator("#slots .bar .active").count() == SLOTS)
            slots = live(serving)["servers"][0]["slots"]
            total = sum(slot["context_tokens"] for slot in slots)
            text = opened.text("#kv-text")
            active_text = re.match(r"([\d,]+) active", text)
            assert active_text is not None, text
            # The count grows during the test: the page's figure is at most that of a later poll.
            later = sum(slot["context_tokens"] for slot in live(serving)["servers"][0]["slots"])
            assert 0 < int(active_text[1].replace(",", "")) <= max(total, later)
            assert f"of {SLOTS * CONTEXT:,} tokens" in text
    assert "tiny" in page.title()
    assert opened.console_messages == []
    assert {url.removeprefix(serving.page_url).partition("?")[0] for url in opened.requested} <= {
        "/", "/page.css", "/page.js", "/draw.js", "/format.js", "/live.json",
    }  # fmt: skip


def test_page_after_server_restart(serving: Serving, opened: Opened) -> None:
    before = live(serving)["servers"][0]["restarts"]
    os.kill(serving.find_server(), signal.SIGKILL)
    wait_until(lambda: live(serving)["servers"][0]["restarts"] == before + 1, 30)
    opened.until(lambda: f"Restarts {before + 1} " in opened.text("#model"))
    opened.until(lambda: opened.text("#state") == "ready")
    assert opened.console_messages == []


def test_page_reconnects(serving: Serving, opened: Opened) -> None:
    opened.context.set_offline(True)
    opened.page.wait_for_selector("#trouble:not([hidden])")
    assert "values below are stale" in opened.text("#trouble")
    opened.context.set_offline(False)
    opened.page.wait_for_selector("#trouble", state="hidden")


def test_page_last_server_removed(serving: Serving, opened: Opened) -> None:
    assert opened.page.is_visible("#state")
    none = json.dumps({**live(serving), "servers": [], "focus": None})
    opened.page.route("**/live.json*", lambda route: route.fulfill(body=none, content_type="application/json"))
    opened.page.wait_for_selector("#empty:not([hidden])")
    assert opened.text("header") == "llamatel Pause"
    assert opened.page.title() == "llamatel"
    opened.page.unroute("**/live.json*")
    opened.page.wait_for_selector("#content:not([hidden])")
    assert "tiny" in opened.text("#name")
    assert opened.page.is_visible("#state")


def test_page_phone_and_dark_mode(browser: Browser, serving: Serving) -> None:
    tab = Opened(browser, serving.page_url, viewport={"width": 360, "height": 740}, color_scheme="dark")
    try:
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= 360
        ground = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert max(int(part) for part in re.findall(r"\d+", ground)) < 60
    finally:
        tab.context.close()


def test_page_keyboard(opened: Opened) -> None:
    page = opened.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.get_attribute("#pause", "aria-pressed") == "true"
    unlabelled = (
        "[...document.querySelectorAll('svg, .bar')].filter((one) => !one.getAttribute('aria-label') && !one.hidden)"
    )
    assert page.evaluate(f"{unlabelled}.length") == 0


def test_page_many_servers(browser: Browser, serving: Serving, fleet: str) -> None:
    tab = Opened(browser, fleet)
    page, running = tab.page, serving.url.removeprefix("http://")

    def addresses() -> list[str]:
        return page.locator("#servers .address").all_inner_texts()

    try:
        assert tab.text("#fleet-text").startswith(f"12 watched, 11 down, 0 of {SLOTS} slots busy")
        assert page.locator("#servers tr").count() == 12
        assert page.locator("#servers td.bad").count() == 11
        assert all(text.startswith("down for ") for text in page.locator("#servers td.bad").all_inner_texts())
        assert addresses()[-1] == running
        assert page.title().startswith("(11!) ")
        tab.until(lambda: "--restart" in page.locator("#alarms code").all_inner_texts())
        # Requests and the pool's size are unknown: their columns are hidden.
        assert page.locator("#fleet th[scope=col]:visible").all_inner_texts() == [
            "Server", "State", "Running", "Waiting", "tok/s", "KV headroom", "Restarts",
        ]  # fmt: skip
        page.locator("#servers a", has_text=running).press("Enter")
        tab.until(lambda: tab.text("#name") == f"{running} tiny")
        assert tab.text("#state") == "ready"
        assert "No request log" in tab.text("#requests-text")
        assert page.locator("#servers tr:has([aria-current])").count() == 1
        # Selection and focus stay while figures are updated.
        requested = len(tab.requested)
        tab.until(lambda: len(tab.requested) > requested + 2)
        assert running in page.evaluate("document.activeElement.title")
        assert tab.text("#name") == f"{running} tiny"
        page.get_by_role("button", name="tok/s").click()
        assert addresses()[0] == running
        for text, number in (("DOWN", 11), ("no such server", 0), ("", 12)):
            page.fill("#search", text)
            tab.until(lambda number=number: page.locator("#servers tr").count() == number)  # type: ignore[misc]
        page.locator("#servers tr", has_text="127.0.0.1:7").click()
        tab.until(lambda: tab.text("#name") == "127.0.0.1:7")
        assert tab.text("#kv-text") == "The server is down: its KV cache is unknown."
        page.go_back()
        tab.until(lambda: tab.text("#name") == f"{running} tiny")
        page.reload()
        tab.until(lambda: tab.text("#name") == f"{running} tiny")
        assert tab.console_messages == []
    finally:
        tab.context.close()


def test_page_models_of_a_router_are_no_servers(fleet: str, browser: Browser) -> None:
    tab = Opened(browser, fleet)
    try:
        whole = live(fleet)
        row = whole["overview"][-1]
        keys = ["h:1", "h:1 a", "h:1 b", row["key"]]
        whole |= {"keys": keys, "overview": [{**row, "key": key} for key in keys]}
        tab.page.route("**/live.json*", lambda route: route.fulfill(json=whole))
        tab.until(lambda: tab.text("#fleet-text").startswith("2 watched, 2 models of routers, "))
        assert tab.page.locator("#servers tr").count() == 4
    finally:
        tab.context.close()


def test_page_update_size(fleet: str) -> None:
    whole = live(fleet)
    assert [len(whole[name]) for name in ("servers", "overview", "keys")] == [12, 12, 12]
    query = f"server={quote(whole['focus'])}&after={whole['cursor']}"
    with urllib.request.urlopen(f"{fleet}/live.json?{query}", timeout=10) as answer:
        body = answer.read()
    after = json.loads(body)
    assert (after["whole"], after["keys"], len(after["servers"])) == (False, None, 1)
    # Eleven servers have not changed.
    assert len(after["overview"]) <= 1
    assert all("down" not in row.values() for row in after["overview"])


def test_page_failed_requests(serving: Serving, opened: Opened) -> None:
    with Clients(serving.url) as clients:
        clients.send_all([completion("Go on", 4 * CONTEXT), completion("again " * CONTEXT, 4)], at_once=1)
    opened.until(lambda: "ok, cut off" in opened.text("#requests"))
    opened.until(lambda: "exceeds the available context size" in opened.text("#requests .why"))
    assert opened.page.get_attribute("#requests .warn span", "title") == "The slot's context was full"


def test_page_chart_pointer(serving: Serving, opened: Opened) -> None:
    opened.page.wait_for_selector("#busy-chart .plot")
    opened.page.hover("#busy-chart .plot", position={"x": 3, "y": 30})
    figures = r"\d running, \d waiting"
    opened.until(lambda: re.search(rf"Requests \d\d:\d\d:\d\d: {figures}", opened.text("#busy-chart .head")))
    opened.page.hover("h1")
    opened.until(lambda: re.search(rf"Requests {figures}", opened.text("#busy-chart .head")))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_page_accessibility(browser: Browser, serving: Serving, fleet: str, scheme: Any, width: int) -> None:
    with Clients(serving.url) as clients:
        clients.send_all([completion("Hello", 4)], at_once=1)
    for url, rows in ((serving.page_url, "#requests tr"), (fleet, "#servers tr")):
        # axe uses eval, which the page's policy forbids.
        tab = Opened(browser, url, color_scheme=scheme, viewport={"width": width, "height": 900}, bypass_csp=True)
        try:
            tab.until(tab.page.locator(rows).count)
            assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
            found = Axe().run(tab.page, options={"runOnly": _RULES})
            assert len(found.response["passes"]) > 20
            assert found.violations_count == 0, found.generate_report()
        finally:
            tab.context.close()


def test_page_polls_changes(serving: Serving, opened: Opened) -> None:
    page = opened.page
    with Clients(serving.url) as clients:
        for number in range(3):
            clients.send_all([completion(f"More {number}", 4)], at_once=1)
            page.wait_for_timeout(1100)
    assert opened.requested[-1].partition("&after=")[2].isdigit()
    shown = min(24, len(live(serving)["requests"]))
    opened.until(lambda: page.locator("#requests tr").count() == shown)
    # The whole history is still drawn.
    polled = [active for active in live(serving)["history"]["active"] if active is not None]
    drawn = [polygon.get_attribute("points") or "" for polygon in page.locator("#kv-chart .area-active").all()]
    assert sum(len(points.split()) for points in drawn) >= 2 * (len(polled) - 3)
    assert opened.console_messages == []


def test_page_escapes_names(browser: Browser, tiny_model: Path, tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    running = Serving(tmp_path, tiny_model, "--alias", name, slots=1, context=256)
    try:
        tab = Opened(browser, running.page_url)
        tab.page.on("dialog", lambda dialog: tab.console_messages.append(dialog.message))
        assert name in tab.text("#name")
        assert tab.page.query_selector("#content img, #content script, header img") is None
        assert tab.console_messages == []
        tab.context.close()
    finally:
        running.child.stop()
