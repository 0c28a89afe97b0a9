"""Telemetry with an application's OpenTelemetry providers, without ``llamatel.init()``."""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from opentelemetry import metrics, trace

from llamatel.llama.client import client_call
from llamatel.llama.in_process import loaded_llama
from llamatel.tracing import global_tracer, openinference

if TYPE_CHECKING:
    from llamatel.llama.client.client_call import Call
    from llamatel.records import Completion
    from llamatel.snapshots import ServerSnapshot
    from llamatel.telemetry.observer import Observer
    from llamatel.tracing.call_reporter import CallReporter
    from llamatel.tracing.client_spans import ClientSpans

_log = logging.getLogger(__name__)
_LAST_S = 5.0


class _Process:
    """State that all instrumentors of this process share."""

    lock = threading.Lock()
    init_active = False
    uses: list[ZeroCode] = []  # noqa: RUF012 - one list for the process


class ZeroCode:
    """Collectors, an observer and instruments on the application's providers.

    Created with the first call, so a process without one has no additional thread. While ``llamatel.init()`` runs, it
    records the calls and this does nothing. Instrumentors with the same providers share one (``zero_code``).
    """

    def __init__(self, tracers: trace.TracerProvider | None, meters: metrics.MeterProvider | None) -> None:
        self.providers = tracers, meters
        self.users = 0
        self._lock = threading.Lock()
        self._observer: Observer | None = None
        self._spans: ClientSpans | None = None
        self._reporter: CallReporter | None = None
        self._sources: list[_StateOnly] = []
        self._ends: list[Callable[[], None]] = []
        self._ends.append(loaded_llama.on_load(self._watch))
        atexit.register(self._end)

    def after_fork(self) -> None:
        """In a forked process, where the parent's threads do not run."""
        self._lock = threading.Lock()
        if self._observer is not None:
            self._observer.restart()
        if self._reporter is not None:
            self._reporter.after_fork()

    def close(self) -> None:
        """Release one user; the last one stops it."""
        with _Process.lock:
            self.users -= 1
            if self.users:
                return
            _Process.uses.remove(self)
            _listen()
        self._end()

    # -- models in this process ---------------------------------------------------------------------------------------

    def _watch(self, source: loaded_llama.ModelSource) -> None:
        state = _StateOnly(source)
        self._sources.append(state)
        self._ends.append(source.subscribe(self._submit))
        if self._observer is not None:
            self._observer.watch(state)

    def _submit(self, completion: Completion) -> None:
        if self._wanted():
            self._started_observer().submit(completion)

    # -- calls of clients ---------------------------------------------------------------------------------------------

    def started(self, call: Call) -> Mapping[str, str]:
        """Record a call's start; see ``ClientSpans``."""
        spans = self._client_spans() if self._wanted() else None
        if spans is None:
            return {}
        headers = spans.started(call)
        call.state.recorder = spans
        return headers

    def context_of(self, call: Call) -> object:
        """See ``ClientSpans``."""
        recorder = getattr(call.state, "recorder", None)
        return None if recorder is None else recorder.context_of(call)

    def finished(self, call: Call) -> None:
        """Record a call's end; see ``ClientSpans``."""
        recorder = getattr(call.state, "recorder", None)
        if recorder is not None:
            recorder.finished(call)

    def _wanted(self) -> bool:
        given = any(provider is not None for provider in self.providers)
        return not _Process.init_active and (given or global_tracer.provider() is not None)

    def _client_spans(self) -> ClientSpans:
        observer = self._started_observer()
        with self._lock:
            if self._spans is None:
                from llamatel.telemetry.settings import Settings
                from llamatel.tracing import message_content
                from llamatel.tracing.call_reporter import CallReporter
                from llamatel.tracing.client_spans import ClientSpans

                settings = Settings.from_env(os.environ, strict=False)
                url, ca_file = settings.llamatel_url, settings.llamatel_ca_file
                for problem in settings.problems:
                    if problem.startswith("LLAMATEL_"):  # the others are those of the application's own providers
                        _log.warning("%s", problem)
                sinks: list[Observer | CallReporter] = [observer]
                if url != "none":
                    self._reporter = CallReporter(url, "", token=settings.page_token, ca_file=ca_file)
                    sinks.append(self._reporter)
                content = message_content.wanted(os.environ)
                self._spans = ClientSpans(self._tracer(), *sinks, content=content)
            return self._spans

    # -- the parts ----------------------------------------------------------------------------------------------------

    def _tracer(self) -> trace.Tracer:
        tracer = (self.providers[0] or trace.get_tracer_provider()).get_tracer("llamatel")
        return openinference.traced(tracer, os.environ)

    def _started_observer(self) -> Observer:
        with self._lock:
            if self._observer is None:
                from llamatel import collectors
                from llamatel.telemetry.connect import connect

                meter = (self.providers[1] or metrics.get_meter_provider()).get_meter("llamatel")
                self._observer, _ = connect(self._tracer(), meter, list(collectors.load()))
                for source in self._sources:
                    self._observer.watch(source)
            return self._observer

    def _end(self) -> None:
        """Write the queue and stop; the owner of the providers flushes them."""
        atexit.unregister(self._end)
        for end in self._ends:
            end()
        self._ends.clear()
        if self._reporter is not None:
            self._reporter.close()
        if self._observer is not None:
            self._observer.close(_LAST_S)


def zero_code(tracers: trace.TracerProvider | None, meters: metrics.MeterProvider | None) -> ZeroCode:
    """Telemetry on these providers (None: the global ones); ``close`` ends its use."""
    with _Process.lock:
        found = next((use for use in _Process.uses if use.providers == (tracers, meters)), None)
        if found is None:
            found = ZeroCode(tracers, meters)
            _Process.uses.append(found)
        found.users += 1
        if not _Process.init_active:
            _listen()
        return found


def _listen() -> None:
    client_call.listen(_Process.uses[-1] if _Process.uses else None)


def init_is_active(*, active: bool) -> None:
    """``llamatel.init()`` and ``shutdown()`` report here."""
    with _Process.lock:
        _Process.init_active = active
        if not active:
            _listen()


class _StateOnly:
    """A model's state; its calls are submitted elsewhere."""

    def __init__(self, source: loaded_llama.ModelSource) -> None:
        self._source = source

    def subscribe(self, listener: Callable[[Completion], None]) -> Callable[[], None]:
        return lambda: None

    def snapshots(self) -> Sequence[ServerSnapshot]:
        return () if _Process.init_active else self._source.snapshots()


def _after_fork() -> None:
    _Process.lock = threading.Lock()
    for use in _Process.uses:
        use.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
