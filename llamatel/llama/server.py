"""The server manager: what a program or the command line uses to run a llama.cpp server.

It holds what outlives a process (listeners, counters carried across restarts, the log reader's tallies); a Supervisor
does the work in a thread of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

from llamatel.errors import ServerStateError, ServerTimeout, ServerUnreachable, UsageError
from llamatel.llama import command_line
from llamatel.llama.backends import Backend, find_backend
from llamatel.llama.command_line import CommandLine
from llamatel.llama.counters import CarriedCounters
from llamatel.llama.http import ServerClient, base_url
from llamatel.llama.log_reader import LogReader
from llamatel.llama.supervisor import ServerState, Supervisor
from llamatel.records import Completion, LogCounts, ServerInfo, ServerSnapshot

_log = logging.getLogger(__name__)

DEFAULT_PORT = 8090
_STOP_S = 10.0
_LAST_POLL_S = 0.5

CompletionListener = Callable[[Completion], None]


class ServerManager:
    """A llama.cpp server as a child process.

    ``backend``: None (see ``backends.find_backend``), ``"llama-server"``, ``"xllamacpp"`` or a path.
    ``restart``: ``"never"`` or ``"on-failure"``: after a crash the server comes back with growing pauses, at most
    ``max_restarts`` times in a row; a minute of good health clears the count.
    ``server_log``: where the server's own log goes too: a path (appended to), ``"-"`` for stderr, or None.

    Used as a context manager it stops the server at the end. Its methods may be called from any thread.
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
        if max_restarts < 0:
            raise UsageError(f"max_restarts is {max_restarts}: it must not be negative")
        self._choice = backend
        self._restart_on_failure = restart == "on-failure"
        self._max_restarts = max_restarts
        self._server_log = server_log
        self._lock = threading.Lock()
        self._backend: Backend | None = None
        self._asked = ServerInfo("127.0.0.1")
        self._supervisor: Supervisor | None = None
        self._reader = LogReader(self._asked)
        self._counters = CarriedCounters()
        self._listeners: tuple[CompletionListener, ...] = ()
        self._said_not_understood = False
        _managers.add(self)

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
        verbatim, last; ``env`` is added to the environment. An API key travels in the environment or in a file, never
        in the arguments. Raises BackendNotFound, UsageError, or ServerStateError if a server is already running.
        """
        command = command_line.build(
            model_path, host=host, port=port, api_key=api_key, api_key_file=api_key_file, tensor_split=tensor_split,
            flash_attn=flash_attn, kv_unified=kv_unified, swa_full=swa_full, extra_args=extra_args, env=env,
            gpu_layers=gpu_layers, ctx_size=ctx_size, n_parallel=n_parallel, split_mode=split_mode, main_gpu=main_gpu,
            cache_type_k=cache_type_k, cache_type_v=cache_type_v, batch_size=batch_size, ubatch_size=ubatch_size,
            alias=alias,
        )  # fmt: skip
        with self._lock:
            if self._supervisor is not None and self._supervisor.running:
                raise ServerStateError(f"the server is {self._supervisor.state.value}: stop it first")
            self._backend = find_backend(self._choice)
            name = command.alias or (Path(model_path).name if model_path is not None else None)
            self._asked = ServerInfo(host, port or None, name, self._backend.version, self._backend.name)
            self._begin(self._backend, command, restarts=0)
        for watcher in _watchers:
            watcher(self)
        return self

    def wait_until_ready(self, timeout: float | None = None) -> ServerManager:
        """Wait until the model is loaded.

        Raises ServerStartError at once if the server ends before, with its own error line, and ServerTimeout after
        ``timeout`` seconds (the server goes on loading).
        """
        self._started().wait_until_ready(timeout)
        return self

    def stop_server(self, timeout: float = _STOP_S) -> int | None:
        """End the server: SIGTERM, and SIGKILL after ``timeout`` seconds. Its exit status; None if none was started."""
        supervisor = self._supervisor
        if supervisor is None:
            return None
        if supervisor.running:
            if supervisor.client is not None:
                self._poll(supervisor.client, _LAST_POLL_S)  # what it counted since the last time goes with it
            supervisor.stop(timeout)
        return supervisor.returncode

    def restart(self, timeout: float | None = None) -> ServerManager:
        """Stop the server and start it again with the same arguments; waits until it is ready."""
        supervisor = self._started()
        self.stop_server()
        with self._lock:
            self._begin(supervisor.backend, supervisor.command, restarts=supervisor.restarts)
        return self.wait_until_ready(timeout)

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait until the server has ended for good; its exit status, or None if it still runs after ``timeout``."""
        supervisor = self._started()
        supervisor.join(timeout)
        return None if supervisor.running else supervisor.returncode

    def subscribe(self, listener: CompletionListener) -> Callable[[], None]:
        """Have ``listener`` called for each request that ends, on the thread that reads the log (it must be quick).

        Returns what ends the subscription.
        """
        with self._lock:
            self._listeners = (*self._listeners, listener)

        def unsubscribe() -> None:
            with self._lock:
                self._listeners = tuple(kept for kept in self._listeners if kept is not listener)

        return unsubscribe

    def snapshot(self) -> ServerSnapshot | None:
        """The server's state and llama.cpp's counters now; None if it was never started.

        One GET of /metrics while it is ready; where that fails, or the server has ended, the counters are the last
        ones.
        """
        supervisor = self._supervisor
        if supervisor is None:
            return None
        client, state = supervisor.client, supervisor.state
        if state is ServerState.READY and client is not None:
            self._poll(client)
            if supervisor.info.build is None:
                supervisor.learn_build(client.build())
        with supervisor.reader_lock:
            counts = self._reader.counts(self._counters.raw("tokens_predicted_total"))
        self._say_if_not_understood(counts)
        alive = state in (ServerState.STARTING, ServerState.READY)
        return ServerSnapshot(
            server=supervisor.info,
            up=state is ServerState.READY,
            restarts=supervisor.restarts,
            process_started_at=supervisor.started_at if alive else None,
            loading_s=supervisor.loading_s if alive else None,
            counters=self._counters.totals(),
            log=counts,
        )

    @property
    def state(self) -> ServerState:
        """Where the server is in its life."""
        return ServerState.STOPPED if self._supervisor is None else self._supervisor.state

    @property
    def info(self) -> ServerInfo:
        """Who it is; the port is None until a free one was found."""
        return self._asked if self._supervisor is None else self._supervisor.info

    @property
    def base_url(self) -> str:
        """Address for clients. Raises ServerStateError while a free port is not known yet."""
        info = self.info
        if info.port is None:
            raise ServerStateError("the server has no port yet: wait_until_ready() first")
        return base_url(info.address, info.port)

    @property
    def backend(self) -> Backend | None:
        """What runs it; None before the first start."""
        return self._backend

    @property
    def restarts(self) -> int:
        """How often it was brought back after a failure."""
        return 0 if self._supervisor is None else self._supervisor.restarts

    @property
    def returncode(self) -> int | None:
        """Exit status of the last process, negative for a signal; None while it runs."""
        return None if self._supervisor is None else self._supervisor.returncode

    @property
    def failure(self) -> str | None:
        """Why it ended on its own, in its own words; None if it did not."""
        return None if self._supervisor is None else self._supervisor.failure

    @property
    def log_tail(self) -> tuple[str, ...]:
        """The last lines of its log, oldest first."""
        return () if self._supervisor is None else self._supervisor.log_tail

    def __enter__(self) -> ServerManager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_server()

    def _started(self) -> Supervisor:
        if self._supervisor is None:
            raise ServerStateError("the server was not started: start_server() first")
        return self._supervisor

    def _begin(self, backend: Backend, command: CommandLine, *, restarts: int) -> None:
        """Start a supervisor with what ``start_server`` was given."""
        log = self._open_server_log()
        self._supervisor = Supervisor(
            backend, command, self._asked, self._reader,
            hand_out=self._hand_out, process_replaced=self._counters.restarted,
            restart_on_failure=self._restart_on_failure, max_restarts=self._max_restarts,
            log=log, close_log=log is not sys.stderr,
        )  # fmt: skip
        self._supervisor.restarts = restarts
        self._supervisor.start()

    def _hand_out(self, completions: Sequence[Completion]) -> None:
        for completion in completions:
            for listener in self._listeners:
                listener(completion)

    def _poll(self, client: ServerClient, timeout_s: float | None = None) -> None:
        supervisor = self._started()
        try:
            values = client.counters(timeout_s)
        except ServerUnreachable as error:
            _log.debug("llama.cpp's counters cannot be read: %s", error)
            return
        with supervisor.reader_lock:
            self._reader.polled()
        self._counters.observe(values)

    def _say_if_not_understood(self, counts: LogCounts) -> None:
        if counts.understood is False and not self._said_not_understood:
            self._said_not_understood = True
            _log.warning(
                "this server generates tokens, but its log shows no requests that llamatel understands: there are no "
                "traces and no latency histograms for it. Is its log switched off, or its verbosity lowered? Else "
                "this llama.cpp build (%s) words its log in a new way",
                self.info.build or "unknown",
            )

    def _open_server_log(self) -> IO[str] | None:
        if self._server_log is None:
            return None
        if self._server_log == "-":
            return sys.stderr
        try:
            return Path(self._server_log).open("a", encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot write the server's log to {self._server_log}: {error.strerror}") from None


_managers: weakref.WeakSet[ServerManager] = weakref.WeakSet()
_watchers: list[Callable[[ServerManager], None]] = []


def on_start(watcher: Callable[[ServerManager], None]) -> Callable[[], None]:
    """Have ``watcher`` called for each server that was started or will be; returns what ends that.

    This is how telemetry finds the servers: this package knows nothing of it.
    """
    _watchers.append(watcher)
    for manager in list(_managers):
        if manager.backend is not None:
            watcher(manager)
    return lambda: _watchers.remove(watcher)


@atexit.register
def _stop_all() -> None:
    for manager in list(_managers):
        with contextlib.suppress(ServerTimeout):
            manager.stop_server(timeout=1.5)
