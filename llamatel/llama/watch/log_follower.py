"""Follows the log of an attached server, a file or a stream, on its own thread."""

from __future__ import annotations

import threading
from collections.abc import Callable

from llamatel.errors import LlamatelError
from llamatel.llama.log.log_source import Backlog, LogSource
from llamatel.llama.watch.log_streams import LogStreams
from llamatel.llama.watch.observed_server import ObservedServer


class LogFollower:
    """Feeds a log to its servers."""

    def __init__(
        self,
        source: LogSource,
        server: ObservedServer,
        *,
        added: Callable[[ObservedServer], None] = lambda _: None,
    ) -> None:
        """``added`` is called for each further server in the log. Raises ValueError for a server without a log."""
        self._source = source
        server.blocking = source.blocking
        if server.log is not None:
            server.log.bytes_lost = lambda: source.bytes_lost
        self._streams = LogStreams(server, name=source.name, added=added)
        self._failure: LlamatelError | None = None
        self._ended = threading.Event()
        """Set at the end; others wait for this instead of the thread, see ``Supervisor.join``."""
        self._thread = threading.Thread(target=self._run, name="llamatel-log", daemon=True)

    def start(self) -> LogFollower:
        """Start to read."""
        self._thread.start()
        return self

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the log's end; False on timeout. Raises LogSourceError if it could not be read to its end."""
        self._ended.wait(timeout)
        if self._failure is not None:
            raise self._failure
        return self._ended.is_set()

    def stop(self, timeout: float | None = None) -> bool:
        """Stop reading; wait at most ``timeout`` for the lines that were read. False if these are still processed."""
        self._source.stop()
        return not self._thread.is_alive() or self._ended.wait(timeout)

    @property
    def explanation(self) -> str | None:
        """Why no request was read, after the log's end; None if one was."""
        return self._streams.explanation

    def _run(self) -> None:
        try:
            for batch in self._source.batches():
                if isinstance(batch, Backlog):
                    self._streams.read_backlog(batch)
                else:
                    self._streams.read(batch)
        except LlamatelError as error:
            self._failure = error
        finally:
            self._streams.forget()
            self._ended.set()
