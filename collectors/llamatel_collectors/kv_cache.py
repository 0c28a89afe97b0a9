"""The KV cache in tokens and bytes: capacity, active and cached tokens, headroom."""

from __future__ import annotations

from collections.abc import Iterator

from llamatel.collectors import Collector, Sample
from llamatel.records import ServerInfo
from llamatel.snapshots import KvCacheState, Snapshot


class KvCacheCollector(Collector):
    """Capacity, tokens, usage and headroom; bytes as planned, as reported, and in use."""

    name = "kv_cache"

    def on_snapshot(self, snapshot: Snapshot) -> Iterator[Sample]:
        """What is known of each server's KV cache."""
        for state in snapshot.servers:
            if state.kv_cache is not None:
                yield from _tokens(state.kv_cache, state.server)
                yield from _bytes(state.kv_cache, state.server)


def _tokens(cache: KvCacheState, server: ServerInfo) -> Iterator[Sample]:
    if cache.capacity is not None:
        yield Sample("llamacpp.kv_cache.capacity", cache.capacity, server)
    for name, tokens in (("active", cache.active), ("cached", cache.cached)):
        if tokens is not None:
            yield Sample("llamacpp.kv_cache.tokens", tokens, server, {"state": name})
            if cache.capacity:
                yield Sample("llamacpp.kv_cache.usage", tokens / cache.capacity, server, {"state": name})
    if cache.headroom is not None:
        yield Sample("llamacpp.kv_cache.headroom", cache.headroom, server)


def _bytes(cache: KvCacheState, server: ServerInfo) -> Iterator[Sample]:
    for source, sizes in (("planned", cache.planned_bytes), ("reported", cache.reported_bytes)):
        for part, size in sizes.items():
            yield Sample("llamacpp.kv_cache.size", size, server, {"part": part, "source": source})
    if cache.plan_error_bytes is not None:
        yield Sample("llamacpp.kv_cache.plan_error", cache.plan_error_bytes, server)
    for part, size in cache.used_bytes.items():
        yield Sample("llamacpp.kv_cache.used", size, server, {"part": part})
