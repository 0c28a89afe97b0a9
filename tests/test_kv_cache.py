"""KV cache figures of real servers compared with llama.cpp's own log and HTTP responses."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamatel.llama import ServerManager
from llamatel.llama.http.server_client import ServerClient
from llamatel.llama.http.slots_endpoint import DecodeRate
from llamatel.llama.log.logged_server import LoggedServer
from llamatel.llama.watch.kv_state import LoadedModel, Polled, pool_capacity
from llamatel.records import Completion, Outcome
from llamatel.snapshots import ServerSnapshot
from tests.exact.models import MODELS
from tests.exact.writer import read_table, write_model
from tests.servers import complete, complete_in_background
from tests.tiny_gguf import write_tiny_model

pytestmark = pytest.mark.usefixtures("no_settings")

ROUNDING = 5243
"""Half of 0.01 MiB: the rounding error of a figure in the log."""
WAIT_S = 30.0

Start = Callable[..., ServerManager]


@pytest.fixture
def start(tiny_model: Path) -> Iterator[Start]:
    """Start a server; it is stopped after the test."""
    servers: list[ServerManager] = []

    def starting(backend: str, *flags: str, model: Path = tiny_model, **manager: Any) -> ServerManager:
        server = ServerManager(backend=backend, **manager)
        servers.append(server)
        server.start_server(model, port=0, extra_args=["-t", "1", *flags])
        return server.wait_until_ready(60)

    yield starting
    for server in servers:
        server.stop_server()


def state_of(server: ServerManager) -> ServerSnapshot:
    state = server.snapshot()
    assert state is not None
    return state


def facts_of(server: ServerManager) -> LoggedServer:
    return server._observed_log.logged


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {WAIT_S:g} s"
        time.sleep(0.02)


def slots_of(server: ServerManager) -> list[dict[str, Any]]:
    """Return llama.cpp's own /slots response, the independent source."""
    with urllib.request.urlopen(f"{server.base_url}/slots", timeout=10) as answer:
        slots: list[dict[str, Any]] = json.load(answer)
        return slots


def tokens_in(slots: list[dict[str, Any]]) -> int:
    return sum(slot.get("n_prompt_tokens", 0) for slot in slots)


def generating(slots: list[dict[str, Any]]) -> bool:
    """Whether requests run and all have processed their prompts: token counts then only grow."""
    running = [slot for slot in slots if slot["is_processing"]]
    return bool(running) and all(slot["next_token"][0]["n_decoded"] for slot in running)


def tasks_in(slots: list[dict[str, Any]]) -> list[tuple[bool, int | None]]:
    return [(slot["is_processing"], slot.get("id_task")) for slot in slots]


