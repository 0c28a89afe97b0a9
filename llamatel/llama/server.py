"""The server manager: starts a llama.cpp server, follows its log, ends it, brings it back.

A thread of its own (the supervisor) starts the child, reads its output and is the only one that changes the state;
callers hand it orders and wait. The child cannot outlive us (``launcher.py``).
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import re
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import IO

from llamatel.errors import ServerStartError, ServerStateError, ServerTimeout, ServerUnreachable, UsageError
from llamatel.llama import command_line
from llamatel.llama.backends import Backend, find_backend
from llamatel.llama.counters import CarriedCounters
from llamatel.llama.http import ServerClient
from llamatel.llama.log_reader import LogReader
from llamatel.llama.process import Child
from llamatel.records import Completion, LogCounts, ServerInfo, ServerSnapshot

_log = logging.getLogger(__name__)

DEFAULT_PORT = 8090
_TAIL_LINES = 200
_STOP_S = 10.0
_BACKOFF_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
_SILENT_S = 1.0
"""A server that said nothing for that long may run with its log switched off: then its health is asked."""

CompletionListener = Callable[[Completion], None]


class ServerState(str, Enum):
    """stopped -> starting -> ready -> stopping -> stopped; failed: it ended on its own."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    FAILED = "failed"


# In order of how much they tell; llama.cpp prints several lines for one cause.
_CAUSES = tuple(
    re.compile(pattern)
    for pattern in (
        r"error: invalid argument.*|error: unknown .*|error while handling argument.*",
        r"failed to open GGUF file.*|invalid magic.*|failed to read (?:magic|key|tensor).*",
        r"(?:couldn't|could not|failed to|cannot) bind.*",
        r"(?i:failed to allocate|unable to allocate|out of memory|cudaMalloc failed|not enough memory|std::bad_alloc).*",
        r"(?<=error loading model: ).*",
        r"(?<=error: ).*",
    )
)


def failure_line(lines: Sequence[str]) -> str | None:
    """The line of a failed start that says why, without its prefix; None if there are no lines."""
    for cause in _CAUSES:
        for line in lines:
            found = cause.search(line)
            if found is not None:
                return found.group().strip()
    errors = [line for line in lines if re.match(r"[\d.]+ E ", line)]
    chosen = (errors or [line for line in lines if line.strip()])[:1] if errors else [ln for ln in lines if ln.strip()][-1:]
    return re.sub(r"^[\d.]+ [A-Z] ", "", chosen[0]).strip() if chosen else None


