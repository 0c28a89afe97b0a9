"""``init()`` and ``shutdown()``: telemetry for this process, assembled from its parts."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from llamatel import collectors
from llamatel.collectors import Collector
from llamatel.errors import UsageError
from llamatel.inputs.rotated_files import RotatedFiles
from llamatel.llama.client import client_call as call
from llamatel.llama.in_process import loaded_llama as model
from llamatel.llama.interactive import interactive
from llamatel.llama.server import manager as server
from llamatel.llama.server.supervisor import GATHER_S
from llamatel.outputs import appended_file
from llamatel.snapshots import Snapshot
from llamatel.telemetry import pipeline_builder, zero_code
from llamatel.telemetry.call_report_receiver import CallReportReceiver
from llamatel.telemetry.connect import connect
from llamatel.telemetry.instruments import Instruments
from llamatel.telemetry.kept_spans import KEPT
from llamatel.telemetry.observer import Observer, Sink
from llamatel.telemetry.pipeline import Pipeline
from llamatel.telemetry.resource import installed_version
from llamatel.telemetry.sdk_instruments import Callbacks
from llamatel.telemetry.settings import Settings
from llamatel.telemetry.snapshot_timer import SnapshotTimer
from llamatel.tracing import decorators as tracing
from llamatel.tracing import message_content
from llamatel.tracing.call_announcements import AnnouncementReceiver
from llamatel.tracing.call_reporter import CallReporter
from llamatel.tracing.client_spans import ClientSpans
from llamatel.ui.live import Live
from llamatel.ui.notebook import KeptRun, Report, Trace
from llamatel.ui.objectives import Objectives
from llamatel.ui.web.web_app import Page

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, repr=False)
class Runtime:
    """Running telemetry."""

    settings: Settings
    pipeline: Pipeline
    observer: Observer
    instruments: Instruments
    live: Live
    """State of this process's telemetry."""
    undo: tuple[Callable[[], object], ...]
    """Stops watching started servers and loaded models, and the instrumentation of clients."""
    calls: CallReporter | None
    """Reports the calls of this process to another process's llamatel; None if reports are off."""

    def __repr__(self) -> str:
        # Shown in a notebook below a cell that ends with ``init()``.
        shown = {
            "spans": self.pipeline.otlp_endpoint,
            "metrics": self.pipeline.metrics_url,
            "kept spans": self.settings.keep_traces or None,
        }
        parts = ", ".join(f"{name}: {value}" for name, value in shown.items() if value is not None)
        return f"<llamatel {'off (OTEL_SDK_DISABLED)' if self.settings.disabled else parts or 'without an exporter'}>"


_CALLBACKS = Callbacks()
"""Callbacks for the meter of the application's provider, or of no provider yet."""
_LAST_LINES_S = GATHER_S + 0.13
"""A client gets its response before the server logs the end, and the log is collected before it is read."""
_LAST_CALLS_S = 1.0
_REPORTS_SHARE = 0.4
"""Of the time that a shutdown may take, for reports that are not answered."""
_REPORT_GRACE_S = 0.5
"""Time until the first call of a script on another machine is reported."""
_FRESH_S = 0.9
_REPORT_FRESH_S = 1.0
_FLUSH_S = 3.0
"""A cancelled call waits for its request for 1.5 s."""
_FINALIZER_PRIORITY = 100
METRICS_ADDRESS_VARIABLES = ("OTEL_EXPORTER_PROMETHEUS_HOST", "OTEL_EXPORTER_PROMETHEUS_PORT")


class _Process:
    """This process's telemetry."""

    lock = threading.Lock()
    runtime: Runtime | None = None
    arguments: tuple[object, ...] = ()
    """The settings of the last ``init()``."""
    last_run: KeptRun | None = None
    """The last telemetry's requests; None if it kept none."""


