"""Joiner: a request becomes the child of a call only if no other request or call fits."""

from __future__ import annotations

import dataclasses
from typing import Any

from llamatel.records import ClientCall, Completion, GroupedCall, Outcome, ServerInfo
from llamatel.tracing.joining import Joiner, Origin
from tests.samples import START_TIME, completion, cut_short

HERE = ServerInfo("localhost", 8090)


class OpenCall:
    """A call in flight."""

    def __init__(self, started_at: float = START_TIME - 0.3, headers_at: float | None = None) -> None:
        self.server = HERE
        self.started_at = started_at
        self.headers_at = headers_at


class Bench:
    """A joiner with its clock and its results."""

    def __init__(self) -> None:
        self.now = START_TIME + 1.51
        self.joiner = Joiner(lambda: self.now)
        self.written: dict[int | None, Origin] = {}

    def watch(self) -> None:
        """Let the joiner see a request of the server HERE."""
        self.joiner.completed(completion(task=0, generated=1))
        list(self.joiner.due())

    def after(self, seconds: float) -> dict[int | None, Origin]:
        """Advance the clock and return the origins of all requests returned so far, by task."""
        self.now += seconds
        for request, origin in self.joiner.due():
            self.written[request.task] = origin
        return self.written

    def call(self, **changes: Any) -> ClientCall:
        """A finished call that fits ``samples.completion``."""
        call = ClientCall(
            key=object(), span=None, server=HERE, operation="chat", started_at=START_TIME - 0.3,
            sent_at=START_TIME - 0.29, ended_at=START_TIME + 1.5,
            outcome=Outcome.OK, input_tokens=40, output_tokens=21, cached_tokens=10,
            prompt_computed=30, prefill_s=0.500004, decode_s=1.0,
        )  # fmt: skip
        return dataclasses.replace(call, **changes)

    def run(self, *requests: Completion, calls: tuple[ClientCall, ...]) -> dict[int | None, Origin]:
        """Run requests and calls that start and finish together."""
        for call in calls:
            self.joiner.started(call.key, OpenCall())
        for request in requests:
            self.joiner.completed(request)
        for call in calls:
            self.joiner.finished(call)
        return self.after(3.0)


UNKNOWN = Origin()
UNTIMED = {"prefill_s": None, "decode_s": None, "prompt_computed": None}


def test_joiner_all_figures_agree() -> None:
    bench = Bench()
    call = bench.call()
    assert bench.run(completion(task=1), calls=(call,)) == {1: Origin(parent=call)}


def test_joiner_no_call_no_wait() -> None:
    bench = Bench()
    bench.joiner.completed(completion(task=1))
    assert bench.after(0.0) == {1: UNKNOWN}
    assert not bench.joiner.waits


def test_joiner_one_figure_differs() -> None:
    for changes in (
        {"prefill_s": 0.50001}, {"decode_s": 1.00001}, {"generated": 22}, {"prompt_computed": 29}, {"prompt_cached": 9},
        {"ended_at": START_TIME + 2.0}, {"started_at": START_TIME - 0.6}, {"server": ServerInfo("127.0.0.1", 8091)},
        {"server": ServerInfo("10.0.0.1", 8090)}, {"is_child": True},
    ):  # fmt: skip
        bench = Bench()
        bench.watch()
        assert bench.run(completion(task=1, **changes), calls=(bench.call(),)) == {1: UNKNOWN}, changes


def test_joiner_slot_separates_identical_requests() -> None:
    bench = Bench()
    one, two = bench.call(slot=0), bench.call(slot=1)
    found = bench.run(completion(task=1, slot=1), completion(task=2, slot=0), calls=(one, two))
    assert found == {1: Origin(parent=two), 2: Origin(parent=one)}


def test_joiner_identical_calls_are_linked() -> None:
    bench = Bench()
    one, two = bench.call(), bench.call()
    found = bench.run(completion(task=1), completion(task=2, slot=3), calls=(one, two))
    assert found == {1: Origin(candidates=(one, two)), 2: Origin(candidates=(one, two))}


def test_joiner_identical_request_of_another_client_is_linked() -> None:
    bench = Bench()
    call = bench.call()
    found = bench.run(completion(task=1), completion(task=2, slot=3), calls=(call,))
    assert found == {1: Origin(candidates=(call,)), 2: Origin(candidates=(call,))}


def test_joiner_unrelated_request_waits_one_second() -> None:
    bench = Bench()
    bench.joiner.started(1, OpenCall())
    bench.joiner.completed(completion(task=1))
    assert bench.after(0.9) == {}
    assert bench.after(0.2) == {1: UNKNOWN}


