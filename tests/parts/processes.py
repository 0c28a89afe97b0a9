"""Child processes, free ports and waiting, for tests that run real programs."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

SESSION_MARK = "LLAMATEL_TEST_SESSION"
"""Environment variable inherited by all processes of a test session, so that orphans are found too."""


class PartFailed(RuntimeError):
    """A real part (rotel, Prometheus, ...) did not start or stop correctly."""


def free_port() -> int:
    """Return a TCP port on 127.0.0.1 that was free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(ready: Callable[[], T], timeout: float = 20.0, what: str = "the condition", every: float = 0.02) -> T:
    """Call ``ready`` until its result is true, and return the result. Raises TimeoutError, with ``what``."""
    end = time.monotonic() + timeout
    while True:
        result = ready()
        if result:
            return result
        if time.monotonic() > end:
            raise TimeoutError(f"not within {timeout:g} s: {what}")
        time.sleep(every)


def accepts(port: int) -> bool:
    """Whether a process listens on this port of 127.0.0.1."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


class Child:
    """A child process with output to a file, so that it never blocks on a full pipe."""

    def __init__(self, argv: Sequence[str | Path], log: Path, env: Mapping[str, str] | None = None) -> None:
        self.log = log
        self.name = Path(argv[0]).name
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [str(word) for word in argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    def output(self) -> str:
        """Return its output on stdout and stderr so far."""
        return self.log.read_text(errors="replace")

    def wait_ready(self, ready: Callable[[], object], timeout: float = 20.0) -> None:
        """Wait for ``ready()``. Raises PartFailed, with the child's last output, if it exits first or is too slow."""

        def exited_or_ready() -> bool:
            if self.process.poll() is not None:
                raise PartFailed(f"{self.name} exited with {self.process.returncode}:\n{self.output()[-2000:]}")
            return bool(ready())

        try:
            wait_until(exited_or_ready, timeout, f"{self.name} is ready")
        except TimeoutError as error:
            self.kill()
            raise PartFailed(f"{error}:\n{self.output()[-2000:]}") from None

    def stop(self, timeout: float = 10.0) -> int:
        """SIGTERM, then SIGKILL after a timeout. Returns the exit status (negative: the signal)."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """SIGKILL. Returns the exit status."""
        self.process.kill()
        return self.process.wait()


def _stat(pid: int) -> tuple[str, int] | None:
    """Return the state letter and the parent of a process (``proc(5)``); None if it has exited."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return fields[0], int(fields[1])


def _marked(pid: int, mark: bytes) -> bool:
    try:
        return mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False


def survivors() -> dict[int, str]:
    """Return the running descendants of this process: pid to command line. Linux only; empty elsewhere.

    Descendants are found by their parent, orphans by the session's mark in their environment.
    """
    if not Path("/proc/self/stat").exists():
        return {}
    mark = f"{SESSION_MARK}={os.environ.get(SESSION_MARK, os.getpid())}".encode()
    stats = {int(entry.name): _stat(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    running = {pid: stat[1] for pid, stat in stats.items() if stat is not None and stat[0] not in "ZX"}
    family = {os.getpid()}
    while grown := {pid for pid, parent in running.items() if parent in family} - family:
        family |= grown
    family |= {pid for pid in running if _marked(pid, mark)}
    found = {}
    for pid in family - {os.getpid()}:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return found


def kill_survivors(grace: float = 5.0) -> dict[int, str]:
    """Wait ``grace`` seconds for running descendants to exit, SIGKILL the others, and return those."""
    with contextlib.suppress(TimeoutError):
        wait_until(lambda: not survivors(), grace)
    left = survivors()
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return left
