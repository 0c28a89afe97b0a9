"""Reused and recomputed prompt tokens, with causes: on real servers, with known prompts."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import urllib3

from llamatel.llama import ServerManager
from llamatel.llama.log.prompt_history import CachedPrompt, PromptHistory
from llamatel.llama.log.prompt_reuse import Prefill, SlotSelection, parse_selection, refused_reuse
from llamatel.llama.log.reader import LogReader
from llamatel.records import Completion, RecomputeCause, ServerInfo
from llamatel_collectors.prompt_cache import PromptCacheCollector
from tests.exact.models import MODELS
from tests.exact.writer import read_table, write_model
from tests.golden.reading import LOGS, reading
from tests.parts import wait_until
from tests.parts.wheels import xllamacpp_server
from tests.reuse_cases import CASES, Case, run_case
from tests.samples import completion

PROMPT = "abcdefghij" * 30
"""One token per character, after two others."""
CHANGED = PROMPT[:200] + "y" * 60


def complete(url: str, body: dict[str, Any]) -> None:
    request = {"n_predict": 3, "ignore_eos": True, **body}
    answer = urllib3.PoolManager(retries=False).request("POST", f"{url}/completion", json=request, timeout=60)
    assert answer.status == 200, answer.data


def served(backend: str, model: Path, bodies: list[dict[str, Any]], *flags: str) -> list[Completion]:
    records: list[Completion] = []
    with ServerManager(backend=backend) as server:
        server.subscribe(records.append)
        server.start_server(model, port=0, n_parallel=2, ctx_size=4096, extra_args=["-t", "1", *flags])
        server.wait_until_ready(60)
        assert server.base_url
        # Until the model's file was read, it is not known what its cache can do.
        wait_until(lambda: (state := server.snapshot()) is not None and state.model is not None, 60, "the model")
        for number, body in enumerate(bodies, 1):
            complete(server.base_url, body)
            wait_until(lambda: len(records) == number, 60, "the request's record")  # noqa: B023 - called at once
    return records


def figures(records: list[Completion]) -> list[tuple[Any, ...]]:
    return [(r.prompt_reusable, r.prompt_cached, r.prompt_recomputed, r.recompute_cause) for r in records]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model with a sliding window, one with a recurrent state."""
    folder, tensors = tmp_path_factory.mktemp("models"), read_table()
    known = {model.name: model for model in MODELS}
    return {
        name: write_model(folder / f"{number}.gguf", known[name], tensors[name])
        for number, name in enumerate(("gemma3:pattern", "mamba", "glm4moe", "llama"))
    }


def test_reuse_plain_model(backend: str, tiny_model: Path) -> None:
    bodies: list[dict[str, Any]] = [
        {"prompt": PROMPT},
        {"prompt": PROMPT + "x" * 50},
        {"prompt": CHANGED},
        {"prompt": CHANGED, "cache_prompt": False},
    ]
    records = served(backend, tiny_model, bodies)
    assert figures(records) == [
        (0, 0, 0, None),
        (302, 302, 0, None),
        (202, 202, 0, None),
        (262, 0, 262, RecomputeCause.CACHE_PROMPT_OFF),
    ]
    assert records[3].recompute_s == pytest.approx(records[3].prefill_s)


@pytest.mark.parametrize("case", [case for case in CASES if not case.thorough], ids=lambda case: case.name)
def test_reuse_cases(case: Case, models: dict[str, Path], tiny_model: Path, tmp_path: Path) -> None:
    """What the client knows that it lost, and why."""
    counted = run_case(case, "xllamacpp", models.get(case.model, tiny_model), tmp_path)
    assert [str(one) for one in counted if not one.agrees or one.cause is not one.turn.cause] == []


@pytest.mark.parametrize("name", ["four conversations on two slots", "the checkpoint was evicted", "slot erased"])
def test_reuse_cases_older_build(name: str, models: dict[str, Path], tiny_model: Path, tmp_path: Path) -> None:
    """A build of July 2026; more of them are in the acceptance."""
    [case] = [case for case in CASES if case.name == name]
    counted = run_case(case, str(xllamacpp_server("2026.7.9873")), models.get(case.model, tiny_model), tmp_path)
    assert [str(one) for one in counted if not one.agrees] == []


@pytest.mark.parametrize("name", ["gemma3:pattern", "mamba"])
def test_reuse_without_a_checkpoint(backend: str, models: dict[str, Path], name: str) -> None:
    records = served(backend, models[name], [{"prompt": PROMPT}, {"prompt": CHANGED}], "--ctx-checkpoints", "0")
    assert figures(records) == [(0, 0, 0, None), (202, 0, 202, RecomputeCause.NO_CHECKPOINT)]
    last = records[-1]
    assert last.prefill_s is not None
    assert last.recompute_s == pytest.approx(last.prefill_s * 202 / 262)


