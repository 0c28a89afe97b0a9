"""The demo's clients: a small mixed load over HTTP, sent as any client of llama.cpp would send it."""

from __future__ import annotations

import itertools
import json
import queue
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llamatel.errors import HttpError
from llamatel.inputs.http import HttpClient, Stream

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
class LoadRequest:
    """One request to send."""

    path: str
    body: dict[str, object]
    hang_up_after: int | None = None
    """Disconnect after this many events of the stream."""

    @property
    def streams(self) -> bool:
        """Whether the response is a stream of server-sent events."""
        return bool(self.body.get("stream"))


@dataclass(frozen=True, slots=True)
class Load:
    """The clients' results: number of requests by outcome (ok, cancelled, error)."""

    outcomes: dict[str, int]

    @property
    def requests(self) -> int:
        """All requests that were sent."""
        return sum(self.outcomes.values())


def _chat(question: str, tokens: int, *, stream: bool) -> LoadRequest:
    messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": question}]
    return LoadRequest("/v1/chat/completions", {"messages": messages, "max_tokens": tokens, "stream": stream})


def _completion(prompt: str, tokens: int, *, stream: bool) -> LoadRequest:
    return LoadRequest("/v1/completions", {"prompt": prompt, "max_tokens": tokens, "stream": stream})


def mixed_load(context: int) -> list[LoadRequest]:
    """Chat and completion, streaming and not, long and short; one that disconnects and one that is too long.

    ``context``: what one slot holds, in tokens.
    """
    requests: list[LoadRequest] = []
    for index, question in enumerate(_QUESTIONS * 2):
        requests.append(_chat(question, 32 + 48 * (index % 4), stream=index % 2 == 0))
    for index, story in enumerate(_STORIES * 2):
        requests.append(
            _completion(" ".join([story] * (1 + 6 * (index % 3))), 32 + 48 * (index % 3), stream=index % 2 == 1)
        )
    hang_up = _completion("one day hugo went to the river .", context, stream=True)
    requests.insert(3, LoadRequest(hang_up.path, hang_up.body, hang_up_after=3))
    requests.insert(8, _completion("again " * (context + 16), 8, stream=False))
    return requests


def steady_load() -> Iterator[LoadRequest]:
    """An endless series of small requests."""
    for index in itertools.count():
        yield _chat(_QUESTIONS[index % len(_QUESTIONS)], 24 + 24 * (index % 4), stream=index % 2 == 0)


class Clients:
    """Clients of one server. Setting ``stop`` ends sending and disconnects streams."""

    def __init__(self, base_url: str, *, at_once: int = 8, timeout_s: float = 300.0) -> None:
        self._at_once = at_once
        self._timeout_s = timeout_s
        self._http = HttpClient(base_url)
        self.stop = threading.Event()

    def send_all(self, requests: Sequence[LoadRequest], *, burst: int = 0, pause_s: float = 0.0) -> Load:
        """Send them, at most ``at_once`` together; returns when all have finished.

        ``burst``: after so many, nothing new is sent for ``pause_s``.
        """
        waiting: queue.SimpleQueue[LoadRequest | None] = queue.SimpleQueue()
        ends: queue.SimpleQueue[str] = queue.SimpleQueue()

        def client() -> None:
            while (request := waiting.get()) is not None:
                ends.put(self.send(request))

        # Daemons: an interrupted demo does not wait for answers of a slow model.
        for number in range(self._at_once):
            threading.Thread(target=client, name=f"demo-client-{number}", daemon=True).start()
        try:
            for number, request in enumerate(requests):
                if burst and number and number % burst == 0:
                    self.stop.wait(pause_s)
                waiting.put(request)
            outcomes = Counter(ends.get() for _ in requests)
        finally:
            for _ in range(self._at_once):
                waiting.put(None)
        outcomes.pop("unsent", None)
        return Load(dict(outcomes))

    def send(self, request: LoadRequest) -> str:
        """Send one and return its outcome: ok, cancelled, error, or unsent after ``stop``."""
        if self.stop.is_set():
            return "unsent"
        # llama.cpp closes kept connections after some responses; a request that crosses the close would be lost.
        headers = {"Content-Type": "application/json", "Connection": "close"}
        try:
            with self._http.open(
                request.path, body=json.dumps(request.body).encode(), headers=headers, read_s=self._timeout_s
            ) as response:
                if response.status != 200 or not request.streams:
                    response.read_all()
                    return "ok" if response.status == 200 else "error"
                return self._follow(response, request)
        except HttpError:
            return "error"

    def _follow(self, response: Stream, request: LoadRequest) -> str:
        events = 0
        while chunk := response.read1():
            events += chunk.count(b"data: ")
            if self.stop.is_set() or (request.hang_up_after is not None and events >= request.hang_up_after):
                return "cancelled"
            if b'data: {"error"' in chunk or chunk.startswith(b"error: "):
                return "error"
        return "ok"

    def close(self) -> None:
        """Close idle connections."""
        self._http.close()
