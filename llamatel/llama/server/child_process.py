"""A child process whose output is always drained and that leaves no orphans.

Not thread-safe: the thread that starts the child also reads it and stays until it has exited (on Linux the kernel kills
the child when that thread ends).
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple, cast

from llamatel.llama.log.line_buffer import LineBuffer

_LAUNCHER = Path(__file__).with_name("launcher.py")
_READ_BYTES = 65536
_PIPE_BYTES = 1 << 20
_READS_AT_ONCE = 16
"""Most bytes read at once, so a child that writes endlessly does not block its reader."""
_LOOK_S = 0.2
_DRAIN_S = 0.5
"""How long a pipe that another process holds open is read after the child's exit."""


def _pidfd(pid: int) -> int | None:
    """A descriptor that becomes readable when the process ends; None where the system has none (macOS, old kernels)."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:  # a sandbox without this system call
        return None


class Output(NamedTuple):
    """Lines that a child wrote, by stream."""

    stdout: list[str]
    stderr: list[str]

    @property
    def lines(self) -> list[str]:
        """Lines of both streams, stdout's first."""
        return [*self.stdout, *self.stderr]


class _Pipe:
    """One of a child's output streams."""

    def __init__(self, file: IO[bytes] | None) -> None:
        self.file = cast("IO[bytes]", file)
        self.buffer = LineBuffer()
        self.open = True
        self.large = False
        """Whether it holds what a busy server writes in some tens of milliseconds."""
        os.set_blocking(self.file.fileno(), False)
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            with contextlib.suppress(OSError):  # above the user's limit
                self.large = fcntl.fcntl(self.file.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES) >= _PIPE_BYTES


class Child:
    """One child process."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], *, wake: int) -> None:
        """Start ``command``; ``read`` returns early when the file descriptor ``wake`` becomes readable."""
        self._selector = selectors.DefaultSelector()
        try:
            # In its own session: Ctrl-C at a terminal reaches llamatel only, which stops the server in order.
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        except (OSError, ValueError):  # too long, too many, a null character
            self._selector.close()
            raise
        self._stdout, self._stderr = _Pipe(self._process.stdout), _Pipe(self._process.stderr)
        self._pipes = (self._stdout, self._stderr)
        for pipe in self._pipes:
            self._selector.register(pipe.file, selectors.EVENT_READ)
        self._wake: int | None = wake
        self._selector.register(wake, selectors.EVENT_READ)
        self._pidfd = _pidfd(self.pid)
        if self._pidfd is not None:
            self._selector.register(self._pidfd, selectors.EVENT_READ)
        self._ended_at: float | None = None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    def read(self, timeout_s: float | None, *, wakeful: bool = True, gather_s: float = 0.0) -> Output:
        """Wait for output, the child's end or (if ``wakeful``) a wake-up, at most ``timeout_s``; the lines read.

        ``gather_s``: how long to collect lines before they are read; shorter where the pipes are small. A busy server
        writes several a millisecond, and waking up for each would use more CPU than reading them.
        """
        if not wakeful and self._wake is not None:
            self._selector.unregister(self._wake)
            self._wake = None
        if self._pidfd is None or self.returncode is not None:
            timeout_s = _LOOK_S if timeout_s is None else min(timeout_s, _LOOK_S)
        ready = self._selector.select(timeout_s)
        if gather_s and any(isinstance(key.fileobj, io.IOBase) for key, _ in ready):
            time.sleep(gather_s if all(pipe.large for pipe in self._pipes) else gather_s / 9)
        if self._pidfd is not None and self.returncode is not None:
            self._selector.unregister(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        return Output(self._drain(self._stdout), self._drain(self._stderr))

    def _drain(self, pipe: _Pipe) -> list[str]:
        lines: list[str] = []
        for _ in range(_READS_AT_ONCE if pipe.open else 0):
            try:
                data = os.read(pipe.file.fileno(), _READ_BYTES)
            except BlockingIOError:
                return lines
            if not data:
                self._selector.unregister(pipe.file)
                pipe.open = False
                return lines + pipe.buffer.flush()
            lines += pipe.buffer.feed(data)
            if len(data) < _READ_BYTES:
                break
        return lines

    @property
    def _open(self) -> bool:
        """Whether the child, or a process that it started, may write more."""
        return any(pipe.open for pipe in self._pipes)

    @property
    def finished(self) -> bool:
        """True once it has exited and everything it wrote was read."""
        if self._process.poll() is None:
            return False
        if not self._open:
            return True
        self._ended_at = self._ended_at or time.monotonic()
        return time.monotonic() - self._ended_at > _DRAIN_S

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the child and its session (the launcher's command, where the launcher stays)."""
        if self._process.poll() is None:
            # Not reaped, so its number is still its group's.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.kill()

    def close(self) -> int:
        """Wait for its exit and free its resources; its exit status.

        A process that still holds its output is a server that a script started without ``exec``: it is killed here.
        """
        code = self._process.wait()
        if self._open:
            # A process group keeps its number as long as a process is in it.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        self._selector.close()
        for pipe in self._pipes:
            pipe.file.close()
        if self._pidfd is not None:
            os.close(self._pidfd)
        return code
