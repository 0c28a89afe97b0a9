"""The watching llamatel's side: takes news of calls, from whoever on this machine sends some.

Nothing of it is believed but what the server's log confirms. How much is taken is bounded, so that requests are never
held up for longer than the joiner waits for a call of its own process.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from llamatel.telemetry.observer import Observer
from llamatel.tracing.call_reports import EXPECTED_S, read
from llamatel.tracing.joining import Endpoint, endpoint_of

_PER_SECOND = 256 * 1024
"""Bytes that are read in a second at most: some 450 calls."""
_LEAST = 512
"""What a message counts at least."""
_FRESH_S = 0.9
_LOOK_AGAIN_S = 5.0


class CallReportReceiver:
    """Answers ``/servers.json`` and ``/calls.json``. Thread-safe."""

    def __init__(self, observer: Observer, instance: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._observer = observer
        self._instance = instance
        self._clock = clock
        self._lock = threading.Lock()
        self._second = 0.0
        self._taken = 0
        self._watched: frozenset[Endpoint] = frozenset()
        self._looked_at = -math.inf

    def servers(self) -> dict[str, Any]:
        """Who we are, and the servers whose requests we see. Who asks is about to call one of them."""
        self._looked_at = self._clock()
        self._expect(self._watched)  # now: a call may be over before we have looked
        states = self._observer.snapshot(_FRESH_S).servers
        self._watched = frozenset(endpoint_of(state.server) for state in states)
        self._expect(self._watched)
        return {"instance": self._instance, "servers": [list(where) for where in self._watched]}

    def take(self, body: bytes) -> bool:
        """Pass on what a report says of watched servers; False if there are too many. Raises InvalidCallReport.

        Servers are those that were seen last, as it costs a look at them; a new one comes within seconds.
        """
        if not self._allowed(max(_LEAST, len(body))):
            return False
        places, calls = read(body)
        if not self._watched.issuperset(places) and self._clock() > self._looked_at + _LOOK_AGAIN_S:
            self.servers()  # we may have begun anew since we were asked
        self._expect(self._watched.intersection(places))
        for call in calls:
            if endpoint_of(call.server) in self._watched:
                self._observer.submit(call)
        return True

    def _expect(self, places: Iterable[Endpoint]) -> None:
        for where in places:
            self._observer.expect_calls(where, EXPECTED_S)

    def _allowed(self, size: int) -> bool:
        with self._lock:
            now = self._clock()
            if now - self._second >= 1.0:
                self._second, self._taken = now, 0
            self._taken += size
            return self._taken <= _PER_SECOND
