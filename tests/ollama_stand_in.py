"""A stand-in for Ollama v0.33.0-rc2: its endpoints and log lines, with real llama-servers under exactly its flags.

Written from its source (llm/llama_server.go, server/sched.go, server/routes.go, gin 1.10). It is started as a program
named ``ollama``, so that its children look like Ollama's to the operating system. Its log goes to standard error, with
its children's output in between, as Ollama's does.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.parts import Child, free_port

VERSION = "0.33.0-rc2"
MANY = 2
"""Models that are loaded at the same time at most."""


def flags(model: str, port: int, context: int, slots: int) -> list[str]:
    """As ``startLlamaServer`` passes them for a chat model without a GPU."""
    return [
        "--model", model, "--port", str(port), "--host", "127.0.0.1", "--no-webui", "--offline",
        "-c", str(context * slots), "-np", str(slots), "--log-verbosity", "4", "--no-log-prefix", "--no-log-timestamps",
        "--flash-attn", "auto", "-b", "512", "-ub", "512", "--context-shift", "--keep", "4",
    ]  # fmt: skip


class Runner:
    """One loaded model."""

    def __init__(self, name: str, model: dict[str, Any], log: Callable[[bytes], None]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.name, self.slots = name, int(model.get("slots", 1))
        self.waiting = threading.Semaphore(self.slots)
        self.used_at = time.monotonic()
        self.busy = 0
        words = [model["program"], *flags(model["path"], self.port, int(model.get("context", 1024)), self.slots)]
        record(log, "INFO", "llama_server.go:433", "starting llama-server", cmd=" ".join(words))
        # One thread that does not spin: on a busy machine two of them take a second for each token.
        environ = {**os.environ, "LLAMA_ARG_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environ)
        self._log = log
        threading.Thread(target=self._copy, daemon=True).start()
        started = time.monotonic()
        while not self._healthy():
            time.sleep(0.02)
        self.loading_s = time.monotonic() - started

    def _copy(self) -> None:
        """As os/exec copies a child's output: what is there, in pieces."""
        output = self.process.stdout
        assert output is not None
        rest = b""
        while data := output.read1(65536):  # type: ignore[attr-defined]
            whole, end, rest = (rest + data).rpartition(b"\n")
            self._log(whole + end)

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.HTTPError):
            if self.process.poll() is not None:
                raise RuntimeError("llama-server has ended") from None
            return False

    def kill(self) -> None:
        """As ``stopProcess`` does: nothing is logged."""
        self.process.kill()
        self.process.wait()


def record(log: Callable[[bytes], None], level: str, source: str, message: str, **fields: object) -> None:
    """A line as Go's slog writes it."""
    stamp = datetime.now().astimezone().isoformat(timespec="milliseconds")
    rest = "".join(f" {name}={_quoted(str(value))}" for name, value in fields.items())
    log(f"time={stamp} level={level} source={source} msg={_quoted(message)}{rest}\n".encode())


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if not value or any(sign in value for sign in ' ="') else value


