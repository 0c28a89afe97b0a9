"""Sheds spans under overload: while requests finish faster than their spans can be written or exported.

Whole requests are shed: one in N gets spans, so the rest is an even sample; each remaining span has the share
of requests that got spans (``llamatel.sampling.ratio``). Counters and histograms are not affected.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from llamatel.outputs.log_once import LogOnce

_log = logging.getLogger(__name__)

_HIGH = 0.5
"""Load (how full the fullest queue is) above which more is shed."""
_LOW = 0.1
"""Load below which less is shed."""
_ADJUST_S = 0.05
"""Time between two adjustments, so that the effect of the previous one is measurable."""
_MAX_STEP = 4096
"""The largest N: at least one request in this many gets spans."""
_WAITING = 0.4
"""Exporter load above which a source that can wait does; below the load at which spans are shed."""
_WAIT_STEP_S = 0.005
_WAIT_S = 5.0
"""Longest wait for an export that makes no progress."""


def wait_for_spans(load: Callable[[], float], closed: Callable[[], bool]) -> None:
    """Wait while the export of spans lags and makes progress."""
    deadline = time.monotonic() + _WAIT_S
    before = load()
    while before > _WAITING and not closed() and time.monotonic() < deadline:
        time.sleep(_WAIT_STEP_S)
        if (now := load()) < before:
            deadline = time.monotonic() + _WAIT_S
        before = now


class SpanShedding:
    """Decides request by request. Used by one thread; ``shed_all`` and ``shed_ratio`` by any."""

    def __init__(self, load: Callable[[], float], clock: Callable[[], float] = time.monotonic) -> None:
        """``load`` returns how full the queues are, 0 to 1."""
        self._load = load
        self._clock = clock
        self._once = LogOnce(_log)
        self._step = 1
        """One request in this many gets spans."""
        self._seen = 0
        self._adjusted_at = float("-inf")
        self._all = False

    @property
    def shed_ratio(self) -> float:
        """Share of requests whose spans are being shed: 0 without overload."""
        return 1.0 if self._all else 1.0 - 1.0 / self._step

    def shed_all(self) -> None:
        """Stop writing spans: telemetry shuts down."""
        self._all = True

    def admit(self) -> float | None:
        """The share of requests that get spans if this request gets them, else None."""
        load = self._load()
        if load > _HIGH or self._step > 1:
            self._adjust(load)
        self._seen += 1
        if self._all or self._seen % self._step:
            return None
        return 1.0 / self._step

    def _adjust(self, load: float) -> None:
        now = self._clock()
        if now - self._adjusted_at < _ADJUST_S:
            return
        if load > _HIGH and self._step < _MAX_STEP:
            self._step *= 2
            self._adjusted_at = now
            self._once.warning(
                "shedding",
                "requests end faster than their spans can be written: spans of some requests are left out "
                "(llamatel_spans_shed_ratio); counters and histograms stay complete",
            )
        elif load < _LOW and self._step > 1:
            self._step //= 2
            self._adjusted_at = now
            if self._step == 1 and self._once.reset("shedding"):
                _log.info("spans of all requests are written again")
