"""systemd's notification protocol (``sd_notify(3)``): ready, reloading, stopping, watchdog.

Does nothing unless the process was started with ``Type=notify``.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
from collections.abc import Mapping, MutableMapping

from llamatel.outputs.appended_file import reopen_files

SOCKET_VARIABLE = "NOTIFY_SOCKET"
WATCHDOG_VARIABLE = "WATCHDOG_USEC"
_ready = threading.Event()


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


def watchdog_pause_s(longest_s: float, environ: Mapping[str, str] | None = None) -> float:
    """The pause between two ``WATCHDOG=1``: half of the unit's ``WatchdogSec``, and at most ``longest_s``."""
    text = (os.environ if environ is None else environ).get(WATCHDOG_VARIABLE, "")
    return min(longest_s, int(text) / 2e6) if re.fullmatch("[1-9][0-9]{0,17}", text) else longest_s


def ready() -> None:
    """Report that the program has started."""
    _ready.set()
    notify("READY=1")


def reload() -> None:
    """SIGHUP: reopen the files that are written; reported as ``Type=notify-reload`` needs it."""
    if not _ready.is_set():
        reopen_files()
        return
    notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
    reopen_files()
    ready()
