"""Recognises calls to models in the HTTP requests and responses of client libraries.

It uses the request's URL and body and the response's bytes; the library's own objects are not changed. llama.cpp is
recognised by the response: its ``Server`` header, ``timings``, or the form of ``system_fingerprint``.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from opentelemetry.context import get_value

from llamatel.inputs.documents import InvalidDocument, mapping, parse_json
from llamatel.llama.client import answer_usage
from llamatel.llama.client.client_call import Call, registered
from llamatel.llama.client.token_stream import EventLines
from llamatel.tracing.entered_context import EnteredContext

_OPERATIONS = {
    "/chat/completions": "chat", "/responses": "chat", "/messages": "chat", "/completions": "text_completion",
    "/completion": "text_completion", "/infill": "text_completion", "/embeddings": "embeddings",
    "/embedding": "embeddings", "/rerank": "rerank", "/reranking": "rerank",
}  # fmt: skip
_FINGERPRINT = re.compile(r"b\d+-\w+")
_MAX_BODY = 16 << 20
"""Most bytes of a body that are parsed."""
_MARKS = (b'"timings"', b'"usage"', b'"error"', b'"finish_reason":"', b'"stop_reason":"', b'"stop":true')
"""Events with one of these are parsed, and those up to the first token; others are only counted."""
_MAX_SERVERS = 256
_SUPPRESSED = ("suppress_instrumentation", "_SUPPRESS_INSTRUMENTATION_KEY")

_known_servers: set[tuple[str, int | None]] = set()
"""Addresses with responses of llama.cpp: their calls have a span from the start."""


def suppressed() -> bool:
    """Whether the current context suppresses instrumentation."""
    return any(get_value(key) for key in _SUPPRESSED)


def content_of(request: Any) -> bytes:
    """The body of a request of httpx or requests; empty for one that is streamed."""
    try:
        body = request.body if hasattr(request, "body") else request.content
    except Exception:  # noqa: BLE001 - httpx and httpx2 each have their own exception for a body that is not read
        return b""
    return body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else b""


class HttpCall:
    """Follows one call through its request, retries and response."""

    def __init__(self, call: Call, *, retried: bool) -> None:
        self.call = call
        self._retried = retried
        """The library may retry: only ``returned`` and ``fail`` show which attempt was the last."""
        self._returned = False
        self._body: list[bytes] = []
        self._size = 0
        self._events: EventLines | None = None
        self._done_seen = False
        self.complete = False
        """The whole response has been received."""

    @classmethod
    def of(
        cls, method: str, url: str, body: bytes, *, started_at: float | None = None, retried: bool = False
    ) -> HttpCall | None:
        """The call of a request that is about to be sent; None if it runs no model, or without telemetry."""
        parts = urlsplit(url)
        operation = next((name for end, name in _OPERATIONS.items() if parts.path.endswith(end)), None)
        if method.upper() != "POST" or operation is None or registered() is None or suppressed():
            return None
        try:
            document = json.loads(body) if len(body) <= _MAX_BODY else {}
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except (ValueError, RecursionError):
            return None
        document = mapping(document)
        address = parts.hostname or ""
        call = Call(operation, address, port, stream=document.get("stream") is True, body=document)
        call.is_llama_cpp = (address, port) in _known_servers
        if started_at is not None:
            call.started_at = started_at
        call.start()
        return cls(call, retried=retried)

    @contextmanager
    def sending(self) -> Iterator[None]:
        """An attempt is sent, inside the call's own span if it already has one."""
        self.call.attempt()
        self._body, self._size, self._events, self._done_seen, self.complete = [], 0, None, False, False
        context_of = getattr(registered(), "context_of", None)
        context = None if context_of is None or self.call.state is None else context_of(self.call)
        entered = None if context is None else EnteredContext(context)
        try:
            yield
        finally:
            if entered is not None:
                entered.leave()

    def response(self, status: int, server: str, content_type: str) -> None:
        """The headers have arrived."""
        self.call.headers_at = time.time()
        self.call.status = status
        if server.lower().startswith("llama.cpp"):
            self._recognised()
        if content_type.startswith("text/event-stream"):
            self._events = EventLines()

    def data(self, data: bytes) -> None:
        """A piece of the body, decoded."""
        if self.complete or not data:
            return
        if self._events is None:
            if self._size <= _MAX_BODY:
                self._body.append(data)
                self._size += len(data)
            return
        now = time.time()
        try:
            for line in self._events.feed(data):
                self._event(line, now)
        except ValueError:
            self._events = EventLines()

    def finish_body(self) -> None:
        """The body is complete."""
        if not self.complete:
            self.complete = True
            if self._events is None and self._size <= _MAX_BODY:
                self._document(b"".join(self._body))
            self._body = []

            if self._returned or not self._retried:
                self.call.finish()

    def returned(self) -> None:
        """The library has returned its result; a stream continues."""
        self._returned = True
        if self.complete:
            self.call.finish()

    def close(self) -> None:
        """The client closed the response, at its end or earlier."""
        if self._done_seen:
            self.finish_body()
        elif not self.complete and (self._returned or not self._retried):
            self.call.finish(cancelled=True)

    def fail(self, error: BaseException) -> None:
        """The call failed with an exception."""
        if self.complete and self.call.error_type is None:
            self.call.finish()  # the response is complete, but the library rejects it (a schema)
            return
        if self.call.error_type is None and _is_timeout(error):
            self.call.error_type = "timeout"
        self.call.finish(error)

    # -- the response -------------------------------------------------------------------------------------------------

    def _recognised(self) -> None:
        call = self.call
        call.is_llama_cpp = True
        if len(_known_servers) < _MAX_SERVERS:
            _known_servers.add((call.address, call.port))

    def _event(self, line: bytes, now: float) -> None:
        call = self.call
        if line == b"[DONE]":
            self._done_seen = True
            return
        parsed = call.first_token_at is None or call.output is not None or any(mark in line for mark in _MARKS)
        document = self._parsed(line) if parsed else None
        call.chunk(now, token=document is not None and answer_usage.has_token(document))
        if document is not None:
            self._learn(document)

    def _document(self, body: bytes) -> None:
        document = self._parsed(body)
        if document is not None:
            self._learn(document)
        elif self.call.status is not None and self.call.status >= 400:
            self.call.error_type = str(self.call.status)

    def _learn(self, document: Mapping[str, Any]) -> None:
        call = self.call
        if document.get("type") in ("response.completed", "message_stop"):
            self._done_seen = True
        timings, fingerprint = document.get("timings"), document.get("system_fingerprint")
        if (isinstance(timings, Mapping) and "predicted_n" in timings and "prompt_n" in timings) or (
            isinstance(fingerprint, str) and _FINGERPRINT.fullmatch(fingerprint)
        ):
            self._recognised()
        error = document.get("error")
        failed = call.status is not None and call.status >= 400
        if failed or isinstance(error, Mapping):
            found = mapping(error)
            kind, message, code = found.get("type"), found.get("message"), found.get("code")
            if not failed and isinstance(code, int):
                call.status = code  # a stream's error: the status was 200
            call.error_type = kind[:64] if isinstance(kind, str) and kind else str(call.status)
            call.reason = message if isinstance(message, str) else None
            return
        call.document(document)

    def _parsed(self, data: bytes) -> Mapping[str, Any] | None:
        try:
            document = parse_json(data, largest=_MAX_BODY, most_values=_MAX_BODY)
        except InvalidDocument:
            return None
        return document if isinstance(document, Mapping) else None


def _is_timeout(error: BaseException) -> bool:
    return any(
        "timeout" in kind.__name__.lower() or "timedout" in kind.__name__.lower() for kind in type(error).__mro__
    )
