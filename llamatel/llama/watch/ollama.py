"""Ollama: its models' llama-servers, their requests from its log, and its own access lines.

Ollama (0.30 and later) runs one llama-server for each loaded model, on a random port of loopback, without ``--metrics``
and with its lines in Ollama's own log. Models are known from ``/api/ps``; a model's slots are polled where the
operating system shows that the server is Ollama's child (``ollama_children``). Series are one for each model, at
Ollama's own address: a model that is loaded again goes on with them.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from llamatel.errors import HttpError, LlamatelError, ServerUnreachable
from llamatel.inputs.http import HttpClient
from llamatel.llama.http.server_client import ServerClient
from llamatel.llama.listeners import Listeners
from llamatel.llama.log.log_clock import LogClock
from llamatel.llama.log.log_process import UNKNOWN
from llamatel.llama.log.log_source import Backlog, LogSource
from llamatel.llama.log.ollama_log import ChildStart
from llamatel.llama.log.ollama_separation import OllamaSeparation
from llamatel.llama.watch.observed_server import ObservedServer
from llamatel.llama.watch.ollama_children import OllamaChild, find_children
from llamatel.llama.watch.ollama_log_reader import Ended, OllamaLogReader
from llamatel.llama.watch.ollama_models import OllamaModels, file_name
from llamatel.llama.watch.ollama_requests import OllamaRequests, shown_tasks
from llamatel.llama.watch.server_lifecycle import Lifecycle
from llamatel.llama.watch.server_log import ServerLog
from llamatel.outputs.log_once import LogOnce
from llamatel.records import Completion, ObservedRequest, ServerInfo
from llamatel.snapshots import RouterModel, ServerSnapshot

_log = logging.getLogger(__name__)

DEFAULT_URL = "http://127.0.0.1:11434"
_TICK_S = 0.1
_RETIRED_S = 30.0
_LOG_LAG_S = 1.0
"""A server's exit is seen before the lines that say why are read."""
_MOST_MODELS = 64
_ENDED = "the model's process ended"
_STATES = {"starting": "loading", "ready": "loaded", "failed": "failed"}


class _Model:
    """One model over its loads."""

    def __init__(self, weights: str, info: ServerInfo, *, has_log: bool, interval_s: float) -> None:
        self.weights = weights
        self.info = info
        self.log = ServerLog(info, LogClock()) if has_log else None
        self.observed = ObservedServer(info, log=self.log, lifecycle=self._lifecycle, interval_s=interval_s)
        self.number: int | None = None
        """Of its server, while it is loaded."""
        self.state = "stopped"
        self.client: ServerClient | None = None
        self.child: OllamaChild | None = None
        self.ran_before: frozenset[tuple[int, int]] = frozenset()
        """Slots and tasks that its server showed when it was found."""
        self.started_at: float | None = None
        self.loading_s: float | None = None
        self.loads = self.evictions = self.failures = 0

    def _lifecycle(self) -> Lifecycle:
        pid = None if self.child is None else self.child.pid
        return Lifecycle(
            replace(self.info, pid=pid), self.state, client=self.client if self.state == "ready" else None,
            started_at=self.started_at, loading_s=self.loading_s,
        )  # fmt: skip

    def start(self, number: int, at: float | None, *, state: str = "starting") -> None:
        """A server of it is there."""
        self.number, self.state, self.started_at, self.loading_s = number, state, at, None
        self.ran_before = frozenset()
        self.observed.process_replaced()
        if self.log is not None:
            self.log.restart(self.info)

    def use(self, child: OllamaChild) -> None:
        """Its server is this child of Ollama's: poll it."""
        self.child = child
        self.client = ServerClient(f"http://127.0.0.1:{child.port}")
        self.observed.launch(child.flags, child.environ)

    def stop(self, state: str = "stopped") -> None:
        """Record that its server exited."""
        self.number, self.state, self.child = None, state, None
        if self.client is not None:
            self.client.close()
            self.client = None

    def snapshot(self, *, evictions_known: bool) -> ServerSnapshot | None:
        """What is known of it."""
        own = next(iter(self.observed.snapshots()), None)
        if own is None:
            return None
        loading = self.state == "ready" and own.state == "starting"
        loaded = self.state == "ready" and not loading
        return replace(
            own, server=replace(own.server, model=self.info.model), up=True if loaded else None, restarts=None,
            state="loading" if loading else _STATES.get(self.state, "unloaded"),
            kv_cache=own.kv_cache if loaded else None,
            router_model=RouterModel(
                self.loads, self.evictions if evictions_known else None, self.failures if evictions_known else None
            ),
        )  # fmt: skip


