"""Ports that llama.cpp chose itself and that are free again.

The next server without a given port reuses one of them: a program that starts one server after another then has the
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
        """Record that the server that had chosen this port has exited (None: its port was given)."""
        if address is not None and port is not None:
            with self._lock:
                ports = self._ports.setdefault(address, [])
                if port not in ports:
                    ports.append(port)

    def take(self, address: str | None) -> int | None:
        """Remove and return the most recently released port that is still free; others may be free later."""
        with self._lock:
            ports = [] if address is None else self._ports.get(address, [])
            for port in reversed(ports):
                if address is not None and _is_free(address, port):
                    ports.remove(port)
                    return port
        return None

    def keep(self, address: str | None, port: int | None) -> None:
        """Record that the next process of the same server takes this port again."""
        with self._lock:
            ports = [] if address is None else self._ports.get(address, [])
            if port in ports:
                ports.remove(port)


def _is_free(address: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of the last server may linger
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True
