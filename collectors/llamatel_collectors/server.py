"""The state of each server, and of our reading of its log."""

from __future__ import annotations

from collections.abc import Iterator

from llamatel.collectors import Collector, Sample
from llamatel.records import LogCounts, ServerInfo, Snapshot


class ServerCollector(Collector):
    """Up, restarts, start; lines read, requests and records lost."""

    name = "server"

    def on_snapshot(self, snapshot: Snapshot) -> Iterator[Sample]:
        """What is known of each server; a server that is not watched any more gives no samples."""
        for state in snapshot.servers:
            for metric, value in (
                ("llamacpp.server.up", None if state.up is None else int(state.up)),
                ("llamacpp.server.restarts", state.restarts),
                ("llamacpp.server.start_time", state.process_started_at),
                ("llamacpp.server.loading.duration", state.loading_s),
            ):
                if value is not None:
                    yield Sample(metric, value, state.server)
            if state.log is not None:
                yield from _log(state.log, state.server)
        for reason, count in snapshot.records_dropped.items():
            yield Sample("llamatel.records.dropped", count, attributes={"reason": reason})


def _log(log: LogCounts, server: ServerInfo) -> Iterator[Sample]:
    for kind, count in log.lines.items():
        yield Sample("llamatel.log.lines", count, server, {"kind": kind})
    yield Sample("llamatel.requests.lost", log.requests_lost, server)
    if log.understood is not None:
        yield Sample("llamatel.log.understood", int(log.understood), server)
