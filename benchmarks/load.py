"""The clients, in a process of their own: a closed loop over kept-alive connections, as cheap as Python allows.

Run by path (``python -I -S load.py '{...}'``, the arguments of ``run`` as JSON); prints a JSON object. One thread, one
epoll, request bytes made beforehand: some 0.1 ms of CPU a request, out of the cores that the server and llamatel share.
Not ``llamatel.cli.load_clients``, whose imports and threads would take more of those cores than what is measured.
"""

from __future__ import annotations

import json
import random
import resource
import selectors
import socket
import string
import sys
import time
from typing import Any

_SYSTEM = "You are a patient teacher. Answer in short sentences. "
_BODIES = 512
_GIVE_UP_S = 60.0


class _Connection:
    """One client: sends, waits for the whole answer, sends the next."""

    def __init__(self, address: tuple[str, int], selector: selectors.BaseSelector, *, stream: bool) -> None:
        self._address = address
        self._selector = selector
        self._stream = stream
        self._length: int | None = None
        self.answer = b""
        self.sent_at = 0.0
        self.first_at: float | None = None
        """When the first event of a stream came."""
        self._connect()

    def _connect(self) -> None:
        self._socket = socket.create_connection(self._address, timeout=5)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(self._socket, selectors.EVENT_READ, self)

    def close(self) -> None:
        self._selector.unregister(self._socket)
        self._socket.close()

    def reopen(self) -> None:
        self.close()
        self._connect()

    def send(self, request: bytes) -> None:
        self.answer, self._length, self.first_at = b"", None, None
        self.sent_at = time.perf_counter()
        self._socket.sendall(request)

    def receive(self) -> bool:
        """True when the answer is whole. Raises ConnectionError if the server hung up."""
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionError("the server hung up")
        self.answer += data
        if self._stream:
            if self.first_at is None and b"data: " in self.answer:
                self.first_at = time.perf_counter()
            return self.answer.endswith(b"\r\n0\r\n\r\n")
        if self._length is None:
            end = self.answer.find(b"\r\n\r\n")
            if end < 0:
                return False
            head = self.answer[:end].lower()
            start = head.index(b"content-length:") + len(b"content-length:")
            self._length = end + 4 + int(head[start:].split(b"\r\n", 1)[0])
        return len(self.answer) >= self._length


def requests(host: str, port: int, *, tokens: int, prompt: int, seed: int, stream: bool = False) -> list[bytes]:
    """The bytes of requests: chat completions with a common beginning and ``prompt`` letters that differ."""
    letters = random.Random(seed)
    made = []
    for _ in range(_BODIES):
        question = "".join(letters.choices(string.ascii_lowercase + " ", k=prompt))
        messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": question}]
        body = json.dumps({"messages": messages, "max_tokens": tokens, "stream": stream}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        made.append(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    return made


def run(
    *,
    host: str,
    port: int,
    connections: int,
    count: int,
    tokens: int,
    prompt: int = 48,
    seed: int = 0,
    stream: bool = False,
) -> dict[str, Any]:
    """Send ``count`` requests over ``connections``; seconds, each request's latency, and what could go wrong.

    With ``stream`` answers come as events, and the time to the first of each is reported too.
    """
    bodies = requests(host, port, tokens=tokens, prompt=prompt, seed=seed, stream=stream)
    selector = selectors.DefaultSelector()
    clients = [_Connection((host, port), selector, stream=stream) for _ in range(min(connections, count))]
    latencies: list[float] = []
    first_s: list[float] = []
    failed = done = sent = 0
    started = time.perf_counter()
    for client in clients:
        client.send(bodies[sent % _BODIES])
        sent += 1
    while done < count:
        ready = selector.select(_GIVE_UP_S)
        if not ready:
            raise TimeoutError(f"no answer for {_GIVE_UP_S:g} s")
        for key, _ in ready:
            client = key.data
            try:
                if not client.receive():
                    continue
                latencies.append(time.perf_counter() - client.sent_at)
                if client.first_at is not None:
                    first_s.append(client.first_at - client.sent_at)
                good = client.answer.startswith(b"HTTP/1.1 200")
                hangs_up = stream or b"\r\nConnection: close" in client.answer[:1000]  # a stream is its connection
            except ConnectionError:
                good, hangs_up = False, True
            done += 1
            failed += not good
            if sent < count:
                if hangs_up:  # llama.cpp ends a kept-alive connection after so many requests
                    client.reopen()
                client.send(bodies[sent % _BODIES])
                sent += 1
            else:
                client.close()
    seconds = time.perf_counter() - started
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": seconds,
        "latencies_s": latencies,
        "first_s": first_s,
        "failed": failed,
        "cpu_s": usage.ru_utime + usage.ru_stime,
    }


if __name__ == "__main__":
    json.dump(run(**json.loads(sys.argv[1])), sys.stdout)
