"""Call reports to a llamatel of another machine: token, TLS with a certificate of one's own, a tunnel.

Stand-in: a proxy of the test terminates TLS, and is the tunnel; all addresses are of this machine.
"""

from __future__ import annotations

import os
import re
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.certificates import make_certificate
from tests.parts import OtlpSink
from tests.parts.fake_clock import FakeClock
from tests.serving import Serving
from tests.test_call_reports import FOUR, ONE_BY_ONE, SCRIPT, Proxy, exporting, of_kind, run_script

TOKEN = "s3cret-\N{LATIN SMALL LETTER E WITH ACUTE}"  # noqa: S105 - of the test


@pytest.fixture(scope="module")
def sink() -> Iterator[OtlpSink]:
    with OtlpSink() as running:
        yield running


@pytest.fixture(scope="module")
def remote(sink: OtlpSink, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A llamatel that listens on all addresses and requires a token."""
    folder = tmp_path_factory.mktemp("remote")
    token = folder / "token"
    token.write_text(TOKEN, encoding="utf-8")
    flags = ("--metrics-addr", "0.0.0.0:0", "--page-token-file", str(token))
    running = Serving(folder, tiny_model, *flags, context=2048, **exporting(sink))
    running.page_url = re.sub("//[^:]+:", "//127.0.0.1:", running.page_url)
    yield running
    running.child.stop()


@pytest.fixture
def server(remote: Serving) -> Iterator[Proxy]:
    """The server as the other machine reaches it: at an address of which its llamatel does not know."""
    proxy = Proxy(remote.url)
    yield proxy
    proxy.close()


def tls(folder: Path, *, expired: bool = False, address: str = "127.0.0.1") -> tuple[ssl.SSLContext, Path]:
    """TLS of a server, and the file with its certificate."""
    cert, key = make_certificate(folder, expired=expired, address=address)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context, cert


def run(sink: OtlpSink, url: str, **env: str) -> str:
    """Make four calls and return what was logged."""
    sink.clear()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT.replace("{body}", FOUR), url],
        env={**os.environ, **exporting(sink), **env}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    sink.wait_for(lambda arrived: len(of_kind(arrived.spans(), "SERVER")) >= 4, what="spans of the server")
    assert "s3cret" not in done.stderr
    return done.stderr


def joined(sink: OtlpSink) -> set[str]:
    """The names of the spans whose traces have a request of the server."""
    requests = {span.trace_id for span in of_kind(sink.spans(), "SERVER")}
    return {span.name for span in sink.spans() if span.trace_id in requests and span.name.startswith("call ")}


@pytest.mark.parametrize("way", ["tls", "tunnel"])
def test_remote_calls_are_joined(remote: Serving, server: Proxy, sink: OtlpSink, tmp_path: Path, way: str) -> None:
    context, cert = tls(tmp_path)
    page = Proxy(remote.page_url, tls=context if way == "tls" else None)
    trusted = {"LLAMATEL_CA_FILE": str(cert)} if way == "tls" else {}
    assert run(sink, server.url, LLAMATEL_URL=page.url, LLAMATEL_PAGE_TOKEN=TOKEN, **trusted) == ""
    page.close()
    assert "call 3" in joined(sink)  # the first two teach which server the address is


@pytest.mark.parametrize("seconds", [-5, 3600])
def test_remote_calls_clock_differs(remote: Serving, sink: OtlpSink, tmp_path: Path, seconds: int) -> None:
    """The joined trace is by the client's clock."""
    clock = FakeClock(tmp_path)
    clock.step(seconds)
    env = {"LLAMATEL_PAGE_TOKEN": TOKEN, **clock.environment}
    spans = run_script(ONE_BY_ONE, remote.url, sink, remote.page_url, 2, **env)
    [outer] = [span for span in spans if span.name == "outer"]
    [call] = [span for span in spans if span.parent_id == outer.span_id]
    trace = [span for span in spans if span.trace_id == outer.trace_id]
    [request] = of_kind(trace, "SERVER")
    assert request.parent_id == call.span_id
    assert request.attributes["llamatel.clock.offset"] == pytest.approx(-seconds, abs=0.5)
    assert {"prefill", "decode"} <= {span.name for span in trace}
    assert all(outer.start_ns <= span.start_ns <= span.end_ns <= outer.end_ns + 5e8 for span in trace)


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        ("wrong token", r"it requires its page token: LLAMATEL_PAGE_TOKEN \(HTTP 401\)"),
        ("unknown certificate", r"TLS failed: self-signed certificate \(a certificate of your own: LLAMATEL_CA_FILE\)"),
        ("expired certificate", r"TLS failed: certificate has expired"),
        ("http to TLS", r"it closed the connection|it does not speak HTTP"),
        ("TLS to http", r"TLS failed: "),
        ("no token", r"LLAMATEL_URL must be http://127.0.0.1:PORT .*https://HOST with LLAMATEL_PAGE_TOKEN"),
    ],
)
def test_remote_refusals_are_one_line(  # noqa: PLR0917 - fixtures
    remote: Serving, server: Proxy, sink: OtlpSink, tmp_path: Path, way: str, expected: str
) -> None:
    context, cert = tls(tmp_path, expired=way == "expired certificate")
    page = Proxy(remote.page_url, tls=None if way in ("wrong token", "TLS to http") else context)
    env = {"LLAMATEL_URL": page.url, "LLAMATEL_PAGE_TOKEN": TOKEN, "LLAMATEL_CA_FILE": str(cert)}
    if way == "wrong token":
        env["LLAMATEL_PAGE_TOKEN"] = TOKEN[:-1]
    elif way == "unknown certificate":
        del env["LLAMATEL_CA_FILE"]
    elif way == "http to TLS":
        env["LLAMATEL_URL"] = page.url.replace("https", "http")
    elif way == "TLS to http":
        env["LLAMATEL_URL"] = page.url.replace("http", "https")
    elif way == "no token":
        del env["LLAMATEL_PAGE_TOKEN"]
    [line] = run(sink, server.url, **env).splitlines()
    page.close()
    assert re.search(expected, line), line
    assert joined(sink) == set()
