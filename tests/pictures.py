"""Pictures for the README, of the real thing under load: ``python -m tests.pictures`` writes docs/images anew."""

from __future__ import annotations

import json
import tempfile
import urllib.request
from pathlib import Path

from playwright.sync_api import sync_playwright
from rich.console import Console

from llamatel.llama.tiny_model import write_tiny_model
from llamatel.top.screen import Choices, screen
from tests.load import Ask, Clients, chat
from tests.parts import chromium_program
from tests.serving import Serving

IMAGES = Path(__file__).parents[1] / "docs" / "images"
_SECONDS = 40
_PROMPTS = ("What is a slot?", "Why is the KV cache full? " * 6, "Tell me a story about a llama. " * 12, "Hello")
_LENGTHS = (60, 220, 400, 900, 140)


def _asks() -> list[Ask]:
    return [
        chat(f"{_PROMPTS[n % len(_PROMPTS)]} ({n // 2})", _LENGTHS[n % len(_LENGTHS)], stream=n % 3 == 0)
        for n in range(400)
    ]


def main() -> None:
    """Take them."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = write_tiny_model(folder / "model.gguf", embedding=512, layers=6, heads=8, kv_heads=2, feed_forward=2048)
        serving = Serving(folder, model, "--alias", "tiny-llama", context=1536)
        try:
            with Clients(serving.url) as clients, clients.keep_sending(_asks(), at_once=5):
                _take(serving)
        finally:
            serving.child.stop()


def _take(serving: Serving) -> None:
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=chromium_program(), args=["--no-sandbox", "--disable-gpu"])
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
