"""Requests that llama.cpp rejected before they got a slot, by reason.

These messages quote client text. Only the fact and llama.cpp's own status, which precedes the quotation, are read
(tools/server/server.cpp, ``ex_wrapper``; server-http.cpp; server-context.cpp).
"""

from __future__ import annotations

import re

REASONS = (
    "invalid_request",
    "unauthorized",
    "forbidden",
    "not_found",
    "not_supported",
    "unavailable",
    "server_error",
    "sampling",
    "other",
)
_BY_STATUS = {
    "400": "invalid_request",
    "401": "unauthorized",
    "403": "forbidden",
    "404": "not_found",
    "500": "server_error",
    "501": "not_supported",
    "503": "unavailable",
}
_EXCEPTION = "got exception: "
_STATUS = re.compile(r'got exception: \{(?:"error":\{)?"code":(\d{3}),')
_UNAUTHORIZED = re.compile(r"[Uu]nauthorized: Invalid API Key$")
_SAMPLING = re.compile(r"(?:Failed to initialize samplers|[Ff]ailed to parse grammar)")


def rejection(message: str) -> str | None:
    """The reason in an HTTP handler's message; None if it is not a rejection."""
    if message.startswith(_EXCEPTION):
        found = _STATUS.match(message)
        return _BY_STATUS.get(found.group(1), "other") if found is not None else "other"
    return "unauthorized" if _UNAUTHORIZED.match(message) is not None else None


def launch_rejection(error: str) -> str | None:
    """The reason why a task was not launched, from ``send_error``'s text; None if unknown."""
    return "sampling" if _SAMPLING.match(error) is not None else None
