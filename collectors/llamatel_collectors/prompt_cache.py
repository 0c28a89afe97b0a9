"""Prompt reuse: tokens from the KV cache, tokens computed again and why, and prompts in host memory.

The hit ratio is ``hits / lookups`` over any range; both are llama.cpp's own counters, which include the prompts of
cancelled requests and embeddings. What could have been reused is known of single requests only, from the log.
"""

from __future__ import annotations

from collections.abc import Iterator

from llamatel.collectors import Collector, Sample
from llamatel.records import Completion, RecomputeCause, ServerKey
from llamatel.snapshots import Snapshot

_SERVERS = 4096
"""Most servers remembered; for others a cause's count starts with its first request."""


class PromptCacheCollector(Collector):
    """Hits and lookups; reusable, reused and recomputed tokens; entries and size of the host cache, if logged."""

    name = "prompt_cache"

    def __init__(self) -> None:
        self._seen: set[ServerKey] = set()

    def on_completion(self, completion: Completion) -> Iterator[Sample]:
        """Nothing for a request whose reuse is not known."""
        reusable, server = completion.prompt_reusable, completion.server
        if reusable is None:
            return
        if server.key not in self._seen and len(self._seen) < _SERVERS:
            self._seen.add(server.key)  # each cause from 0: a rate needs to see the first loss as a change
            for cause in RecomputeCause:
                yield Sample("llamacpp.prompt_cache.recomputed", 0, server, {"cause": cause.value})
                yield Sample("llamacpp.prompt_cache.recompute.duration", 0.0, server, {"cause": cause.value})
        yield Sample("llamacpp.prompt_cache.reusable", reusable, server)
        yield Sample("llamacpp.prompt_cache.reused", completion.prompt_cached or 0, server)
        if completion.prompt_recomputed:
            labels = {"cause": (completion.recompute_cause or RecomputeCause.UNKNOWN).value}
            yield Sample("llamacpp.prompt_cache.recomputed", completion.prompt_recomputed, server, labels)
            if completion.recompute_s is not None:
                yield Sample("llamacpp.prompt_cache.recompute.duration", completion.recompute_s, server, labels)

    def on_snapshot(self, snapshot: Snapshot) -> Iterator[Sample]:
        """Nothing for builds that do not count cached tokens."""
        for state in snapshot.servers:
            computed = state.counters.get("prompt_tokens_total")
            hits = state.counters.get("prompt_tokens_cached_total")
            if computed is not None and hits is not None:
                yield Sample("llamacpp.prompt_cache.lookups", computed + hits, state.server)
                yield Sample("llamacpp.prompt_cache.hits", hits, state.server)
            if state.prompt_cache is not None:
                yield Sample("llamacpp.prompt_cache.entries", state.prompt_cache.entries, state.server)
                yield Sample("llamacpp.prompt_cache.size", state.prompt_cache.size_bytes, state.server)
