"""Replay: a log of 1,000,000 requests as a file, one of 100,000 through a pipe at full speed: every count is exact.

Environment: ``REPLAY_REQUESTS`` (1000000). The file is read with backpressure (``attach --log - < FILE``); the pipe is
always drained, so spans may be shed, which is counted.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.parts import OtlpSink
from tests.test_log_stress import made_up_log

_CHUNK = 20_000
_SPAN_LOSSES = ("shed", "queue_full", "export_failed", "rejected", "shutdown", "span_failed")


def _write_log(path: Path, requests: int) -> None:
    """Chunks whose times start at 0 again, as of a server that was restarted in between."""
    chunks = ["\n".join(made_up_log(_CHUNK, 8, seed)[0]) + "\n" for seed in range(1, min(6, 1 + requests // _CHUNK))]
    with path.open("w") as stream:
        for number in range(requests // _CHUNK):
            stream.write(chunks[number % len(chunks)])


def _attach(log: Path, *, pipe: bool, traces: bool) -> dict[str, Any]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "LLAMATEL_"))}
    with OtlpSink() as sink, log.open("rb") as file:
        argv = [
            sys.executable, "-m", "llamatel.cli.main", "attach", "--log", "-", "--metrics-addr", "127.0.0.1:0",
            "--otlp-endpoint", sink.endpoint, "--otlp-protocol", "http/protobuf",
        ]  # fmt: skip
        cat = subprocess.Popen(["cat"], stdin=file, stdout=subprocess.PIPE) if pipe else None
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        done = subprocess.run(
            argv, stdin=file if cat is None else cat.stdout, capture_output=True, text=True, check=False,
            env={**clean, **({} if traces else {"OTEL_TRACES_EXPORTER": "none"})},
        )  # fmt: skip
        seconds, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        if cat is not None:
            assert cat.stdout is not None
            cat.stdout.close()
            cat.wait()
        metrics = sink.latest()
        dropped = {
            str(point.attributes["reason"]): int(point.value)
            for point in metrics["llamatel.records.dropped"].points
            if point.value
        }
        return {
            "exit_code": done.returncode,
            "summary": done.stderr.strip().splitlines()[-1],
            "seconds": round(seconds, 1),
            "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
            "counter": sum(int(point.value or 0) for point in metrics["llamacpp.requests"].points),
            "histogram": sum(point.count for point in metrics["gen_ai.server.request.duration"].points),
            "dropped": dropped,
            "traces_received": len({span.trace_id for span in sink.spans()}),
        }


def run(folder: Path) -> dict[str, object]:
    """Read both logs."""
    figures: dict[str, object] = {}
    requests = int(os.environ.get("REPLAY_REQUESTS", "1000000"))
    for name, number, pipe in (("pipe", min(100_000, requests), True), ("file", requests, False)):
        log = folder / "server.log"
        _write_log(log, number)
        part = _attach(log, pipe=pipe, traces=pipe)
        figures[name] = {"requests": number, "log_bytes": log.stat().st_size, **part}
        assert part["exit_code"] == 0, part
        assert part["counter"] == part["histogram"] == number, part
        assert f"{number} requests" in part["summary"].replace(",", ""), part
        lost = sum(part["dropped"].get(reason, 0) for reason in _SPAN_LOSSES)
        assert not pipe or part["traces_received"] + lost >= number, part
    return figures
