"""Translates exceptions of an HTTP request into HttpError."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Iterator

from llamatel.errors import HttpError


def http_error(error: BaseException, phase: str, url: str, status: int | None) -> HttpError:
    """The error in one line, without object addresses. ``phase``: connect, closed (no response yet) or broken."""
    kind, message = _classified(error, phase)
    return HttpError(message, kind=kind, status=status, url=url)


def _causes(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        reason = found.args[-1] if found.args and isinstance(found.args[-1], BaseException) else None
        found = reason or found.__cause__


def _classified(error: BaseException, phase: str) -> tuple[str, str]:
    from urllib3 import exceptions

    chain = list(_causes(error))
    for cause in chain:
        if isinstance(
            cause, (exceptions.NameResolutionError, socket.gaierror, exceptions.LocationParseError, UnicodeError)
        ):
            return "host_not_found", "its name is not known"
        refused = isinstance(cause, exceptions.NewConnectionError)  # a TimeoutError, too, in its library
        if isinstance(cause, (TimeoutError, exceptions.TimeoutError)) and not refused:
            return ("connect_timeout" if phase == "connect" else "timeout"), "timed out"
        if isinstance(cause, ssl.SSLError):
            reason = getattr(cause, "verify_message", None) or cause.reason or "not TLS"
            return "tls", f"TLS failed: {str(reason).replace('_', ' ').lower()} (a certificate of your own: --ca-file)"
    own = next((cause for cause in chain if isinstance(cause, OSError) and cause.strerror), None)
    if phase == "connect":
        if own is not None:
            return ("refused" if isinstance(own, (ConnectionRefusedError, FileNotFoundError)) else "unreachable"), (
                str(own.strerror).lower()
            )
        return "proxy", (str(error).splitlines() or ["the connection failed"])[0].lower()
    if any(isinstance(cause, (ConnectionError, http.client.IncompleteRead)) for cause in chain) or phase == "broken":
        return phase, "it closed the connection"
    return "invalid", "it does not speak HTTP"
