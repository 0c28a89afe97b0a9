"""Warnings on the terminal while a server is watched."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from llamatel.alarms import Alarms
from llamatel.observer import Observer
from llamatel.records import Completion

_EVERY_S = 2.0
_FRESH_S = 1.0
"""A snapshot that someone else had taken so lately will do."""


class TerminalAlarms:
    """Says in one line what has become wrong, within seconds. A sink."""

    def __init__(self, notes: Console) -> None:
        self._notes = notes
        self._alarms = Alarms()
        self._end = threading.Event()

    def __call__(self, completion: Completion, _trace_id: str | None = None) -> None:
        """Take note of a finished request."""
        self._alarms.ended(completion)

    @contextlib.contextmanager
    def watching(self, observer: Observer) -> Iterator[None]:
        """Look every two seconds for the time of the block."""
        thread = threading.Thread(target=self._run, args=(observer,), name="llamatel-alarms", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._end.set()
            # A snapshot of a server that hangs takes its time; nobody waits for it at the end.
            thread.join(0.5)

    def _run(self, observer: Observer) -> None:
        while not self._end.wait(_EVERY_S):
            try:
                for alarm in self._alarms.look(observer.snapshot(_FRESH_S)):
                    line = Text("llamatel: warning: ", "yellow").append(str(alarm), "default")
                    self._notes.print(line, soft_wrap=True)
            except OSError:  # the terminal was closed
                return
