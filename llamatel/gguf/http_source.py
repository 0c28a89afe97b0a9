"""A file at an HTTP URL; only the ranges that a header's reader requests are fetched."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from urllib.parse import urlsplit

from llamatel.errors import GGUFError, HttpError, ModelUnreachable, UsageError
from llamatel.inputs.address import parse_address
from llamatel.inputs.http import HttpClient, Stream

log = logging.getLogger(__name__)

FIRST_CHUNK = 256 << 10
"""Large enough for a header without its vocabulary. Each further chunk is twice as large, up to LAST_CHUNK."""

LAST_CHUNK = 4 << 20

CONNECT_S = 10.0
SILENCE_S = 20.0
"""Most seconds between two bytes."""
STEP_S = 20.0
SLOWEST = 32 << 10
"""A step may take STEP_S plus a second per this many bytes: reading from a slower server is an error."""
TOTAL_S = 600.0
"""Seconds for the whole header of a file."""
REDIRECTS = 5
_TRANSIENT = frozenset({429, 502, 503, 504})
_PAUSES = (0.5, 1.0)
"""Seconds before a request is sent again after a transient status."""

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")

Explain = Callable[[int, Mapping[str, str]], "str | None"]
"""Maps status and headers of a failed response to an explanation, or None for the plain text."""

Progress = Callable[[int], None]
"""Called with the number of bytes received in each step."""


class UrlSource:
    """A file at ``url``; a context manager. See ByteSource.

    Further chunks are requested from the URL that redirects led to, without ``headers`` if it is another origin's
    (they may hold a token). A server without range requests is read as a stream, which is cut off when the header
    ends. Reading goes forward only. ``fetched`` counts the bytes received. Raises GGUFError.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str | None = None,
        headers: Mapping[str, str] | None = None,
        explain: Explain | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.name = name or url
        self.fetched = 0
        self.requests = 0
        self._headers = dict(headers or {})
        self._explain = explain
        self._progress = progress
        self._chunk = FIRST_CHUNK
        self._stream: Stream | None = None
        self._stream_at = 0
        self._ends_at = time.monotonic() + TOTAL_S
        self._client, self._path = self._server(url)
        try:
            self._first, self.size = self._range(0, FIRST_CHUNK)
        except BaseException:
            self._client.close()
            raise

    def __enter__(self) -> UrlSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()
        self._client.close()
        log.info("%s: %d of %d bytes fetched, in %d requests", self.name, self.fetched, self.size, self.requests)

    def read(self, offset: int, n_bytes: int) -> bytes:
        """See ByteSource."""
        if offset + n_bytes <= len(self._first):
            return self._first[offset:]
        self._first = b""
        self._chunk = min(2 * self._chunk, LAST_CHUNK)
        wanted = min(max(n_bytes, self._chunk), self.size - offset)
        if self._stream is not None:
            return self._read_stream(self._stream, offset, wanted)
        data, size = self._range(offset, wanted)
        if size != self.size:
            raise GGUFError(f"it changed while it was read ({self.size} bytes, then {size})", path=self.name)
        return data

    def _server(self, url: str) -> tuple[HttpClient, str]:
        """A client of the URL's server, and the path there."""
        try:
            parts = urlsplit(url)
            client = HttpClient(parse_address(f"{parts.scheme}://{parts.netloc}"), use_proxy=True)
        except (UsageError, ValueError) as error:
            raise ModelUnreachable(f"cannot be fetched: {error}", path=self.name) from error
        return client, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    def _range(self, offset: int, n_bytes: int) -> tuple[bytes, int]:
        """Bytes, and the whole file's size."""
        for pause in (*_PAUSES, None):
            try:
                stream = self._open(STEP_S + n_bytes / SLOWEST, f"bytes={offset}-{offset + n_bytes - 1}")
                if stream.status in _TRANSIENT and pause is not None:
                    stream.close()
                    time.sleep(pause)
                    continue
                return self._response(stream, offset, n_bytes)
            except HttpError as error:
                raise ModelUnreachable(f"cannot be fetched: {error}", path=self.name) from error
        raise AssertionError  # the last pause is None

    def _open(self, seconds: float, bytes_range: str | None = None) -> Stream:
        self.requests += 1
        more = {} if bytes_range is None else {"Range": bytes_range}
        return self._client.open(
            self._path, read_s=SILENCE_S, total_s=self._left(seconds), connect_s=CONNECT_S,
            headers={**self._headers, **more}, redirects=REDIRECTS,
        )  # fmt: skip

    def _left(self, seconds: float) -> float:
        """Seconds that a step may take; at most what is left of TOTAL_S. Raises HttpError where that is nothing."""
        left = self._ends_at - time.monotonic()
        if left <= 0:
            raise HttpError("timed out", kind="timeout")
        return min(seconds, left)

    def _response(self, stream: Stream, offset: int, n_bytes: int) -> tuple[bytes, int]:
        try:
            if stream.status == 200 and offset == 0:
                self._follow(stream)
                return self._start_stream()
            found = _CONTENT_RANGE.fullmatch(stream.headers.get("Content-Range", ""))
            if stream.status == 416 and stream.headers.get("Content-Range") == "bytes */0":
                return b"", 0  # an empty file has no first byte
            if stream.status != 206 or found is None or int(found[1]) != offset:
                raise GGUFError(self._refusal(stream), path=self.name)
            data = self._receive(stream, n_bytes)
            stream.read1(1)  # the end of the body, so that the connection is kept
            self._follow(stream)
            return data, int(found[3])
        finally:
            stream.close()

    def _receive(self, stream: Stream, n_bytes: int) -> bytes:
        """At most ``n_bytes`` of a body of any length. Raises HttpError, also where they arrive too slowly."""
        ends_at = time.monotonic() + self._left(STEP_S + n_bytes / SLOWEST)
        parts: list[bytes] = []
        missing = n_bytes
        while missing and (part := stream.read1(min(missing, 64 << 10))):
            parts.append(part)
            missing -= len(part)
            self.fetched += len(part)
            if self._progress is not None:
                self._progress(len(part))
            if missing and time.monotonic() > ends_at:
                stream.close()
                raise HttpError("it sends too slowly", kind="timeout")
            if len(parts) > 4096:
                parts = [b"".join(parts)]
        return b"".join(parts)

    def _start_stream(self) -> tuple[bytes, int]:
        """Read the first chunk from a server without range requests; leave the rest unread."""
        stream = self._open(TOTAL_S)
        length = stream.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]{1,18}", length):
            stream.close()
            raise GGUFError("the server sends no size and has no range requests", path=self.name)
        self._stream = stream
        data = self._receive(stream, min(FIRST_CHUNK, int(length)))
        self._stream_at = len(data)
        return data, int(length)

    def _read_stream(self, stream: Stream, offset: int, n_bytes: int) -> bytes:
        try:
            while self._stream_at < offset:
                passed = len(self._receive(stream, min(offset - self._stream_at, LAST_CHUNK)))
                if not passed:
                    return b""
                self._stream_at += passed
            data = self._receive(stream, n_bytes)
            self._stream_at += len(data)
        except HttpError as error:
            raise ModelUnreachable(f"cannot be fetched: {error}", path=self.name) from error
        return data

    def _follow(self, stream: Stream) -> None:
        """Send later requests to the target of the redirects."""
        if stream.url == self._client.address.origin + self._path:
            return
        client, self._path = self._server(stream.url)
        if client.address.origin == self._client.address.origin:
            client.close()
            return
        self._headers = {}
        self._client.close()
        self._client = client

    def _refusal(self, stream: Stream) -> str:
        explained = self._explain(stream.status, stream.headers) if self._explain is not None else None
        if explained is not None:
            return explained
        if stream.status == 206:
            return "the server's response is not the range that was requested"
        if stream.status == 404:
            return "the server has no such file (404)"
        if stream.status in (401, 403):
            return f"the server denies access ({stream.status})"
        return f"the server answered {stream.status}"
