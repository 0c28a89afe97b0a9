"""Outgoing HTTP: addresses, limits, redirects, proxies and errors, against servers that misbehave."""

from __future__ import annotations

import contextlib
import http.client as http_client
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random

import pytest

from llamatel.errors import HttpError, UsageError
from llamatel.inputs.address import Address, is_loopback, parse_address
from llamatel.inputs.http import HttpClient, abort
from llamatel.inputs.http_response import HttpResponse
from tests.certificates import make_certificate
from tests.untrusted_server import UntrustedServer, http


@pytest.fixture
def server() -> Iterator[UntrustedServer]:
    made = UntrustedServer({"/": http(b"hello")})
    yield made
    made.close()


class Plain(BaseHTTPRequestHandler):
    """Echoes the request's head; keeps connections open."""

    protocol_version = "HTTP/1.1"
    connections = 0

    def setup(self) -> None:
        super().setup()
        type(self).connections += 1

    def do_GET(self) -> None:
        data = f"{self.requestline}\n{self.headers}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        pass


class UnixServer(ThreadingHTTPServer):
    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        self.socket.bind(str(self.server_address))
        self.server_name, self.server_port = "localhost", 0

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        return self.socket.accept()[0], ("local", 0)


@contextlib.contextmanager
def serving(made: ThreadingHTTPServer) -> Iterator[ThreadingHTTPServer]:
    made.daemon_threads = True
    thread = threading.Thread(target=made.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield made
    finally:
        made.shutdown()
        thread.join()
        made.server_close()


@pytest.fixture
def plain() -> Iterator[str]:
    Plain.connections = 0
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Plain)) as made:
        yield f"http://127.0.0.1:{made.server_port}"


# -- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "address", "normalized"),
    [
        ("127.0.0.1:8080", Address("http", "127.0.0.1", 8080), "http://127.0.0.1:8080"),
        ("http://llm", Address("http", "llm", 80), "http://llm:80"),
        ("https://llm/", Address("https", "llm", 443), "https://llm:443"),
        ("https://llm/llama-a/", Address("https", "llm", 443, "/llama-a"), "https://llm:443/llama-a"),
        ("http://llm/äb", Address("http", "llm", 80, "/%C3%A4b"), "http://llm:80/%C3%A4b"),
        ("http://[::1]:8080/x", Address("http", "::1", 8080, "/x"), "http://[::1]:8080/x"),
        ("unix:///run/l.sock", Address("unix", "/run/l.sock"), "unix:///run/l.sock"),
        ("unix:///run/l.sock:/llm/", Address("unix", "/run/l.sock", None, "/llm"), "unix:///run/l.sock:/llm"),
    ],
)
def test_parse_address(url: str, address: Address, normalized: str) -> None:
    assert parse_address(url) == address
    assert address.url == normalized
    assert parse_address(normalized) == address


@pytest.mark.parametrize(
    "url",
    ["", "http://", "ftp://x", "http://x:0", "http://x:99999", "http://x:y", "http://a b", "unix://run/x", "unix:///a\0b",
     "http://x/?q=1", "http://x/#f", "http://[::1", "file:///etc/passwd"],
)  # fmt: skip
def test_parse_address_invalid(url: str) -> None:
    with pytest.raises(UsageError):
        parse_address(url)


@pytest.mark.parametrize(
    "url", ["http://me:sekret@x:1", "http://me:sekret@x:99999", "me:sekret@x", "http://me:sekret@"]
)
def test_parse_address_hides_passwords(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_address(url)
    assert "sekret" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("::ffff:127.0.0.1", True), ("localhost", True),
     ("LOCALHOST.", True), ("localhost.evil", False), ("::1.evil", False), ("10.0.0.1", False)],
)  # fmt: skip
def test_is_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


# -- requests ---------------------------------------------------------------------------------------------------------


