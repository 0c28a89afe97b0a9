"""Tracks the models of one Ollama and their llama-servers, from its log, ``/api/ps`` and the processes.

A server is known from the line that announces its start, or is found: as a process, or because Ollama lists its model.
Each has a number; the log's lines are assigned to these numbers by ``OllamaSeparation``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from llamatel.llama.http.server_client import shown_tasks
from llamatel.llama.log.log_clock import LogClock
from llamatel.llama.log.log_process import UNKNOWN
from llamatel.llama.log.ollama_log import ChildStart
from llamatel.llama.log.ollama_separation import OllamaSeparation
from llamatel.llama.watch.observed_server import ObservedServer
from llamatel.llama.watch.ollama_children import OllamaChild
from llamatel.llama.watch.ollama_evictions import Evictions
from llamatel.llama.watch.ollama_model import OllamaModel
from llamatel.llama.watch.ollama_models import OllamaModels, file_name
from llamatel.llama.watch.server_log import ServerLog
from llamatel.records import Completion, ObservedRequest, ServerInfo

_RETIRED_S = 30.0
_LOG_LAG_S = 1.0
"""A server's exit may be seen this long before the lines that report the reason are read."""
_ANNOUNCED_S = 3.0
"""A server may be seen this long before the line that announces it is read."""
_MOST_MODELS = 64
_EXITED = "the model's process ended"


