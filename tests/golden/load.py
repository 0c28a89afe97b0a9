"""The requests of a recording's clients, and their responses."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from llamatel.cli.load_clients import LoadClients, LoadRequest
from llamatel.inputs.http import HttpClient

TIMINGS = ("cache_n", "prompt_n", "prompt_ms", "predicted_n", "predicted_ms", "draft_n", "draft_n_accepted")
OWN_FIELDS = ("id_slot", "tokens_cached", "tokens_evaluated", "truncated", "stop_type")
ROUTED = ("one", "two")
"""The models of the router's recording."""
# One thread: two that wait for each other are slow on a busy machine.
MIXED_FLAGS = ["-c", "2048", "-ub", "64", "-t", "1"]


@dataclass
class Seen:
    """One HTTP request and its response. Times are seconds since the recording's start."""

    kind: str
    sent: float
    status: int | None = None
    outcome: str = "ok"
    """ok, cancelled, context_full, error (a task failed), refused (it never became a task)."""
    error: str | None = None
    headers: float | None = None
    first_content: float | None = None
    end: float | None = None
    timings: dict[str, Any] | None = None
    usage: dict[str, Any] | None = None
    choices: int | None = None
    own: dict[str, Any] | None = None
    """Fields of /completion only: slot, tokens in context, truncated, reason of the stop."""

    def failed(self, error: dict[str, Any] | str) -> None:
        detail = error if isinstance(error, dict) else {"message": error}
        self.error = str(detail.get("message"))
        if "Context size has been exceeded" in self.error:
            self.outcome = "context_full"
        else:
            self.outcome = "error"

    def answered(self, body: dict[str, Any]) -> None:
        if "error" in body:
            self.failed(body["error"])
        if timings := body.get("timings"):
            self.timings = {name: timings[name] for name in TIMINGS if name in timings}
        self.usage = body.get("usage") or self.usage
        if len(body.get("choices", ())) > 1:
            self.choices = len(body["choices"])
        if "tokens_evaluated" in body and body.get("stop", True):
            self.own = {name: body[name] for name in OWN_FIELDS if name in body}


