"""Prints warnings while a server is watched; notifies systemd that llamatel is ready and working."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from llamatel.cli.options import time_prefix
from llamatel.cli.service_manager import notify, ready, watchdog_pause_s
from llamatel.runtime import Runtime
from llamatel.ui.alarms import Alarm

_EVERY_S = 2.0
_FRESH_S = 1.0
"""A snapshot of a scrape or an export is reused for this long."""


@contextlib.contextmanager
def alarms_shown(running: Runtime, notes: Console) -> Iterator[None]:
    """During the block, print a line within seconds of a new alarm."""
    end = threading.Event()

    def show(alarm: Alarm) -> None:
        with contextlib.suppress(OSError):  # the terminal was closed
            line = Text(time_prefix(time.time())).append("llamatel: WARNING: ", "yellow").append(str(alarm), "default")
            notes.print(line, soft_wrap=True)

    def poll() -> None:
        pause_s = watchdog_pause_s(_EVERY_S)
        while not end.wait(pause_s):
            running.observer.snapshot(_FRESH_S)
            notify("WATCHDOG=1")  # a snapshot was taken: collectors, polls and this thread work

    running.live.on_alarm(show)
    thread = threading.Thread(target=poll, name="llamatel-alarms", daemon=True)
    thread.start()
    ready()
    try:
        yield
    finally:
        notify("STOPPING=1")
        end.set()
        # A snapshot of a server that hangs can take seconds: the exit does not wait for it.
        thread.join(0.5)