class OllamaLoads:
    """Not thread-safe: its owner calls it with its lock. ``exited`` gets the requests of servers that exited."""

    def __init__(
        self,
        server: ServerInfo,
        reported: OllamaModels,
        separation: OllamaSeparation,
        *,
        has_log: bool,
        interval_s: float,
        finished: Callable[[Completion | ObservedRequest], None],
        exited: Callable[[Sequence[Completion], int], None],
    ) -> None:
        """``server`` is Ollama's own identity; ``finished`` receives requests observed in its models' slots."""
        self._server = server
        self._reported = reported
        self._separation = separation
        self._has_log = has_log
        self._interval_s = interval_s
        self._finished = finished
        self._exited = exited
        self._evictions = Evictions()
        self._models: dict[str, OllamaModel] = {}
        """By the file names of their weights."""
        self.unknown = ObservedServer(server, log=ServerLog(server, LogClock()) if has_log else None)
        """The requests whose server is unknown."""
        self._numbers = 0
        self._missing: dict[int, float] = {}
        """Since when a server is no process of Ollama's, or not among the loaded models (monotonic)."""
        self._unannounced: dict[str, int] = {}
        """Times a model was listed whose start was not read."""
        self._retired: list[tuple[float, int]] = []
        """Servers that exited, and when that was noticed (monotonic): the log may lag."""

    def models(self) -> list[OllamaModel]:
        """The models that were loaded at some time."""
        return list(self._models.values())

    def of_number(self, number: int) -> OllamaModel | None:
        """The model that a server runs."""
        return next((model for model in self._models.values() if model.number == number), None)

    def stop(self) -> None:
        """Close the connections to the models' servers."""
        for model in self._models.values():
            model.stop()

    # -- what the log reports (ollama_log_reader.Children) ------------------------------------------------------------

    def starts(self, start: ChildStart, now: float) -> int:
        """A server is about to start."""
        loading = self._loading()
        if loading is not None:
            self._remove(loading, "failed")
            loading.failures += 1
        model = self._model(file_name(start.model_path))
        if model.number is not None:
            self._remove(model, "stopped" if model.number in self._missing else "replaced")
        evicted = self._evictions.starts(model.weights, time.monotonic())
        if evicted in self._models:
            self._models[evicted].evictions += 1
        self._numbers += 1
        model.loads += 1
        model.start(self._numbers, now)
        sizes = {"-c": start.context, "-np": start.slots}
        model.observed.launch([word for name, size in sizes.items() if size for word in (name, str(size))], {})
        return self._numbers

    def ready(self, loading_s: float | None) -> None:
        """The loading server is ready."""
        model = self._loading()
        if model is not None and model.number is not None:
            model.state, model.loading_s = "ready", loading_s
            self._separation.ready(model.number)
            self._evictions.loaded(time.monotonic())

    def failed(self) -> None:
        """The loading server could not be started."""
        if (model := self._loading()) is not None:
            model.failures += 1
            self._remove(model, "failed")

    def evicting(self) -> None:
        """A model is unloaded to make room for another."""
        self._evictions.announced(time.monotonic())

    def configured(self, most_loaded: int) -> None:
        """Ollama loads at most this many models."""
        self._evictions.limit(most_loaded)

    def only_newest(self) -> None:
        """Only the model that was loaded last is left."""
        loading = self._loading()
        newest = loading or max(self._models.values(), key=lambda model: model.number or 0, default=None)
        for model in self._models.values():
            if model.number is not None and model is not newest:
                self._remove(model)

    def restarted(self) -> None:
        """Ollama itself has started: there is no server."""
        for model in self._models.values():
            if model.number is not None:
                self._remove(model, "replaced")
        self.forget()
        self._separation.owners.complete = True

    def log(self, server: int) -> ServerLog | None:
        """The log of a server."""
        if server == UNKNOWN:
            return self.unknown.log
        model = self.of_number(server)
        return None if model is None else model.log

    def forget(self, *, all_of_them: bool = False) -> None:
        """The requests in flight whose server is not known will not be finished; or those of all servers."""
        logs = [(UNKNOWN, self.unknown.log)]
        logs += [(model.number, model.log) for model in self._models.values() if all_of_them and model.number]
        for number, log in logs:
            if log is not None:
                self._exited(log.forget(), number)

    # -- what a poll reports ------------------------------------------------------------------------------------------

    def update(self, children: Sequence[OllamaChild]) -> None:
        """Compare the models with what Ollama and the operating system report."""
        for child in children:
            model = self._model(file_name(child.model_path))
            if model.number is None:
                if self._has_log and 0.0 <= time.time() - child.started_at < _ANNOUNCED_S:
                    continue  # its start is about to be read
                self._found(model, child)
            if model.child is None or model.child.pid != child.pid:
                model.use(child)
                if child.environ:
                    self._evictions.limit(child.most_loaded)
        alive = {child.pid for child in children}
        loaded = self._reported.loaded
        for model in self._models.values():
            if loaded is not None and (name := loaded.get(model.weights)) is not None and name != model.info.model:
                model.rename(name)
            if model.number is not None and not (model.state == "starting" and self._has_log):
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

    def forget_retired(self) -> None:
        """Drop servers that exited a while ago: they will log no more lines."""
        now = time.monotonic()
        for at, number in self._retired:
            if now - at > _RETIRED_S:
                self._separation.remove(number)
        self._retired = [(at, number) for at, number in self._retired if now - at <= _RETIRED_S]

    # -----------------------------------------------------------------------------------------------------------------

    def _loading(self) -> OllamaModel | None:
        return next((model for model in self._models.values() if model.state == "starting"), None)

    def _model(self, weights: str) -> OllamaModel:
        model = self._models.get(weights)
        if model is None:
            if len(self._models) >= _MOST_MODELS:
                stopped = next((each for each in self._models.values() if each.number is None), None)
                del self._models[next(iter(self._models)) if stopped is None else stopped.weights]
            name = (self._reported.loaded or {}).get(weights) or _short(weights)
            info = replace(self._server, model=name)
            model = OllamaModel(weights, info, has_log=self._has_log, interval_s=self._interval_s)
            model.observed.subscribe(self._finished)
            self._models[weights] = model
        return model

    def _remove(self, model: OllamaModel, state: str = "stopped", *, logged: bool = True) -> None:
        """Its server exited: its requests in flight failed. ``logged``: no line of it can follow in the log."""
        number = model.number
        if number is None:
            return
        if model.log is not None:
            self._exited(model.log.abort(time.time(), _EXITED), number)
        at = self._missing.pop(number, time.monotonic())
        if state == "stopped":
            loaded = sum(each.number is not None and each.state != "starting" for each in self._models.values())
            expires_in = self._reported.expires_in(model.weights, at)
            model.evictions += self._evictions.exited(model.weights, at, expires_in_s=expires_in, loaded=loaded)
        if logged:
            self._separation.remove(number)
        else:
            self._retired.append((time.monotonic(), number))
        model.stop(state)

    def _notice_exit(self, model: OllamaModel, number: int, alive: Collection[int]) -> None:
        """Remove a model whose server is no longer a process of Ollama, or that is no longer loaded."""
        loaded, now = self._reported.loaded, time.monotonic()
        exited = model.child is not None and model.child.pid not in alive
        missing = loaded is not None and self._reported.complete and model.weights not in loaded
        if not exited and not missing:
            self._missing.pop(number, None)
            return
        certain_after = _LOG_LAG_S if self._has_log else 0.0
        if not (exited and missing):
            certain_after = max(certain_after, 2 * self._interval_s)
        if now - self._missing.setdefault(number, now) >= certain_after:
            self._remove(model, logged=False)

    def _found(self, model: OllamaModel, child: OllamaChild | None) -> None:
        """Add a server that was found before its start was read."""
        self._numbers += 1
        model.loads += not self._has_log
        model.start(self._numbers, None, state="ready")
        port, slots = (None, None) if child is None else (child.port, child.slots)
        if child is not None:
            model.use(child)
        if model.client is not None:
            # Lines of tasks that run right now may still have to be read: they are no proof of what it cannot start.
            model.ran_before = frozenset((shown_tasks(model.client) or {}).items())
        self._separation.add(self._numbers, port=port, slots=slots, loading=False)


def _short(weights: str) -> str:
    """A name for weights of an unknown model: ``sha256-6540411d9e4c``."""
    return weights[:19] if weights.startswith("sha256-") else weights[:200]
