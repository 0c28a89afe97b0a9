"""The server manager: what a program or the command line uses to run a llama.cpp server.

A Supervisor does the work on its own thread; an ObservedServer derives the server's state, across restarts of its
process.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from llamatel.errors import ServerStateError, ServerTimeout, UsageError
from llamatel.llama.interactive import interactive
from llamatel.llama.listeners import Listeners
from llamatel.llama.server import server_command as command_line
from llamatel.llama.server.backends import Backend, find_backend
from llamatel.llama.server.freed_ports import FreedPorts
from llamatel.llama.server.log_copy import LogCopy
from llamatel.llama.server.preset_arguments import preset_arguments
from llamatel.llama.server.server_command import CommandLine
from llamatel.llama.server.supervisor import ServerState, Supervisor
from llamatel.llama.server.unix_socket import UnixSocket
from llamatel.llama.watch.observed_server import ObservedServer
from llamatel.llama.watch.progress import STALLED_AFTER_S
from llamatel.llama.watch.server_log import ServerLog
from llamatel.llama.watch.targets import check_labels
from llamatel.records import Completion, ServerInfo
from llamatel.snapshots import ServerSnapshot

_log = logging.getLogger(__name__)

DEFAULT_PORT = 8090
_STOP_S = 5.0
"""Together with telemetry's shutdown less than the 10 s that container runtimes give a program to exit."""
_LAST_POLL_S = 0.5
_EXIT_S = 1.0
"""How long servers may take to exit when the interpreter exits."""

CompletionListener = Callable[[Completion], None]


