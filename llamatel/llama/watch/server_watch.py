"""Snapshots of a launched server: its state, llama.cpp's counters, what its log has said; of a router, its models' too.

Here is what outlives a process: counters are carried across restarts, the log reader keeps its tallies.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from llamatel.errors import ServerUnreachable
from llamatel.llama.http.carried_counters import CarriedCounters
from llamatel.llama.http.server_client import ServerClient
from llamatel.llama.log.reader import LogReader
from llamatel.llama.server.server_command import CommandLine
from llamatel.llama.server.supervisor import ServerState, Supervisor
from llamatel.llama.watch.launched_details import Details, LaunchedServer
from llamatel.llama.watch.process_usage import ProcessClock
from llamatel.llama.watch.router_models import Router, with_log
from llamatel.records import ServerInfo
from llamatel.snapshots import LogCounts, ServerSnapshot

_log = logging.getLogger(__name__)

_LAST_POLL_S = 0.5
_HEALTH_S = 0.5


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a server says when it is asked for its counters."""

    up: bool
    busy: bool = False
    """It gave none within the time."""
    deferred: int | None = None


class ServerWatch:
    """What is seen of one server over the lives of its process. Thread-safe, with the supervisor's ``reader_lock``."""

    def __init__(self, asked: ServerInfo) -> None:
        """``asked``: who the server is to be; another one has a watch of its own."""
        self.reader = LogReader(asked)
        """The supervisor feeds it. To be read with the supervisor's ``reader_lock``."""
        self._counters = CarriedCounters()
        self._process = ProcessClock()
        self._launched: LaunchedServer | None = None
        self._router: Router | None = None
        self._router_lock = threading.Lock()
        self._asks: Supervisor | None = None
        """For whom the router's models are asked now."""
        self._logged_not_understood = False

    def launches(self, command: CommandLine) -> None:
        """The server is about to be started with this command line."""
        self._launched = LaunchedServer(command)

    def process_replaced(self) -> None:
        """A new process of the server is about to begin."""
        self._counters.restarted()
        if self._launched is not None:
            self._launched.restarted()

    def poll_last(self, supervisor: Supervisor) -> None:
        """Take up what a server that is about to be stopped has counted since the last time."""
        client = supervisor.client
        if client is not None:
            self._poll(supervisor, client, _LAST_POLL_S)

    def snapshot(self, supervisor: Supervisor) -> ServerSnapshot:
        """The server now; see ``ServerManager.snapshot``."""
        launched = self._launched
        client, state = supervisor.client, supervisor.state
        with supervisor.reader_lock:
            router = self.reader.router.seen
        answer = self._ask(supervisor, client, router=router) if state is ServerState.READY else _Answer(up=False)
        generated = self._counters.raw("tokens_predicted_total")
        with supervisor.reader_lock:
            counts, facts = self.reader.counts(generated), self.reader.logged_server
            shifts = self.reader.context_shifts
        self._log_if_not_understood(counts, supervisor.info)
        details = Details()
        if answer.up and launched is not None:
            asked = None if answer.busy or router else client
            details = launched.details(asked, facts, supervisor.activity(), generated)
            if details.asked:
                supervisor.polled()
            if router:  # its models have caches, it has none
                details = Details(settings=details.settings)
        alive = state in (ServerState.STARTING, ServerState.READY)
        return ServerSnapshot(
            server=supervisor.info,
            up=answer.up,
            state="sleeping" if answer.up and facts.sleeping else state.value,
            stale=answer.up and (answer.busy or details.stale),
            deferred=answer.deferred,
            slots=details.slots,
            decode_rate=details.decode_rate,
            kv_cache=details.kv_cache,
            context_shifts=shifts,
            prompt_cache=facts.prompt_cache if answer.up else None,
            process=self._process.read(supervisor.info.pid),
            model=details.model,
            settings=details.settings,
            restarts=supervisor.restarts,
            process_started_at=supervisor.started_at if alive else None,
            loading_s=supervisor.loading_s if alive else None,
            counters=self._counters.totals(),
            placement=facts.placement,
            log=counts,
        )

    def snapshots(self, supervisor: Supervisor) -> tuple[ServerSnapshot, ...]:
        """``snapshot``, and one for each model of a router."""
        snapshot = self.snapshot(supervisor)
        with supervisor.reader_lock:
            if not self.reader.router.seen:
                return (snapshot,)
        polled = self._poll_models(supervisor) if snapshot.up else ()
        with supervisor.reader_lock:
            return (snapshot, *with_log(supervisor.info, polled, self.reader.router))

    def _ask(self, supervisor: Supervisor, client: ServerClient | None, *, router: bool) -> _Answer:
        """Ask a server that is ready; without a ``client`` (it listens on a Unix socket) that is believed."""
        if client is None:
            return _Answer(up=True)
        if router:
            return _Answer(up=client.healthy(_HEALTH_S))
        values, error = self._poll(supervisor, client)
        busy = error is not None and error.busy
        # Counters wait for the batch that is being decoded; health does not.
        up = error is None or error.status is not None or (busy and client.healthy(_HEALTH_S))
        if up and supervisor.info.build is None and (build := client.build(_HEALTH_S)) is not None:
            supervisor.learn(build=build)
        deferred = values.get("requests_deferred")
        return _Answer(up, busy, None if deferred is None else int(deferred))

    def _poll(
        self, supervisor: Supervisor, client: ServerClient, timeout_s: float | None = None
    ) -> tuple[Mapping[str, float], ServerUnreachable | None]:
        """Take up the server's counters; none and the error if they cannot be had."""
        process = self._counters.process
        try:
            values = client.counters(timeout_s)
        except ServerUnreachable as error:
            _log.debug("llama.cpp's counters cannot be read: %s", error)
            return {}, error
        supervisor.polled()
        self._counters.observe(values, process)
        return values, None

    def _poll_models(self, supervisor: Supervisor) -> tuple[ServerSnapshot, ...]:
        """The models of a router; none if it does not answer."""
        client = supervisor.client
        if client is None:
            return ()

        with self._router_lock:
            self._asks = supervisor
            router = self._router = self._router or Router(client, asked=self._polled_model)
            router.use(client)
            try:
                router.poll()
            except ServerUnreachable as error:
                _log.debug("the router's models cannot be listed: %s", error)
                return ()
            return router.snapshots(supervisor.info)

    def _polled_model(self, name: str) -> None:
        """One of a router's models was asked something that takes a task number."""
        if self._asks is not None:
            with self._asks.reader_lock:
                reader = self.reader.router.reader_of(name)
                if reader is not None:
                    reader.polled()

    def _log_if_not_understood(self, counts: LogCounts, server: ServerInfo) -> None:
        if counts.understood is False and not self._logged_not_understood:
            self._logged_not_understood = True
            _log.warning(
                "this server generates tokens, but its log shows no requests that llamatel understands: there are no "
                "traces and no latency histograms for it. Is its log switched off, or its verbosity lowered? Else "
                "this llama.cpp build (%s) words its log in a new way",
                server.build or "unknown",
            )