def events(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The JSON of server-sent events; an error event comes as ``{"error": ...}``."""
    for line in lines:
        name, _, value = line.partition(b": ")
        if name == b"error" or (name == b"data" and value.strip() != b"[DONE]"):
            event = json.loads(value)
            yield {"error": event} if name == b"error" and "error" not in event else event


def has_content(event: dict[str, Any]) -> bool:
    if "choices" not in event:
        return bool(event.get("content"))
    return any((c.get("delta") or c).get("content") or c.get("text") for c in event["choices"])


class Client:
    """Sends requests and keeps their results."""

    def __init__(self, url: str, zero: float, models: tuple[str, ...] = ()) -> None:
        self.models = models
        self.zero = zero
        self.seen: list[Seen] = []
        self.clients = LoadClients(url)
        self.http = HttpClient(url)

    def now(self) -> float:
        return round(time.monotonic() - self.zero, 6)

    def post(self, kind: str, path: str, body: dict[str, Any] | bytes, *, cancel: str | None = None) -> Seen:
        """Send one request. ``cancel``: close the socket at the first content, or after a number of seconds."""
        seen = Seen(kind, self.now())
        self.seen.append(seen)
        seconds = float(cancel) if cancel and cancel != "content" else None
        request = LoadRequest(path, body, hang_up=seconds)
        received, rest = bytearray(), b""

        def on_event(chunk: bytes) -> bool:
            nonlocal rest
            received.extend(chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            for event in events(lines):
                seen.answered(event)
                if has_content(event) and seen.first_content is None:
                    seen.first_content = self.now()
                    if cancel == "content":
                        return True
            return False

        result = self.clients.send(request, on_event if request.streams else received.extend)
        seen.status = result.status
        if result.headers_at is not None:
            seen.headers = round(seen.sent + result.headers_at - result.sent_at, 6)
        if result.outcome == "cancelled":
            seen.outcome = "cancelled"
        elif received and not (request.streams and result.status == 200):
            seen.answered(json.loads(received))
        if result.outcome == "error" and seen.outcome == "ok":
            seen.outcome, seen.error = "error", result.error
        seen.end = self.now()
        return seen

    def completion(self, prompt: str, length: int, kind: str = "completion", **more: Any) -> Seen:
        cancel = more.pop("cancel", None)
        body = {"prompt": prompt, "n_predict": length, "ignore_eos": True, "cache_prompt": True, **more}
        return self.post(kind, "/completion", body, cancel=cancel)

    def chat(self, prompt: str, length: int, kind: str = "chat", **more: Any) -> Seen:
        cancel = more.pop("cancel", None)
        messages = [{"role": "user", "content": prompt}]
        body = {"messages": messages, "max_tokens": length, "ignore_eos": True, **more}
        return self.post(kind, "/v1/chat/completions", body, cancel=cancel)

    def metrics(self) -> dict[str, float]:
        """Return llama.cpp's own figures by name; for a router the sums over its models."""
        figures: dict[str, float] = {}
        for query in [f"?model={model}&autoload=false" for model in self.models] or [""]:
            text = self.http.request(f"/metrics{query}", total_s=120).data.decode()
            for line in text.splitlines():
                if line.startswith("llamacpp:"):
                    name, _, value = line.removeprefix("llamacpp:").rpartition(" ")
                    figures[name] = figures.get(name, 0.0) + float(value)
        return figures

    def wait_idle(self) -> None:
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            now = self.metrics()
            if not now.get("requests_processing") and not now.get("requests_deferred"):
                return
            time.sleep(0.25)
        raise TimeoutError("the server did not become idle")


def words(seed: int, length: int) -> str:
    source = random.Random(seed)
    return "".join(source.choice("abcdefghij klmnop") for _ in range(length))


def mixed(client: Client) -> None:
    """The fixed load of every build's recording."""
    shared = "Once upon a time there was a server which kept its cache. " + words(1, 40)
    client.completion(shared, 8)
    client.completion(shared + words(2, 20), 12, "completion-stream", stream=True)
    client.completion(shared, 8, "completion-repeated")
    client.completion(shared, 8, "completion-repeated")
    client.completion(shared, 8, "completion-uncached", cache_prompt=False)
    client.chat("Hello, who are you?", 10)
    client.chat("Hello, who are you?", 10, "chat-stream", stream=True, stream_options={"include_usage": True})
    client.completion(words(3, 30), 1, "completion-1")
    client.completion(words(4, 30), 0, "completion-0")
    client.chat("Two answers, please.", 6, "chat-n2", n=2)
    client.completion(words(5, 650), 9, "completion-long")
    client.completion(words(6, 3000), 9, "completion-overlong")
    client.chat(words(6, 3000), 9, "chat-overlong", stream=True)
    # These two are refused before they become a task.
    client.post("embeddings", "/v1/embeddings", {"input": "refused"}).outcome = "refused"
    client.post("broken", "/v1/chat/completions", b'{"messages": [').outcome = "refused"
    client.wait_idle()

    def one(number: int) -> None:
        prompt = shared[: 20 + number] + words(100 + number, 10 + number)
        length = 10 + 3 * (number % 9)
        call = client.chat if number % 2 else client.completion
        kind = "chat" if number % 2 else "completion"
        if number % 4 < 2:
            call(prompt, length, kind)
        else:
            call(prompt, length, kind + "-stream", stream=True)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(16)))
    client.wait_idle()

    with ThreadPoolExecutor(4) as pool:
        pool.submit(client.completion, words(7, 50), 1500, "cancelled-stream", stream=True, cancel="content")
        pool.submit(client.completion, words(8, 50), 1500, "cancelled", cancel="0.1")
    time.sleep(2.5)  # any result, such as of /metrics, delays llama.cpp's check of the socket by a second
    client.wait_idle()

    with ThreadPoolExecutor(4) as pool:
        for number in range(4):
            kind = "full-stream" if number % 2 else "full"
            pool.submit(client.completion, words(20 + number, 40), 900, kind, stream=bool(number % 2))
    client.wait_idle()
    client.completion(shared, 5, "completion-after-full")


