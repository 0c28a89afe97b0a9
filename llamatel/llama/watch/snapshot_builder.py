"""Builds the snapshot of one server from its last poll, its log and its process."""

from __future__ import annotations

from llamatel.flags.server_settings import ServerSettings
from llamatel.llama.log.logged_server import LoggedServer
from llamatel.llama.watch.kv_state import LoadedModel, Polled, kv_cache_state
from llamatel.llama.watch.local_process import LocalProcess, ProcessUsage
from llamatel.llama.watch.model_file import ModelFile
from llamatel.llama.watch.poll_outcome import PollOutcome
from llamatel.llama.watch.polling import Polling
from llamatel.llama.watch.server_lifecycle import Lifecycle
from llamatel.llama.watch.server_log import LogState, ServerLog
from llamatel.records import ServerInfo
from llamatel.snapshots import ProcessState, ServerSnapshot

_SAME_START_S = 2.0


class SnapshotBuilder:
    """Builds the snapshots of one server. One thread builds at a time."""

    def __init__(self, log: ServerLog | None) -> None:
        """``log`` receives properties of the cache from the model's file."""
        self._log = log
        self._usage = ProcessUsage()
        self._model_file = ModelFile()
        self._started_at: float | None = None
        """Start of its process: one value per process, although log and system differ slightly."""

    def build(
        self,
        server: ServerInfo,
        last: PollOutcome,
        polling: Polling | None,
        log: LogState | None,
        *,
        process: LocalProcess | None,
        settings: ServerSettings | None,
        named_model: str | None,
        is_router: bool,
    ) -> ServerSnapshot:
        """The snapshot after the ``last`` poll; ``named_model`` is the path in ``/props``."""
        life, up = last.life, last.up
        logged = LoggedServer() if log is None else log.server
        counted = polling if polling is not None and (polling.answers or life is not None) else None
        has_model = not is_router and up is not False
        model, cache = LoadedModel(), None
        if has_model and up:
            model = self._model_file.read(logged, settings, process, named_model, server.build or logged.build)
        if has_model:
            if self._log is not None:
                self._log.describe_cache(rewindable=model.rewindable, settings=settings)
            cache = kv_cache_state(logged, Polled() if polling is None else polling.polled, model)
        loaded = polling if has_model else None
        return ServerSnapshot(
            server=server,
            up=up,
            state=last.state,
            stale=last.stale,
            restarts=life.restarts if life is not None else None if polling is None else polling.restarts,
            process_started_at=self._process_started_at(life, process, log, up=up),
            loading_s=life.loading_s if life is not None and life.alive else None,
            counters={} if counted is None else counted.totals,
            deferred=None if loaded is None else loaded.deferred,
            busy_slots_per_step=None if loaded is None else loaded.busy_slots_per_step,
            slots=None if loaded is None else loaded.slots,
            decode_rate=None if loaded is None else loaded.decode_rate,
            kv_cache=cache if cache is not None and cache.is_known else None,
            context_shifts=None if log is None else log.context_shifts,
            prompt_cache=None if up is False else logged.prompt_cache,
            process=self._process_state(life, process),
            model=model.shape,
            settings=None if up is False else logged.completed(settings),
            placement=logged.placement,
            log=None if log is None else log.counts,
        )

    def _process_started_at(
        self, life: Lifecycle | None, process: LocalProcess | None, log: LogState | None, *, up: bool | None
    ) -> float | None:
        if life is not None:
            return life.started_at if life.alive else None
        if process is not None:
            found = None if up is False else process.started_at
        else:
            found = None if log is None else log.process_started_at
        if found is not None and (self._started_at is None or abs(found - self._started_at) > _SAME_START_S):
            self._started_at = found
        return None if found is None else self._started_at

    def _process_state(self, life: Lifecycle | None, process: LocalProcess | None) -> ProcessState | None:
        """Its CPU time and memory; None for a server whose process was never known."""
        if life is not None:
            return self._usage.read(life.info.pid)
        return None if process is None else self._usage.read(process.pid)
