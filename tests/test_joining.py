"""Which request was which call: only what cannot be otherwise."""

from __future__ import annotations

import dataclasses
from typing import Any

from llamatel.records import ClientCall, Completion, Outcome, ServerInfo
from llamatel.tracing.joining import Joiner, Origin
from tests.samples import BEGAN, completion, cut_short

HERE = ServerInfo("localhost", 8090)


class OpenCall:
    """A call that has not ended."""

    def __init__(self, started_at: float = BEGAN - 0.3, headers_at: float | None = None) -> None:
        self.server = HERE
        self.started_at = started_at
        self.headers_at = headers_at


class Bench:
    """A joiner, its clock, and what it gave back."""

    def __init__(self) -> None:
        self.now = BEGAN + 1.51
        self.joiner = Joiner(lambda: self.now)
        self.written: dict[int | None, Origin] = {}

    def after(self, seconds: float) -> dict[int | None, Origin]:
        """What was written so far, once so much time has passed; by task."""
        self.now += seconds
        for request, origin in self.joiner.due():
            self.written[request.task] = origin
        return self.written

    def call(self, **changes: Any) -> ClientCall:
        """A call that ``samples.completion`` may have been, and that has ended."""
        call = ClientCall(
            key=object(), span=None, server=HERE, operation="chat", started_at=BEGAN - 0.3, sent_at=BEGAN - 0.29,
            ended_at=BEGAN + 1.5, outcome=Outcome.OK, input_tokens=40, output_tokens=21, cached_tokens=10,
            prompt_computed=30, prefill_s=0.500004, decode_s=1.0,
        )  # fmt: skip
        return dataclasses.replace(call, **changes)

    def run(self, *requests: Completion, calls: tuple[ClientCall, ...]) -> dict[int | None, Origin]:
        """All of it begins and ends together."""
        for call in calls:
            self.joiner.began(call.key, OpenCall())
        for request in requests:
            self.joiner.completed(request)
        for call in calls:
            self.joiner.ended(call)
        return self.after(3.0)


NOBODY = Origin()
UNTIMED = {"prefill_s": None, "decode_s": None, "prompt_computed": None}


def test_what_agrees_in_all_figures_is_joined() -> None:
    bench = Bench()
    call = bench.call()
    assert bench.run(completion(task=1), calls=(call,)) == {1: Origin(parent=call)}


def test_without_a_call_nothing_waits() -> None:
    bench = Bench()
    bench.joiner.completed(completion(task=1))
    assert bench.after(0.0) == {1: NOBODY}
    assert not bench.joiner.waits


def test_one_figure_that_differs_is_enough_to_be_anothers() -> None:
    for changes in (
        {"prefill_s": 0.50001}, {"decode_s": 1.00001}, {"generated": 22}, {"prompt_computed": 29}, {"prompt_cached": 9},
        {"ended_at": BEGAN + 2.0}, {"started_at": BEGAN - 0.6}, {"server": ServerInfo("127.0.0.1", 8091)},
        {"server": ServerInfo("10.0.0.1", 8090)}, {"is_child": True},
    ):  # fmt: skip
        bench = Bench()
        assert bench.run(completion(task=1, **changes), calls=(bench.call(),)) == {1: NOBODY}, changes


def test_the_slot_tells_twins_apart_where_the_answer_names_it() -> None:
    bench = Bench()
    one, two = bench.call(slot=0), bench.call(slot=1)
    found = bench.run(completion(task=1, slot=1), completion(task=2, slot=0), calls=(one, two))
    assert found == {1: Origin(parent=two), 2: Origin(parent=one)}


def test_twins_are_linked_and_not_joined() -> None:
    bench = Bench()
    one, two = bench.call(), bench.call()
    found = bench.run(completion(task=1), completion(task=2, slot=3), calls=(one, two))
    assert found == {1: Origin(candidates=(one, two)), 2: Origin(candidates=(one, two))}


def test_a_strangers_twin_makes_it_a_guess() -> None:
    bench = Bench()
    call = bench.call()
    found = bench.run(completion(task=1), completion(task=2, slot=3), calls=(call,))
    assert found == {1: Origin(candidates=(call,)), 2: Origin(candidates=(call,))}


def test_a_stranger_is_nobodys_and_waits_a_second_at_most() -> None:
    bench = Bench()
    bench.joiner.began(1, OpenCall())
    bench.joiner.completed(completion(task=1))
    assert bench.after(0.9) == {}
    assert bench.after(0.2) == {1: NOBODY}


def test_once_no_call_is_under_way_a_stranger_waits_no_longer() -> None:
    bench = Bench()
    bench.joiner.began(1, OpenCall())
    bench.joiner.completed(completion(task=1))
    assert bench.after(0.0) == {}
    bench.joiner.gone(1)
    assert bench.after(0.11) == {1: NOBODY}


def test_a_call_waits_for_its_request_beside_many_others() -> None:
    bench = Bench()
    calls = [bench.call(slot=number, prefill_s=0.5 + number / 1000) for number in range(40)]
    for call in calls:
        bench.joiner.began(call.key, OpenCall())
    for number in range(40):
        bench.joiner.completed(completion(task=number, slot=number, prefill_s=0.5 + number / 1000))
        assert bench.after(0.02) == {}
    for call in calls:
        bench.joiner.ended(call)
    assert bench.after(0.2) == {number: Origin(parent=call) for number, call in enumerate(calls)}
    assert not bench.joiner.waits


