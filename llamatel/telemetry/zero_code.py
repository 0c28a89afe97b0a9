"""Telemetry for a process that has OpenTelemetry providers of its own, and no ``llamatel.init()``."""

from __future__ import annotations

import atexit
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from opentelemetry import metrics, trace

from llamatel.llama.in_process import loaded_llama as model

if TYPE_CHECKING:
    from llamatel.records import Completion
    from llamatel.snapshots import ServerSnapshot
    from llamatel.telemetry.observer import Observer

_LAST_S = 5.0


class ZeroCode:
    """Collectors, an observer and instruments on providers that somebody else has made.

    They come about with the first call, so that a process without one has no thread more. While ``llamatel.init()``
    runs, it does the work and this does nothing.
    """

    def __init__(self, tracers: trace.TracerProvider | None, meters: metrics.MeterProvider | None) -> None:
        self._given = tracers is not None or meters is not None
        self._tracers = tracers
        self._meters = meters
        self._lock = threading.Lock()
        self._observer: Observer | None = None
        self._sources: list[_Quiet] = []
        self._ends: list[Callable[[], None]] = []
        self._ends.append(model.on_load(self._watch))
        atexit.register(self.close)

    def _watch(self, source: model.ModelSource) -> None:
        quiet = _Quiet(source)
        self._sources.append(quiet)
        self._ends.append(source.subscribe(self._take))
        if self._observer is not None:
            self._observer.watch(quiet)

    def _take(self, completion: Completion) -> None:
        if not _Init.active and (self._given or _set_up(trace.get_tracer_provider())):
            self._begun().submit(completion)

    def _begun(self) -> Observer:
        with self._lock:
            if self._observer is None:
                from llamatel import collectors
                from llamatel.telemetry.connect import connect

                tracer = (self._tracers or trace.get_tracer_provider()).get_tracer("llamatel")
                meter = (self._meters or metrics.get_meter_provider()).get_meter("llamatel")
                self._observer, _ = connect(tracer, meter, list(collectors.load()))
                for source in self._sources:
                    self._observer.watch(source)
            return self._observer

    def close(self) -> None:
        """Write what waits and end; the providers are their owner's to flush."""
        atexit.unregister(self.close)
        for end in self._ends:
            end()
        self._ends.clear()
        if self._observer is not None:
            self._observer.close(_LAST_S)


class _Quiet:
    """A model's state; its calls are handed on elsewhere."""

    def __init__(self, source: model.ModelSource) -> None:
        self._source = source

    def subscribe(self, listener: Callable[[Completion], None]) -> Callable[[], None]:
        return lambda: None

    def snapshots(self) -> Sequence[ServerSnapshot]:
        return () if _Init.active else self._source.snapshots()


class _Init:
    """Whether ``llamatel.init()`` runs: then it records the calls."""

    active = False


def init_is_active(*, active: bool) -> None:
    """``llamatel.init()`` and ``shutdown()`` report here."""
    _Init.active = active


def _set_up(provider: object) -> bool:
    """Whether somebody set the process's tracer provider: not nobody, and not an ``init()`` that is over."""
    pipeline = sys.modules.get("llamatel.telemetry.pipeline")
    over = pipeline is not None and pipeline.is_over(provider)
    return not over and not isinstance(provider, trace.ProxyTracerProvider)
