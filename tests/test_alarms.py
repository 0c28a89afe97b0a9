"""Warnings on the terminal: when they are said, how often, and with which remedy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llamatel.records import Outcome
from llamatel.snapshots import KvCacheState, LogCounts, ServerSnapshot, SlotState, Snapshot
from llamatel.ui.alarms import Alarm, Alarms
from tests.samples import SERVER, completion

FOUR_SLOTS = tuple(SlotState(number, busy=True) for number in range(4))


class Watch:
    """Looks at a server at times that the test names."""

    def __init__(self) -> None:
        self.alarms = Alarms()

    def look(self, at: float, dropped: dict[str, int] | None = None, **state: Any) -> list[Alarm]:
        server = ServerSnapshot(SERVER, **{"up": True, **state})
        return self.alarms.look(Snapshot(at, (server,), dropped or {}))

    def names(self, at: float, **state: Any) -> list[str]:
        return [alarm.name for alarm in self.look(at, **state)]


def pool(active: int, capacity: int = 1000, **more: Any) -> KvCacheState:
    return KvCacheState(capacity=capacity, active=active, unified=True, **more)


def test_nothing_is_said_of_a_server_that_does_well() -> None:
    watch = Watch()
    for at in range(0, 1000, 2):
        state: dict[str, Any] = {
            "kv_cache": pool(600 + 37 * at % 200),
            "deferred": at % 3,
            "restarts": 2,
            "slots": FOUR_SLOTS,
        }
        assert not watch.look(at, **state), at


def test_little_headroom_is_said_once_with_what_helps() -> None:
    watch = Watch()
    assert watch.names(0, kv_cache=pool(900)) == []
    [alarm] = watch.look(2, kv_cache=pool(901))
    assert alarm.name == "kv_headroom"
    assert "99 of 1,000 tokens left" in alarm.text
    assert "-c" in alarm.text
    assert "-np" in alarm.text
    assert str(alarm).startswith(f"{SERVER.address}:{SERVER.port}: ")
    assert watch.names(4, kv_cache=pool(950)) == []
    assert watch.names(603, kv_cache=pool(950)) == ["kv_headroom"]


def test_a_pool_that_fills_up_is_foretold_after_a_while() -> None:
    watch = Watch()
    said = {at: watch.look(at, kv_cache=pool(500 + 4 * at)) for at in range(0, 60, 2)}
    first = next(at for at, alarms in said.items() if alarms)
    [alarm] = said[first]
    assert alarm.name == "kv_exhaustion"
    assert first == 16
    assert "109 s" in alarm.text  # 436 tokens at 4 a second


def test_cached_tokens_are_no_reason() -> None:
    assert not Watch().look(0, kv_cache=pool(10, cached=985))


def test_requests_that_a_full_pool_killed_are_counted() -> None:
    watch = Watch()
    for _ in range(4):
        watch.alarms.ended(completion(outcome=Outcome.CONTEXT_FULL))
    watch.alarms.ended(completion(outcome=Outcome.CONTEXT_FULL, is_child=True))  # a further choice of one of them
    [alarm] = watch.look(0, kv_cache=pool(0, capacity=2048), slots=FOUR_SLOTS)
    assert alarm.text.startswith("4 requests failed as the KV pool of 2,048 tokens that 4 slots share was full")
    assert "--no-kv-unified" in alarm.text


def test_the_flag_that_is_named_would_help() -> None:
    [one_slot] = Watch().look(0, kv_cache=pool(950), slots=FOUR_SLOTS[:1])
    assert one_slot.text.endswith("raise -c, or shorten prompts and answers")
    split = Watch()
    split.alarms.ended(completion(outcome=Outcome.CONTEXT_FULL))
    [alarm] = split.look(0, kv_cache=KvCacheState(capacity=2048, active=0, unified=False), slots=FOUR_SLOTS)
    assert alarm.text == "1 request failed as the KV pool of 2,048 tokens was full: raise -c, or lower -np"


def test_a_queue_that_stays() -> None:
    watch = Watch()
    assert watch.names(0, deferred=1) == []
    assert watch.names(59, deferred=0) == []
    assert watch.names(60, deferred=3) == []
    assert watch.names(119, deferred=2) == []
    assert watch.names(121, deferred=2) == ["deferred"]


def test_a_server_that_is_down_and_one_that_only_starts() -> None:
    watch = Watch()
    assert watch.names(0, up=False, state="starting") == []
    assert watch.names(60, up=False, state="starting") == []
    assert watch.names(61, up=False, state="failed") == []
    assert watch.names(77, up=False, state="failed") == ["server_down"]


def test_a_restart_loop() -> None:
    watch = Watch()
    assert watch.names(0, restarts=5) == []
    assert watch.names(400, restarts=6) == []
    assert watch.names(800, restarts=7) == []
    assert watch.names(1100, restarts=8) == []  # the first of the three is too long ago
    assert watch.names(1200, restarts=9) == ["restart_loop"]


def test_a_busy_servers_old_figures_are_no_reason() -> None:
    assert not Watch().look(0, stale=True, kv_cache=pool(999), deferred=9)


@pytest.mark.parametrize(("reported", "expected"), [(2**20, []), (2**20 + 10486, []), (2**21, ["kv_size_disagrees"])])
def test_a_plan_that_is_not_what_was_allocated(reported: int, expected: list[str]) -> None:
    cache = KvCacheState(
        planned_bytes={"k": 2**19, "v": 2**19}, reported_bytes={"k": reported // 2, "v": reported // 2}
    )
    assert Watch().names(0, kv_cache=cache) == expected


def test_objectives_need_requests_to_speak() -> None:
    watch = Watch()
    slow = completion(queue_s=0.0, started_at=100.0, first_token_at=110.0, ended_at=120.0)
    for _ in range(19):
        watch.alarms.ended(slow)
    assert watch.names(130) == []
    watch.alarms.ended(slow)
    [alarm] = watch.look(132)
    assert alarm.name == "ttft_objective"
    assert alarm.text.startswith("20 of the last 20 requests took more than 2.5 s for the first token")
    assert watch.names(1000) == []  # nothing lately


def test_our_own_losses() -> None:
    watch = Watch()
    assert watch.look(0, dropped={"queue_full": 2})[0].server is None
    assert not watch.look(2, dropped={"queue_full": 2})
    assert watch.names(4, log=LogCounts(understood=False)) == ["log_not_understood"]


def test_a_model_that_loads_is_not_down_until_that_takes_too_long() -> None:
    watch = Watch()
    for at in range(0, 900, 2):
        assert watch.names(at, up=False, state="starting") == [], at
    [alarm] = watch.look(900, up=False, state="starting")
    assert (alarm.name, alarm.text) == (
        "server_starting",
        "the server has been loading its model for 15 minutes: see its log",
    )
    assert watch.names(902, state="ready") == []
    assert watch.names(2000, up=False, state="starting") == []


def test_many_servers_are_told_of_once_each_and_those_that_left_are_forgotten() -> None:
    alarms = Alarms()

    def look(at: float, ports: range) -> int:
        servers = (ServerSnapshot(replace(SERVER, port=port), up=True, kv_cache=pool(950)) for port in ports)
        return len(alarms.look(Snapshot(at, tuple(servers))))

    assert [look(at, range(1500)) for at in (0, 2, 4)] == [1500, 0, 0]
    assert [look(at, range(1490, 1500)) for at in (6, 8)] == [0, 0]
    assert len(alarms._servers) == 10
