"""A server that somebody else runs, followed by its log and, where its address is known, polled too."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from llamatel.errors import LlamatelError
from llamatel.llama.listeners import Listeners
from llamatel.llama.log.log_clock import LogClock
from llamatel.llama.log.log_line import split_line
from llamatel.llama.log.log_source import Batch, FileSource, StreamSource
from llamatel.llama.log.reader import LogReader
from llamatel.llama.watch.kv_state import LoadedModel, kv_cache_state
from llamatel.llama.watch.router_models import with_log
from llamatel.llama.watch.server_poller import ServerPoller
from llamatel.records import Completion, ServerInfo
from llamatel.snapshots import ServerSnapshot

_log = logging.getLogger(__name__)


def last_process(lines: Sequence[str]) -> int:
    """Where in ``lines`` the last process begins: its times start anew. Lines of earlier ones cannot be dated."""
    begin, last = 0, 0.0
    for index, line in enumerate(lines):
        parts = split_line(line)
        # What a container runtime has dated needs no such care, and a router's children count on clocks of their own.
        if parts.time is None or parts.wall is not None or parts.child is not None:
            continue
        if parts.time < last - 1.0:
            begin = index
        last = parts.time
    return begin


class LogFollower:
    """Follows a log; ``poller`` asks the same server for its state, and is polled by others.

    Offers what a ServerManager offers to those who watch: ``subscribe`` and ``snapshots``.
    """

    def __init__(self, source: FileSource | StreamSource, poller: ServerPoller | None = None) -> None:
        self._source = source
        self._poller = poller
        self.info = ServerInfo("unknown") if poller is None else poller.info
        self._reader = LogReader(self.info, LogClock())
        self._lock = threading.Lock()
        self._listeners = Listeners[Completion]()
        self._failure: LlamatelError | None = None
        self._logged_not_understood = False
        self._ended = threading.Event()
        """What others wait for; not the thread itself, see ``Supervisor.join``."""
        self._thread = threading.Thread(target=self._run, name="llamatel-log", daemon=True)
        if poller is not None:
            poller.asked = self._polled

    def start(self) -> LogFollower:
        """Begin to read."""
        self._thread.start()
        return self

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the log's end; False if it goes on. Raises LogSourceError if it could not be read to its end."""
        self._ended.wait(timeout)
        if self._failure is not None:
            raise self._failure
        return self._ended.is_set()

    def stop(self) -> None:
        """Read no further."""
        self._source.stop()
        if self._thread.is_alive():
            self._ended.wait()

    def subscribe(self, listener: Callable[[Completion], None]) -> Callable[[], None]:
        """Have ``listener`` called for each request that ends; returns what ends that."""
        return self._listeners.add(listener)

    def snapshots(self) -> tuple[ServerSnapshot, ...]:
        """What is known now; without an address there are no counters, and whether the server is up is unknown."""
        polled = () if self._poller is None else self._poller.snapshots()
        own = polled[0] if polled else ServerSnapshot(self.info, up=None)
        with self._lock:
            self._learn()
            counts = self._reader.counts(own.counters.get("tokens_predicted_total"))
            started_at = self._reader.process_started_at
            facts = self._reader.logged_server
            models = polled[1:]
            if self._reader.router.seen:
                models = with_log(self.info, models, self._reader.router)
        if counts.understood is False and not self._logged_not_understood:
            self._logged_not_understood = True
            _log.warning("the server generates tokens, but %s shows no requests that we understand", self._source.name)
        if own.kv_cache is not None and facts.slots is not None:
            own = replace(own, kv_cache=kv_cache_state(facts, own.slots, LoadedModel()))
        own = replace(own, server=self.info, process_started_at=started_at, log=counts, placement=facts.placement)
        return (own, *models)

    def _polled(self, model: str | None) -> None:
        """The server, or one of its models, was asked something that takes a task number."""
        with self._lock:
            reader = self._reader if model is None else self._reader.router.reader_of(model)
            if reader is not None:
                reader.polled()

    def _update(self, info: ServerInfo) -> None:
        if info != self.info:
            self.info = info
            self._reader.server = info

    def _run(self) -> None:
        try:
            for batch in self._source.batches():
                self._take(batch)
        except LlamatelError as error:
            self._failure = error
        finally:
            with self._lock:
                self._reader.forget()
            self._ended.set()

    def _take(self, batch: Batch) -> None:
        lines = batch.lines
        with self._lock:
            if batch.backlog:
                lines = lines[last_process(lines) :]
                # The last line was written last: it dates all of the process's lines.
                stamped = next(
                    (parts for line in reversed(lines) if (parts := split_line(line)).time is not None), None
                )
                if stamped is not None and stamped.time is not None:
                    self._reader.date(stamped.time, stamped.wall or batch.at)
            ended: list[Completion] = []
            for line in lines:
                ended.extend(self._reader.feed(line, batch.at))
            self._learn()
        for completion in ended:
            for listener in self._listeners:
                listener(completion)

    def _learn(self) -> None:
        """Who the server is: as it says itself, else from its log."""
        facts = self._reader.logged_server
        info = self.info if self._poller is None else self._poller.info
        if info.address == "unknown" and facts.host is not None:
            info = replace(info, address=facts.host, port=facts.port)
        if info.model is None and facts.model_path is not None:
            info = replace(info, model=facts.model_path.rpartition("/")[2])
        if info.build is None and facts.build is not None:
            info = replace(info, build=facts.build)
        self._update(info)
