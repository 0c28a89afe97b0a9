"""Requests that took longer than users wait, and the machine's load at that time."""

from __future__ import annotations

import os
from collections.abc import Iterator

from llamatel.collectors import Collector, Sample
from llamatel.metrics import Kind, Metric
from llamatel.records import Completion
from llamatel.snapshots import Snapshot


class PatienceCollector(Collector):
    """``PATIENCE_SECONDS`` is how long users wait; the default is 10."""

    name = "patience"
    metrics = (
        Metric(
            "patience.requests.slow", Kind.COUNTER, "{request}", "Requests that took longer than PATIENCE_SECONDS."
        ),
        Metric(
            "patience.machine.load", Kind.GAUGE, "{thread}", "Threads that ran or waited for a processor lately.",
            ("minutes",),
        ),
    )  # fmt: skip

    def __init__(self) -> None:
        self._limit_s = float(os.environ.get("PATIENCE_SECONDS", "10"))

    def on_completion(self, completion: Completion) -> Iterator[Sample]:
        """One finished request."""
        if completion.duration_s > self._limit_s:
            yield Sample("patience.requests.slow", 1, completion.server)

    def on_snapshot(self, snapshot: Snapshot) -> Iterator[Sample]:
        """The load averages of one and of five minutes; they are about no server."""
        for minutes, load in zip(("1", "5"), os.getloadavg(), strict=False):
            yield Sample("patience.machine.load", load, attributes={"minutes": minutes})
