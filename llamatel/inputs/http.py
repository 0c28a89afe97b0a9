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
import ipaddress
import re
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace, TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from llamatel.errors import HttpError, UsageError
from llamatel.inputs.credentials import check_api_key
from llamatel.inputs.deadline import within
from llamatel.inputs.documents import DEEPEST, LARGEST, parse_json

if TYPE_CHECKING:
    from urllib3 import HTTPResponse
    from urllib3.connection import HTTPConnection

CONNECT_S = 5.0
_CHUNK = 1 << 16
_STALE_S = 0.25
"""A kept connection that the server had closed fails within this time; later the server may be processing."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PORTS = {"http": 80, "https": 443}
_UNQUOTED = "/%:@!$&'()*+,;=~-._"
_AGENT = "llamatel"
_WITHOUT_SECRETS = frozenset({"accept", "range", "user-agent"})
"""Headers that go to another origin, too."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens."""

    scheme: str
    """``http``, ``https`` or ``unix``."""
    host: str
    """Host name or IP address without brackets; of ``unix`` the path of the socket."""
    port: int | None = None
    """None for a Unix socket."""
    prefix: str = ""
    """In front of the path of every request, such as ``/llama-a``; no slash at its end."""

    @property
    def origin(self) -> str:
        """The URL without the prefix."""
        if self.scheme == "unix":
            return f"unix://{self.host}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def url(self) -> str:
        """The URL, normalized: with its port, without a slash at its end."""
        return self.origin + (f":{self.prefix}" if self.scheme == "unix" and self.prefix else self.prefix)

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine: a Unix socket or loopback."""
        return self.scheme == "unix" or is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a host is loopback, by its name or address; no name is resolved."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host.lower().rstrip(".") == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def parse_address(url: str, *, scheme: str = "http") -> Address:
    """The address in ``http(s)://HOST[:PORT][/PREFIX]``, ``unix:///PATH[:/PREFIX]`` or, with ``scheme``, ``HOST:PORT``.

    Raises UsageError; its message never shows a user or password.
    """
    full = url.strip() if "://" in url else f"{scheme}://{url.strip()}"
    try:
        parts = urlsplit(full)
        port = parts.port  # raises ValueError where it is none
        userinfo = parts.username is not None or parts.password is not None
    except ValueError:
        raise UsageError(_no_address(full)) from None
    if userinfo or parts.query or parts.fragment:
        raise UsageError("a server's address has no user, password, query or fragment: an API key goes into a file")
    if parts.scheme == "unix":
        path, colon, prefix = full[len("unix://") :].partition(":/")
        if not path.startswith("/") or "\0" in path:
            raise UsageError(f"'{full}' is no Unix socket's address: write it like unix:///run/llama.sock")
        return Address("unix", path, None, _prefix(colon[1:] + prefix))
    if parts.scheme not in _PORTS or not parts.hostname or port == 0 or re.search(r"[\s\0-\x1f\x7f]", full):
        raise UsageError(_no_address(full))
    return Address(parts.scheme, parts.hostname, port or _PORTS[parts.scheme], _prefix(parts.path))


def _prefix(path: str) -> str:
    return quote(path.rstrip("/"), safe=_UNQUOTED)


def _no_address(url: str) -> str:
    shown = "" if "@" in url else f"'{url}' "
    return f"{shown}is no server's address: write it like http://127.0.0.1:8080".lstrip()


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

    def json(self, *, deepest: int = DEEPEST) -> Any:
        """Its document. Raises InvalidDocument, a ValueError."""
        return parse_json(self.data, largest=max(LARGEST, len(self.data)), deepest=deepest)


class Stream:
    """A response whose body is read by the caller; a context manager. For one reader; ``abort`` from any thread.

    ``status``, ``headers`` and ``url`` as in Response.
    """

    def __init__(
        self,
        response: HTTPResponse,
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
        """So many bytes, fewer where the body ends; b"" at its end. Raises HttpError, where it was cut short, too."""
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
            if isinstance(error, (_urllib3().exceptions.HTTPError, OSError, ValueError, AttributeError)):
                raise _failure(error, "broken", self.url, self.status) from error
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
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        kept: int = 1,
        use_proxy: bool = False,
    ) -> None:
        """``api_key`` and ``headers`` are sent with every request to this server and to no other.

        ``tls`` replaces what the system trusts; ``kept``: idle connections at most; ``use_proxy``: apply http_proxy,
        https_proxy and no_proxy of the environment. Raises UsageError.
        """
        self.address = parse_address(address) if isinstance(address, str) else address
        check_api_key(api_key or "")
        sent = {"User-Agent": _AGENT, **(headers or {})}
        if api_key:
            sent["Authorization"] = f"Bearer {api_key}"
        self._headers = _encoded(sent)
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
        exchange = _Exchange(
            method or ("GET" if body is None else "POST"), body, {**self._headers, **_encoded(headers or {})}, read_s,
            connect_s, None if total_s is None else time.monotonic() + total_s, sending,
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
                failure = _failure(error, phase, url, None)
                repeats = exchange.method in ("GET", "HEAD") or time.monotonic() - sent_at < _STALE_S
                if reused and failure.kind == "closed" and repeats:
                    continue
                raise failure from error
            return Stream(response, connection, sock, url, self._keep)

    def _receive(self, connection: HTTPConnection, path: str, exchange: _Exchange) -> HTTPResponse:
        """The head of the response."""
        target = self.address.prefix + path
        if connection.proxy_is_forwarding:
            target = self.address.origin + target
        if exchange.deadline is not None:
            connection.response_class = functools.partial(_Response, deadline=exchange.deadline)  # type: ignore[assignment]
        connection.timeout = exchange.left(exchange.read_s)
        connection.request(
            exchange.method, target, body=exchange.body, headers=exchange.headers, preload_content=False,
            decode_content=False,
        )  # fmt: skip
        connection.timeout = exchange.left(exchange.read_s)
        return connection.getresponse()

    def _connection(self) -> tuple[HTTPConnection, bool]:
        """A connection, and whether it was used before."""
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                return self._new_connection(), False
            if connection.is_connected:
                return connection, True
            connection.close()

    def _keep(self, connection: HTTPConnection) -> None:
        with self._lock:
            if not self._closed and len(self._idle) < self._kept:
                self._idle.append(connection)
                return
        connection.close()

    def _new_connection(self) -> HTTPConnection:
        from urllib3.connection import HTTPConnection, HTTPSConnection

        address = self.address
        if address.scheme == "unix":
            return _unix_connection(address.host)
        proxy = self._proxy()
        tls: dict[str, Any] = {}
        if address.scheme == "https":
            context = self._tls or _system_tls()
            # urllib3 has its own check of the host's name, which the context decides about here.
            tls = {"ssl_context": context, "assert_hostname": None if context.check_hostname else False}
        if proxy is None:
            kind = HTTPSConnection if tls else HTTPConnection
            return kind(address.host, address.port, **tls)
        return _proxied(proxy, address, tls)

    def _proxy(self) -> str | None:
        """The proxy's URL in the environment."""
        if not self._use_proxy or proxy_bypass(self.address.host):
            return None
        return getproxies().get(self.address.scheme)