@pytest.mark.parametrize("flags", [("-c", "4096"), ("-c", "4096", "-np", "4")], ids=["one pool", "split"])
def test_kv_cache_tokens_are_sum_over_slots(start: Start, backend: str, flags: tuple[str, ...]) -> None:
    server = start(backend, *flags)
    first = state_of(server)
    assert first.kv_cache is not None
    assert (first.kv_cache.capacity, first.kv_cache.active, first.kv_cache.cached) == (4096, 0, 0)
    assert first.kv_cache.unified is ("-np" not in flags)
    assert first.deferred == 0
    threads = complete_in_background(server.base_url, 6, 700)
    compared = 0
    deferred = 0
    while any(thread.is_alive() for thread in threads):
        before = slots_of(server)
        state = state_of(server)
        after = slots_of(server)
        cache = state.kv_cache
        assert cache is not None
        if state.stale or not generating(before) or tasks_in(before) != tasks_in(after):
            continue  # a request started or finished meanwhile, or its prompt is still replacing the old one
        assert state.slots is not None
        deferred = max(deferred, state.deferred or 0)
        if [slot.busy for slot in state.slots] != [slot["is_processing"] for slot in before]:
            continue
        assert cache.active is not None
        assert cache.cached is not None
        assert tokens_in(before) <= cache.active + cache.cached <= tokens_in(after)
        assert cache.cached == sum(s.get("n_prompt_tokens", 0) for s in after if not s["is_processing"])
        assert cache.headroom == 4096 - cache.active
        compared += 1
    assert compared > 3
    assert deferred > 0
    at_rest = state_of(server)
    wait_for(lambda: (s := state_of(server)).kv_cache is not None and s.kv_cache.active == 0, "all requests finished")
    at_rest = state_of(server)
    assert at_rest.kv_cache is not None
    assert at_rest.kv_cache.cached == tokens_in(slots_of(server))
    assert at_rest.slots is not None
    assert [slot.context_tokens for slot in at_rest.slots] == [s.get("n_prompt_tokens", 0) for s in slots_of(server)]
    sizes = at_rest.kv_cache.planned_bytes
    per_token = {part: size // 4096 for part, size in sizes.items()}
    assert at_rest.kv_cache.used_bytes == {p: b * (at_rest.kv_cache.cached or 0) for p, b in per_token.items()}


def test_kv_cache_idle_server_slots_polled_once(start: Start, backend: str) -> None:
    """Each poll uses one of llama.cpp's task numbers, so the next request's task number counts the polls."""
    server = start(backend)
    completions: list[Completion] = []
    server.subscribe(completions.append)

    def task(number: int) -> int:
        assert complete(server.base_url) == 200
        wait_for(lambda: len(completions) == number, "the request finished")
        return completions[-1].task or 0

    own = -task(1) + (second := task(2))
    seen = [state_of(server).slots for _ in range(6)]
    assert seen == [seen[0]] * 6
    assert seen[0] is not None
    assert task(3) - second == own + 6 + 1  # /metrics each time, /slots once
    assert state_of(server).slots != seen[0]


FLAGS = (
    (),
    ("-c", "65536"),
    ("-c", "0"),
    ("-fit", "off"),
    ("-np", "3"),
    ("-np", "3", "-fit", "off"),
    ("-c", "8192", "-np", "3"),
    ("-c", "512", "-np", "4"),
    ("-c", "65536", "-np", "2"),
    ("-c", "65536", "-np", "2", "-kvu"),
    ("--kv-unified-per-slot", "1024"),
    ("--kv-unified-per-slot", "1024", "-c", "2048", "-kvu", "-np", "3"),
    ("--kv-unified-per-slot", "8192"),
    ("--kv-unified-per-slot", "8192", "-c", "16384"),
    ("--kv-unified-per-slot", "8192", "-c", "65536", "-np", "2"),
)


@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
def test_kv_cache_capacity_equals_verbose_log(start: Start, llama_server_binary: Path, flags: tuple[str, ...]) -> None:
    server = start(str(llama_server_binary), "-lv", "4", *flags)
    facts = facts_of(server)
    assert facts.pool is not None
    # The default verbosity must lead to the same capacity.
    assert pool_capacity(replace(facts, pool=None), Polled(), LoadedModel()) == facts.pool
    state = state_of(server).kv_cache
    assert state is not None
    assert (state.capacity, state.unified) == (facts.pool, facts.kv_unified)
    assert set(state.reported_bytes) == {"k", "v"}
    for part, size in state.reported_bytes.items():
        assert abs(size - state.planned_bytes[part]) <= ROUNDING


def test_kv_cache_capacity_parameters_fitted(start: Start, backend: str) -> None:
    """At -lv 5 the contexts that are created while parameters are fitted are logged, too."""
    server = start(backend, "-lv", "5", "-fit", "on")
    state = state_of(server)
    assert state.kv_cache is not None
    assert state.kv_cache.capacity == facts_of(server).pool
    assert set(state.kv_cache.reported_bytes) == {"k", "v"}
    for part, size in state.kv_cache.reported_bytes.items():
        assert abs(size - state.kv_cache.planned_bytes[part]) <= ROUNDING
    placement = facts_of(server).placement
    assert placement is not None
    assert sum(size for (_, part), size in placement.buffers.items() if part == "kv_cache") < 2 * sum(
        state.kv_cache.planned_bytes.values()
    )


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("llama", ("-ctk", "q8_0", "-ctv", "q4_0")),
        ("gemma3", ("-np", "2")),
        ("gemma2", ()),
        ("jamba", ()),
        ("qwen3next", ("-np", "2")),
        ("mamba", ()),
        ("deepseek2", ()),
        ("minimax-m3", ()),
        ("lfm2", ("-np", "1")),
    ],
)
def test_kv_cache_reported_bytes_equal_planned(start: Start, tmp_path: Path, name: str, flags: tuple[str, ...]) -> None:
    """The wheel logs what llama.cpp allocates, including windows, recurrent states and latent keys."""
    model = next(model for model in MODELS if model.name == name)
    path = write_model(tmp_path / "model.gguf", model, read_table()[name])
    server = start("xllamacpp", "-c", "32768", "--no-warmup", *flags, model=path)
    state = state_of(server)
    cache = state.kv_cache
    assert cache is not None
    assert state.model is not None
    assert state.model.architecture == name
    assert cache.planned_bytes
    assert set(cache.reported_bytes) == set(cache.planned_bytes)
    for part, size in cache.reported_bytes.items():
        assert abs(size - cache.planned_bytes[part]) <= 2 * ROUNDING  # one log line for windows, one for the rest
    assert "recurrent" in cache.planned_bytes or cache.planned_bytes["k"] > 100 * ROUNDING
    assert set(cache.used_bytes.values()) == {0}
    assert not any("prompt cache update" in line for line in server.log_tail)


