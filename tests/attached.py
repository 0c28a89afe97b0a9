"""Real servers that llamatel did not start, and fleets that poll them."""

from __future__ import annotations

import contextlib
import json
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from llamatel.inputs.http import HttpClient
from llamatel.llama.watch.fleet import Access, Fleet
from llamatel.llama.watch.targets import TargetFiles, target
from llamatel.snapshots import ServerSnapshot
from tests.parts import Child, free_port, wait_until

INTERVAL_S = 0.1


class Server:
    """HTTP requests to a llama-server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str) -> Any:
        """Return the JSON response of a GET request."""
        return json.loads(self.text(path))

    def text(self, path: str) -> str:
        """Return the text of the response of a GET request."""
        with urllib.request.urlopen(self.url + path, timeout=30) as response:
            return str(response.read().decode())

    def complete(self, tokens: int = 8, **more: Any) -> Any:
        """Return the response of a completion of exactly ``tokens`` tokens."""
        body = json.dumps({"prompt": "Hello", "n_predict": tokens, "ignore_eos": True, **more}).encode()
        request = urllib.request.Request(f"{self.url}/completion", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)


class Unmanaged(Server):
    """A llama-server that can be killed and started again on the same port."""

    def __init__(
        self,
        program: Path,
        folder: Path,
        *flags: str | Path,
        port: int = 0,
        key: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.port = port or free_port()
        super().__init__(f"http://127.0.0.1:{self.port}")
        self._argv = [program, "--port", str(self.port), "-t", "1", *flags]
        self._env = {**(env or {}), **({} if key is None else {"LLAMA_API_KEY": key})}
        self._folder = folder
        self._starts = 0
        self.child = self.start()

    def start(self) -> Child:
        """Start the process with a new log file and wait until it listens."""
        self._starts += 1
        self.child = Child(self._argv, self._folder / f"server-{self.port}-{self._starts}.log", self._env)
        self.child.wait_ready(lambda: "listening on" in self.child.output(), 60)
        return self.child


@contextlib.contextmanager
def unmanaged(program: Path, folder: Path, *flags: str | Path, **more: Any) -> Iterator[Unmanaged]:
    """Run a llama-server within the block."""
    server = Unmanaged(program, folder, *flags, **more)
    try:
        yield server
    finally:
        server.child.kill()


class PathProxy:
    """A reverse proxy that routes by the path's prefix; a context manager."""

    def __init__(self, ports: Mapping[str, int]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def _forward(self) -> None:
                port = next((port for path, port in ports.items() if self.path.startswith(path)), None)
                if port is None:
                    return self.send_error(404)
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
                response = HttpClient(f"http://127.0.0.1:{port}").request(self.path, body=body, total_s=60)
                self.send_response(response.status)
                self.send_header("Content-Length", str(len(response.data)))
                self.end_headers()
                self.wfile.write(response.data)
                return None

            def do_GET(self) -> None:
                self._forward()

            def do_POST(self) -> None:
                self._forward()

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> PathProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Attached:
    """A running fleet, with a helper that waits for a snapshot."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet

    def states(self) -> list[ServerSnapshot]:
        """Return all snapshots, including a router's models."""
        return [state for server in self.fleet.servers for state in server.snapshots()]

    def wait(self, condition: Callable[[ServerSnapshot], object], model: str | None = None) -> ServerSnapshot:
        """Return the first snapshot (of ``model`` if given) for which the condition holds."""

        def found() -> ServerSnapshot | None:
            states = [state for state in self.states() if model is None or state.server.model == model]
            return next((state for state in states if condition(state)), None)

        try:
            state = wait_until(found, 30, "the snapshot")
        except TimeoutError:
            raise AssertionError(f"no such state among {self.states()}") from None
        assert state is not None
        return state


@contextlib.contextmanager
def attached(*urls: str, access: Access | None = None, files: tuple[str, ...] = (), **more: Any) -> Iterator[Attached]:
    """Poll these addresses within the block."""
    targets = TargetFiles(files, [target(url) for url in urls])
    fleet = Fleet(targets, access or Access(), **{"interval_s": INTERVAL_S, **more}).start()
    try:
        yield Attached(fleet)
    finally:
        fleet.stop()