def init(
    settings: Settings | None = None,
    *,
    service_name: str | None = None,
    otlp_endpoint: str | None = None,
    otlp_protocol: str | None = None,
    otlp_spool: str | None = None,
    metrics_addr: str | None = None,
    page_token: str | RotatedFiles[str] | None = None,
    keep_traces: bool | int | None = None,
    collectors: Iterable[str] = (),
    without: Iterable[str] = (),
    sinks: Sequence[Sink] = (),
    resource: Mapping[str, str | int] | None = None,
    instrument: bool = True,
) -> Runtime:
    """Turn telemetry on: every server that a ServerManager runs, now or later, is traced and measured.

    ``service_name``: the resource's ``service.name``. ``otlp_endpoint``: ``http://host:4317`` (gRPC) or ``:4318``
    (HTTP); without it the ``OTEL_*`` environment decides. ``otlp_spool``: folder in which spans wait until they are
    delivered. ``metrics_addr``: ``HOST:PORT`` for Prometheus, or
    ``"none"``; by default 127.0.0.1:9464, or a free port where that is in use. ``page_token``: serves the web page
    beyond loopback, too. ``collectors`` and ``without`` choose collectors by name. ``keep_traces``: keep the
    last spans in memory, for ``last_trace()`` and ``report()``; True, or how many; by default in notebooks and at
    Python's prompt. ``sinks`` are called with each finished Completion and its trace id. ``resource``: more resource
    attributes. ``instrument``: follow calls of the ``openai`` package to llama.cpp. ``settings`` replaces all of it
    but ``sinks``, ``resource`` and ``instrument``.

    A second call with the same arguments changes nothing; with others it ends the first one's telemetry and starts
    again. When the interpreter exits, servers are stopped first and telemetry after them, so that their last requests
    are in it. In a forked worker telemetry continues on its own. Raises UsageError for invalid arguments. Nothing else
    keeps the application from starting: mistakes in the environment, an address in use and the like are logged, a line
    each. With ``settings`` they raise UsageError and PipelineError.
    """
    for name, value in (("collectors", collectors), ("without", without)):
        if isinstance(value, str):
            raise UsageError(f"{name} is a list of names: [{value!r}]")
    if isinstance(settings, str):
        raise UsageError(f"the service's name is a keyword argument: llamatel.init(service_name={settings!r})")
    strict = settings is not None
    settings = settings or Settings.from_env(
        service_name=service_name, otlp_endpoint=otlp_endpoint, otlp_protocol=otlp_protocol,
        otlp_spool=otlp_spool,
        metrics_addr=metrics_addr, page_token=page_token, collectors=collectors, without=without,
        keep_traces=_spans_to_keep(keep_traces), strict=False,
    )  # fmt: skip
    arguments = (settings, tuple(map(id, sinks)), tuple((resource or {}).items()), instrument, os.getpid())
    with _Process.lock:
        if _Process.runtime is not None:
            if arguments == _Process.arguments:
                return _Process.runtime
            _end(_Process.runtime, None)
            _Process.runtime = None
        named = metrics_addr is not None or any(os.environ.get(variable) for variable in METRICS_ADDRESS_VARIABLES)
        _Process.runtime = _start(
            settings,
            sinks,
            resource or {},
            strict=strict,
            port_may_move=not strict and not named,
            instrument=instrument,
        )
        _Process.arguments = arguments
        if strict and settings.metrics_addr is not None:  # set by the command line, whose servers are called by scripts
            _Process.runtime.observer.hold_for_reports(_REPORT_GRACE_S)
        zero_code.init_is_active(active=True)
        # At each init: the last registered function is called first, and the pipeline has registered its own.
        atexit.unregister(_leave)
        atexit.register(_leave, os.getpid())
        _end_with_worker()
        return _Process.runtime


def _end_with_worker() -> None:
    """A ``multiprocessing`` process exits without atexit; its own finalizers are called."""
    util = sys.modules.get("multiprocessing.util")
    process = sys.modules.get("multiprocessing.process")
    if util is None or process is None:
        return
    if process.parent_process() is not None:
        util.Finalize(None, _leave, args=(-1,), exitpriority=_FINALIZER_PRIORITY)
    else:  # a forkserver's child imports the main module first, and clears its finalizers then
        util.register_after_fork(_Process, lambda _: _end_with_worker())


