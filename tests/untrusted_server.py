"""A stand-in for an untrusted server: sends any bytes, for any time, and counts the bytes sent."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping

Bytes = bytes | Callable[[], Iterable[bytes]]


class UntrustedServer:
    """Sends one response per connection, chosen by path."""

    def __init__(self, answers: Mapping[str, Bytes]) -> None:
        self.answers = dict(answers)
        self.requests: list[bytes] = []
        """The heads of the received requests."""
        self.sent = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._closed = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                part = connection.recv(65536)
                if not part:
                    return
                head += part
            self.requests.append(head)
            path = head.split(b" ")[1].decode().partition("?")[0]
            answer = self.answers.get(path, http(b"", "404 Not Found"))
            for piece in (answer,) if isinstance(answer, bytes) else answer():
                connection.sendall(piece)
                self.sent += len(piece)

    def drip(self, first: bytes, piece: bytes) -> Callable[[], Iterator[bytes]]:
        """Return a response that sends ``first``, then ``piece`` ten times a second until the server is closed."""

        def pieces() -> Iterator[bytes]:
            yield first
            while not self._closed.wait(0.1):
                yield piece

        return pieces

    def close(self) -> None:
        self._closed.set()
        # Otherwise a thread blocked in accept() keeps the port.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def http(body: object, status: str = "200 OK", more: str = "") -> bytes:
    """Return an HTTP response with bytes, or with a document as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(data)}\r\n{more}\r\n".encode() + data


def usual_responses(**instead: Bytes) -> dict[str, Bytes]:
    """Return the responses of a busy llama.cpp by path; ``instead`` replaces some (names without the slash)."""
    answers: dict[str, Bytes] = {
        "/health": http({"status": "ok"}),
        "/props": http({"build_info": "b1", "total_slots": 1}),
        "/v1/models": http({"data": [{"id": "m.gguf", "meta": {"n_ctx_train": 4096}}]}),
        "/metrics": http(b"llamacpp:prompt_tokens_total 7\nllamacpp:requests_processing 1\n"),
        "/slots": http([{"id": 0, "is_processing": True, "id_task": 1, "n_ctx": 512, "n_prompt_tokens": 3}]),
    }
    return answers | {f"/{path}": answer for path, answer in instead.items()}
