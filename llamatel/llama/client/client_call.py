"""One call of the client as it goes on: its times by the clock, what the answer says of itself, how to end it.

Telemetry listens to calls (``listen``); this package knows nothing of it, and a call without a listener costs nothing.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from array import array
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from llamatel.errors import RequestError
from llamatel.llama.client.endpoints import Request

_log = logging.getLogger(__name__)

_MOST_GAPS = 16384
"""Times between chunks that are kept of one stream: 128 KiB."""


class CallListener(Protocol):
    """Who is told of calls that ask a model for something."""

    def began(self, call: Call) -> Mapping[str, str]:
        """A call begins, on the thread (and in the context) of its caller; returns headers to send with it."""

    def ended(self, call: Call) -> None:
        """It has ended, on any thread."""


class _Listening:
    listener: CallListener | None = None
    complained = False


def listen(listener: CallListener | None) -> None:
    """Tell this listener of calls from now on; None ends that. Calls under way are told to the one they began with."""
    _Listening.listener = listener


class Call:
    """One call. Times are Unix seconds, None while (or where) they are not known.

    Written by the thread that makes the call; ``cancel`` may come from any other.
    """

    def __init__(self, request: Request[Any], address: str, port: int | None) -> None:
        self.request = request
        self.address = address
        self.port = port
        self.listener = _Listening.listener if request.operation is not None else None
        self.told: Any = None
        """The listener's own."""
        self.headers: Mapping[str, str] = {}
        self.started_at = time.time()
        self.sent_at: float | None = None
        """When the last attempt was sent."""
        self.headers_at: float | None = None
        """When the answer began: of a stream, when a slot took the request."""
        self.first_token_at: float | None = None
        """When the first chunk with generated content came; of streams only."""
        self.first_chunk_at: float | None = None
        self.last_chunk_at: float | None = None
        self.ended_at: float | None = None
        self.chunk_gaps: array[float] = array("d")
        """Seconds between one chunk and the next."""
        self.error: BaseException | None = None
        self.cancelled = False
        """The caller went away before the answer was complete."""
        self.answer: dict[str, Any] = {}
        """What the answer says of itself; see ``facts.take``."""
        self.output: list[Mapping[str, Any]] | None = None
        """The documents of the answer; None unless the listener asked for content."""
        self.at_end: Callable[[], object] | None = None
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        if self.listener is not None:
            self.headers = self._guarded(self.listener.began) or {}

    # -- as it goes on ------------------------------------------------------------------------------------------------

    def uses(self, connection: socket.socket | None) -> None:
        """What it is sent on from now; ``cancel`` ends that."""
        with self._lock:
            self._sockets = [] if connection is None else [connection]
        if self._stopping.is_set():
            self.cancel()

    def chunk(self, now: float, *, token: bool) -> None:
        """A piece of the answer came."""
        if self.last_chunk_at is None:
            self.first_chunk_at = now
        elif len(self.chunk_gaps) < _MOST_GAPS:
            self.chunk_gaps.append(now - self.last_chunk_at)
        self.last_chunk_at = now
        if token and self.first_token_at is None:
            self.first_token_at = now

    def pause(self, seconds: float) -> bool:
        """Wait before another attempt; False if the call was cancelled meanwhile."""
        return not self._stopping.wait(seconds)

    # -- its end ------------------------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """End it from any thread: the connection breaks at once, and llama.cpp ends its generation."""
        self._stopping.set()
        with self._lock:
            for connection in self._sockets:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def end(self, error: BaseException | None = None, *, cancelled: bool = False) -> None:
        """It is over; the first to say so is believed."""
        with self._lock:
            if self.ended_at is not None:
                return
            self.ended_at = time.time()
            self._sockets = []
        if self.at_end is not None:
            self.at_end()
        self.error = error
        self.cancelled = cancelled or (error is not None and not isinstance(error, Exception))
        if self.listener is not None:
            self._guarded(self.listener.ended)

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.ended_at is not None

    @property
    def error_kind(self) -> str | None:
        """What went wrong, as one of few words; None where nothing did."""
        if self.error is None or self.cancelled:
            return None
        return self.error.kind if isinstance(self.error, RequestError) else type(self.error).__qualname__

    def _guarded(self, tell: Callable[[Call], Any]) -> Any:
        try:
            return tell(self)
        except Exception:  # noqa: BLE001 - the boundary to telemetry: it must never end a call
            if not _Listening.complained:
                _Listening.complained = True
                _log.exception("telemetry of a call failed; further failures are not told")
            return None