DRAFTING = (
    (("--spec-type", "draft-simple"), True),
    (("--spec-type", "draft-simple", "-np", "2", "-ctkd", "q8_0"), True),
    (("--spec-type", "ngram-simple"), False),
    ((), False),
)


@pytest.mark.parametrize(("flags", "drafts"), DRAFTING, ids=[" ".join(flags) for flags, _ in DRAFTING])
def test_kv_cache_of_draft_model(
    start: Start, backend: str, tmp_path: Path, flags: tuple[str, ...], drafts: bool
) -> None:
    """llama.cpp always allocates the draft model's cache, and fills it only if the draft model is used."""
    draft = write_tiny_model(tmp_path / "draft.gguf", embedding=128, layers=1, kv_heads=1, context=2048, seed=3)
    # Only llama-server needs a flag to log what it allocates.
    extra = () if backend == "xllamacpp" else ("-lv", "4")
    server = start(backend, "-c", "4096", "--no-warmup", "-md", str(draft), *flags, *extra)
    cache = state_of(server).kv_cache
    assert cache is not None
    assert cache.capacity == 4096
    slots, cells = (2, 2048) if "-np" in flags else (1, 4096)
    of_draft = {"k": 34 if "-ctkd" in flags else 64, "v": 64}  # a head of 32 values
    own = {"k": 2 * 2 * 2 * 16, "v": 2 * 2 * 2 * 16}  # 2 layers of 2 heads of 16 values of 2 bytes
    assert cache.planned_bytes == {part: slots * cells * (own[part] + of_draft[part]) for part in ("k", "v")}
    assert set(cache.reported_bytes) == {"k", "v"}
    for part, size in cache.reported_bytes.items():
        assert abs(size - cache.planned_bytes[part]) <= 2 * ROUNDING
    completions: list[Completion] = []
    server.subscribe(completions.append)
    assert complete(server.base_url, 20) == 200
    wait_for(lambda: bool(completions), "the request finished")
    cached_tokens = tokens_in(slots_of(server))
    used = state_of(server).kv_cache
    assert cached_tokens > 20
    assert used is not None
    assert used.used_bytes == {part: cached_tokens * (own[part] + of_draft[part] * drafts) for part in ("k", "v")}


SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize("by", ["flag", "variable"])
def test_kv_cache_hub_model_in_llama_cpp_cache(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llama_server_binary: Path, by: str
) -> None:
    """The log names the repository, ``/props`` the file, which is already in the cache."""
    repository = tmp_path / "models--org--tiny-GGUF"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(SHA)
    (repository / "snapshots" / SHA).mkdir(parents=True)
    (repository / "snapshots" / SHA / "tiny-F32.gguf").write_bytes(tiny_model.read_bytes())
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path))
    extra = ["--offline", "-c", "1024", "-t", "1"]
    if by == "variable":
        monkeypatch.setenv("LLAMA_ARG_HF_REPO", "org/tiny-GGUF:F32")
    else:
        extra += ["-hf", "org/tiny-GGUF:F32"]
    with ServerManager(backend=str(llama_server_binary)) as server:
        server.start_server(None, port=0, extra_args=extra).wait_until_ready(60)
        assert facts_of(server).model_path == "org/tiny-GGUF:F32"
        for _ in range(2):
            state = state_of(server)
            assert state.model is not None
            assert state.model.name == "llamatel tiny"
            assert state.kv_cache is not None
            assert state.kv_cache.planned_bytes == {"k": 1024 * 128, "v": 1024 * 128}
            server.restart(60)


