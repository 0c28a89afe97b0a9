"""Outgoing HTTP: one client for all requests that llamatel sends, and one exception that its callers translate.

Each request is bounded: connecting, silence and the whole exchange in time, the body in size, a JSON body in depth.
Redirects are followed only on request, and never with credentials to another origin. Proxy variables of the environment
apply only where the caller wants them, and never to loopback. Nothing here is traced by an instrumentation of urllib3,
which hooks its connection pools: the connections are kept here.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urljoin, urlsplit

from llamatel.errors import HttpError, UsageError
from llamatel.inputs.address import DEFAULT_PORTS, UNQUOTED, Address, parse_address
from llamatel.inputs.credentials import check_api_key
from llamatel.inputs.documents import LARGEST, parse_json
from llamatel.inputs.http_connections import new_connection
from llamatel.inputs.http_errors import http_error
from llamatel.inputs.http_response import HttpResponse
from llamatel.inputs.rotated_files import RotatedFiles, current

if TYPE_CHECKING:
    from urllib3.connection import HTTPConnection

CONNECT_S = 5.0
_CHUNK = 1 << 16
_STALE_S = 0.25
"""A kept connection that the server closed fails within this time; after it, the server may be processing."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_AGENT = "llamatel"
_WITHOUT_SECRETS = frozenset({"accept", "range", "user-agent"})
"""Headers that are also sent to another origin."""


@dataclass(frozen=True, slots=True)
class _Exchange:
    """What a request sends and how long it may take; see ``HttpClient.open``."""

    method: str
    body: bytes | None
    headers: Mapping[str, str]
    read_s: float | None
    connect_s: float
    deadline: float | None
    sending: Callable[[socket.socket], object] | None

    def left(self, seconds: float | None) -> float | None:
        """Seconds that the next step may take. Raises TimeoutError."""
        if self.deadline is None:
            return seconds
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left if seconds is None else min(left, seconds)


@dataclass(frozen=True, slots=True)
class Response:
    """A whole response, of any status."""

    status: int
    headers: Mapping[str, str]
    """Without regard to case."""
    data: bytes
    url: str
    """Where it came from, after redirects."""

    def json(self) -> Any:
        """Its document. Raises InvalidDocument, a ValueError."""
        return parse_json(self.data, largest=max(LARGEST, len(self.data)))


