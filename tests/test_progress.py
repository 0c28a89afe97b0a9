"""Stalled servers: real ones that are stopped, or whose loop is, and servers at work that must not count as such."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamatel.errors import UsageError
from llamatel.llama.server.manager import ServerManager
from llamatel.llama.server.supervisor import ServerState
from llamatel.llama.watch.progress import ProgressWatch
from llamatel.records import Completion
from tests.attached import attached, unmanaged
from tests.parts import wait_until
from tests.servers import BACKENDS, choose_backend, complete_in_background

AFTER_S = 1.5
CONTEXT = 65_536


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def polled(watch: ProgressWatch, clock: Clock, seconds: int, **poll: object) -> list[bool]:
    """What the watch finds in polls of a second each; ``cpu_share`` is the CPU time of each."""
    share = poll.pop("cpu_share", None)
    found = []
    for _ in range(seconds):
        clock.now += 1.0
        cpu_s = None if share is None else clock.now * float(str(share))
        found.append(watch.observe(started_at=clock.now, cpu_s=cpu_s, **{"working": True, "marks": 1, **poll}))  # type: ignore[arg-type]
    return found


def test_progress_none_for_long() -> None:
    clock = Clock()
    watch = ProgressWatch(10, clock=clock)
    assert polled(watch, clock, 15) == [False] * 10 + [True] * 5
    assert polled(watch, clock, 1, marks=2) == [False]


@pytest.mark.parametrize("poll", [{"working": False}, {"cpu_share": 1.0}, {"cpu_share": 0.2}])
def test_progress_at_work(poll: dict[str, object]) -> None:
    clock = Clock()
    assert not any(polled(ProgressWatch(10, clock=clock), clock, 60, **poll))


def test_progress_little_cpu_time() -> None:
    clock = Clock()
    assert any(polled(ProgressWatch(10, clock=clock), clock, 60, cpu_share=0.01))


def test_progress_cpu_time_alone_for_long() -> None:
    """As of a process that waits in a busy loop for a GPU that hangs."""
    clock = Clock()
    found: list[str] = []
    watch = ProgressWatch(10, name=lambda: "it", on_stall=found.append, clock=clock)
    assert polled(watch, clock, 215, cpu_share=1.0).count(True) == 5
    assert found == ["it made no progress for 210 s"]


def test_progress_gap_between_polls() -> None:
    clock = Clock()
    watch = ProgressWatch(10, clock=clock)
    polled(watch, clock, 5)
    clock.now += 60  # this process was stopped
    assert polled(watch, clock, 5) == [False] * 5


def test_progress_slow_polls() -> None:
    clock = Clock()
    watch = ProgressWatch(10, interval_s=20, clock=clock)
    assert watch.after_s == 60


@pytest.fixture
def stopped_loop() -> Iterator[object]:
    """Stops the thread of a process that runs llama.cpp's loop, and no other one: by ptrace, as a debugger does."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    attach, detach = 16, 17
    held: list[int] = []

    def stop(pid: int) -> None:
        assert libc.ptrace(attach, pid, None, None) == 0, os.strerror(ctypes.get_errno())
        held.append(pid)
        os.waitpid(pid, 0x40000000)  # __WALL: until it has stopped

    yield stop
    for pid in held:
        libc.ptrace(detach, pid, None, None)


def test_server_healthy_and_stalled(
    llama_server_binary: Path, tiny_model: Path, tmp_path: Path, stopped_loop: object
) -> None:
    assert callable(stopped_loop)
    flags = ("-m", tiny_model, "--metrics", "-np", "2", "-c", str(CONTEXT))
    with (
        unmanaged(llama_server_binary, tmp_path, *flags) as server,
        attached(server.url, stalled_after_s=AFTER_S) as fleet,
    ):
        complete_in_background(server.url, 2, 20_000)
        fleet.wait(lambda state: state.slots is not None and all(slot.busy for slot in state.slots))
        stopped_loop(server.child.pid)
        state = fleet.wait(lambda state: state.state == "stalled")
        assert state.up
        assert server.get("/health") == {"status": "ok"}


def test_server_stopped_and_continued(llama_server_binary: Path, tiny_model: Path, tmp_path: Path) -> None:
    flags = ("-m", tiny_model, "--metrics", "-np", "2", "-c", str(CONTEXT))
    with (
        unmanaged(llama_server_binary, tmp_path, *flags) as server,
        attached(server.url, stalled_after_s=AFTER_S) as fleet,
    ):
        complete_in_background(server.url, 2, 20_000)
        fleet.wait(lambda state: state.slots is not None and all(slot.busy for slot in state.slots))
        os.kill(server.child.pid, signal.SIGSTOP)
        fleet.wait(lambda state: state.state == "stalled")
        os.kill(server.child.pid, signal.SIGCONT)
        fleet.wait(lambda state: state.state == "ready")


def test_long_prefill_is_not_stalled(llama_server_binary: Path, tiny_model: Path, tmp_path: Path) -> None:
    size = ("-c", "4096", "-np", "1", "-b", "4096", "-ub", "4096")  # one batch: no counter moves in between
    with (
        unmanaged(llama_server_binary, tmp_path, "-m", tiny_model, "--metrics", *size) as server,
        attached(server.url, stalled_after_s=0.5) as fleet,
    ):
        states: set[str | None] = set()
        done = threading.Event()

        def prefill() -> None:
            server.complete(prompt=[5] * 4000, tokens=1)
            done.set()

        thread = threading.Thread(target=prefill)
        thread.start()
        while not done.wait(0.05):
            states |= {state.state for state in fleet.states()}
        thread.join()
        assert any(state.stale or state.slots for state in fleet.states())
        assert "stalled" not in states


@pytest.mark.parametrize("backend", BACKENDS)
def test_server_restarted_on_stall(request: pytest.FixtureRequest, tiny_model: Path, backend: str) -> None:
    request.param = backend
    records: list[Completion] = []
    with ServerManager(backend=choose_backend(request), restart="on-stall", stalled_after=3.0) as server:
        server.subscribe(records.append)
        server.start_server(tiny_model, port=0, n_parallel=2, ctx_size=CONTEXT).wait_until_ready(60)
        first = server.info.pid
        assert first is not None
        complete_in_background(server.base_url, 1, 20_000)

        def busy() -> bool:
            state = server.snapshot()
            return state is not None and any(slot.busy for slot in state.slots or ())

        wait_until(busy, 30, "a request runs")
        os.kill(first, signal.SIGSTOP)

        def restarted() -> bool:
            server.snapshot()  # as a scrape does
            return server.restarts == 1 and server.state is ServerState.READY

        wait_until(restarted, 60, "the server is started again", 0.2)
        assert server.info.pid != first
        wait_until(lambda: records, 10, "the request that ran")
        assert "made no progress" in str(records[0].error)


def test_server_not_restarted_on_failure_alone(tiny_model: Path) -> None:
    with ServerManager(restart="on-failure", stalled_after=2.0) as server:
        server.start_server(tiny_model, port=0, n_parallel=2, ctx_size=CONTEXT).wait_until_ready(60)
        pid = server.info.pid
        assert pid is not None
        complete_in_background(server.base_url, 1, 20_000)
        os.kill(pid, signal.SIGSTOP)

        def stalled() -> bool:
            state = server.snapshot()
            return state is not None and state.state == "stalled"

        wait_until(stalled, 60, "it is stalled", 0.2)
        assert server.restarts == 0
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def test_manager_stalled_after_not_positive() -> None:
    with pytest.raises(UsageError, match="stalled_after"):
        ServerManager(stalled_after=0)
