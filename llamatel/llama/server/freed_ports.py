"""Ports that llama.cpp found for itself and that are free again.

The next server without a port of its own gets one of them: a program that starts one server after another then has the
series of one address in its metrics, not those of each.
"""

from __future__ import annotations

import socket
import threading


class FreedPorts:
    """Ports by address. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ports: dict[str, list[int]] = {}

    def release(self, address: str | None, port: int | None) -> None:
        """A server that had found this port (None: its port was given) has exited."""
        if address is not None and port is not None:
            with self._lock:
                ports = self._ports.setdefault(address, [])
                if port not in ports:
                    ports.append(port)

    def take(self, address: str | None) -> int | None:
        """The port that was released last of those that are free again; it is the caller's now."""
        with self._lock:
            ports = None if address is None else self._ports.get(address)
            while address is not None and ports:
                if _is_free(address, port := ports.pop()):
                    return port
        return None


def _is_free(address: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of the last server may linger
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True
