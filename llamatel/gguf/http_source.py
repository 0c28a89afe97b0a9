"""A file behind an HTTP address, of which only the ranges are fetched that a header's reader asks for."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from llamatel.errors import GGUFError, ModelUnreachable

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager

log = logging.getLogger(__name__)

FIRST_CHUNK = 256 << 10
"""Holds a header without its vocabulary. Each further chunk is twice as large, up to LAST_CHUNK."""

LAST_CHUNK = 4 << 20

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")

Explain = Callable[[int, Mapping[str, str]], "str | None"]
"""From status and headers of an answer that is no success: what it means, or None for the plain text."""

Progress = Callable[[int], None]
"""Called with the number of bytes of each step that came."""


class UrlSource:
    """A file behind ``url``; a context manager. See ByteSource.

    The address that redirects lead to is asked for the further chunks, without ``headers`` if it is another host's
    (they may hold a token). A server that does not do ranges is read as a stream, which is cut off when the header
    ends. Reading goes forward only. ``fetched`` counts the bytes that came. Raises GGUFError.
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
        self._url = url
        self._headers = dict(headers or {})
        self._explain = explain
        self._progress = progress
        self._chunk = FIRST_CHUNK
        self._stream: BaseHTTPResponse | None = None
        self._stream_at = 0
        self._pool = _pool(url)
        try:
            self._first, self.size = self._range(0, FIRST_CHUNK)
        except BaseException:
            self._pool.clear()
            raise

    def __enter__(self) -> UrlSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()
        self._pool.clear()
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

    def _range(self, offset: int, n_bytes: int) -> tuple[bytes, int]:
        """Bytes, and the whole file's size."""
        from urllib3.exceptions import HTTPError, LocationParseError

        try:
            response = self._pool.request(
                "GET",
                self._url,
                headers={**self._headers, "Range": f"bytes={offset}-{offset + n_bytes - 1}"},
                preload_content=False,
            )
            self.requests += 1
            self._follow(response)
            if response.status == 200 and offset == 0:
                return self._start_stream(response)
            return self._partial(response, offset, n_bytes)
        except (HTTPError, LocationParseError, OSError) as error:
            raise ModelUnreachable(f"cannot be fetched: {_reason(error)}", path=self.name) from error

    def _partial(self, response: BaseHTTPResponse, offset: int, n_bytes: int) -> tuple[bytes, int]:
        try:
            found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if response.status == 416 and response.headers.get("Content-Range") == "bytes */0":
                return b"", 0  # an empty file has no first byte
            if response.status != 206 or found is None or int(found[1]) != offset:
                raise GGUFError(self._refusal(response), path=self.name)
            return self._take(response, n_bytes), int(found[3])
        finally:
            if response.status == 206 and response.length_remaining == 0:
                response.drain_conn()
                response.release_conn()
            else:
                response.close()

    def _take(self, response: BaseHTTPResponse, n_bytes: int) -> bytes:
        """At most so many bytes of an answer, whatever it says of its length."""
        parts: list[bytes] = []
        missing = n_bytes
        while missing and (part := response.read(min(missing, 64 << 10))):
            parts.append(part)
            missing -= len(part)
            self.fetched += len(part)
            if self._progress is not None:
                self._progress(len(part))
        return b"".join(parts)

    def _start_stream(self, response: BaseHTTPResponse) -> tuple[bytes, int]:
        """The server sends all of it: take the first chunk, leave the rest in its pipe."""
        length = response.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]{1,18}", length):
            response.close()
            raise GGUFError("the server tells no size and does no ranges", path=self.name)
        self._stream = response
        data = self._take(response, min(FIRST_CHUNK, int(length)))
        self._stream_at = len(data)
        return data, int(length)

    def _read_stream(self, stream: BaseHTTPResponse, offset: int, n_bytes: int) -> bytes:
        from urllib3.exceptions import HTTPError

        try:
            while self._stream_at < offset:
                passed = len(self._take(stream, min(offset - self._stream_at, 64 << 10)))
                if not passed:
                    return b""
                self._stream_at += passed
            data = self._take(stream, n_bytes)
            self._stream_at += len(data)
        except (HTTPError, OSError) as error:
            raise GGUFError(f"cannot be fetched: {_reason(error)}", path=self.name) from error
        return data

    def _follow(self, response: BaseHTTPResponse) -> None:
        """Ask where the redirects led from now on."""
        final = self._url
        for step in response.retries.history if response.retries is not None else ():
            if step.redirect_location:
                final = urljoin(final, step.redirect_location)
        if urlsplit(final)[:2] != urlsplit(self._url)[:2]:
            self._headers = {}
        self._url = final

    def _refusal(self, response: BaseHTTPResponse) -> str:
        explained = self._explain(response.status, response.headers) if self._explain is not None else None
        if explained is not None:
            return explained
        if response.status == 206:
            return "the server's answer is not the range that was asked for"
        if response.status == 404:
            return "the server has no such file (404)"
        if response.status in (401, 403):
            return f"the server does not give it to us ({response.status})"
        return f"the server answered {response.status} {response.reason or ''}".rstrip()


def _pool(url: str) -> PoolManager:
    import urllib3

    host = urlsplit(url).hostname or ""
    proxy = None if proxy_bypass(host) else getproxies().get(urlsplit(url).scheme)
    timeout = urllib3.Timeout(connect=10, read=30)
    retries = urllib3.Retry(
        connect=0,  # urllib3 would log each attempt
        read=0,
        redirect=5,
        status=2,
        status_forcelist=(429, 502, 503, 504),
        backoff_factor=0.5,
        raise_on_status=False,
        respect_retry_after_header=False,  # which may name minutes
    )
    if proxy:
        return urllib3.ProxyManager(proxy, timeout=timeout, retries=retries)
    return urllib3.PoolManager(timeout=timeout, retries=retries)


def _reason(error: BaseException) -> str:
    """One line for people, without urllib3's object addresses."""
    inner: object = getattr(error, "reason", None) or error
    text = str(inner).split(">: ")[-1].split("): ")[-1].strip()
    return " ".join(text.split()) or type(error).__name__
