"""Calls collectors, measures the time and isolates their failures."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from types import TracebackType

from llamatel.collectors import Collector, Sample
from llamatel.records import ClientCall, Completion
from llamatel.snapshots import Snapshot

_log = logging.getLogger(__name__)

Record = Callable[[Sample, object], None]


class Guard:
    """Calls one collector. A failure inside ``with self`` is logged once and reported as a metric."""

    def __init__(self, collector: Collector) -> None:
        self.collector = collector
        self._failed_lately = False
        """Since the last snapshot."""
        self._logged = False

    def has(self, method: str) -> bool:
        """Whether its collector overrides a hook; most override few."""
        return getattr(getattr(self.collector, method), "__func__", None) is not getattr(Collector, method)

    def start(self) -> None:
        """Start its source."""
        with self:
            self.collector.start()

    def stop(self) -> None:
        """Stop its source."""
        with self:
            self.collector.stop()

    def complete(self, completion: Completion) -> Completion:
        """The request with the collector's data."""
        with self:
            return self.collector.complete(completion)
        return completion

    def complete_snapshot(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot with the collector's data."""
        with self:
            return self.collector.complete_snapshot(snapshot)
        return snapshot

    def on_call(self, call: ClientCall, record: Record) -> None:
        """Record its samples of a client's call."""
        with self:
            for sample in self.collector.on_call(call):
                record(sample, call.span)

    def on_completion(self, completion: Completion, record: Record, context: object) -> None:
        """Record its samples of a request."""
        with self:
            for sample in self.collector.on_completion(completion):
                record(sample, context)

    def on_snapshot(self, snapshot: Snapshot) -> list[Sample]:
        """Its samples for a snapshot, their duration, and whether it succeeded since the last one."""
        started = time.perf_counter()
        samples: list[Sample] = []
        with self:
            samples = list(self.collector.on_snapshot(snapshot))
        name = {"collector": self.collector.name}
        samples.append(Sample("llamatel.collector.duration", time.perf_counter() - started, None, name))
        samples.append(Sample("llamatel.collector.success", 0.0 if self._failed_lately else 1.0, None, name))
        if self._logged and not self._failed_lately:
            self._logged = False
            _log.info("collector '%s' works again", self.collector.name)
        self._failed_lately = False
        return samples

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        self._failed_lately = True
        if not self._logged:
            self._logged = True
            _log.error(
                "collector '%s' failed; until it works again this is not repeated", self.collector.name, exc_info=error
            )
        return True