def test_request_get_post_and_prefix(plain: str) -> None:
    client = HttpClient(f"{plain}/llama-a", api_key="sk-ä", headers={"X-Team": "red"})
    response = client.request("/slots?x=1", total_s=10)
    text = response.data.decode()
    assert response.status == 200
    assert text.startswith("GET /llama-a/slots?x=1 HTTP/1.1\n")
    assert "X-Team: red" in text
    assert "User-Agent: llamatel" in text
    assert "Accept-Encoding: identity" in text
    assert client.request("/x", total_s=10, body=b'{"a": 1}').json() == {"a": 1}
    assert Plain.connections == 1
    client.close()


def test_request_reconnects_after_closed_connection(server: UntrustedServer) -> None:
    client = HttpClient(server.url)
    for _ in range(3):  # the server closes each connection after one response, unannounced
        assert client.request("/", total_s=10).data == b"hello"
    assert len(server.requests) == 3


def test_request_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "l.sock"
    with serving(UnixServer(str(path), Plain)):  # type: ignore[arg-type]
        client = HttpClient(f"unix://{path}:/llm")
        assert client.request("/health", total_s=10).data.startswith(b"GET /llm/health HTTP/1.1\n")
        client.close()
    with pytest.raises(HttpError, match="connection refused") as caught:
        HttpClient(f"unix://{path}").request("/health", total_s=10)
    assert caught.value.refused


@pytest.mark.parametrize(
    ("url", "kind", "message"),
    [
        ("http://127.0.0.1:1", "refused", "connection refused"),
        ("https://127.0.0.1:1", "refused", "connection refused"),
        ("http://nothing.invalid", "host_not_found", "its name is not known"),
        (f"http://{'x' * 70}.invalid", "host_not_found", "its name is not known"),
        ("unix:///nothing/here.sock", "refused", "no such file or directory"),
    ],
)
def test_request_no_server(url: str, kind: str, message: str) -> None:
    with pytest.raises(HttpError) as caught:
        HttpClient(url).request("/", total_s=5)
    assert (caught.value.kind, str(caught.value), caught.value.status) == (kind, message, None)
    assert caught.value.refused
    assert not caught.value.busy


@pytest.mark.parametrize(
    ("answer", "kind", "status"),
    [
        (b"", "closed", None),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "invalid", None),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort", "broken", 200),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", "broken", 200),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nab", "broken", 200),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n", "invalid", None),
        (b"HTTP/1.1 200 OK\r\nA: " + b"b" * 70000 + b"\r\n\r\n", "invalid", None),
        (http(b"x" * 2000), "too_large", 200),
        (http(b"x" * 2000, "500 Sorry"), "too_large", 500),
    ],
)
def test_request_bad_responses(server: UntrustedServer, answer: bytes, kind: str, status: int | None) -> None:
    server.answers["/"] = answer
    with pytest.raises(HttpError) as caught:
        HttpClient(server.url).request("/", total_s=10, largest=1000)
    assert (caught.value.kind, caught.value.status) == (kind, status)
    assert "\n" not in str(caught.value)


_LINES = (
    "Content-Length: 5", "content-length:5", "CONTENT-LENGTH: 5", "Content-Length: 7", "Content-Length: -1",
    "Content-Length: x", "Content-Length: 0", "Transfer-Encoding: chunked", "TRANSFER-ENCODING: Chunked",
    "Transfer-Encoding: gzip", "A: b",
    "Connection: close", "Connection: Keep-Alive", "connection: x, Close", "Keep-Alive: timeout=5", "Set: a: b",
    "C:\r\n\tclose",
    "Server: \u00e9", "Content-Type: text/plain; version=0.0.4",
)  # fmt: skip
_STATUS_LINES = (
    "HTTP/1.1 200 OK",
    "HTTP/1.0 200 OK",
    "HTTP/1.1 204 No",
    "HTTP/1.1 304",
    "HTTP/1.1 100 Go\r\n\r\nHTTP/1.1 500 a b",
)