class ServerManager:
    """A llama.cpp server as a child process.

    ``backend``: None (see ``backends.find_backend``), ``"llama-server"``, ``"xllamacpp"`` or a path.
    ``restart``: ``"never"``, ``"on-failure"`` (after a crash it is restarted with growing pauses, at most
    ``max_restarts`` times in a row; a minute of good health clears the count) or ``"on-stall"`` (also if it has work
    and makes no progress for ``stalled_after`` seconds; it is killed then).
    ``server_log``: also write the server's log: a path (appended to), ``"-"`` for stderr, or None.
    ``labels`` are on all its series and spans.

    Used as a context manager it stops the server at the end. Its methods may be called from any thread.
    """

    def __init__(
        self,
        *,
        backend: str | None = None,
        restart: str = "never",
        max_restarts: int = 5,
        stalled_after: float = STALLED_AFTER_S,
        server_log: str | os.PathLike[str] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        if restart not in ("never", "on-failure", "on-stall"):
            raise UsageError(f"restart is 'never', 'on-failure' or 'on-stall', not '{restart}'")
        if stalled_after <= 0:
            raise UsageError(f"stalled_after is {stalled_after:g}: it must be positive")
        if max_restarts < 0:
            raise UsageError(f"max_restarts is {max_restarts}: it must not be negative")
        self._choice = backend
        self._restart = restart
        self._stalled_after_s = stalled_after
        self._max_restarts = max_restarts
        self._server_log = server_log
        self._lock = threading.Lock()
        self._backend: Backend | None = None
        self._requested = ServerInfo("127.0.0.1", labels=check_labels(labels or {}))
        self._supervisor: Supervisor | None = None
        self._observe(self._requested)
        self._listeners = Listeners[Completion]()
        self.listener_failures = 0
        """How often a listener raised."""
        with _known:
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
        preset: str | None = None,
    ) -> ServerManager:
        """Start the server and return at once; ``wait_until_ready`` follows.

        Arguments that are None are left to llama-server's defaults. ``port`` 0 means a free one: that of a server of
        this process that was stopped, so its series continue, else any. ``extra_args`` are passed on verbatim, last;
        ``env`` is added to the environment. ``preset`` (``kaggle-t4x2``) sets arguments that are None for a machine, so
        that the model fits. An API key is passed in the environment or in a file, never in the arguments.
        Raises BackendNotFound, UsageError, or ServerStateError if a server of this manager is already running, or one
        of another manager of this process on that port; in a notebook, whose cells run again, that server ends and this
        one takes its place.
        """
        arguments: dict[str, Any] = {
            "tensor_split": tensor_split, "flash_attn": flash_attn, "gpu_layers": gpu_layers, "ctx_size": ctx_size,
            "cache_type_k": cache_type_k, "cache_type_v": cache_type_v,
        }  # fmt: skip
        build = functools.partial(
            command_line.build, model_path, host=host, port=port, api_key=api_key, api_key_file=api_key_file,
            kv_unified=kv_unified, swa_full=swa_full, extra_args=extra_args, env=env, n_parallel=n_parallel,
            split_mode=split_mode, main_gpu=main_gpu, batch_size=batch_size, ubatch_size=ubatch_size, alias=alias,
        )  # fmt: skip
        command = build(**arguments)
        if preset is not None:
            added, _ = preset_arguments(preset, model_path, command.arguments)
            command = build(**{**arguments, **added})
        with self._lock:
            backend = find_backend(self._choice)
            name = command.alias or (command_line.model_file(model_path).name if model_path is not None else None)
            listen = command.listen
            self._make_way(listen.host, listen.port or 0)
            if listen.scheme == "unix":
                UnixSocket(listen.host).check()
            made_by, labels = (backend.version, backend.name), self._requested.labels
            info = ServerInfo(listen.host, listen.port or None, name, *made_by, labels=labels)
            self._begin(backend, command, info)
        self._announce()
        return self

    def wait_until_ready(self, timeout: float | None = None) -> ServerManager:
        """Wait until the model is loaded.

        Raises ServerStartError at once if the server ends before, with its own error line, and ServerTimeout after
        ``timeout`` seconds (the server goes on loading).
        """
        self._started().wait_until_ready(timeout)
        return self

    def stop_server(self, timeout: float = _STOP_S) -> int | None:
        """Stop the server: SIGTERM, SIGKILL after ``timeout`` seconds. Its exit status; None if none was started."""
        supervisor = self._supervisor
        if supervisor is None:
            return None
        self._stop(supervisor, timeout)
        return supervisor.returncode

    def _stop(self, supervisor: Supervisor, timeout: float) -> None:
        """Stop the server if it runs."""
        if supervisor.running:
            self._observed.poll_counters(_LAST_POLL_S)
            supervisor.stop(timeout)

    def restart(self, timeout: float | None = None) -> ServerManager:
        """Stop the server and start it again with the same arguments, on the same port; waits until it is ready."""
        before = self._started()
        self._stop(before, _STOP_S)
        with self._lock:
            self._begin(before.backend, before.command, self._requested, before)
        self._announce()
        return self.wait_until_ready(timeout)

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait until the server has finally exited; its exit status, or None if it still runs after ``timeout``."""
        supervisor = self._started()
        supervisor.join(timeout)
        return None if supervisor.running else supervisor.returncode

    def subscribe(self, listener: CompletionListener) -> Callable[[], None]:
        """Call ``listener`` for each finished request, on the thread that reads the log (it must be quick).

        Returns a function that unsubscribes.
        """
        return self._listeners.add(listener)

    def snapshot(self) -> ServerSnapshot | None:
        """The server's state and llama.cpp's counters now, and what is in its KV cache; None if it was never started.

        One GET of /metrics while it is ready, and of /slots if something ran since the last time; where the first
        fails, or the server has exited, the counters are the last ones. Takes 2.5 seconds if it does not answer.
        """
        return next(iter(self.snapshots()), None)

    def snapshots(self) -> tuple[ServerSnapshot, ...]:
        """``snapshot``, and one for each model of a router; none if it was never started."""
        if self._supervisor is None:
            return ()
        self._observed.poll()
        return self._observed.snapshots()

    @property
    def state(self) -> ServerState:
        """The server's lifecycle state."""
        return ServerState.STOPPED if self._supervisor is None else self._supervisor.state

    @property
    def info(self) -> ServerInfo:
        """The server's identity; the port is None until a free one was found."""
        return self._requested if self._supervisor is None else self._supervisor.info

    @property
    def base_url(self) -> str:
        """Address for clients: http://, https:// or unix:///PATH. Raises ServerStateError while a port is not known."""
        address = self._started().address
        if address is None:
            raise ServerStateError("the server has no port yet: wait_until_ready() first")
        return address.url

    @property
    def backend(self) -> Backend | None:
        """The backend; None before the first start."""
        return self._backend

    @property
    def restarts(self) -> int:
        """Number of restarts after a failure."""
        return 0 if self._supervisor is None else self._supervisor.restarts

    @property
    def returncode(self) -> int | None:
        """Exit status of the last process, negative for a signal; None while it runs."""
        return None if self._supervisor is None else self._supervisor.returncode

    @property
    def failure(self) -> str | None:
        """Why the server exited by itself; None if it did not."""
        return None if self._supervisor is None else self._supervisor.failure

    @property
    def log_tail(self) -> tuple[str, ...]:
        """The last lines of its log, oldest first."""
        return () if self._supervisor is None else self._supervisor.log_tail

    def __repr__(self) -> str:
        address = None if self._supervisor is None else self._supervisor.address
        where, model = "" if address is None else f" {address.url}", self.info.model
        return f"<ServerManager {self.state.value}{where}{f' {model}' if model else ''}>"

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

    def _make_way(self, host: str, port: int) -> None:
        """Raise if this manager has a server, or this process another one on that port; called with the lock held."""
        with _known:
            managers = list(_managers)
        for manager in managers:
            supervisor = manager._supervisor
            if supervisor is None or not supervisor.running:
                continue
            own, there = manager is self, port != 0 and (host, port) == (supervisor.info.address, supervisor.info.port)
            if (own or there) and interactive():
                _log.warning("%s was stopped: another server replaces it", manager)
                manager.stop_server()
            elif there and not own:
                raise ServerStateError(
                    f"this process already runs a server at {host}:{port}: stop_server() it first, or take port=0"
                )

    def _begin(
        self, backend: Backend, command: CommandLine, requested: ServerInfo, before: Supervisor | None = None
    ) -> None:
        """Start a supervisor; called with the lock held. ``before`` is the one whose server is restarted."""
        if self._supervisor is not None and self._supervisor.running:
            raise ServerStateError(f"the server is {self._supervisor.state.value}: stop it first")
        log = None if self._server_log is None else LogCopy(self._server_log)
        if before is not None:
            port = before.found_port
            _ports.keep(requested.address, port)
        else:
            port = _ports.take(requested.address) if requested.port is None else None
        if (requested.address, requested.port, requested.model) != (
            self._requested.address,
            self._requested.port,
            self._requested.model,
        ):
            # Another server in metrics: earlier counts belong to the previous one.
            self._observe(requested)
        if before is None:
            self._observed.launch(command.arguments, {**os.environ, **command.environment})
        supervisor = Supervisor(
            backend, command, requested, self._observed_log,
            hand_out=self._hand_out, process_replaced=self._observed.process_replaced, ended=_ports.release,
            restart_on_failure=self._restart != "never", max_restarts=self._max_restarts, log=log,
            restarts=0 if before is None else before.restarts, found_port=port,
        )  # fmt: skip
        self._backend, self._requested, self._supervisor = backend, requested, supervisor
        supervisor.start()

    def _observe(self, requested: ServerInfo) -> None:
        """Observe this server from now on."""
        self._observed_log = ServerLog(requested, supervised=True)
        self._observed = ObservedServer(
            requested,
            log=self._observed_log,
            lifecycle=lambda: None if self._supervisor is None else self._supervisor.lifecycle(),
            stalled_after_s=self._stalled_after_s,
            on_stall=self._stalled,
        )

    def _stalled(self, why: str) -> None:
        if self._restart == "on-stall" and self._supervisor is not None:
            self._supervisor.give_up_process(why)

    def _announce(self) -> None:
        with _known:
            watchers = tuple(_watchers)
        for watcher in watchers:
            watcher(self)

    def _hand_out(self, completions: Sequence[Completion]) -> None:
        for completion in completions:
            for listener in self._listeners:
                try:
                    listener(completion)
                except Exception:  # noqa: BLE001 - the boundary to users' listeners: our thread must live
                    if not self.listener_failures:
                        _log.exception("a listener failed; further failures are only counted")
                    self.listener_failures += 1


