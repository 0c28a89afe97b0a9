"""The web page served next to /metrics: the current state, with nothing to install.

Self-contained: static files and one JSON document that the page polls once a second. A Content-Security-Policy blocks
everything from elsewhere, text is only set as text, and no prompt or answer is included. Scripts also post their call
reports here (``llamatel.tracing.call_reports``).
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import re
import time
from collections.abc import Iterable
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qs

from llamatel.inputs.rotated_files import RotatedFiles, current
from llamatel.telemetry.call_report_receiver import CallReportReceiver
from llamatel.telemetry.settings import is_loopback
from llamatel.tracing.call_reports import CALLS_PATH, MAX_BYTES, SERVERS_PATH, TIME_HEADER, InvalidCallReport

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


class Document(Protocol):
    """``llamatel.ui.live.Live.document`` for the current state."""

    def __call__(self, focus: str | None, after: int | None, *, refocus: bool) -> Any:
        """With the history of the server ``focus``; only what is new since the cursor ``after``, if given."""


_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    **{f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8") for name in ("page", "draw", "format")},
}
_DOCUMENTS = ("/live.json", SERVERS_PATH)
_HEADERS = [
    ("Cache-Control", "no-store"),
    (
        "Content-Security-Policy",
        (
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ),
    ),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
]


class Page:
    """A WSGI application for everything except /metrics."""

    def __init__(
        self, document: Document, calls: CallReportReceiver, *, host: str, token: str | RotatedFiles[str] | None = None
    ) -> None:
        """``host``: the listening address. Beyond loopback the page needs the ``token``."""
        self._document = document
        self._calls = calls
        self._loopback = is_loopback(host)
        self._token = token

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request."""
        path = environ.get("PATH_INFO", "")
        report = environ.get("REQUEST_METHOD") == "POST" and path == CALLS_PATH
        view = environ.get("REQUEST_METHOD") in {"GET", "HEAD"} and (path in _FILES or path in _DOCUMENTS)
        if not report and not view:
            return _answer_text(start_response, "404 Not Found", "not found: the paths are / and /metrics")
        refusal = self._refusal(environ)
        if refusal is not None:
            status, text, more = refusal
            return _answer_text(start_response, status, text, more)
        if report:
            return self._receive_report(environ, start_response)
        if path in _DOCUMENTS:
            query = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
            focus, after = query.get("server", [None])[0], query.get("after", [""])[0]
            known = int(after) if re.fullmatch("[0-9]{1,18}", after) else None
            refocus = "refocus" in query
            document = self._document(focus, known, refocus=refocus) if path == "/live.json" else self._calls.servers()
            body = json.dumps(document, allow_nan=False, separators=(",", ":")).encode()
            return _answer(start_response, "200 OK", "application/json", body, _time())
        name, kind = _FILES[path]
        return _answer(start_response, "200 OK", kind, files(__package__).joinpath(name).read_bytes())

    def _receive_report(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """A call report. Browsers send Origin, and cannot post JSON to another site without a preflight request.

        From another machine it needs the page's token, which has been checked.
        """
        length = environ.get("CONTENT_LENGTH", "")
        if "HTTP_ORIGIN" in environ or (self._token is None and not is_loopback(environ.get("REMOTE_ADDR", ""))):
            return _answer_text(
                start_response, "403 Forbidden", "without a page token call reports come from this machine only"
            )
        if environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower() != "application/json":
            return _answer_text(start_response, "415 Unsupported Media Type", "call reports are application/json")
        if not (length.isascii() and length.isdecimal()):
            return _answer_text(start_response, "411 Length Required", "Content-Length is required")
        if len(length) > len(str(MAX_BYTES)) or int(length) > MAX_BYTES:
            return _answer_text(start_response, "413 Content Too Large", f"at most {MAX_BYTES} bytes")
        try:
            accepted = self._calls.receive(environ["wsgi.input"].read(int(length)))
        except InvalidCallReport as error:
            return _answer_text(start_response, "400 Bad Request", str(error))
        except OSError:  # not received
            return _answer_text(start_response, "408 Request Timeout", "the body is incomplete")
        if not accepted:
            return _answer_text(start_response, "429 Too Many Requests", "too many call reports")
        return _answer(start_response, "204 No Content", "text/plain", b"", _time())

    def _refusal(self, environ: WSGIEnvironment) -> tuple[str, str, list[tuple[str, str]]] | None:
        """Status, text and headers that reject the request; None if it may see the page."""
        token = current(self._token)
        if token is not None:
            if _has_token(environ.get("HTTP_AUTHORIZATION", ""), token):
                return None
            challenge = [("WWW-Authenticate", 'Basic realm="llamatel: any name, and the token as password"')]
            return "401 Unauthorized", "the page needs its token as password", challenge
        if not self._loopback:
            text = "the page is served on loopback only, unless --page-token-file is given; /metrics is open"
            return "403 Forbidden", text, []
        # DNS rebinding: a web site whose name resolves to this address sends its own name.
        if not is_loopback(_host_of(environ.get("HTTP_HOST", ""))):
            return "403 Forbidden", "the page is served for localhost and 127.0.0.1 only", []
        return None


def _time() -> list[tuple[str, str]]:
    """The time, for clients on other machines whose clocks differ."""
    return [(TIME_HEADER, f"{time.time():.6f}")]


def _host_of(header: str) -> str:
    """The host of a Host header, without port and brackets; empty if the header is malformed."""
    host = re.sub(r":[0-9]*$", "", header)
    if host.startswith("[") and host.endswith("]"):
        return host[1:-1]
    return "" if ":" in host or "[" in host else host


def _has_token(header: str, token: str) -> bool:
    """Whether an Authorization header has the token, as password (Basic) or by itself (Bearer)."""
    scheme, _, value = header.partition(" ")
    given = value.strip().encode("latin-1", "replace")
    if scheme.lower() == "basic":
        try:
            given = base64.b64decode(given, validate=True).partition(b":")[2]
        except binascii.Error:
            return False
    elif scheme.lower() != "bearer":
        return False
    return hmac.compare_digest(given, token.encode())


def _answer_text(
    start_response: StartResponse, status: str, text: str, more: Iterable[tuple[str, str]] = ()
) -> Iterable[bytes]:
    return _answer(start_response, status, "text/plain; charset=utf-8", f"llamatel: {text}\n".encode(), more)


def _answer(
    start_response: StartResponse, status: str, kind: str, body: bytes, more: Iterable[tuple[str, str]] = ()
) -> Iterable[bytes]:
    start_response(status, [("Content-Type", kind), ("Content-Length", str(len(body))), *_HEADERS, *more])
    return [body]
