"""The addresses of the watched servers, including those of proxies and tunnels in front of them."""

from __future__ import annotations

from llamatel.records import ServerInfo

HERE = frozenset({"localhost", "127.0.0.1", "0.0.0.0", "::1", "::"})  # noqa: S104 - recognised, not bound
"""Names of this machine."""
_MAX_ADDRESSES = 256
_SURE = 2
"""Calls identified by their timings until an address counts as another name of a server."""

Endpoint = tuple["str | None", "int | None"]


def endpoint_of(server: ServerInfo) -> Endpoint:
    """Identifies a server for client and server; all names of this machine are one."""
    address = None if server.address is None else server.address.lower()
    return ("127.0.0.1" if address in HERE else address, server.port)


class ServerAddresses:
    """Determines which server an address leads to."""

    def __init__(self) -> None:
        self._watched: set[Endpoint] = set()
        self._names: dict[Endpoint, tuple[Endpoint, int]] = {}
        """By address: the server that its calls were identified with, and their number."""
        self._others: set[Endpoint] = set()
        """Addresses that belong to no watched server."""

    def watch(self, endpoint: Endpoint) -> None:
        """A watched server has this address."""
        self._watched.add(endpoint)

    def is_watched(self, endpoint: Endpoint) -> bool:
        """Whether a watched server has this address."""
        return endpoint in self._watched

    def server(self, endpoint: Endpoint) -> Endpoint | None:
        """The server at an address; None where that is not yet known."""
        if endpoint in self._watched or endpoint in self._others:
            return endpoint
        found, count = self._names.get(endpoint, (None, 0))
        return found if count >= _SURE else None

    def identified(self, endpoint: Endpoint, server: Endpoint) -> None:
        """A call to this address ran on this server."""
        found, count = self._names.get(endpoint, (server, 0))
        if found == server and len(self._names) < _MAX_ADDRESSES:
            self._names[endpoint] = server, count + 1
        else:
            self.other(endpoint)

    def other(self, endpoint: Endpoint) -> None:
        """A call to this address ran on no watched server."""
        if endpoint not in self._watched and len(self._others) < _MAX_ADDRESSES:
            self._names.pop(endpoint, None)
            self._others.add(endpoint)
