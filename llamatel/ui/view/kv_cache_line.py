"""A server's KV cache in one line."""

from __future__ import annotations

from collections.abc import Mapping

from llamatel.snapshots import KvCacheState, ServerSnapshot
from llamatel.ui.view.number_format import exact
from llamatel.ui.view.text_page import size


def kv_cache_line(state: ServerSnapshot) -> str | None:
    """``4,096 tokens shared by 4 slots, 16.0 MiB; 1,120 active, 96 cached``; None where nothing is known.

    Tokens are shown once there are any. Bytes are reported by llama.cpp, else planned and labelled so; if both agree,
    the planned ones are shown, as llama.cpp's log rounds to 0.01 MiB.
    """
    cache = state.kv_cache
    if cache is None or cache.capacity is None:
        return None
    given = None if state.settings is None else state.settings.parallel
    slots = given or (None if state.slots is None else len(state.slots))
    whose = ""
    if slots not in (None, 1) and cache.unified is not None:
        whose = f" shared by {slots} slots" if cache.unified else f" in {slots} slots"
    held = ""
    if cache.active or cache.cached:
        held = f"; {exact(cache.active)} active, {exact(cache.cached)} cached"
    return f"{exact(cache.capacity)} tokens{whose}{_bytes(cache)}{held}"


def _bytes(cache: KvCacheState) -> str:
    def in_words(sizes: Mapping[str, int]) -> str:
        return size(sum(sizes.values()))

    if cache.reported_bytes and cache.planned_bytes and cache.plan_error_bytes == 0:
        return f", {in_words(cache.planned_bytes)}"
    if cache.reported_bytes:
        return f", {in_words(cache.reported_bytes)}"
    return f", {in_words(cache.planned_bytes)} as planned" if cache.planned_bytes else ""
