"""systemd's notifications: sent to a real datagram socket, and by a real attach."""

from __future__ import annotations

import signal
import socket
import sys
import time
import urllib.request
from pathlib import Path
from urllib.error import HTTPError

import pytest

from llamatel.cli.service_manager import notify, watchdog_pause_s
from llamatel.telemetry.metrics_endpoint import MetricsEndpoint
from tests.parts import free_port
from tests.parts.processes import Child


def _listener(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(path))
    listener.settimeout(60)
    return listener


def test_notify_socket_path_and_abstract(tmp_path: Path) -> None:
    with _listener(tmp_path / "notify") as listener:
        assert notify("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert listener.recv(100) == b"READY=1"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0llamatel-test-notify")
        assert notify("WATCHDOG=1", {"NOTIFY_SOCKET": "@llamatel-test-notify"})
        assert listener.recv(100) == b"WATCHDOG=1"


@pytest.mark.parametrize("address", ["", "relative", "/no/such/socket", "@no-such-socket", "/" + "x" * 300])
def test_notify_without_a_listener(address: str) -> None:
    assert not notify("READY=1", {"NOTIFY_SOCKET": address})


def test_watchdog_pause_is_half_of_the_units() -> None:
    pauses = [
        watchdog_pause_s(2.0, {"WATCHDOG_USEC": text}) for text in ("120000000", "1000000", "", "0", "x", "9" * 99)
    ]
    assert pauses == [2.0, 0.5, 2.0, 2.0, 2.0, 2.0]


def test_attach_notifies_ready_watchdog_reload_and_stopping(tmp_path: Path) -> None:
    """A server that is down: readiness is llamatel's, not the server's."""
    argv = [sys.executable, "-m", "llamatel.cli.main", "attach", f"http://127.0.0.1:{free_port()}"]
    with _listener(tmp_path / "notify") as listener:
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1000000"}
        child = Child([*argv, "--metrics-addr", "127.0.0.1:0"], tmp_path / "out", environment)
        try:
            assert listener.recv(100) == b"READY=1", child.output()
            assert listener.recv(100) == b"WATCHDOG=1", child.output()
            child.process.send_signal(signal.SIGHUP)
            while not (state := listener.recv(100)).startswith(b"RELOADING=1\nMONOTONIC_USEC="):
                assert state == b"WATCHDOG=1"
            assert 0 <= time.monotonic_ns() // 1000 - int(state.rpartition(b"=")[2]) < 60e6
            while (state := listener.recv(100)) != b"READY=1":
                assert state == b"WATCHDOG=1"
        finally:
            child.process.send_signal(signal.SIGTERM)
            states = {b""}
            while b"STOPPING=1" not in states:
                states.add(listener.recv(100))
            child.stop()


def _status(url: str, method: str = "GET") -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=10) as response:
            return int(response.status)
    except HTTPError as error:
        error.close()
        return error.code


def _no_metrics(*, open_metrics: bool = False) -> str:
    return "" if not open_metrics else "# EOF"


def test_endpoint_health_and_readiness() -> None:
    endpoint = MetricsEndpoint("127.0.0.1", 0, _no_metrics)
    try:
        base = endpoint.url.removesuffix("/metrics")
        assert (_status(f"{base}/healthz"), _status(f"{base}/readyz")) == (200, 503)
        heads = [_status(f"{base}/{page}", "HEAD") for page in ("metrics", "healthz", "readyz")]
        assert heads == [200, 200, 503]
        endpoint.ready = True
        assert (_status(f"{base}/healthz"), _status(f"{base}/readyz")) == (200, 200)
    finally:
        endpoint.close()
