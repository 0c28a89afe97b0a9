"""Tokens, processing time and decode steps by llama.cpp's own counters.

They include the partial work of cancelled requests.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from llamatel.collectors import Collector, Sample
from llamatel.snapshots import Snapshot

# llama.cpp's /metrics (tools/server/server-task.cpp), metric, its attribute.
_COUNTERS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("prompt_tokens_total", "llamacpp.tokens", {"type": "input_computed"}),
    ("prompt_tokens_cached_total", "llamacpp.tokens", {"type": "input_cached"}),
    ("tokens_predicted_total", "llamacpp.tokens", {"type": "output"}),
    ("prompt_seconds_total", "llamacpp.processing_time", {"phase": "prefill"}),
    ("tokens_predicted_seconds_total", "llamacpp.processing_time", {"phase": "decode"}),
    ("n_decode_total", "llamacpp.decode.steps", {}),
    ("spec_decode_num_draft_tokens_total", "llamacpp.speculative.tokens", {"type": "drafted"}),
    ("spec_decode_num_accepted_tokens_total", "llamacpp.speculative.tokens", {"type": "accepted"}),
)

_BY_POSITION = re.compile(r'spec_decode_num_accepted_tokens_per_pos_total\{position="(\d+)"\}')


class TokensCollector(Collector):
    """Token totals of each server; a counter that its build lacks yields no sample."""

    name = "tokens"

    def on_snapshot(self, snapshot: Snapshot) -> Iterator[Sample]:
        """Samples of the counters that each server has."""
        for state in snapshot.servers:
            for counter, metric, attributes in _COUNTERS:
                value = state.counters.get(counter)
                if value is not None:
                    yield Sample(metric, value, state.server, attributes)
            for counter, value in state.counters.items():
                if found := _BY_POSITION.fullmatch(counter):
                    position = int(found.group(1))
                    yield Sample("llamacpp.speculative.accepted", value, state.server, {"position": position})
