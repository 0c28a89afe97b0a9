"""KV cache state from recorded logs, flags and slots; pure functions, no server."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamatel.flags.parse import given_flags, parse_server_flags
from llamatel.llama.http.slots_endpoint import DecodeRate, parse_slots
from llamatel.llama.log.logged_server import LoggedServer, learn
from llamatel.llama.log.reader import LogReader
from llamatel.llama.watch.kv_state import LoadedModel, Polled, kv_cache_state, pool_capacity
from llamatel.llama.watch.local_process import ProcessUsage
from llamatel.plan import cache_plan, shape_from_metadata
from llamatel.records import ServerInfo
from llamatel.snapshots import SlotState
from llamatel.ui.view import kv_cache_line
from llamatel_collectors.kv_cache import KvCacheCollector
from llamatel_collectors.model import ModelCollector
from llamatel_collectors.prompt_cache import PromptCacheCollector
from llamatel_collectors.slots import SlotsCollector
from tests.samples import known_snapshot, samples_of, server_snapshot, snapshot

LOGS = Path(__file__).parent / "golden" / "logs"
MIB = 1 << 20
SPIN = "import time\nwhile time.process_time() < 0.2: pass\nprint('ready', flush=True)\ntime.sleep(60)"


def facts_of(*lines: str) -> LoggedServer:
    facts = LoggedServer()
    for line in lines:
        facts = learn(facts, line) or facts
    return facts


def recorded(name: str) -> LoggedServer:
    reader = LogReader(ServerInfo("127.0.0.1"))
    for line in (LOGS / name).read_text().splitlines():
        reader.feed(line, 1.0)
    return reader.logged_server


def model(flags: str, architecture: str = "llama", **keys: int | list[int]) -> LoadedModel:
    metadata = {
        "general.architecture": architecture,
        f"{architecture}.context_length": 4096,
        f"{architecture}.embedding_length": 128,
        f"{architecture}.block_count": 4,
        f"{architecture}.attention.head_count": 4,
        f"{architecture}.attention.head_count_kv": 2,
        f"{architecture}.feed_forward_length": 96,
        f"{architecture}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{architecture}.vocab_size": 300,
        **{f"{architecture}.{key.replace('__', '.')}": value for key, value in keys.items()},
    }
    shape = shape_from_metadata(metadata, set())
    settings = parse_server_flags(flags.split(), environ={})
    return LoadedModel(shape, settings, cache_plan(shape, settings))


# -- the log --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "pool", "size"),
    [("0.2.7.log", 2048, 4 * MIB), ("0.2.14.log", 2048, 4 * MIB), ("verbose.log", 2048, MIB // 4)],
)
def test_logged_server_reported_allocations(name: str, pool: int, size: int) -> None:
    facts = recorded(name)
    assert (facts.pool, dict(facts.reported)) == (pool, {"k": size, "v": size})
    assert pool_capacity(facts, Polled(), LoadedModel()) is not None


@pytest.mark.parametrize("name", ["llama-server.log", "2026.10.11549.log"])
def test_logged_server_default_verbosity(name: str) -> None:
    facts = recorded(name)
    assert (facts.pool, facts.reported, facts.prompt_cache) == (None, {}, None)
    assert pool_capacity(facts, Polled(), LoadedModel()) == 2048


def test_logged_server_prompt_cache() -> None:
    state = recorded("verbose.log").prompt_cache
    last = [line for line in (LOGS / "verbose.log").read_text().splitlines() if "cache state:" in line][-1]
    assert state is not None
    assert f" {state.entries} prompts, {state.size_bytes / MIB:.3f} MiB" in last


def test_logged_server_hybrid_memory_sums() -> None:
    facts = facts_of(
        "llama_kv_cache: size =    3.00 MiB (  1024 cells,   2 layers,  1/1 seqs), "
        "K (f16):    1.00 MiB, V (f16):    2.00 MiB",
        "llama_kv_cache: size =    0.75 MiB (   256 cells,   2 layers,  1/1 seqs), "
        "K (q8_0):    0.25 MiB, V (f16):    0.50 MiB",
        "llama_memory_recurrent: size =    0.35 MiB (     1 cells,   4 layers,  1 seqs  0 rs_seq), "
        "R (f32):    0.10 MiB, S (f32):    0.25 MiB, P (f32):    0.00 MiB",
    )  # fmt: skip
    assert facts.reported == {"k": 5 * MIB // 4, "v": 5 * MIB // 2, "recurrent": round(0.35 * MIB)}


def test_logged_server_reported_bytes_after_sleep() -> None:
    size = "llama_kv_cache: size = 2.00 MiB (1024 cells, 2 layers, 1/1 seqs), K (f16): 1.00 MiB, V (f16): 1.00 MiB"
    loading = "srv    load_model: loading model 'm.gguf'"
    slots = "srv    load_model: initializing, n_slots = 1, n_ctx_slot = {}, kv_unified = 'false'"
    asleep = "srv  handle_sleep: server is entering sleeping state"
    awake = "srv  handle_sleep: server is exiting sleeping state"
    before = [loading, size, slots.format(1024)]
    facts = facts_of(*before, asleep)
    assert facts.sleeping
    state = kv_cache_state(facts, Polled(), LoadedModel())
    assert (state.active, state.cached, state.capacity, state.reported_bytes) == (0, 0, 1024, {"k": 0, "v": 0})
    facts = facts_of(*before, asleep, awake, loading, slots.format(1024))
    assert (facts.sleeping, dict(facts.reported)) == (False, {"k": MIB, "v": MIB})
    assert facts_of(*before, asleep, awake, loading, slots.format(512)).reported == {}
    assert facts_of(*before, asleep, awake, loading, size, slots.format(512)).reported == {"k": MIB, "v": MIB}


@pytest.mark.parametrize(
    ("lines", "flags", "capacity"),
    [
        (["n_slots = 4, n_ctx_slot = 2048, kv_unified = 'true'"], "", 2048),
        (["n_slots = 4, n_ctx_slot = 2048, kv_unified = 'false'"], "", 8192),
        (
            [
                "the slot context (65536) exceeds the training context of the model (4096) - capping",
                "n_slots = 4, n_ctx_slot = 4096, kv_unified = 'true'",
            ],
            "",
            65536,
        ),
        (
            [
                "capping per-slot context (16384) to --kv-unified-per-slot (8192)",
                "the slot context (8192) exceeds the training context of the model (4096) - capping",
                "n_slots = 2, n_ctx_slot = 4096, kv_unified = 'true'",
            ],
            "",
            16384,
        ),
        (["n_slots = 4"], "-c 2048", 2048),
        (["n_slots = 4"], "-c 1000 -np 4", 1024),
        (["n_slots = 4"], "-np 4", None),
        ([], "", None),
    ],
)
def test_pool_capacity_from_log_and_flags(lines: list[str], flags: str, capacity: int | None) -> None:
    facts = facts_of(*(f"srv    load_model: {'initializing, ' * ('n_slots' in line)}{line}" for line in lines))
    assert pool_capacity(facts, Polled(), model(flags)) == capacity


def test_pool_capacity_from_slots() -> None:
    slots = tuple(SlotState(number, busy=False, context_size=1024) for number in range(4))
    assert pool_capacity(LoggedServer(), Polled(slots), model("-np 4")) == 4096
    assert pool_capacity(LoggedServer(), Polled(slots), model("-kvu")) == 1024
    capped = tuple(SlotState(number, busy=False, context_size=4096) for number in range(4))
    assert pool_capacity(LoggedServer(), Polled(capped), model("-np 4")) is None


def test_kv_cache_state_recurrent_model_has_no_pool() -> None:
    mamba = model("-c 512", "mamba", ssm__conv_kernel=4, ssm__inner_size=256, ssm__state_size=16, ssm__time_step_rank=8)
    slots = (
        SlotState(0, True, 512, 30),
        SlotState(1, False, 512, 0),
        SlotState(2, False, 512, 9),
        SlotState(3, False, 512, 0),
    )
    state = kv_cache_state(
        facts_of("initializing, n_slots = 4, n_ctx_slot = 512, kv_unified = 'true'"), Polled(slots), mamba
    )
    assert (state.capacity, state.headroom, state.active, state.cached) == (None, None, 30, 9)
    assert state.used_bytes == {"recurrent": state.planned_bytes["recurrent"] // 2}


# -- bytes in use ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", ["-c 1024", "-c 1024 -ctk q8_0 -ctv q4_0", "-c 1024 -np 2"])
def test_kv_cache_state_used_bytes(flags: str) -> None:
    loaded = model(flags)
    assert loaded.sure is not None
    facts = facts_of("initializing, n_slots = 2, n_ctx_slot = 512, kv_unified = 'false'")
    slots = (SlotState(0, True, 512, 100), SlotState(1, False, 512, 28))
    state = kv_cache_state(facts, Polled(slots), loaded)
    per_token = {part: size / 1024 for part, size in state.planned_bytes.items()}
    assert state.used_bytes == {part: size * 128 for part, size in per_token.items()}
    full = (SlotState(0, True, 512, 512), SlotState(1, False, 512, 512))
    assert kv_cache_state(facts, Polled(full), loaded).used_bytes == state.planned_bytes


def test_kv_cache_state_sliding_window_used_bytes() -> None:
    loaded = model("-c 4096 -np 1", "gemma2", attention__sliding_window=128)
    assert loaded.sure is not None
    dense, window = loaded.sure.parts
    assert window.cells < dense.cells
    facts = facts_of("initializing, n_slots = 1, n_ctx_slot = 4096, kv_unified = 'false'")

    def used(tokens: int) -> int:
        return sum(kv_cache_state(facts, Polled((SlotState(0, True, 4096, tokens),)), loaded).used_bytes.values())

    per_token = dense.total_bytes // dense.cells + window.total_bytes // window.cells
    assert used(100) == 100 * per_token
    assert used(4096) == dense.total_bytes + window.total_bytes
    assert used(2048) == dense.total_bytes // 2 + window.total_bytes


@pytest.mark.parametrize(
    ("kinds", "speculative", "times"),
    [
        (("draft-mtp",), (True, True), 2),
        (("draft-mtp",), (False, False), 1),
        (("ngram-simple",), (True, True), 1),
        (("draft-mtp",), (True, False), None),
        (("draft-mtp",), (None, None), None),
        (("draft-mtp",), (True, None), None),
    ],
)
def test_kv_cache_state_draft_cache_used_bytes(
    kinds: tuple[str, ...], speculative: tuple[bool | None, ...], times: int | None
) -> None:
    loaded = model("-c 1024 -np 2")
    assert loaded.plan is not None
    assert loaded.settings is not None
    own = loaded.plan.parts
    plan = replace(loaded.plan, parts=(*own, *(replace(part, drafting=True) for part in own)))
    drafting = replace(loaded, plan=plan, settings=replace(loaded.settings, spec_types=kinds))
    facts = facts_of("initializing, n_slots = 2, n_ctx_slot = 512, kv_unified = 'false'")
    slots = [
        SlotState(0, True, 512, 100, speculative=speculative[0]),
        SlotState(1, False, 512, 28, speculative=speculative[1]),
    ]
    alone = kv_cache_state(facts, Polled(slots), loaded).used_bytes
    used = {} if times is None else {part: times * size for part, size in alone.items()}
    assert alone
    assert kv_cache_state(facts, Polled(slots), drafting).used_bytes == used


def test_kv_cache_state_within_capacity() -> None:
    """Slots that fill a shared pool count the batch that does not fit, too."""
    slots = [SlotState(number, busy=number < 3, context_size=1024, context_tokens=400) for number in range(4)]
    state = kv_cache_state(LoggedServer(pool=1024), Polled(slots), LoadedModel())
    assert (state.active, state.cached, state.headroom) == (1024, 0, 0)


def test_kv_cache_state_unknown_is_none() -> None:
    slots = (SlotState(0, busy=True, context_size=512), SlotState(1, busy=False, context_tokens=3))
    state = kv_cache_state(LoggedServer(), Polled(slots), model("-c 1024"))
    assert (state.active, state.cached, state.used_bytes, state.headroom) == (None, 3, {}, None)
    state = kv_cache_state(LoggedServer(), Polled(), LoadedModel())
    assert (state.capacity, state.active, state.planned_bytes, state.reported_bytes) == (None, None, {}, {})


# -- slots ----------------------------------------------------------------------------------------------------------


def test_parse_slots_of_several_builds() -> None:
    now = {
        "id": 0, "n_ctx": 2048, "speculative": False, "is_processing": True, "id_task": 7, "n_prompt_tokens": 30,
        "n_prompt_tokens_processed": 10, "n_prompt_tokens_cache": 5, "params": {}, "next_token": [{"n_decoded": 15}],
    }  # fmt: skip
    assert parse_slots([now]) == (SlotState(0, True, 2048, 30, 7, 10, 5, 15, speculative=False),)
    assert parse_slots([now | {"is_processing": False}]) == (SlotState(0, False, 2048, 30, 7, speculative=False),)
    assert parse_slots([{"id": 1, "n_ctx": 2048, "is_processing": False}]) == (SlotState(1, False, 2048, 0),)
    winter_2025 = {"id": 0, "id_task": 3, "n_ctx": 2048, "is_processing": True, "next_token": {"n_decoded": 4}}
    assert parse_slots([winter_2025]) == (SlotState(0, True, 2048, None, 3, decoded=4),)


@pytest.mark.parametrize("document", [None, {}, "slots", 3])
def test_parse_slots_invalid_document(document: object) -> None:
    assert parse_slots(document) is None


KEYS = ["id", "n_ctx", "is_processing", "id_task", "n_prompt_tokens", "next_token", "n_decoded"]
json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner),
    max_leaves=12,
)  # fmt: skip


@given(st.lists(json, max_size=4))
def test_parse_slots_any_json(document: list[object]) -> None:
    for slot in parse_slots(document) or ():
        assert slot.id >= 0
        assert slot.context_tokens is None or slot.context_tokens >= 0


def busy(task: int, decoded: int, number: int = 0) -> SlotState:
    return SlotState(number, busy=True, task=task, decoded=decoded)


def test_decode_rate_running_started_and_finished() -> None:
    rate = DecodeRate()
    assert rate.observe([busy(1, 10)], 0.0, 100.0) is None
    assert rate.observe([busy(1, 30)], 0.0, 102.0) == 10.0
    # 1 finished with 35, 2 started and finished with 8, 3 runs.
    assert rate.observe([busy(3, 7)], 43.0, 103.0) == (5 + 8 + 7)
    assert rate.observe([SlotState(0, busy=False)], 50.0, 104.0) == 0.0
    assert rate.observe([SlotState(0, busy=False)], 50.0, 105.0) == 0.0


def test_decode_rate_per_slot() -> None:
    rate = DecodeRate()

    def paces(at: float, counted: float, *slots: SlotState) -> list[float | None]:
        rate.observe(slots, counted, at)
        return [slot.decode_rate for slot in rate.paced(slots)]

    first, second = busy(1, 10), replace(busy(2, 5), id=1)
    assert paces(100.0, 0.0, first, second) == [None, None]
    assert paces(102.0, 0.0, replace(first, decoded=30), replace(second, decoded=6)) == [10.0, 0.5]
    # Another request in a slot has no rate yet, an idle slot none at all.
    assert paces(103.0, 30.0, busy(3, 7), SlotState(1, busy=False)) == [None, None]
    # Nor is there one across a restart, where the task numbers start again.
    assert paces(104.0, 1.0, busy(3, 9)) == [None]


def test_decode_rate_request_finished_between_polls() -> None:
    rate = DecodeRate()
    rate.observe([busy(1, 10)], 0.0, 1.0)
    assert rate.observe([SlotState(0, busy=False)], 0.0, 2.0) == 0.0  # finished, and not in the counter yet
    assert rate.observe([SlotState(0, busy=False)], 25.0, 3.0) == 15.0


def test_decode_rate_unknown() -> None:
    rate = DecodeRate()
    assert rate.observe([busy(1, 10)], 100.0, 1.0) is None
    assert rate.observe([busy(1, 12)], 5.0, 2.0) is None  # another process
    assert rate.observe([SlotState(0, busy=True)], 5.0, 3.0) is None  # a build that does not report it
    assert rate.observe([busy(1, 12)], 9.0, 3.0) is None  # the same moment


@given(
    st.lists(st.tuples(st.integers(0, 50), st.booleans(), st.booleans()), min_size=1, max_size=40),
)
def test_decode_rate_counts_every_token_once(steps: list[tuple[int, bool, bool]]) -> None:
    """One slot whose request generates tokens and may finish: before both polls, or between them."""
    rate, total, counted, task, decoded = DecodeRate(), 0.0, 0, 0, 0
    rate.observe([busy(0, 0)], 0.0, 0.0)
    generated = 0
    for at, (tokens, ends, between) in enumerate([*steps, (0, True, False), (0, True, False)], 1):
        decoded += tokens
        generated += tokens
        seen = counted + (decoded if ends and not between else 0)
        if ends:
            counted, task, decoded = counted + decoded, task + 1, 0
        now = rate.observe([SlotState(0, busy=False) if ends else busy(task, decoded)], float(seen), float(at))
        assert now is not None
        assert now >= 0
        total += now
    assert total == generated


# -- settings, process, collectors ----------------------------------------------------------------------------------


def test_given_flags_from_arguments_and_environment() -> None:
    words = ["-m", "x.gguf", "-c", "4096", "-np", "2", "--parallel", "3", "-no-kvu", "--swa-full", "--host", "::1"]
    words += ["--context-shift", "-lv", "4"]
    environ = {"LLAMA_ARG_BATCH": "64", "LLAMA_ARG_CTX_SIZE": "1", "LLAMA_API_KEY": "secret"}
    assert given_flags(parse_server_flags(words, environ=environ)) == {
        "model": "x.gguf", "ctx-size": "4096", "parallel": "3", "kv-unified": "false", "swa-full": "true",
        "context-shift": "true", "batch-size": "64",
    }  # fmt: skip
    assert given_flags(parse_server_flags([], environ={"LLAMA_ARG_KV_UNIFIED": "0"})) == {"kv-unified": "false"}


def test_process_usage_continues_after_restart() -> None:
    usage = ProcessUsage()
    assert usage.read(None).cpu_s is None
    programs = [subprocess.Popen([sys.executable, "-c", SPIN], stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for program in programs:
            assert program.stdout is not None
            assert program.stdout.readline() == b"ready\n"
        first = usage.read(programs[0].pid)
        assert first.cpu_s is not None
        assert first.cpu_s > 0
        assert first.memory_bytes is not None
        assert first.memory_bytes > 1 << 20
        assert (usage.read(None).cpu_s, usage.read(None).memory_bytes) == (first.cpu_s, None)
        second = usage.read(programs[1].pid)
        assert second.cpu_s is not None
        assert second.cpu_s > first.cpu_s
    finally:
        for program in programs:
            program.kill()
            program.communicate()
    exited = usage.read(programs[1].pid)
    assert (exited.cpu_s, exited.memory_bytes) == (second.cpu_s, None)


def test_kv_cache_collector_samples() -> None:
    assert samples_of(KvCacheCollector(), snapshot(known_snapshot())) == {
        "llamacpp.kv_cache.capacity": [(1024, {})],
        "llamacpp.kv_cache.tokens": [(300, {"state": "active"}), (100, {"state": "cached"})],
        "llamacpp.kv_cache.usage": [(300 / 1024, {"state": "active"}), (100 / 1024, {"state": "cached"})],
        "llamacpp.kv_cache.headroom": [(724, {})],
        "llamacpp.kv_cache.size": [
            (4096, {"part": "k", "source": "planned"}),
            (4096, {"part": "v", "source": "planned"}),
            (4096, {"part": "k", "source": "reported"}),
            (4096, {"part": "v", "source": "reported"}),
        ],
        "llamacpp.kv_cache.used": [(1600, {"part": "k"}), (1600, {"part": "v"})],
    }


def test_slots_prompt_cache_model_collector_samples() -> None:
    state = snapshot(known_snapshot())
    slots = samples_of(SlotsCollector(), state)
    assert slots["llamacpp.slots"] == [(1, {"state": "busy"}), (1, {"state": "idle"})]
    assert slots["llamacpp.slot.context_tokens"] == [(300, {"slot": 0}), (100, {"slot": 1})]
    assert slots["llamacpp.slot.tokens"] == [
        (40, {"slot": 0, "type": "input_computed"}),
        (250, {"slot": 0, "type": "input_cached"}),
        (11, {"slot": 0, "type": "output"}),
    ]
    assert samples_of(PromptCacheCollector(), state) == {
        "llamacpp.prompt_cache.lookups": [(400, {})],
        "llamacpp.prompt_cache.hits": [(100, {})],
        "llamacpp.prompt_cache.entries": [(2, {})],
        "llamacpp.prompt_cache.size": [(2048, {})],
    }
    [(one, labels)] = samples_of(ModelCollector(), state)["llamacpp.model.info"]
    assert one == 1
    assert (labels["architecture"], labels["heads"], labels["kv_heads"], labels["quantization"]) == (
        "llama",
        4,
        2,
        "F32",
    )


def test_collectors_unknown_figures_have_no_samples() -> None:
    unknown = snapshot(server_snapshot(counters={"prompt_tokens_total": 3.0}))
    for collector in (KvCacheCollector(), SlotsCollector(), PromptCacheCollector(), ModelCollector()):
        assert samples_of(collector, unknown) == {}


def test_kv_cache_line() -> None:
    state = known_snapshot()
    assert kv_cache_line(state) == "1,024 tokens shared by 2 slots, 8.00 KiB; 300 active, 100 cached"
    assert state.kv_cache is not None
    planned = replace(state.kv_cache, reported_bytes={}, active=0, cached=0, unified=False)
    assert kv_cache_line(replace(state, kv_cache=planned)) == "1,024 tokens in 2 slots, 8.00 KiB as planned"
    alone = replace(planned, planned_bytes={})
    assert (
        kv_cache_line(replace(state, kv_cache=alone, settings=parse_server_flags(["-np", "1"], environ={})))
        == "1,024 tokens"
    )
    assert kv_cache_line(replace(state, kv_cache=replace(alone, capacity=None))) is None
    assert kv_cache_line(server_snapshot()) is None


def test_kv_cache_line_bytes_as_plan_where_llama_cpp_rounds() -> None:
    """llama.cpp logs 0.76 MiB for 768 KiB; ``plan`` and ``serve`` show the same figure."""
    state = known_snapshot()
    assert state.kv_cache is not None
    rounded = replace(
        state.kv_cache,
        planned_bytes={"attention": 768 << 10},
        reported_bytes={"attention": 796_918},
        active=0,
        cached=0,
    )
    agreeing = replace(rounded, plan_error_bytes=0)
    assert kv_cache_line(replace(state, kv_cache=agreeing)) == "1,024 tokens shared by 2 slots, 768 KiB"
    differing = replace(rounded, plan_error_bytes=10_486)
    assert kv_cache_line(replace(state, kv_cache=differing)) == "1,024 tokens shared by 2 slots, 778 KiB"
