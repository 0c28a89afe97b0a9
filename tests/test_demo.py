"""``llamatel demo`` in a pipe, on a terminal, interrupted. Real llama.cpp."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.parts.otlp import OtlpSink
from tests.parts.processes import wait_until
from tests.parts.terminal import Terminal, plain

DEMO = [sys.executable, "-m", "llamatel.cli.main", "demo"]
REQUEST = re.compile(r"^\d\d:\d\d:\d\d (\w+) ", re.MULTILINE)
SENT = {"ok": 16, "cancelled": 1, "error": 1, "context_full": 0}


def environment(**more: str) -> dict[str, str]:
    """Environment without this machine's telemetry settings; metrics on a free port."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return {**own, "OTEL_EXPORTER_PROMETHEUS_PORT": "0", "TZ": "UTC", **more}


def demo(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DEMO, *arguments], capture_output=True, text=True, timeout=120, env=environment(**env), check=False
    )


def test_demo_pipe(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    done = demo("--jsonl", str(path))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stdout

    seen = Counter(REQUEST.findall(done.stdout))
    assert seen == Counter({name: number for name, number in SENT.items() if number})
    total = sum(SENT.values())
    assert f"{total} requests  16 ok  1 cancelled  1 error  0 context_full" in done.stdout

    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert Counter(row["outcome"] for row in rows) == seen
    ok = [row for row in rows if row["outcome"] == "ok"]
    tokens = re.search(r"^tokens +([\d,]+) in \(([\d,]+) from the KV cache\), ([\d,]+) out$", done.stdout, re.MULTILINE)
    assert tokens is not None
    assert [int(number.replace(",", "")) for number in tokens.groups()] == [
        sum(row[name] for row in ok) for name in ("prompt_tokens", "prompt_cached", "generated")
    ]
    assert max(row["queue_s"] or 0 for row in ok) > 0

    for part in ("  prefill ", "  decode ", "time to first token", "llamatel serve ", "OTEL_EXPORTER_OTLP_ENDPOINT="):
        assert part in done.stdout
    assert not [line for line in done.stdout.splitlines() if len(line) > 80 and "exceeds the available" not in line]


def test_demo_traces_reach_collector(otlp_sink: OtlpSink) -> None:
    done = demo(
        "--json",
        "--backend",
        "xllamacpp",
        "--otlp-endpoint",
        otlp_sink.endpoint,
        OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
    )
    assert done.returncode == 0, done.stderr
    shown = {row["trace_id"]: row["outcome"] for row in json.loads(done.stdout)["requests"]}
    assert len(shown) == sum(SENT.values())
    arrived = otlp_sink.traces()
    assert set(arrived) == set(shown)
    for trace_id, outcome in shown.items():
        names = {span.name for span in arrived[trace_id]}
        assert outcome != "ok" or {"prefill", "decode"} < names
    about = arrived[next(iter(shown))][0].resource
    assert about["llamacpp.backend"] == "xllamacpp"
    assert about["llamacpp.build"] == version("xllamacpp")
    assert {"service.name", "service.instance.id", "host.name", "process.pid"} < about.keys()
    assert "process.command_args" not in about


def test_demo_json() -> None:
    done = demo("--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["summary"]["requests"] == {"total": 18, **SENT}
    assert document["clients"] == {"total": 18, "ok": 16, "cancelled": 1, "error": 1}
    assert len(document["requests"]) == 18
    assert document["summary"]["end_to_end_s"]["n"] == 16


def test_demo_closed_pipe(tmp_path: Path) -> None:
    errors = tmp_path / "errors"
    done = subprocess.run(
        ["bash", "-c", '"$@" 2>"$ERRORS" | head -1; echo "status ${PIPESTATUS[0]}"', "-", *DEMO],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(ERRORS=str(errors)),
        check=False,
    )
    assert done.stdout == "llamatel demo\nstatus 0\n"
    assert "Traceback" not in errors.read_text()
    assert "error" not in errors.read_text()


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_demo_signal(signum: signal.Signals, code: int, tmp_path: Path) -> None:
    output = tmp_path / "output"
    with output.open("wb") as stream:
        process = subprocess.Popen(DEMO, stdout=stream, stderr=subprocess.STDOUT, env=environment())
    try:
        wait_until(lambda: REQUEST.search(output.read_text()), 60, "the first request line")
        process.send_signal(signum)
        assert process.wait(20) == code
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in output.read_text()


def test_demo_default_metrics_port_in_use() -> None:
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # already in use by another process, which is fine too
            stack.enter_context(socket.create_server(("127.0.0.1", 9464)))
        done = demo(OTEL_EXPORTER_PROMETHEUS_PORT="")
        assert done.returncode == 0, done.stderr
        moved = re.search(r"metrics +http://127\.0\.0\.1:(\d+)/metrics", done.stdout)
        assert moved is not None
        assert int(moved.group(1)) != 9464
        assert "127.0.0.1:9464 is in use" in done.stderr


def test_demo_named_metrics_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as used:
        port = used.getsockname()[1]
        for done in (demo("--metrics-addr", f"127.0.0.1:{port}"), demo(OTEL_EXPORTER_PROMETHEUS_PORT=str(port))):
            assert done.returncode == 1
            assert "in use" in done.stderr.splitlines()[-1]


def test_demo_terminal() -> None:
    with Terminal(DEMO, environment()) as terminal:
        terminal.wait_for("Ctrl-C ends it")
        shown = plain(terminal.text)
        server = re.search(r"server +(http://127\.0\.0\.1:\d+)", shown)
        metrics = re.search(r"metrics +(http://127\.0\.0\.1:\d+/metrics)", shown)
        assert server is not None
        assert metrics is not None
        before = len(REQUEST.findall(shown))
        body = json.dumps({"prompt": "Hello", "max_tokens": 8}).encode()
        with urllib.request.urlopen(f"{server.group(1)}/v1/completions", body, timeout=30) as answer:
            assert answer.status == 200
        wait_until(lambda: terminal.read() and len(REQUEST.findall(plain(terminal.text))) > before, 30, "its line")
        with urllib.request.urlopen(metrics.group(1), timeout=30) as answer:
            assert b"llamacpp_requests_total" in answer.read()
        terminal.press("\x03")
        assert terminal.wait() == 0
    text = plain(terminal.text)
    assert "\x1b[" in terminal.text  # colours
    assert "Traceback" not in text
    assert f"{sum(SENT.values())} requests" in text
    after_progress = text[text.index("llamatel demo") :]
    assert max(map(len, after_progress.splitlines())) <= 80


def test_demo_keep_sending_without_colours() -> None:
    with Terminal([*DEMO, "--keep-sending"], environment(NO_COLOR="1")) as terminal:
        terminal.wait_for("Ctrl-C ends it")
        sent = sum(SENT.values())
        wait_until(lambda: terminal.read() and len(REQUEST.findall(plain(terminal.text))) > sent + 1, 30, "more lines")
        terminal.press("\x03")
        assert terminal.wait() == 0
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", terminal.text)
