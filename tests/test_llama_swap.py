"""llama-swap: a stand-in for its endpoints, written from its source, with the log of a real llama-server."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llamatel.errors import ServerUnreachable
from llamatel.inputs.http import HttpClient
from llamatel.llama.watch.llama_swap import LlamaSwap, parse_running
from llamatel.records import Completion, Outcome, ServerInfo
from tests.attached import Unmanaged, unmanaged
from tests.parts import Child, wait_until

pytestmark = pytest.mark.usefixtures("no_settings")


class Swap:
    """A stand-in for llama-swap: ``/running`` and ``/logs/stream/MODEL``; notes each path that is requested."""

    def __init__(self) -> None:
        self.configured: list[str] = []
        self.running: list[dict[str, object]] = []
        self.logs: dict[str, Path] = {}
        self.received_paths: list[str] = []
        swap = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                swap.received_paths.append(self.path)
                path, _, query = self.path.partition("?")
                model = path.removeprefix("/logs/stream/")
                if path == "/running":
                    self._send(json.dumps({"running": swap.running}).encode())
                elif path == "/v1/models":
                    listed = [{"id": name, "object": "model", "owned_by": "llama-swap"} for name in swap.configured]
                    self._send(json.dumps({"object": "list", "data": listed}).encode())
                elif model in swap.logs:
                    self._stream(swap.logs[model], from_end=query == "no-history")
                else:
                    self.send_error(400)

            def _send(self, data: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def _stream(self, log: Path, *, from_end: bool) -> None:
                self.send_response(200)
                self.end_headers()
                with log.open("rb") as file:
                    if from_end:
                        file.seek(0, 2)
                    while not swap.over.wait(0.02):
                        self.wfile.write(file.read())

            def log_message(self, *arguments: object) -> None:
                pass

        self.over = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def swap() -> Iterator[Swap]:
    made = Swap()
    yield made
    made.close()


@pytest.fixture
def child(llama_server_binary: Path, tiny_model: Path, tmp_path: Path) -> Iterator[Unmanaged]:
    with unmanaged(llama_server_binary, tmp_path, "-m", tiny_model, "-np", "2") as running:
        yield running


def test_llama_swap_requests_and_states_without_loading_models(swap: Swap, child: Unmanaged) -> None:
    swap.logs["qwen/7b"] = swap.logs["qwen%2F7b"] = child.child.log
    done: list[Completion] = []
    observed = LlamaSwap(HttpClient(swap.url), ServerInfo("swap", 8080), interval_s=0.05)
    observed.check()
    observed.subscribe(done.append)  # type: ignore[arg-type]
    observed.start()
    try:
        assert [(state.server.key[:3], state.up) for state in observed.snapshots()] == [(("swap", 8080, None), True)]
        swap.running = [{"model": "qwen/7b", "state": "ready", "cmd": "llama-server", "proxy": child.url}, {"state": 1}]
        wait_until(lambda: any("/logs/stream/" in path for path in swap.received_paths), 20, "its log")
        time.sleep(0.3)
        answer = child.complete(6)
        wait_until(lambda: done, 20, "the request")
        [request] = done
        assert (request.server.model, request.outcome, request.generated) == ("qwen/7b", Outcome.OK, 6)
        assert request.prompt_tokens == answer["tokens_evaluated"]
        _, model = observed.snapshots()
        assert (model.server.model, model.state) == ("qwen/7b", "loaded")
        assert model.router_model is not None
        assert model.router_model.loads == 1
        swap.running = []
        wait_until(lambda: observed.snapshots()[1].state == "unloaded", 20, "it is unloaded")
    finally:
        observed.stop()
    assert {path.partition("?")[0] for path in swap.received_paths} == {
        "/running", "/v1/models", "/logs/stream/qwen%2F7b"
    }  # fmt: skip


def test_llama_swap_request_that_loads_its_model(swap: Swap, child: Unmanaged) -> None:
    """The logs of configured models are read before they are loaded; one that is not loaded has no series."""
    swap.configured, swap.logs["qwen"] = ["qwen", "other"], child.child.log
    done: list[Completion] = []
    observed = LlamaSwap(HttpClient(swap.url), ServerInfo("swap", 8080), interval_s=0.05)
    observed.subscribe(done.append)  # type: ignore[arg-type]
    observed.start()
    try:
        wait_until(lambda: "/logs/stream/qwen?no-history" in swap.received_paths, 20, "its log")
        time.sleep(0.3)
        assert len(observed.snapshots()) == 1
        child.complete(6)
        swap.running = [{"model": "qwen", "state": "ready"}]
        wait_until(lambda: done and len(observed.snapshots()) == 2, 20, "the request")
        assert (done[0].server.model, done[0].generated) == ("qwen", 6)
    finally:
        observed.stop()


def test_llama_swap_without_a_log_for_each_model(
    swap: Swap, child: Unmanaged, caplog: pytest.LogCaptureFixture
) -> None:
    """Earlier versions: the common log is the one running model's; with two of them requests have no model."""
    swap.logs["upstream"] = child.child.log
    swap.running = [{"model": "qwen", "state": "ready"}]
    done: list[Completion] = []
    observed = LlamaSwap(HttpClient(swap.url), ServerInfo("swap", 8080), interval_s=0.05)
    observed.subscribe(done.append)  # type: ignore[arg-type]
    observed.start()
    try:
        wait_until(lambda: "/logs/stream/upstream?no-history" in swap.received_paths, 20, "the common log")
        time.sleep(0.3)
        child.complete(6)
        wait_until(lambda: len(done) == 1, 20, "the request")
        swap.running.append({"model": "phi", "state": "ready"})
        wait_until(lambda: len(observed.snapshots()) == 3, 20, "the second model")
        child.complete(7)
        wait_until(lambda: len(done) == 2, 20, "another request")
    finally:
        observed.stop()
    assert [(request.server.model, request.generated) for request in done] == [("qwen", 6), (None, 7)]
    assert caplog.text.count("has no log for each model") == 1


def test_attach_llama_swap_command(swap: Swap, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "llamatel.cli.main", "attach", "--llama-swap", swap.url, "--metrics-addr", "none"]
    program = Child(command, tmp_path / "attach.log")
    program.wait_ready(lambda: len(swap.received_paths) > 2, 60)  # polled on after the first look
    assert program.stop() == 0
    assert set(swap.received_paths) == {"/running", "/v1/models"}


def test_llama_swap_connection_refused(swap: Swap) -> None:
    observed = LlamaSwap(HttpClient(swap.url), ServerInfo("swap", 8080), interval_s=0.05)
    observed.start()
    wait_until(lambda: observed.snapshots()[0].up, 20, "it is up")
    swap.close()
    wait_until(lambda: observed.snapshots()[0].up is False, 20, "it is down")
    observed.stop()
    with pytest.raises(ServerUnreachable, match="/running: connection refused"):
        LlamaSwap(HttpClient("http://127.0.0.1:1"), ServerInfo("swap", 1)).check()


@pytest.mark.parametrize("document", [None, [], {}, {"running": 1}, {"running": {}}])
def test_parse_running_invalid(document: object) -> None:
    with pytest.raises(ValueError, match="llama-swap"):
        parse_running(document)


def test_parse_running() -> None:
    entries = [
        {"model": "a", "state": "ready"},
        {"model": "b", "state": "starting"},
        {"model": "c", "state": "stopped"},
    ]
    assert parse_running({"running": [*entries, {"model": 1, "state": "ready"}, None]}) == {
        "a": "loaded",
        "b": "loading",
    }