class ServerManager:
    """A llama.cpp server as a child process.

    ``backend``: None (see ``backends.find_backend``), ``"llama-server"``, ``"xllamacpp"`` or a path.
    ``restart``: ``"never"`` or ``"on-failure"``: after a crash the server comes back, at most ``max_restarts`` times in
    a row, with growing pauses; a minute of good health clears the count.
    ``server_log``: where the server's own log goes too: a path, ``"-"`` for stderr, or None.

    Used as a context manager it stops the server at the end. Methods may be called from any thread.
    """

    def __init__(
        self,
        *,
        backend: str | None = None,
        restart: str = "never",
        max_restarts: int = 5,
        server_log: str | os.PathLike[str] | None = None,
    ) -> None:
        if restart not in ("never", "on-failure"):
            raise UsageError(f"restart is 'never' or 'on-failure', not '{restart}'")
        self._choice = backend
        self._restart_policy = restart
        self._max_restarts = max_restarts
        self._server_log = server_log
        self._changed = threading.Condition()
        self._state = ServerState.STOPPED
        self._backend: Backend | None = None
        self._command: command_line.CommandLine | None = None
        self._host, self._port = "127.0.0.1", DEFAULT_PORT
        self._alias: str | None = None
        self._info = ServerInfo(address="127.0.0.1", port=None)
        self._reader = LogReader(self._info)
        self._reader_lock = threading.Lock()
        self._client: ServerClient | None = None
        self._counters = CarriedCounters()
        self._listeners: tuple[CompletionListener, ...] = ()
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._thread: threading.Thread | None = None
        self._wake: tuple[int, int] | None = None
        self._stop_by: float | None = None
        self._announced_healthy = False
        self._returncode: int | None = None
        self._restarts = 0
        self._failure: str | None = None
        self._started_at: float | None = None
        self._loading_s: float | None = None
        _managers.add(self)

    # -- for callers ------------------------------------------------------------------------------------------------

    def start_server(
        self,
        model_path: str | os.PathLike[str] | None,
        *,
        gpu_layers: int | str | None = None,
        ctx_size: int | None = None,
        n_parallel: int | None = None,
        tensor_split: Sequence[float] | str | None = None,
        split_mode: str | None = None,
        main_gpu: int | None = None,
        flash_attn: bool | str | None = None,
        cache_type_k: str | None = None,
        cache_type_v: str | None = None,
        batch_size: int | None = None,
        ubatch_size: int | None = None,
        kv_unified: bool | None = None,
        swa_full: bool = False,
        alias: str | None = None,
        host: str = "127.0.0.1",
        port: int = DEFAULT_PORT,
        api_key: str | None = None,
        api_key_file: str | os.PathLike[str] | None = None,
        extra_args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> ServerManager:
        """Start the server and return at once; ``wait_until_ready`` follows.

        What is None is left to llama-server's own defaults. ``port`` 0 means a free one. ``extra_args`` are passed on
        verbatim; ``env`` is added to the environment. An API key travels in the environment or a file, never in the
        arguments. Raises BackendNotFound, UsageError, or ServerStateError if a server is already running.
        """
        with self._changed:
            if self._thread is not None and self._thread.is_alive():
                raise ServerStateError(f"the server is {self._state.value}; stop it first")
            backend = find_backend(self._choice)
            self._command = command_line.build(
                model_path, host=host, port=port, api_key=api_key, api_key_file=api_key_file, tensor_split=tensor_split,
                flash_attn=flash_attn, kv_unified=kv_unified, swa_full=swa_full, extra_args=extra_args, env=env,
                gpu_layers=gpu_layers, ctx_size=ctx_size, n_parallel=n_parallel, split_mode=split_mode,
                main_gpu=main_gpu, cache_type_k=cache_type_k, cache_type_v=cache_type_v, batch_size=batch_size,
                ubatch_size=ubatch_size, alias=alias,
            )  # fmt: skip
            log = self._open_server_log()
            self._backend, self._host, self._port, self._alias = backend, host, port, alias
            self._returncode = self._failure = None
            self._restarts = 0
            self._info = ServerInfo(
                address=host, port=port or None, model=alias or (Path(model_path).stem if model_path else None),
                backend=backend.name,
            )  # fmt: skip
            self._wake = os.pipe()
            self._stop_by = None
            self._set_state(ServerState.STARTING)
            self._thread = threading.Thread(target=self._supervise, args=(log,), name="llamatel-server", daemon=True)
            self._thread.start()
        _announce(self)
        return self

    def wait_until_ready(self, timeout: float | None = None) -> ServerManager:
        """Wait until the model is loaded.

        Raises ServerStartError at once if the server ends before, with its own error line, and ServerTimeout after
        ``timeout`` seconds (the server goes on loading).
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while self._state is not ServerState.READY:
                if self._state is ServerState.STOPPED:
                    raise ServerStateError("the server was stopped" if self._backend else "the server was not started")
                if self._state is ServerState.FAILED and not self._will_restart():
                    raise ServerStartError(
                        self._failure or "the server ended", log_tail=tuple(self._tail), returncode=self._returncode
                    )
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise ServerTimeout(f"the server was not ready after {timeout:g} s; last line: {self.last_line}")
                self._changed.wait(left)
        return self

    def stop_server(self, timeout: float = _STOP_S) -> int | None:
        """End the server: SIGTERM, and SIGKILL after ``timeout`` seconds. Its exit status; None if none was started."""
        with self._changed:
            thread = self._thread
            if thread is None:
                return self._returncode
            if self._stop_by is None:
                self._take_last_counters()
            self._stop_by = time.monotonic() + timeout
            self._poke()
        thread.join(timeout + 5.0)
        if thread.is_alive():
            raise ServerTimeout("the server could not be stopped")
        return self._returncode

    def restart(self, timeout: float | None = None) -> ServerManager:
        """Stop the server and start it again with the same arguments; waits until it is ready."""
        if self._command is None or self._backend is None:
            raise ServerStateError("the server was not started")
        self.stop_server()
        with self._changed:
            log = self._open_server_log()
            self._wake = os.pipe()
            self._stop_by = None
            self._set_state(ServerState.STARTING)
            self._thread = threading.Thread(target=self._supervise, args=(log,), name="llamatel-server", daemon=True)
            self._thread.start()
        return self.wait_until_ready(timeout)

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait until the server has ended for good; its exit status, or None if it still runs after ``timeout``."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout)
            if thread.is_alive():
                return None
        return self._returncode

    def subscribe(self, listener: CompletionListener) -> Callable[[], None]:
        """Have ``listener`` called for each request that ends, on the supervisor's thread (it must be quick).

        Returns what ends the subscription.
        """
        with self._changed:
            self._listeners = (*self._listeners, listener)

        def unsubscribe() -> None:
            with self._changed:
                self._listeners = tuple(kept for kept in self._listeners if kept is not listener)

        return unsubscribe

    def snapshot(self) -> ServerSnapshot | None:
        """The server's state and llama.cpp's counters now; None if it was never started.

        One GET of /metrics while it is ready. Where that fails the counters are those of the last time.
        """
        if self._backend is None:
            return None
        with self._changed:
            state, client = self._state, self._client
        up = state is ServerState.READY
        if up and client is not None:
            self._poll(client)
        with self._reader_lock:
            counts = self._reader.counts(self._counters.raw("tokens_predicted_total"))
        self._warn_if_not_understood(counts)
        return ServerSnapshot(
            server=self._info,
            up=up,
            restarts=self._restarts,
            process_started_at=self._started_at if state in (ServerState.READY, ServerState.STARTING) else None,
            loading_s=self._loading_s,
            counters=self._counters.totals(),
            log=counts,
        )

    @property
    def state(self) -> ServerState:
        """Where the server is in its life."""
        return self._state

    @property
    def info(self) -> ServerInfo:
        """Who it is; the port is None until a free one was found."""
        return self._info

    @property
    def base_url(self) -> str:
        """Address for clients. Raises ServerStateError while a free port is not known yet."""
        if self._info.port is None:
            raise ServerStateError("the server has no port yet; wait_until_ready() first")
        host = "127.0.0.1" if self._info.address in ("0.0.0.0", "::") else self._info.address  # noqa: S104 - compared
        return f"http://[{host}]:{self._info.port}" if ":" in host else f"http://{host}:{self._info.port}"

    @property
    def backend(self) -> Backend | None:
        """What runs it; None before the first start."""
        return self._backend

    @property
    def restarts(self) -> int:
        """How often it was brought back after a failure."""
        return self._restarts

    @property
    def returncode(self) -> int | None:
        """Exit status of the last process; None while it runs."""
        return self._returncode

    @property
    def failure(self) -> str | None:
        """Why it ended on its own, in the server's words; None if it did not."""
        return self._failure

    @property
    def log_tail(self) -> tuple[str, ...]:
        """The last lines of its log, oldest first."""
        with self._reader_lock:
            return tuple(self._tail)

    @property
    def last_line(self) -> str:
        """The last line of its log, or an empty string."""
        return next(reversed(self.log_tail), "")

    def __enter__(self) -> ServerManager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_server()

    # -- the supervisor's thread ------------------------------------------------------------------------------------

    def _supervise(self, log: IO[str] | None) -> None:
        assert self._wake is not None
        wake = self._wake
        try:
            attempt = 0
            while True:
                ready_for = self._run_once(wake[0], log)
                if self._stop_by is not None:
                    self._set_state(ServerState.STOPPED)
                    return
                if ready_for > 60.0:
                    attempt = 0
                if ready_for == 0.0 and attempt == 0 or not self._may_restart(attempt):
                    self._stop_by = time.monotonic()  # no more restarts: waiters may give up
                    self._set_state(ServerState.FAILED)
                    return
                self._set_state(ServerState.FAILED)
                pause = _BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)]
                _log.warning("the server failed (%s); restarting it in %g s", self._failure, pause)
                if not self._pause(pause, wake[0]):
                    self._set_state(ServerState.STOPPED)
                    return
                attempt += 1
                self._restarts += 1
                self._set_state(ServerState.STARTING)
        finally:
            with self._changed:
                self._wake = None
            for descriptor in wake:
                os.close(descriptor)
            if log is not None and self._server_log != "-":
                log.close()

    def _may_restart(self, attempt: int) -> bool:
        return self._restart_policy == "on-failure" and attempt < self._max_restarts

    def _will_restart(self) -> bool:
        return self._stop_by is None and self._restart_policy == "on-failure"

    def _pause(self, seconds: float, wake: int) -> bool:
        """Sleep; False if we were asked to stop meanwhile."""
        import select

        deadline = time.monotonic() + seconds
        while self._stop_by is None and time.monotonic() < deadline:
            if select.select([wake], [], [], deadline - time.monotonic())[0]:
                os.read(wake, 64)
        return self._stop_by is None

    def _run_once(self, wake: int, log: IO[str] | None) -> float:
        """One process, from start to end. Returns the seconds for which it was ready."""
        assert self._backend is not None and self._command is not None
        with self._reader_lock:
            self._reader.restart()
            self._reader.server = self._info
            self._tail.clear()
        self._counters.restarted()
        self._loading_s = None
        self._started_at = time.time()
        started = time.monotonic()
        ready_at: float | None = None
        killed = False
        self._returncode = None
        child = Child([*self._backend.command, *self._command.arguments], self._command.environment, wake=wake)
        self._info = replace(self._info, pid=child.pid)
        try:
            while not child.finished:
                lines = child.read(timeout_s=0.2 if self._stop_by is not None or ready_at is None else 5.0)
                with contextlib.suppress(BlockingIOError):
                    os.read(wake, 64) if _readable(wake) else None
                self._take(lines, log)
                now = time.monotonic()
                if ready_at is None and self._is_ready(now - started):
                    ready_at = now
                    self._loading_s = now - started
                    if self._stop_by is None:
                        self._set_state(ServerState.READY)
                if self._stop_by is not None and child.returncode is None and not killed:
                    if self._state is not ServerState.STOPPING:
                        self._set_state(ServerState.STOPPING)
                        child.terminate()
                    elif now >= self._stop_by:
                        killed = True
                        child.kill()
            self._returncode = child.returncode
        finally:
            if child.returncode is None:
                child.kill()
            child.close()
        self._failure = None if self._stop_by is not None else self._why_it_ended(ready_at is not None)
        with self._reader_lock:
            ended = self._reader.abort(time.time(), self._failure or "the server was stopped")
        self._hand_out(ended)
        with self._changed:
            if self._client is not None:
                self._client.close()
                self._client = None
        self._info = replace(self._info, pid=None)
        return 0.0 if ready_at is None else time.monotonic() - ready_at

    def _take(self, lines: Sequence[str], log: IO[str] | None) -> None:
        if not lines:
            return
        now = time.time()
        ended: list[Completion] = []
        with self._reader_lock:
            for line in lines:
                self._tail.append(line)
                ended.extend(self._reader.feed(line, now))
        if log is not None:
            try:
                log.write("\n".join(lines) + "\n")
                log.flush()
            except OSError as error:
                _log.warning("the server's log can no longer be written: %s", error)
                self._server_log = None
        self._hand_out(ended)

    def _hand_out(self, completions: Sequence[Completion]) -> None:
        for completion in completions:
            for listener in self._listeners:
                listener(completion)

    def _is_ready(self, since_start: float) -> bool:
        """Ready once the log says that it listens, which llama.cpp does when the model is loaded."""
        facts = self._reader.facts
        port = facts.port or (self._port or None)
        if facts.port is None and facts.host is None:
            # Its log may be switched off or worded otherwise: ask, but only a server that has said nothing we know.
            if self._port == 0 or since_start < _SILENT_S or self._reader.counts().lines.get("server"):
                return False
            if not ServerClient(f"http://{self._host}:{self._port}", timeout_s=0.5).healthy():
                return False
        self._info = replace(self._info, port=port, build=facts.build)
        with self._reader_lock:
            self._reader.server = self._info
        client = ServerClient(self.base_url, api_key=self._command.api_key if self._command else None)
        with self._changed:
            self._client = client
        self._started_at = self._reader.process_started_at or self._started_at
        return True

    def _why_it_ended(self, was_ready: bool) -> str:
        code = self._returncode
        how = f"signal {-code}" if code is not None and code < 0 else f"exit status {code}"
        line = failure_line(tuple(self._tail))
        if was_ready:
            return f"the server ended with {how}" + (f": {line}" if line and code != -9 else "")
        return f"the server did not start ({how}): {line or 'it printed nothing'}"

    # -- shared -----------------------------------------------------------------------------------------------------

    def _set_state(self, state: ServerState) -> None:
        with self._changed:
            self._state = state
            self._changed.notify_all()

    def _poke(self) -> None:
        if self._wake is not None:
            os.write(self._wake[1], b"!")

    def _poll(self, client: ServerClient, timeout_s: float | None = None) -> None:
        try:
            values = client.counters(timeout_s)
        except ServerUnreachable as error:
            _log.debug("llama.cpp's counters cannot be read: %s", error)
            return
        with self._reader_lock:
            self._reader.polled()
        self._counters.observe(values)

    def _take_last_counters(self) -> None:
        """Before the server goes: what it counted since the last time."""
        if self._state is ServerState.READY and self._client is not None:
            self._poll(self._client, timeout_s=0.5)

    def _warn_if_not_understood(self, counts: LogCounts) -> None:
        if counts.understood is False and not self._announced_healthy:
            self._announced_healthy = True
            _log.warning(
                "this llama.cpp build generates tokens but its log shows no requests we understand: no traces and no "
                "latency histograms for it (is its log switched off or its verbosity lowered?)"
            )

    def _open_server_log(self) -> IO[str] | None:
        if self._server_log is None:
            return None
        if self._server_log == "-":
            import sys

            return sys.stderr
        try:
            return open(self._server_log, "a", encoding="utf-8")  # noqa: SIM115 - the supervisor closes it
        except OSError as error:
            raise UsageError(f"cannot write the server's log to {self._server_log}: {error.strerror}") from None


def _readable(descriptor: int) -> bool:
    import select

    return bool(select.select([descriptor], [], [], 0)[0])


_managers: weakref.WeakSet[ServerManager] = weakref.WeakSet()
_watchers: list[Callable[[ServerManager], None]] = []


def on_start(watcher: Callable[[ServerManager], None]) -> Callable[[], None]:
    """Have ``watcher`` called for each server that runs now or is started later; returns what ends that.

    This is how telemetry finds the servers: this package knows nothing of it.
    """
    _watchers.append(watcher)
    for manager in list(_managers):
        if manager.backend is not None:
            watcher(manager)
    return lambda: _watchers.remove(watcher)


def _announce(manager: ServerManager) -> None:
    for watcher in list(_watchers):
        watcher(manager)


@atexit.register
def _stop_all() -> None:
    for manager in list(_managers):
        with contextlib.suppress(ServerTimeout):
            manager.stop_server(timeout=1.5)