def test_a_stream_that_is_read_slowly_is_waited_for_and_strangers_meanwhile_are_not() -> None:
    bench = Bench()
    call = bench.call(headers_at=BEGAN + 0.001, ended_at=BEGAN + 5.0)
    bench.joiner.began(call.key, OpenCall(headers_at=BEGAN + 0.001))
    bench.joiner.completed(completion(task=1))
    bench.joiner.completed(completion(task=2, started_at=BEGAN + 0.5, generated=5))
    assert bench.after(0.0) == {2: NOBODY}
    bench.after(3.4)
    bench.joiner.ended(call)
    assert bench.after(0.2) == {2: NOBODY, 1: Origin(parent=call)}


def test_a_request_that_was_there_before_the_call_was_sent_is_not_it() -> None:
    bench = Bench()
    first, later = bench.call(), bench.call(sent_at=BEGAN + 1.52, started_at=BEGAN + 1.52, ended_at=BEGAN + 1.9)
    bench.joiner.began(later.key, OpenCall())
    bench.joiner.completed(completion(task=1))
    bench.now = BEGAN + 1.95
    bench.joiner.ended(later)
    assert bench.after(1.0) == {1: NOBODY}
    assert first.key is not later.key


def test_without_timings_the_only_one_that_fits_is_it() -> None:
    bench = Bench()
    call = bench.call(**UNTIMED)
    other = completion(task=2, generated=5)
    assert bench.run(completion(task=1), other, calls=(call,)) == {1: Origin(parent=call), 2: NOBODY}
    bench = Bench()
    two = (completion(task=1), completion(task=2, prefill_s=0.3))
    assert bench.run(*two, calls=(call,)) == {1: Origin(candidates=(call,)), 2: Origin(candidates=(call,))}


def test_an_embedding_of_several_texts_is_all_of_them_or_none() -> None:
    bench = Bench()
    call = bench.call(operation="embeddings", tasks=2, output_tokens=None, **UNTIMED)
    parts = [cut_short(Outcome.OK, task=task) for task in (1, 2, 3)]
    assert bench.run(*parts[:2], calls=(call,)) == {1: Origin(parent=call), 2: Origin(parent=call)}
    bench = Bench()
    assert all(origin.parent is None for origin in bench.run(*parts, calls=(call,)).values())
    bench = Bench()
    assert bench.run(parts[0], calls=(call,)) == {1: NOBODY}


def test_a_cancelled_call_is_linked_if_times_leave_one() -> None:
    bench = Bench()
    call = bench.call(outcome=Outcome.CANCELLED, ended_at=BEGAN + 1.2, output_tokens=None, **UNTIMED)
    assert bench.run(cut_short(Outcome.CANCELLED, task=1), calls=(call,)) == {1: Origin(candidates=(call,))}
    bench = Bench()
    two = [cut_short(Outcome.CANCELLED, task=task) for task in (1, 2)]
    assert bench.run(*two, calls=(call,)) == {1: NOBODY, 2: NOBODY}
    bench = Bench()
    assert bench.run(completion(task=1), calls=(call,)) == {1: NOBODY}


def test_a_request_that_was_cancelled_long_before_the_call_is_anothers() -> None:
    bench = Bench()
    call = bench.call(outcome=Outcome.CANCELLED, ended_at=BEGAN + 4.0, output_tokens=None, **UNTIMED)
    assert bench.run(cut_short(Outcome.CANCELLED, task=1), calls=(call,)) == {1: NOBODY}


def test_a_failed_call_may_end_long_after_its_request() -> None:
    bench = Bench()
    call = bench.call(outcome=Outcome.ERROR, ended_at=BEGAN + 4.0, output_tokens=None, **UNTIMED)
    assert bench.run(cut_short(Outcome.ERROR, task=1), calls=(call,)) == {1: Origin(candidates=(call,))}


def test_a_call_for_vectors_is_no_request_that_generated() -> None:
    bench = Bench()
    call = bench.call(operation="embeddings", output_tokens=None, **UNTIMED)
    assert bench.run(completion(task=1), calls=(call,)) == {1: NOBODY}


def test_a_failed_call_is_linked_to_what_failed() -> None:
    bench = Bench()
    call = bench.call(outcome=Outcome.ERROR, error_type="server_error", output_tokens=None, **UNTIMED)
    full = cut_short(Outcome.CONTEXT_FULL, task=1)
    assert bench.run(full, completion(task=2), calls=(call,)) == {1: Origin(candidates=(call,)), 2: NOBODY}


def test_at_the_end_all_is_decided_with_what_is_there() -> None:
    bench = Bench()
    call = bench.call()
    bench.joiner.began(call.key, OpenCall())
    bench.joiner.completed(completion(task=1))
    bench.joiner.ended(call)
    assert [origin for _, origin in bench.joiner.due(all_of_them=True)] == [Origin(parent=call)]
    assert not bench.joiner.waits
