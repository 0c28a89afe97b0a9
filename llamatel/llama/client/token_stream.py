"""Streamed responses: server-sent events as results."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any

from llamatel.errors import HttpError, InvalidResponse, RequestError
from llamatel.inputs import http
from llamatel.inputs.documents import parse_json
from llamatel.llama.client import answer_usage
from llamatel.llama.client.client_call import Call
from llamatel.llama.client.request_errors import server_error
from llamatel.llama.client.result import Result

_MAX_LINE = 64 << 20
"""Bytes; the last event of llama.cpp's own form repeats the whole prompt."""


class EventLines:
    """Splits bytes into the data of server-sent events; llama.cpp writes one line of data each."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The data of the events that end in ``data``. Raises ValueError for a line that is too long."""
        *lines, rest = data.split(b"\n")
        if lines:
            lines[0] = b"".join((*self._parts, lines[0]))
            self._parts, self._size = [], 0
        if rest:
            self._parts.append(rest)
            self._size += len(rest)
            if self._size > _MAX_LINE:
                raise ValueError("a line is too long")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()
            elif line.startswith(b"error:"):  # builds of 2024
                yield b'{"error":' + line[6:].strip() + b"}"


class Stream:
    """A streamed response: an iterator and a context manager.

    Closing it, leaving its block, or dropping it ends the generation in the server; ``close`` may be called twice, and
    from another thread. ``timings`` are known at its end.
    """

    def __init__(
        self,
        response: http.Stream,
        call: Call,
        result: Callable[[Mapping[str, Any]], Any],
        translate: Callable[[HttpError], RequestError],
    ) -> None:
        self._response = response
        self._call = call
        self._result = result
        self._translate = translate
        self._lines = EventLines()
        self._pieces: list[Any] = []
        self._done = False

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Any:
        while not self._pieces:
            if self._done:
                raise StopIteration
            try:
                self._read()
            except BaseException as error:
                if self._done:  # closed by another thread
                    raise StopIteration from None
                self._close(error)
                raise
        return self._pieces.pop()

    @property
    def timings(self) -> Result | None:
        """llama.cpp's measurements, at the end."""
        found = self._call.answer.get("timings")
        return None if found is None else Result(found)

    def close(self) -> None:
        """Close the stream; no effect where the response is complete."""
        self._close(None)

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _read(self) -> None:
        try:
            data = self._response.read1()
        except HttpError as error:
            raise self._translate(error) from error
        if not data:
            if self._call.last_chunk_at is None:
                raise InvalidResponse("the stream ended without a single event", kind="bad_answer")
            self._done = True
            self._call.finish()
            return
        now = time.time()
        try:
            pieces = [self._piece(line, now) for line in self._lines.feed(data) if line != b"[DONE]"]
        except (ValueError, TypeError) as error:
            text = f"an event of the stream is not what llama.cpp sends: {error}"
            raise InvalidResponse(text, kind="bad_answer") from error
        self._pieces = pieces[::-1]

    def _piece(self, line: bytes, now: float) -> Any:
        document = parse_json(line, largest=_MAX_LINE, most_values=_MAX_LINE)
        if not isinstance(document, Mapping):
            raise TypeError("no JSON object")
        if isinstance(document.get("error"), Mapping):
            error = server_error(document, None, self._response.url)
            self._call.reason, self._call.status = str(document["error"].get("message")), error.status
            raise error
        self._call.chunk(now, token=answer_usage.has_token(document))
        self._call.document(document)
        return self._result(document)

    def _close(self, error: BaseException | None) -> None:
        if not self._done:
            self._done = True
            self._pieces = []
            self._response.abort()
            self._response.close()
            if isinstance(error, RequestError):
                self._call.error_type = error.kind
            self._call.finish(error, cancelled=error is None)
