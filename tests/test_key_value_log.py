"""The key=value log format of llama.cpp's 2024 code, still used by forks (ik_llama.cpp), and such a server's responses.

The lines are written after ``server_log`` and its callers in ik_llama.cpp (examples/server, August 2026); not recorded.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from llamatel.llama.http.server_client import parse_counters
from llamatel.llama.http.slots_endpoint import parse_slots
from llamatel.llama.log.log_source import Backlog, Batch
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
