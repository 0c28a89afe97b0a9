"""Reads HTTP responses: the head without Python's e-mail parser, which took a third of a poll; the body by a deadline.

Limits are those of ``http.client``: 64 KiB a line and 100 header lines.
"""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

from llamatel.inputs.deadline import within

_LONGEST_LINE = 1 << 16
_MOST_LINES = 100
_LONGEST_LENGTH = 18
"""Digits of a Content-Length."""
_WITHOUT_BODY = frozenset({101, 204, 304})
_SWITCHING = 101


class Headers(Mapping[str, str]):
    """Headers of a response, without regard to case. Of repeated ones the first."""

    def __init__(self, values: Mapping[str, str]) -> None:
        """``values`` by name in lower case."""
        self._values = values

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class HttpResponse(http.client.HTTPResponse):
    """A response whose reads end at ``deadline`` (monotonic): the socket's own timeout starts again with each byte.

    A body that ends early raises IncompleteRead.
    """

    headers: Headers  # type: ignore[assignment]

    def __init__(self, sock: socket.socket, *args: Any, deadline: float | None = None, **more: Any) -> None:
        super().__init__(sock, *args, **more)
        if deadline is not None:
            self.fp = within(max(0.0, deadline - time.monotonic()), self.fp, sock)

    def begin(self) -> None:
        """Read the head. Raises http.client.HTTPException for an invalid one."""
        if self.headers is not None:
            return
        version, status = self._read_status_line()
        while 100 <= status < 200 and status != _SWITCHING:
            self._read_header_lines()
            version, status = self._read_status_line()
        self.code = self.status = status
        self.version = 10 if version in ("HTTP/1.0", "HTTP/0.9") else 11
        values = self._read_header_lines()
        self.headers = Headers(values)
        self.chunked = values.get("transfer-encoding", "").lower() == "chunked"
        self.chunk_left = None
        length = values.get("content-length", "")
        known = not self.chunked and length.isascii() and length.isdigit() and len(length) <= _LONGEST_LENGTH
        self.length = int(length) if known else None
        if status in _WITHOUT_BODY or self._method == "HEAD":
            self.length = 0
        self.will_close = _closes(self.version, values) or (not self.chunked and self.length is None)

    def read(self, amt: int | None = None) -> bytes:
        """As in the base class, but a body that ends early raises IncompleteRead."""
        return self._checked(super().read(amt), amt)

    def read1(self, n: int = -1) -> bytes:
        """As in the base class, but it raises for a body that ends early, and does not wait after the last byte."""
        left = self.length
        data = self._checked(super().read1(n), n)
        if left is not None and self.fp is not None:
            self.length = left - len(data)  # Python 3.10 and 3.11.0 do not count here
            if not self.length:
                self.close()
        return data

    def _checked(self, data: bytes, wanted: int | None) -> bytes:
        if not data and wanted != 0 and self.length:
            raise http.client.IncompleteRead(data, self.length)
        return data

    def _read_status_line(self) -> tuple[str, int]:
        line = self._read_line("status line")
        if not line:
            raise http.client.RemoteDisconnected("no response")
        version, _, rest = line.partition(" ")
        number = rest.strip()[:4].strip()
        if not version.startswith("HTTP/") or not (len(number) == 3 and number.isascii() and number.isdigit()):
            raise http.client.BadStatusLine(line)
        if not version.startswith(("HTTP/1.", "HTTP/0.9")):
            raise http.client.UnknownProtocol(version)
        return version, int(number)

    def _read_header_lines(self) -> dict[str, str]:
        """Values by name in lower case; continued lines are joined, lines that are no header are ignored."""
        values: dict[str, str] = {}
        name = ""
        for _ in range(_MOST_LINES + 1):
            line = self._read_line("header line")
            if line in ("\r\n", "\n", ""):
                return values
            if line[0] in " \t":
                if name:
                    values[name] += f" {line.strip()}"
                continue
            name, colon, value = line.partition(":")
            name = name.lower() if colon and name.lower() not in values else ""
            if name:
                values[name] = value.strip()
        raise http.client.HTTPException(f"more than {_MOST_LINES} headers")

    def _read_line(self, what: str) -> str:
        line = self.fp.readline(_LONGEST_LINE + 1)
        if len(line) > _LONGEST_LINE:
            raise http.client.LineTooLong(what)
        return line.decode("latin-1")


def _closes(version: int, values: Mapping[str, str]) -> bool:
    """Whether the connection ends with the response."""
    connection = values.get("connection", "").lower()
    if version == 11:
        return "close" in connection
    return "keep-alive" not in connection and "keep-alive" not in values
