"""The wall clock is set while a server is observed: llama.cpp's log times step with it, every request is counted."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from llamatel.llama.log.log_audit import LogAudit
from tests.attached import Unmanaged
from tests.load import Clients, completion
from tests.parts import Child, wait_until
from tests.parts.fake_clock import FakeClock
from tests.serving import Serving, metric_sum

STEPS_S = (30, 0, -30, 0, 3600, -3600, 0)
REQUESTS = [completion(f"Number {n}", 6, stream=bool(n % 2)) for n in range(20)]


def send_over_steps(clock: FakeClock, url: str) -> int:
    """Send requests while the clock is stepped; how many were answered."""
    with Clients(url) as clients, clients.keep_sending(REQUESTS, at_once=2, pause_s=0.05) as sending:
        for step in STEPS_S:
            time.sleep(0.7)
            clock.step(step)
        time.sleep(0.7)
        answers = sending.end()
    assert all(answer.outcome == "ok" for answer in answers)
    return len(answers)


@pytest.mark.parametrize("backend", ["xllamacpp", "llama-server"])
def test_serve_counts_over_clock_steps(
    tmp_path: Path, tiny_model: Path, backend: str, llama_server_binary: Path
) -> None:
    clock = FakeClock(tmp_path)
    program = str(llama_server_binary) if backend == "llama-server" else backend
    serving = Serving(tmp_path, tiny_model, "--metrics-addr", "127.0.0.1:0", backend=program, env=clock.environment)
    try:
        sent = send_over_steps(clock, serving.url)
        wait_until(lambda: serving.metric("llamacpp_requests_total") == sent, 20, f"{sent} requests")
        assert not serving.metric("llamatel_log_contradictions_total")
        assert not serving.metric("llamatel_requests_lost_total")
    finally:
        serving.child.stop()


def test_attach_counts_over_clock_steps(tmp_path: Path, tiny_model: Path, llama_server_binary: Path) -> None:
    clock = FakeClock(tmp_path)
    server = Unmanaged(llama_server_binary, tmp_path, "-m", tiny_model, "--metrics", env=clock.environment)
    child = Child(
        [
            sys.executable, "-m", "llamatel.cli.main", "attach", server.url, "--log", server.child.log,
            "--metrics-addr", "127.0.0.1:0",
        ],
        tmp_path / "attach.log",
        clock.environment,
    )  # fmt: skip
    try:
        child.wait_ready(lambda: "/metrics" in child.output(), 60)
        url = next(word for word in child.output().split() if word.endswith("/metrics"))
        sent = send_over_steps(clock, server.url)
        wait_until(lambda: metric_sum(url, "llamacpp_requests_total") == sent, 20, f"{sent} requests")
        assert not metric_sum(url, "llamatel_requests_lost_total")
        assert metric_sum(url, "llamacpp_requests_total", server_address="unknown") is None  # no other server
    finally:
        child.stop()
        server.child.kill()


def test_audit_future_line_over_clock_step() -> None:
    now, wall = [100.0], [1_000_000.0]
    audit = LogAudit(supervised=True, clock=lambda: now[0], wall=lambda: wall[0])
    audit.restart()
    now[0] += 5
    wall[0] += 5
    assert not audit.is_future(5.5)
    assert audit.is_future(40)
    wall[0] += 30  # the clock is set forward
    assert not audit.is_future(35.5)
    assert audit.is_future(40)
