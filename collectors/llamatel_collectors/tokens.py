"""Tokens by llama.cpp's own counters: exact, and they include the partial work of cancelled requests."""

from __future__ import annotations

from collections.abc import Iterator

from llamatel.collectors import Collector, Sample
from llamatel.snapshots import Snapshot

# llama.cpp's /metrics (tools/server/server-task.cpp), metric, its ``type``.
_COUNTERS = (
    ("prompt_tokens_total", "llamacpp.tokens", "input_computed"),
    ("prompt_tokens_cached_total", "llamacpp.tokens", "input_cached"),
    ("tokens_predicted_total", "llamacpp.tokens", "output"),
    ("spec_decode_num_draft_tokens_total", "llamacpp.speculative.tokens", "drafted"),
    ("spec_decode_num_accepted_tokens_total", "llamacpp.speculative.tokens", "accepted"),
)


class TokensCollector(Collector):
    """Token totals of each server; a counter that its build does not have gives none."""

    name = "tokens"

    def on_snapshot(self, snapshot: Snapshot) -> Iterator[Sample]:
        """One sample for each counter that a server has."""
        for state in snapshot.servers:
            for counter, metric, kind in _COUNTERS:
                value = state.counters.get(counter)
                if value is not None:
                    yield Sample(metric, value, state.server, {"type": kind})
