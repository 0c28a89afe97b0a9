"""Supervises a server: one thread that starts it, reads its log, stops and restarts it.

Only this thread changes the state. Other threads request a stop and wait. It stays as long as the child does, which
the launcher relies on: on Linux the kernel kills the child when the thread that started it ends.
"""

from __future__ import annotations

import logging
import math
import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from llamatel.errors import ServerStartError, ServerStateError, ServerTimeout
from llamatel.inputs.address import Address
from llamatel.inputs.credentials import pin
from llamatel.llama.http.server_client import ServerClient
from llamatel.llama.log.failure_line import failure_line, hint
from llamatel.llama.log.server_output import JSONL_VARIABLE, OutputLines, ServerOutput
from llamatel.llama.server.backends import XLLAMACPP, Backend
from llamatel.llama.server.child_process import Child
from llamatel.llama.server.log_copy import LogCopy
from llamatel.llama.server.output_tail import OutputTail
from llamatel.llama.server.server_command import CommandLine
from llamatel.llama.server.unix_socket import UnixSocket
from llamatel.llama.watch.server_lifecycle import Lifecycle
from llamatel.llama.watch.server_log import ServerLog
from llamatel.records import Completion, ServerInfo

_log = logging.getLogger(__name__)

_BACKOFF_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
_HEALTHY_S = 60.0
"""The restart count is reset when a server was ready for this long."""
_SILENT_S = 1.0
"""If the log does not report for this long that the server listens, its health is polled."""
_LOOK_S = 0.2
GATHER_S = 0.12
"""How long to collect lines of a serving server before they are read (their timestamps are llama.cpp's own)."""
_YOUNG_S = 2.0
_AGAIN_S = 1.0
_ENDING = "cleaning up before exit"
_TIDY_S = 2.0
"""llama.cpp has left its loop when it logs that it exits, so no request gets a response any more; but it waits, without
limit, for clients of running requests to disconnect."""
_LAST_RESORT_S = 5.0
"""How long a stop waits for the kernel to end a killed process."""


