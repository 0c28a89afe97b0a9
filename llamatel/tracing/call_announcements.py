"""Announcements of calls: one datagram on loopback, sent before the first of several calls.

The thread that sends call reports may get its turn only after the request is over, on a machine that is overloaded. A
datagram to loopback is in the receiver's socket when ``sendto`` returns, that is, before the request is sent: a
receiver that reads its socket before it decides about a request cannot miss it. Sending takes some 30 µs and never
blocks.

An announcement has no other effect than that requests wait for the report that follows, for ten seconds at most. With a
page token it is authenticated, as reports are.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import logging
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llamatel.inputs.documents import parse_json
from llamatel.inputs.rotated_files import RotatedFiles, current
from llamatel.records import ServerInfo
from llamatel.tracing.call_reports import InvalidCallReport, ReportedCall, read_endpoint, read_number, read_text
from llamatel.tracing.joining import OpenCalls
from llamatel.tracing.server_addresses import HERE, Endpoint

_log = logging.getLogger(__name__)

_MAX_BYTES = 1024
_MAX_AT_ONCE = 256
"""Announcements that are read before a decision; the socket's buffer holds about as many."""
_LOOPBACK = {
    "localhost": ("127.0.0.1",), "": ("127.0.0.1",), "0.0.0.0": ("127.0.0.1",), "::": ("127.0.0.1", "::1"),  # noqa: S104
}  # fmt: skip
"""Where the metrics endpoint can be reached on loopback, by its host."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """A process is about to call a server."""

    client: str
    """Identifies the process, as in its reports."""
    instance: str
    """The id of the llamatel in the process, which needs no reports of itself; empty without one."""
    at: float
    """Unix time."""
    server: Endpoint
    any_server: bool
    """A report follows although no server with this address is watched: a proxy may hide it."""

    @property
    def open_calls(self) -> OpenCalls:
        """The equivalent report."""
        return OpenCalls(self.client, self.at, [ReportedCall(ServerInfo(*self.server), self.at, None)])


class Announcer:
    """The client's side."""

    def __init__(self, host: str, port: int | None, token: str | RotatedFiles[str] | None) -> None:
        """``host`` and ``port``: of the llamatel's page; nothing is sent unless it is on loopback."""
        self._address = None if host not in HERE or port is None else (_LOOPBACK.get(host, (host,))[0], port)
        self._token = token

    def send(self, announcement: Announcement) -> None:
        """Send it; what cannot be sent at once is dropped."""
        if self._address is None:
            return
        with contextlib.suppress(OSError), _new_socket(self._address[0]) as sending:  # the report follows anyway
            sending.sendto(_write(announcement, current(self._token)), self._address)


class AnnouncementReceiver:
    """The receiver's side: sockets at the port of the page, on loopback only."""

    def __init__(self, host: str, port: int, instance: str, token: str | RotatedFiles[str] | None) -> None:
        """``host`` and ``port``: of the page; ``instance``: our own id. Beyond loopback nothing is received."""
        self._instance = instance
        self._token = token
        self._sockets: list[socket.socket] = []
        for address in _LOOPBACK.get(host, (host,)) if host in (*_LOOPBACK, *HERE) else ():
            opened = _new_socket(address)
            try:
                opened.bind((address, port))
            except OSError as error:  # another program's port: then the report has to arrive in time
                _log.debug("call announcements are not received at %s:%d: %s", address, port, error)
                opened.close()
            else:
                self._sockets.append(opened)

    def receive(self) -> Iterator[Announcement]:
        """Those that have arrived."""
        for one in self._sockets:
            for _ in range(_MAX_AT_ONCE):
                try:
                    message = one.recv(_MAX_BYTES)
                except OSError:  # nothing is there, or it is closed
                    break
                try:
                    announcement = _read(message, current(self._token))
                except InvalidCallReport:
                    continue
                if announcement.instance != self._instance:
                    yield announcement

    def close(self) -> None:
        """Close the sockets; in a forked process, too, where they stay the parent's."""
        for one in self._sockets:
            one.close()


def _new_socket(address: str) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    made.setblocking(False)
    return made


def _write(announcement: Announcement, token: str | None) -> bytes:
    about = announcement
    content = [about.client, about.instance, about.at, [*about.server], about.any_server]
    body = json.dumps(content, separators=(",", ":")).encode()
    return _signature(body, token) + body


def _read(message: bytes, token: str | None) -> Announcement:
    body = message[_SIGNED:]
    if not hmac.compare_digest(message[:_SIGNED], _signature(body, token)):
        raise InvalidCallReport("an announcement has another token")
    try:
        document: Any = parse_json(body, largest=_MAX_BYTES)
        client, instance, at, server, any_server = document
    except (ValueError, TypeError) as error:
        raise InvalidCallReport(f"not an announcement: {type(error).__name__}") from error
    return Announcement(read_text(client), str(instance), read_number(at), read_endpoint(server), any_server is True)


_SIGNED = hashlib.sha256().digest_size


def _signature(body: bytes, token: str | None) -> bytes:
    return hmac.digest((token or "").encode(), body, "sha256")
