"""One call to a model as its client sees it: times, figures from the response, outcome.

Telemetry registers a listener (``listen``). Without one a call costs nothing.
"""

from __future__ import annotations

import logging
import time
from array import array
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from llamatel.inputs.documents import mapping
from llamatel.llama.client import answer_usage

_log = logging.getLogger(__name__)

_MAX_GAPS = 16384
"""Times between chunks that are kept of one stream: 128 KiB."""


class CallListener(Protocol):
    """Records calls to models."""

    def started(self, call: Call) -> Mapping[str, str]:
        """Record the start, in the caller's thread and context; returns headers to send with the request."""

    def finished(self, call: Call) -> None:
        """Record the end, on any thread."""


class _Registered:
    listener: CallListener | None = None
    failure_logged = False


def listen(listener: CallListener | None) -> None:
    """Report calls to this listener from now on (None: to no listener). Calls in flight keep theirs."""
    _Registered.listener = listener


def registered() -> CallListener | None:
    """The listener, if there is one."""
    return _Registered.listener


class Call:
    """One call to a model. Times are Unix seconds; None means unknown."""

    def __init__(
        self, operation: str, address: str, port: int | None, *, stream: bool = False, body: object = None
    ) -> None:
        self.operation = operation
        """``gen_ai.operation.name``: chat, text_completion, embeddings or rerank."""
        self.address = address
        self.port = port
        self.stream = stream
        self.body = mapping(body)
        """The request's JSON."""
        self.is_llama_cpp = True
        """Whether the server is known to be llama.cpp; a call of a general client learns it from the response."""
        self.started_at = time.time()
        self.sent_at: float | None = None
        """When the last attempt was sent."""
        self.first_sent_at: float | None = None
        self.headers_at: float | None = None
        """When the response started: of a stream, when the request got its slot."""
        self.first_token_at: float | None = None
        """When the first chunk with generated content arrived; streams only."""
        self.last_chunk_at: float | None = None
        self.ended_at: float | None = None
        self.chunk_gaps: array[float] = array("d")
        """Seconds between chunks."""
        self.status: int | None = None
        """HTTP status of the response."""
        self.error: BaseException | None = None
        self.error_type: str | None = None
        """``error.type``, of few values."""
        self.reason: str | None = None
        """The server's error message; it may quote the request."""
        self.cancelled = False
        """Whether the caller stopped reading before the response was complete."""
        self.answer: dict[str, Any] = {}
        """Figures from the response; see ``answer_usage.update``."""
        self.output: list[Mapping[str, Any]] | None = None
        """The documents of the response; None unless the listener captures content."""
        self.state: Any = None
        """The listener's own data."""
        self._listener = _Registered.listener

    def start(self) -> Mapping[str, str]:
        """Report the start; returns headers to send."""
        return (self._guarded(self._listener.started) or {}) if self._listener is not None else {}

    def attempt(self) -> None:
        """Report that it is sent now, perhaps again: what an earlier attempt received does not count."""
        self.sent_at = time.time()
        self.first_sent_at = self.first_sent_at or self.sent_at
        self.headers_at = self.first_token_at = self.last_chunk_at = None
        self.status = self.error_type = self.reason = None
        self.answer = {}
        del self.chunk_gaps[:]
        if self.output is not None:
            self.output = []

    def chunk(self, now: float, *, token: bool) -> None:
        """Record the arrival of a chunk of a stream."""
        if self.last_chunk_at is not None and len(self.chunk_gaps) < _MAX_GAPS:
            self.chunk_gaps.append(now - self.last_chunk_at)
        self.last_chunk_at = now
        if token and self.first_token_at is None:
            self.first_token_at = now

    def document(self, document: Mapping[str, Any]) -> None:
        """Record the figures of a response's JSON, or of an event of a stream."""
        answer_usage.update(self.answer, document)
        if self.output is not None:
            self.output.append(document)

    def finish(self, error: BaseException | None = None, *, cancelled: bool = False) -> None:
        """Report the end; only the first call counts."""
        if self.ended_at is not None:
            return
        self.ended_at = time.time()
        self.cancelled = cancelled or (error is not None and not isinstance(error, Exception))
        if self.cancelled:
            error = self.error_type = None
        elif error is not None and self.error_type is None:
            self.error_type = type(error).__qualname__
        self.error = error
        if self._listener is not None:
            self._guarded(self._listener.finished)

    @property
    def failed(self) -> bool:
        """Whether it failed."""
        return self.error_type is not None

    def _guarded(self, report: Callable[[Call], Any]) -> Any:
        try:
            return report(self)
        except Exception:  # noqa: BLE001 - the boundary to telemetry: it must never end a call
            if not _Registered.failure_logged:
                _Registered.failure_logged = True
                _log.exception("telemetry of a call failed; further failures are not logged")
            return None