def few(client: Client) -> None:
    """A few requests, for formats with much output."""
    client.completion("The quick brown fox", 5)
    client.chat("Hello?", 5, "chat-stream", stream=True)
    client.completion("The quick brown fox jumps", 5, "completion-repeated")
    client.completion(words(6, 3000), 9, "completion-overlong")
    with ThreadPoolExecutor(2) as pool:
        pool.submit(client.completion, words(7, 20), 1500, "cancelled-stream", stream=True, cancel="content")
        pool.submit(client.completion, words(8, 20), 6, stream=True)


def queued(client: Client) -> None:
    """All slots are busy for seconds; one queued request is cancelled, two get a slot."""
    with ThreadPoolExecutor(8) as pool:
        for number in range(4):
            pool.submit(client.completion, words(number, 30), 400)
        time.sleep(0.3)
        pool.submit(client.completion, words(10, 30), 8, "cancelled-queued", cancel="0.1")
        pool.submit(client.completion, words(11, 30), 8, "waited", stream=True)
        pool.submit(client.completion, words(12, 30), 8, "waited")


def unnoticed(client: Client) -> None:
    """A client without a stream disconnects: during another stream llama.cpp does not check its connection."""
    with ThreadPoolExecutor(2) as pool:
        pool.submit(client.completion, words(1, 30), 600, stream=True)
        pool.submit(client.completion, words(2, 30), 500, "cancelled-unnoticed", cancel="0.1")


def context_shift(client: Client) -> None:
    client.completion(words(1, 30), 600, "shifted", n_keep=4)
    client.completion(words(2, 30), 5)


def embeddings(client: Client) -> None:
    client.post("embeddings", "/v1/embeddings", {"input": "one text"})
    client.post("embeddings-3", "/v1/embeddings", {"input": ["first", "the second", "a third text"]})
    client.post("embeddings-overlong", "/v1/embeddings", {"input": words(1, 3000)})


def rerank(client: Client) -> None:
    documents = ["a panda is a bear", "hello", "it is an animal"]
    client.post("rerank", "/v1/rerank", {"query": "what is a panda?", "documents": documents})


def speculative(client: Client) -> None:
    loop = "abcdefgh " * 20
    for number in range(3):
        client.completion(loop + str(number), 120, "speculative", temperature=0, stream=number == 1)
    client.completion(words(3, 40), 8)


def slow(client: Client) -> None:
    """Prefill and decode of more than 3 seconds each, so that llama.cpp logs their progress."""
    with ThreadPoolExecutor(2) as pool:
        pool.submit(client.completion, words(1, 1900), 4, "slow-prefill")
        pool.submit(client.completion, words(2, 30), 400, "slow-decode", stream=True)


def killed(client: Client) -> None:
    """The caller kills the server while the last two run."""
    client.completion("The quick brown fox", 5)
    threads = [
        threading.Thread(target=client.completion, args=(words(n, 30), 1900, "killed"), kwargs={"stream": True})
        for n in range(2)
    ]
    for thread in threads:
        thread.start()
    while sum(seen.first_content is not None for seen in client.seen) < 2:
        time.sleep(0.005)


def routed(client: Client) -> None:
    for number, model in enumerate(ROUTED * 2):
        client.chat("Hello, router", 6, "chat-stream" if number > 1 else "chat", model=model, stream=number > 1)
    with ThreadPoolExecutor(4) as pool:
        for number in range(6):
            pool.submit(client.chat, words(number, 30), 20, model=ROUTED[number % 2])


SCENARIOS: dict[str, tuple[Callable[[Client], None], list[str]]] = {
    "mixed": (mixed, MIXED_FLAGS),
    "few": (few, MIXED_FLAGS),
    "queued": (queued, MIXED_FLAGS),
    "unnoticed": (unnoticed, MIXED_FLAGS),
    "context-shift": (context_shift, ["-c", "256", "-np", "1", "-t", "1", "--context-shift"]),
    "embeddings": (embeddings, ["-c", "2048", "--embeddings", "--pooling", "mean"]),
    "rerank": (rerank, ["-c", "2048", "--rerank"]),
    "speculative": (speculative, [*MIXED_FLAGS, "--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", "4"]),
    "slow": (slow, ["-c", "4096", "-ub", "64", "-b", "64", "-t", "1"]),
    "killed": (killed, ["-c", "4096", "-t", "1"]),
    "router": (routed, ["--models-dir", "models"]),
}
