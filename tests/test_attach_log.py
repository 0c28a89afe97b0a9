"""``llamatel attach --log`` as a process: complete records, dates, labels, and messages for logs without requests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.attached import unmanaged
from tests.golden.reading import log_lines
from tests.parts import wait_until
from tests.test_log_stress import made_up_log

pytestmark = pytest.mark.usefixtures("no_settings")

ATTACH = [sys.executable, "-m", "llamatel.cli.main", "attach", "--metrics-addr", "none"]


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def read_input(lines: list[str] | tuple[str, ...], tmp_path: Path) -> tuple[list[dict[str, object]], str]:
    """Attach to a log file on standard input; return the recorded requests and stderr."""
    log, out = tmp_path / "server.log", tmp_path / "out.jsonl"
    log.write_text("".join(f"{line}\n" for line in lines))
    with log.open() as stream:
        done = subprocess.run(
            [*ATTACH, "--log", "-", "--jsonl", out],
            stdin=stream,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
    return rows(out), done.stderr


def test_attach_file_on_standard_input_is_complete(tmp_path: Path) -> None:
    lines, requests = made_up_log(9000, 8)
    found, notes = read_input(lines, tmp_path)
    assert len(found) == len({row["task"] for row in found}) == len(requests) == 9000
    assert "llamatel: 9000 requests:" in notes
    assert "not in telemetry" not in notes


def test_attach_log_alone_names_server_and_model(tmp_path: Path) -> None:
    found, _ = read_input(log_lines("2026.10.11549"), tmp_path)
    assert len(found) == 37
    assert {(row["server"]["address"], row["server"]["port"], row["server"]["model"]) for row in found} == {  # type: ignore[index]
        ("127.0.0.1", 34129, "tiny.gguf")
    }


def test_attach_log_without_requests_message(tmp_path: Path) -> None:
    found, notes = read_input(["GET / 200", "GET /favicon.ico 404"], tmp_path)
    assert found == []
    assert "no request was found in standard input: none of its 2 lines is llama.cpp's: another program's log" in notes


def test_attach_backlog_has_the_labels_of_the_polled_server(
    llama_server_binary: Path, tiny_model: Path, tmp_path: Path
) -> None:
    out, state = tmp_path / "out.jsonl", tmp_path / "state.json"
    flags = ("-m", tiny_model, "--metrics", "--alias", "my-model")
    with unmanaged(llama_server_binary, tmp_path, *flags) as server:
        log = tmp_path / f"server-{server.port}-1.log"
        command: list[str | Path] = [
            *ATTACH,
            server.url,
            "--log",
            log,
            "--from-start",
            "--log-state",
            state,
            "--jsonl",
            out,
        ]
        for round_number in (1, 2):
            for _ in range(3):
                server.complete(4)
            program = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
            try:
                wait_until(lambda: len(rows(out)) >= 4 * round_number - 1, 30, "the requests")  # noqa: B023 - called here
                server.complete(4)
                wait_until(lambda: len(rows(out)) >= 4 * round_number, 30, "the next request")  # noqa: B023
            finally:
                program.send_signal(signal.SIGTERM)
                program.communicate(timeout=30)
            assert program.returncode == 0
        found = rows(out)
    # A restart of llamatel neither records a request twice nor misses one.
    assert len(found) == len({row["task"] for row in found}) == 8
    assert {(row["server"]["address"], row["server"]["port"], row["server"]["model"]) for row in found} == {  # type: ignore[index]
        ("127.0.0.1", server.port, "my-model")
    }


def test_attach_fifo_without_a_writer_exits(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    program = subprocess.Popen([*ATTACH, "--log", fifo], stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
    assert program.stderr is not None
    program.stderr.readline()
    program.send_signal(signal.SIGTERM)
    program.communicate(timeout=20)
    assert program.returncode == 0
