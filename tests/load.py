"""A mixed load for tests and the benchmark: requests of many llama.cpp clients."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from llamatel.cli.load_clients import LoadClients, LoadRequest, LoadResult

_WORDS = (
    "a",
    "hello",
    "river",
    "of",
    "the",
    "server",
    "and",
    "cache",
    "token",
    "so",
    "it",
    "went",
    "on",
    "until",
    "noon",
)
_SHARED = "Once upon a time there was a server which kept what it had read, and it said: "
_REPEATED = tuple(f"{_SHARED}this is story number {number}." for number in range(6))


@dataclass(frozen=True)
class Request(LoadRequest):
    """One request to send, and its expected outcome."""

    expect: str = "ok"
    """ok, cancelled, error (a task failed) or refused (it never became a task)."""

    @property
    def choices(self) -> int:
        """Number of completions requested for the prompt."""
        return int(self.body.get("n", 1)) if isinstance(self.body, dict) else 1


Answer: TypeAlias = LoadResult[Request]


def text(source: random.Random, words: int) -> str:
    """Return random words."""
    return " ".join(source.choice(_WORDS) for _ in range(words))


def chat(prompt: str, tokens: int, *, stream: bool = False, **more: Any) -> Request:
    """A chat completion of exactly ``tokens`` tokens."""
    messages = [{"role": "user", "content": prompt}]
    body = {"messages": messages, "max_tokens": tokens, "stream": stream, "ignore_eos": True, **more}
    return Request("/v1/chat/completions", body)


def completion(prompt: str, tokens: int, *, stream: bool = False, **more: Any) -> Request:
    """A completion by llama.cpp's own endpoint of exactly ``tokens`` tokens."""
    return Request("/completion", {"prompt": prompt, "n_predict": tokens, "stream": stream, "ignore_eos": True, **more})


def v1_completion(prompt: str, tokens: int, *, stream: bool = False, **more: Any) -> Request:
    """A completion by OpenAI's endpoint of exactly ``tokens`` tokens."""
    return Request(
        "/v1/completions", {"prompt": prompt, "max_tokens": tokens, "stream": stream, "ignore_eos": True, **more}
    )


def endless(prompt: str, *, context: int, stream: bool, hang_up: float) -> Request:
    """A request whose client disconnects; otherwise it fills a slot of ``context`` tokens."""
    body = {"prompt": prompt, "n_predict": context - 256, "stream": stream, "ignore_eos": True}
    return Request("/completion", body, expect="cancelled", hang_up=hang_up)


def mixed_load(number: int, *, context: int, seed: int = 1) -> list[Request]:
    """Return requests of every kind in a random order that is always the same.

    ``context``: tokens of one slot. Of 25 requests 20 succeed (two have two choices, four repeat a prompt, ten are
    streamed), two streams are closed by the client, two prompts are too long and one is refused.
    """
    source = random.Random(seed)
    requests: list[Request] = []
    for index in range(number):
        kind, tokens, prompt = index % 25, source.choice((4, 12, 30, 80)), text(source, source.randint(3, 60))
        stream = bool(index % 2)
        if kind < 6:
            requests.append(chat(prompt, tokens, stream=stream))
        elif kind < 10:
            requests.append(completion(prompt, tokens, stream=stream))
        elif kind < 13:
            requests.append(v1_completion(_SHARED + prompt, tokens, stream=stream))
        elif kind < 17:
            requests.append(completion(source.choice(_REPEATED), tokens, stream=stream))
        elif kind < 19:
            requests.append(chat(prompt, tokens, stream=stream, n=2))
        elif kind == 19:
            requests.append(completion(prompt, 1, stream=stream))
        elif kind < 22:
            requests.append(endless(prompt, context=context, stream=True, hang_up=3))
        elif kind < 24:
            overlong = chat("again " * context, tokens, stream=stream)
            requests.append(Request(overlong.path, overlong.body, expect="error"))
        else:
            requests.append(Request("/v1/embeddings", {"input": prompt}, expect="refused"))
    source.shuffle(requests)
    return requests


class Clients(LoadClients):
    """Clients of one server, which can keep a load up."""

    def keep_sending(self, requests: Sequence[Request], *, at_once: int, pause_s: float = 0.0) -> KeptSending:
        """Send requests repeatedly from other threads until the returned object's ``end`` is called."""
        return KeptSending(self, requests, at_once, pause_s)

    def __enter__(self) -> Clients:
        return self


class KeptSending:
    """A load that continues until ``end``. A context manager."""

    def __init__(self, clients: Clients, requests: Sequence[Request], at_once: int, pause_s: float = 0.0) -> None:
        """``pause_s``: pause of each client between two requests."""
        self.answers: list[Answer] = []
        """Responses so far, in the order of their completion."""
        self._ending = threading.Event()
        self._clients = clients
        self._pause_s = pause_s
        self._threads = [
            threading.Thread(target=self._go_on, args=(requests, first), name="client", daemon=True)
            for first in range(at_once)
        ]
        for thread in self._threads:
            thread.start()

    def _go_on(self, requests: Sequence[Request], first: int) -> None:
        index = first
        while not self._ending.is_set():
            answer = self._clients.send(requests[index % len(requests)])
            self.answers.append(answer)
            index += len(self._threads)
            # Where the connection is refused: do not spin.
            self._ending.wait(max(self._pause_s, 0.05 if answer.status is None else 0.0))

    def end(self) -> list[Answer]:
        """Stop sending, wait for requests in flight, and return all responses."""
        self._ending.set()
        for thread in self._threads:
            thread.join()
        return self.answers

    def __enter__(self) -> KeptSending:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
