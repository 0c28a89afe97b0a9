"""A router (llama-server without a model of its own) as polling sees it: one server with many models.

``GET /models`` gives the states and loads nothing. A loaded model is asked through the router, always with
``autoload=false``: one that was unloaded meanwhile is not brought back. The router logs a line for each such question
and gives no model up while it answers one, so idle models are asked seldom; unloaded and sleeping ones not at all.

What happens between two looks is seen late or not at all: loads and failures are counted as far as they were seen, and
why a model was unloaded cannot be told. The router's log says all of it (see ``log.router``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from llamatel.errors import ServerUnreachable
from llamatel.flags.parse import parse_server_flags
from llamatel.flags.server_settings import ServerSettings
from llamatel.inputs.documents import text
from llamatel.llama.http.props import ModelCard, parse_model_card
from llamatel.llama.http.server_client import ServerClient
from llamatel.llama.log.reader import LogReader
from llamatel.llama.log.router_log import RouterLog
from llamatel.llama.watch.instance import Instance
from llamatel.llama.watch.kv_state import LoadedModel, kv_cache_state
from llamatel.records import ObservedRequest, ServerInfo
from llamatel.snapshots import RouterModel, ServerSnapshot

_IDLE_S = 5.0
"""How often a loaded model is asked while nothing happens in it."""
_STATES = frozenset({"unloaded", "loading", "loaded", "sleeping", "downloading", "downloaded"})
_MAX_MODELS = 512


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model as ``/models`` lists it (tools/server/server-models.cpp, ``get_router_models``)."""

    name: str
    state: str | None
    """unloaded, loading, loaded, sleeping, failed, downloading; None for a state that we do not know."""
    port: int | None = None
    """Of its process, while it has one."""
    exit_code: int | None = None
    card: ModelCard = field(default_factory=ModelCard)
    flags: ServerSettings | None = None

    @property
    def running(self) -> bool:
        """Whether it has a process that has loaded it."""
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
        flags = parse_server_flags(args, environ={}, lenient=True) if args else None
        entries.append(
            ModelEntry(
                name,
                state,
                port=flags.port if flags is not None and flags.port and 0 < flags.port < 65536 else None,
                exit_code=exit_code if isinstance(exit_code, int) else None,
                card=parse_model_card(model),
                flags=flags,
            )
        )
    return entries


class _Model:
    """One model over its loads."""

    def __init__(self, entry: ModelEntry, instance: Instance) -> None:
        self.entry = entry
        self.instance = instance
        self.loads = self.failures = 0
        self.stale = False
        self.ask_at = float("-inf")

    def observe(self, entry: ModelEntry) -> None:
        """Another look at the list."""
        before, self.entry = self.entry, entry
        if entry.running and (not before.running or entry.port != before.port):
            self.loads += 1
            self.ask_at = float("-inf")
        if entry.state == "failed" and before.state != "failed":
            self.failures += 1
        if entry.state != "loaded":
            self.stale = False
            self.ask_at = float("-inf")
            if entry.state == "sleeping":
                self.instance.asleep()
            else:
                self.instance.gone()
        self.instance.flags = entry.flags
        self.instance.trained_context = entry.card.trained_context

    def ask(self, now: float, interval_s: float) -> None:
        """Ask a loaded one for its figures, if it is time."""
        if self.entry.state != "loaded" or now < self.ask_at:
            return
        try:
            self.instance.poll()
            self.stale = False
        except ServerUnreachable as error:
            # Busy: its last figures are kept. Unloaded since we looked (400), or away: the next list will tell.
            self.stale = error.busy
        self.ask_at = now + (interval_s if self.instance.busy or self.stale else max(_IDLE_S, interval_s))

    def snapshot(self, server: ServerInfo) -> ServerSnapshot:
        """What was seen last; of a model that has no process only its state."""
        entry = self.entry
        about = replace(server, model=entry.name)
        life = RouterModel(loads=self.loads, failures=self.failures)
        if not entry.running:
            return ServerSnapshot(about, up=None, state=entry.state, router_model=life)
        state = self.instance.snapshot(about, up=None, state=entry.state, stale=self.stale)
        return replace(state, restarts=None, router_model=life)


class Router:
    """Polls a router. Not thread-safe."""

    def __init__(
        self,
        client: ServerClient,
        *,
        interval_s: float = 1.0,
        asked: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``asked`` is called with a model's name at each question that takes a task number of its process."""
        self._client = client
        self._interval_s = interval_s
        self._asked = asked
        self._clock = clock
        self._models: dict[str, _Model] = {}

    def use(self, client: ServerClient) -> None:
        """It is another process now, on the same port or another one."""
        if client is not self._client:
            self._client = client
            self.gone()
            for name, model in self._models.items():
                model.instance.use(client.of_model(name))

    def poll(self) -> None:
        """One round. Raises ServerUnreachable where the list cannot be had."""
        entries = {entry.name: entry for entry in parse_models(self._client.router_models())}
        self._models = {name: self._models.get(name) or self._new(entry) for name, entry in entries.items()}
        for name, entry in entries.items():
            self._models[name].observe(entry)
        for model in self._models.values():
            model.ask(self._clock(), self._interval_s)

    def gone(self) -> None:
        """It does not answer any more, and its models went with it; what they counted is kept, to be resumed."""
        for model in self._models.values():
            model.instance.gone()
            model.entry = replace(model.entry, state=None, port=None)

    def take_observed(self, server: ServerInfo) -> list[ObservedRequest]:
        """The requests that looks at the models' slots showed to be gone since this was asked last."""
        return [
            request
            for name, model in self._models.items()
            for request in model.instance.take_observed(replace(server, model=name))
        ]

    def snapshots(self, server: ServerInfo) -> tuple[ServerSnapshot, ...]:
        """Its models as last seen; none that we know nothing of."""
        return tuple(model.snapshot(server) for model in self._models.values() if model.entry.state is not None)

    def _new(self, entry: ModelEntry) -> _Model:
        instance = Instance(
            self._client.of_model(entry.name),
            f"{self._client.base_url} ({entry.name})",
            interval_s=self._interval_s,
            asked=partial(self._asked, entry.name),
            clock=self._clock,
        )
        return _Model(entry, instance)


def with_log(
    server: ServerInfo, polled: Sequence[ServerSnapshot], log: RouterLog[LogReader]
) -> tuple[ServerSnapshot, ...]:
    """What polling and the router's log say of its models, together; nothing was polled if it could not be."""
    states = {state.server.model: state for state in polled}
    if not polled:
        lives = {name: life.state for name, life in log.models.items() if life.state is not None}
        states = {
            name: ServerSnapshot(replace(server, model=name), up=None, state=state) for name, state in lives.items()
        }
    return tuple(_completed(state, log) for state in states.values())


def _completed(state: ServerSnapshot, log: RouterLog[LogReader]) -> ServerSnapshot:
    name = state.server.model or ""
    life, reader = log.models.get(name), log.reader_of(name)
    if life is None:
        return state
    running = state.state in ("loaded", "sleeping")
    cache = state.kv_cache
    if reader is not None and running and (cache is not None or reader.logged_server.sleeping):
        cache = kv_cache_state(reader.logged_server, state.slots, LoadedModel())
    loading_s = life.loading_s if running else None
    return replace(state, loading_s=loading_s, kv_cache=cache, router_model=life.record)