def go_duration(seconds: float) -> str:
    """As Go prints a duration, and gin cuts it."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3f}".rstrip("0").rstrip(".") + "µs"
    if seconds < 1:
        return f"{seconds * 1e3:.6f}".rstrip("0").rstrip(".") + "ms"
    if seconds < 60:
        return f"{seconds:.9f}".rstrip("0").rstrip(".") + "s"
    return f"{int(seconds // 60)}m{int(seconds % 60)}s"


class Ollama:
    """The scheduler: one load at a time, the model that was unused for longest is given up."""

    def __init__(self, models: dict[str, dict[str, Any]]) -> None:
        self.models = models
        self.loaded: dict[str, Runner] = {}
        self._scheduling = threading.Lock()
        self._writing = threading.Lock()

    def log(self, data: bytes) -> None:
        """Write whole lines."""
        with self._writing:
            sys.stderr.buffer.write(data)
            sys.stderr.buffer.flush()

    def runner(self, name: str) -> Runner:
        """The loaded model, with one more request of it in flight."""
        with self._scheduling:
            runner = self.loaded.get(name)
            if runner is None:
                while len(self.loaded) >= MANY:
                    idle = [each for each in self.loaded.values() if not each.busy]
                    if not idle:
                        time.sleep(0.01)
                        continue
                    oldest = min(idle, key=lambda each: each.used_at)
                    if not self.models[oldest.name].get("unloaded_silently"):  # as OLLAMA_MAX_LOADED_MODELS does
                        record(
                        self.log, "INFO", "sched.go:551", "llama-server model predicted to exceed available memory, "
                        "evicting", predicted="2.1 GiB", available="1.2 GiB",
                    )  # fmt: skip
                    oldest.kill()
                    del self.loaded[oldest.name]
                runner = Runner(name, self.models[name], self.log)
                self.loaded[name] = runner
                record(self.log, "INFO", "sched.go:728", "loaded runners", count=len(self.loaded))
                record(
                    self.log, "INFO", "llama_server.go:1362", f"llama-server started in {runner.loading_s:.2f} seconds"
                )
            runner.busy += 1
            return runner

    def unload(self, name: str) -> None:
        """Its keep-alive has passed: nothing is logged."""
        with self._scheduling:
            self.loaded.pop(name).kill()

    def generate(self, body: dict[str, Any]) -> bytes:
        """Pass a completion on."""
        runner = self.runner(body["model"])
        try:
            with runner.waiting:
                sent = json.dumps(
                    {"prompt": body["prompt"], "n_predict": body.get("tokens", 8), "ignore_eos": True, "stream": True}
                ).encode()
                request = urllib.request.Request(
                    f"http://127.0.0.1:{runner.port}/completion", sent, {"Content-Type": "application/json"}
                )
                with urllib.request.urlopen(request, timeout=120) as answer:
                    last = [line for line in answer.read().split(b"\n") if line.startswith(b"data: ")][-1]
                    return bytes(last[6:])
        finally:
            runner.busy -= 1
            runner.used_at = time.monotonic()


def main() -> None:  # noqa: C901 - a handler for each endpoint
    """``ollama serve PORT MODELS.json``."""
    port, models = int(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text())
    ollama = Ollama(models)
    answers = Path(sys.argv[3]).with_name("answers.jsonl")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(self._get)

        def do_POST(self) -> None:
            self._answer(self._post)

        def _get(self) -> tuple[int, bytes]:
            if self.path == "/api/version":
                return 200, json.dumps({"version": VERSION}).encode()
            if self.path == "/api/ps":
                expiry = datetime.now().astimezone() + timedelta(minutes=5)
                loaded = [
                    {
                        "name": name, "model": name, "size": 1, "digest": "0" * 64, "size_vram": 0,
                        "details": {"format": "gguf", "family": "llama"}, "expires_at": expiry.isoformat(),
                        "context_length": 1024,
                    }
                    for name in ollama.loaded
                ]  # fmt: skip
                return 200, json.dumps({"models": loaded}).encode()
            return 200, b"Ollama is running"

        def _post(self) -> tuple[int, bytes]:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/api/show":
                path = models[body["model"]]["path"]
                return 200, json.dumps({"modelfile": f"# Modelfile\n\nFROM {path}\nTEMPLATE x\n"}).encode()
            if self.path == "/stand-in/unload":
                ollama.unload(body["model"])
                return 200, b"{}"
            if body["model"] not in models:
                return 404, b'{"error":"model not found"}'
            if not body.get("prompt"):
                ollama.runner(body["model"]).busy -= 1
                return 200, b'{"done_reason":"load"}'
            return 200, ollama.generate(body)

        def _answer(self, make: Callable[[], tuple[int, bytes]]) -> None:
            started = time.monotonic()
            status, data = make()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            if self.path.startswith("/stand-in"):
                return
            stamp = datetime.now().astimezone().strftime("%Y/%m/%d - %H:%M:%S")
            took = go_duration(time.monotonic() - started)
            line = f'[GIN] {stamp} | {status:3d} | {took:>13} | {"127.0.0.1":>15} | {self.command:<7}  "{self.path}"\n'
            ollama.log(line.encode())
            if (tokens := self.headers.get("Stand-In-Tokens")) is not None:
                with answers.open("a") as file:
                    file.write(json.dumps([int(tokens), took]) + "\n")

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    record(ollama.log, "INFO", "routes.go:2008", f"Listening on 127.0.0.1:{port} (version {VERSION})")
    try:
        server.serve_forever(0.05)
    finally:
        for runner in ollama.loaded.values():
            runner.kill()


class OllamaProcess:
    """The stand-in as a process named ``ollama``, for a test."""

    def __init__(self, folder: Path, models: dict[str, dict[str, Any]]) -> None:
        """``models``: for each name the ``program``, ``path``, ``slots`` and ``context``."""
        program, listed = folder / "ollama", folder / "models.json"
        root = Path(__file__).parent.parent
        paths = [str(root), str(root / "collectors"), str(root / "dashboards")]
        program.write_text(
            f"#!{sys.executable}\nimport signal, sys\nsys.path[:0] = {paths!r}\n"
            "signal.signal(signal.SIGTERM, lambda *_: sys.exit())\n"
            "from tests.ollama_stand_in import main\nmain()\n"
        )
        program.chmod(0o755)
        listed.write_text(json.dumps(models))
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "ollama.log"
        self.child = Child([program, "serve", str(self.port), str(listed)], self.log)
        self.child.wait_ready(lambda: "Listening on" in self.child.output(), 30)

    def post(self, path: str, **body: object) -> Any:
        """A JSON answer."""
        headers = {"Stand-In-Tokens": str(body.get("tokens", 0))}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)

    def generate(self, model: str, prompt: str, tokens: int = 8) -> Any:
        """llama.cpp's answer to one completion."""
        return self.post("/api/generate", model=model, prompt=prompt, tokens=tokens)

    @property
    def durations(self) -> dict[int, str]:
        """What the access lines say, by the number of tokens that identifies a request."""
        return dict(json.loads(line) for line in self.log.with_name("answers.jsonl").read_text().splitlines())

    def close(self) -> None:
        """End it and its children."""
        self.child.stop()