# -- connections ------------------------------------------------------------------------------------------------------


def _urllib3() -> Any:
    import urllib3

    return urllib3


def _expected() -> tuple[type[BaseException], ...]:
    """Exceptions of sending a request."""
    return (_urllib3().exceptions.HTTPError, OSError, http.client.HTTPException, ValueError)


def _close_all(connections: list[HTTPConnection]) -> None:
    while connections:
        connections.pop().close()


class _Response(http.client.HTTPResponse):
    """A response that is read until a deadline: the socket's own timeout starts again with each byte."""

    def __init__(self, sock: socket.socket, *args: Any, deadline: float, **more: Any) -> None:
        super().__init__(sock, *args, **more)
        self.fp = within(max(0.0, deadline - time.monotonic()), self.fp, sock)


@functools.cache
def _system_tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _unix_connection(path: str) -> HTTPConnection:
    from urllib3.connection import HTTPConnection

    class UnixConnection(HTTPConnection):
        def connect(self) -> None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.settimeout(self.timeout)
                sock.connect(path)
            except BaseException:
                sock.close()
                raise
            self.sock = sock

    return UnixConnection("localhost")


def _proxied(proxy: str, address: Address, tls: dict[str, Any]) -> HTTPConnection:
    """A connection through a proxy: a tunnel for https, absolute URLs for http."""
    from urllib3.connection import HTTPConnection, HTTPSConnection
    from urllib3.util import make_headers, parse_url

    url = parse_url(proxy if "://" in proxy else f"http://{proxy}")
    if url.scheme not in _PORTS or not url.host:
        raise HttpError("the proxy in the environment is no http:// or https:// address", kind="proxy")
    port = url.port or _PORTS[url.scheme]
    more: dict[str, Any] = {"proxy": url}
    if url.scheme == "https":
        more["proxy_config"] = SimpleNamespace(
            ssl_context=_system_tls(), use_forwarding_for_https=False, assert_hostname=None, assert_fingerprint=None
        )
    headers = make_headers(proxy_basic_auth=url.auth) if url.auth else {}
    kind = HTTPSConnection if tls or url.scheme == "https" else HTTPConnection
    connection = kind(url.host, port, **more, **tls)
    if tls:
        connection.set_tunnel(address.host, address.port, headers, url.scheme)
    return connection