def test_reuse_from_an_earlier_checkpoint(backend: str, models: dict[str, Path]) -> None:
    records = served(backend, models["mamba"], [{"prompt": PROMPT}, {"prompt": PROMPT + "x" * 50}])
    reusable, cached, recomputed, cause = figures(records)[-1]
    assert (reusable, recomputed) == (302, 302 - cached)
    assert cached > 250
    assert cause is RecomputeCause.NO_CHECKPOINT


def test_reuse_window_kept_in_full(backend: str, models: dict[str, Path]) -> None:
    records = served(backend, models["gemma3:pattern"], [{"prompt": PROMPT}, {"prompt": CHANGED}], "--swa-full")
    assert figures(records) == [(0, 0, 0, None), (202, 202, 0, None)]


# -- by the log alone -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.stem for path in LOGS.glob("*.log")))
def test_reuse_golden_logs(name: str) -> None:
    """In all builds everything reusable was reused, except by the request that switched reuse off."""
    lost = [c for c in reading(name).completions if c.prompt_recomputed]
    assert all(
        (c.prompt_reusable, c.prompt_cached, c.recompute_cause) == (100, 0, RecomputeCause.UNKNOWN) for c in lost
    )
    assert len(lost) <= 1
    for c in reading(name).completions:
        assert c.prompt_reusable is None or c.prompt_reusable == (c.prompt_cached or 0) + (c.prompt_recomputed or 0)


@pytest.mark.parametrize(
    ("message", "selection"),
    [
        (
            "selected slot by LCP similarity, f_sim_best = 0.858 (> 0.100 thold), f_keep = 0.993",
            SlotSelection(0.858, keep=0.993),
        ),
        (
            "selected slot by LCP similarity, sim_best = 1.000 (> 0.100 thold), f_keep = 0.993",
            SlotSelection(1.0, keep=0.993),
        ),
        ("selected slot by LRU, t_last = -1", SlotSelection(unused=True)),
        ("selected slot by LRU, t_last = 3064387700", SlotSelection()),
        ("selected slot by LRU, n_tokens = 0, t_last = -1", SlotSelection(unused=True)),
        ("selected slot by LRU, n_tokens = 12, t_last = 3064387700", SlotSelection()),
        ("selected slot by id (3)", SlotSelection()),
        ("selected slot by LCP similarity, f_sim_best = nan (> 0.100 thold)", SlotSelection()),
    ],
)
def test_reuse_selection(message: str, selection: SlotSelection) -> None:
    assert parse_selection(message) == selection


def refused(
    similarity: float | None, cached: int, computed: int, *, keep: float | None = None, rewindable: bool | None = None,
    checkpoints: bool | None = None,
) -> RecomputeCause | None:  # fmt: skip
    prefill = Prefill(SlotSelection(similarity, keep=keep), cached, computed, 2.0)
    found = refused_reuse(prefill, rewindable=rewindable, checkpoints=checkpoints)
    return None if found is None else found.cause


def test_reuse_refused() -> None:
    assert refused(None, 0, 10) is None
    assert refused(0.5, 0, 1000) is RecomputeCause.UNKNOWN
    assert refused(0.5, 0, 1000, rewindable=True) is RecomputeCause.CACHE_PROMPT_OFF
    assert refused(0.5, 0, 1000, rewindable=False) is RecomputeCause.NO_CHECKPOINT
    assert refused(0.5, 0, 1000, rewindable=False, keep=1.0) is RecomputeCause.NO_CHECKPOINT
    assert refused(0.5, 0, 1000, rewindable=False, keep=1.0, checkpoints=True) is RecomputeCause.CACHE_PROMPT_OFF


def test_reuse_rounding_is_not_recompute() -> None:
    assert refused(0.750, 22_490, 7_510, rewindable=True) is None
    assert refused(1.0, 99, 1, rewindable=True) is None


def batch(history: PromptHistory, lengths: list[int]) -> list[RecomputeCause | None]:
    """The causes of unrelated prompts with answers of 20 tokens, one after the other in one slot."""
    causes = []
    for task, prompt in enumerate(lengths):
        selection = SlotSelection()
        history.selected(0, selection)
        contents = history.launched(0, selection)
        found = history.reuse(contents, Prefill(selection, 1, prompt - 1, 1.0, float(task)))
        history.released(0, CachedPrompt(task, prompt + 20, prompt, float(task)))
        causes.append(found.cause)
    return causes


@pytest.mark.parametrize("host_cache", [True, False, None])
def test_reuse_batch_of_unrelated_prompts(host_cache: bool | None) -> None:
    """Lengths that fit each other by accident are not taken for a conversation."""
    history, numbers = PromptHistory(), random.Random(4)
    history.complete, history.host_cache = True, host_cache
    assert set(batch(history, [numbers.randrange(500, 1500) for _ in range(464)])) == {None}