class Stream:
    """A response whose body is read by the caller; a context manager. For one reader; ``abort`` from any thread.

    ``status``, ``headers`` and ``url`` as in Response.
    """

    def __init__(
        self,
        response: HttpResponse,
        connection: HTTPConnection,
        sock: socket.socket,
        url: str,
        keep: Callable[[HTTPConnection], None],
    ) -> None:
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers
        self.url = url
        self._response = response
        self._connection = connection
        self._sock = sock
        self._keep = keep
        self._open = True

    def read(self, n_bytes: int) -> bytes:
        """This many bytes, fewer at the end of the body, b"" after it. Raises HttpError, also for a truncated body."""
        return self._read(self._response.read, n_bytes)

    def read1(self, n_bytes: int = _CHUNK) -> bytes:
        """The bytes that have arrived, at least one; b"" at the end of the body. Raises HttpError."""
        return self._read(self._response.read1, n_bytes)

    def _read(self, read: Callable[[int], bytes], n_bytes: int) -> bytes:
        if not self._open:
            return b""
        try:
            data = read(n_bytes) if n_bytes else b""
        except BaseException as error:
            self.close()
            # AttributeError: the body was closed by another thread in the meantime.
            if isinstance(error, (http.client.HTTPException, OSError, ValueError, AttributeError)):
                raise http_error(error, "broken", self.url, self.status) from error
            raise
        if not data and n_bytes:
            self._open = False
            self._response.close()
            if self._connection.sock is not None:
                self._keep(self._connection)
        return data

    def read_all(self, largest: int = LARGEST) -> bytes:
        """The rest of the body. Raises HttpError, also where it has more than ``largest`` bytes."""
        parts, left = [], largest
        while part := self.read(min(_CHUNK, left + 1)):
            parts.append(part)
            left -= len(part)
            if left < 0:
                self.close()
                message = f"it sent more than {largest >> 10} KiB"
                raise HttpError(message, kind="too_large", status=self.status, url=self.url)
        return b"".join(parts)

    def close(self) -> None:
        """Close the connection, unless the body was read to its end."""
        if self._open:
            self._open = False
            with contextlib.suppress(Exception):
                self._response.close()
            self._connection.close()

    def abort(self) -> None:
        """Break the connection from any thread; a ``read`` that waits ends with HttpError."""
        abort(self._sock)

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def abort(sock: socket.socket) -> None:
    """Interrupt a thread that waits on this socket (see ``sending`` of ``HttpClient.open``)."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


class HttpClient:
    """Sends requests to one server, on kept connections. Thread-safe."""

    def __init__(
        self,
        address: Address | str,
        *,
        api_key: str | RotatedFiles[str] | None = None,
        headers: Mapping[str, str] | RotatedFiles[Mapping[str, str]] | None = None,
        tls: ssl.SSLContext | RotatedFiles[ssl.SSLContext] | None = None,
        kept: int = 1,
        use_proxy: bool = False,
    ) -> None:
        """``api_key`` and ``headers`` are sent with every request to this server and to no other.

        ``tls`` replaces what the system trusts; ``kept``: idle connections at most; ``use_proxy``: apply http_proxy,
        https_proxy and no_proxy of the environment. Raises UsageError.
        """
        self.address = parse_address(address) if isinstance(address, str) else address
        check_api_key(current(api_key) or "")
        self._api_key = api_key
        self._headers = headers
        self._tls = tls
        self._kept = kept
        self._use_proxy = use_proxy and not self.address.is_local
        self._idle: list[HTTPConnection] = []
        self._lock = threading.Lock()
        self._closed = False
        _urllib3()  # now: at the interpreter's exit, where the last requests are sent, it is late to import
        weakref.finalize(self, _close_all, self._idle)

    @property
    def base_url(self) -> str:
        """Its URL, without credentials."""
        return self.address.url

    def request(
        self,
        path: str,
        *,
        total_s: float,
        method: str | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        largest: int = LARGEST,
        redirects: int = 0,
    ) -> Response:
        """Send a request and read the whole response, of any status, within ``total_s`` seconds.

        ``path`` starts with a slash and may hold a query; the method is GET, or POST with a ``body``. Bodies stay
        compressed, as no compression is requested. Raises HttpError.
        """
        with self.open(
            path, total_s=total_s, read_s=total_s, connect_s=total_s, method=method, body=body, headers=headers,
            redirects=redirects,
        ) as stream:  # fmt: skip
            return Response(stream.status, stream.headers, stream.read_all(largest), stream.url)

    def open(
        self,
        path: str,
        *,
        read_s: float | None,
        total_s: float | None = None,
        connect_s: float = CONNECT_S,
        method: str | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        redirects: int = 0,
        sending: Callable[[socket.socket], object] | None = None,
    ) -> Stream:
        """Send a request; the response's head is there, its body is not read yet. Raises HttpError.

        ``read_s`` bounds the silence between bytes, ``total_s`` all until the last byte of the body. ``sending`` is
        called with the socket just before each attempt is sent, for ``abort``.
        """
        sent = _encoded({**self._own_headers(), **(headers or {})})
        exchange = _Exchange(
            method or ("GET" if body is None else "POST"), body, sent, read_s, connect_s,
            None if total_s is None else time.monotonic() + total_s, sending,
        )  # fmt: skip
        client = self
        while True:
            stream = client._send(path, exchange)
            location = stream.headers.get("Location")
            if (
                stream.status not in _REDIRECTS
                or not location
                or exchange.method not in ("GET", "HEAD")
                or not redirects
            ):
                return stream
            stream.close()
            redirects -= 1
            server, path = _redirect(stream.url, location)
            if server.origin == client.address.origin:
                client = HttpClient(server, tls=client._tls, kept=0, use_proxy=self._use_proxy)
            else:
                # Credentials and certificates are for the server that they were given for.
                client = HttpClient(server, kept=0, use_proxy=self._use_proxy)
                bare = {name: value for name, value in exchange.headers.items() if name.lower() in _WITHOUT_SECRETS}
                exchange = replace(exchange, headers=bare)

    def close(self) -> None:
        """Close the idle connections; those in use are closed when their response ends."""
        with self._lock:
            self._closed = True
            _close_all(self._idle)

    def _own_headers(self) -> dict[str, str]:
        sent = {"User-Agent": _AGENT}
        if headers := current(self._headers):
            sent.update(headers)
        if api_key := current(self._api_key):
            sent["Authorization"] = f"Bearer {api_key}"
        return sent

    # -- one request --------------------------------------------------------------------------------------------------

    def _send(self, path: str, exchange: _Exchange) -> Stream:
        url = self.address.url + path
        while True:
            connection, reused = self._connection()
            phase = "connect" if connection.sock is None else "closed"
            sent_at = time.monotonic()
            try:
                if connection.sock is None:
                    connection.timeout = exchange.left(exchange.connect_s)
                    connection.connect()
                    phase = "closed"
                    sent_at = time.monotonic()
                sock = connection.sock
                if exchange.sending is not None:
                    exchange.sending(sock)
                response = self._receive(connection, path, exchange)
            except BaseException as error:
                connection.close()
                if not isinstance(error, _expected()):
                    raise
                failure = http_error(error, phase, url, None)
                repeats = exchange.method in ("GET", "HEAD") or time.monotonic() - sent_at < _STALE_S
                if reused and failure.kind == "closed" and repeats:
                    continue
                raise failure from error
            return Stream(response, connection, sock, url, self._keep)

    def _receive(self, connection: HTTPConnection, path: str, exchange: _Exchange) -> HttpResponse:
        """The head of the response."""
        target = self.address.prefix + path
        if connection.proxy_is_forwarding:
            target = self.address.origin + target
        connection.response_class = functools.partial(HttpResponse, deadline=exchange.deadline)  # type: ignore[assignment]
        connection.timeout = exchange.left(exchange.read_s)
        connection.request(
            exchange.method, target, body=exchange.body, headers=exchange.headers, preload_content=False,
            decode_content=False,
        )  # fmt: skip
        connection.sock.settimeout(exchange.left(exchange.read_s))
        # Not urllib3's, which copies the headers twice.
        return http.client.HTTPConnection.getresponse(connection)  # type: ignore[return-value]

    def _connection(self) -> tuple[HTTPConnection, bool]:
        """A connection, and whether it was used before."""
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                return new_connection(self.address, current(self._tls), use_proxy=self._use_proxy), False
            if connection.is_connected:
                return connection, True
            connection.close()

    def _keep(self, connection: HTTPConnection) -> None:
        with self._lock:
            if not self._closed and len(self._idle) < self._kept:
                self._idle.append(connection)
                return
        connection.close()


def _urllib3() -> Any:
    import urllib3

    return urllib3


def _expected() -> tuple[type[BaseException], ...]:
    """Exceptions of sending a request."""
    return (_urllib3().exceptions.HTTPError, OSError, http.client.HTTPException, ValueError)


def _close_all(connections: list[HTTPConnection]) -> None:
    while connections:
        connections.pop().close()


def _encoded(headers: Mapping[str, str]) -> dict[str, str]:
    """Values as UTF-8: http.client sends text as Latin-1, and llama.cpp compares bytes."""
    return {name: value.encode().decode("latin-1") for name, value in headers.items()}


def _redirect(base: str, location: str) -> tuple[Address, str]:
    """The server that a redirect leads to, and the path there. Raises HttpError."""
    try:
        parts = urlsplit(urljoin(base, location))
        address = parse_address(f"{parts.scheme}://{parts.netloc}") if parts.scheme in DEFAULT_PORTS else None
    except (UsageError, ValueError):
        address = None
    if address is None:
        raise HttpError("it redirects to something that is not an address", kind="invalid")
    path = quote(parts.path or "/", safe=UNQUOTED)
    return address, path + ("?" + quote(parts.query, safe=UNQUOTED + "?") if parts.query else "")
