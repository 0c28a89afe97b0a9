"""The server exits with the process that started it, however that exits. Each case runs in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamatel.llama import ServerManager
from tests.parts import free_port, wait_until
from tests.servers import has_exited

pytestmark = pytest.mark.usefixtures("no_settings")

START = """
import os, signal, sys, threading, time
from llamatel.llama import ServerManager
backend, model = sys.argv[1:3]
server = ServerManager(backend=backend, restart="on-failure").start_server(model, port=0, extra_args=["-t", "1"])
server.wait_until_ready(60)
print(server.info.pid, flush=True)
"""
WAIT = "while True: time.sleep(1)\n"
SOON = 10.0
"""Two seconds are promised; a busy machine gets more."""


class Owner:
    """A Python process that has started a server."""

    def __init__(self, backend: str | Path, model: Path | str, then: str, start: str = START) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", start + then, str(backend), str(model)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.end()
        self.server = int(line)

    def end(self) -> str:
        """Wait for its exit; return its stderr."""
        return self.process.communicate(timeout=60)[1]


@pytest.fixture
def owners() -> Iterator[list[Owner]]:
    made: list[Owner] = []
    yield made
    for owner in made:
        if owner.process.poll() is None:
            owner.process.kill()
        owner.process.communicate()


@pytest.mark.parametrize(
    ("then", "status"),
    [
        ("", 0),
        ("sys.exit(3)", 3),
        ("1 / 0", 1),
        ("os._exit(4)", 4),
        ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)", -signal.SIGTERM),
        ("os.kill(os.getpid(), signal.SIGKILL); time.sleep(60)", -signal.SIGKILL),
        ("os.kill(os.getpid(), signal.SIGINT); time.sleep(60)", -signal.SIGINT),
        ("os.abort()", -signal.SIGABRT),
        ("os.execvp('sh', ['sh', '-c', 'sleep 5'])", 0),
        ("os.kill(server.info.pid, signal.SIGKILL); time.sleep(0.2)", 0),
        ("threading.Thread(target=time.sleep, args=(1,)).start()", 0),
    ],
    ids=["end", "exit", "exception", "_exit", "SIGTERM", "SIGKILL", "SIGINT", "abort", "exec", "restarting", "thread"],
)
def test_server_exits_with_owner(backend: str, tiny_model: Path, owners: list[Owner], then: str, status: int) -> None:
    owner = Owner(backend, tiny_model, then)
    owners.append(owner)
    stderr = owner.end()
    assert owner.process.returncode == status
    wait_until(lambda: has_exited(owner.server), SOON)
    wait_until(lambda: not children_of_the_model(tiny_model, owner), SOON, "no server of this owner")
    expected = {1: "ZeroDivisionError", -signal.SIGINT: "KeyboardInterrupt", 0: ""}.get(status, "")
    assert expected in stderr
    assert ("Traceback" in stderr) == bool(expected)


def children_of_the_model(model: Path, owner: Owner) -> list[int]:
    """Processes that serve the model and whose session one of this owner's servers leads."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != owner.process.pid:
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if str(model).encode() in words and str(owner.process.pid).encode() in words:
                found.append(int(entry.name))  # the launcher, before it became the server
    return found


