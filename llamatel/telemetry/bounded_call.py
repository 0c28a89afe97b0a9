"""Calls that may hang, with a limit on the wait."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from threading import Event, Thread

_log = logging.getLogger(__name__)


class BoundedCall:
    """A call that a daemon thread makes when it is started.

    The thread is created with the object and waits: while the interpreter exits, Python from 3.12 on starts no threads.
    """

    def __init__(self, name: str, call: Callable[[], object]) -> None:
        self._call = call
        self._started = Event()
        self._done = Event()
        self._succeeded = False
        Thread(target=self._run, name=name, daemon=True).start()

    def start(self) -> None:
        """Make the call on the thread; does not wait."""
        self._started.set()

    def wait(self, timeout_s: float) -> bool:
        """True if the call has returned, within the time given, and did not raise."""
        return self._done.wait(timeout_s) and self._succeeded

    def _run(self) -> None:
        self._started.wait()
        try:
            self._call()
            self._succeeded = True
        except Exception as error:  # noqa: BLE001  (a thread's boundary: logged, and returned by wait)
            _log.warning("%s: %s", type(error).__name__, " ".join(str(error).split()))
        self._done.set()


def make(calls: Iterable[BoundedCall], timeout_s: float) -> bool:
    """Make all calls at the same time; True if all succeeded within the time given."""
    started = tuple(calls)
    deadline = time.monotonic() + timeout_s
    for call in started:
        call.start()
    succeeded = [call.wait(max(0.0, deadline - time.monotonic())) for call in started]
    return all(succeeded)