def test_joiner_unrelated_request_stops_waiting_after_last_call() -> None:
    bench = Bench()
    bench.joiner.started(1, OpenCall())
    bench.joiner.completed(completion(task=1))
    assert bench.after(0.0) == {}
    bench.joiner.dropped(1)
    assert bench.after(0.11) == {1: UNKNOWN}


def test_joiner_forty_calls_at_once() -> None:
    bench = Bench()
    calls = [bench.call(slot=number, prefill_s=0.5 + number / 1000) for number in range(40)]
    for call in calls:
        bench.joiner.started(call.key, OpenCall())
    for number in range(40):
        bench.joiner.completed(completion(task=number, slot=number, prefill_s=0.5 + number / 1000))
        assert bench.after(0.02) == {}
    for call in calls:
        bench.joiner.finished(call)
    assert bench.after(0.2) == {number: Origin(parent=call) for number, call in enumerate(calls)}
    assert not bench.joiner.waits


def test_joiner_slowly_read_stream() -> None:
    bench = Bench()
    call = bench.call(headers_at=START_TIME + 0.001, ended_at=START_TIME + 5.0)
    bench.joiner.started(call.key, OpenCall(headers_at=START_TIME + 0.001))
    bench.joiner.completed(completion(task=1))
    bench.joiner.completed(completion(task=2, started_at=START_TIME + 0.5, generated=5))
    assert bench.after(0.0) == {2: UNKNOWN}
    bench.after(3.4)
    bench.joiner.finished(call)
    bench.after(0.02)  # the call is not decided yet
    assert bench.after(0.2) == {2: UNKNOWN, 1: Origin(parent=call)}


def test_joiner_request_before_call() -> None:
    bench = Bench()
    first, later = (
        bench.call(),
        bench.call(sent_at=START_TIME + 1.52, started_at=START_TIME + 1.52, ended_at=START_TIME + 1.9),
    )
    bench.joiner.started(later.key, OpenCall())
    bench.joiner.completed(completion(task=1))
    bench.now = START_TIME + 1.95
    bench.joiner.finished(later)
    assert bench.after(1.0) == {1: UNKNOWN}
    assert first.key is not later.key


def test_joiner_without_timings() -> None:
    bench = Bench()
    call = bench.call(**UNTIMED)
    other = completion(task=2, generated=5)
    assert bench.run(completion(task=1), other, calls=(call,)) == {1: Origin(parent=call), 2: UNKNOWN}
    bench = Bench()
    two = (completion(task=1), completion(task=2, prefill_s=0.3))
    assert bench.run(*two, calls=(call,)) == {1: Origin(candidates=(call,)), 2: Origin(candidates=(call,))}


def test_joiner_embeddings_of_several_texts() -> None:
    bench = Bench()
    call = bench.call(operation="embeddings", tasks=2, output_tokens=None, **UNTIMED)
    parts = [cut_short(Outcome.OK, task=task) for task in (1, 2, 3)]
    assert bench.run(*parts[:2], calls=(call,)) == {1: Origin(parent=call), 2: Origin(parent=call)}
    bench = Bench()
    assert all(origin.parent is None for origin in bench.run(*parts, calls=(call,)).values())
    bench = Bench()
    assert bench.run(parts[0], calls=(call,)) == {1: UNKNOWN}


def test_joiner_cancelled_call() -> None:
    bench = Bench()
    call = bench.call(outcome=Outcome.CANCELLED, ended_at=START_TIME + 1.2, output_tokens=None, **UNTIMED)
    assert bench.run(cut_short(Outcome.CANCELLED, task=1), calls=(call,)) == {1: Origin(parent=call)}
    bench = Bench()
    two = [cut_short(Outcome.CANCELLED, task=task) for task in (1, 2)]
    assert bench.run(*two, calls=(call,)) == {1: Origin(candidates=(call,)), 2: Origin(candidates=(call,))}
    bench = Bench()
    assert bench.run(cut_short(Outcome.CANCELLED, task=1), completion(task=2), calls=(call,)) == {
        1: Origin(parent=call), 2: UNKNOWN,
    }  # fmt: skip


def test_joiner_request_completed_after_disconnect() -> None:
    """llama.cpp checks once a second; the request may be another client's."""
    for changes in ({}, {"headers_at": START_TIME + 0.001, "ended_at": START_TIME + 4.0}):
        call = Bench().call(**{"outcome": Outcome.CANCELLED, "ended_at": START_TIME + 1.2, **UNTIMED, **changes})
        assert Bench().run(completion(task=1), calls=(call,)) == {1: Origin(candidates=(call,))}
    early = Bench().call(outcome=Outcome.CANCELLED, ended_at=START_TIME + 4.0, **UNTIMED)
    assert Bench().run(completion(task=1), calls=(early,)) == {1: UNKNOWN}


