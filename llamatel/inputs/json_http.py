"""Answers of those who may be anybody: bounded in time, in bytes, in depth and in what their figures can be.

Nobody is followed elsewhere: a redirect is an answer like any other, so that what goes to a server (its key) goes to
no other one.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from llamatel.inputs.deadline import within

LARGEST = 8 << 20
"""Bytes of an answer at most. The slots of a server with a hundred of them are some 200 KiB."""
_AT_ONCE = 1 << 16
_MOST = 1 << 40
"""No server counts as many tokens, or anything else; what is made of a few such figures still fits into 64 bits."""
_LONGEST = 4096
"""Characters of a name at most; a path has no more."""


class TooLong(urllib3.exceptions.HTTPError):
    """An answer is larger than any that is waited for."""


@dataclass(frozen=True, slots=True)
class Answer:
    """All of an answer."""

    status: int
    headers: Mapping[str, str]
    data: bytes

    def json(self) -> object:
        """Its document. Raises ValueError for what is none."""
        try:
            return json.loads(self.data)
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **more: Any) -> None:
        super().__init__(sock, *args, **more)
        patience = sock.gettimeout()
        if patience is not None:
            self.fp = within(patience, self.fp, sock)


class _Connection(HTTPConnection):
    response_class = _Response


class _TlsConnection(HTTPSConnection):
    response_class = _Response


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class Asker:
    """Asks over HTTP, on kept connections. Thread-safe."""

    def __init__(self, *, connections: int = 1, tls: ssl.SSLContext | None = None) -> None:
        """``tls`` is used for https instead of what the system trusts."""
        more: dict[str, Any] = {} if tls is None else {"ssl_context": tls}
        self._pool = urllib3.PoolManager(maxsize=connections, **more)
        self._pool.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}

    def ask(
        self,
        url: str,
        *,
        timeout_s: float,
        headers: Mapping[str, str],
        body: bytes | None = None,
        largest: int = LARGEST,
    ) -> Answer:
        """GET, or POST with a ``body``: all of the answer, of any status.

        ``timeout_s`` is how long connecting may take, and again how long all of the answer may. What is compressed
        stays so, as nobody asked for it. Raises urllib3's HTTPError.
        """
        response = self._pool.request(
            "GET" if body is None else "POST", url, body=body, headers=headers, timeout=timeout_s,
            retries=False, redirect=False, preload_content=False, decode_content=False,
        )  # fmt: skip
        try:
            parts, left = [], largest
            while part := response.read(min(_AT_ONCE, left + 1)):
                parts.append(part)
                left -= len(part)
                if left < 0:
                    raise TooLong(f"it sent more than {largest >> 10} KiB")
        except BaseException:
            response.close()
            raise
        response.release_conn()
        return Answer(response.status, response.headers, b"".join(parts))

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()


def text(value: object) -> str | None:
    """A name out of a document; None for anything else, or one that is too long to be one."""
    return value if isinstance(value, str) and 0 < len(value) <= _LONGEST else None


def count(value: object, least: int = 0) -> int | None:
    """A number of things out of a document; None for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and least <= value <= _MOST else None
