"""What is concluded of a polled server's KV pool, on literals; the polls themselves are in test_attach.py."""

from __future__ import annotations

import pytest

from llamatel.flags.parse import parse_server_flags
from llamatel.llama.http.server_client import Scrape, ServerClient
from llamatel.llama.watch.instance import Instance
from llamatel.llama.watch.observed_requests import SlotTrace
from llamatel.records import ServerInfo
from llamatel.snapshots import KvCacheState, SlotState

SERVER = ServerInfo("127.0.0.1", 8080, "tiny")


def instance() -> Instance:
    return Instance(ServerClient("http://127.0.0.1:9"), "one")


@pytest.mark.parametrize(
    ("number", "size", "flags", "expected"),
    [
        (1, 1024, "", (1024, None)),
        (1, 4096, "", (None, None)),  # capped at what the model was made for: the pool may be larger
        (4, 1024, "", (None, None)),  # a shared pool, or a quarter
        (4, 1024, "-c 1024", (1024, True)),
        (4, 1024, "-c 1000", (1024, True)),  # llama.cpp rounds up
        (4, 1024, "-c 4096", (4096, False)),
        (4, 4096, "-c 65536", (None, None)),
        (4, 4096, "-c 65536 -kvu", (65536, True)),
        (4, 4096, "-c 65536 -no-kvu", (None, None)),
        (4, 1024, "-c 0", (None, None)),
        (4, 768, "-c 4096", (None, None)),
    ],
)
def test_a_pool_is_known_only_where_it_is_proved(
    number: int, size: int, flags: str, expected: tuple[int | None, bool | None]
) -> None:
    one = instance()
    one.flags, one.trained_context = parse_server_flags(flags.split(), environ={}), 4096
    pool = one._pool(tuple(SlotState(index, False, size, 10) for index in range(number)))
    assert (pool.capacity, pool.unified) == expected


def test_a_gauge_of_llama_cpps_own_is_used_where_there_is_one() -> None:
    one = instance()
    one._take(Scrape({"kv_cache_usage_ratio": 0.25, "kv_cache_tokens": 512.0, "tokens_predicted_total": 1.0}))
    assert one.snapshot(SERVER, up=True, state="ready").kv_cache == KvCacheState(capacity=2048)
    one._take(Scrape({"kv_cache_usage_ratio": 0.0, "kv_cache_tokens": 0.0}))  # empty: its size cannot be told
    assert one.snapshot(SERVER, up=True, state="ready").kv_cache == KvCacheState()


def test_gauges_that_every_scrape_resets_are_not_kept() -> None:
    one = instance()
    one._take(Scrape({"prompt_tokens_seconds": 7.0, "predicted_tokens_seconds": 9.0, "requests_deferred": 2.0}))
    assert set(one._values) == {"requests_deferred"}


def test_an_observed_request_is_bounded_by_the_looks_around_it() -> None:
    trace = SlotTrace()

    def look(at: float, *slots: SlotState) -> list[tuple[int, float, float, float | None, int | None]]:
        return [
            (seen.task, seen.first_seen_at, seen.last_seen_at, seen.longest_s, seen.decoded)
            for seen in trace.observe(SERVER, slots, at)
        ]

    assert look(10.0, SlotState(0, True, task=1, decoded=5)) == []
    assert look(11.0, SlotState(0, True, task=1, decoded=9)) == []
    # Another task in its place: the first is over. What ran at the very first look may have begun any time before.
    assert look(12.0, SlotState(0, True, task=2)) == [(1, 10.0, 11.0, None, 9)]
    assert look(13.0, SlotState(0, False, task=2)) == [(2, 12.0, 12.0, 2.0, None)]
    trace.idle(20.0)
    assert look(21.0, SlotState(0, True, task=3)) == []
    assert look(22.0, SlotState(0, False, task=3)) == [(3, 21.0, 21.0, 2.0, None)]
    look(23.0, SlotState(0, True, task=4))
    trace.forget()
    assert look(24.0, SlotState(0, False)) == []
