"""llama-swap: its models and their states from ``/running``, their requests from ``/logs/stream/MODEL``.

No request goes to ``/upstream/MODEL`` or to a model: it would load the model, or keep it loaded. So llama.cpp's
counters and slots are not there; requests, tokens and latencies are, from the log. Written from llama-swap's source of
November 2026 (internal/server).
"""

from __future__ import annotations

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
from llamatel.llama.watch.json_endpoint import get_document
from llamatel.llama.watch.observed_server import ObservedServer
from llamatel.llama.watch.server_log import ServerLog
from llamatel.outputs.log_once import LogOnce
from llamatel.records import Completion, ObservedRequest, ServerInfo
from llamatel.snapshots import RouterModel, ServerSnapshot

_log = logging.getLogger(__name__)

_RETRY_S = 1.0
_MAX_MODELS = 256
_STATES = {"ready": "loaded", "starting": "loading"}
"""llama-swap's states that have a process, and what a router's are called."""


def parse_running(document: Any) -> dict[str, str]:
    """Models that have a process, and their states. Raises ValueError for what is not llama-swap's answer."""
    entries = document.get("running") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError("it is not llama-swap's list of running models")  # noqa: TRY004 - a document's shape
    found = {}
    for entry in entries[:_MAX_MODELS]:
        name = text(entry.get("model")) if isinstance(entry, dict) else None
        if name is not None and entry.get("state") in _STATES:
            found[name] = _STATES[entry["state"]]
    return found


class _Model:
    """One model over its loads."""

    def __init__(self, http: HttpClient, server: ServerInfo) -> None:
        log = ServerLog(server, LogClock())
        self.observed = ObservedServer(server, log=log)
        self.state = "unloaded"
        self.loads = 0
        self._log = log
        self._http = http
        self._path = f"/logs/stream/{quote(server.model or '', safe='')}?no-history"
        self._socket: socket.socket | None = None
        self._wanted = threading.Event()
        self._once = LogOnce(_log)

    def update(self, state: str) -> None:
        """Its state in another poll; its log is read while it has a process."""
        if state != "unloaded" and self.state == "unloaded":
            self.loads += 1
            self._wanted.set()
            threading.Thread(target=self._follow, name="llamatel-swap-log", daemon=True).start()
        elif state == "unloaded" and self.state != "unloaded":
            self.stop()
        self.state = state

    def stop(self) -> None:
        """Read its log no further."""
        self._wanted.clear()
        if self._socket is not None:
            abort(self._socket)

    def snapshot(self) -> ServerSnapshot:
        """What its log shows, with its state."""
        [own] = self.observed.snapshots()
        cache = own.kv_cache if self.state == "loaded" else None
        return replace(own, state=self.state, kv_cache=cache, router_model=RouterModel(loads=self.loads))

    def _follow(self) -> None:
        while self._wanted.is_set():
            try:
                with self._http.open(self._path, read_s=None, sending=self._uses) as stream:
                    if stream.status == 200:
                        self._read(stream)
                    else:
                        self._once.warning(
                            "status", "llama-swap has no log of %s (%d): its requests are not seen",
                            self.observed.info.model, stream.status,
                        )  # fmt: skip
            except HttpError as error:
                _log.debug("the log stream of a llama-swap model was closed: %s", error)
            self._log.forget()
            if self._wanted.is_set():
                time.sleep(_RETRY_S)

    def _uses(self, sock: socket.socket) -> None:
        self._socket = sock

    def _read(self, stream: Stream) -> None:
        lines = LineBuffer()
        while self._wanted.is_set() and (data := stream.read1()):
            self.observed.publish(self._log.feed(lines.feed(data), time.time()))


class LlamaSwap:
    """Observes one llama-swap and its models. Thread-safe."""

    def __init__(self, http: HttpClient, server: ServerInfo, *, interval_s: float = 1.0) -> None:
        """``server`` is llama-swap's own identity."""
        self.info = server
        self._http = http
        self._interval_s = interval_s
        self._up: bool | None = None
        self._models: dict[str, _Model] = {}
        self._once = LogOnce(_log)
        self._stopped = threading.Event()
        self._listeners = Listeners[Completion | ObservedRequest]()
        self._thread = threading.Thread(target=self._run, name="llamatel-swap", daemon=True)

    def start(self) -> LlamaSwap:
        """Start to poll."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop."""
        self._stopped.set()
        for model in self._models.values():
            model.stop()
        self._http.close()

    def check(self) -> None:
        """Poll once. Raises ServerUnreachable where llama-swap does not answer."""
        try:
            self._poll()
        except (HttpError, ValueError) as error:
            raise ServerUnreachable(f"{self._http.base_url}/running: {error}") from error

    def subscribe(self, listener: Callable[[Completion | ObservedRequest], None]) -> Callable[[], None]:
        """Call ``listener`` for each finished request; returns a function that unsubscribes."""
        return self._listeners.add(listener)

    def snapshots(self) -> tuple[ServerSnapshot, ...]:
        """llama-swap itself, and its models that were loaded at some time."""
        own = ServerSnapshot(self.info, up=self._up, state="ready" if self._up else None)
        return own, *(model.snapshot() for model in list(self._models.values()))

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
        for name in running:
            if name not in self._models and len(self._models) < _MAX_MODELS:
                self._models[name] = model = _Model(self._http, replace(self.info, model=name))
                model.observed.subscribe(self._listeners.call)
        for name, model in self._models.items():
            model.update(running.get(name, "unloaded"))
        self._up = True
