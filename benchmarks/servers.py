"""The two sides: a plain llama.cpp server, and the same one under ``llamatel serve``.

Both run with the very same command line: the plain one is started with the arguments that llamatel gave to its child,
but for the port. Its log goes to a file, as its users have it; under llamatel it goes through llamatel's pipe.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import procfs
from tests.parts import accepts, free_port, rotel_program

_READY_S = 60.0
EXPORT_EVERY_S = 5.0
"""How often spans leave where nothing else is set (``OTEL_BSP_SCHEDULE_DELAY``)."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to run the server."""

    name: str
    protocol: str | None = None
    """OTLP protocol, or None."""
    traced: bool = True
    """Under llamatel; False: the plain server."""


PLAIN = Variant("plain", traced=False)
CONTROL = Variant("plain again", traced=False)
PROMETHEUS = Variant("Prometheus")
OTLP_HTTP = Variant("Prometheus + OTLP/HTTP", "http/protobuf")
OTLP_GRPC = Variant("Prometheus + OTLP/gRPC", "grpc")


@dataclass(frozen=True, slots=True)
class Running:
    """A server that runs, and who runs it."""

    variant: Variant
    port: int
    server_pid: int
    llamatel_pid: int | None
    metrics_url: str
    """What a Prometheus would scrape: llamatel's endpoint, or the plain server's own."""
    log: Path
    """The plain server's log, or what llamatel printed."""
    ready_s: float
    """From the start of the first process until the server answered."""

    def scrape(self) -> str:
        """One scrape's text."""
        with urllib.request.urlopen(self.metrics_url, timeout=10) as answer:  # noqa: S310 - an address of our own
            return str(answer.read().decode())


@dataclass(frozen=True, slots=True)
class Collector:
    """A running OTLP collector that throws away what it gets."""

    pid: int
    endpoints: Mapping[str, str]
    """By OTLP protocol."""


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@contextlib.contextmanager
def _process(
    command: Sequence[str], output: Path, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    # No setting of the caller's may change what is measured.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "LLAMA_"))}
    with output.open("wb") as sink:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, env={**kept, **(env or {})}
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_ready(process: subprocess.Popen[bytes], port: int, output: Path) -> float:
    started = time.perf_counter()
    while not _answers(port):
        if process.poll() is not None or time.perf_counter() - started > _READY_S:
            raise RuntimeError(f"the server did not start:\n{output.read_text(errors='replace')[-2000:]}")
        time.sleep(0.002)
    return time.perf_counter() - started


@contextlib.contextmanager
def traced(
    variant: Variant,
    model: Path,
    folder: Path,
    server_args: Sequence[str],
    *,
    backend: str,
    collector: Collector | None,
    export_every_s: float,
    extra: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Iterator[Running]:
    """``llamatel serve`` with a variant's telemetry. ``server_args`` go to llama.cpp, ``extra`` to llamatel."""
    port, metrics_port = free_port(), free_port()
    command = [
        sys.executable, "-m", "llamatel.cli.main", "serve", str(model), "--backend", backend,
        "--port", str(port), "--metrics-addr", f"127.0.0.1:{metrics_port}", *extra,
    ]  # fmt: skip
    env = dict(environment or {})
    if variant.protocol is not None:
        assert collector is not None
        command += ["--otlp-endpoint", collector.endpoints[variant.protocol]]
        delay_ms = f"{export_every_s * 1e3:.0f}"
        env |= {"OTEL_EXPORTER_OTLP_PROTOCOL": variant.protocol, "OTEL_BSP_SCHEDULE_DELAY": delay_ms}
    output = folder / f"llamatel-{port}.log"
    with _process([*command, "--", *server_args], output, env) as process:
        ready_s = _wait_ready(process, port, output)
        [server_pid] = procfs.children(process.pid)
        metrics = f"http://127.0.0.1:{metrics_port}/metrics"
        yield Running(variant, port, server_pid, process.pid, metrics, output, ready_s)


@contextlib.contextmanager
def plain(variant: Variant, like: Running, folder: Path) -> Iterator[Running]:
    """The server of ``like`` without llamatel: the same program and arguments, on a port of its own."""
    port = free_port()
    command = [str(port) if word == str(like.port) else word for word in procfs.command_line(like.server_pid)]
    output = folder / f"plain-{port}.log"
    with _process(command, output) as process:
        ready_s = _wait_ready(process, port, output)
        metrics = f"http://127.0.0.1:{port}/metrics"
        yield Running(variant, port, process.pid, None, metrics, output, ready_s)


@contextlib.contextmanager
def collector(folder: Path) -> Iterator[Collector]:
    """rotel, a real collector, in a process of its own. Raises MissingPart where it cannot be had."""
    program, env = rotel_program()
    grpc, http = free_port(), free_port()
    command = [
        str(program), "start", "--pid-file", str(folder / "rotel.pid"), "--log-file", str(folder / "rotel-agent.log"),
        "--otlp-grpc-endpoint", f"127.0.0.1:{grpc}", "--otlp-http-endpoint", f"127.0.0.1:{http}",
        "--exporter", "blackhole",
    ]  # fmt: skip
    with _process(command, folder / "rotel.log", env) as process:
        deadline = time.monotonic() + _READY_S
        while not all(map(accepts, (grpc, http))):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"rotel did not start:\n{(folder / 'rotel.log').read_text()[-2000:]}")
            time.sleep(0.02)
        yield Collector(process.pid, {"grpc": f"http://127.0.0.1:{grpc}", "http/protobuf": f"http://127.0.0.1:{http}"})