class ServerState(str, Enum):
    """stopped -> starting -> ready -> stopping -> stopped; failed: it exited by itself (and may be restarted)."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    FAILED = "failed"


@dataclass(slots=True)
class _Stop:
    """A child that was signalled to exit."""

    again_at: float | None
    """When to send SIGTERM again (monotonic); None: not at all."""
    ends: bool = False
    """Whether its log reports that it exits."""


class Supervisor:
    """Supervises one started server until it is stopped or has failed for good."""

    def __init__(
        self,
        backend: Backend,
        command: CommandLine,
        info: ServerInfo,
        server_log: ServerLog,
        *,
        hand_out: Callable[[Sequence[Completion]], None],
        process_replaced: Callable[[], None],
        ended: Callable[[str | None, int | None], None],
        restart_on_failure: bool,
        max_restarts: int,
        log: LogCopy | None,
        restarts: int = 0,
        found_port: int | None = None,
    ) -> None:
        """``hand_out`` gets the finished requests; ``process_replaced`` is called before each new process.

        ``ended`` is called after the last one, with its address and the port that it had chosen.

        ``restarts`` so far; ``found_port``: take this port where the command leaves it to the server.
        """
        self.info = info
        self.state = ServerState.STARTING
        self.returncode: int | None = None
        self.failure: str | None = None
        """Why the last process exited by itself."""
        self.restarts = restarts
        self.started_at: float | None = None
        self.loading_s: float | None = None
        self.client: ServerClient | None = None
        """Polls the server; None unless it is ready."""
        self._lock = threading.Lock()
        """Held while ``info`` changes."""
        self.backend, self.command, self._server_log = backend, command, server_log
        self.found_port = found_port
        """The port that the server chose itself; its next process gets it again."""
        self._port = self.found_port or command.listen.port or 0
        self._socket = UnixSocket(command.listen.host) if command.listen.scheme == "unix" else None
        self._hand_out, self._process_replaced, self._ended = hand_out, process_replaced, ended
        self._restarts_left = max_restarts if restart_on_failure else 0
        self._max_restarts = self._restarts_left
        self._output = ServerOutput()
        self._tail = OutputTail(command.api_key, log)
        self._changed = threading.Condition()
        self._stop_by: float | None = None
        self._given_up: str | None = None
        """Why the process that runs now is to be killed."""
        self._over = False
        self._may_poll = False
        self._healthy_since = math.inf
        """Seconds after its start when a server that has not logged that it listens was found healthy."""
        self._owner = os.getpid()
        self._wake_read, self._wake_write = os.pipe()
        self._thread = threading.Thread(target=self._run, name="llamatel-server", daemon=True)

    # -- for other threads ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the server."""
        self._thread.start()

    @property
    def running(self) -> bool:
        """False once the server has finally exited, and in a forked child: the server is its parent's."""
        return not self._over and self._owner == os.getpid()

    @property
    def log_tail(self) -> tuple[str, ...]:
        """The last lines of the log, oldest first."""
        return self._tail.lines()

    def wait_until_ready(self, timeout: float | None) -> None:
        """Raises ServerStartError once the server has finally exited, ServerTimeout when the time is up."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while self.state is not ServerState.READY:
                if self._over and self.state is ServerState.FAILED:
                    raise ServerStartError(
                        self.failure or "the server ended", log_tail=self.log_tail, returncode=self.returncode
                    )
                if self._over:
                    raise ServerStateError("the server was stopped")
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    last = next(reversed(self.log_tail), "none")
                    raise ServerTimeout(f"the server was not ready after {timeout:g} s; its last line: {last}")
                self._changed.wait(left)

    def stop(self, timeout: float) -> None:
        """``request_stop``, and wait until it has exited. Raises ServerTimeout if even SIGKILL does not end it."""
        if threading.current_thread() is self._thread:
            raise ServerStateError("a listener cannot wait for the server's end: it runs on the thread that ends it")
        self.request_stop(timeout)
        with self._changed:
            self._changed.wait_for(lambda: self._over, timeout + _LAST_RESORT_S)
            if not self._over:
                raise ServerTimeout(f"the server (pid {self.info.pid}) could not be stopped")

    def request_stop(self, timeout: float) -> None:
        """SIGTERM now, SIGKILL after ``timeout`` seconds; returns at once. Of several timeouts the shortest counts."""
        with self._changed:
            first = self._stop_by is None
            self._stop_by = min(self._stop_by or math.inf, time.monotonic() + timeout)
            if first and not self._over:
                os.write(self._wake_write, b"!")

    def give_up_process(self, why: str) -> None:
        """Kill the process that runs now, as one that failed: it may be restarted. Returns at once."""
        with self._changed:
            if self._over or self._stop_by is not None or self._given_up is not None:
                return
            self._given_up = why
            os.write(self._wake_write, b"!")

    def lifecycle(self) -> Lifecycle:
        """The process now."""
        return Lifecycle(self.info, self.state.value, self.client, self.restarts, self.started_at, self.loading_s)

    @property
    def address(self) -> Address | None:
        """Where clients on this machine reach it; None while a free port is not known yet."""
        return None if self._socket is None and not self._port else self.command.client_address(self._port or None)

    def join(self, timeout: float | None = None) -> None:
        """Wait until the server has finally exited.

        Without the thread's own ``join``: up to Python 3.12 an exception in a signal handler (Ctrl-C) makes a thread
        that is waited for count as finished while it runs.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._over, timeout)

    # -- the supervisor's own thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        was_ready = False
        try:
            while True:
                ready_s = self._live()
                was_ready = was_ready or ready_s is not None
                if self._stop_by is not None:
                    self._end(ServerState.STOPPED)
                    return
                if ready_s is not None and ready_s > _HEALTHY_S:
                    self._restarts_left = self._max_restarts
                # A server that never became ready would fail again.
                if not self._restarts_left or not was_ready:
                    self._end(ServerState.FAILED)
                    return
                pause = _BACKOFF_S[min(self._max_restarts - self._restarts_left, len(_BACKOFF_S) - 1)]
                self._restarts_left -= 1
                self._set(ServerState.FAILED)
                _log.warning("%s; it is started again in %g s", self.failure, pause)
                self._sleep(pause)
                if self._stop_by is not None:
                    self._end(ServerState.STOPPED)
                    return
                self.restarts += 1
                self._set(ServerState.STARTING)
        except Exception as error:  # noqa: BLE001 - the thread's boundary: waiting threads get the failure
            if not isinstance(error, OSError):
                _log.exception("the server's supervisor failed")
            self.failure = f"the server could not be run: {error}"
            self._end(ServerState.FAILED)
        finally:
            os.close(self._wake_read)
            os.close(self._wake_write)

    def _set(self, state: ServerState) -> None:
        with self._changed:
            self.state = state
            self._changed.notify_all()

    def _end(self, state: ServerState) -> None:
        self._tail.close()
        self._ended(self.info.address, self.found_port)
        with self._changed:
            self._over = True
            self.state = state
            self._changed.notify_all()

    def _sleep(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._stop_by is None and (left := deadline - time.monotonic()) > 0:
            select.select([self._wake_read], [], [], left)

    def _live(self) -> float | None:
        """Run one process until it exits; the seconds for which it was ready, None if it never was."""
        self._server_log.restart(self.info, batch=self.command.batch)
        self._tail.clear()
        self._output.restart()
        self._process_replaced()
        self.loading_s = self.returncode = self._given_up = None
        self.started_at = time.time()
        started = time.monotonic()
        ready_at: float | None = None
        stop: _Stop | None = None
        child = self._start()
        try:
            while not child.finished:
                # A requested stop leaves the wake-up pipe readable, so from then on only the child is waited for.
                serving = ready_at is not None and stop is None
                output = child.read(
                    None if serving and not self._server_log.holds else _LOOK_S,
                    wakeful=stop is None,
                    gather_s=GATHER_S if serving else 0.0,
                )
                lines = self._output.lines(output.stdout, output.stderr, listening=ready_at is not None)
                self._read_output(lines)
                if ready_at is None and self._stop_by is None and self._look_ready(time.monotonic() - started):
                    ready_at = time.monotonic()
                    self.loading_s = ready_at - started
                    self._set(ServerState.READY)
                if self._given_up is not None and stop is None and self._stop_by is None:
                    os.read(self._wake_read, 1)
                    child.kill()
                    stop = _Stop(None)
                elif stop is not None:
                    self._press(child, stop, lines)
                elif self._stop_by is not None:
                    self._set(ServerState.STOPPING)
                    child.terminate()
                    # llama.cpp logs that it listens a moment before its loop starts; a SIGTERM in between
                    # is forgotten. Later, a second request would cut its shutdown short.
                    now = time.monotonic()
                    stop = _Stop(now + _AGAIN_S if ready_at is None or now - ready_at < _YOUNG_S else None)
        finally:
            self._close(child)
        ended_at = time.monotonic()
        self.failure = None if self._stop_by is not None else self._why(was_ready=ready_at is not None)
        self._hand_out(self._server_log.abort(time.time(), self.failure or "the server was stopped"))
        self._learn(pid=None)
        return None if ready_at is None else ended_at - ready_at

    def _start(self) -> Child:
        arguments = self.command.arguments
        if self.found_port is not None:
            arguments += ("--port", str(self.found_port))
        if self._socket is not None:
            self._socket.before_start()
        # If another server already responds there, a response would not be from our server.
        self._may_poll, self._healthy_since = self.address is not None and not self._is_healthy(), math.inf
        environment = {JSONL_VARIABLE: os.environ.get(JSONL_VARIABLE, "1"), **self.command.environment}
        child = Child((*self.backend.command, *arguments), environment, wake=self._wake_read)
        self._learn(pid=child.pid)
        return child

    def _press(self, child: Child, stop: _Stop, output: Sequence[OutputLines]) -> None:
        """Supervise a child that was signalled to exit; ``output`` is its newest."""
        if not stop.ends and any(_ENDING in line for lines in output for line in lines.lines):
            stop.ends = True
            self.request_stop(_TIDY_S)
        elif self._stop_by is not None and time.monotonic() >= self._stop_by:
            child.kill()
        elif stop.again_at is not None and time.monotonic() >= stop.again_at:
            stop.again_at = None
            # The wheel's loop ends by llama.cpp's own handler if ours was not installed yet: not the process's exit.
            if self.backend.name == XLLAMACPP or not any(_ENDING in line for line in self.log_tail):
                child.terminate()

    def _close(self, child: Child) -> None:
        """Clean up after a child."""
        if child.returncode is None:
            child.kill()
        self.returncode = child.close()
        client, self.client = self.client, None
        if client is not None:
            client.close()
        if self._socket is not None:
            self._socket.after_end()

    def _read_output(self, lines: Sequence[OutputLines]) -> None:
        if lines:
            finished = self._server_log.feed_output(lines, time.time())
            self._tail.put(lines)
            self._hand_out(finished)
        self._hand_out(self._server_log.settle())

    def _look_ready(self, since_start: float) -> bool:
        """Ready once the log reports that it listens: llama.cpp prints that when the model is loaded."""
        logged = self._server_log.logged
        if logged.host is None:
            if not (self._may_poll and since_start > _SILENT_S and self._is_healthy()):
                return False
            # What it logged before it listened is read first: it shows the log's format.
            self._healthy_since = min(self._healthy_since, since_start)
            if since_start - self._healthy_since < _LOOK_S:
                return False
        if self._socket is None and logged.port is not None and logged.port != self._port:
            self._port = self.found_port = logged.port
        # A wheel built without its number reports "b0-unknown": then its version is more specific.
        known = logged.build is not None and "unknown" not in logged.build
        self._learn(port=self._port or None, build=logged.build if known else self.info.build)
        self.client = self._new_client(api_key=self.command.api_key)
        return True

    def _new_client(self, *, api_key: str | None = None, timeout_s: float = 2.0) -> ServerClient | None:
        if self.address is None:
            return None
        tls = pin(self.command.certificate) if self.address.scheme == "https" and self.command.certificate else None
        return ServerClient(self.address.url, api_key=api_key, tls=tls, timeout_s=timeout_s)

    def _is_healthy(self) -> bool:
        probe = self._new_client(timeout_s=0.5)
        if probe is None:
            return False
        try:
            return probe.healthy()
        finally:
            probe.close()

    def _learn(self, **changes: str | int | None) -> None:
        """More about the server: fields of ``info``."""
        with self._lock:
            self.info = replace(self.info, **changes)  # type: ignore[arg-type]
            self._server_log.identify(self.info)

    def _why(self, *, was_ready: bool) -> str:
        code = self.returncode
        if self._given_up is not None:
            return f"the server was killed: {self._given_up}"
        how = f"signal {-code}" if code is not None and code < 0 else f"exit status {code}"
        if was_ready:
            return f"the server ended with {how}"
        line = failure_line(self.log_tail)
        return f"the server did not start ({how}): {line or 'it printed nothing'}{hint(line)}"