def test_killed_kernel_frees_its_port(backend: str, tiny_model: Path, owners: list[Owner]) -> None:
    """A kernel that is killed and started again gets its port; a second one on that port ends no other's server."""
    port = free_port()
    start = START.replace("port=0", f"port={port}")
    killed = Owner(backend, tiny_model, WAIT, start)
    owners.append(killed)
    killed.process.kill()
    killed.process.wait()
    again = Owner(backend, tiny_model, WAIT, start)
    owners.append(again)
    second = subprocess.run(
        [sys.executable, "-c", start, backend, str(tiny_model)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert second.returncode == 1
    assert str(port) in second.stderr.splitlines()[-1]
    assert not has_exited(again.server)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=30) as answer:
        assert answer.status == 200


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_server_exits_when_owner_is_signalled(
    backend: str, tiny_model: Path, owners: list[Owner], signum: signal.Signals
) -> None:
    owner = Owner(backend, tiny_model, WAIT)
    owners.append(owner)
    owner.process.send_signal(signum)
    owner.end()
    assert owner.process.returncode == -signum
    wait_until(lambda: has_exited(owner.server), SOON)


def test_server_exits_when_owner_is_killed_during_start(backend: str, tiny_model: Path) -> None:
    program = (
        "import sys, time\n"
        "from llamatel.llama import ServerManager\n"
        "server = ServerManager(backend=sys.argv[1]).start_server(sys.argv[2], port=0)\n"
        "while server.info.pid is None: time.sleep(0.001)\n"
        "print(server.info.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    pids = []
    for delay in (0.0, 0.01, 0.03, 0.06, 0.1):
        with subprocess.Popen(
            [sys.executable, "-c", program, backend, str(tiny_model)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            pids.append(int(process.stdout.readline()))
            time.sleep(delay)
            process.kill()
    wait_until(lambda: all(map(has_exited, pids)), SOON)


def test_owner_exits_although_server_hangs(backend: str, tiny_model: Path, owners: list[Owner]) -> None:
    owner = Owner(backend, tiny_model, "os.kill(server.info.pid, signal.SIGSTOP)\n")
    owners.append(owner)
    start_time = time.monotonic()
    assert owner.end() == ""
    assert (owner.process.returncode, has_exited(owner.server)) == (0, True)
    assert time.monotonic() - start_time < 30  # 1.5 s by design


def test_forked_child_does_not_stop_parent_server(
    llama_server_binary: Path, tiny_model: Path, owners: list[Owner]
) -> None:
    then = (
        "child = os.fork()\n"
        "if child == 0: sys.exit(5)\n"
        "status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
        "used = time.process_time()\n"
        "print(status, server.wait(1), time.process_time() - used < 0.5, server.stop_server(), flush=True)\n"
    )
    owner = Owner(llama_server_binary, tiny_model, then)
    owners.append(owner)
    assert owner.process.stdout is not None
    assert owner.process.stdout.readline() == "5 None True 0\n"
    assert owner.end() == ""


def test_router_children_exit_with_owner(
    llama_server_binary: Path, tiny_model: Path, tmp_path: Path, owners: list[Owner]
) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "tiny.gguf").write_bytes(tiny_model.read_bytes())
    program = START.replace("model, port", "None, port").replace('"-t", "1"', f'"--models-dir", {str(models)!r}')
    then = "print(server.base_url, flush=True)\n" + WAIT
    process = subprocess.Popen(
        [sys.executable, "-c", program + then, str(llama_server_binary), "unused"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        router, url = int(process.stdout.readline()), process.stdout.readline().strip()
        body = json.dumps({"model": "tiny", "prompt": "Hello", "n_predict": 2}).encode()
        headers = {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(f"{url}/completion", body, headers), timeout=60) as answer:
            assert answer.status == 200
        children = Path(f"/proc/{router}/task/{router}/children").read_text().split()
        loaded = [int(child) for child in children] or children_of(router)
        assert loaded
    finally:
        process.kill()
        process.communicate()
    wait_until(lambda: has_exited(router) and all(map(has_exited, loaded)), SOON)


def children_of(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[1]) == parent:
                found.append(int(entry.name))
    return found


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_server_survives_exit_of_owner_parent(llama_server_binary: Path, tiny_model: Path, tmp_path: Path) -> None:
    # Only the exit of the process that started the server counts (a daemon's parent exits early).
    then = tmp_path / "pid"
    program = (
        "import os, sys\n"
        "if os.fork(): os._exit(0)\n"
        + START.replace("print(server.info.pid, flush=True)", "")
        + f"open({str(then)!r} + '.new', 'w').write(f'{{os.getpid()}} {{server.info.pid}}')\n"
        f"os.rename({str(then)!r} + '.new', {str(then)!r})\n" + WAIT
    )
    subprocess.run([sys.executable, "-c", program, str(llama_server_binary), str(tiny_model)], check=True, timeout=60)
    wait_until(then.exists, 30)
    owner, server = map(int, then.read_text().split())
    time.sleep(0.5)
    alive = not has_exited(server)
    os.kill(owner, signal.SIGKILL)
    assert alive
    wait_until(lambda: has_exited(server), SOON)


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_script_backend_leaves_no_server(llama_server_binary: Path, tiny_model: Path, tmp_path: Path, how: str) -> None:
    """Without ``exec`` the script is our child, and exits only by a signal."""
    script, pid_file = tmp_path / "llama-server", tmp_path / "pid"
    script.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && exit\n{llama_server_binary} "$@" &\necho $! >{pid_file}\nwait\n'
    )
    script.chmod(0o755)
    with ServerManager(backend=str(script)) as server:
        server.start_server(tiny_model, port=0, extra_args=["-t", "1"]).wait_until_ready(60)
        child = int(pid_file.read_text())
        assert not has_exited(child)
        assert server.info.pid not in (None, child)
        if how == "stopped":
            server.stop_server()
        else:
            os.kill(server.info.pid or 0, signal.SIGKILL)
            server.wait(30)
        wait_until(lambda: has_exited(child), SOON, "llama.cpp has exited")
