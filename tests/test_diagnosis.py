"""The diagnosis of ``llamatel doctor``: from records and samples, with figures counted independently."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llamatel.flags.server_settings import ServerSettings
from llamatel.gguf import parse_gguf_header
from llamatel.models import tiny_model
from llamatel.plan import cache_plan, shape_from_gguf
from llamatel.records import Completion, Outcome, RecomputeCause
from llamatel.snapshots import LogCounts
from llamatel.ui.diagnosis import Diagnosis, Observation, Sample, diagnose
from llamatel.ui.view.diagnosis_page import diagnosis_text
from llamatel.ui.view.glyphs import ASCII
from tests.samples import completion

SHAPE = shape_from_gguf(parse_gguf_header(tiny_model(), read_tensors=True))


def timed(at: float, context: int = 1000, tpot: float = 0.01, **changes: Any) -> Completion:
    """A request of 11 generated tokens with a prefill of 2 s and a queue of 1 s."""
    values = {
        "started_at": at, "first_token_at": at + 2.0, "ended_at": at + 2.0 + 10 * tpot, "queue_s": 1.0,
        "prefill_s": 2.0,
        "decode_s": 10 * tpot, "generated": 11, "prompt_computed": 100, "prompt_cached": 300, "context_tokens": context,
    }  # fmt: skip
    return completion(**{**values, **changes})


def observed(*completions: Completion, **changes: Any) -> Diagnosis:
    return diagnose(Observation(**{"source": "server.log", "seconds": 60.0, "completions": completions, **changes}))


def test_diagnosis_time_use() -> None:
    again = timed(10.0, prompt_recomputed=50, recompute_s=0.5, recompute_cause=RecomputeCause.SLOT_TAKEN)
    use = observed(timed(0.0), again).time_use
    assert use is not None
    assert (use.queue_s, use.prefill_s, use.recompute_s) == pytest.approx((2.0, 3.5, 0.5))
    assert use.decode_s == pytest.approx(0.2)
    assert use.total_s == pytest.approx(6.2)


def test_diagnosis_losses_by_cause() -> None:
    changes: list[dict[str, Any]] = [
        {"prompt_recomputed": 50, "recompute_s": 0.5, "recompute_cause": RecomputeCause.SLOT_TAKEN},
        {"prompt_recomputed": 70, "recompute_s": 0.7, "recompute_cause": RecomputeCause.SLOT_TAKEN},
        {"prompt_recomputed": 10, "recompute_s": 2.0, "recompute_cause": RecomputeCause.NO_CHECKPOINT},
        {"prompt_recomputed": 0},
    ]
    found = observed(*(timed(10.0 * index, **each) for index, each in enumerate(changes)))
    assert [(loss.cause, loss.requests, loss.tokens) for loss in found.losses] == [
        ("no_checkpoint", 1, 10),
        ("slot_taken", 2, 120),
    ]
    assert found.losses[1].seconds == pytest.approx(1.2)
    assert (found.prompt_tokens, found.reused_tokens) == (1600, 1200)


def test_diagnosis_decode_line_slope() -> None:
    contexts = [1000 * number for number in range(1, 13)]
    requests = [timed(10.0 * n, context + 5, 0.002 + 1e-6 * context) for n, context in enumerate(contexts)]
    found = observed(*requests, decode_ceiling=lambda _: 1000.0)
    [line] = found.speed.decode
    assert (line.busy_slots, line.requests) == (1, 12)
    assert line.slope_s == pytest.approx(1e-6)
    assert line.base_s == pytest.approx(0.002)
    assert line.spread == pytest.approx(0.0, abs=1e-9)
    last = line.points[-1]
    assert last.tokens_per_second == pytest.approx(1 / 0.014)
    assert last.ceiling_share == pytest.approx(1 / 14)


def test_diagnosis_decode_line_needs_enough_requests() -> None:
    found = observed(timed(0.0), timed(10.0))
    assert found.speed.decode == ()
    assert any("decode rate by context" in sentence for sentence in found.undetermined)


def test_diagnosis_slots_limit_and_cost() -> None:
    busy = Sample(busy=2, slots=2, waiting=3, headroom=0.5)
    settings = ServerSettings(ctx_size=2048, parallel=2)
    found = observed(timed(0.0), samples=(busy, busy), settings=settings, shape=SHAPE)
    assert found.concurrency_limit[0] == "slots"
    [change] = found.changes
    assert change.change == "-np 4"
    doubled = cache_plan(SHAPE, ServerSettings(ctx_size=4096, parallel=4)).total_bytes
    assert change.cost_bytes == doubled - cache_plan(SHAPE, settings).total_bytes


def test_diagnosis_full_pool() -> None:
    found = observed(timed(0.0, outcome=Outcome.CONTEXT_FULL), settings=ServerSettings(ctx_size=4096), shape=SHAPE)
    assert found.concurrency_limit == ("kv_pool", "1 request failed because the KV pool was full")
    assert found.changes[0].change == "-c 8192"


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        ({"on_cpu": True}, "cpu"),
        ({"samples": (Sample(1, 1, 0, 1.0, ("sw_power_cap",)),) * 3}, "throttling"),
        ({}, "unknown"),
    ],
)
def test_diagnosis_decode_limit(changes: dict[str, Any], limit: str) -> None:
    assert observed(timed(0.0), **changes).decode_limit[0] == limit


@pytest.mark.parametrize("cause", list(RecomputeCause))
def test_diagnosis_change_for_each_cause(cause: RecomputeCause) -> None:
    lost = timed(0.0, queue_s=0.0, prompt_recomputed=50, recompute_s=0.5, recompute_cause=cause)
    found = observed(lost, settings=ServerSettings(ctx_size=4096), shape=SHAPE)
    without = cause is RecomputeCause.UNKNOWN
    assert [change.at_most_s for change in found.changes] == ([] if without else [0.5])


def test_diagnosis_slots_taken_without_host_memory() -> None:
    lost = timed(0.0, queue_s=0.0, prompt_recomputed=50, recompute_s=0.5, recompute_cause=RecomputeCause.SLOT_TAKEN)
    [change] = observed(lost, settings=ServerSettings(ctx_size=4096, cache_ram_mib=0), shape=SHAPE).changes
    assert (change.change, change.at_most_s, change.cost_bytes) == ("--cache-ram 8192", 0.5, None)


@pytest.mark.parametrize(("cached", "flags"), [(0, "-np 8"), (37, "-np 8 --slot-prompt-similarity 0.5")])
def test_diagnosis_slots_taken_by_conversations_that_start_the_same(cached: int, flags: str) -> None:
    """llama.cpp selects a slot with a similar prompt before an unused one: more slots alone do not help."""
    lost = timed(
        0.0, queue_s=0.0, prompt_cached=cached, prompt_recomputed=50, recompute_s=0.5,
        recompute_cause=RecomputeCause.SLOT_TAKEN, prompt_computed=63,
    )  # fmt: skip
    [change] = observed(lost, shape=SHAPE).changes
    assert change.change == flags
    [change] = observed(lost, slots=2).changes
    assert change.change == flags.replace("8", "4")
    [change] = observed(lost, settings=ServerSettings(cache_ram_mib=0), shape=SHAPE).changes
    assert change.change == "--cache-ram 8192"
    assert f"({flags})" in change.reason


def test_diagnosis_savings_are_the_last_hours() -> None:
    lost: dict[str, Any] = {
        "prompt_recomputed": 50, "recompute_s": 0.5, "recompute_cause": RecomputeCause.CACHE_PROMPT_OFF,
    }  # fmt: skip
    found = observed(*(timed(1700.0 * hour, queue_s=0.0, **lost) for hour in range(5)), seconds=7200.0)
    assert found.losses[0].seconds == 2.5
    assert [change.at_most_s for change in found.changes] == [1.5]
    assert "at most 1.50 s of the last hour's time" in " ".join(diagnosis_text(found).plain.split())


def test_diagnosis_unknown_reuse() -> None:
    found = observed(timed(0.0), timed(10.0, prompt_reusable=300, prompt_recomputed=0))
    assert any("the prompts of 1 of 2 requests had been cached" in sentence for sentence in found.undetermined)


def test_diagnosis_drafting() -> None:
    counters = {
        "spec_decode_num_drafts_total": 20.0,
        'spec_decode_num_accepted_tokens_per_pos_total{position="1"}': 5.0,
        'spec_decode_num_accepted_tokens_per_pos_total{position="0"}': 15.0,
    }
    drafted = [timed(10.0 * n, tpot=0.005, draft_generated=20, draft_accepted=5) for n in range(3)]
    found = observed(*drafted, counters=counters)
    assert found.drafting is not None
    assert (found.drafting.acceptance, found.drafting.tokens_per_step) == (0.25, 2.0)
    assert (found.drafting.by_position, found.drafting.speedup) == ((0.75, 0.25), None)
    assert "whether it pays: unknown" in diagnosis_text(found).plain
    assert "compare with 200 tok/s" in " ".join(diagnosis_text(found).plain.split())
    faster = observed(*drafted, counters=counters, decode_ceiling=lambda _: 100.0)
    assert "it pays: 2.00 times what the memory bandwidth allows" in " ".join(diagnosis_text(faster).plain.split())
    found = observed(*drafted, *(timed(100.0 + 10 * n, tpot=0.01) for n in range(3)), counters=counters)
    assert found.drafting is not None
    assert found.drafting.speedup == pytest.approx(2.0)
    assert "it pays: 2.00 times" in diagnosis_text(found).plain
    assert "accepted by position in the draft: 1: 75%, 2: 25%" in " ".join(diagnosis_text(found).plain.split())


def test_diagnosis_page_and_json() -> None:
    lost = timed(0.0, prompt_recomputed=50, recompute_s=0.5, recompute_cause=RecomputeCause.SLOT_TAKEN)
    found = observed(lost, *(timed(10.0 * n, 1000 * n) for n in range(1, 9)), server="127.0.0.1:8080", model="m\x1b[2J")
    text = diagnosis_text(found, ASCII).plain
    assert text.isascii()
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80
    for words in ("where the time went", "prefill, computed again", "slot taken", "change 1", "-np 8", "unknown"):
        assert words in text
    json.dumps(found.as_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("log", "sentence"),
    [
        (None, "requests, and with them where the time went: there is no request log (--log FILE)"),
        (LogCounts(), "requests: none in 0 lines of the log"),
        (LogCounts({"other": 1200}), "requests: none of the log's 1,200 lines is from llama.cpp"),
        (LogCounts({"other": 20, "server": 100}), "requests: none in 120 lines of the log"),
    ],
)
def test_diagnosis_without_requests(log: LogCounts | None, sentence: str) -> None:
    found = observed(log=log)
    assert found.time_use is None
    assert found.undetermined[0] == sentence
    assert "none" in diagnosis_text(found).plain
