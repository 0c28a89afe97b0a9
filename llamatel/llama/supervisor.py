"""A running server's guardian: one thread that starts it, reads its log, ends it and brings it back.

Only this thread changes the state. Others hand it a wish (to stop) and wait. It stays as long as the child does, which
the launcher relies on: on Linux the kernel kills the child when the thread that started it ends.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import Enum
from typing import IO

from llamatel.errors import ServerStartError, ServerStateError, ServerTimeout
from llamatel.llama.backends import Backend
from llamatel.llama.command_line import CommandLine
from llamatel.llama.failure import failure_line
from llamatel.llama.http import ServerClient, base_url
from llamatel.llama.log_reader import LogReader
from llamatel.llama.process import Child
from llamatel.records import Completion, ServerInfo

_log = logging.getLogger(__name__)

_TAIL_LINES = 200
_BACKOFF_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
_HEALTHY_S = 60.0
"""A server that was ready for that long starts with a clean record."""
_SILENT_S = 1.0
"""A server whose log said nothing we know for that long may have it switched off: then its health is asked."""
_LOOK_S = 0.2


class ServerState(str, Enum):
    """stopped -> starting -> ready -> stopping -> stopped; failed: it ended on its own (and may be started again)."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    FAILED = "failed"


class Supervisor:
    """Looks after one started server until it is stopped or given up."""

    def __init__(
        self,
        backend: Backend,
        command: CommandLine,
        info: ServerInfo,
        reader: LogReader,
        *,
        hand_out: Callable[[Sequence[Completion]], None],
        process_replaced: Callable[[], None],
        restart_on_failure: bool,
        max_restarts: int,
        log: IO[str] | None,
        close_log: bool,
    ) -> None:
        """``hand_out`` gets the requests that ended; ``process_replaced`` is called before each new process."""
        self.info = info
        self.state = ServerState.STARTING
        self.returncode: int | None = None
        self.failure: str | None = None
        """Why the last process ended on its own, in its own words."""
        self.restarts = 0
        self.started_at: float | None = None
        self.loading_s: float | None = None
        self.client: ServerClient | None = None
        """To ask the server; None unless it is ready."""
        self.reader_lock = threading.Lock()
        """Held while the log reader is read or fed."""
        self.backend, self.command, self._reader = backend, command, reader
        self._port = info.port or 0
        self._hand_out, self._process_replaced = hand_out, process_replaced
        self._restarts_left = max_restarts if restart_on_failure else 0
        self._max_restarts = self._restarts_left
        self._log, self._close_log = log, close_log
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._changed = threading.Condition()
        self._stop_by: float | None = None
        self._over = False
        self._wake_read, self._wake_write = os.pipe()
        self._thread = threading.Thread(target=self._run, name="llamatel-server", daemon=True)

    # -- for other threads ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the server."""
        self._thread.start()

    @property
    def running(self) -> bool:
        """False once the server has ended for good."""
        return self._thread.is_alive()

    @property
    def log_tail(self) -> tuple[str, ...]:
        """The last lines of the log, oldest first."""
        with self.reader_lock:
            return tuple(self._tail)

    def wait_until_ready(self, timeout: float | None) -> None:
        """Raises ServerStartError once the server has ended for good, ServerTimeout when the time is up."""
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
        """SIGTERM now, SIGKILL after ``timeout`` seconds; returns when it has ended."""
        with self._changed:
            self._stop_by = time.monotonic() + timeout
            if not self._over:
                os.write(self._wake_write, b"!")
        self.join(timeout + 5.0)
        if self.running:
            raise ServerTimeout("the server could not be stopped")

    def learn_build(self, build: str | None) -> None:
        """What the server itself says of its build."""
        if build is not None:
            self.info = replace(self.info, build=build)
            with self.reader_lock:
                self._reader.server = self.info

    def join(self, timeout: float | None = None) -> None:
        """Wait until the server has ended for good."""
        self._thread.join(timeout)

    # -- the supervisor's own thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while True:
                ready_s = self._live()
                if self._stop_by is not None:
                    self._end(ServerState.STOPPED)
                    return
                if ready_s is not None and ready_s > _HEALTHY_S:
                    self._restarts_left = self._max_restarts
                # What never came up at all would not come up the next time either.
                if not self._restarts_left or (ready_s is None and not self.restarts):
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
        except OSError as error:
            self.failure = f"the server could not be run: {error}"
            self._end(ServerState.FAILED)
        finally:
            os.close(self._wake_read)
            os.close(self._wake_write)
            if self._log is not None and self._close_log:
                self._log.close()

    def _set(self, state: ServerState) -> None:
        with self._changed:
            self.state = state
            self._changed.notify_all()

    def _end(self, state: ServerState) -> None:
        with self._changed:
            self._over = True
            self.state = state
            self._changed.notify_all()

    def _sleep(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._stop_by is None and (left := deadline - time.monotonic()) > 0:
            select.select([self._wake_read], [], [], left)

    def _live(self) -> float | None:
        """One process from its start to its end. The seconds for which it was ready; None if it never was."""
        with self.reader_lock:
            self._reader.restart()
            self._reader.server = self.info
            self._tail.clear()
        self._process_replaced()
        self.loading_s = self.returncode = None
        self.started_at = time.time()
        begun = time.monotonic()
        ready_at: float | None = None
        child = Child((*self.backend.command, *self.command.arguments), self.command.environment, wake=self._wake_read)
        self.info = replace(self.info, pid=child.pid)
        try:
            while not child.finished:
                # A wish to stop leaves the wake-up readable, so nothing is waited for from then on but the child.
                stopping = self.state is ServerState.STOPPING
                self._take(child.read(_LOOK_S if ready_at is None or stopping else None, wakeful=not stopping))
                if ready_at is None and self._stop_by is None and self._look_ready(time.monotonic() - begun):
                    ready_at = time.monotonic()
                    self.loading_s = ready_at - begun
                    self._set(ServerState.READY)
                if self._stop_by is not None and not stopping:
                    self._set(ServerState.STOPPING)
                    child.terminate()
                elif stopping and self._stop_by is not None and time.monotonic() >= self._stop_by:
                    child.kill()
        finally:
            if child.returncode is None:
                child.kill()
            self.returncode = child.close()
        ended_at = time.monotonic()
        self.failure = None if self._stop_by is not None else self._why(was_ready=ready_at is not None)
        with self.reader_lock:
            cut_off = self._reader.abort(time.time(), self.failure or "the server was stopped")
        self._hand_out(cut_off)
        client, self.client = self.client, None
        if client is not None:
            client.close()
        self.info = replace(self.info, pid=None)
        return None if ready_at is None else ended_at - ready_at

    def _take(self, lines: Sequence[str]) -> None:
        if not lines:
            return
        now = time.time()
        ended: list[Completion] = []
        with self.reader_lock:
            self._tail.extend(lines)
            for line in lines:
                ended.extend(self._reader.feed(line, now))
        if self._log is not None:
            try:
                self._log.write("\n".join(lines) + "\n")
                self._log.flush()
            except (OSError, ValueError) as error:
                _log.warning("the server's log is no longer passed on: %s", error)
                self._log = None
        self._hand_out(ended)

    def _look_ready(self, since_start: float) -> bool:
        """Ready once the log says that it listens: llama.cpp prints that when the model is loaded."""
        facts = self._reader.facts
        if facts.port is None:
            if not self._port or since_start < _SILENT_S or self._reader.counts().lines.get("server"):
                return False
            probe = ServerClient(base_url(self.info.address, self._port), timeout_s=0.5)
            if not probe.healthy():
                return False
        # A wheel built without its number says "b0-unknown": then its version tells more.
        known = facts.build is not None and "unknown" not in facts.build
        build = facts.build if known else self.info.build
        self.info = replace(self.info, port=facts.port or self._port, build=build)
        with self.reader_lock:
            self._reader.server = self.info
        self.started_at = self._reader.process_started_at or self.started_at
        self.client = ServerClient(base_url(self.info.address, self.info.port), api_key=self.command.api_key)
        return True

    def _why(self, *, was_ready: bool) -> str:
        code = self.returncode
        how = f"signal {-code}" if code is not None and code < 0 else f"exit status {code}"
        if was_ready:
            return f"the server ended with {how}"
        return f"the server did not start ({how}): {failure_line(self.log_tail) or 'it printed nothing'}"
