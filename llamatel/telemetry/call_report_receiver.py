"""Receives call reports, in the llamatel that watches the servers.

Nothing in a report is trusted unless the server's log confirms it. The volume is bounded, and so is the time that a
report may hold a request: ten seconds, or the minute that the joiner waits for a stream's slow reader.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from llamatel.telemetry.observer import Observer
from llamatel.tracing.call_reports import EXPECTED_S, read
from llamatel.tracing.server_addresses import Endpoint, endpoint_of

_MAX_BYTES_PER_SECOND = 256 * 1024
"""Some 450 calls; a client's report is smaller."""
_MIN_BYTES = 512
"""Minimum size that a message counts as."""
_REMEMBERED_CALLS = 1024
_FRESH_S = 0.9
_KNOWN_S = 5.0
"""The servers come from a snapshot of at most this age, as a client waits for the response, unless one was starting."""
_REFRESH_S = 5.0


class CallReportReceiver:
    """Answers ``/servers.json`` and ``/calls.json``. Thread-safe."""

    def __init__(self, observer: Observer, instance: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._observer = observer
        self._instance = instance
        self._clock = clock
        self._lock = threading.Lock()
        self._second = 0.0
        self._received = 0
        self._received_calls: dict[object, None] = {}
        self._watched: frozenset[Endpoint] = frozenset()
        self._refreshed_at = -math.inf

    def servers(self, max_age_s: float = _KNOWN_S) -> dict[str, Any]:
        """Our id and the servers whose requests we observe. The client is about to call one of them."""
        self._refreshed_at = self._clock()
        self._expect(self._watched)  # before the snapshot: the call may finish before that is ready
        states = self._observer.snapshot(max_age_s).servers
        if not states or any(state.state == "starting" for state in states):  # its port may be known by now
            states = self._observer.snapshot().servers
        self._watched = frozenset(endpoint_of(state.server) for state in states)
        self._expect(self._watched)
        return {"instance": self._instance, "servers": [list(endpoint) for endpoint in self._watched]}

    def receive(self, body: bytes) -> bool:
        """Pass on a report of calls; False if there are too many. Raises InvalidCallReport.

        A call to an address that is not watched may have come through a proxy; its timings identify the request.
        """
        if not self._allowed(max(_MIN_BYTES, len(body))):
            return False
        report = read(body)
        if not self._watched.issuperset(report.servers) and self._clock() > self._refreshed_at + _REFRESH_S:
            self.servers(_FRESH_S)  # llamatel may have restarted since it was queried
        self._expect(endpoint if endpoint in self._watched else None for endpoint in report.servers)
        for call in report.calls:
            if (call.has_timings or endpoint_of(call.server) in self._watched) and self._is_new(call.key):
                self._observer.submit(call)
        about = report.open_calls
        if about is not None:  # after the finished calls, so that a request always has one of the two to wait for
            self._observer.calls_elsewhere(about)
        return True

    def _is_new(self, key: object) -> bool:
        """False for a call whose report was repeated because the response was late."""
        with self._lock:
            known = key in self._received_calls
            self._received_calls[key] = None
            if len(self._received_calls) > _REMEMBERED_CALLS:
                del self._received_calls[next(iter(self._received_calls))]
        return not known

    def _expect(self, endpoints: Iterable[Endpoint | None]) -> None:
        for endpoint in endpoints:
            self._observer.expect_calls(endpoint, EXPECTED_S)

    def _allowed(self, size: int) -> bool:
        with self._lock:
            now = self._clock()
            if now - self._second >= 1.0:
                self._second, self._received = now, 0
            self._received += size
            return self._received <= _MAX_BYTES_PER_SECOND
