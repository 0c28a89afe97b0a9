"""Screenshots for the README, of real servers under load: ``python -m tests.pictures`` rewrites docs/images."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import tempfile
import urllib.request
from pathlib import Path

from playwright.sync_api import sync_playwright
from rich.console import Console

import llamatel
from llamatel.llama import ServerManager
from llamatel.ui.top.screen import Choices, screen
from tests.load import Clients, Request, chat
from tests.parts import chromium_program
from tests.serving import Serving
from tests.tiny_gguf import write_tiny_model

IMAGES = Path(__file__).parents[1] / "docs" / "images"
_SECONDS = 40
_ARGS = ["--no-sandbox", "--disable-gpu"]
_PROMPTS = ("What is a slot?", "Why is the KV cache full? " * 6, "Tell me a story about a llama. " * 12, "Hello")
_LENGTHS = (60, 220, 400, 900, 140)


def _requests() -> list[Request]:
    return [
        chat(f"{_PROMPTS[n % len(_PROMPTS)]} ({n // 2})", _LENGTHS[n % len(_LENGTHS)], stream=n % 3 == 0)
        for n in range(400)
    ]


def main() -> None:
    """Take the screenshots."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = write_tiny_model(folder / "model.gguf", embedding=512, layers=6, heads=8, kv_heads=2, feed_forward=2048)
        serving = Serving(folder, model, "--alias", "tiny-llama", context=1536)
        try:
            with Clients(serving.url) as clients, clients.keep_sending(_requests(), at_once=5):
                _take(serving)
        finally:
            serving.child.stop()
        _take_many(folder)


def _take_many(folder: Path) -> None:
    """A page of several servers, one of which crashes."""
    running = llamatel.init(service_name="pictures", metrics_addr="127.0.0.1:0")
    model = write_tiny_model(folder / "tiny.gguf", embedding=256, layers=4, heads=8, kv_heads=2, feed_forward=1024)
    with contextlib.ExitStack() as ending:
        ending.callback(llamatel.shutdown)
        for name, at_once in (("summaries", 2), ("chat", 6), ("code", 1), ("translation", 0), ("drafts", 1)):
            server = ending.enter_context(ServerManager())
            extra = ("-t", "1")
            server.start_server(model, ctx_size=6144, n_parallel=4, alias=name, port=0, extra_args=extra)
            server.wait_until_ready(60)
            if at_once:
                clients = ending.enter_context(Clients(server.base_url))
                ending.enter_context(clients.keep_sending(_requests(), at_once=at_once))
        pid = server.info.pid
        assert pid is not None
        url = str(running.pipeline.metrics_url).removesuffix("/metrics")
        with sync_playwright() as driver:
            chromium = driver.chromium.launch(
                executable_path=chromium_program(), args=["--no-sandbox", "--disable-gpu"]
            )
            page = chromium.new_page(viewport={"width": 1200, "height": 700})
            page.goto(url)
            page.wait_for_timeout(_SECONDS * 500)
            os.kill(pid, signal.SIGKILL)
            page.wait_for_timeout(_SECONDS * 500)
            page.screenshot(path=IMAGES / "page-servers.png")
            chromium.close()


def _take(serving: Serving) -> None:
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=chromium_program(), args=_ARGS)
        for scheme, width, height in (("light", 1200, 1120), ("dark", 400, 860)):
            tab = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
            page = tab.new_page()
            page.goto(serving.page_url)
            page.wait_for_timeout(_SECONDS * 1000)
            page.screenshot(path=IMAGES / f"page-{scheme}.png")
            tab.close()
        chromium.close()
    with urllib.request.urlopen(f"{serving.page_url}/live.json", timeout=10) as answer:
        document = json.load(answer)
    console = Console(record=True, width=100, height=32, file=(IMAGES / "top.txt").open("w"), force_terminal=True)
    console.print(screen(document, Choices(), 100, 30))
    console.file.close()
    (IMAGES / "top.txt").unlink()
    console.save_svg(str(IMAGES / "top.svg"), title="llamatel top")


if __name__ == "__main__":
    main()