def test_joiner_request_cancelled_before_call() -> None:
    bench = Bench()
    call = bench.call(outcome=Outcome.CANCELLED, ended_at=START_TIME + 4.0, output_tokens=None, **UNTIMED)
    assert bench.run(cut_short(Outcome.CANCELLED, task=1), calls=(call,)) == {1: UNKNOWN}


def test_joiner_failed_call_ends_after_request() -> None:
    bench = Bench()
    call = bench.call(outcome=Outcome.ERROR, http_status=500, ended_at=START_TIME + 4.0, output_tokens=None, **UNTIMED)
    assert bench.run(cut_short(Outcome.ERROR, task=1), calls=(call,)) == {1: Origin(parent=call)}


def test_joiner_embeddings_call_and_generating_request() -> None:
    bench = Bench()
    call = bench.call(operation="embeddings", output_tokens=None, **UNTIMED)
    assert bench.run(completion(task=1), calls=(call,)) == {1: UNKNOWN}


FAILED: dict[str, Any] = {"outcome": Outcome.ERROR, "error_type": "server_error", "http_status": 500}
LEFT: dict[str, Any] = {"outcome": Outcome.ERROR, "error_type": "timeout", "http_status": None}


def test_joiner_failed_call() -> None:
    bench = Bench()
    call = bench.call(output_tokens=None, **FAILED, **UNTIMED)
    full = cut_short(Outcome.CONTEXT_FULL, task=1)
    assert bench.run(full, completion(task=2), calls=(call,)) == {1: Origin(parent=call), 2: UNKNOWN}


def test_joiner_two_calls_fill_the_pool() -> None:
    bench = Bench()
    one, two = (bench.call(output_tokens=None, **FAILED, **UNTIMED) for _ in range(2))
    full = [cut_short(Outcome.CONTEXT_FULL, task=task) for task in (1, 2)]
    both = Origin(candidates=(one, two))
    assert bench.run(*full, calls=(one, two)) == {1: both, 2: both}


def test_joiner_call_timed_out() -> None:
    bench = Bench()
    call = bench.call(ended_at=START_TIME + 1.2, output_tokens=None, **LEFT, **UNTIMED)
    assert bench.run(cut_short(Outcome.CANCELLED, task=1), calls=(call,)) == {1: Origin(parent=call)}
    bench = Bench()
    assert bench.run(cut_short(Outcome.CONTEXT_FULL, task=1), calls=(call,)) == {1: UNKNOWN}


PROXY = ServerInfo("proxy.example", 80)


def test_joiner_learns_proxy_address_from_timings() -> None:
    bench = Bench()
    origins = []
    for number in range(4):
        call = bench.call(server=PROXY, prefill_s=0.5 + number / 1000)
        bench.now = START_TIME + 1.51
        found = bench.run(completion(task=number, prefill_s=0.5 + number / 1000), calls=(call,))[number]
        origins.append((found.parent is call, found.candidates == (call,)))
    assert origins == [(False, True), (False, True), (True, False), (True, False)]


def test_joiner_address_of_an_unwatched_server() -> None:
    """A call without a fitting request went to another server: its address is not learned."""
    bench = Bench()
    bench.watch()
    bench.run(calls=(bench.call(server=PROXY, prefill_s=0.7),))
    for number in range(1, 5):
        call = bench.call(server=PROXY, prefill_s=0.5 + number / 1000)
        bench.now = START_TIME + 1.51
        assert bench.run(completion(task=number, prefill_s=0.5 + number / 1000), calls=(call,))[number] == UNKNOWN


def test_joiner_reports_each_call_once() -> None:
    bench = Bench()
    decided: list[tuple[object, bool]] = []
    bench.joiner = Joiner(lambda: bench.now, decided=lambda call, joined: decided.append((call.key, joined)))
    one, two = bench.call(), bench.call(prefill_s=0.9)
    bench.run(completion(task=1), calls=(one, two))
    assert sorted(decided, key=lambda pair: pair[1]) == [(two.key, False), (one.key, True)]


def test_joiner_decides_all_at_end() -> None:
    bench = Bench()
    call = bench.call()
    bench.joiner.started(call.key, OpenCall())
    bench.joiner.completed(completion(task=1))
    bench.joiner.finished(call)
    assert [origin for _, origin in bench.joiner.due(all_of_them=True)] == [Origin(parent=call)]
    assert not bench.joiner.waits


# -- a machine, or a log, that is late ---------------------------------------------------------------------------------


