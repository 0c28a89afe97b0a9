"""Properties of a loaded ``Llama``: name, shape, exact KV cache; and the sources for telemetry.

A source is one model of this process: several ``Llama`` objects of one file are one, as a server with several slots is.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from llamatel.errors import LlamatelError
from llamatel.flags.cache_types import CACHE_TYPES
from llamatel.flags.server_settings import ServerSettings
from llamatel.gguf import parse_gguf_header
from llamatel.gguf.ggml_types import TENSOR_TYPES
from llamatel.llama.listeners import Listeners
from llamatel.llama.watch.kv_state import parts_of, used_of
from llamatel.plan.attention_kind import attention_summary
from llamatel.plan.cache_plan import CachePlan, cache_plan
from llamatel.plan.model_shape import ModelShape
from llamatel.plan.shape_from_gguf import shape_from_gguf
from llamatel.records import Completion, ServerInfo
from llamatel.snapshots import KvCacheState, ServerSnapshot

_log = logging.getLogger(__name__)

BACKEND = "llama-cpp-python"

Attributes = dict[str, str | int | float | bool | tuple[str, ...]]


@dataclass(frozen=True)
class LoadedModel:
    """One ``Llama`` object's model and context, as far as known."""

    name: str
    capacity: int | None
    """Tokens that fit into its KV cache; None if tokens use no space (recurrent models)."""
    shape: ModelShape | None
    plan: CachePlan | None
    """Its KV cache; None unless exact."""

    @classmethod
    def of(cls, llama: Any) -> LoadedModel:
        """Read the header of the file that was loaded; takes some milliseconds."""
        path, context = str(llama.model_path), int(llama.n_ctx())
        name = Path(path).name
        try:
            shape = shape_from_gguf(parse_gguf_header(path))
        except (LlamatelError, OSError) as error:
            _log.info("the shape of %s is not known: %s", path, error)
            return cls(name, context, None, None)
        settings = _settings(llama, context)
        plan = None if settings is None else cache_plan(shape, settings)
        sure = plan is not None and plan.exact and plan.refused is None
        capacity = None if shape.cache in ("recurrent", "none") else context
        return cls(name, capacity, shape, plan if sure else None)

    def attributes(self, tokens: int) -> Attributes:
        """The model's shape and its KV cache with ``tokens`` in it, for a span."""
        used = 0 if self.plan is None else sum(used_of(self.plan.parts, [tokens]).values())
        return self._always | ({"llamacpp.kv_cache.used": used} if used else {})

    @cached_property
    def _always(self) -> Attributes:
        """Values that are the same for every call, computed once: they would be a third of a call's cost."""
        found: dict[str, str | int | None] = {"llamacpp.kv_cache.capacity": self.capacity}
        if self.shape is not None:
            attending = [layer for layer in self.shape.trunk if layer.attends]
            heads = {(layer.heads, layer.kv_heads) for layer in attending}
            [(query, kv)] = heads if len(heads) == 1 else [(None, None)]
            found |= {
                "llamacpp.model.architecture": self.shape.architecture,
                "llamacpp.model.attention": attention_summary(self.shape),
                "llamacpp.model.quantization": self.shape.file_type,
                "llamacpp.model.layers": len(self.shape.trunk),
                "llamacpp.model.heads": query,
                "llamacpp.model.kv_heads": kv,
                "llamacpp.model.embedding_length": self.shape.embedding_length,
                "llamacpp.model.context_length": self.shape.context_length,
            }
        if self.plan is not None:
            found["llamacpp.kv_cache.size"] = self.plan.total_bytes
        return {name: value for name, value in found.items() if value is not None}


def _settings(llama: Any, context: int) -> ServerSettings | None:
    """Its parameters as settings of a server; None for a cache type that we do not know."""
    parameters = llama.context_params
    numbered = [TENSOR_TYPES.get(getattr(parameters, name)) for name in ("type_k", "type_v")]
    types = [each.name.lower() for each in numbered if each is not None and each.name.lower() in CACHE_TYPES]
    if len(types) != len(numbered):
        return None
    flash = {1: "on", 0: "off"}.get(parameters.flash_attn_type, "auto")
    return ServerSettings(
        ctx_size=context,
        parallel=parameters.n_seq_max,
        kv_unified=bool(parameters.kv_unified),
        batch_size=parameters.n_batch,
        ubatch_size=parameters.n_ubatch,
        cache_type_k=types[0],
        cache_type_v=types[1],
        flash_attn=flash,  # type: ignore[arg-type]
        swa_full=bool(parameters.swa_full),
        kv_offload=bool(parameters.offload_kqv),
        embedding=bool(parameters.embeddings),
        fit=False,
    )


