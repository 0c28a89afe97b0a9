"""The server manager with real llama.cpp servers: llama-server and the xllamacpp wheel."""

from __future__ import annotations

import logging
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from llamatel.errors import LlamatelError, ServerStartError, ServerStateError, ServerTimeout, UsageError
from llamatel.inputs.credentials import pin
from llamatel.inputs.http import HttpClient
from llamatel.llama.log.failure_line import failure_line
from llamatel.llama.server import manager as launch
from llamatel.llama.server.freed_ports import FreedPorts
from llamatel.llama.server.manager import ServerManager
from llamatel.llama.server.supervisor import ServerState
from llamatel.records import Completion, Outcome
from tests.acceptance import server_starts
from tests.certificates import make_certificate
from tests.parts import free_port, wait_until
from tests.servers import complete, complete_in_background, descriptors, has_exited, script, stop_process
from tests.tiny_gguf import write_tiny_model

pytestmark = pytest.mark.usefixtures("no_settings")

ENDED = (0, -signal.SIGTERM)
"""Exit status after SIGTERM; by the signal where its handler was not installed yet (the wheel's)."""
KEY = "sk-very-secret-0123456789"


class Servers:
    """Makes managers, and starts servers small enough for a small machine."""

    def __init__(self, model: Path) -> None:
        self.model = model
        self.made: list[ServerManager] = []

    def manager(self, backend: str | Path, **settings: Any) -> ServerManager:
        self.made.append(ServerManager(backend=str(backend), **settings))
        return self.made[-1]

    def start(
        self, backend: str | Path, *flags: str, port: int = 0, key: str | None = None, **settings: Any
    ) -> ServerManager:
        manager = self.manager(backend, **settings)
        return manager.start_server(self.model, port=port, api_key=key, extra_args=["-t", "1", *flags])

    def ready(self, backend: str | Path, *flags: str, port: int = 0, **settings: Any) -> ServerManager:
        return self.start(backend, *flags, port=port, **settings).wait_until_ready(60)


@pytest.fixture
def servers(tiny_model: Path) -> Iterator[Servers]:
    made = Servers(tiny_model)
    yield made
    for manager in made.made:
        manager.stop_server(2)


def pid_of(server: ServerManager) -> int:
    pid = server.info.pid
    assert pid is not None
    return pid


def pid_of_started(server: ServerManager) -> int:
    """State of a server that was just started."""
    wait_until(lambda: server.info.pid, every=0.0005)
    return pid_of(server)


def launched(server: ServerManager) -> int:
    """Requests that got a slot, by the last lines of the log."""
    return sum("processing task" in line for line in server.log_tail)


# -- start and stop ----------------------------------------------------------------------------------------------------


def test_manager_start_complete_stop(servers: Servers, backend: str) -> None:
    server = servers.start(backend)
    assert server.state in (ServerState.STARTING, ServerState.READY)
    assert server.wait_until_ready(60) is server
    assert server.state is ServerState.READY
    assert server.info.port
    assert server.base_url == f"http://127.0.0.1:{server.info.port}"
    assert server.info.model == "tiny.gguf"
    assert complete(server.base_url) == 200

    snapshot = server.snapshot()
    assert snapshot is not None
    assert snapshot.up is True
    assert snapshot.server.build
    assert snapshot.server.pid == pid_of(server)
    assert snapshot.counters["tokens_predicted_total"] == 4
    assert snapshot.restarts == 0
    assert snapshot.loading_s is not None
    assert snapshot.loading_s > 0
    assert snapshot.process_started_at == pytest.approx(time.time(), abs=60)

    pid = pid_of(server)
    assert server.stop_server() == 0
    assert has_exited(pid)
    assert (server.state, server.returncode, server.failure, server.info.pid) == (ServerState.STOPPED, 0, None, None)
    assert "listening on" in "\n".join(server.log_tail)
    after = server.snapshot()
    assert after is not None
    assert (after.up, after.loading_s, after.process_started_at) == (False, None, None)
    assert after.counters == snapshot.counters
    assert server.wait() == 0


def test_manager_stop_reads_last_counters(servers: Servers, backend: str) -> None:
    server = servers.ready(backend)
    assert complete(server.base_url, 7) == 200
    server.stop_server()
    snapshot = server.snapshot()
    assert snapshot is not None
    assert snapshot.counters["tokens_predicted_total"] == 7


def test_manager_context_manager_stops_on_exception(tiny_model: Path, backend: str) -> None:
    server = ServerManager(backend=backend)
    pids = []
    try:
        with server:
            pids.append(pid_of(server.start_server(tiny_model, port=0).wait_until_ready(60)))
            raise ZeroDivisionError
    except ZeroDivisionError:
        assert has_exited(pids[0])
    assert server.state is ServerState.STOPPED


def test_manager_labels(servers: Servers) -> None:
    """They are on what its requests and polls record, also after a restart."""
    server = servers.ready("xllamacpp", labels={"pod": "llama-0", "env": "prod"})
    done: list[Completion] = []
    server.subscribe(done.append)
    for _ in range(2):
        complete(server.base_url)
        server.restart()
        server.wait_until_ready(60)
    wait_until(lambda: len(done) == 2, 20, "two requests")
    labels = (("env", "prod"), ("pod", "llama-0"))
    assert {each.server.labels for each in done} == {state.server.labels for state in server.snapshots()} == {labels}


