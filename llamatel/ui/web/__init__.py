"""The web page beside /metrics: what runs now, with nothing to install.

Self-contained: a few files of ours and one JSON document that the page asks for once a second. Nothing comes from
elsewhere (Content-Security-Policy), text is only ever set as text, and no prompt or answer is in it. Scripts on this
machine may tell of their calls here, too (``llamatel.tracing.call_reports``).
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import re
from collections.abc import Iterable
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qs

from llamatel.telemetry.call_report_receiver import CallReportReceiver
from llamatel.telemetry.settings import is_loopback
from llamatel.tracing.call_reports import CALLS_PATH, LARGEST, SERVERS_PATH, InvalidCallReport

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


class Document(Protocol):
    """``llamatel.ui.live.Live.document``, of the state now."""

    def __call__(self, focus: str | None, after: int | None, *, anew: bool) -> Any:
        """The history of the server that is named; what is new after the cursor of a document before."""


_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    **{f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8") for name in ("page", "draw", "figures")},
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
    """A WSGI application for everything that is not /metrics."""

    def __init__(self, document: Document, calls: CallReportReceiver, *, host: str, token: str | None = None) -> None:
        """``host``: the address that is listened on; beyond loopback only who has the ``token`` sees the page."""
        self._document = document
        self._calls = calls
        self._loopback = is_loopback(host)
        self._token = token

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request."""
        path = environ.get("PATH_INFO", "")
        told = environ.get("REQUEST_METHOD") == "POST" and path == CALLS_PATH
        asked = environ.get("REQUEST_METHOD") in {"GET", "HEAD"} and (path in _FILES or path in _DOCUMENTS)
        if not told and not asked:
            return _say(start_response, "404 Not Found", "there are / and /metrics here")
        refusal = self._refusal(environ)
        if refusal is not None:
            status, text, more = refusal
            return _say(start_response, status, text, more)
        if told:
            return self._take(environ, start_response)
        if path in _DOCUMENTS:
            query = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
            focus, after = query.get("server", [None])[0], query.get("after", [""])[0]
            known = int(after) if re.fullmatch("[0-9]{1,18}", after) else None
            anew = "anew" in query
            document = self._document(focus, known, anew=anew) if path == "/live.json" else self._calls.servers()
            body = json.dumps(document, allow_nan=False, separators=(",", ":")).encode()
            return _answer(start_response, "200 OK", "application/json", body)
        name, kind = _FILES[path]
        return _answer(start_response, "200 OK", kind, files(__name__).joinpath(name).read_bytes())

    def _take(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """News of calls. A web site can send no JSON here without asking first, and says where it is from."""
        length = environ.get("CONTENT_LENGTH", "")
        if "HTTP_ORIGIN" in environ or not is_loopback(environ.get("REMOTE_ADDR", "")):
            return _say(start_response, "403 Forbidden", "calls are told by programs of this machine")
        if environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower() != "application/json":
            return _say(start_response, "415 Unsupported Media Type", "calls are told as application/json")
        if not (length.isascii() and length.isdecimal()):
            return _say(start_response, "411 Length Required", "how long is it?")
        if len(length) > len(str(LARGEST)) or int(length) > LARGEST:
            return _say(start_response, "413 Content Too Large", f"at most {LARGEST} bytes")
        try:
            taken = self._calls.take(environ["wsgi.input"].read(int(length)))
        except InvalidCallReport as error:
            return _say(start_response, "400 Bad Request", str(error))
        except OSError:  # it did not come
            return _say(start_response, "408 Request Timeout", "it is incomplete")
        if not taken:
            return _say(start_response, "429 Too Many Requests", "that is more than can be looked at")
        return _answer(start_response, "204 No Content", "text/plain", b"")

    def _refusal(self, environ: WSGIEnvironment) -> tuple[str, str, list[tuple[str, str]]] | None:
        """Status, text and headers for a request that must not see the page; None for one that may."""
        if self._token is not None:
            if _has_token(environ.get("HTTP_AUTHORIZATION", ""), self._token):
                return None
            ask = [("WWW-Authenticate", 'Basic realm="llamatel: any name, and the token as password"')]
            return "401 Unauthorized", "the page wants its token as password", ask
        if not self._loopback:
            text = "the page is shown on loopback only; elsewhere it needs --page-token-file. /metrics is open"
            return "403 Forbidden", text, []
        # A web site whose name was made to lead here (DNS rebinding) sends its own name.
        if not is_loopback(_host_of(environ.get("HTTP_HOST", ""))):
            return "403 Forbidden", "the page answers to localhost and 127.0.0.1 only", []
        return None


def _host_of(header: str) -> str:
    """The host of a Host header, without its port and brackets."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]


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


def _say(
    start_response: StartResponse, status: str, text: str, more: Iterable[tuple[str, str]] = ()
) -> Iterable[bytes]:
    return _answer(start_response, status, "text/plain; charset=utf-8", f"llamatel: {text}\n".encode(), more)


def _answer(
    start_response: StartResponse, status: str, kind: str, body: bytes, more: Iterable[tuple[str, str]] = ()
) -> Iterable[bytes]:
    start_response(status, [("Content-Type", kind), ("Content-Length", str(len(body))), *_HEADERS, *more])
    return [body]
