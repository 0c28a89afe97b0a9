"""Counts are complete: requests in the log = requests counted; spans = exported + reported as dropped.

A log of many requests is read by the command line, from a file and from a pipe, with Prometheus and OTLP.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parts import OtlpSink
from tests.test_log_stress import made_up_log

REQUESTS = 3000


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "server.log"
    lines, _ = made_up_log(REQUESTS, 8)
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def sink() -> Iterator[OtlpSink]:
    with OtlpSink() as made:
        yield made


def attach(log: Path, sink: OtlpSink, jsonl: Path, *, pipe: bool, **env: str) -> str:
    """Read a log to its end; return stderr."""
    argv = [sys.executable, "-m", "llamatel.cli.main", "attach", "--log", "-", "--jsonl", str(jsonl)]
    argv += ["--metrics-addr", "127.0.0.1:0", "--otlp-endpoint", sink.endpoint, "--otlp-protocol", "http/protobuf"]
    with log.open("rb") as file:
        cat = subprocess.Popen(["cat"], stdin=file, stdout=subprocess.PIPE) if pipe else None
        try:
            done = subprocess.run(
                argv, stdin=file if cat is None else cat.stdout, env={**clean_environment(), **env},
                capture_output=True, text=True, timeout=200, check=False,
            )  # fmt: skip
        finally:
            if cat is not None:
                assert cat.stdout is not None
                cat.stdout.close()
                cat.wait(30)
    assert done.returncode == 0, done.stderr
    return done.stderr


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "LLAMATEL_"))}


@pytest.mark.parametrize("pipe", [False, True], ids=["file", "pipe"])
@pytest.mark.parametrize("queue", ["16384", "64"])
def test_counts_requests_and_spans_complete(log: Path, sink: OtlpSink, tmp_path: Path, pipe: bool, queue: str) -> None:
    """With a queue of 64 spans most are dropped, and every one is reported."""
    stderr = attach(log, sink, tmp_path / "rows.jsonl", pipe=pipe, OTEL_BSP_MAX_QUEUE_SIZE=queue)
    assert f"{REQUESTS} requests" in stderr
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == REQUESTS
    metrics = sink.latest()
    assert sum(point.value or 0 for point in metrics["llamacpp.requests"].points) == REQUESTS
    assert sum(point.count for point in metrics["gen_ai.server.request.duration"].points) == REQUESTS
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    spans = sum(1 + (row["prefill_s"] is not None) + (row["decode_s"] is not None) for row in rows)
    arrived = len(sink.spans())
    queues = sum(span.name == "queue" for span in sink.spans())
    dropped = {
        point.attributes["reason"]: point.value
        for point in metrics["llamatel.records.dropped"].points
        if point.value and point.attributes["reason"] in ("shed", "queue_full", "export_failed", "shutdown")
    }
    if not dropped:
        assert arrived - queues == spans
    # The last metrics are exported after the last spans.
    assert [point.value for point in metrics["llamatel.spans.exported"].points] == [arrived]
    lost = sum(dropped.values())
    queued = sum(row["queue_s"] is not None and row["queue_s"] > 0.0001 for row in rows)
    assert arrived + lost == spans + queued
    if lost:
        assert any("llamatel.sampling.ratio" in span.attributes for span in sink.spans()) or "queue_full" in dropped
