"""Streamed answers: server-sent events as results, one by one."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Generic, TypeVar

import urllib3
from urllib3.exceptions import HTTPError

from llamatel.errors import InvalidResponse
from llamatel.llama.client import answer_usage as facts
from llamatel.llama.client.client_call import Call
from llamatel.llama.client.model_results import Timings
from llamatel.llama.client.result import decode
from llamatel.llama.client.transport import Transport, failure

T = TypeVar("T")

_LONGEST_LINE = 64 * 1024 * 1024
"""Bytes; the last event of llama.cpp's own form repeats the whole prompt."""


class EventLines:
    """Bytes to the data of server-sent events. llama.cpp puts one line of data in each."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The data of the events that end in ``data``. Raises ValueError for a line without end."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LONGEST_LINE:
            raise ValueError("a line without end")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()
            elif line.startswith(b"error:"):  # an older way of llama.cpp to tell of an error
                yield b'{"error":' + line[6:].strip() + b"}"


class Pieces(Generic[T]):
    """The pieces of one answer, read as they come. For one reader; ``close`` may come from any thread."""

    def __init__(self, transport: Transport, call: Call, response: urllib3.BaseHTTPResponse) -> None:
        self.call = call
        self._transport = transport
        self._response = response
        self._lines = EventLines()
        self._waiting: list[T] = []
        self._done = False

    def next(self) -> T | None:
        """The next piece; None at the end. Raises RequestError."""
        while not self._waiting:
            if self._done:
                return None
            try:
                self._read()
            except BaseException as error:
                self.close(error)
                raise
        return self._waiting.pop()

    def waiting(self) -> T | None:
        """A piece that is there already; None where ``next`` has to wait for one."""
        return self._waiting.pop() if self._waiting else None

    def _read(self) -> None:
        """Wait for more, and parse it."""
        try:
            data = self._response.read1()
        except (HTTPError, OSError, ValueError, AttributeError) as error:
            # ValueError: http.client found the end where a chunk's length should be. AttributeError: another thread has
            # closed the answer meanwhile.
            if self._done or self.call.over:
                self._done = True
                return
            broken = self._transport.broken(self.call, error)
            raise broken from error
        if not data:
            self._finish()
            return
        now = time.time()
        try:
            pieces = [self._piece(line, now) for line in self._lines.feed(data)]
        except (ValueError, TypeError, RecursionError) as error:
            raise InvalidResponse(
                f"an event of the stream is not what llama.cpp sends: {error}", kind="bad_answer"
            ) from error
        self._waiting = [piece for piece in pieces if piece is not None][::-1]

    def _piece(self, line: bytes, now: float) -> T | None:
        if line == b"[DONE]":
            return None
        document = json.loads(line)
        if not isinstance(document, Mapping):
            raise TypeError("no JSON object")
        said = document.get("error")
        if isinstance(said, Mapping):
            raise failure(dict(said), None, self.call.request.path)
        self.call.chunk(now, token=facts.has_token(document))
        facts.take(self.call.answer, document)
        if self.call.output is not None:
            self.call.output.append(document)
        return self.call.request.decode(document)  # type: ignore[no-any-return]

    def _finish(self) -> None:
        self._done = True
        self._response.release_conn()
        if self.call.last_chunk_at is None:
            error = InvalidResponse("the stream ended without a single event", kind="bad_answer")
            self.call.end(error)
            raise error
        self.call.end()

    def close(self, error: BaseException | None = None) -> None:
        """Go away; llama.cpp ends the generation. Nothing happens where the answer was complete."""
        if not self._done:
            self._done = True
            self._waiting = []
            self.call.cancel()
            self._response.close()
            self.call.end(error, cancelled=error is None)


class Stream(Generic[T]):
    """An answer that comes piece by piece: an iterator, and a context manager.

    Closing it, leaving its block, or dropping it ends the generation in the server. ``usage`` and ``timings`` are known
    once it has come to its end.
    """

    def __init__(self, pieces: Pieces[T]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Stream[T]:
        return self

    def __next__(self) -> T:
        piece = self._pieces.next()
        if piece is None:
            raise StopIteration
        return piece

    def close(self) -> None:
        """End it; may be called twice, and from another thread."""
        self._pieces.close()

    @property
    def timings(self) -> Timings | None:
        """llama.cpp's measurements, at the end."""
        return timings_of(self._pieces.call)

    def __enter__(self) -> Stream[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self._pieces.close()


def timings_of(call: Call) -> Timings | None:
    """The timings of a call, where it has any."""
    found: Any = call.answer.get("timings")
    return None if found is None else decode(Timings, found)
