"""The HTTP endpoint: /metrics for Prometheus, /healthz and /readyz for probes, the web page for all other paths."""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import logging
import socket
import sys
from collections.abc import Iterable
from socketserver import ThreadingMixIn
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, Protocol, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from llamatel.errors import PipelineError
from llamatel.inputs.deadline import within
from llamatel.telemetry.exposition import OPEN_METRICS, TEXT

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_log = logging.getLogger(__name__)

_STOP_WITHIN_S = 0.1
"""How often the server checks whether to stop."""
_SCRAPER_TIMEOUT_S = 10.0
_MOST_CONNECTIONS = 64
_COMPRESSION = 1
"""The fastest gzip level: a page is repetitive."""


class AddressInUse(PipelineError):
    """Another process listens at the metrics address."""


class Scrape(Protocol):
    """Writes the metrics page (``exposition.Exposition.page``)."""

    def __call__(self, *, open_metrics: bool = False) -> str:
        """The current page."""


class MetricsEndpoint:
    """Serves a registry at ``http://HOST:PORT/metrics`` from daemon threads."""

    def __init__(self, host: str, port: int, scrape: Scrape) -> None:
        """Bind and listen; port 0 is a free one. Raises PipelineError if the address cannot be used."""
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            server_class = type("_Server", (_Server,), {"address_family": family})
            self._server: _Server = server_class(address[:2], _Handler)
        except OSError as error:
            where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            if error.errno == errno.EADDRINUSE:
                raise AddressInUse(
                    f"the metrics address {where} is in use, perhaps by another llamatel: "
                    "take a free port with --metrics-addr 127.0.0.1:0, or none with --metrics-addr none"
                ) from error
            raise PipelineError(
                f"cannot listen on the metrics address {where}: {error.strerror or error}; "
                "choose another with --metrics-addr HOST:PORT, or none"
            ) from error
        self.page: WSGIApplication = _nothing
        """WSGI application for all other paths."""
        self.ready = False
        """The status of /readyz: whether servers are observed."""

        def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            path = environ.get("PATH_INFO")
            if path == "/metrics":
                return _metrics(scrape, environ, start_response)
            if path in ("/healthz", "/readyz"):
                return _health(start_response, healthy=path == "/healthz" or self.ready)
            return self.page(environ, start_response)

        self._server.set_app(application)
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._server.server_port}/metrics"
        self._thread = Thread(
            target=self._server.serve_forever, args=(_STOP_WITHIN_S,), name="llamatel-metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening; takes up to 0.1 s."""
        self._server.shutdown()
        self._server.server_close()

    def close_after_fork(self) -> None:
        """In a forked child, where no thread serves: close the child's copy of the socket."""
        self._server.server_close()


def _metrics(scrape: Scrape, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """/metrics for GET and HEAD, in the accepted format; queries are ignored."""
    method = environ.get("REQUEST_METHOD")
    if method not in ("GET", "HEAD"):
        start_response("405 Method Not Allowed", [("Allow", "GET, HEAD"), ("Content-Length", "0")])
        return []
    open_metrics = "application/openmetrics-text" in environ.get("HTTP_ACCEPT", "")
    headers = [("Content-Type", OPEN_METRICS if open_metrics else TEXT)]
    if method == "HEAD":
        start_response("200 OK", headers)
        return []
    body = scrape(open_metrics=open_metrics).encode("utf-8", "replace")
    if "gzip" in environ.get("HTTP_ACCEPT_ENCODING", ""):
        body = gzip.compress(body, _COMPRESSION)
        headers.append(("Content-Encoding", "gzip"))
    start_response("200 OK", [*headers, ("Content-Length", str(len(body)))])
    return [body]


def _health(start_response: StartResponse, *, healthy: bool) -> Iterable[bytes]:
    """For probes of Kubernetes and load balancers; about llamatel, not about the servers that it observes."""
    body = b"ok\n" if healthy else b"not ready\n"
    headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
    start_response("200 OK" if healthy else "503 Service Unavailable", headers)
    return [body]


def _nothing(_environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
    return [b"llamatel: metrics are at /metrics\n"]


class _Server(ThreadingMixIn, WSGIServer):
    """One thread per connection, up to a limit: beyond it the oldest connection is closed."""

    daemon_threads = True
    request_queue_size = _MOST_CONNECTIONS

    def __init__(self, *arguments: Any) -> None:
        self._open: dict[socket.socket, None] = {}
        self._changing = Lock()
        self._failed = False
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._changing:
            self._open[request] = None
            oldest = next(iter(self._open)) if len(self._open) > _MOST_CONNECTIONS else None
            if oldest is not None:
                del self._open[oldest]
        if oldest is not None:
            with contextlib.suppress(OSError):  # it is closed already
                oldest.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def close_request(self, request: Any) -> None:
        with self._changing:
            self._open.pop(request, None)
        super().close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Errors of a client's connection are not logged; any other error is logged once."""
        error = sys.exc_info()[1]
        if not isinstance(error, (OSError, ValueError)) and not self._failed:
            self._failed = True
            _log.exception("a request of %s could not be answered", client_address[0])

    def server_bind(self) -> None:
        # As HTTPServer.server_bind, without its DNS look-up of the host name, which can take seconds.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _Writer(io.BufferedIOBase):
    """Sends a response. A client that reads too slowly is treated as disconnected (wsgiref prints other errors)."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__()
        self._connection = connection

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            self._connection.sendall(data)
        except TimeoutError as error:
            raise BrokenPipeError from error
        return memoryview(data).nbytes


class _Handler(WSGIRequestHandler):
    timeout = _SCRAPER_TIMEOUT_S

    def setup(self) -> None:
        super().setup()
        # Bounds the total time of a request that arrives byte by byte.
        self.rfile = within(_SCRAPER_TIMEOUT_S, cast(io.BufferedReader, self.rfile), self.connection)
        self.wfile = _Writer(self.connection)

    def address_string(self) -> str:
        return str(self.client_address[0])

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class's name)
        """Do not log scrapes."""
