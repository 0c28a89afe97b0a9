"""How much of the prompts llama.cpp did not have to compute again, and the prompts that it keeps in host memory.

The share of hits is ``hits / lookups`` over whatever time one looks at; both come from llama.cpp's own counters, which
count the prompts of cancelled requests and embeddings, too.
"""

from __future__ import annotations

from collections.abc import Iterator

from llamatel.collectors import Collector, Sample
from llamatel.snapshots import Snapshot


class PromptCacheCollector(Collector):
    """Hits and lookups in tokens; entries and size only where llama.cpp's log says them."""

    name = "prompt_cache"

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
