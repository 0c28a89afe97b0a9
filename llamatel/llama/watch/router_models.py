"""Polls a router (llama-server without its own model): one server with many models.

``GET /models`` returns the states and loads nothing. A loaded model is polled through the router, always with
``autoload=false``: one that was unloaded in the meantime is not loaded again. The router logs a line for each such
request and unloads no model during one, so idle models are polled seldom, unloaded and sleeping ones never.

Changes between two polls are seen late or not at all: only the loads and failures that were seen are counted, and the
reason why a model was unloaded is unknown. What a model counts after its last poll cannot be read once it is unloaded,
and a request may be followed by the unloading at once: llama.cpp counts a request's tokens when it ends. The router's
log has all of it (see ``log.router_log``). Without it working models are polled more often, the tokens that their slots
showed last are added, and what is missing is counted: unloads, and requests that ran at the last poll.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from llamatel.errors import ServerUnreachable
from llamatel.flags.parse import parse_server_flags
from llamatel.flags.server_settings import ServerSettings
from llamatel.inputs.address import Address, parse_address
from llamatel.inputs.documents import text
from llamatel.llama.http.props import ModelCard, parse_model_card
from llamatel.llama.http.server_client import ServerClient
from llamatel.llama.log.logged_server import LoggedServer
from llamatel.llama.log.reader import LogReader
from llamatel.llama.log.router_log import ExitedProcess, RouterLog
from llamatel.llama.watch.kv_state import LoadedModel, kv_cache_state
from llamatel.llama.watch.local_process import cpu_time, find_process
from llamatel.llama.watch.polling import Polling
from llamatel.llama.watch.progress import STALLED_AFTER_S, ProgressWatch
from llamatel.records import ObservedRequest, ServerInfo
from llamatel.snapshots import CountGaps, RouterModel, ServerSnapshot

_IDLE_S = 5.0
"""Interval of polling an idle loaded model; without the router's log it is that of other servers."""
_WORKING_S = 0.2
"""Longest interval of polling a busy model without the router's log, as it may be unloaded once it is idle."""
_GENERATED = "tokens_predicted_total"
_STATES = frozenset({"unloaded", "loading", "loaded", "sleeping", "downloading", "downloaded"})
_ENDED = frozenset({"unloaded", "failed"})
_MAX_MODELS = 512


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model as ``/models`` lists it (tools/server/server-models.cpp, ``get_router_models``)."""

    name: str
    state: str | None
    """unloaded, loading, loaded, sleeping, failed, downloading; None for a state that we do not know."""
    port: int | None = None
    """Port of its process, while it has one."""
    exit_code: int | None = None
    card: ModelCard = field(default_factory=ModelCard)
    settings: ServerSettings | None = None

    @property
    def running(self) -> bool:
        """Whether a process has loaded it."""
        return self.state in ("loaded", "sleeping")


def parse_models(models: Iterable[Mapping[str, object]]) -> list[ModelEntry]:
    """The entries of a router's list; what is none is passed over."""
    entries: list[ModelEntry] = []
    for model in models:
        if len(entries) == _MAX_MODELS:
            break
        name, status = text(model.get("id")), model.get("status")
        if name is None or not isinstance(status, dict):
            continue
        value, given = status.get("value"), status.get("args")
        state = value if isinstance(value, str) and value in _STATES else None
        exit_code = status.get("exit_code")
        if state == "unloaded" and status.get("failed"):
            state = "failed"
        args = [word for word in given if isinstance(word, str)] if isinstance(given, list) else []
        settings = parse_server_flags(args, environ={}, lenient=True) if args else None
        port = None if settings is None else settings.port
        entries.append(
            ModelEntry(
                name,
                state,
                port=port if port is not None and 0 < port < 65536 else None,
                exit_code=exit_code if isinstance(exit_code, int) else None,
                card=parse_model_card(model),
                settings=settings,
            )
        )
    return entries