def _received(kind: type[http_client.HTTPResponse], data: bytes) -> object:
    """What ``kind`` makes of a response, read in pieces."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        response = kind(ours)
        try:
            response.begin()
            parts = [response.read(2)]
            while parts[-1]:
                parts.append(response.read(3))
        except http_client.HTTPException as error:
            return type(error)
        finally:
            response.close()
    return response.status, response.will_close, response.chunked, response.headers.get("SERVER"), b"".join(parts)


def test_response_heads_as_http_client_reads_them() -> None:
    random = Random(5)
    for _ in range(600):
        lines = [random.choice(_STATUS_LINES), *random.sample(_LINES, random.randrange(5))]
        body = random.choice((b"hello", b"5\r\nhello\r\n0\r\nA: b\r\n\r\n", b"", b"2;x\r\nhe\r\n0\r\n\r\n"))
        end = random.choice(("\r\n", "\n"))
        data = (end.join(lines) + 2 * end).encode("latin-1") + body
        expected, seen = _received(http_client.HTTPResponse, data), _received(HttpResponse, data)
        if seen is http_client.IncompleteRead and isinstance(expected, tuple):  # http.client takes it for a whole body
            assert "ength: 7" in data.decode("latin-1") or not body
        else:
            assert seen == expected, data


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 200),
        (b"HTTP/1.1 200\r\nno header\r\n folded\r\nContent-Length: 5\r\nContent-Length: 9\r\n\r\nhello", 200),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5" + b"0" * 5000 + b"\r\n\r\nhello", 200),
    ],
)
def test_response_odd_heads(server: UntrustedServer, answer: bytes, status: int) -> None:
    server.answers["/"] = answer
    response = HttpClient(server.url).request("/", total_s=10)
    assert (response.status, response.data) == (status, b"hello")


def test_open_read1_ends_with_the_body(plain: str) -> None:
    client = HttpClient(plain)
    for _ in range(2):
        with client.open("/x", read_s=10) as stream:
            assert b"".join(iter(stream.read1, b"")).startswith(b"GET /x")
    assert Plain.connections == 1
    client.close()


def test_request_https_to_http_port(plain: str) -> None:
    with pytest.raises(HttpError, match="TLS failed") as caught:
        HttpClient(plain.replace("http", "https")).request("/", total_s=10)
    assert caught.value.kind == "tls"


@pytest.mark.parametrize(
    ("first", "piece"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ],
)
def test_request_total_timeout_with_slow_drip(server: UntrustedServer, first: bytes, piece: bytes) -> None:
    server.answers["/"] = server.drip(first, piece)
    start = time.monotonic()
    with pytest.raises(HttpError, match="timed out") as caught:
        HttpClient(server.url).request("/", total_s=0.5)
    assert caught.value.busy
    assert time.monotonic() - start < 20


def test_open_streams_and_can_be_aborted(server: UntrustedServer) -> None:
    server.answers["/"] = server.drip(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"x")
    sockets: list[socket.socket] = []
    with HttpClient(server.url).open("/", read_s=10, sending=sockets.append) as stream:
        assert stream.status == 200
        assert stream.read1() == b"x"
        timer = threading.Timer(0.3, abort, sockets)
        timer.start()
        with pytest.raises(HttpError) as caught:
            stream.read_all()
        assert caught.value.kind == "broken"
        assert stream.read1() == b""
        timer.join()


def test_open_read_timeout_without_total(server: UntrustedServer) -> None:
    server.answers["/"] = server.drip(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n", b"x")
    with HttpClient(server.url).open("/", read_s=0.5) as stream:
        assert stream.read(8) == b"x" * 8
        assert stream.read(1) == b""


# -- redirects, proxies -----------------------------------------------------------------------------------------------


def test_redirect_followed_only_if_requested(server: UntrustedServer) -> None:
    server.answers["/a"] = http(b"", "302 Found", "Location: /\r\n")
    client = HttpClient(server.url)
    assert client.request("/a", total_s=10).status == 302
    response = client.request("/a", total_s=10, redirects=1)
    assert (response.status, response.data, response.url) == (200, b"hello", f"{server.url}/")
    assert client.request("/a", total_s=10, redirects=1, body=b"x").status == 302


def test_redirect_drops_credentials_for_other_origin(server: UntrustedServer) -> None:
    other = UntrustedServer({"/b": http(b"", "307 Temporary Redirect", f"Location: {server.url}/c\r\n")})
    server.answers |= {
        "/p/a": http(b"", "301 Moved", "Location: /a?x=%20y#f\r\n"),
        "/a": http(b"", "308 Permanent Redirect", f"Location: {other.url}/b\r\n"),
        "/c": http(b"found"),
    }
    client = HttpClient(f"{server.url}/p", api_key="sk-secret", headers={"Cookie": "c=secret"})
    response = client.request("/a", total_s=10, redirects=5, headers={"Range": "bytes=0-9", "X-Key": "secret"})
    assert response.data == b"found"
    assert [head.split(b" ")[1] for head in server.requests] == [b"/p/a", b"/a?x=%20y", b"/c"]
    assert [b"secret" in head for head in server.requests] == [True, True, False]
    assert b"secret" not in other.requests[0]
    assert b"Range: bytes=0-9" in other.requests[0]
    other.close()


def test_redirect_limit_and_invalid_targets(server: UntrustedServer) -> None:
    server.answers["/a"] = http(b"", "302 Found", "Location: /a\r\n")
    assert HttpClient(server.url).request("/a", total_s=10, redirects=3).status == 302
    assert len(server.requests) == 4
    for location in ("file:///etc/passwd", "unix:///run/docker.sock", "http://[::", "http://u:p@x/"):
        server.answers["/a"] = http(b"", "302 Found", f"Location: {location}\r\n")
        with pytest.raises(HttpError, match="redirects to something that is not an address"):
            HttpClient(server.url).request("/a", total_s=10, redirects=3)


def test_proxy_from_environment(plain: str, server: UntrustedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", plain.replace("http://", "http://me:pw@"))
    monkeypatch.setenv("no_proxy", "other.invalid")
    # Loopback never uses the proxy, nor do clients without use_proxy.
    assert HttpClient(server.url, use_proxy=True).request("/", total_s=10).data == b"hello"
    for client in (HttpClient("http://nothing.invalid"), HttpClient("http://other.invalid", use_proxy=True)):
        with pytest.raises(HttpError, match="its name is not known"):
            client.request("/", total_s=10)
    through = HttpClient("http://nothing.invalid/p", use_proxy=True).request("/x", total_s=10)
    assert through.data.startswith(b"GET http://nothing.invalid:80/p/x HTTP/1.1\n")


def test_proxy_tunnel(server: UntrustedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", server.url)
    server.answers["nothing.invalid:443"] = http(b"", "403 Forbidden")
    with pytest.raises(HttpError, match="403 forbidden") as caught:
        HttpClient("https://nothing.invalid", use_proxy=True).request("/x", total_s=10)
    assert caught.value.kind == "proxy"
    assert server.requests[0].startswith(b"CONNECT nothing.invalid:443 ")
    monkeypatch.setenv("https_proxy", "socks5://127.0.0.1:1")
    with pytest.raises(HttpError, match="not an http:// or https:// address"):
        HttpClient("https://nothing.invalid", use_proxy=True).request("/x", total_s=10)


def test_request_invalid_headers(plain: str) -> None:
    with pytest.raises(UsageError):
        HttpClient(plain, api_key="a\r\nb")
    with pytest.raises(HttpError):
        HttpClient(plain, headers={"X": "a\r\nB: c"}).request("/", total_s=10)


def test_request_ignores_urllib3_instrumentation(plain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import urllib3

    def traced(*arguments: object, **more: object) -> None:
        raise AssertionError("it went through urllib3's pool")

    monkeypatch.setattr(urllib3.connectionpool.HTTPConnectionPool, "urlopen", traced)
    assert HttpClient(plain).request("/", total_s=10).status == 200


def test_tls_private_certificate(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    made = ThreadingHTTPServer(("127.0.0.1", 0), Plain)
    made.socket = context.wrap_socket(made.socket, server_side=True)
    with serving(made):
        url = f"https://127.0.0.1:{made.server_port}"
        with pytest.raises(HttpError, match=r"TLS failed: self.signed certificate"):
            HttpClient(url).request("/", total_s=10)
        trusted = ssl.create_default_context(cafile=cert)
        assert HttpClient(url, tls=trusted).request("/", total_s=10).status == 200