def test_kv_cache_full_pool_headroom_and_outcomes(start: Start, llama_server_binary: Path) -> None:
    server = start(str(llama_server_binary), "-c", "4096")
    completions: list[Completion] = []
    server.subscribe(completions.append)
    threads = complete_in_background(server.base_url, 4, 1800)
    headroom: list[int] = []
    while any(thread.is_alive() for thread in threads):
        state = state_of(server).kv_cache
        assert state is not None
        if state.active and state.headroom is not None:
            headroom.append(state.headroom)
        time.sleep(0.01)
    wait_for(lambda: len(completions) == 4, "all requests finished")
    assert [completion.outcome for completion in completions] == [Outcome.CONTEXT_FULL] * 4
    assert min(headroom) < 0.2 * 4096
    assert headroom == sorted(headroom, reverse=True)
    wait_for(lambda: (s := state_of(server)).kv_cache is not None and s.kv_cache.active == 0, "the slots are cleared")
    after = state_of(server).kv_cache
    assert after is not None
    assert (after.cached, after.headroom) == (0, 4096)


def test_kv_cache_context_shifts(start: Start) -> None:
    server = start("xllamacpp", "-c", "256", "-np", "1", "--context-shift")
    assert state_of(server).context_shifts == 0
    assert complete(server.base_url, 600) == 200
    wait_for(lambda: (state_of(server).context_shifts or 0) >= 2, "the context shifts")
    settings = state_of(server).settings
    assert settings is not None
    assert settings.context_shift


def test_decode_rate_sum_equals_llama_cpp_counter(start: Start) -> None:
    server = start("xllamacpp", "-np", "2")
    client, rate, total = ServerClient(server.base_url), DecodeRate(), 0.0

    def poll(at: float) -> float | None:
        counted = client.counters()["tokens_predicted_total"]
        return rate.observe(client.slots(), counted, at)

    poll(0.0)
    threads = [threading.Thread(target=lambda: [complete(server.base_url, 150) for _ in range(3)]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for at in range(1, 100_000):
        running = any(thread.is_alive() for thread in threads)
        total += poll(float(at)) or 0.0
        if not running and at > 3:
            break
    total += poll(float(at + 1)) or 0.0
    assert total == client.counters()["tokens_predicted_total"] == 9 * 150
    client.close()


def test_kv_cache_sleeping_server_stays_asleep(start: Start, backend: str) -> None:
    server = start(backend, "--sleep-idle-seconds", "2")
    assert complete(server.base_url) == 200
    states: list[str | None] = []

    def asleep() -> bool:
        states.append(state_of(server).state)
        return states[-1] == "sleeping"

    wait_for(asleep, "it falls asleep while being scraped")
    for _ in range(40):
        state = state_of(server)
        assert (state.state, state.up, state.slots) == ("sleeping", True, None)
        assert state.kv_cache is not None
        assert (state.kv_cache.active, state.kv_cache.cached) == (0, 0)
        assert set(state.kv_cache.reported_bytes.values()) <= {0}
        assert state.counters["tokens_predicted_total"] == 4
        time.sleep(0.1)
    assert complete(server.base_url) == 200
    wait_for(lambda: state_of(server).state == "ready", "the wake-up in its log")
    awake = state_of(server)
    assert awake.kv_cache is not None
    assert awake.kv_cache.planned_bytes["k"] > 0
    if backend == "xllamacpp":
        assert awake.kv_cache.reported_bytes == awake.kv_cache.planned_bytes


def test_kv_cache_counters_continue_after_crash(start: Start, backend: str) -> None:
    server = start(backend, "-c", "1024", restart="on-failure")
    assert complete(server.base_url, 20) == 200
    wait_for(lambda: not server._observed_log.busy, "the request finished")
    before = state_of(server)
    assert before.process is not None
    assert before.process.cpu_s is not None
    assert before.process.memory_bytes
    assert before.counters["tokens_predicted_total"] == 20
    pid = server.info.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: state_of(server).state != "ready", "its exit is noticed")
    down = state_of(server)
    if down.state != "ready":  # it restarts within half a second
        assert (down.up, down.slots, down.kv_cache, down.decode_rate, down.deferred) == (False, None, None, None, None)
        assert down.counters["tokens_predicted_total"] == 20
        assert down.process is not None
        assert down.process.memory_bytes is None or down.state == "starting"
    wait_for(lambda: state_of(server).state == "ready", "the restart")
    restarted = state_of(server)
    assert restarted.kv_cache is not None
    assert (restarted.restarts, restarted.kv_cache.capacity, restarted.kv_cache.cached) == (1, 1024, 0)
    assert complete(server.base_url, 5) == 200
    wait_for(lambda: state_of(server).counters["tokens_predicted_total"] == 25, "its counters continue")
    after = state_of(server)
    assert after.process is not None
    assert after.process.cpu_s is not None
    assert after.process.cpu_s >= before.process.cpu_s
