"""Follows the log of an attached server: a file or a stream, read on a thread of its own."""

from __future__ import annotations

import threading

from llamatel.errors import LlamatelError
from llamatel.llama.log.log_source import Batch, FileSource, StreamSource
from llamatel.llama.watch.observed_server import ObservedServer


class LogFollower:
    """Feeds a log to the server that it is about."""

    def __init__(self, source: FileSource | StreamSource, server: ObservedServer) -> None:
        """Raises ValueError for a server without a log."""
        if server.log is None:
            raise ValueError("the server has no log")
        self._source = source
        self._server = server
        self._log = server.log
        self._failure: LlamatelError | None = None
        self._ended = threading.Event()
        """What others wait for; not the thread itself, see ``Supervisor.join``."""
        self._thread = threading.Thread(target=self._run, name="llamatel-log", daemon=True)

    def start(self) -> LogFollower:
        """Start to read."""
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

    def _run(self) -> None:
        try:
            for batch in self._source.batches():
                self._feed(batch)
        except LlamatelError as error:
            self._failure = error
        finally:
            self._log.forget()
            self._ended.set()

    def _feed(self, batch: Batch) -> None:
        feed = self._log.feed_backlog if batch.backlog else self._log.feed
        self._server.publish(feed(batch.lines, batch.at, learned=self._server.learn_from_log))
