"""ServerClient against real llama.cpp, and the parser of its Prometheus exposition."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamatel.errors import ServerUnreachable, UsageError
from llamatel.llama.http.server_client import ServerClient, base_url, parse_counters
from tests.parts import Child, free_port
from tests.servers import complete, stop_process

pytestmark = pytest.mark.usefixtures("no_settings")

KEY = "sk-very-secret-0123456789"


class Running:
    """A llama-server that llamatel did not start."""

    def __init__(self, program: Path, model: Path, folder: Path, *flags: str, key: str | None = None) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        argv: list[str | Path] = [program, "-m", model, "--port", str(self.port), "-t", "1", *flags]
        self.child = Child(argv, folder / "server.log", {} if key is None else {"LLAMA_API_KEY": key})
        self.child.wait_ready(lambda: "listening on" in self.child.output(), 60)


@pytest.fixture
def server(
    request: pytest.FixtureRequest, llama_server_binary: Path, tiny_model: Path, tmp_path: Path
) -> Iterator[Running]:
    flags, key = getattr(request, "param", (["--metrics"], None))
    running = Running(llama_server_binary, tiny_model, tmp_path, *flags, key=key)
    yield running
    running.child.stop()


def connect(server: Running, **arguments: str | float) -> Iterator[ServerClient]:
    made = ServerClient(server.url, **arguments)  # type: ignore[arg-type]
    yield made
    made.close()


def test_server_client_counters_build_and_model(server: Running) -> None:
    for client in connect(server):
        assert client.healthy()
        assert client.counters()["tokens_predicted_total"] == 0
        assert complete(server.url, 5) == 200
        counters = client.counters()
        assert counters["tokens_predicted_total"] == 5
        assert counters["prompt_tokens_total"] > 0
        assert {"requests_processing", "requests_deferred"} < set(counters)
        assert not [name for name in counters if name.startswith("llamacpp")]
        assert client.build()
        assert client.model() == "tiny.gguf"


@pytest.mark.parametrize("server", [(["--metrics"], KEY)], indirect=True)
def test_server_client_api_key(server: Running) -> None:
    for client in connect(server, api_key=KEY):
        assert client.counters()
        assert client.build()
    for key in ("", "wrong"):
        for client in connect(server, api_key=key):
            assert client.healthy()
            assert client.build() is None
            with pytest.raises(ServerUnreachable, match="answered 401: the API key is missing or wrong") as caught:
                client.counters()
            assert caught.value.status == 401


@pytest.mark.parametrize("server", [([], None)], indirect=True)
def test_server_client_metrics_disabled(server: Running) -> None:
    for client in connect(server):
        with pytest.raises(ServerUnreachable, match="answered 501: the server was started without --metrics") as caught:
            client.counters()
        assert (caught.value.status, caught.value.busy) == (501, False)


def test_server_client_timeout_and_connection_refused(server: Running) -> None:
    for client in connect(server, timeout_s=0.3):
        assert client.healthy()
        stop_process(server.child.pid)
        start = time.monotonic()
        with pytest.raises(ServerUnreachable, match=r"/metrics does not answer: timed out$") as caught:
            client.counters()
        assert (caught.value.status, caught.value.busy) == (None, True)
        assert not client.healthy(0.2)
        assert client.build(0.2) is None
        assert client.model(0.2) is None
        with pytest.raises(ServerUnreachable, match="timed out"):  # so that a poll, and a scrape, waits only once
            client.describe()
        assert time.monotonic() - start < 20
        os.kill(server.child.pid, signal.SIGCONT)
        assert client.healthy(20)
        server.child.kill()
        with pytest.raises(ServerUnreachable, match=r"/metrics does not answer: connection refused$") as caught:
            client.counters()
        assert not caught.value.busy
        assert not client.healthy()


@pytest.mark.parametrize("key", ["a\nb", "a\r\nX-More: b", "a\0b"])
def test_server_client_invalid_api_key_is_not_shown(key: str) -> None:
    with pytest.raises(UsageError, match="control character") as caught:
        ServerClient("http://127.0.0.1:1", api_key=key)
    assert key not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),  # noqa: S104
        ("::", "http://[::1]:80"),
        ("fe80::1", "http://[fe80::1]:80"),
        ("somewhere", "http://somewhere:80"),
    ],
)
def test_base_url_of_listen_address(address: str, url: str) -> None:
    assert base_url(address, 80) == url


def test_parse_counters_exposition() -> None:
    text = (
        b"# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed.\n"
        b"# TYPE llamacpp:prompt_tokens_total counter\n"
        b"llamacpp:prompt_tokens_total 12\n"
        b"llamacpp:prompt_seconds_total 0.345\r\n"
        b'llamacpp:per_pos_total{position="0"} 7\n'
        b'llamacpp:per_pos_total{position="1"} 3\n'
        b'llamacpp:labelled_total{backend="llama.cpp",model="a"} 4 1764150000000\n'
        b'llamacpp:labelled_total{backend="llama.cpp",model="b"} 5\n'
        b'llamacpp:requests_processing{model="a"} 1\n'
        b'llamacpp:requests_processing{model="b"} 2\n'
        b'llamacpp:ratio{model="a"} 0.5\n'
        b'llamacpp:ratio{model="b"} 0.25\n'
        b"llamacpp:nonsense_total 1e\n"
        b"llamacpp:more_total 1 2 3\n"
        b"llamacpp:large_total 1.5e+06\n"
        b"llamacpp:odd NaN\n"
        b"llamacpp:endless 1e400\n"
        b"llamacpp:deferred +Inf\n"
        b"vllm:other_total 9\n"
        b" llamacpp:indented_total 9\n"
        b"llamacpp:last_total 3"
    )
    assert parse_counters(text) == {
        "prompt_tokens_total": 12, "prompt_seconds_total": 0.345, "large_total": 1.5e6, "last_total": 3,
        'per_pos_total{position="0"}': 7, 'per_pos_total{position="1"}': 3, "labelled_total": 9,
        "requests_processing": 3,
    }  # fmt: skip


@given(st.binary(max_size=200), st.text("llamacpp:_total{}= 0123456789.eE+-NaInf\n", max_size=200))
def test_parse_counters_any_bytes(junk: bytes, text: str) -> None:
    for data in (junk, text.encode(), junk + text.encode(), b"llamacpp:" + text.encode()):
        assert all(isinstance(value, float) for value in parse_counters(data).values())