class _Model:
    """One model, across its loads."""

    def __init__(
        self, entry: ModelEntry, polling: Polling, progress: ProgressWatch, *, is_local: bool, has_log: bool
    ) -> None:
        """``is_local``: whether the router, and so the model's process, is on this machine.

        ``has_log``: whether the router's log shows what its processes counted.
        """
        self.entry = entry
        self.polling = polling
        self._progress = progress
        self._is_local = is_local
        self._has_log = has_log
        self._process: tuple[int | None, int | None] = (None, None)
        """The port of the model's process, and its pid if that is known."""
        self.loads = self.failures = 0
        self.unread = self.requests_lost = 0
        """Unloads whose last counts are unknown, and requests that are known to be missing with them."""
        self.stale = False
        self.due_at = float("-inf")
        self.working = False
        """Whether it was busy at the last poll."""
        self._runs = False
        self._port: int | None = None
        """Of the process that was seen to have loaded it last."""
        self._earlier: tuple[int | None, Mapping[str, float]] = (None, {})
        """Port and last counters of the process before."""

    def observe(self, entry: ModelEntry) -> None:
        """Its entry in the list of another poll."""
        before, self.entry = self.entry, entry
        if self._runs and (entry.state in _ENDED or (entry.port is not None and entry.port != self._port)):
            self._ended()
        if entry.running:
            self._runs, self._port = True, entry.port
        if entry.running and (not before.running or entry.port != before.port):
            self.loads += 1
            self.due_at = float("-inf")
        if entry.state == "failed" and before.state != "failed":
            self.failures += 1
        if entry.state != "loaded":
            self.stale = self.working = False
            self.due_at = float("-inf")
            if entry.state == "sleeping":
                self.polling.asleep()
            else:
                self.polling.disconnected()
        self.polling.trained_context = entry.card.trained_context

    def exited(self, process: ExitedProcess) -> None:
        """Add what its log shows one of its processes to have counted after its last poll."""
        if self._runs and process.port == self._port:
            self._ended()
        self.unread += not process.is_whole
        port, last = self._earlier
        if process.port == port:
            self._earlier = (None, {})
        else:
            last = {}  # it was never polled
        self.polling.add({name: value - last.get(name, 0.0) for name, value in process.totals.items()})

    def _ended(self) -> None:
        """Record that its process exited, and its counts after its last poll are lost."""
        running = self.polling.uncounted
        last = self.polling.replaced()
        self._earlier, self._runs = (self._port, last), False
        if not self._has_log:
            self.unread += 1
            self.requests_lost += len(running)
            if _GENERATED in last:
                self.polling.add({_GENERATED: sum(request.decoded or 0 for request in running)})

    @property
    def may_unload(self) -> bool:
        """Whether it works, or will in a moment, and so may be unloaded with counts that were not read."""
        return self.working or self.entry.state == "loading"

    def poll(self, now: float, interval_s: float, working_s: float) -> None:
        """Poll it, if it is loaded and due. ``working_s``: until the next poll while it works."""
        if self.entry.state != "loaded" or now < self.due_at:
            return
        try:
            self.polling.poll()
            self.stale = False
        except ServerUnreachable as error:
            # Busy: its last figures are kept. Unloaded in the meantime (400), or removed: the next list shows it.
            self.stale = error.busy
        working = self.working = self.polling.busy or self.stale
        cpu_s = cpu_time(self._pid()) if working else None
        self._progress.observe(started_at=now, working=working, marks=self.polling.marks, cpu_s=cpu_s)
        self.due_at = now + (working_s if working else interval_s if not self._has_log else max(_IDLE_S, interval_s))

    def _pid(self) -> int | None:
        """The model's process, looked for once a load; None if it is on another machine, or cannot be found."""
        port = self.entry.port
        if self._process[0] != port:
            found = find_process(Address("http", "127.0.0.1", port)) if self._is_local and port is not None else None
            self._process = port, None if found is None else found.pid
        return self._process[1]

    def snapshot(self, server: ServerInfo, logged: LoggedServer) -> ServerSnapshot:
        """Its last polled state, with what its log shows; without a process only its state."""
        entry, polling = self.entry, self.polling
        about = replace(server, model=entry.name)
        life = RouterModel(loads=self.loads, failures=self.failures)
        gaps = CountGaps(self.unread, None if self._has_log else self.requests_lost)
        if not entry.running:
            return ServerSnapshot(
                about, up=None, state=entry.state, counters=polling.totals, router_model=life, count_gaps=gaps
            )
        cache = kv_cache_state(logged, polling.polled, LoadedModel(None, entry.settings))
        return ServerSnapshot(
            about,
            up=None,
            state="stalled" if entry.state == "loaded" and self._progress.stalled else entry.state,
            stale=self.stale,
            counters=polling.totals,
            deferred=polling.deferred,
            busy_slots_per_step=polling.busy_slots_per_step,
            slots=polling.slots,
            decode_rate=polling.decode_rate,
            kv_cache=cache if cache.is_known else None,
            router_model=life,
            count_gaps=gaps,
        )