def _encoded(headers: Mapping[str, str]) -> dict[str, str]:
    """Values as UTF-8: http.client sends text as Latin-1, and llama.cpp compares bytes."""
    return {name: value.encode().decode("latin-1") for name, value in headers.items()}


def _redirect(base: str, location: str) -> tuple[Address, str]:
    """The server that a redirect leads to, and the path there. Raises HttpError."""
    try:
        parts = urlsplit(urljoin(base, location))
        address = parse_address(f"{parts.scheme}://{parts.netloc}") if parts.scheme in _PORTS else None
    except (UsageError, ValueError):
        address = None
    if address is None:
        raise HttpError("it redirects to something that is no address", kind="invalid")
    path = quote(parts.path or "/", safe=_UNQUOTED)
    return address, path + ("?" + quote(parts.query, safe=_UNQUOTED + "?") if parts.query else "")


# -- errors -----------------------------------------------------------------------------------------------------------


def _failure(error: BaseException, phase: str, url: str, status: int | None) -> HttpError:
    """The error in one line, without object addresses. ``phase``: connect, closed (no response yet) or broken."""
    kind, message = _classified(error, phase)
    return HttpError(message, kind=kind, status=status, url=url)


def _causes(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        reason = found.args[-1] if found.args and isinstance(found.args[-1], BaseException) else None
        found = reason or found.__cause__


def _classified(error: BaseException, phase: str) -> tuple[str, str]:
    exceptions = _urllib3().exceptions
    chain = list(_causes(error))
    for cause in chain:
        if isinstance(
            cause, (exceptions.NameResolutionError, socket.gaierror, exceptions.LocationParseError, UnicodeError)
        ):
            return "host_not_found", "its name is not known"
        refused = isinstance(cause, exceptions.NewConnectionError)  # a TimeoutError, too, in its library
        if isinstance(cause, (TimeoutError, exceptions.TimeoutError)) and not refused:
            return ("connect_timeout" if phase == "connect" else "timeout"), "timed out"
        if isinstance(cause, ssl.SSLError):
            reason = getattr(cause, "verify_message", None) or cause.reason or "not TLS"
            return "tls", f"TLS failed: {str(reason).replace('_', ' ').lower()} (a certificate of your own: --ca-file)"
    own = next((cause for cause in chain if isinstance(cause, OSError) and cause.strerror), None)
    if phase == "connect":
        if own is not None:
            return ("refused" if isinstance(own, (ConnectionRefusedError, FileNotFoundError)) else "unreachable"), (
                str(own.strerror).lower()
            )
        return "proxy", (str(error).splitlines() or ["the connection failed"])[0].lower()
    if any(isinstance(cause, (ConnectionError, http.client.IncompleteRead)) for cause in chain) or phase == "broken":
        return phase, "it closed the connection"
    return "invalid", "it does not speak HTTP"
