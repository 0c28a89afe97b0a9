"""Exceptions for failed requests: the server's own errors, and those of the connection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llamatel.errors import (
    BadRequest,
    ConnectError,
    ContextTooLong,
    HttpError,
    InvalidResponse,
    NotAuthorized,
    NotSupported,
    RequestError,
    RequestTimeout,
    ServerFailure,
    ServerNotReady,
)

_MAX_SHOWN = 200
_BY_STATUS: dict[int, type[RequestError]] = {
    400: BadRequest, 401: NotAuthorized, 403: NotAuthorized, 404: NotSupported, 501: NotSupported, 503: ServerNotReady,
}  # fmt: skip
_CONNECTION: dict[str, tuple[str, str]] = {
    "refused": ("connection_refused", "connection refused at {base}: is the server running?"),
    "unreachable": ("connection_refused", "no connection to {base}: is the server running?"),
    "connect_timeout": ("connection_timeout", "{base} did not accept the connection in time"),
    "host_not_found": ("host_not_found", "there is no host {host!r}, or no network to find it"),
    "tls": ("connection_refused", "no secure connection to {base}: {reason}"),
    "proxy": ("connection_refused", "no connection to {base}: {reason}"),
    "closed": ("connection_closed", "the connection to {base} was closed without a response"),
    "broken": ("broken_stream", "the connection to {base} broke in the middle of the response"),
}
"""By ``kind`` of an HttpError: ``kind`` and text of our exception."""


def connection_error(error: HttpError, base_url: str, host: str, path: str, timeout_s: float) -> RequestError:
    """The exception for a failed connection."""
    if error.kind == "timeout":
        return RequestTimeout(f"{base_url}{path} sent nothing for {timeout_s:g} s", kind="timeout")
    if error.kind in ("invalid", "too_large"):
        return InvalidResponse(f"{base_url}{path}: {error}", kind="bad_answer")
    kind, text = _CONNECTION[error.kind]
    return ConnectError(text.format(base=base_url, host=host, reason=error), kind=kind)


def server_error(document: Any, status: int | None, where: str) -> RequestError:
    """The exception for a server's error, from its JSON."""
    found = document.get("error") if isinstance(document, Mapping) else None
    error = found if isinstance(found, Mapping) else {"message": found if isinstance(found, str) else None}
    code = status if status not in (None, 200) else error.get("code")
    code = code if isinstance(code, int) else None
    kind = error.get("type")
    kind = kind if isinstance(kind, str) and kind else (f"{code}" if code else "_OTHER")
    message = " ".join(str(error.get("message") or "it gives no reason").split())
    source = f" [{where}: {code or 'error'} {kind}]"
    if kind == "exceed_context_size_error":
        prompt, size = (_count(error, key) for key in ("n_prompt_tokens", "n_ctx"))
        # A prompt that exactly fills the context is also too long: there is no room for an answer.
        excess = (
            f": {prompt - size} tokens too many" if prompt is not None and size is not None and prompt > size else ""
        )
        return ContextTooLong(
            message + excess + source, status=code, kind=kind, prompt_tokens=prompt, context_size=size
        )
    return _BY_STATUS.get(code or 0, ServerFailure)(message + source, status=code, kind=kind)


def text_error(body: bytes, status: int, where: str) -> RequestError:
    """The exception for an error response that is not llama.cpp's."""
    return server_error({"error": body[:_MAX_SHOWN].decode(errors="replace").strip()}, status, where)


def _count(error: Mapping[str, Any], key: str) -> int | None:
    value = error.get(key)
    return value if isinstance(value, int) else None
