"""A server that somebody else runs, followed by its log and, where its address is known, by its counters."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from urllib.parse import urlsplit

from llamatel.errors import LlamatelError, ServerUnreachable, UsageError
from llamatel.llama.counters import CarriedCounters
from llamatel.llama.http import ServerClient
from llamatel.llama.log_clock import LogClock
from llamatel.llama.log_line import split_line
from llamatel.llama.log_reader import LogReader
from llamatel.llama.log_source import Batch, FileSource, StreamSource
from llamatel.records import Completion, ServerInfo, ServerSnapshot

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
    """Follows a log, and asks the server for its counters if ``url`` is given.

    Offers what a ServerManager offers to those who watch: ``subscribe`` and ``snapshots``.
    """

    def __init__(
        self, source: FileSource | StreamSource, *, url: str | None = None, api_key: str | None = None
    ) -> None:
        """Raises UsageError for a ``url`` that is none, ServerUnreachable where the key is wrong."""
        self._source = source
        self._client: ServerClient | None = None
        info = ServerInfo("unknown")
        if url is not None:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise UsageError(f"'{url}' is no server's address: write it like http://127.0.0.1:8080")
            self._client = ServerClient(parts.geturl(), api_key=api_key)
            info = ServerInfo(parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))
        self.info = info
        self._reader = LogReader(info, LogClock())
        self._lock = threading.Lock()
        self._counters = CarriedCounters()
        self._listeners: tuple[Callable[[Completion], None], ...] = ()
        self._failure: LlamatelError | None = None
        self._said_not_understood = False
        self._ended = threading.Event()
        """What others wait for; not the thread itself, see ``Supervisor.join``."""
        self._thread = threading.Thread(target=self._run, name="llamatel-log", daemon=True)
        if self._client is not None:
            self._introduce(self._client)

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
        if self._client is not None:
            self._client.close()

    def subscribe(self, listener: Callable[[Completion], None]) -> Callable[[], None]:
        """Have ``listener`` called for each request that ends; returns what ends that."""
        self._listeners = (*self._listeners, listener)

        def unsubscribe() -> None:
            self._listeners = tuple(kept for kept in self._listeners if kept is not listener)

        return unsubscribe

    def snapshots(self) -> tuple[ServerSnapshot, ...]:
        """What is known now; without an address there are no counters, and whether the server is up is unknown."""
        up: bool | None = None
        if self._client is not None:
            try:
                self._counters.observe(self._client.counters())
                up = True
                with self._lock:
                    self._reader.polled()
            except ServerUnreachable as error:
                # An answer, even a refusal, comes from a server that is up; one that is busy is not down either.
                up = error.status is not None or error.busy
        with self._lock:
            counts = self._reader.counts(self._counters.raw("tokens_predicted_total"))
            started_at = self._reader.process_started_at
        if counts.understood is False and not self._said_not_understood:
            self._said_not_understood = True
            _log.warning("the server generates tokens, but %s shows no requests that we understand", self._source.name)
        state = ServerSnapshot(
            server=self.info, up=up, process_started_at=started_at, counters=self._counters.totals(), log=counts
        )
        return (state,)

    def _introduce(self, client: ServerClient) -> None:
        """Ask the server for its name; a wrong key is said now, a server that is away may come."""
        try:
            client.counters()
        except ServerUnreachable as error:
            if error.status == 401:
                raise
            _log.warning("%s", error)
        self._update(replace(self.info, model=client.model(), build=client.build()))

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
        """Who the server is, from its own log, as far as nobody else has said."""
        facts = self._reader.facts
        info = self.info
        if info.address == "unknown" and facts.host is not None:
            info = replace(info, address=facts.host, port=facts.port)
        if info.model is None and facts.model_path is not None:
            info = replace(info, model=facts.model_path.rpartition("/")[2])
        if info.build is None and facts.build is not None:
            info = replace(info, build=facts.build)
        self._update(info)
