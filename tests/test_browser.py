"""The web page in a real browser: no error, the figures of the load that runs, a restart survived, nobody shut out."""

from __future__ import annotations

import json
import os
import re
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.load import Clients, completion, endless
from tests.parts import wait_until
from tests.servers import without_settings
from tests.serving import Serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SLOTS = 2
CONTEXT = 1024


@pytest.fixture(scope="module")
def serving(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    patch = pytest.MonkeyPatch()
    without_settings(patch)
    folder = tmp_path_factory.mktemp("page")
    running = Serving(folder, tiny_model, "--restart", "on-failure", "--alias", "tiny", slots=SLOTS, context=CONTEXT)
    yield running
    running.child.stop()
    patch.undo()


class Opened:
    """The page in a tab of its own, with what the browser complained about."""

    def __init__(self, browser: Browser, url: str, **context: Any) -> None:
        self.context = browser.new_context(**context)
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.asked: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(url)
        self.page.wait_for_selector("#content:not([hidden])")

    def text(self, selector: str) -> str:
        return " ".join(self.page.inner_text(selector).split())

    def until(self, found: Callable[[], object], timeout_s: float = 30.0) -> None:
        """Wait until ``found``; Playwright's own way evaluates text as code, which the page's policy forbids."""
        end = time.monotonic() + timeout_s
        while not found():
            assert time.monotonic() < end, self.page.inner_text("body")
            self.page.wait_for_timeout(100)


@pytest.fixture
def opened(browser: Browser, serving: Serving) -> Iterator[Opened]:
    tab = Opened(browser, serving.page_url)
    yield tab
    tab.context.close()


def live(serving: Serving) -> dict[str, Any]:
    with urllib.request.urlopen(f"{serving.page_url}/live.json", timeout=10) as answer:
        document: dict[str, Any] = json.load(answer)
        return document


def test_it_shows_the_load_that_runs_and_what_was(serving: Serving, opened: Opened) -> None:
    page = opened.page
    before = live(serving)["summary"]["requests"]["total"]
    with Clients(serving.url) as clients:
        answers = clients.send_all([completion(f"Number {n}", 12) for n in range(5)], at_once=1)
        assert all(answer.outcome == "ok" for answer in answers)
        ended = before + len(answers)
        opened.until(lambda: f"Requests {ended}" in opened.text("#tiles"))
        opened.until(lambda: page.locator("#requests tr").count() == min(24, ended))
        # Each was generated 12 tokens; prompts as the clients were told.
        shown = [row.split("\t") for row in page.inner_text("#requests").splitlines() if row.strip()]
        assert {row[-2] for row in [row for row in shown if len(row) > 4][:5]} == {"12"}
        running = [endless(f"Tell {n}", context=CONTEXT, stream=True, hang_up=float("inf")) for n in range(SLOTS)]
        with clients.keep_sending(running, at_once=SLOTS):
            opened.until(lambda: f"{SLOTS} of {SLOTS}" in opened.text("#tiles"))
            opened.until(lambda: page.locator("#slots .bar .active").count() == SLOTS)
            slots = live(serving)["servers"][0]["slots"]
            total = sum(slot["context_tokens"] for slot in slots)
            text = opened.text("#kv-text")
            told = re.match(r"([\d,]+) active", text)
            assert told is not None, text
            # It grows while we look: what the page says lies between two looks of ours.
            later = sum(slot["context_tokens"] for slot in live(serving)["servers"][0]["slots"])
            assert 0 < int(told[1].replace(",", "")) <= max(total, later)
            assert f"of {SLOTS * CONTEXT:,} tokens" in text
    assert "tiny" in page.title()
    assert opened.complaints == []
    assert {url.removeprefix(serving.page_url).partition("?")[0] for url in opened.asked} <= {
        "/", "/page.css", "/page.js", "/live.json",
    }  # fmt: skip


def test_it_survives_a_restart_of_the_server(serving: Serving, opened: Opened) -> None:
    before = live(serving)["servers"][0]["restarts"]
    os.kill(serving.find_server(), signal.SIGKILL)
    wait_until(lambda: live(serving)["servers"][0]["restarts"] == before + 1, 30)
    opened.until(lambda: f"Restarts {before + 1} " in opened.text("#model"))
    opened.until(lambda: opened.text("#state") == "ready")
    assert opened.complaints == []


def test_without_llamatel_it_says_so_and_comes_back(serving: Serving, opened: Opened) -> None:
    opened.context.set_offline(True)
    opened.page.wait_for_selector("#trouble:not([hidden])")
    assert "figures below are old" in opened.text("#trouble")
    opened.context.set_offline(False)
    opened.page.wait_for_selector("#trouble", state="hidden")


def test_the_last_server_goes_and_nothing_is_said_of_it(serving: Serving, opened: Opened) -> None:
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


def test_it_fits_a_phone_and_a_dark_room(browser: Browser, serving: Serving) -> None:
    tab = Opened(browser, serving.page_url, viewport={"width": 360, "height": 740}, color_scheme="dark")
    try:
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= 360
        ground = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert max(int(part) for part in re.findall(r"\d+", ground)) < 60
    finally:
        tab.context.close()


def test_a_keyboard_is_enough(opened: Opened) -> None:
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


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_axe_finds_no_barrier(browser: Browser, serving: Serving, scheme: Any, width: int) -> None:
    with Clients(serving.url) as clients:
        clients.send_all([completion("Hello", 4)], at_once=1)
    # The page's policy would keep axe out, which evaluates text as code.
    tab = Opened(
        browser, serving.page_url, color_scheme=scheme, viewport={"width": width, "height": 900}, bypass_csp=True
    )
    try:
        tab.until(lambda: tab.page.locator("#requests tr").count())
        found = Axe().run(tab.page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21aa", "wcag22aa", "best-practice"]})
        assert len(found.response["passes"]) > 20
        assert found.violations_count == 0, found.generate_report()
    finally:
        tab.context.close()


def test_it_asks_for_what_is_new_and_shows_the_same(serving: Serving, opened: Opened) -> None:
    page = opened.page
    with Clients(serving.url) as clients:
        for number in range(3):
            clients.send_all([completion(f"More {number}", 4)], at_once=1)
            page.wait_for_timeout(1100)
    assert opened.asked[-1].partition("&after=")[2].isdigit()
    shown = min(24, len(live(serving)["requests"]))
    opened.until(lambda: page.locator("#requests tr").count() == shown)
    # All that was known at first is still drawn: the chart goes back as far as llamatel does.
    history = live(serving)["history"]["at"]
    points = page.get_attribute("#kv-chart polygon", "points")
    assert points is not None
    assert len(points.split()) >= 2 * (len(history) - 3)
    assert opened.complaints == []


def test_a_hostile_name_is_only_text(browser: Browser, tiny_model: Path, tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    running = Serving(tmp_path, tiny_model, "--alias", name, slots=1, context=256)
    try:
        tab = Opened(browser, running.page_url)
        tab.page.on("dialog", lambda dialog: tab.complaints.append(dialog.message))
        assert name in tab.text("#name")
        assert tab.page.query_selector("#content img, #content script, header img") is None
        assert tab.complaints == []
        tab.context.close()
    finally:
        running.child.stop()
