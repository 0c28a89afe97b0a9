"""llama-swap: its models and their states from ``/running``, their requests from ``/logs/stream/MODEL``.

Versions without a log stream for each model have one common stream: its lines belong to the running model if there is
only one; while several run, requests have no model.

No request goes to ``/upstream/MODEL`` or to a model: it would load the model, or keep it loaded. So llama.cpp's
counters and slots are missing; requests, tokens and latencies come from the log. Written from the source of llama-swap
v250 (internal/server), and tested with it.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from llamatel.errors import HttpError, ServerUnreachable
from llamatel.inputs.documents import text
from llamatel.inputs.http import HttpClient, Stream, abort
from llamatel.llama.listeners import Listeners
from llamatel.llama.log.line_buffer import LineBuffer
from llamatel.llama.log.log_clock import LogClock
from llamatel.llama.log.log_source import Batch
from llamatel.llama.watch.json_endpoint import get_document
from llamatel.llama.watch.log_streams import LogStreams
from llamatel.llama.watch.observed_server import ObservedServer
from llamatel.llama.watch.server_log import ServerLog
from llamatel.outputs.log_once import LogOnce
from llamatel.records import Completion, ObservedRequest, ServerInfo
from llamatel.snapshots import RouterModel, ServerSnapshot

_log = logging.getLogger(__name__)

_RETRY_S = 1.0
_MAX_MODELS = 256
_MOST_AHEAD = 64
"""Most configured models whose logs are read before loading, so that the request that loads a model is seen."""
_STATES = {"ready": "loaded", "starting": "loading"}
"""llama-swap's states with a process, and the same states of a router's models."""


def parse_running(document: Any) -> dict[str, str]:
    """Models that have a process, and their states. Raises ValueError for a response that is not llama-swap's."""
    entries = document.get("running") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError("it is not llama-swap's list of running models")  # noqa: TRY004 - a document's shape
    found = {}
    for entry in entries[:_MAX_MODELS]:
        name = text(entry.get("model")) if isinstance(entry, dict) else None
        if name is not None and entry.get("state") in _STATES:
            found[name] = _STATES[entry["state"]]
    return found


def parse_configured(document: Any) -> list[str]:
    """Names of all models of llama-swap's ``/v1/models``; none where it is another document."""
    entries = document.get("data") if isinstance(document, dict) else None
    names = (
        [text(entry.get("id")) for entry in entries or () if isinstance(entry, dict)]
        if isinstance(entries, list)
        else ()
    )
    return [name for name in names if name is not None][:_MOST_AHEAD]


class _LogStream:
    """Reads one of llama-swap's log streams on its own thread, from now on, and reconnects."""

    def __init__(
        self, http: HttpClient, path: str, feed: Callable[[list[str] | None], None], missing: Callable[[], None]
    ) -> None:
        """``feed`` gets whole lines, or None after a disconnection; ``missing`` is called without such a stream."""
        self._http = http
        self._path = f"/logs/stream{path}?no-history"
        self._feed = feed
        self._missing = missing
        self._socket: socket.socket | None = None
        self._stopped = threading.Event()
        threading.Thread(target=self._follow, name="llamatel-swap-log", daemon=True).start()

    def stop(self) -> None:
        """Stop reading."""
        self._stopped.set()
        if self._socket is not None:
            abort(self._socket)

    def _follow(self) -> None:
        while not self._stopped.is_set():
            try:
                with self._http.open(self._path, read_s=None, sending=self._uses) as stream:
                    if stream.status == 200:
                        self._read(stream)
                    elif stream.status in (400, 404):
                        self._missing()
                        return
            except HttpError as error:
                _log.debug("a log stream of llama-swap was closed: %s", error)
            self._feed(None)
            self._stopped.wait(_RETRY_S)

    def _uses(self, sock: socket.socket) -> None:
        self._socket = sock

    def _read(self, stream: Stream) -> None:
        lines = LineBuffer()
        while not self._stopped.is_set() and (data := stream.read1()):
            self._feed(lines.feed(data))


class _Model:
    """One model over its loads."""

    def __init__(self, server: ServerInfo) -> None:
        self.log = ServerLog(server, LogClock())
        self.observed = ObservedServer(server, log=self.log)
        self.state = "unloaded"
        self.loads = 0
        self.stream: _LogStream | None = None

    @property
    def seen(self) -> bool:
        """Whether it was loaded since observation started."""
        return self.loads > 0

    def update(self, state: str) -> None:
        """Update the state from a poll."""
        self.loads += state != "unloaded" and self.state == "unloaded"
        self.state = state

    def feed(self, lines: list[str] | None) -> None:
        """Read lines of its log; None: a gap."""
        if lines is None:
            self.observed.publish(self.log.forget())
        else:
            self.observed.publish(self.log.feed(lines, time.time()))

    def snapshot(self) -> ServerSnapshot:
        """The snapshot from its log and state."""
        [own] = self.observed.snapshots()
        cache = own.kv_cache if self.state == "loaded" else None
        return replace(own, state=self.state, kv_cache=cache, router_model=RouterModel(loads=self.loads))


