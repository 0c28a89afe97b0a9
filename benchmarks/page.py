"""What the web page costs: its bytes, and llamatel's CPU time with one page open and without, in turns."""

from __future__ import annotations

import json
import statistics
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from benchmarks import procfs
from tests.load import Clients, completion
from tests.serving import Serving
from tests.tiny_gguf import write_tiny_model

_CLIENTS = 4
_FILES = ("/", "/page.css", "/page.js", "/draw.js", "/figures.js")


@dataclass(frozen=True, slots=True)
class PageCost:
    """One llamatel under a steady load."""

    page_bytes: int
    """The page's files."""
    document_bytes: int
    """What it requests once a second."""
    without_cores: float
    """CPU time of llamatel a second without a client; of the machine's cores, one is 1."""
    open_cores: float
    """And while one page is open. Medians of the rounds."""
    requests_per_s: float

    def lines(self) -> list[str]:
        """For people."""
        return [
            f"  page {self.page_bytes:,} bytes once, then {self.document_bytes:,} bytes a second",
            (
                f"  cores without it {self.without_cores:.4f}, with one page open {self.open_cores:.4f} "
                f"(+{self.open_cores - self.without_cores:.4f}), at {self.requests_per_s:.0f} requests a second"
            ),
        ]


def measure(*, rounds: int, seconds: float, progress: Callable[[str], None]) -> PageCost:
    """Look at a server under load in turns: ``rounds`` times without the page and with it, ``seconds`` each."""
    progress(f"the web page, {rounds} rounds of {seconds:g} s without and with it")
    with tempfile.TemporaryDirectory(prefix="llamatel-bench-") as temporary:
        folder = Path(temporary)
        model = write_tiny_model(folder / "tiny.gguf")
        serving = Serving(folder, model)
        try:
            return _measure(serving, rounds, seconds)
        finally:
            serving.child.stop()


def _measure(serving: Serving, rounds: int, seconds: float) -> PageCost:
    sizes = {path: len(_get(serving, path)) for path in _FILES}
    without: list[float] = []
    opened: list[float] = []
    requests = [completion(f"Number {n}", 40) for n in range(20)]
    started = time.monotonic()
    with Clients(serving.url) as clients, clients.keep_sending(requests, at_once=_CLIENTS) as load:
        for _ in range(rounds):
            without.append(procfs.cores(serving.pid, seconds))
            with _page_open(serving):
                opened.append(procfs.cores(serving.pid, seconds))
        sent = len(load.answers) / (time.monotonic() - started)
        following = _Following(serving)
        following.look()
        time.sleep(1.0)
        document = following.look()
    return PageCost(sum(sizes.values()), document, statistics.median(without), statistics.median(opened), sent)


@contextmanager
def _page_open(serving: Serving) -> Iterator[None]:
    """Send the requests of an open page, as often."""
    end = threading.Event()

    following = _Following(serving)

    def look() -> None:
        while not end.wait(1.0):
            following.look()

    for path in _FILES:
        _get(serving, path)
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


class _Following:
    """Asks as the page does: for all of it first, then for what is new."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._query = ""

    def look(self) -> int:
        """Bytes of the answer."""
        body = _get(self._serving, f"/live.json{self._query}")
        document = json.loads(body)
        self._query = f"?server={quote(document['focus'])}&after={document['cursor']}"
        return len(body)


def _get(serving: Serving, path: str) -> bytes:
    with urllib.request.urlopen(serving.page_url + path, timeout=30) as answer:  # noqa: S310 - our own
        body: bytes = answer.read()
        return body
