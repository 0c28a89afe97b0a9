"""Observes one Ollama: its models, and their requests from its log, with its access lines.

Ollama (0.30 and later) runs one llama-server for each loaded model, on a random port of loopback, without ``--metrics``
and with its lines in Ollama's own log. There is one series per model, at Ollama's own address, which continues when the
model is loaded again. In the order of the data:

- ``ollama_models`` polls ``/api/ps``, ``ollama_children`` finds the llama-servers' processes;
- ``ollama_log_reader`` reads the log: ``log.ollama_log`` parses Ollama's own lines, ``log.ollama_separation`` finds
  which server wrote a line;
- ``ollama_loads`` keeps the models and their servers (``ollama_model``, ``ollama_evictions``);
- ``ollama_requests`` holds finished requests until their server and their access line (``access_join``) are known.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from llamatel.errors import HttpError, LlamatelError, ServerUnreachable
from llamatel.inputs.http import HttpClient
from llamatel.llama.listeners import Listeners
from llamatel.llama.log.log_source import Backlog, LogSource
from llamatel.llama.log.ollama_separation import OllamaSeparation
from llamatel.llama.watch.ollama_children import find_children
from llamatel.llama.watch.ollama_loads import OllamaLoads
from llamatel.llama.watch.ollama_log_reader import Ended, OllamaLogReader
from llamatel.llama.watch.ollama_models import OllamaModels
from llamatel.llama.watch.ollama_requests import OllamaRequests
from llamatel.outputs.log_once import LogOnce
from llamatel.records import Completion, ObservedRequest, ServerInfo
from llamatel.snapshots import ServerSnapshot

_log = logging.getLogger(__name__)

DEFAULT_URL = "http://127.0.0.1:11434"
_TICK_S = 0.1


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
        self._listeners = Listeners[Completion | ObservedRequest]()
        self._loads = OllamaLoads(
            server, self._reported, self._separation, has_log=source is not None, interval_s=interval_s,
            finished=self._listeners.call, exited=self._server_exited,
        )  # fmt: skip
        self._reader = OllamaLogReader(self._loads, self._separation)
        self._caught_up = source is None
        """Whether the log's lines are read as they are written."""
        self._requests = OllamaRequests(
            server, self._loads.of_number, self._separation, self._lock, client_addresses=client_addresses
        )
        self._up: bool | None = None
        self._answered = False
        self._once = LogOnce(_log)
        self._stopped = threading.Event()
        self._ended = threading.Event()
        self._failure: LlamatelError | None = None
        self._threads = [threading.Thread(target=self._run, name="llamatel-ollama", daemon=True)]
        if source is not None:
            self._threads.append(threading.Thread(target=self._read, name="llamatel-ollama-log", daemon=True))

    # -- for watchers -------------------------------------------------------------------------------------------------

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
            self._loads.stop()
        self._http.close()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the log's end; False on timeout, or without a log. Raises LogSourceError if it cannot be read."""
        if self._source is None:
            self._stopped.wait(timeout)
            return False
        self._ended.wait(timeout)
        if self._failure is not None:
            raise self._failure
        return self._ended.is_set()

    @property
    def polled(self) -> bool:
        """Whether Ollama has ever responded: it may be restarting now."""
        return self._answered

    @property
    def explanation(self) -> str | None:
        """Why no request was read, after the log's end; None if one was."""
        return None if self._reader.requests else self._reader.contents.explanation()

    def check(self) -> None:
        """Poll once. Raises ServerUnreachable if Ollama does not respond."""
        try:
            self._reported.poll()
        except (HttpError, ValueError) as error:
            raise ServerUnreachable(f"{self._http.base_url}/api/ps: {error}") from error

    def subscribe(self, listener: Callable[[Completion | ObservedRequest], None]) -> Callable[[], None]:
        """Call ``listener`` for each finished request; returns a function that unsubscribes."""
        return self._listeners.add(listener)

    def snapshots(self) -> tuple[ServerSnapshot, ...]:
        """Ollama itself, and the models that were loaded at some time."""
        with self._lock:
            models = self._loads.models()
        own = ServerSnapshot(self.info, up=self._up, state="ready" if self._up else None)
        if self._source is not None:
            counts = self._loads.unknown.snapshots()
            own = replace(own, log=counts[0].log if counts else None)
        has_log = self._source is not None
        return own, *filter(None, (model.snapshot(has_log=has_log) for model in models))

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
                self._loads.forget(all_of_them=True)
                self._take_ended()
            self._ended.set()

    def _server_exited(self, requests: Sequence[Completion], number: int) -> None:
        for request in requests:
            self._reader.ended.append(Ended(replace(request, queue_s=None, in_flight=()), number, (), True, 0.0))
        self._take_ended()

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
            self._up = self._answered = True
            if self._once.reset("down"):
                _log.warning("%s answers now", self._http.base_url)
        children = find_children(self._http.address)
        with self._lock:
            if self._caught_up:
                self._loads.update(children)
            self._loads.forget_retired()
            models = self._loads.models()
        for model in models:
            model.observed.poll()
        self._loads.unknown.poll()