class Ollama:
    """Observes one Ollama and its models. Thread-safe."""

    def __init__(
        self,
        http: HttpClient,
        server: ServerInfo,
        source: LogSource | None = None,
        *,
        interval_s: float = 1.0,
        client_addresses: bool = False,
    ) -> None:
        """``server`` is Ollama's own identity; ``client_addresses``: record them with requests."""
        self.info = server
        self.blocking = source is not None and source.blocking
        self._http = http
        self._source = source
        self._interval_s = interval_s
        self._reported = OllamaModels(http)
        self._lock = threading.RLock()
        self._separation = OllamaSeparation()
        self._reader = OllamaLogReader(self, self._separation)
        self._unknown = ObservedServer(server, log=ServerLog(server, LogClock()))
        self._models: dict[str, _Model] = {}
        """By the file names of their weights."""
        self._numbers = 0
        self._exits: dict[int, float] = {}
        """Since when a server is no process of Ollama's, or not among the loaded models (monotonic)."""
        self._unannounced: dict[str, int] = {}
        """How often a model was loaded whose start was not read."""
        self._retired: list[tuple[float, int]] = []
        """Servers that exited, and when that was noticed (monotonic): the log may lag."""
        self._evicting = (math.inf, math.inf)
        """From when to when models were unloaded to make room (monotonic)."""
        self._caught_up = source is None
        """Whether the log's lines are read as they are written."""
        self._requests = OllamaRequests(
            server, self._of_number, self._separation, self._lock, client_addresses=client_addresses
        )
        self._up: bool | None = None
        self._once = LogOnce(_log)
        self._stopped = threading.Event()
        self._ended = threading.Event()
        self._failure: LlamatelError | None = None
        self._listeners = Listeners[Completion | ObservedRequest]()
        self._threads = [threading.Thread(target=self._run, name="llamatel-ollama", daemon=True)]
        if source is not None:
            self._threads.append(threading.Thread(target=self._read, name="llamatel-ollama-log", daemon=True))

    # -- for those who watch ------------------------------------------------------------------------------------------

    def start(self) -> Ollama:
        """Start to poll, and to read the log."""
        for thread in self._threads:
            thread.start()
        return self

    def stop(self) -> None:
        """Stop; requests that wait for an access line are handed out."""
        if self._source is not None and not self._ended.is_set():
            self._source.stop()
            self._ended.wait(5.0)
        self._stopped.set()
        if self._threads[0].is_alive():
            self._threads[0].join(5.0)
        with self._lock:
            for model in self._models.values():
                model.stop()
        self._http.close()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the log's end; False if it goes on, or there is none. Raises LogSourceError if it cannot be read."""
        if self._source is None:
            self._stopped.wait(timeout)
            return False
        self._ended.wait(timeout)
        if self._failure is not None:
            raise self._failure
        return self._ended.is_set()

    @property
    def polled(self) -> bool:
        """Whether Ollama answers."""
        return self._up is True

    @property
    def explanation(self) -> str | None:
        """Why no request was read, after the log's end; None if one was."""
        return None if self._reader.requests else self._reader.contents.explanation()

    def check(self) -> None:
        """Poll once. Raises ServerUnreachable where Ollama does not answer."""
        try:
            self._reported.poll()
        except (HttpError, ValueError) as error:
            raise ServerUnreachable(f"{self._http.base_url}/api/ps: {error}") from error

    def subscribe(self, listener: Callable[[Completion | ObservedRequest], None]) -> Callable[[], None]:
        """Call ``listener`` for each finished request; returns a function that unsubscribes."""
        return self._listeners.add(listener)

    def snapshots(self) -> tuple[ServerSnapshot, ...]:
        """Ollama itself, and its models that were loaded at some time."""
        with self._lock:
            models = list(self._models.values())
        own = ServerSnapshot(self.info, up=self._up, state="ready" if self._up else None)
        if self._source is not None:
            counts = self._unknown.snapshots()
            own = replace(own, log=counts[0].log if counts else None)
        known = self._source is not None
        return own, *filter(None, (model.snapshot(evictions_known=known) for model in models))

    # -- what the log reports (Children; called with the lock) --------------------------------------------------------

    def starts(self, start: ChildStart, now: float) -> int:
        """A server is about to start."""
        loading = self._loading()
        if loading is not None:
            self._remove(loading, "failed")
            loading.failures += 1
        model = self._model(file_name(start.model_path))
        if model.number is not None:
            self._remove(model)
        self._numbers += 1
        model.loads += 1
        model.start(self._numbers, now)
        sizes = {"-c": start.context, "-np": start.slots}
        model.observed.launch([word for name, size in sizes.items() if size for word in (name, str(size))], {})
        return self._numbers

    def ready(self, loading_s: float | None) -> None:
        """The one that was loading is ready."""
        model = self._loading()
        if model is not None and model.number is not None:
            model.state, model.loading_s = "ready", loading_s
            self._separation.ready(model.number)
            self._evicting = (self._evicting[0], min(self._evicting[1], time.monotonic()))

    def failed(self) -> None:
        """The one that was loading could not be started."""
        if (model := self._loading()) is not None:
            model.failures += 1
            self._remove(model, "failed")

    def evicting(self) -> None:
        """A model is unloaded to make room for another."""
        self._evicting = (time.monotonic(), math.inf)

    def only_newest(self) -> None:
        """Of all models, only the one that was loaded last is left."""
        newest = max((model.number or 0 for model in self._models.values()), default=0)
        for model in self._models.values():
            if model.number is not None and model.number != newest:
                self._remove(model)

    def restarted(self, now: float) -> None:
        """Ollama itself has started: there is no server."""
        for model in self._models.values():
            if model.number is not None:
                self._remove(model)
        self._unknown_log.forget()
        self._separation.owners.complete = True

    def log(self, server: int) -> ServerLog | None:
        """The log of a server."""
        if server == UNKNOWN:
            return self._unknown_log
        model = self._of_number(server)
        return None if model is None else model.log

    @property
    def _unknown_log(self) -> ServerLog:
        log = self._unknown.log
        if log is None:
            raise AssertionError("it is made with one")
        return log

    def _loading(self) -> _Model | None:
        return next((model for model in self._models.values() if model.state == "starting"), None)

    def _of_number(self, number: int) -> _Model | None:
        return next((model for model in self._models.values() if model.number == number), None)

    def _model(self, weights: str) -> _Model:
        model = self._models.get(weights)
        if model is None:
            if len(self._models) >= _MOST_MODELS:
                stopped = next((each for each in self._models.values() if each.number is None), None)
                del self._models[next(iter(self._models)) if stopped is None else stopped.weights]
            name = (self._reported.loaded or {}).get(weights) or _short(weights)
            info = replace(self.info, model=name)
            model = _Model(weights, info, has_log=self._source is not None, interval_s=self._interval_s)
            model.observed.subscribe(self._listeners.call)
            self._models[weights] = model
        return model

    def _remove(self, model: _Model, state: str = "stopped", *, logged: bool = True) -> None:
        """Its server exited: its requests in flight failed. ``logged``: no line of it can follow in the log."""
        number = model.number
        if number is None:
            return
        if model.log is not None:
            for request in model.log.abort(time.time(), _ENDED):
                self._reader.ended.append(Ended(replace(request, queue_s=None, in_flight=()), number, (), True, 0.0))
        start, end = self._evicting
        exited_at = self._exits.pop(number, time.monotonic())
        if state == "stopped" and start - _LOG_LAG_S <= exited_at <= end + _LOG_LAG_S:
            model.evictions += 1
        self._take_ended()
        if logged:
            self._separation.remove(number)
        else:
            self._retired.append((time.monotonic(), number))
        model.stop(state)

    # -- the log's thread ---------------------------------------------------------------------------------------------

    def _read(self) -> None:
        source = self._source
        try:
            for batch in source.batches() if source is not None else ():
                with self._lock:
                    if isinstance(batch, Backlog):
                        self._reader.read_backlog(batch)
                    else:
                        self._reader.read(batch)
                    self._take_ended()
                    self._caught_up = self._caught_up or not isinstance(batch, Backlog)
                while self.blocking and self._requests.crowded and not self._stopped.is_set():
                    time.sleep(_TICK_S)
        except LlamatelError as error:
            self._failure = error
        finally:
            with self._lock:
                self._unknown_log.forget()
                for model in self._models.values():
                    if model.log is not None:
                        model.log.forget()
                self._take_ended()
            self._ended.set()

    def _take_ended(self) -> None:
        """Keep what the reader has found; our lock is held."""
        self._requests.add(self._reader.ended, self._reader.accesses)
        self._reader.ended.clear()
        self._reader.accesses.clear()

    # -- the polls' thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        poll_at = 0.0
        while not self._stopped.wait(_TICK_S):
            try:
                if time.monotonic() >= poll_at:
                    poll_at = time.monotonic() + self._interval_s
                    self._poll()
                self._release()
            except Exception:  # noqa: BLE001 - the boundary to what servers answer: one answer must not end the polls
                self._once.error("poll", "a poll of Ollama failed; further failures are not logged", exc_info=True)
        self._release(all_of_them=True)

    def _release(self, *, all_of_them: bool = False) -> None:
        for request in self._requests.release(all_of_them=all_of_them):
            self._listeners.call(request)

    def _poll(self) -> None:
        try:
            self._reported.poll()
        except (HttpError, ValueError) as error:
            self._up = False
            self._once.warning("down", "%s/api/ps: %s", self._http.base_url, error)
        else:
            self._up = True
            if self._once.reset("down"):
                _log.warning("%s answers now", self._http.base_url)
        children = find_children(self._http.address)
        with self._lock:
            if self._caught_up:
                self._update(children)
            self._forget_retired()
            models = list(self._models.values())
        for model in models:
            model.observed.poll()
        self._unknown.poll()

    def _update(self, children: Sequence[OllamaChild]) -> None:
        """Take what Ollama and the operating system say of the models; our lock is held."""
        for child in children:
            model = self._model(file_name(child.model_path))
            if model.number is None:
                self._found(model, child)
            if model.child is None or model.child.pid != child.pid:
                model.use(child)
        alive = {child.pid for child in children}
        loaded = self._reported.loaded
        for model in self._models.values():
            if loaded is not None and (name := loaded.get(model.weights)) is not None and name != model.info.model:
                model.info = replace(model.info, model=name)
                if model.log is not None:
                    model.log.identify(model.info)
            if model.number is not None and not (model.state == "starting" and self._source is not None):
                self._notice_exit(model, model.number, alive)
        if loaded is None:
            return
        for weights in loaded:
            if (model := self._model(weights)).number is None and model.child is None:
                self._unannounced[weights] = seen = self._unannounced.get(weights, 0) + 1
                if seen > 1:  # else its start is about to be read
                    del self._unannounced[weights]
                    self._found(model, None)
        known = {model.weights for model in self._models.values() if model.number is not None}
        self._separation.owners.complete = self._reported.complete and set(loaded) <= known

    def _notice_exit(self, model: _Model, number: int, alive: Collection[int]) -> None:
        """Remove a model whose server is no process of Ollama's any more, or that is not loaded."""
        loaded, now = self._reported.loaded, time.monotonic()
        exited = model.child is not None and model.child.pid not in alive
        missing = loaded is not None and self._reported.complete and model.weights not in loaded
        if not exited and not missing:
            self._exits.pop(number, None)
            return
        certain_after = _LOG_LAG_S if self._source is not None else 0.0
        if not (exited and missing):
            certain_after = max(certain_after, 2 * self._interval_s)
        if now - self._exits.setdefault(number, now) >= certain_after:
            self._remove(model, logged=False)

    def _found(self, model: _Model, child: OllamaChild | None) -> None:
        """A server that was there before its start could be read."""
        self._numbers += 1
        model.loads += self._source is None
        model.start(self._numbers, None, state="ready")
        port, slots = (None, None) if child is None else (child.port, child.slots)
        if child is not None:
            model.use(child)
        if model.client is not None:
            # Lines of tasks that run right now may still have to be read: they are no proof of what it cannot start.
            model.ran_before = frozenset((shown_tasks(model.client) or {}).items())
        self._separation.add(self._numbers, port=port, slots=slots, loading=False)

    def _forget_retired(self) -> None:
        """No line of these servers will come any more."""
        now = time.monotonic()
        for at, number in self._retired:
            if now - at > _RETIRED_S:
                self._separation.remove(number)
        self._retired = [(at, number) for at, number in self._retired if now - at <= _RETIRED_S]


def _short(weights: str) -> str:
    """A name for weights whose model is not known: ``sha256-6540411d9e4c``."""
    return weights[:19] if weights.startswith("sha256-") else weights[:200]