class ModelSource:
    """One model of this process, to be watched like a server."""

    def __init__(self, model: LoadedModel) -> None:
        self.server = ServerInfo(None, model=model.name, backend=BACKEND)
        self._loaded: weakref.WeakKeyDictionary[Any, LoadedModel] = weakref.WeakKeyDictionary()
        self._busy: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()
        self._listeners = Listeners[Completion]()
        self._totals: dict[str, float] = {}

    def add(self, llama: Any, model: LoadedModel) -> None:
        """Add a ``Llama`` of this model."""
        with self._lock:
            self._loaded[llama] = model

    def busy(self, llama: Any, calls: int) -> None:
        """Add to the number of running calls; negative for finished ones."""
        with self._lock:
            self._busy[llama] = self._busy.get(llama, 0) + calls

    def subscribe(self, listener: Callable[[Completion], None]) -> Callable[[], None]:
        """Call ``listener`` for each finished call, on its thread; returns a function that stops it."""
        return self._listeners.add(listener)

    def finished(self, completion: Completion) -> None:
        """Count a finished call and pass it to the listeners."""
        counts = {
            "prompt_tokens_total": completion.prompt_computed,
            "prompt_tokens_cached_total": completion.prompt_cached,
            "tokens_predicted_total": completion.generated,
        }
        with self._lock:
            for name, value in counts.items():
                if value is not None:
                    self._totals[name] = self._totals.get(name, 0.0) + value
        self._listeners.call(completion)

    def snapshots(self) -> Sequence[ServerSnapshot]:
        """The state of its objects; empty once all are freed. Does not call llama.cpp, which other threads use."""
        with self._lock:
            loaded = [(llama, model) for llama, model in self._loaded.items() if not is_closed(llama)]
            counters = dict(self._totals)
        if not loaded:
            return ()
        held = [(model, int(llama.n_tokens), self._busy.get(llama, 0) > 0) for llama, model in loaded]
        shape = held[0][0].shape
        return (ServerSnapshot(self.server, None, counters=counters, kv_cache=_kv_cache(held), model=shape),)


def is_closed(llama: Any) -> bool:
    """Whether its context was freed."""
    return getattr(getattr(llama, "_ctx", None), "ctx", None) is None


def _kv_cache(held: Iterable[tuple[LoadedModel, int, bool]]) -> KvCacheState:
    """State of a model's contexts together: model, tokens, whether a call is running.

    Tokens stay after a call, for the next one with the same prefix.
    """
    capacity: int | None = 0
    active = cached = 0
    planned: dict[str, int] = {}
    used: dict[str, int] = {}
    exact = True
    for model, number, busy in held:
        capacity = None if capacity is None or model.capacity is None else capacity + model.capacity
        active += number if busy else 0
        cached += 0 if busy else number
        exact = exact and model.plan is not None
        if model.plan is not None:
            parts = model.plan.parts
            for total, sizes in ((planned, parts_of(parts)), (used, used_of(parts, [number]))):
                for part, size in sizes.items():
                    total[part] = total.get(part, 0) + size
    return KvCacheState(
        capacity, None, active, cached, planned_bytes=planned if exact else {}, used_bytes=used if exact else {}
    )


class _Known:
    lock = threading.Lock()
    models: ClassVar[weakref.WeakKeyDictionary[Any, tuple[LoadedModel, ModelSource]]] = weakref.WeakKeyDictionary()
    sources: ClassVar[dict[str, ModelSource]] = {}
    """By the name of the model's file."""
    watchers: tuple[Callable[[ModelSource], None], ...] = ()


def known(llama: Any) -> tuple[LoadedModel, ModelSource]:
    """Properties of a ``Llama``, and its source; read from its file the first time."""
    with _Known.lock:
        found = _Known.models.get(llama)
    if found is not None:
        return found
    model = LoadedModel.of(llama)
    with _Known.lock:
        source = _Known.sources.get(model.name)
        is_new = source is None
        if source is None:
            source = _Known.sources[model.name] = ModelSource(model)
        _Known.models[llama] = (model, source)
        watchers = _Known.watchers
    source.add(llama, model)
    if is_new:
        for watcher in watchers:
            watcher(source)
    return model, source


def sources() -> tuple[ModelSource, ...]:
    """All models of this process."""
    with _Known.lock:
        return tuple(_Known.sources.values())


def on_load(watcher: Callable[[ModelSource], None]) -> Callable[[], None]:
    """Call ``watcher`` for each loaded model, now and later; returns a function that stops it."""
    with _Known.lock:
        _Known.watchers = (*_Known.watchers, watcher)
        sources = tuple(_Known.sources.values())
    for source in sources:
        watcher(source)

    def forget() -> None:
        with _Known.lock:
            _Known.watchers = tuple(kept for kept in _Known.watchers if kept is not watcher)

    return forget
