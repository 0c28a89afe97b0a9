"""The launcher: a command that cannot outlive the process that requested it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llamatel.llama.server import launcher
from tests.parts import wait_until
from tests.servers import has_exited

LAUNCHER = [sys.executable, "-I", "-S", launcher.__file__]
PYTHON = [sys.executable, "-I", "-S", "-c"]


@pytest.fixture(params=[[], ["--watch"]], ids=["become", "watch"])
def way(request: pytest.FixtureRequest) -> list[str]:
    if not request.param and sys.platform != "linux":
        pytest.skip("Linux only")
    return list(request.param)


def launch(way: list[str], *command: str, parent: int | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*LAUNCHER, str(parent or os.getpid()), *way, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def outcome(way: list[str], *command: str, parent: int | None = None) -> tuple[int, str]:
    with launch(way, *command, parent=parent) as process:
        output = process.communicate(timeout=60)[0]
        return process.returncode, output


def test_launcher_output_and_exit_status(way: list[str]) -> None:
    assert outcome(way, *PYTHON, "import sys; print('hello'); sys.exit(7)") == (7, "hello\n")


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_launcher_exits_by_the_same_signal(way: list[str], signum: signal.Signals) -> None:
    code = f"import os, resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); os.kill(os.getpid(), {int(signum)})"
    assert outcome(way, *PYTHON, code) == (-signum, "")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_launcher_forwards_signals(way: list[str], signum: signal.Signals) -> None:
    code = (
        "import signal, sys, time\n"
        "for number in (signal.SIGTERM, signal.SIGINT): signal.signal(number, lambda n, _: sys.exit(n))\n"
        "print('ready', flush=True)\n"
        "while True: time.sleep(0.05)\n"  # a signal just before a sleep is handled after it
    )
    with launch(way, *PYTHON, code) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signum)
        assert process.wait(30) == signum


def test_launcher_resets_signal_handling(way: list[str]) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP})
    try:
        # sh, not Python, which ignores SIGPIPE itself.
        status, text = outcome(way, "sh", "-c", "grep -E '^Sig(Blk|Ign)' /proc/self/status")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert status == 0
    masks = {name: int(mask, 16) for name, mask in (line.split(":") for line in text.splitlines())}
    assert masks["SigBlk"] == 0
    assert not masks["SigIgn"] & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1)


@pytest.mark.parametrize(
    ("command", "reason"),
    [("/nowhere/llama-server", "No such file or directory"), ("/", "Permission denied|Is a directory")],
)
def test_launcher_invalid_command(way: list[str], command: str, reason: str) -> None:
    status, output = outcome(way, command)
    assert status == 127
    assert output.startswith(f"error: cannot run {command}: ")
    assert any(text in output for text in reason.split("|"))
    assert output.count("\n") == 1


def test_launcher_parent_exited_before_start(way: list[str]) -> None:
    with subprocess.Popen(["true"]) as finished:
        finished.wait()
    status, output = outcome(way, *PYTHON, "import time; print('ran', flush=True); time.sleep(60)", parent=finished.pid)
    # With --watch the launcher notices after a moment; else it checks before it becomes the command.
    assert (status, output) in ((1, ""), (-signal.SIGKILL, "ran\n"), (-signal.SIGKILL, ""))


def test_launcher_command_exits_with_parent(way: list[str], tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    command = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid()) + '\\n'); time.sleep(60)"
    parent = (
        "import os, subprocess, sys, time\n"
        f"subprocess.Popen([*{LAUNCHER!r}, str(os.getpid()), *{way!r}, *{PYTHON!r}, {command!r}])\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent]) as process:
        wait_until(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"))
        pid = int(pid_file.read_text())
        time.sleep(0.1)
        assert not has_exited(pid)
        process.kill()
    wait_until(lambda: has_exited(pid), 10)