def _after_fork() -> None:
    """Reset, in a forked child: the observer starts without sources; the pipeline resets itself."""
    _Process.lock = threading.Lock()
    running = _Process.runtime
    if running is None:
        return
    running.observer.restart()
    if running.calls is not None:
        running.calls.after_fork()
    util = sys.modules.get("multiprocessing.util")
    if util is not None:  # multiprocessing calls this after clearing its finalizers, if it created the child
        util.register_after_fork(_Process, lambda _: _end_with_worker())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _spans_to_keep(requested: bool | int | None) -> int:
    if requested is None:
        requested = interactive()
    if type(requested) not in (bool, int) or requested < 0:
        raise UsageError(f"keep_traces is {requested!r}: it is True, False, or how many spans to keep")
    return KEPT if requested is True else int(requested)


def shutdown(timeout_s: float | None = None) -> bool:
    """Flush and stop telemetry; True if everything was delivered. Servers are left running.

    Takes no longer than ``timeout_s`` (default: the settings' shutdown timeout). Without ``init`` it does nothing.
    """
    with _Process.lock:
        running, _Process.runtime = _Process.runtime, None
        zero_code.init_is_active(active=False)
        return _end(running, timeout_s) if running is not None else True


def current() -> Runtime | None:
    """The running telemetry, or None."""
    return _Process.runtime


def _start(
    settings: Settings,
    sinks: Sequence[Sink],
    resource: Mapping[str, str | int],
    *,
    strict: bool,
    port_may_move: bool,
    instrument: bool,
) -> Runtime:
    chosen = [] if settings.disabled else list(collectors.load(settings.collectors, settings.without))
    built = pipeline_builder.build(settings, resource, strict=strict, port_may_move=port_may_move)
    try:
        return _connect(settings, built, chosen, sinks, instrument=instrument)
    except BaseException:
        built.shutdown(0.0)
        raise


def _connect(
    settings: Settings, built: Pipeline, chosen: Sequence[Collector], sinks: Sequence[Sink], *, instrument: bool
) -> Runtime:
    about = {"version": installed_version(), "metrics": built.metrics_url, "otlp": built.otlp_endpoint}
    live = Live(about, Objectives.from_environment())
    instance = uuid.uuid4().hex
    reporter = None
    if built.spans_leave and not settings.disabled and settings.llamatel_url != "none":
        reporter = CallReporter(
            settings.llamatel_url, instance, token=settings.page_token, ca_file=settings.llamatel_ca_file
        )

    def dropped() -> Mapping[str, int]:
        calls = reporter.losses() if reporter is not None else {}
        return {**built.dropped(), "points_rejected": built.points_rejected, **calls, **appended_file.lost()}

    _CALLBACKS.reset()  # instruments of an earlier init() may be on our own provider by now
    callbacks = None if built.measures_alone else _CALLBACKS
    observer, instruments = connect(
        built.tracer,
        built.meter,
        chosen,
        store=built.store,
        encoder=built.encoder,
        sinks=(*sinks, live),
        watchers=(live.observe,),
        dropped=dropped,
        span_queue=built.span_queue,
        callbacks=callbacks,
    )
    built.publish()
    if settings.metrics_addr is not None:
        host = settings.metrics_addr[0]
        document = partial(_document, observer, live)
        receiver = CallReportReceiver(observer, instance)
        built.show(Page(document, receiver, host=host, token=settings.page_token))
        if (port := urlsplit(built.metrics_url or "").port) is not None:
            observer.receive_announcements(AnnouncementReceiver(host, port, instance, settings.page_token))
    if not settings.disabled:
        content = message_content.wanted(os.environ)
        others = () if reporter is None else (reporter,)
        call.listen(ClientSpans(built.tracer, observer, *others, content=content))
        tracing.use(built.tracer)
    forget: list[Callable[[], object]] = [server.on_start(observer.watch), model.on_load(observer.watch)]
    if instrument and not settings.disabled:
        forget += _instrument_clients()
    if settings.keep_traces:
        forget.append(SnapshotTimer(observer).stop)
        live.on_alarm(lambda alarm: _log.warning("%s", alarm))  # in the running cell; commands print their own
    if reporter is not None:
        reporter.start()
    return Runtime(settings, built, observer, instruments, live, tuple(forget), reporter)


