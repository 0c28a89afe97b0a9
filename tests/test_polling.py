"""State derived from polls, with literal inputs; the polls themselves are in test_attach.py."""

from __future__ import annotations

import pytest

from llamatel.flags.parse import parse_server_flags
from llamatel.llama.http.server_client import Scrape, ServerClient
from llamatel.llama.log.logged_server import LoggedServer
from llamatel.llama.watch.kv_state import LoadedModel, Polled, kv_cache_state, pool_capacity
from llamatel.llama.watch.observed_requests import SlotTrace
from llamatel.llama.watch.polling import Polling
from llamatel.records import ServerInfo
from llamatel.snapshots import SlotState

SERVER = ServerInfo("127.0.0.1", 8080, "tiny")


def polling() -> Polling:
    return Polling(ServerClient("http://127.0.0.1:9"), "one")


def scraped(**values: float) -> Polling:
    one = polling()
    one._record(Scrape(values))
    return one


@pytest.mark.parametrize(
    ("number", "size", "flags", "expected"),
    [
        # Without the flags, several slots may share a pool or split it, and one may be capped.
        (1, 1024, None, (1024, None)),
        (1, 4096, None, (None, None)),
        (4, 1024, None, (None, None)),
        (4, 1024, "-c 1024", (1024, True)),
        (4, 1024, "-c 1000", (1024, True)),  # llama.cpp rounds up
        (4, 1024, "-c 4096", (4096, False)),  # builds whose slots do not share a pool by default
        (4, 4096, "-c 65536", (65536, True)),
        (4, 4096, "-c 65536 -np 4 -kvu", (65536, True)),
        (4, 4096, "-c 65536 -np 4", (None, False)),
        (4, 1024, "-c 0", (1024, True)),
        (4, 1024, "-np 4", (4096, False)),
        (4, 768, "-c 4096", (None, True)),  # the flag and the slots disagree
        (2, 1024, "-np 2 -kvu -c 8192 --kv-unified-per-slot 1024", (8192, True)),
    ],
)
def test_pool_of_slots(number: int, size: int, flags: str | None, expected: tuple[int | None, bool | None]) -> None:
    settings = None if flags is None else parse_server_flags(flags.split(), environ={})
    slots = tuple(SlotState(index, False, size, 10) for index in range(number))
    cache = kv_cache_state(LoggedServer(), Polled(slots, 4096), LoadedModel(None, settings))
    assert (cache.capacity, cache.unified) == expected


def test_pool_from_llama_cpp_gauges() -> None:
    one = scraped(kv_cache_usage_ratio=0.25, kv_cache_tokens=512.0, tokens_predicted_total=1.0)
    assert pool_capacity(LoggedServer(), one.polled, LoadedModel()) == 2048
    one = scraped(kv_cache_usage_ratio=0.0, kv_cache_tokens=0.0)  # empty: its size is unknown
    assert pool_capacity(LoggedServer(), one.polled, LoadedModel()) is None


def test_polling_drops_gauges_that_each_scrape_resets() -> None:
    one = scraped(prompt_tokens_seconds=7.0, predicted_tokens_seconds=9.0, requests_deferred=2.0)
    assert set(one._values) == {"requests_deferred"}


def test_polling_drops_scrape_of_replaced_process() -> None:
    class Slow(ServerClient):
        def scrape(self, timeout_s: float | None = None) -> Scrape:
            one.replaced()
            return Scrape({"tokens_predicted_total": 5.0})

    one = Polling(Slow("http://127.0.0.1:9"), "one")
    assert one.poll() is False
    assert one.totals == {}


def test_polling_processes_answering_in_turns(caplog: pytest.LogCaptureFixture) -> None:
    """Replicas behind one Service: no endless restarts, no tokens counted twice, and one warning."""
    one = polling()
    totals = []
    for turn in range(10):
        process, count = ("a", 100 + turn) if turn % 2 == 0 else ("b", 5 + turn)
        one._record(Scrape({"tokens_predicted_total": float(count)}, process))
        totals.append(one.totals["tokens_predicted_total"])
    assert totals == sorted(totals)
    assert totals[-1] == 108 + 14
    assert one.restarts == 0
    assert caplog.text.count("in turns") == 1
    one._record(Scrape({"tokens_predicted_total": 1.0}, "c"))
    assert (one.restarts, one.totals["tokens_predicted_total"]) == (1, 108 + 14 + 1)


def test_observed_request_bounded_by_polls() -> None:
    trace = SlotTrace()

    def look(at: float, *slots: SlotState) -> list[tuple[int, float, float, float | None, int | None]]:
        return [
            (seen.task, seen.first_seen_at, seen.last_seen_at, seen.longest_s, seen.decoded)
            for seen in trace.observe(SERVER, slots, at)
        ]

    assert look(10.0, SlotState(0, True, task=1, decoded=5)) == []
    assert look(11.0, SlotState(0, True, task=1, decoded=9)) == []
    # Another task in its slot: the first has finished. A request of the first poll may have started any time before.
    assert look(12.0, SlotState(0, True, task=2)) == [(1, 10.0, 11.0, None, 9)]
    assert look(13.0, SlotState(0, False, task=2)) == [(2, 12.0, 12.0, 2.0, None)]
    trace.idle(20.0)
    assert look(21.0, SlotState(0, True, task=3)) == []
    assert look(22.0, SlotState(0, False, task=3)) == [(3, 21.0, 21.0, 2.0, None)]
    look(23.0, SlotState(0, True, task=4))
    trace.forget()
    assert look(24.0, SlotState(0, False)) == []
