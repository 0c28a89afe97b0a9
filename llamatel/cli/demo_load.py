"""The demo's clients: a small mixed load over HTTP, sent as any client of llama.cpp would send it."""

from __future__ import annotations

import itertools
import json
import queue
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import urllib3

# In the language of the model that llamatel ships (llamatel/models/tiny.md).
_SYSTEM = "you answer in short sentences ."
_QUESTIONS = (
    "count from one to twenty .",
    "the cup is red . the ball is blue . what color is the cup ?",
    "say again : fox lamp two red bear hill green anna seven boat drum .",
    "the hat is green . the key is black . the lamp is white . what color is the key ?",
    "count from three to nineteen .",
)
_STORIES = (
    "one day anna went to the forest .",
    "in the garden there was a red fox .",
    "ben gave the book to the bear .",
)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request to send."""

    path: str
    body: dict[str, object]
    hang_up_after: int | None = None
    """Close the connection after so many events of the stream."""

    @property
    def streams(self) -> bool:
        """Whether the answer comes as server-sent events."""
        return bool(self.body.get("stream"))


@dataclass(frozen=True, slots=True)
class Load:
    """What the clients saw: how many requests ended ok, cancelled (by us) or with an error."""

    outcomes: dict[str, int]

    @property
    def requests(self) -> int:
        """All requests that were sent."""
        return sum(self.outcomes.values())


def _chat(question: str, tokens: int, *, stream: bool) -> Ask:
    messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": question}]
    return Ask("/v1/chat/completions", {"messages": messages, "max_tokens": tokens, "stream": stream})


def _completion(prompt: str, tokens: int, *, stream: bool) -> Ask:
    return Ask("/v1/completions", {"prompt": prompt, "max_tokens": tokens, "stream": stream})


def mixed_load(context: int) -> list[Ask]:
    """Chat and completion, streaming and not, long and short; one that hangs up and one too long.

    ``context``: what one slot holds, in tokens.
    """
    asks: list[Ask] = []
    for index, question in enumerate(_QUESTIONS * 2):
        asks.append(_chat(question, 32 + 48 * (index % 4), stream=index % 2 == 0))
    for index, story in enumerate(_STORIES * 2):
        asks.append(
            _completion(" ".join([story] * (1 + 6 * (index % 3))), 32 + 48 * (index % 3), stream=index % 2 == 1)
        )
    hang_up = _completion("one day hugo went to the river .", context, stream=True)
    asks.insert(3, Ask(hang_up.path, hang_up.body, hang_up_after=3))
    asks.insert(8, _completion("again " * (context + 16), 8, stream=False))
    return asks


def steady_load() -> Iterator[Ask]:
    """Small requests without end."""
    for index in itertools.count():
        yield _chat(_QUESTIONS[index % len(_QUESTIONS)], 24 + 24 * (index % 4), stream=index % 2 == 0)


class Clients:
    """Clients of one server. ``stop`` set: nothing further is sent, and streams are hung up."""

    def __init__(self, base_url: str, *, at_once: int = 8, timeout_s: float = 300.0) -> None:
        self._base_url = base_url.rstrip("/")
        self._at_once = at_once
        self._http = urllib3.PoolManager(
            maxsize=at_once, retries=False, timeout=urllib3.Timeout(connect=5.0, read=timeout_s)
        )
        self.stop = threading.Event()

    def send_all(self, asks: Sequence[Ask], *, burst: int = 0, pause_s: float = 0.0) -> Load:
        """Send them, at most ``at_once`` together; returns when all have ended.

        ``burst``: after so many, nothing new is sent for ``pause_s``.
        """
        waiting: queue.SimpleQueue[Ask | None] = queue.SimpleQueue()
        ends: queue.SimpleQueue[str] = queue.SimpleQueue()

        def client() -> None:
            while (ask := waiting.get()) is not None:
                ends.put(self.send(ask))

        # Daemons: an interrupted demo does not wait for answers that a slow model still owes.
        for number in range(self._at_once):
            threading.Thread(target=client, name=f"demo-client-{number}", daemon=True).start()
        try:
            for number, ask in enumerate(asks):
                if burst and number and number % burst == 0:
                    self.stop.wait(pause_s)
                waiting.put(ask)
            outcomes = Counter(ends.get() for _ in asks)
        finally:
            for _ in range(self._at_once):
                waiting.put(None)
        outcomes.pop("unsent", None)
        return Load(dict(outcomes))

    def send(self, ask: Ask) -> str:
        """Send one; how it ended: ok, cancelled, error, or unsent after ``stop``."""
        if self.stop.is_set():
            return "unsent"
        try:
            response = self._http.request(
                "POST",
                self._base_url + ask.path,
                body=json.dumps(ask.body),
                # llama.cpp closes kept connections after some answers; a request that crosses the close would be lost.
                headers={"Content-Type": "application/json", "Connection": "close"},
                preload_content=False,
            )
            if response.status != 200 or not ask.streams:
                response.read()
                response.release_conn()
                return "ok" if response.status == 200 else "error"
            return self._follow(response, ask)
        except urllib3.exceptions.HTTPError:
            return "error"

    def _follow(self, response: urllib3.BaseHTTPResponse, ask: Ask) -> str:
        events = 0
        for chunk in response.stream(amt=None):
            events += chunk.count(b"data: ")
            if self.stop.is_set() or (ask.hang_up_after is not None and events >= ask.hang_up_after):
                response.close()
                return "cancelled"
            if b'data: {"error"' in chunk or chunk.startswith(b"error: "):
                response.close()
                return "error"
        response.release_conn()
        return "ok"

    def close(self) -> None:
        """Close idle connections."""
        self._http.clear()
