"""Limits the total time of reading from a socket: a per-read timeout does not stop a slow-drip peer."""

from __future__ import annotations

import io
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class _UntilDeadline(io.RawIOBase):
    """Reads ``raw``, a socket's bytes, for ``seconds``. Raises TimeoutError then."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, seconds: float) -> None:
        super().__init__()
        self._raw = raw
        self._sock = sock
        self._deadline = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._raw.fileno()

    def readinto(self, buffer: WriteableBuffer, /) -> int | None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        usual = self._sock.gettimeout()
        self._sock.settimeout(left if usual is None else min(left, usual))
        try:
            return self._raw.readinto(buffer)
        finally:
            self._sock.settimeout(usual)

    def close(self) -> None:
        self._raw.close()
        super().close()


def within(seconds: float, reader: io.BufferedReader, sock: socket.socket) -> io.BufferedReader:
    """Wrap the result of ``sock.makefile("rb")``, readable for ``seconds`` from now on; do not use it afterwards."""
    return io.BufferedReader(_UntilDeadline(reader.detach(), sock, seconds))
