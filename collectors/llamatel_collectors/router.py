"""A router's models: the state of each, and how often it was loaded, given up for another, or failed."""

from __future__ import annotations

from collections.abc import Iterator

from llamatel.collectors import Collector, Sample
from llamatel.snapshots import Snapshot


class RouterCollector(Collector):
    """State, loads, evictions, failures and gaps of each model of a router; other servers have none."""

    name = "router"

    def on_snapshot(self, snapshot: Snapshot) -> Iterator[Sample]:
        """What is known of each model; its loading time is ``llamacpp.server.loading.duration``."""
        for state in snapshot.servers:
            life = state.router_model
            if life is None:
                continue
            if state.state is not None:
                yield Sample("llamacpp.model.state", 1, state.server, {"state": state.state})
            gaps = state.count_gaps
            for metric, value in (
                ("llamacpp.model.loads", life.loads),
                ("llamacpp.model.evictions", life.evictions),
                ("llamacpp.model.failures", life.failures),
                ("llamatel.unloads.unread", None if gaps is None else gaps.unloads),
                ("llamatel.requests.lost", None if gaps is None else gaps.requests),
            ):
                if value is not None:
                    yield Sample(metric, value, state.server)