class Router:
    """Polls a router. Not thread-safe."""

    def __init__(
        self,
        client: ServerClient,
        *,
        interval_s: float = 1.0,
        stalled_after_s: float = STALLED_AFTER_S,
        has_log: bool = False,
        on_task: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``stalled_after_s``: see ``progress``. ``has_log``: whether the router's log is read, too.

        ``on_task`` is called with a model's name before each request that takes a task number of its process.
        """
        self._client = client
        self._interval_s = interval_s
        self._stalled_after_s = stalled_after_s
        self._has_log = has_log
        self._on_task = on_task
        self._clock = clock
        self._models: dict[str, _Model] = {}
        self._exited: deque[ExitedProcess] = deque(maxlen=_MAX_MODELS)
        """Until the list of models is known, as these may be the first ones."""

    def use(self, client: ServerClient) -> None:
        """Record that it is another process now, on the same port or another one."""
        if client is not self._client:
            self._client = client
            self.clear()
            for name, model in self._models.items():
                model.polling.use(client.of_model(name))

    def poll_list(self, exited: Iterable[ExitedProcess] = ()) -> None:
        """Poll the list of models. Raises ServerUnreachable.

        ``exited``: the processes that exited since the last round, by the router's log.
        """
        self._exited += exited
        entries = {entry.name: entry for entry in parse_models(self._client.router_models())}
        self._models = {name: self._models.get(name) or self._new(entry) for name, entry in entries.items()}
        for process in self._exited:
            if process.model in self._models:
                self._models[process.model].exited(process)
        self._exited.clear()
        for name, entry in entries.items():
            self._models[name].observe(entry)

    def poll_models(self) -> None:
        """Poll the loaded models that are due."""
        for model in self._models.values():
            model.poll(self._clock(), self._interval_s, self.due_in_s)

    @property
    def due_in_s(self) -> float:
        """When it is to be polled again."""
        works = not self._has_log and any(model.may_unload for model in self._models.values())
        return min(_WORKING_S, self._interval_s) if works else self._interval_s

    @property
    def ports(self) -> dict[int, str]:
        """The models that have a process, by its port."""
        entries = [model.entry for model in self._models.values()]
        return {entry.port: entry.name for entry in entries if entry.running and entry.port is not None}

    @property
    def reranking(self) -> frozenset[str]:
        """The models whose flags make them rerank."""
        flags = {name: model.entry.settings for name, model in self._models.items()}
        return frozenset(name for name, settings in flags.items() if settings is not None and settings.reranks)

    def clear(self) -> None:
        """Record that it no longer responds, nor do its models; their counts are kept and resumed later."""
        for model in self._models.values():
            model.polling.disconnected()
            model.entry = replace(model.entry, state=None, port=None)

    def take_observed(self, server: ServerInfo) -> list[ObservedRequest]:
        """The requests that the models' slots showed to have finished since the last call."""
        return [
            request
            for name, model in self._models.items()
            for request in model.polling.take_observed(replace(server, model=name))
        ]

    def snapshots(
        self, server: ServerInfo, logged: Callable[[str], LoggedServer] = lambda _: LoggedServer()
    ) -> tuple[ServerSnapshot, ...]:
        """Its models as last polled, without unknown ones. ``logged``: what a model's log shows."""
        known = [model for model in self._models.values() if model.entry.state is not None]
        return tuple(model.snapshot(server, logged(model.entry.name)) for model in known)

    def _new(self, entry: ModelEntry) -> _Model:
        name = f"{self._client.base_url} ({entry.name})"
        polling = Polling(
            self._client.of_model(entry.name), name, interval_s=self._interval_s,
            on_task=partial(self._on_task, entry.name), clock=self._clock,
        )  # fmt: skip
        progress = ProgressWatch(
            self._stalled_after_s, interval_s=self._interval_s, name=lambda: name, clock=self._clock
        )
        is_local = parse_address(self._client.base_url).is_local
        return _Model(entry, polling, progress, is_local=is_local, has_log=self._has_log)


def models_with_log(server: ServerInfo, router: Router | None, log: RouterLog[LogReader]) -> tuple[ServerSnapshot, ...]:
    """A router's models as polling and its log have them; ``router`` is None where it cannot be polled."""

    def logged(name: str) -> LoggedServer:
        reader = log.reader_of(name)
        return LoggedServer() if reader is None else reader.logged_server

    polled = () if router is None else router.snapshots(server, logged)
    if not polled:
        lives = {name: life.state for name, life in log.models.items() if life.state is not None}
        polled = tuple(
            ServerSnapshot(replace(server, model=name), up=None, state=state) for name, state in lives.items()
        )
    return tuple(_completed(state, log) for state in polled)


def _completed(state: ServerSnapshot, log: RouterLog[LogReader]) -> ServerSnapshot:
    life = log.models.get(state.server.model or "")
    if life is None:
        return state
    running = state.state in ("loaded", "stalled", "sleeping")
    return replace(state, loading_s=life.loading_s if running else None, router_model=life.record)