def test_reuse_batch_fills_host_memory() -> None:
    history, numbers = PromptHistory(), random.Random(4)
    history.complete = history.host_cache = True
    batch(history, [numbers.randrange(500, 1500) for _ in range(40)])
    for _ in range(20):
        history.read("making room for prompt cache entry, removing oldest entry (size = 1.000 MiB)")
    assert set(batch(history, [numbers.randrange(500, 1500) for _ in range(100)])) == {None}


@pytest.mark.parametrize("seed", range(4))
def test_reuse_conversations_of_different_lengths(seed: int) -> None:
    """The first fit each other by accident; that they keep growing shows conversations. No cause is wrong meanwhile."""
    history, numbers = PromptHistory(), random.Random(seed)
    history.complete, history.host_cache = True, False
    prompts = [numbers.randrange(200, 600) for _ in range(4)]
    found: list[tuple[int, RecomputeCause | None]] = []
    for turn in range(60):
        slot, name = turn % 2, turn % 4
        prompt = prompts[name] + (numbers.randrange(10, 100) if turn > 3 else 0)
        selection = SlotSelection(unused=turn < 2)
        history.selected(slot, selection)
        contents = history.launched(slot, selection)
        reuse = history.reuse(contents, Prefill(selection, 1, prompt - 1, 1.0, float(turn)))
        prompts[name] = prompt + 20
        history.released(slot, CachedPrompt(turn, prompt + 20, prompt, float(turn)))
        found.append((turn, reuse.cause))
    assert {cause for turn, cause in found if turn > 3} <= {None, RecomputeCause.SLOT_TAKEN}
    assert {cause for turn, cause in found if turn >= 48} == {RecomputeCause.SLOT_TAKEN}


def test_reuse_logged_causes() -> None:
    reader = LogReader(ServerInfo("127.0.0.1", 8080))
    records: list[Completion] = []

    def turn(task: int, similarity: str, computed: int, held: int, *between: tuple[str, str]) -> None:
        slot = f"id  0 | task {task} |"
        for line in (
            f"slot get_availabl: id  0 | task -1 | selected slot by LCP similarity, f_sim_best = {similarity} (> 0.1",
            f"slot launch_slot_: {slot} processing task, is_child = 0",
            *(f"slot {function:>12}: {slot} {message}" for function, message in between),
            f"slot print_timing: {slot} prompt eval time =    1000.00 ms / {computed} tokens (",
            f"slot print_timing: {slot}        eval time =       1.00 ms /     1 tokens (",
            f"slot      release: {slot} stop processing: n_tokens = {held}, truncated = 0",
        ):
            records.extend(reader.feed(f"0.01.000.000 I {line}", 1000.0))

    forcing = ("operator()", "forcing full prompt re-processing due to lack of cache data (likely due to SWA or")
    restored = ("operator()", "restored context checkpoint (pos_min = 1, pos_max = 40, n_tokens = 41, n_past = 40)")
    erasing = (
        "create_check",
        "erasing old context checkpoint (pos_min = 1, pos_max = 40, n_tokens = 41, size = 1 MiB)",
    )
    turn(1, "0.500", 100, 100, forcing)
    turn(2, "0.500", 60, 100, restored, erasing)
    turn(3, "0.500", 100, 100, forcing)
    turn(4, "0.300", 100, 100, forcing)
    turn(5, "0.500", 100, 100)
    assert figures(records) == [
        (50, 0, 50, RecomputeCause.NO_CHECKPOINT),
        (50, 40, 10, RecomputeCause.NO_CHECKPOINT),
        (50, 0, 50, RecomputeCause.CHECKPOINT_EVICTED),
        (30, 0, 30, RecomputeCause.NO_CHECKPOINT),  # the erased checkpoint came after the change
        (50, 0, 50, RecomputeCause.UNKNOWN),
    ]
    assert [record.recompute_s for record in records] == pytest.approx([0.5, 1 / 6, 0.5, 0.3, 0.5])


def test_reuse_metrics() -> None:
    collector = PromptCacheCollector()
    lost = completion(
        prompt_reusable=20, prompt_cached=10, prompt_recomputed=10, recompute_s=0.25,
        recompute_cause=RecomputeCause.NO_CHECKPOINT,
    )  # fmt: skip
    list(collector.on_completion(lost))
    found = {(s.metric, s.attributes.get("cause")): s.value for s in collector.on_completion(lost)}
    assert found == {
        ("llamacpp.prompt_cache.reusable", None): 20,
        ("llamacpp.prompt_cache.reused", None): 10,
        ("llamacpp.prompt_cache.recomputed", "no_checkpoint"): 10,
        ("llamacpp.prompt_cache.recompute.duration", "no_checkpoint"): 0.25,
    }
    assert list(collector.on_completion(completion())) == []
