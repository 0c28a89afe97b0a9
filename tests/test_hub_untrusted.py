"""The Hub and URLs as untrusted peers: time, sizes, invalid documents; folders with broken links."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llamatel.errors import GGUFError, LlamatelError
from llamatel.gguf import http_source
from llamatel.gguf.hub import Hub, _headers
from llamatel.gguf.model_choices import Choices, choices_among
from llamatel.gguf.model_reference import read_reference

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"


@contextmanager
def _peer(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """Run ``answer`` on each connection of a server; return its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stop = threading.Event()

        def serve() -> None:
            while not stop.is_set():
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    try:
                        connection.recv(65536)
                        answer(connection)
                    except OSError:
                        continue

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            stop.set()
            listener.close()


def _drip(*parts: bytes) -> Callable[[socket.socket], None]:
    """Send the first parts at once and the last one byte by byte."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(b"".join(parts[:-1]))
        for byte in parts[-1]:
            connection.sendall(bytes([byte]))
            time.sleep(0.02)

    return answer


def _sends(body: bytes) -> Callable[[socket.socket], None]:
    return lambda connection: connection.sendall(HEAD % len(body) + body)


@pytest.fixture
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_source, "STEP_S", 0.3)
    monkeypatch.setattr(http_source, "SLOWEST", 1 << 30)
    monkeypatch.setattr(http_source, "TOTAL_S", 1.0)
    monkeypatch.setattr("llamatel.gguf.hub._TIMEOUT_S", 0.5)


RANGE = b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-262143/900000\r\nContent-Length: 262144\r\n\r\n"
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 900000\r\n\r\n"


@pytest.mark.usefixtures("_short")
@pytest.mark.parametrize(
    "answer",
    [
        _drip(RANGE, b"GGUF" + bytes(5000)),
        _drip(WHOLE, b"GGUF" + bytes(5000)),
        _drip(b"HTTP/1.1 206 Partial", b" Content" * 600),
        _drip(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n" * 600),
    ],
    ids=["range", "whole", "status", "headers"],
)
def test_url_slow_drip_times_out(answer: Callable[[socket.socket], None]) -> None:
    with (
        _peer(answer) as url,
        pytest.raises(GGUFError, match=r"cannot be fetched: (timed out|it sends too slowly)"),
    ):
        read_reference(f"{url}/x.gguf")


@pytest.mark.usefixtures("_short")
@pytest.mark.parametrize("answer", [_drip(HEAD % 9000, b"{" + b" " * 9000), _drip(b"HTTP/1.1 200", b" " * 9000)])
def test_hub_slow_drip_times_out(answer: Callable[[socket.socket], None]) -> None:
    with _peer(answer) as url, pytest.raises(GGUFError, match="the Hub cannot be reached: timed out"):
        Hub(url).choose("org/repo")


def test_hub_is_requested_by_our_client_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub's has no total timeout: a slow-drip peer would hold a command forever."""
    requested: list[str] = []
    monkeypatch.setattr("huggingface_hub.utils._http.get_session", lambda: requested.append("session"))
    monkeypatch.setattr("huggingface_hub.constants.AGENT_HARNESSES_PATH", str(tmp_path / "none"), raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    with _peer(_sends(b"{}")) as url, pytest.raises(GGUFError, match="lists no files"):
        Hub(url).choose("org/repo")
    assert requested == []
    assert _headers() == {"Authorization": "Bearer hf_x"}


@pytest.mark.parametrize(
    "location",
    ["http://[::", "http://[::1", "ftp://x/y", "http://", "//", "http://a:99999/", "file:///etc/passwd", "http://\u00e9\n"],
)  # fmt: skip
def test_hub_redirect_invalid_address(location: str) -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode())

    with _peer(answer) as url:
        with pytest.raises(LlamatelError) as raised:
            read_reference(f"{url}/x.gguf")
        assert "\n" not in str(raised.value)
        with pytest.raises(LlamatelError) as raised:
            Hub(url).choose("org/repo")
        assert "\n" not in str(raised.value)


def test_hub_redirect_loop() -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n")

    with _peer(answer) as url, pytest.raises(GGUFError, match="the server answered 302"):
        read_reference(f"{url}/x.gguf")


ODD: list[object] = [
    None, 5, "x", [], {}, {"siblings": None}, {"siblings": {}}, {"siblings": "x"}, {"siblings": [None, 5, [], "x"]},
    {"siblings": [{}, {"rfilename": None}, {"rfilename": 5}, {"rfilename": ""}]},
    {"siblings": [{"rfilename": "../../x.gguf"}, {"rfilename": "a/../../x.gguf"}, {"rfilename": "x\n.gguf"}]},
    {"siblings": [{"rfilename": "x" * 5000 + ".gguf"}]},
    {"siblings": [{"rfilename": "x.txt", "size": "5"}], "safetensors": "x"},
    {"siblings": [{"rfilename": "config.txt", "size": -1}], "safetensors": {"total": -5}},
]  # fmt: skip


