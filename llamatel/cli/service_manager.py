"""systemd's notification protocol (``sd_notify(3)``): ready, stopping, watchdog.

Does nothing unless the process was started with ``Type=notify``.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import MutableMapping

SOCKET_VARIABLE = "NOTIFY_SOCKET"


def notify(state: str, environ: MutableMapping[str, str] | None = None) -> bool:
    """Send a state such as ``READY=1``; whether it was sent. Never raises and never blocks."""
    address = (os.environ if environ is None else environ).get(SOCKET_VARIABLE, "")
    if not address.startswith(("/", "@")) or not hasattr(socket, "AF_UNIX"):
        return False
    kind = socket.SOCK_DGRAM | getattr(socket, "SOCK_CLOEXEC", 0)
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, kind) as sender:
        sender.setblocking(False)
        sender.sendto(state.encode(), "\0" + address[1:] if address[0] == "@" else address)
        return True
    return False
