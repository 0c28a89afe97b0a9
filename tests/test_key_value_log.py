"""The key=value log of llama.cpp's 2024 code, still written by forks (ik_llama.cpp), and such a server's responses.

``golden/ik_llama.cpp`` was recorded from ik_llama.cpp (commit 8337e4cd, 15 August 2026, built for a CPU without its
flash attention kernels), with ``-c 4096 -np 2 --jinja --metrics`` and the scenario ``few``. The other lines are written
after ``server_log`` and its callers there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llamatel.llama.http.server_client import parse_counters
from llamatel.llama.http.slots_endpoint import parse_slots
from llamatel.llama.log.log_source import Backlog, Batch
from llamatel.llama.log.logged_server import LoggedServer
from llamatel.llama.watch.kv_state import LoadedModel, Polled, kv_cache_state
from llamatel.records import Completion, Outcome
from tests.golden.reading import read_streams

STAMP = 1_790_000_000
LEVELS = {"slot released": "INFO", "task error": "ERR"}


def values(**extra: object) -> dict[str, object]:
    return {"tid": "139999", "timestamp": STAMP, **extra}


def text(function: str, message: str, **extra: object) -> str:
    pairs = "".join(f" {key}={json.dumps(value)}" for key, value in values(**extra).items())
    return f"{LEVELS.get(message, 'INFO'):>4} [{function:>24}] {message} |{pairs}"


def record(function: str, message: str, **extra: object) -> str:
    level = LEVELS.get(message, "INFO")
    return json.dumps({**values(), "level": level, "function": function, "line": 2017, "msg": message, **extra})


def prompt(slot: int, task: int) -> dict[str, Any]:
    return {
        "function": "print_timings",
        "message": "prompt eval time     =      12.34 ms /    13 tokens (    0.95 ms per token,  1053.48 t/s)",
        "id_slot": slot, "id_task": task, "t_prompt_processing": 12.34, "n_prompt_tokens_processed": 13,
    }  # fmt: skip


def decode(slot: int, task: int) -> dict[str, Any]:
    return {
        "function": "print_timings",
        "message": "generation eval time =     123.40 ms /    20 runs   (    6.17 ms per token,   162.07 t/s)",
        "id_slot": slot, "id_task": task, "n_decoded": 20,
    }  # fmt: skip


def log(form: Any, *, inline: bool) -> list[str]:
    """A server's start and four requests; timings in the format of 2024 or of 2026 builds."""
    lines = [
        form("main", "build info", build=4123, commit="8337e4cd"),
        "llama_model_loader: loaded meta data with 30 key-value pairs and 9 tensors from m/tiny.gguf (version GGUF V3)",
        form("init", "initializing slots", n_slots=2),
        form("init", "new slot", id_slot=0, n_ctx_slot=4096),
        form("main", "model loaded"),
        form("main", "HTTP server listening", hostname="127.0.0.1", port="8081", n_threads_http="5"),
    ]
    for task in (0, 22, 40):
        lines.append(form("launch_slot_with_task", "slot is processing task", id_slot=task % 4 // 2, id_task=task))
        slot = task % 4 // 2
        if task == 40:
            lines.append(form("send_error", "task error", id_multi=-1, id_task=task, error="Failed to parse grammar"))
        elif inline:
            lines += [form(**prompt(slot, task)), form(**decode(slot, task))]
        else:
            lines += [
                f"slot print_timing: id {slot:2d} | task {task} | ",
                prompt(slot, task)["message"].replace("time     =", "time ="),
                decode(slot, task)["message"].replace("generation eval time =", "       eval time ="),
                "      total time =     135.74 ms /    33 tokens",
            ]
        past = 0 if task == 40 else 32
        lines.append(
            form("release_slots", "slot released", id_slot=slot, id_task=task, n_ctx=8192, n_past=past,
                 n_system_tokens=0, n_cache_tokens=past, truncated=False)
        )  # fmt: skip
        lines.append(form("slots_idle", "all slots are idle"))
    lines.append(form("launch_slot_with_task", "slot is processing task", id_slot=0, id_task=60))
    return lines


@pytest.mark.parametrize("form", [text, record])
@pytest.mark.parametrize("inline", [True, False], ids=["2024", "2026"])
@pytest.mark.parametrize("backlog", [True, False])
def test_key_value_log_requests(form: Any, inline: bool, backlog: bool) -> None:
    lines = log(form, inline=inline)
    found = read_streams([Backlog(lines, STAMP + 60.0) if backlog else Batch(lines, STAMP + 1.0)])
    assert [(each.slot, each.task, each.outcome) for each in found] == [
        (0, 0, Outcome.OK), (1, 22, Outcome.OK), (0, 40, Outcome.ERROR),
    ]  # fmt: skip
    first = found[0]
    assert isinstance(first, Completion)
    assert (first.prompt_computed, first.prompt_cached, first.generated, first.context_tokens) == (13, 0, 20, 32)
    assert first.prefill_s == pytest.approx(0.01234)
    assert first.decode_s == pytest.approx(0.1234)
    assert found[2].error == "Failed to parse grammar"
    assert (first.server.address, first.server.port, first.server.model) == ("127.0.0.1", 8081, "tiny.gguf")
    assert first.server.build == "b4123-8337e4cd"
    assert STAMP <= first.ended_at <= STAMP + 1


def test_key_value_log_in_a_wrapper() -> None:
    lines = [json.dumps({"log": f"{line}\n", "stream": "stdout", "time": "2026-09-21T14:13:20.5Z"}) for line in
             log(text, inline=True)]  # fmt: skip
    assert len(read_streams([Batch(lines, STAMP + 1.0)])) == 3


def test_key_value_log_quoted_text_is_not_a_field() -> None:
    """A client's text in a value is not another field."""
    line = text("launch_slot_with_task", "slot is processing task", note="x id_slot=5 id_task=7", id_slot=0, id_task=1)
    found = read_streams([Batch([line, text("release_slots", "slot released", id_slot=0, id_task=1, n_past=3,
                                            truncated=False)], STAMP + 1.0)])  # fmt: skip
    assert [(each.slot, each.task) for each in found] == [(0, 1)]


def test_parse_slots_with_a_state_number() -> None:
    """ik_llama.cpp: ``state`` where llama.cpp has ``is_processing``."""
    slots = parse_slots(
        [
            {"id": 0, "id_task": 3, "state": 1, "n_ctx": 4096, "next_token": {"n_decoded": 7}},
            {"id": 1, "id_task": -1, "state": 0, "n_ctx": 4096},
            {"id": 2, "state": "idle"},
        ]
    )
    assert slots is not None
    assert [(slot.id, slot.busy, slot.context_size, slot.decoded) for slot in slots] == [
        (0, True, 4096, 7), (1, False, 4096, None),
    ]  # fmt: skip


def test_parse_counters_kv_cache_gauges() -> None:
    counters = parse_counters(b"llamacpp:kv_cache_usage_ratio 0.25\nllamacpp:kv_cache_tokens 1024\n")
    assert counters == {"kv_cache_usage_ratio": 0.25, "kv_cache_tokens": 1024}


def recorded() -> tuple[list[str], Any]:
    folder = Path(__file__).parent / "golden" / "ik_llama.cpp"
    return (folder / "requests.log").read_text().split("\n"), json.loads((folder / "responses.json").read_text())


@pytest.mark.parametrize("backlog", [True, False])
def test_key_value_log_recorded(backlog: bool) -> None:
    """Each request as in its client's response; another thread writes the timings, often after the release."""
    lines, truth = recorded()
    found = read_streams([Backlog(lines, STAMP * 2)] if backlog else [Batch((line,), STAMP * 2) for line in lines])
    expected = [each["timings"] for each in truth["requests"] if each["outcome"] == "ok"]
    timed = [each for each in found if each.outcome is Outcome.OK]
    assert sorted((each.prompt_computed, each.generated) for each in timed) == sorted(
        (each["prompt_n"], each["predicted_n"]) for each in expected
    )
    by_tokens = {(each["prompt_n"], each["predicted_n"]): each for each in expected}
    for each in timed:
        response = by_tokens[each.prompt_computed, each.generated]
        assert (each.prefill_s or 0) * 1e3 == pytest.approx(response["prompt_ms"], abs=0.006)
        assert (each.decode_s or 0) * 1e3 == pytest.approx(response["predicted_ms"], abs=0.006)
        assert each.queue_s is None  # timestamps of whole seconds
        assert (each.server.address, each.server.port, each.server.model) == ("127.0.0.1", 18979, "tiny.gguf")
    assert [each.outcome for each in found if each not in timed] == [Outcome.CANCELLED]
    assert sum(each.generated or 0 for each in found) == truth["metrics"]["tokens_predicted_total"]


def test_key_value_log_timings_after_the_next_launch() -> None:
    """The other thread may be late; without timings the request ends when they can no longer follow."""
    start = [text("launch_slot_with_task", "slot is processing task", id_slot=0, id_task=task) for task in (1, 9)]
    release = [
        text("release_slots", "slot released", id_slot=0, id_task=task, n_past=32, truncated=False) for task in (1, 9)
    ]
    late = [
        "slot print_timing: id  0 | task 1 | ",
        "prompt eval time =      12.34 ms /    13 tokens (    0.95 ms per token,  1053.48 tokens per second)",
        "       eval time =     123.40 ms /    20 tokens (    6.17 ms per token,   162.07 tokens per second)",
        "      total time =     135.74 ms /    33 tokens",
    ]
    found = read_streams([Batch([start[0], release[0], start[1], *late, release[1]], STAMP + 1.0)])
    assert [(each.task, each.generated, each.outcome) for each in found] == [(1, 20, Outcome.OK), (9, None, Outcome.OK)]


def test_kv_cache_tokens_by_gauge() -> None:
    """ik_llama.cpp's slots do not report their tokens, its gauge those of all slots."""
    gauges = {"kv_cache_usage_ratio": 0.25, "kv_cache_tokens": 1024.0}
    for state, expected in (((0, 0), (0, 1024)), ((1, 1), (1024, 0)), ((0, 1), (None, None))):
        slots = parse_slots([{"id": number, "id_task": 5, "state": each} for number, each in enumerate(state)])
        cache = kv_cache_state(LoggedServer(), Polled(slots, None, gauges), LoadedModel())
        assert (cache.capacity, cache.active, cache.cached) == (4096, *expected)