@pytest.mark.parametrize("document", ODD, ids=[str(number) for number in range(len(ODD))])
def test_hub_invalid_documents(document: object) -> None:
    with _peer(_sends(json.dumps(document).encode())) as url, pytest.raises(GGUFError) as raised:
        Hub(url).choose("org/repo")
    assert "is not a Hub" in str(raised.value) or "neither a GGUF file nor a config.json" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[", b"\xff\xfe", b"[" * 50_000, b'{"siblings":[' + b"[" * 200 + b"]" * 200 + b"]}", b"null\x00",
        b'{"siblings": [], "x": ' + b"9" * 10_000 + b"}", b"<html>",
    ],
)  # fmt: skip
def test_hub_malformed_documents(body: bytes) -> None:
    with _peer(_sends(body)) as url, pytest.raises(GGUFError) as raised:
        Hub(url).choose("org/repo")
    assert "\n" not in str(raised.value)


def test_hub_too_long_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamatel.gguf.hub._LARGEST", 1 << 16)
    body = json.dumps({"siblings": [{"rfilename": f"x{number}.gguf"} for number in range(5000)]}).encode()
    with _peer(_sends(body)) as url, pytest.raises(GGUFError, match=r"too many files: name one, hf://org/repo"):
        Hub(url).choose("org/repo")


def _listing(number: int) -> tuple[list[str], bytes]:
    half = number // 2
    files = [f"folder{each % 300}/model-{each}-Q{each % 8}_0.gguf" for each in range(half)]
    files += [f"a-{each:05d}-of-{half:05d}.gguf" for each in range(1, half + 1)]
    siblings = [{"rfilename": name, "size": 5, "blobId": "a" * 40} for name in files]
    return files, json.dumps({"siblings": siblings}).encode()


def test_hub_listing_of_100000_files_is_linear() -> None:
    _, body = _listing(100_000)
    with _peer(_sends(body)) as url:
        found = Hub(url).choose("org/repo")
        with pytest.raises(GGUFError) as raised:
            Hub(url).choose("org/repo", quant="Q3_0")
    assert isinstance(found, Choices)
    assert len(found.choices) == 50_001
    assert max(choice.files for choice in found.choices) == 50_000
    assert len(found.question) < 4000
    assert len(str(raised.value)) < 4000
    # Twice the files may take at most a few times longer, even on a busy machine.
    assert _steps(_listing(20_000)[0]) < 6 * _steps(_listing(10_000)[0])


def test_hub_listing_memory_is_proportional() -> None:
    _, body = _listing(8_000)
    with _peer(_sends(body)) as url:
        tracemalloc.start()
        Hub(url).choose("org/repo")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 24 * len(body)


def _steps(names: list[str]) -> float:
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        choices_among([(name, 5) for name in names])
        best = min(best, time.process_time() - start)
    return best


def test_folder_with_broken_links(tmp_path: Path) -> None:
    (tmp_path / "loop.gguf").symlink_to(tmp_path / "loop.gguf")
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for reference in (tmp_path, tmp_path / "loop.gguf", tmp_path / "a", tmp_path / "a" / "x.gguf"):
        with pytest.raises(GGUFError) as raised:
            read_reference(str(reference))
        assert "\n" not in str(raised.value)
    (tmp_path / "config.json").symlink_to(tmp_path / "config.json")
    with pytest.raises(GGUFError):
        read_reference(str(tmp_path))


@pytest.mark.parametrize("reference", ["x" * 5000, "x/" * 3000 + "m.gguf", "~nosuchuser/x.gguf", "a\0b.gguf", "./\0"])
def test_reference_impossible_file_name(reference: str) -> None:
    with pytest.raises(LlamatelError) as raised:
        read_reference(reference)
    assert len(str(raised.value)) < 12_000
    assert "\n" not in str(raised.value)


def test_fifo_and_folder_named_like_a_model(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(GGUFError, match="not a file"):
        read_reference(str(tmp_path / "pipe.gguf"))
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(GGUFError):
        read_reference(str(tmp_path / "config.json"))


def test_url_password_is_not_shown() -> None:
    with pytest.raises(LlamatelError) as raised:
        read_reference("http://user:sekret@127.0.0.1:9/x.gguf")
    assert "sekret" not in str(raised.value)