def _instrument_clients() -> tuple[Callable[[], object], ...]:
    """Follow calls of the openai package, unless the environment disables it; returns what undoes it."""
    from llamatel.tracing.openai_instrumentor import OpenAIInstrumentor, is_disabled

    instrumentor = OpenAIInstrumentor()
    if is_disabled(os.environ) or instrumentor.is_instrumented_by_opentelemetry:
        return ()
    instrumentor.instrument(zero_code=False)
    return (instrumentor.uninstrument,)


def _document(observer: Observer, live: Live, focus: str | None, after: int | None, *, refocus: bool) -> dict[str, Any]:
    """The page's document: the current state, at most a second old."""
    return live.document(observer.snapshot(_FRESH_S), focus, after, refocus=refocus)


def _end(running: Runtime, timeout_s: float | None) -> bool:
    tracing.use(None)
    zero_code.init_is_active(active=False)
    allowed = running.settings.shutdown_timeout_s if timeout_s is None else timeout_s
    deadline = time.monotonic() + allowed
    state = running.observer.snapshot(_REPORT_FRESH_S) if running.settings.keep_traces else None
    if running.calls is not None:
        running.calls.close(_REPORTS_SHARE * allowed)
    if running.observer.watching:
        time.sleep(min(_LAST_LINES_S, allowed / 4))
        running.observer.flush(min(_LAST_CALLS_S, allowed / 4))  # a call waits for its request
    for undo in running.undo:
        undo()
    written = running.observer.close(allowed / 2)
    _CALLBACKS.finish()
    _Process.last_run = None if state is None else _kept(running, state)
    return running.pipeline.shutdown(max(0.0, deadline - time.monotonic())) and written


def _leave(pid: int) -> None:
    """Called at the interpreter's exit; a forked child does not stop its parent's servers."""
    if pid == os.getpid():
        server.stop_all()
    shutdown()


def last_trace() -> Trace:
    """The last finished trace: your own spans, the calls in them, their prefill and decode.

    Spans are kept if ``init()`` runs in a notebook or at Python's prompt, or with ``keep_traces=True``, also after
    ``shutdown()``. Raises UsageError if none are kept, or no trace has finished yet.
    """
    return _shown().trace()


def report(path: str | Path | None = None, *, title: str | None = None) -> Report:
    """A report since ``init()``: requests, percentiles, KV cache over time, decoding speed, the slowest traces.

    With a ``path`` it is also written there (``.html``, ``.png``). Counts are of all requests, percentiles of the
    last 2,000; charts and traces show the last 100 requests, and the last 600 samples of each server. Raises UsageError
    before ``init()``.
    """
    made = _shown().report(title)
    if path is not None:
        made.save(path)
    return made


def _shown() -> KeptRun:
    """Kept data of the running telemetry, with all of its requests written, or of the last one."""
    running = current()
    if running is None:
        if _Process.last_run is None:
            raise UsageError("there is nothing to show: llamatel.init() first")
        return _Process.last_run
    if running.observer.watching:
        time.sleep(_LAST_LINES_S)
    running.observer.flush(_FLUSH_S)
    return _kept(running, running.observer.snapshot(_REPORT_FRESH_S))


def _kept(running: Runtime, state: Snapshot) -> KeptRun:
    document = running.live.document(state)
    histories = [running.live.document(state, server["key"]) for server in document["servers"]]
    return KeptRun(running.pipeline.kept_spans, document, histories, running.settings.service_name)
