"""Clients that send load to a llama.cpp server, for the demo, tests and benchmarks.

They use little CPU, so they measure the server even on a small machine: only a stream's last events are decoded.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from llamatel.errors import HttpError
from llamatel.inputs.http import HttpClient, Stream

_CONNECT_S = 30.0
# llama.cpp closes kept connections after some responses; a request sent at that moment would be lost.
_HEADERS = {"Content-Type": "application/json", "Connection": "close"}


@dataclass(frozen=True)
class LoadRequest:
    """One request to send."""

    path: str
    body: dict[str, Any] | bytes
    hang_up: float | None = None
    """Disconnect after this many events of a stream, or after this many seconds without a stream."""

    @property
    def streams(self) -> bool:
        """Whether the response is a stream of server-sent events."""
        return isinstance(self.body, dict) and bool(self.body.get("stream"))


R = TypeVar("R", bound=LoadRequest)


@dataclass
class LoadResult(Generic[R]):
    """The response as its client received it. Times are Unix seconds."""

    request: R
    sent_at: float
    headers_at: float | None = None
    first_at: float | None = None
    """When the first event of a stream arrived."""
    ended_at: float = 0.0
    outcome: str = "error"
    """ok, cancelled, error, refused (not implemented by this server), or unsent after ``LoadClients.stop``."""
    status: int | None = None
    error: str | None = None
    timings: list[dict[str, Any]] = field(default_factory=list)
    """llama.cpp's ``timings``: one for each choice of a stream, otherwise one for all choices."""

    @property
    def seconds(self) -> float:
        """From sending the request to the end of the response."""
        return self.ended_at - self.sent_at


class LoadClients:
    """Clients of one server, each request on its own connection. Thread-safe, a context manager."""

    def __init__(self, base_url: str, *, timeout_s: float = 120.0) -> None:
        self._timeout_s = timeout_s
        self._http = HttpClient(base_url)
        self.stop = threading.Event()
        """Event that stops sending and disconnects streams."""

    def send_all(
        self, requests: Sequence[R], *, at_once: int, burst: int = 0, pause_s: float = 0.0
    ) -> list[LoadResult[R]]:
        """Send requests, at most ``at_once`` at a time; returns results in the order of the requests.

        ``burst``: after this many, sending pauses for ``pause_s``.
        """
        waiting: queue.SimpleQueue[tuple[R, Future[LoadResult[R]]] | None] = queue.SimpleQueue()

        def client() -> None:
            while (next_one := waiting.get()) is not None:
                request, future = next_one
                try:
                    future.set_result(self.send(request))
                except BaseException as error:  # noqa: BLE001 - raised where the result is read
                    future.set_exception(error)

        # Daemons: an interrupted demo does not wait for responses of a slow model.
        for number in range(at_once):
            threading.Thread(target=client, name=f"load-client-{number}", daemon=True).start()
        futures: list[Future[LoadResult[R]]] = []
        try:
            for number, request in enumerate(requests):
                if burst and number and number % burst == 0:
                    self.stop.wait(pause_s)
                futures.append(Future())
                waiting.put((request, futures[-1]))
            return [future.result() for future in futures]
        finally:
            for _ in range(at_once):
                waiting.put(None)

    def send(self, request: R, on_data: Callable[[bytes], bool | None] | None = None) -> LoadResult[R]:
        """Send one request and wait for its end.

        ``on_data`` gets the body as it arrives; the client disconnects where it returns True.
        """
        result = LoadResult(request, time.time())
        if self.stop.is_set():
            result.outcome = "unsent"
            return result
        body = request.body if isinstance(request.body, bytes) else json.dumps(request.body).encode()
        patience_s = None if request.streams else request.hang_up
        try:
            with self._http.open(
                request.path, body=body, headers=_HEADERS, connect_s=_CONNECT_S, read_s=patience_s or self._timeout_s
            ) as response:
                result.headers_at, result.status = time.time(), response.status
                self._receive(response, result, on_data)
        except HttpError as error:
            gave_up = patience_s is not None and error.kind == "timeout"
            result.outcome, result.error = "cancelled" if gave_up else "error", str(error)
        result.ended_at = time.time()
        return result

    def _receive(
        self, response: Stream, result: LoadResult[Any], on_data: Callable[[bytes], bool | None] | None
    ) -> None:
        streams = result.request.streams and response.status == 200
        last_event = result.request.hang_up if streams else None
        body, events = bytearray(), 0
        while chunk := response.read1():
            body += chunk
            events += chunk.count(b"data: ")
            if result.first_at is None and events:
                result.first_at = time.time()
            hangs_up = on_data is not None and on_data(chunk)
            if hangs_up or self.stop.is_set() or (last_event is not None and events >= last_event):
                result.outcome = "cancelled"
                return
        (_read_stream if streams else _read_document)(bytes(body), result)

    def close(self) -> None:
        """Close idle connections."""
        self._http.close()

    def __enter__(self) -> LoadClients:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _read_stream(body: bytes, result: LoadResult[Any]) -> None:
    result.outcome = "ok"
    for line in body.splitlines():
        if line.startswith(b"data: {") and b'"timings":' in line:
            result.timings.append(json.loads(line[6:])["timings"])
        elif line.startswith((b"error: ", b'data: {"error"')):
            result.outcome, result.error = "error", line.decode()


def _read_document(body: bytes, result: LoadResult[Any]) -> None:
    document = json.loads(body)
    if result.status == 200:
        result.outcome = "ok"
        result.timings = [document["timings"]] if "timings" in document else []
        return
    result.outcome = "refused" if result.status == 501 else "error"
    result.error = str(document["error"].get("message"))
