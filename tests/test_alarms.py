"""Terminal warnings: when they are raised, how often, with which remedy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llamatel.records import Outcome, RecomputeCause
from llamatel.snapshots import KvCacheState, LogCounts, RouterModel, ServerSnapshot, SlotState, Snapshot
from llamatel.ui.alarm_conditions import burn_limit
from llamatel.ui.alarms import Alarm, Alarms
from llamatel.ui.objective_window import REQUESTS, WINDOW_S, ObjectiveWindow
from llamatel.ui.objectives import Objectives
from tests.samples import SERVER, completion

FOUR_SLOTS = tuple(SlotState(number, busy=True) for number in range(4))


class Watch:
    """Evaluates alarms of one server at chosen times."""

    def __init__(self, objectives: Objectives | None = None) -> None:
        self.alarms = Alarms(objectives)

    def check(self, at: float, dropped: dict[str, int] | None = None, **state: Any) -> list[Alarm]:
        server = ServerSnapshot(SERVER, **{"up": True, **state})
        return self.alarms.check(Snapshot(at, (server,), dropped or {}))

    def names(self, at: float, **state: Any) -> list[str]:
        return [alarm.name for alarm in self.check(at, **state)]


def pool(active: int, capacity: int = 1000, **more: Any) -> KvCacheState:
    return KvCacheState(capacity=capacity, active=active, unified=True, **more)


def test_alarm_names_the_labels_of_its_server() -> None:
    """Pods whose servers have the same address are distinguished; the address has the path."""
    server = replace(SERVER, labels=(("pod", "llama-0"), ("server.path", "/a"), ("zone", "z" * 200)))
    text = str(Alarm("down", server, "it does not answer"))
    assert text.startswith(f"{SERVER.address}:{SERVER.port}/a pod=llama-0 zone=zz")
    assert text.endswith("z…: it does not answer")
    assert str(Alarm("waiting", SERVER, "…", "a\x1b[31m")).partition(" ")[2] == r"'a\x1b[31m': …"


def test_alarms_none_for_a_healthy_server() -> None:
    watch = Watch()
    for at in range(0, 1000, 2):
        state: dict[str, Any] = {
            "kv_cache": pool(600 + 37 * at % 200),
            "deferred": at % 3,
            "restarts": 2,
            "slots": FOUR_SLOTS,
        }
        assert not watch.check(at, **state), at


def test_alarms_kv_headroom_raised_once_with_remedy() -> None:
    watch = Watch()
    assert watch.names(0, kv_cache=pool(900)) == []
    [alarm] = watch.check(2, kv_cache=pool(901))
    assert alarm.name == "kv_headroom"
    assert "99 of 1,000 tokens left" in alarm.text
    assert "-c" in alarm.text
    assert "-np" in alarm.text
    assert str(alarm).startswith(f"{SERVER.address}:{SERVER.port}: ")
    assert watch.names(4, kv_cache=pool(950)) == []
    assert watch.names(603, kv_cache=pool(950)) == ["kv_headroom"]


def test_alarms_kv_exhaustion_from_trend() -> None:
    watch = Watch()
    raised = {at: watch.check(at, kv_cache=pool(500 + 4 * at)) for at in range(0, 60, 2)}
    first = next(at for at, alarms in raised.items() if alarms)
    [alarm] = raised[first]
    assert alarm.name == "kv_exhaustion"
    assert first == 16
    assert "109 s" in alarm.text  # 436 tokens at 4 a second


def test_alarms_none_for_cached_tokens() -> None:
    assert not Watch().check(0, kv_cache=pool(10, cached=985))


def test_alarms_context_full_counts_requests() -> None:
    watch = Watch()
    for _ in range(4):
        watch.alarms.record(completion(outcome=Outcome.CONTEXT_FULL))
    watch.alarms.record(completion(outcome=Outcome.CONTEXT_FULL, is_child=True))  # a further choice of one of them
    [alarm] = watch.check(0, kv_cache=pool(0, capacity=2048), slots=FOUR_SLOTS)
    assert alarm.text.startswith("4 requests failed because the KV pool of 2,048 tokens that 4 slots share was full")
    assert "--no-kv-unified" in alarm.text


def test_alarms_remedy_fits_the_pool() -> None:
    [one_slot] = Watch().check(0, kv_cache=pool(950), slots=FOUR_SLOTS[:1])
    assert one_slot.text.endswith("raise -c, or shorten prompts and answers")
    split = Watch()
    split.alarms.record(completion(outcome=Outcome.CONTEXT_FULL))
    [alarm] = split.check(0, kv_cache=KvCacheState(capacity=2048, active=0, unified=False), slots=FOUR_SLOTS)
    assert alarm.text == "1 request failed because the KV pool of 2,048 tokens was full: raise -c, or lower -np"


def test_alarms_deferred_without_interruption() -> None:
    watch = Watch()
    assert watch.names(0, deferred=1) == []
    assert watch.names(59, deferred=0) == []
    assert watch.names(60, deferred=3) == []
    assert watch.names(119, deferred=2) == []
    assert watch.names(121, deferred=2) == ["deferred"]


def test_alarms_down_not_while_starting() -> None:
    watch = Watch()
    assert watch.names(0, up=False, state="starting") == []
    assert watch.names(60, up=False, state="starting") == []
    assert watch.names(61, up=False, state="failed") == []
    assert watch.names(77, up=False, state="failed") == ["server_down"]


def test_alarms_restart_loop() -> None:
    watch = Watch()
    assert watch.names(0, restarts=5) == []
    assert watch.names(400, restarts=6) == []
    assert watch.names(800, restarts=7) == []
    assert watch.names(1100, restarts=8) == []  # the first of the three is too long ago
    assert watch.names(1200, restarts=9) == ["restart_loop"]


def test_alarms_model_of_a_router_failed() -> None:
    watch = Watch()
    loaded, failed = RouterModel(loads=1, failures=0), RouterModel(loads=1, failures=1)
    assert watch.names(0, up=None, state="loaded", router_model=loaded) == []
    [alarm] = watch.check(10, up=None, state="failed", router_model=failed)
    assert (alarm.name, "'tiny' failed to load" in alarm.text) == ("model_failed", True)
    assert str(alarm).startswith(f"{SERVER.address}:{SERVER.port} {SERVER.model}: ")
    assert watch.names(700, up=None, state="failed", router_model=failed) == []


def test_alarms_none_from_stale_figures() -> None:
    assert not Watch().check(0, stale=True, kv_cache=pool(999), deferred=9)


@pytest.mark.parametrize(("error", "expected"), [(None, []), (0, []), (2**20, ["kv_size_disagrees"])])
def test_alarms_kv_size_disagrees(error: int | None, expected: list[str]) -> None:
    cache = KvCacheState(reported_bytes={"k": 2**20, "v": 2**20}, plan_error_bytes=error)
    assert Watch().names(0, kv_cache=cache) == expected


def test_alarms_objectives_need_enough_requests() -> None:
    watch = Watch()
    slow = completion(queue_s=0.0, started_at=100.0, first_token_at=110.0, ended_at=120.0)
    for _ in range(19):
        watch.alarms.record(slow)
    assert watch.names(130) == []
    watch.alarms.record(slow)
    [alarm] = watch.check(132)
    assert alarm.name == "ttft_objective"
    assert alarm.text.startswith("20 of the last 20 requests needed more than 2.5 s to the first token")
    assert watch.names(1000) == []  # no recent figures


def test_alarms_telemetry_dropped_and_log_not_understood() -> None:
    watch = Watch()
    assert watch.check(0, dropped={"queue_full": 2})[0].server is None
    assert not watch.check(2, dropped={"queue_full": 2})
    assert watch.names(4, log=LogCounts(understood=False)) == ["log_not_understood"]
    assert watch.names(5, log=LogCounts(understood=False, silent_s=30.0)) == ["log_silent"]


def test_alarms_starting_for_too_long() -> None:
    watch = Watch()
    for at in range(0, 900, 2):
        assert watch.names(at, up=False, state="starting") == [], at
    [alarm] = watch.check(900, up=False, state="starting")
    assert (alarm.name, alarm.text) == (
        "server_starting",
        "the server has been loading its model for 15 minutes: see its log",
    )
    assert watch.names(902, state="ready") == []
    assert watch.names(2000, up=False, state="starting") == []


def test_alarms_many_servers_and_removed_ones() -> None:
    alarms = Alarms()

    def raised(at: float, ports: range) -> int:
        servers = (ServerSnapshot(replace(SERVER, port=port), up=True, kv_cache=pool(950)) for port in ports)
        return len(alarms.check(Snapshot(at, tuple(servers))))

    assert [raised(at, range(1500)) for at in (0, 2, 4)] == [1500, 0, 0]
    assert [raised(at, range(1490, 1500)) for at in (6, 8)] == [0, 0]
    assert len(alarms._servers) == 10


def test_alarms_error_rate() -> None:
    watch = Watch()
    for number in range(20):
        failed = number < 3
        watch.alarms.record(completion(ended_at=100.0, outcome=Outcome.ERROR if failed else Outcome.OK))
    [alarm] = watch.check(110)
    assert (alarm.name, alarm.text.split(":")[0]) == ("error_rate", "3 of the last 20 requests failed")
    assert Watch(Objectives(error_rate=0.2)).check(110) == []


def test_alarms_server_unresponsive_while_stale() -> None:
    watch = Watch()
    assert [watch.names(at, stale=True) for at in (0, 100, 299)] == [[], [], []]
    assert watch.names(301, stale=True) == ["server_unresponsive"]
    assert watch.names(302) == []
    assert watch.names(1000, stale=True) == []


def test_alarms_use_the_users_objectives() -> None:
    fast = {"queue_s": 0.0, "started_at": 100.0, "first_token_at": 101.5, "ended_at": 103.0}
    default, strict = Watch(), Watch(Objectives(ttft_s=1.0, min_requests=5))
    for watch in (default, strict):
        for _ in range(5):
            watch.alarms.record(completion(**fast))
    assert default.check(110) == []
    [alarm] = strict.check(110)
    assert alarm.name == "ttft_objective"


def test_alarms_small_error_budget_needs_three_late_requests() -> None:
    slow = {"queue_s": 0.0, "started_at": 100.0, "first_token_at": 101.5, "ended_at": 103.0}
    watch = Watch(Objectives(ttft_s=1.0, error_budget=0.001, min_requests=5))
    for number in range(1, 4):
        watch.alarms.record(completion(**slow))
        for _ in range(4):
            watch.alarms.record(completion(**{**slow, "first_token_at": 100.1}))
        assert watch.names(110) == (["ttft_objective"] if number == 3 else [])


def test_alarms_prefix_reuse_lost_by_cause_and_the_users_limit() -> None:
    lost = {"recompute_s": 4.0, "recompute_cause": RecomputeCause.CACHE_PROMPT_OFF, "ended_at": 100.0}
    default, strict = Watch(), Watch(Objectives(lost_prefill_s=3.0))
    for watch in (default, strict):
        for _ in range(5):
            watch.alarms.record(completion(**lost))
    assert default.check(110) == []
    [alarm] = strict.check(110)
    assert alarm.name == "prefix_reuse_lost"
    assert "up to 4.0 s of prefill per minute, cause cache_prompt_off" in alarm.text
    assert "cache_prompt" in alarm.text.partition(": ")[2]
    assert Watch(Objectives(lost_prefill_s=3.0)).check(110) == []
    assert strict.check(1000) == []


@pytest.mark.parametrize(("budget", "limit"), [(0.05, 0.72), (0.005, 0.072), (0.1, 0.9), (0.9, 0.95)])
def test_burn_limit_can_be_reached(budget: float, limit: float) -> None:
    assert burn_limit(14.4, budget) == limit


def test_objective_window_counts_equal_a_recount() -> None:
    window, objectives = ObjectiveWindow(), Objectives(ttft_s=0.5, tpot_s=0.1)
    requests = [
        completion(
            ended_at=0.1 * number,
            outcome=Outcome.ERROR if number % 7 == 0 else Outcome.OK,
            first_token_at=None if number % 3 == 0 else 0.1 * number - 1.0 + number % 5 / 4,
            started_at=0.1 * number - 1.0,
            queue_s=0.0,
        )
        for number in range(REQUESTS + 500)
    ]
    for request in requests:
        window.add(request, objectives)
    for now in (requests[-1].ended_at, requests[-1].ended_at + 200.0, requests[-1].ended_at + 1000.0):
        window.expire(now)
        kept = [request for request in requests[-REQUESTS:] if now - request.ended_at <= WINDOW_S]
        first = [request.time_to_first_token_s for request in kept if request.time_to_first_token_s is not None]
        assert len(window) == len(kept)
        assert window.failed == sum(request.outcome is Outcome.ERROR for request in kept)
        assert (window.ttft.known, window.ttft.late) == (len(first), sum(value > 0.5 for value in first))