_ports = FreedPorts()
_known = threading.Lock()
"""Held while one of the following changes or is copied."""
_managers: weakref.WeakSet[ServerManager] = weakref.WeakSet()
_watchers: list[Callable[[ServerManager], None]] = []


def on_start(watcher: Callable[[ServerManager], None]) -> Callable[[], None]:
    """Call ``watcher`` for each server that runs, failed, or starts (maybe twice); returns a function that stops it.

    This is how telemetry finds the servers: this package knows nothing of it.
    """
    with _known:
        _watchers.append(watcher)
        managers = list(_managers)
    for manager in managers:
        if manager.state is not ServerState.STOPPED:
            watcher(manager)

    def forget() -> None:
        with _known:
            _watchers.remove(watcher)

    return forget


def stop_all(timeout: float = _EXIT_S) -> None:
    """Stop all servers in parallel: SIGTERM, and SIGKILL after ``timeout`` seconds. Called at exit, too."""
    with _known:
        managers = list(_managers)
    stopping = []
    for manager in managers:
        supervisor = manager._supervisor
        if supervisor is not None and supervisor.running:
            manager._observed.poll_counters(_LAST_POLL_S)
            supervisor.request_stop(timeout)
            stopping.append(supervisor)
    for supervisor in stopping:
        with contextlib.suppress(ServerTimeout):
            supervisor.stop(timeout)


atexit.register(stop_all)
