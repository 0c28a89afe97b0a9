"""A mixed load for tests and the benchmark: requests of many llama.cpp clients, and their responses.

The clients are cheap, so that they measure the server even on a small machine: only a stream's last events are decoded.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import urllib3

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


@dataclass(frozen=True, slots=True)
class Request:
    """One request to send, and its expected outcome."""

    path: str
    body: dict[str, Any]
    expect: str = "ok"
    """ok, cancelled, error (a task failed) or refused (it never became a task)."""
    hang_up: float | None = None
    """Disconnect after this many events of a stream, or after this many seconds without a stream."""

    @property
    def streams(self) -> bool:
        """Whether the response is a stream of server-sent events."""
        return bool(self.body.get("stream"))

    @property
    def choices(self) -> int:
        """Number of completions requested for the prompt."""
        return int(self.body.get("n", 1))


@dataclass(slots=True)
class Answer:
    """The response as its client received it. Times are Unix seconds."""

    request: Request
    sent_at: float
    headers_at: float | None = None
    ended_at: float = 0.0
    outcome: str = "error"
    """ok, cancelled, error, refused."""
    status: int | None = None
    error: str | None = None
    timings: list[dict[str, Any]] = field(default_factory=list)
    """llama.cpp's ``timings``: one for each choice of a stream, otherwise one for all choices."""

    @property
    def seconds(self) -> float:
        """From sending the request to the end of the response."""
        return self.ended_at - self.sent_at

    @property
    def outside_s(self) -> float:
        """Total time without llama.cpp's prefill and decode: queue and network."""
        [timings] = self.timings
        return self.seconds - float(timings["prompt_ms"] + timings["predicted_ms"]) / 1e3


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


class Clients:
    """Clients of one server, each request on its own connection. Thread-safe, a context manager."""

    def __init__(self, base_url: str, *, timeout_s: float = 120.0) -> None:
        self._url = base_url.rstrip("/")
        self._timeout_s = timeout_s
        self._http = urllib3.PoolManager(maxsize=256, retries=False)

    def send_all(self, requests: Sequence[Request], *, at_once: int) -> list[Answer]:
        """Send requests, at most ``at_once`` together; return responses in the order of the requests."""
        with ThreadPoolExecutor(at_once, thread_name_prefix="client") as threads:
            futures = [threads.submit(self.send, request) for request in requests]
            return [future.result() for future in futures]

    def keep_sending(self, requests: Sequence[Request], *, at_once: int, pause_s: float = 0.0) -> KeptSending:
        """Send requests repeatedly from other threads until the returned object's ``end`` is called."""
        return KeptSending(self, requests, at_once, pause_s)

    def send(self, request: Request) -> Answer:
        """Send one request and return its response."""
        answer = Answer(request, time.time())
        read_s = request.hang_up if request.hang_up is not None and not request.streams else self._timeout_s
        try:
            response = self._http.request(
                "POST",
                self._url + request.path,
                body=json.dumps(request.body),
                # llama.cpp closes kept connections after some responses; a request sent at that moment would be lost.
                headers={"Content-Type": "application/json", "Connection": "close"},
                preload_content=False,
                timeout=urllib3.Timeout(connect=30.0, read=read_s),
            )
            answer.headers_at, answer.status = time.time(), response.status
            if request.streams and response.status == 200:
                self._follow(response, answer)
            else:
                _read_whole(answer, response.read())
        except urllib3.exceptions.ReadTimeoutError:
            answer.outcome, answer.error = "cancelled", "the client disconnected"
        except urllib3.exceptions.HTTPError as error:
            answer.error = f"{type(error).__name__}: {error}"
        answer.ended_at = time.time()
        return answer

    def _follow(self, response: urllib3.BaseHTTPResponse, answer: Answer) -> None:
        hang_up = answer.request.hang_up
        events = 0
        body = bytearray()
        for chunk in response.stream(amt=None):
            body += chunk
            if hang_up is not None:
                events += chunk.count(b"data: ")
                if events >= hang_up:
                    response.close()
                    answer.outcome = "cancelled"
                    return
        answer.outcome = "ok"
        for line in bytes(body).splitlines():
            if line.startswith(b"data: {") and b'"timings":' in line:
                answer.timings.append(json.loads(line[6:])["timings"])
            elif line.startswith((b"error: ", b'data: {"error"')):
                answer.outcome, answer.error = "error", line.decode()

    def close(self) -> None:
        """Close open connections."""
        self._http.clear()

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _read_whole(answer: Answer, data: bytes) -> None:
    body = json.loads(data)
    if answer.status == 200:
        answer.outcome = "ok"
        answer.timings = [body["timings"]]
        return
    answer.outcome = "refused" if answer.status == 501 else "error"
    answer.error = str(body["error"].get("message"))


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
