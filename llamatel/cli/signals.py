"""Terminating signals as one exception in the main thread."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

_REPEAT_AFTER_S = 1.0
_AGAIN_S = 0.05
_ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


_HANGUP = getattr(signal, "SIGHUP", None)


def _has_terminal() -> bool:
    """Whether the process has a usable terminal."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


class Interrupted(BaseException):
    """A terminating signal. Not an Exception, so that no handler mistakes it for an error."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


@contextlib.contextmanager
def ending_signals(*, hangup: Callable[[], None] | None = None) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise Interrupted in the main thread; a signal that was ignored stays ignored (nohup).

    ``hangup`` is called for SIGHUP instead, as daemons do, unless the terminal that the program runs in was closed.
    A later signal raises again, which interrupts a slow shutdown. Signals within a second of the first are ignored: a
    closing terminal sends several.
    """
    first: float | None = None
    terminal = _has_terminal()

    def handler(signum: int, _frame: FrameType | None) -> None:
        nonlocal first
        if signum == _HANGUP and hangup is not None and _has_terminal() == terminal:
            hangup()
            return
        now = time.monotonic()
        if first is None:
            first = now
        elif now - first < _REPEAT_AFTER_S:
            return
        raise Interrupted(signum)

    def unraisable(failure: sys.UnraisableHookArgs) -> None:
        """Send the signal again if Interrupted was raised where it is dropped, such as in a destructor."""
        nonlocal first
        if not isinstance(failure.exc_value, Interrupted):
            usual_hook(failure)
            return
        first = None
        again = threading.Timer(_AGAIN_S, os.kill, (os.getpid(), failure.exc_value.signum))
        again.daemon = True
        again.start()

    usual_hook, sys.unraisablehook = sys.unraisablehook, unraisable
    before = {}
    for signum in _ENDING:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            before[signum] = signal.signal(signum, handler)
    try:
        yield
    finally:
        sys.unraisablehook = usual_hook
        for signum, old in before.items():
            signal.signal(signum, old)
