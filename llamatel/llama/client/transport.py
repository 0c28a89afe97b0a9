"""HTTP to one server: a pool of connections, times, retries where nothing can happen twice, errors in its own words."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import Any
from urllib.parse import urlencode, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import (
    ClosedPoolError,
    ConnectTimeoutError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
)

from llamatel.errors import (
    BadRequest,
    ConnectError,
    ContextTooLong,
    InvalidResponse,
    NotAuthorized,
    NotSupported,
    RequestError,
    RequestTimeout,
    ServerFailure,
    ServerNotReady,
    UsageError,
)
from llamatel.inputs.credentials import check_api_key
from llamatel.llama.client.client_call import Call
from llamatel.llama.client.endpoints import check_timeout

CLOSED = "this client was closed: make another"
CONNECT_S = 5.0
_MAX_CONNECTIONS = 256
_KEPT = 2
"""Connections that are kept at most. Each holds one of llama.cpp's few HTTP threads (some 6) for 5 s after its last
answer; were more kept, a burst of requests would make others wait for them."""
_BACKOFF_S = 0.2
_STALE_S = 0.25
"""A kept connection that the server had closed says so at once; later the server may have begun to work."""
_LONGEST_FAILURE = 1 << 16
_SHOWN = 200

_KINDS: dict[int, type[RequestError]] = {
    400: BadRequest, 401: NotAuthorized, 403: NotAuthorized, 404: NotSupported, 501: NotSupported, 503: ServerNotReady,
}  # fmt: skip

_thread = threading.local()
"""Holds the call that this thread is sending."""


class _Tracked:
    """A connection that tells the call what it is sent on, so that another thread can end it."""

    _used = False
    _socket: Any = None

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        self._used = False
        # http.client lets go of its socket when the answer will be the last; the answer still reads from it.
        self._socket = self.sock  # type: ignore[attr-defined]

    def request(self, *args: Any, **kwargs: Any) -> None:
        call: Call | None = getattr(_thread, "call", None)
        _thread.reused, self._used = self._used and self.sock is not None, True  # type: ignore[attr-defined]
        if self.sock is None:  # type: ignore[attr-defined]
            self.connect()
            self._used = True
        if call is not None:
            call.uses(self._socket)
            call.sent_at = time.time()
        super().request(*args, **kwargs)  # type: ignore[misc]


class _Connection(_Tracked, HTTPConnection):
    pass


class _TlsConnection(_Tracked, HTTPSConnection):
    pass


class _UnixConnection(_Tracked, HTTPConnection):
    path = ""

    def _new_conn(self) -> socket.socket:
        found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        found.settimeout(CONNECT_S)
        try:
            found.connect(self.path)
        except OSError as error:
            found.close()
            raise NewConnectionError(self, str(error)) from error
        return found


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class Transport:
    """Sends calls to one server. Thread-safe."""

    def __init__(self, base_url: str, *, api_key: str | None, timeout_s: float, retries: int) -> None:
        """``base_url``: ``http://``, ``https://`` or ``unix:///path/of/the.sock``, with a path where there is one.

        Raises UsageError for what is none, or a key that fits into no header. The key is never shown.
        """
        check_api_key(api_key or "")
        check_timeout(timeout_s)
        parts = urlsplit(str(base_url or ""))
        if "@" in parts.netloc:
            raise UsageError("the address holds a user or a password: give api_key instead")
        try:
            port = parts.port
        except ValueError as error:
            raise UsageError(f"'{base_url}' has no port that is one") from error
        # The openai package's addresses end in /v1, which is part of every path here that has it.
        self._prefix = parts.path.rstrip("/").removesuffix("/v1")
        if parts.scheme == "unix" and parts.path:
            self.address, self.port = parts.path, None
            self._prefix = ""
            pool: urllib3.HTTPConnectionPool = _Pool("localhost", maxsize=_MAX_CONNECTIONS)
            pool.ConnectionCls = type("_Unix", (_UnixConnection,), {"path": parts.path})
        elif parts.scheme in ("http", "https") and parts.hostname:
            self.address, self.port = parts.hostname, port or (443 if parts.scheme == "https" else 80)
            kind = _Pool if parts.scheme == "http" else _TlsPool
            pool = kind(self.address, self.port, maxsize=_MAX_CONNECTIONS)
        else:
            raise UsageError(f"{base_url!r} is no address of a server: http://HOST:PORT, https://… or unix:///PATH")
        self._pool = pool
        self.base_url = base_url.rstrip("/")
        self._timeout_s = timeout_s
        self._retries = retries
        self._kept = threading.BoundedSemaphore(_KEPT)
        # llama.cpp compares bytes; http.client sends text as Latin-1.
        self._headers = {"Authorization": f"Bearer {api_key}".encode().decode("latin-1")} if api_key else {}

    def open(self, call: Call) -> urllib3.BaseHTTPResponse:
        """Send a call; the answer, of which nothing is read yet. Raises RequestError.

        Tried again: where nobody took the connection, the server is loading its model, or a kept connection turned out
        to be closed. Then no server has begun to work on it.
        """
        if call.over:
            raise ConnectError("the call was cancelled", kind="cancelled")
        attempt = 0
        keep = self._kept.acquire(blocking=False)
        if keep:
            call.at_end = self._kept.release
        else:
            call.headers = {**call.headers, "Connection": "close"}
        while True:
            try:
                response = self._send(call)
            except ConnectError as error:
                soon = call.sent_at is not None and time.time() - call.sent_at < _STALE_S
                stale = error.kind == "connection_closed" and _thread.reused and soon
                if not stale and (error.kind != "connection_refused" or attempt >= self._retries):
                    raise
                if stale:
                    continue
            else:
                if response.status in call.request.accept:
                    call.headers_at = time.time()
                    return response
                failure = self._failure(call, response)
                if not isinstance(failure, ServerNotReady) or attempt >= self._retries:
                    raise failure
            if not call.pause(_BACKOFF_S * 4**attempt):
                raise ConnectError("the call was cancelled", kind="cancelled")
            attempt += 1

    def read(self, call: Call, response: urllib3.BaseHTTPResponse) -> bytes:
        """The whole body."""
        try:
            return response.read()
        except HTTPError as error:
            raise self.broken(call, error) from error

    def broken(self, call: Call, error: Exception) -> RequestError:
        """What a failure of the connection means."""
        where = f"{self.base_url}{call.request.path}"
        if isinstance(error, ReadTimeoutError):
            waited = call.request.timeout_s or self._timeout_s
            return RequestTimeout(f"{where} sent nothing for {waited:g} s", kind="timeout")
        if isinstance(error, ConnectTimeoutError) and not isinstance(error, NewConnectionError):
            return ConnectError(
                f"{where} did not take the connection within {CONNECT_S:g} s", kind="connection_timeout"
            )
        if isinstance(error, NameResolutionError):
            return ConnectError(f"there is no host {self.address!r}, or no network to find it", kind="host_not_found")
        if isinstance(error, NewConnectionError):
            return ConnectError(f"nobody listens at {self.base_url}: is the server running?", kind="connection_refused")
        if call.headers_at is not None:
            return ConnectError(
                f"the connection to {self.base_url} broke in the middle of the answer", kind="broken_stream"
            )
        if isinstance(error, ProtocolError) and "BadStatusLine" in repr(error):
            return InvalidResponse(f"{where} does not answer in HTTP", kind="bad_answer")
        return ConnectError(f"the connection to {self.base_url} was closed without an answer", kind="connection_closed")

    def close(self) -> None:
        """Close the connections that are not in use."""
        self._pool.close()

    def _send(self, call: Call) -> urllib3.BaseHTTPResponse:
        request = call.request
        headers = {**self._headers, **call.headers}
        body = None
        if request.body is not None:
            body = json.dumps(request.body).encode()
            headers["Content-Type"] = "application/json"
        path = self._prefix + request.path + (f"?{urlencode(request.query)}" if request.query else "")
        _thread.call, _thread.reused = call, False
        try:
            return self._pool.urlopen(
                request.method, path, body, headers, retries=False, redirect=False, preload_content=False,
                timeout=urllib3.Timeout(connect=CONNECT_S, read=request.timeout_s or self._timeout_s),
            )  # fmt: skip
        except ClosedPoolError:
            raise UsageError(CLOSED) from None
        except HTTPError as error:
            raise self.broken(call, error) from error
        finally:
            _thread.call = None

    def _failure(self, call: Call, response: urllib3.BaseHTTPResponse) -> RequestError:
        try:
            data = response.read(_LONGEST_FAILURE, decode_content=False)
        except HTTPError as error:
            raise self.broken(call, error) from error
        (response.drain_conn if len(data) < _LONGEST_FAILURE else response.close)()
        response.release_conn()
        try:
            document = json.loads(data)
            found = document["error"] if isinstance(document["error"], dict) else {"message": document["error"]}
        except (ValueError, KeyError, TypeError, RecursionError):
            found = {"message": data[:_SHOWN].decode(errors="replace").strip() or "it says nothing"}
        return failure(found, response.status, f"{self.base_url}{call.request.path}")


def failure(said: dict[str, Any], status: int | None, where: str) -> RequestError:
    """An error of the server's as an exception; ``said`` is its JSON (``message``, ``type``, ``code``)."""
    code = status if status is not None and status != 200 else said.get("code")
    kind = said.get("type")
    code = code if isinstance(code, int) else None
    kind = kind if isinstance(kind, str) and kind else (f"{code}" if code else "_OTHER")
    message = str(said.get("message") or "it says nothing").strip()
    source = f" [{where}: {code or 'error'} {kind}]"
    if kind == "exceed_context_size_error":
        long, size = _count(said, "n_prompt_tokens"), _count(said, "n_ctx")
        # A prompt that just fills the context is too long, too: there is no room for an answer.
        much = f": {long - size} tokens too many" if long is not None and size is not None and long > size else ""
        return ContextTooLong(message + much + source, status=code, kind=kind, prompt_tokens=long, context_size=size)
    message += source
    return _KINDS.get(code or 0, ServerFailure)(message, status=code, kind=kind)


def _count(said: dict[str, Any], key: str) -> int | None:
    value = said.get(key)
    return value if isinstance(value, int) else None