def test_joiner_waits_longer_where_the_observer_is_late() -> None:
    bench = Bench()
    call = bench.call(ended_at=START_TIME + 4.0)
    bench.joiner.started(call.key, OpenCall())
    bench.joiner.late(0.3)  # of the observer's thread; the client's waits longer
    bench.joiner.completed(completion(task=1))
    assert bench.after(2.5) == {}
    bench.joiner.finished(call)
    assert bench.after(0.5) == {1: Origin(parent=call)}


def test_joiner_waits_for_late_log() -> None:
    """The requests of this server arrive two seconds after their end."""
    bench = Bench()
    bench.now = START_TIME + 3.5
    bench.joiner.completed(completion(task=0, generated=1))
    list(bench.joiner.due())
    calls = [bench.call(), bench.call(**UNTIMED)]
    for call in calls:
        bench.joiner.finished(call)
    bench.after(1.5)
    bench.joiner.completed(completion(task=1))
    bench.joiner.completed(completion(task=2, prefill_s=0.7))  # fits the call without timings, as the other one does
    found = bench.after(1.0)
    assert found[1] == Origin(parent=calls[0])
    assert bench.after(3.0)[2].candidates in ((calls[1],), ())


def test_joiner_elimination() -> None:
    """Only one request fits the first call; which leaves the other one for the second."""
    for swapped in (False, True):
        bench = Bench()
        one, two = bench.call(slot=0), bench.call()
        calls = (two, one) if swapped else (one, two)
        assert bench.run(completion(task=1, slot=0), completion(task=2, slot=1), calls=calls) == {
            1: Origin(parent=one), 2: Origin(parent=two),
        }  # fmt: skip


def test_joiner_elimination_needs_all_requests() -> None:
    """Two calls that one request fits: the other one's request is missing, so that nothing is certain."""
    bench = Bench()
    one, two, three = bench.call(slot=0), bench.call(slot=0), bench.call()
    found = bench.run(completion(task=1, slot=0), completion(task=2, slot=1), calls=(one, two, three))
    assert [found[task].parent for task in (1, 2)] == [None, None]
    assert found[2].candidates == (three,)


def test_joiner_prefill_time_with_microseconds() -> None:
    """The decode time shows that the log gives microseconds: a prefill time of 4,120 is exact, not rounded."""
    for decode_s, joined in ((0.010123, False), (0.01012, True)):
        bench = Bench()
        call = bench.call(prefill_s=0.004124, decode_s=decode_s)
        request = completion(task=1, prefill_s=0.00412, decode_s=decode_s)
        assert (bench.run(request, calls=(call,))[1].parent is call) is joined, decode_s


def test_joiner_equal_calls_of_which_one_request_is_logged_late() -> None:
    """Both calls fit the first request; the second request, which only one of them fits, decides."""
    bench = Bench()
    bench.now = START_TIME + 3.1
    first, second = bench.call(), bench.call(ended_at=START_TIME + 3.0)
    for call in (first, second):
        bench.joiner.started(call.key, OpenCall())
    bench.joiner.completed(completion(task=1))
    for call in (first, second):
        bench.joiner.finished(call)
    bench.after(0.5)
    later = {name: getattr(completion(), name) + 1.45 for name in ("started_at", "ended_at", "first_token_at")}
    bench.joiner.completed(completion(task=2, **later))
    assert bench.after(0.4) == {1: Origin(parent=first), 2: Origin(parent=second)}


def reranking(task: int, tasks: int, tokens: int) -> GroupedCall:
    return GroupedCall(
        server=HERE, slot=None, task=task, started_at=START_TIME, ended_at=START_TIME + 1.5, outcome=Outcome.OK,
        context_tokens=tokens, truncated=False, task_count=tasks,
    )  # fmt: skip


def reranking_calls(bench: Bench) -> tuple[ClientCall, ...]:
    """Two calls at once, of three documents each."""
    bench.watch()
    fields: dict[str, Any] = dict.fromkeys(
        ("output_tokens", "cached_tokens", "prompt_computed", "prefill_s", "decode_s")
    )
    return tuple(bench.call(operation="rerank", tasks=3, input_tokens=tokens, **fields) for tokens in (60, 50))


def test_joiner_reranking_calls_by_tokens() -> None:
    bench = Bench()
    calls = reranking_calls(bench)
    found = bench.run(reranking(1, 3, 50), reranking(5, 3, 60), calls=calls)
    assert [found[task].parent for task in (5, 1)] == [*calls]


def test_joiner_reranking_calls_counted_as_one() -> None:
    bench = Bench()
    assert bench.run(reranking(1, 6, 110), calls=reranking_calls(bench))[1].parent is None