def test_manager_two_servers(servers: Servers, llama_server_binary: Path) -> None:
    one, other = servers.start("xllamacpp"), servers.start(llama_server_binary)
    assert one.wait_until_ready(60).base_url != other.wait_until_ready(60).base_url
    assert (complete(one.base_url, 3), complete(other.base_url, 5)) == (200, 200)
    one.stop_server()
    assert complete(other.base_url) == 200


def test_manager_calls_in_wrong_state(
    servers: Servers, llama_server_binary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_ports", FreedPorts())  # else it may start on one
    server = servers.manager(llama_server_binary)
    assert (server.state, server.snapshot(), server.returncode, server.log_tail) == (
        ServerState.STOPPED,
        None,
        None,
        (),
    )
    assert server.stop_server() is None
    for call in (server.wait_until_ready, server.restart, server.wait):
        with pytest.raises(ServerStateError, match=r"start_server\(\) first"):
            call()
    server.start_server(servers.model, port=0)
    os.kill(pid_of_started(server), signal.SIGSTOP)
    with pytest.raises(ServerStateError, match="no port yet"):
        _ = server.base_url
    os.kill(pid_of_started(server), signal.SIGCONT)
    server.wait_until_ready(60)
    with pytest.raises(ServerStateError, match="the server is ready: stop it first"):
        server.start_server(servers.model, port=0)
    assert (server.stop_server(), server.stop_server()) == (0, 0)
    with pytest.raises(ServerStateError, match="the server was stopped"):
        server.wait_until_ready(1)
    server.start_server(servers.model, port=0).wait_until_ready(60)


@pytest.mark.parametrize("settings", [{"restart": "always"}, {"max_restarts": -1}])
def test_manager_invalid_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        ServerManager(**settings)


def test_manager_restart_keeps_port_and_counters(servers: Servers, backend: str) -> None:
    server = servers.ready(backend)
    url, pid = server.base_url, pid_of(server)
    assert complete(url, 5) == 200
    server.restart(60)
    assert (server.base_url, server.state, server.restarts) == (url, ServerState.READY, 0)
    assert has_exited(pid)
    assert complete(url, 6) == 200
    snapshot = server.snapshot()
    assert snapshot is not None
    assert snapshot.counters["tokens_predicted_total"] == 11


def test_manager_free_port_reuses_stopped_servers(servers: Servers, backend: str) -> None:
    first = servers.ready(backend)
    url = first.base_url
    first.stop_server()
    second = servers.ready(backend)
    third = servers.ready(backend)  # the first one's port is taken
    assert second.base_url == url != third.base_url
    second.stop_server()
    with socket.create_server(("127.0.0.1", int(url.rpartition(":")[2]))):
        assert first.start_server(servers.model, port=0).wait_until_ready(60).base_url != url


def test_manager_free_port_started_often_leaves_no_dead_series(tmp_path: Path) -> None:
    assert server_starts.run(tmp_path, starts=6)["ports"] == 1


def test_manager_next_server_starts_counters_at_zero(
    servers: Servers, llama_server_binary: Path, tmp_path: Path
) -> None:
    server = servers.ready(llama_server_binary)
    assert complete(server.base_url, 5) == 200
    server.stop_server()
    other = write_tiny_model(tmp_path / "other.gguf", layers=1)
    server.start_server(other, port=0).wait_until_ready(60)
    assert complete(server.base_url, 2) == 200
    snapshot = server.snapshot()
    assert snapshot is not None
    assert (snapshot.server.model, snapshot.counters["tokens_predicted_total"]) == ("other.gguf", 2)


def test_manager_wait_timeout_and_wait_again(servers: Servers, backend: str) -> None:
    server = servers.start(backend)
    with pytest.raises(ServerTimeout, match="not ready after 0 s; its last line: "):
        server.wait_until_ready(0)
    assert server.wait(0) is None
    server.wait_until_ready(60)


def test_manager_stop_before_ready_ends_waiting(servers: Servers, backend: str) -> None:
    server = servers.start(backend)
    caught: list[Exception] = []

    def wait() -> None:
        try:
            server.wait_until_ready(60)
        except LlamatelError as error:
            caught.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    server.stop_server()
    waiter.join(10)
    assert not waiter.is_alive()
    # It may have been ready for a moment.
    assert [str(error) for error in caught] in ([], ["the server was stopped"])
    assert server.state is ServerState.STOPPED
    assert server.info.pid is None


def test_manager_kills_server_ignoring_sigterm(servers: Servers, backend: str) -> None:
    server = servers.ready(backend)
    pid = pid_of(server)
    os.kill(pid, signal.SIGSTOP)
    start_time = time.monotonic()
    assert server.stop_server(0.5) == -signal.SIGKILL
    assert time.monotonic() - start_time >= 0.5
    assert has_exited(pid)
    assert (server.state, server.failure) == (ServerState.STOPPED, None)


def test_manager_concurrent_stops_shortest_timeout(servers: Servers, llama_server_binary: Path) -> None:
    server = servers.ready(llama_server_binary)
    os.kill(pid_of(server), signal.SIGSTOP)
    patient = threading.Thread(target=server.stop_server, args=(300,))
    patient.start()
    wait_until(lambda: server.state is ServerState.STOPPING)
    assert server.stop_server(0.2) == -signal.SIGKILL
    patient.join(10)
    assert not patient.is_alive()


def test_manager_repeats_lost_sigterm(servers: Servers, llama_server_binary: Path, tmp_path: Path) -> None:
    # llama.cpp loses a SIGTERM between its message that it listens and the start of its loop; here each process loses
    # its first.
    wrapper = tmp_path / "forgetful.py"
    wrapper.write_text(
        f"#!{sys.executable}\n"
        "import signal, subprocess, sys\n"
        f"child = subprocess.Popen([{str(llama_server_binary)!r}, *sys.argv[1:]])\n"
        "received = []\n"
        "def handler(number, frame):\n"
        "    received.append(number)\n"
        "    if len(received) == 2: child.terminate()\n"
        "signal.signal(signal.SIGTERM, handler)\n"
        "sys.exit(child.wait())\n"
    )
    wrapper.chmod(0o755)
    server = servers.ready(wrapper)
    assert server.stop_server(60) == 0


def test_manager_blocked_signals_are_not_inherited(servers: Servers, backend: str) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        server = servers.ready(backend)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert server.stop_server(60) in ENDED


def test_manager_server_outlives_starting_thread(servers: Servers, backend: str) -> None:
    # On Linux the kernel would kill it with that thread, so the supervisor's own thread starts it.
    thread = threading.Thread(target=servers.start, args=(backend,))
    thread.start()
    thread.join()
    [server] = servers.made
    assert complete(server.wait_until_ready(60).base_url) == 200
    assert server.wait(0.2) is None


# -- a start that fails ------------------------------------------------------------------------------------------------


def missing(model: Path, _: bytes) -> list[str]:
    model.unlink()
    return []


def truncated(model: Path, whole: bytes) -> list[str]:
    model.write_bytes(whole[:200_000])
    return []


def no_gguf(model: Path, _: bytes) -> list[str]:
    model.write_text("hello world\n" * 100)
    return []


def empty(model: Path, _: bytes) -> list[str]:
    model.write_bytes(b"")
    return []


@pytest.mark.parametrize(
    ("prepare", "expected"),
    [
        (missing, "failed to open GGUF file '.*model.gguf' \\(No such file or directory\\)"),
        (truncated, "tensor '.*' data is not within the file bounds, model is corrupted or incomplete"),
        (no_gguf, "invalid magic characters: 'hell', expected 'GGUF'"),
        (empty, "failed to read magic"),
        (lambda *_: ["--frobnicate"], "invalid argument: --frobnicate"),
        (lambda *_: ["-ctk", "q9_9"], "Unsupported cache type: q9_9"),
        (lambda *_: ["-c", "many"], 'error while handling argument "-c"'),
    ],
    ids=["missing", "truncated", "no GGUF", "empty", "unknown flag", "cache type", "no number"],
)
def test_manager_failed_start_reports_reason_at_once(
    backend: str, prepare: Callable[[Path, bytes], list[str]], expected: str, tiny_model: Path, tmp_path: Path
) -> None:
    whole = tiny_model.read_bytes()
    model = tmp_path / "model.gguf"
    model.write_bytes(whole)
    flags = prepare(model, whole)
    server = ServerManager(backend=backend, restart="on-failure").start_server(model, port=0, extra_args=flags)
    with pytest.raises(ServerStartError, match=expected) as caught:
        server.wait_until_ready(60)
    assert str(caught.value).startswith("the server did not start (exit status 1): ")
    assert "\n" not in str(caught.value)
    assert caught.value.returncode == 1
    assert caught.value.log_tail == server.log_tail
    assert (server.state, server.restarts, server.wait()) == (ServerState.FAILED, 0, 1)
    snapshot = server.snapshot()
    assert snapshot is not None
    assert (snapshot.up, snapshot.counters) == (False, {})
    # It has failed: the manager can be used again.
    model.write_bytes(whole)
    assert complete(server.start_server(model, port=0).wait_until_ready(60).base_url) == 200
    assert server.stop_server() == 0


def test_manager_port_in_use(servers: Servers, backend: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = servers.start(backend, port=taken.getsockname()[1])
        with pytest.raises(
            ServerStartError, match=r"couldn't bind HTTP server socket, hostname: .*port 0 takes a free"
        ):
            server.wait_until_ready(60)


def test_manager_port_of_another_manager(
    servers: Servers, llama_server_binary: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = servers.ready(llama_server_binary)
    port = first.info.port
    assert port
    assert repr(first) == f"<ServerManager ready http://127.0.0.1:{port} {servers.model.name}>"
    with pytest.raises(ServerStateError, match=f"already runs a server at 127.0.0.1:{port}: stop_server"):
        servers.start(llama_server_binary, port=port)
    assert first.state is ServerState.READY
    # A notebook cell that is run again creates another manager, or starts the same one again.
    monkeypatch.setattr("llamatel.llama.server.manager.interactive", lambda: True)
    second = servers.ready(llama_server_binary, port=port)
    assert (first.state, first.returncode) == (ServerState.STOPPED, 0)
    pid = pid_of(second)
    second.start_server(servers.model, port=port).wait_until_ready(60)
    assert pid_of(second) != pid
    assert complete(second.base_url) == 200
    warnings = [record.message for record in caplog.records if "another server replaces it" in record.message]
    assert len(warnings) == 2
    assert servers.ready(llama_server_binary).state is second.state is ServerState.READY


def test_failure_line_before_backtrace() -> None:
    log = """\
0.00.032.011 E llama_context: something less telling
/src/llama-context.cpp:2526: GGML_ASSERT(n_outputs >= 1) failed
[New LWP 9420]
0x00007f warning: 56 ../sysdeps/unix/sysv/linux/x86_64/clone.S: No such file or directory
#2  0x000055d53908e508 in ggml_abort ()
[Inferior 1 (process 9417) detached]"""
    assert failure_line(log.splitlines()) == "GGML_ASSERT(n_outputs >= 1) failed"


def test_manager_other_server_on_port_is_not_ready(servers: Servers, llama_server_binary: Path) -> None:
    first = servers.ready(llama_server_binary)
    assert first.info.port
    # It logs nothing, so its health is polled; it notices late that the port is in use.
    launch._managers.discard(first)  # as if another process ran it
    slow = script(Path(servers.model).with_name("slow.sh"), f'sleep 2\nexec {llama_server_binary} "$@"\n')
    second = servers.start(slow, "--log-disable", port=first.info.port)
    with pytest.raises(ServerStartError, match="exit status 1"):
        second.wait_until_ready(60)


def test_manager_out_of_memory(servers: Servers, backend: str, tmp_path: Path) -> None:
    # The address space is limited, so that this machine's memory is not used up.
    command = [backend] if "/" in backend else [sys.executable, "-m", "llamatel.llama.server.xllamacpp_server"]
    limited = script(tmp_path / "limited.sh", f'ulimit -v 2000000\nexec {shlex.join(command)} "$@"\n')
    server = servers.start(limited, "-c", "100000000", "-fit", "off", "-np", "1")
    with pytest.raises(ServerStartError, match=r"bad_alloc|failed to allocate|unable to allocate"):
        server.wait_until_ready(60)


def test_manager_invalid_backend(servers: Servers, tmp_path: Path) -> None:
    broken = tmp_path / "llama-server"
    broken.write_bytes(b"\x7fELF but not really")
    broken.chmod(0o755)
    with pytest.raises(ServerStartError, match=r"cannot run .*llama-server: Exec format error") as caught:
        servers.start(broken).wait_until_ready(60)
    assert caught.value.returncode == 127


def test_manager_impossible_arguments(servers: Servers, llama_server_binary: Path) -> None:
    server = servers.start(llama_server_binary, "--alias", "a\0b")
    with pytest.raises(ServerStartError, match="the server could not be run: embedded null byte"):
        server.wait_until_ready(60)
    assert (server.state, server.stop_server()) == (ServerState.FAILED, None)


# -- ways to listen, ways to log ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [("-lv", "2"), ("-lv", "0"), ("--log-disable",)], ids=" ".join)
def test_manager_quiet_server_readiness_is_polled(servers: Servers, backend: str, flags: tuple[str, ...]) -> None:
    port = free_port()
    server = servers.ready(backend, *flags, port=port)
    assert server.base_url == f"http://127.0.0.1:{port}"
    assert complete(server.base_url) == 200
    snapshot = server.snapshot()
    assert snapshot is not None
    assert (snapshot.up, snapshot.counters["tokens_predicted_total"]) == (True, 4)


def test_manager_healthy_before_its_log_is_read(servers: Servers, tmp_path: Path) -> None:
    """A stand-in that logs right after the first request for its health, which is sent when nothing was logged."""
    program = tmp_path / "server.py"
    program.write_text(
        f"""#!{sys.executable}
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments):
        pass

server = HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler)
server.handle_request()
print("0.00.002.657 I srv          init: build_info: b11549-0123abc", file=sys.stderr)
listening = "listening on http://127.0.0.1:%d" % server.server_port
print("0.00.032.742 I srv          init:", listening, file=sys.stderr, flush=True)
server.serve_forever()
"""
    )
    program.chmod(0o755)
    server = servers.ready(program, port=free_port())
    assert server.info.build == "b11549-0123abc"  # its log is read; else no request would be seen


def test_manager_log_without_requests_warns_once(
    servers: Servers, llama_server_binary: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = servers.ready(llama_server_binary, "--log-disable", port=free_port())
    server.snapshot()
    assert complete(server.base_url) == 200
    understood = [snapshot.log.understood for _ in range(3) if (snapshot := server.snapshot()) and snapshot.log]
    assert understood == [None, False, False]  # at the first poll, lines may be late
    assert [record.getMessage()[:29] for record in caplog.records if record.levelno >= logging.WARNING] == [
        "this server generates tokens,"
    ]


def test_manager_unix_socket(servers: Servers, backend: str, tmp_path: Path) -> None:
    path = tmp_path / "llama.sock"
    server = servers.manager(backend).start_server(servers.model, host=str(path)).wait_until_ready(60)
    assert (server.info.address, server.info.port, server.base_url) == (str(path), None, f"unix://{path}")
    body = b'{"prompt": "Hello", "n_predict": 4, "ignore_eos": true}'
    assert HttpClient(server.base_url).request("/completion", body=body, total_s=60).status == 200
    snapshot = server.snapshot()
    assert snapshot is not None
    assert (snapshot.up, snapshot.counters["tokens_predicted_total"]) == (True, 4)
    server.restart(60)  # llama.cpp itself does not start where a socket exists
    os.kill(pid_of(server), signal.SIGKILL)
    server.wait(60)
    assert not path.exists()
    server.start_server(servers.model, extra_args=["--host", str(path)]).wait_until_ready(60)
    server.stop_server()
    assert not path.exists()


def test_manager_existing_unix_socket_is_kept(servers: Servers, llama_server_binary: Path, tmp_path: Path) -> None:
    """An existing file is kept, and reported before the model is loaded."""
    used, unused, file = (tmp_path / name for name in ("used.sock", "unused.sock", "file.sock"))
    file.write_text("precious")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(unused))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(used))
        listening.listen()
        for path, why in ((used, "another server listens there"), (unused, "remove it"), (file, "remove it")):
            with pytest.raises(UsageError, match=f"{path.name} exists: {why}"):
                servers.manager(llama_server_binary).start_server(servers.model, host=str(path))
            assert path.exists()
    with pytest.raises(UsageError, match="there is no folder"):
        servers.manager(llama_server_binary).start_server(servers.model, host=str(tmp_path / "no" / "l.sock"))
    with pytest.raises(UsageError, match="too long for a socket: at most 107 bytes"):
        servers.manager(llama_server_binary).start_server(servers.model, host=str(tmp_path / f"{'x' * 100}.sock"))


def test_manager_unix_socket_named_by_log_is_kept(servers: Servers, tmp_path: Path) -> None:
    """Client text in the log names neither a file to remove nor an address to poll."""
    victim = tmp_path / "victim.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(victim))
    program = script(tmp_path / "liar", f"echo 'srv main: server is listening on unix://{victim}'\nexec sleep 60\n")
    server = servers.manager(program).start_server(servers.model, port=free_port()).wait_until_ready(60)
    assert str(victim) not in (server.info.address, server.base_url)
    server.stop_server()
    assert victim.exists()


@pytest.mark.parametrize("way", ["flag", "variable"])
def test_manager_api_prefix(servers: Servers, backend: str, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    if way == "variable":
        monkeypatch.setenv("LLAMA_ARG_API_PREFIX", "/llm")
    server = servers.ready(backend, *(("--api-prefix", "/llm") if way == "flag" else ()))
    assert server.base_url.endswith("/llm")
    assert complete(server.base_url, 4) == 200
    snapshot = server.snapshot()
    assert snapshot is not None
    assert (snapshot.up, snapshot.counters["tokens_predicted_total"]) == (True, 4)
    assert snapshot.slots is not None


def test_manager_own_certificate(servers: Servers, sid_server: Path, tmp_path: Path) -> None:
    """A server that was launched with a certificate is polled over https, with any names in the certificate."""
    certificate, key = make_certificate(tmp_path, "llama.example")
    server = servers.ready(
        sid_server, "--ssl-key-file", str(key), "--ssl-cert-file", str(certificate), "--api-prefix", "/llm"
    )
    assert re.fullmatch(r"https://127\.0\.0\.1:\d+/llm", server.base_url)
    body = b'{"prompt": "Hello", "n_predict": 4, "ignore_eos": true}'
    client = HttpClient(server.base_url, tls=pin(certificate))
    assert client.request("/completion", body=body, total_s=60).status == 200
    client.close()
    snapshot = server.snapshot()
    assert snapshot is not None
    assert (snapshot.up, snapshot.counters["tokens_predicted_total"]) == (True, 4)


def test_manager_shipped_model(servers: Servers, backend: str) -> None:
    server = servers.manager(backend).start_server("tiny", port=0).wait_until_ready(60)
    assert server.info.model == "tiny.gguf"
    assert complete(server.base_url) == 200


def test_manager_ipv6_address(servers: Servers, backend: str) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    server = servers.manager(backend).start_server(servers.model, host="::1", port=0).wait_until_ready(60)
    assert server.base_url.startswith("http://[::1]:")
    assert complete(server.base_url) == 200


def test_manager_verbose_server_is_not_blocked(servers: Servers, backend: str) -> None:
    server = servers.ready(backend, "-lv", "5", "-np", "4")
    seen: list[Completion] = []
    server.subscribe(seen.append)
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda tokens: complete(server.base_url, tokens), [40] * 24)) == [200] * 24

    # At this verbosity llama.cpp writes some messages without a line end, so that one may hide the next.
    wait_until(lambda: len(seen) >= 20, 60)
    assert server.stop_server(60) == 0


def test_manager_server_log_to_file(servers: Servers, backend: str, tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    path.write_text("before\n")
    server = servers.ready(backend, server_log=path)
    assert complete(server.base_url) == 200
    server.stop_server()
    lines = path.read_text().splitlines()
    assert lines[0] == "before"
    assert tuple(lines[1:]) == server.log_tail
    assert server.start_server(servers.model, port=0).wait_until_ready(60).stop_server() in ENDED
    assert path.read_text().count("listening on") == 2


def test_manager_server_log_to_stderr(
    servers: Servers, llama_server_binary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = servers.ready(llama_server_binary, server_log="-")
    server.stop_server()
    assert tuple(capsys.readouterr().err.splitlines()) == server.log_tail


def test_manager_server_log_not_writable(servers: Servers, llama_server_binary: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot write the server's log to .*: No such file"):
        servers.start(llama_server_binary, server_log=tmp_path / "missing" / "server.log")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_manager_full_disk_drops_log_copy_only(
    servers: Servers, llama_server_binary: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = servers.ready(llama_server_binary, server_log="/dev/full")
    assert complete(server.base_url) == 200
    assert server.stop_server() == 0
    assert [record.getMessage() for record in caplog.records if record.name == "llamatel.llama.server.log_copy"] == [
        "cannot write the server's log to /dev/full: [Errno 28] No space left on device"
    ]


def test_manager_stderr_not_read(backend: str, tiny_model: Path) -> None:
    program = (
        "import sys\n"
        "from llamatel.llama import ServerManager\n"
        "from tests.servers import complete\n"
        f"server = ServerManager(backend={backend!r}, server_log='-')\n"
        f"server.start_server({str(tiny_model)!r}, port=0, extra_args=['-lv', '5', '-t', '1']).wait_until_ready(60)\n"
        "print(*[complete(server.base_url, 300) for _ in range(8)], server.stop_server(60), flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path.cwd()
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().split() == ["200"] * 8 + ["0"]
        assert process.wait(60) == 0  # and it exits, although the pipe is full


def test_manager_junk_in_log(servers: Servers, llama_server_binary: Path, tmp_path: Path) -> None:
    noisy = script(
        tmp_path / "noisy.sh",
        "head -c 300000 /dev/urandom >&2\n"
        "head -c 3000000 /dev/zero | tr '\\0' x >&2\n"
        "echo >&2\n"
        "echo '99999999999999999999.99.999.999 I slot release: id  0 | task 0 | stop processing: n_tokens = 1' >&2\n"
        f"head -c 9000 /dev/zero | tr '\\0' 7 >&2; echo '.00.000.000 I srv x: y' >&2\n"
        f'exec {llama_server_binary} "$@"\n',
    )
    seen: list[Completion] = []
    server = servers.ready(noisy)
    server.subscribe(seen.append)
    assert complete(server.base_url) == 200
    wait_until(lambda: seen)
    assert seen[0].outcome is Outcome.OK
    assert max(map(len, server.log_tail)) <= 65536
    assert server.stop_server() == 0


# -- listeners ---------------------------------------------------------------------------------------------------------


def test_manager_listeners_subscribe_and_unsubscribe(servers: Servers, llama_server_binary: Path) -> None:
    server = servers.ready(llama_server_binary)
    seen: list[Completion] = []
    once, twice = server.subscribe(seen.append), server.subscribe(seen.append)
    assert complete(server.base_url) == 200
    wait_until(lambda: len(seen) == 2)
    once()
    once()
    assert complete(server.base_url) == 200
    wait_until(lambda: len(seen) == 3)
    twice()
    assert complete(server.base_url) == 200
    server.stop_server()
    assert len(seen) == 3


def test_manager_failing_listener_is_isolated(
    servers: Servers, llama_server_binary: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = servers.ready(llama_server_binary)
    seen: list[Completion] = []

    def broken(_: Completion) -> None:
        raise ZeroDivisionError("oops")

    server.subscribe(broken)
    server.subscribe(seen.append)
    assert [complete(server.base_url) for _ in range(3)] == [200] * 3
    wait_until(lambda: len(seen) == 3)
    assert server.state is ServerState.READY
    assert server.listener_failures == 3
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [(record.getMessage(), bool(record.exc_info)) for record in errors] == [
        ("a listener failed; further failures are only counted", True)
    ]


def test_manager_listener_cannot_wait_for_exit(servers: Servers, llama_server_binary: Path) -> None:
    server = servers.ready(llama_server_binary)
    errors: list[str] = []

    def stop(_: Completion) -> None:
        try:
            server.stop_server()
        except ServerStateError as error:
            errors.append(str(error))

    server.subscribe(stop)
    assert complete(server.base_url) == 200
    wait_until(lambda: errors)
    assert "a listener cannot wait" in errors[0]
    assert server.stop_server() == 0


# -- crashes -----------------------------------------------------------------------------------------------------------


def test_manager_crash_fails_requests_in_flight(servers: Servers, backend: str) -> None:
    seen: list[Completion] = []
    server = servers.ready(backend, "-np", "4", "-c", "16384", "--no-kv-unified")
    server.subscribe(seen.append)
    assert complete(server.base_url) == 200
    complete_in_background(server.base_url, 3)
    wait_until(lambda: launched(server) == 4, every=0.002)
    os.kill(pid_of(server), signal.SIGKILL)
    assert server.wait(20) == -signal.SIGKILL
    assert server.state is ServerState.FAILED
    assert server.failure == "the server ended with signal 9"
    assert [completion.outcome for completion in seen] == [Outcome.OK, *[Outcome.ERROR] * 3]
    assert {completion.error for completion in seen[1:]} == {"the server ended with signal 9"}
    assert all(completion.started_at <= completion.ended_at <= time.time() for completion in seen)
    snapshot = server.snapshot()
    assert snapshot is not None
    assert (snapshot.up, snapshot.server.pid) == (False, None)
    with pytest.raises(ServerStartError, match="signal 9"):
        server.wait_until_ready(1)
    assert server.stop_server() == -signal.SIGKILL


def test_manager_stop_fails_requests_in_flight(servers: Servers, llama_server_binary: Path) -> None:
    seen: list[Completion] = []
    server = servers.ready(llama_server_binary)
    server.subscribe(seen.append)
    complete_in_background(server.base_url, 1)
    wait_until(lambda: launched(server) == 1, every=0.002)
    stop_process(pid_of(server))
    assert server.stop_server(0.2) == -signal.SIGKILL
    assert [(completion.outcome, completion.error) for completion in seen] == [
        (Outcome.ERROR, "the server was stopped")
    ]


def test_manager_restart_after_crash_keeps_counters(servers: Servers, backend: str) -> None:
    server = servers.ready(backend, restart="on-failure")
    url, totals = server.base_url, []

    def predicted() -> float:
        snapshot = server.snapshot()
        assert snapshot is not None
        totals.append(snapshot.counters.get("tokens_predicted_total", 0.0))
        return totals[-1]

    for crashes in (1, 2):
        assert complete(url, 5) == 200
        assert predicted() == 5 * crashes
        os.kill(pid_of(server), signal.SIGKILL)
        wait_until(lambda: server.state is not ServerState.READY)
        predicted()
        server.wait_until_ready(60)
        assert (server.base_url, server.restarts, server.returncode) == (url, crashes, None)
        predicted()
    assert complete(url, 5) == 200
    assert predicted() == 15
    assert totals == sorted(totals)
    snapshot = server.snapshot()
    assert snapshot is not None
    assert (snapshot.up, snapshot.restarts) == (True, 2)


def test_manager_restart_limit(servers: Servers, llama_server_binary: Path) -> None:
    server = servers.ready(llama_server_binary, restart="on-failure", max_restarts=1)
    os.kill(pid_of(server), signal.SIGKILL)
    wait_until(lambda: server.restarts == 1)
    server.wait_until_ready(60)
    os.kill(pid_of(server), signal.SIGKILL)
    assert server.wait(20) == -signal.SIGKILL
    assert (server.state, server.restarts) == (ServerState.FAILED, 1)


def test_manager_restart_impossible(servers: Servers, llama_server_binary: Path, tmp_path: Path) -> None:
    servers.model = write_tiny_model(tmp_path / "tiny.gguf")
    server = servers.ready(llama_server_binary, restart="on-failure", max_restarts=2)
    servers.model.unlink()
    os.kill(pid_of(server), signal.SIGKILL)
    assert server.wait(30) == 1
    assert server.restarts == 2
    assert "failed to open GGUF file" in (server.failure or "")


def test_manager_stop_during_restart_pause(servers: Servers, llama_server_binary: Path) -> None:
    server = servers.ready(llama_server_binary, restart="on-failure", max_restarts=9)
    for crash in range(3):  # the pauses grow: the third is of two seconds
        os.kill(pid_of(server), signal.SIGKILL)
        wait_until(lambda: server.state is ServerState.FAILED, every=0.005)
        if crash < 2:
            wait_until(lambda: server.state is ServerState.READY)
    snapshot = server.snapshot()
    assert snapshot is not None
    assert snapshot.up is False
    start_time = time.monotonic()
    assert server.stop_server() == -signal.SIGKILL
    assert time.monotonic() - start_time < 1.5
    assert (server.state, server.restarts) == (ServerState.STOPPED, 2)


# -- snapshots ---------------------------------------------------------------------------------------------------------


def test_manager_snapshot_while_starting(servers: Servers, backend: str) -> None:
    server = servers.start(backend)
    snapshot = server.snapshot()
    assert snapshot is not None
    assert (snapshot.up, snapshot.counters) in ((False, {}), (True, snapshot.counters))
    assert snapshot.server.model == "tiny.gguf"


def test_manager_snapshot_of_hanging_server_is_bounded(servers: Servers, backend: str) -> None:
    server = servers.ready(backend)
    assert complete(server.base_url, 5) == 200
    before = server.snapshot()
    assert before is not None
    stop_process(pid_of(server))
    start_time = time.monotonic()
    hanging = server.snapshot()
    elapsed = time.monotonic() - start_time
    os.kill(pid_of(server), signal.SIGCONT)
    assert hanging is not None
    assert (hanging.up, hanging.counters) == (False, before.counters)
    assert elapsed < 10  # 2.5 s by design
    again = server.snapshot()
    assert again is not None
    assert again.up is True


def test_manager_snapshots_from_several_threads(servers: Servers, llama_server_binary: Path) -> None:
    server = servers.ready(llama_server_binary, "-np", "4")
    totals: list[list[float]] = [[], [], []]
    done = threading.Event()

    def look(mine: list[float]) -> None:
        while not done.is_set():
            snapshot = server.snapshot()
            assert snapshot is not None
            mine.append(snapshot.counters.get("tokens_predicted_total", 0.0))

    threads = [threading.Thread(target=look, args=(mine,)) for mine in totals]
    for thread in threads:
        thread.start()
    for thread in complete_in_background(server.base_url, 20, tokens=50):
        thread.join()
    server.stop_server()
    done.set()
    for thread in threads:
        thread.join()
    assert all(mine == sorted(mine) for mine in totals)
    snapshot = server.snapshot()
    assert snapshot is not None
    assert snapshot.counters["tokens_predicted_total"] == 1000


def test_manager_leaks_nothing(servers: Servers, backend: str) -> None:
    server = servers.ready(backend)
    server.stop_server()
    threads, files = set(threading.enumerate()), descriptors()
    for cycle in range(20):
        server.start_server(servers.model, port=0, extra_args=["-t", "1"])
        if cycle % 4:
            server.wait_until_ready(60)
            server.snapshot()
        server.stop_server()
    wait_until(lambda: set(threading.enumerate()) <= threads)
    assert len(descriptors()) <= len(files), descriptors() - files


# -- the API key -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["argument", "file", "flag", "flag=", "env", "environment", "file flag"])
def test_manager_api_key_is_used_and_not_shown(  # noqa: PLR0917
    servers: Servers,
    backend: str,
    way: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    file = tmp_path / "keys"
    file.write_text(f"# the first\n{KEY}\nanother\n")
    server = servers.manager(backend)
    extra = ["-lv", "5"]
    if way == "environment":
        monkeypatch.setenv("LLAMA_API_KEY", KEY)
    server.start_server(
        servers.model,
        port=0,
        api_key=KEY if way == "argument" else None,
        api_key_file=file if way == "file" else None,
        env={"LLAMA_API_KEY": KEY} if way == "env" else None,
        extra_args={
            "flag": [*extra, "--api-key", KEY],
            "flag=": [f"--api-key={KEY}", *extra],
            "file flag": [*extra, "--api-key-file", str(file)],
        }.get(way, extra),
    ).wait_until_ready(60)
    early = server.log_tail
    assert (complete(server.base_url), complete(server.base_url, key="wrong"), complete(server.base_url, key=KEY)) == (
        401,
        401,
        200,
    )
    snapshot = server.snapshot()
    assert snapshot is not None
    assert snapshot.counters["tokens_predicted_total"] == 4  # so the key was accepted
    assert KEY.encode() not in Path(f"/proc/{pid_of(server)}/cmdline").read_bytes()
    server.stop_server()
    supervisor = server._started()
    shown = [*early, *server.log_tail, caplog.text, repr(snapshot), repr(supervisor.command), repr(vars(server))]
    assert not [text for text in shown if KEY in text]
    assert not [line for line in early if KEY[-4:] in line]  # llama.cpp's own hint of the key


def test_manager_api_key_not_shown_on_failure(servers: Servers, backend: str) -> None:
    server = servers.start(backend, "--frobnicate", key=KEY)
    with pytest.raises(ServerStartError) as caught:
        server.wait_until_ready(60)
    assert KEY not in f"{caught.value!r} {caught.value.log_tail} {server.failure}"


def test_manager_api_key_any_characters(servers: Servers, llama_server_binary: Path) -> None:
    server = servers.start(llama_server_binary, key="schlüssel-鍵-0123").wait_until_ready(60)
    snapshot = server.snapshot()
    assert snapshot is not None
    assert snapshot.up is True
    assert "prompt_tokens_total" in snapshot.counters


def test_manager_arguments_reach_server(servers: Servers, backend: str) -> None:
    server = servers.manager(backend).start_server(
        servers.model, port=0, alias="mine", ctx_size=512, n_parallel=2, cache_type_k="f16",
    ).wait_until_ready(60)  # fmt: skip
    assert server.info.model == "mine"
    with urllib.request.urlopen(f"{server.base_url}/props") as answer:
        props = answer.read().decode()
    assert '"total_slots":2' in props
    assert '"n_ctx":256' in props  # of each slot
