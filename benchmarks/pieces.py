"""Pieces on their own: reading one request out of the log, and starting up."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from llamatel.llama.log.line_buffer import LineBuffer
from llamatel.llama.log.reader import LogReader
from llamatel.records import ServerInfo

_PIPE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Pieces:
    """Times of parts of llamatel."""

    log_request_us: float
    """Reading the log, a request: bytes to lines to a record."""
    log_lines: float
    """Lines of the log a request."""
    import_ms: float
    """``import llamatel``, beyond Python's own start."""
    import_serve_ms: float
    """What ``llamatel serve`` imports, beyond Python's own start."""


def read_lines(log: bytes) -> list[str]:
    """The lines of a log that comes in pieces, as a pipe gives them."""
    buffer = LineBuffer()
    pieces = (log[start : start + _PIPE_BYTES] for start in range(0, len(log), _PIPE_BYTES))
    return [line for piece in pieces for line in buffer.feed(piece)]


def read_log(log: bytes) -> tuple[int, int]:
    """Read a log; the lines and the requests in it."""
    reader = LogReader(ServerInfo("127.0.0.1", 8090, "tiny.gguf"))
    lines = read_lines(log)
    return len(lines), sum(len(reader.feed(line, time.time())) for line in lines)


def yardstick_us() -> float:
    """A second's worth of one and the same loop: a quiet core of 3 GHz takes some 10 us for a turn of it."""
    turns = []
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        started = time.process_time()
        for _ in range(50):
            sum(range(1000))
        turns.append((time.process_time() - started) / 50 * 1e6)
    return statistics.median(turns)


def _start_ms(code: str, starts: int) -> float:
    times = []
    for _ in range(starts):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times)


def measure(log: Path, rounds: int) -> Pieces:
    """``log``: what a plain server wrote under load; times are medians of ``rounds``."""
    text = log.read_bytes()
    times = []
    for _ in range(rounds):
        started = time.process_time()
        lines, requests = read_log(text)
        times.append(time.process_time() - started)
    nothing = _start_ms("pass", rounds)
    return Pieces(
        log_request_us=statistics.median(times) / requests * 1e6,
        log_lines=lines / requests,
        import_ms=_start_ms("import llamatel", rounds) - nothing,
        import_serve_ms=_start_ms(
            "import llamatel.cli.serve, llamatel.runtime, llamatel.telemetry.otlp_exporters", rounds
        )
        - nothing,
    )