class LlamaSwap:
    """Observes one llama-swap and its models. Thread-safe."""

    def __init__(self, http: HttpClient, server: ServerInfo, *, interval_s: float = 1.0) -> None:
        """``server`` is llama-swap's own identity."""
        self.info = server
        self._http = http
        self._interval_s = interval_s
        self._up: bool | None = None
        self._models: dict[str, _Model] = {}
        self._mixed = ObservedServer(server, log=ServerLog(server, LogClock()))
        """The requests of several running models, from their common log."""
        self._streams = LogStreams(self._mixed, name="llama-swap's log")
        self._common: _LogStream | None = None
        self._lock = threading.Lock()
        """Held while the common log is opened or read."""
        self._once = LogOnce(_log)
        self._stopped = threading.Event()
        self._listeners = Listeners[Completion | ObservedRequest]()
        self._mixed.subscribe(self._listeners.call)
        self._thread = threading.Thread(target=self._run, name="llamatel-swap", daemon=True)

    def start(self) -> LlamaSwap:
        """Start to poll."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop."""
        self._stopped.set()
        for stream in (self._common, *(model.stream for model in self._models.values())):
            if stream is not None:
                stream.stop()
        self._http.close()

    def check(self) -> None:
        """Poll once. Raises ServerUnreachable if llama-swap does not respond."""
        try:
            self._poll()
        except (HttpError, ValueError) as error:
            raise ServerUnreachable(f"{self._http.base_url}/running: {error}") from error

    def subscribe(self, listener: Callable[[Completion | ObservedRequest], None]) -> Callable[[], None]:
        """Call ``listener`` for each finished request; returns a function that unsubscribes."""
        return self._listeners.add(listener)

    def snapshots(self) -> tuple[ServerSnapshot, ...]:
        """llama-swap itself, and the models that were loaded at some time."""
        own = ServerSnapshot(self.info, up=self._up, state="ready" if self._up else None)
        if self._common is not None:
            own = replace(own, log=self._mixed.snapshots()[0].log)
        return own, *(model.snapshot() for model in list(self._models.values()) if model.seen)

    def _run(self) -> None:
        while not self._stopped.wait(self._interval_s):
            try:
                self._poll()
            except (HttpError, ValueError) as error:
                self._up = False
                self._once.warning("down", "%s/running: %s", self._http.base_url, error)
                for model in self._models.values():
                    model.update("unloaded")
            else:
                if self._once.reset("down"):
                    _log.warning("%s answers now", self._http.base_url)

    def _poll(self) -> None:
        running = parse_running(get_document(self._http, "/running", "llama-swap"))
        ahead: list[str] = []
        if self._up is None:
            with contextlib.suppress(HttpError, ValueError):
                ahead = parse_configured(get_document(self._http, "/v1/models", "llama-swap"))
        for name in (*running, *ahead):
            if name not in self._models and len(self._models) < _MAX_MODELS:
                self._models[name] = model = _Model(replace(self.info, model=name))
                model.observed.subscribe(self._listeners.call)
                model.stream = _LogStream(self._http, f"/{quote(name, safe='')}", model.feed, self._open_common)
        for name, model in self._models.items():
            model.update(running.get(name, "unloaded"))
            model.observed.publish(model.log.settle())
        with self._lock:
            self._streams.settle()
        self._up = True

    def _open_common(self) -> None:
        """Read the common log, as there are no logs of single models."""
        with self._lock:
            if self._common is None:
                self._once.warning(
                    "common",
                    "this llama-swap has no log for each model: requests have a model only while a single one runs",
                )
                self._common = _LogStream(self._http, "/upstream", self._feed_common, self._no_log)

    def _no_log(self) -> None:
        self._once.warning("log", "this llama-swap has no log stream: requests are not seen")

    def _feed_common(self, lines: list[str] | None) -> None:
        running = [model for model in list(self._models.values()) if model.state != "unloaded"]
        with self._lock:
            if len(running) == 1:
                running[0].feed(lines)
                return
            for model in running:
                model.feed(None)
            if lines is None:
                self._streams.forget()
            elif lines:
                self._streams.read(Batch(lines, time.time()))
