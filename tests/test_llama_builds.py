"""Plans by the rules of the running llama.cpp build, and which plans are exact for which build."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamatel.flags.server_settings import FIT_PER_SLOT_SINCE
from llamatel.llama.watch.kv_state import LoadedModel
from llamatel.llama.watch.model_file import _compared
from llamatel.plan import CachePlan, ModelShape, cache_plan, parse_server_flags, shape_from_metadata
from llamatel.plan.cache_plan import plan_error
from llamatel.plan.llama_build import LlamaBuild, parse_build
from llamatel.plan.verified import in_words, newest_verified, verified_builds
from tests.exact.builds import server
from tests.exact.models import MODELS
from tests.exact.verified_table import merged, ranges_of, recorded_table
from tests.exact.verify import Job, judged, run
from tests.parts import MissingPart, in_ci


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("b11549-0c1e570", 11549), ("b11669-Debian", 11669), ("b7001", 7001), ("2026.10.11549", 11549),
        ("2026.4.8672.1", 8672), ("0.2.14", 8352), ("0.2.7", 7376), ("0.5.0-dev", 11433),
        ("b1-0c1e570", None), ("0.9.0", None), ("", None),
    ],
)  # fmt: skip
def test_parse_build_numbers(text: str, number: int | None) -> None:
    build = parse_build(text)
    assert build == LlamaBuild(text, number)
    assert parse_build(None) is None


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("name", "model", "flags"),
    [
        ("0.2.7", "deepseek2", "-c 4096 -np 2"),  # a V alongside the latent vector until January 2026
        ("2026.8.10229", "glm4moe", "--spec-type draft-mtp -c 2048"),  # all layers in the draft context
        ("2026.9.11063", "glm4moe", "--spec-type draft-mtp -c 2048"),
        ("2026.9.11063", "deepseek2:drafting", "--spec-type draft-mtp -c 2048"),
        ("2026.9.11063", "cohere2moe:drafting", "--spec-type draft-mtp -c 2048"),
        ("0.2.11", "deepseek2", "-c 4096 -np 2"),  # no V any more
        ("0.2.8", "gemma2:window", "-c 4096 -np 1"),  # one slot
        ("2026.8.10229", "glm-dsa:types", "-c 4096 -np 1"),  # an indexer in every layer
        ("2026.7.9873", "deepseek32:drafting", "--spec-type draft-mtp -c 2048"),
        ("0.2.7", "gemma3", "-c 4096 -np 1"),  # -np 1 was the default, four slots in one pool
        ("library", "beam", "-c 4096 -np 1"),
        ("2026.8.10566", "qwen3", "-c 0 -np 2 -fit on"),  # one trained context for all slots
        ("2026.9.10809", "qwen3", "-c 0 -np 2 -fit on"),  # one for each
        ("2026.9.11063", "qwen4exp", "-c 4096 -np 1"),
        ("2026.10.11549", "qwen4exp", "-c 4096 -np 1"),  # raw and pooled keys in the indexer
        ("sid", "qwen3", "-c 0 -np 3 -fit on"),
        ("sid", "maion-coder", "-c 4096 -np 2"),
    ],
)
def test_plan_by_build(name: str, model: str, flags: str, tmp_path: Path) -> None:
    try:
        of = server(name)
    except MissingPart as missing:
        if in_ci():
            raise
        pytest.skip(str(missing))
    [found] = [each for each in MODELS if each.name == model]
    rows = run([Job(found, [tuple(flags.split())])], 1, tmp_path, of)
    assert judged(rows) == rows
    assert [str(row) for row in rows if not row.equal] == []


QWEN4EXP: dict[str, Any] = {
    "general.architecture": "qwen4exp", "qwen4exp.block_count": 4, "qwen4exp.embedding_length": 128,
    "qwen4exp.context_length": 4096, "qwen4exp.attention.head_count": 4, "qwen4exp.attention.head_count_kv": 2,
    "qwen4exp.attention.key_length": 64, "qwen4exp.attention.value_length": 64, "qwen4exp.ssm.conv_kernel": 4,
    "qwen4exp.ssm.inner_size": 128, "qwen4exp.ssm.state_size": 32, "qwen4exp.ssm.group_count": 2,
    "qwen4exp.ssm.time_step_rank": 4, "qwen4exp.attention.indexer.key_length": 64,
    "qwen4exp.attention.compress_ratios": [4, 4, 4, 4],
}  # fmt: skip


def plan_for(build: str | None) -> CachePlan:
    shape = shape_from_metadata(QWEN4EXP, build=parse_build(build))
    return cache_plan(shape, parse_server_flags(["-c", "4096", "-np", "1"], environ={}))


def test_plan_exact_only_for_verified_builds() -> None:
    ranges = verified_builds("qwen4exp")
    assert len(ranges) == 2  # the rules changed between them
    first, last = ranges[0][0], ranges[-1][1]
    assert last == newest_verified()
    for build in (None, f"b{first}", f"b{last}", f"2026.10.{last}"):
        found = plan_for(build)
        assert (found.exact, found.why_not_exact) == (True, None)
        assert found.verified_with == f"llama.cpp {in_words(ranges)}"
    assert plan_for(f"b{last}").total_bytes > plan_for(f"b{first}").total_bytes
    for build in (f"b{last + 1}", f"b{first - 1}", f"b{ranges[0][1] + 1}", "b1-abcdef"):
        found = plan_for(build)
        assert not found.exact
        assert found.why_not_exact is not None
        assert in_words(ranges) in found.why_not_exact
        assert f"this is {build}" in found.why_not_exact


def test_plan_unnumbered_build_exact_if_all_builds_agree() -> None:
    keys = ("block_count", "embedding_length", "context_length", "attention.head_count")
    metadata = {"general.architecture": "llama"} | {f"llama.{key}": 64 for key in keys}
    settings = parse_server_flags(["-c", "512"], environ={})
    assert cache_plan(shape_from_metadata(metadata, build=parse_build("b1-0c1e570")), settings).exact
    assert not cache_plan(shape_from_metadata(metadata, build=parse_build("b99999")), settings).exact


def test_plan_slot_context_by_build() -> None:
    shape = ModelShape("llama", (), context_length=4096)
    settings = parse_server_flags(["-c", "0", "-np", "3"], environ={})
    for number, context in ((FIT_PER_SLOT_SINCE - 1, 4608), (FIT_PER_SLOT_SINCE, 12288)):
        cells = cache_plan(replace(shape, build=LlamaBuild("b", number)), settings).cells
        assert cells is not None
        assert cells.context == context
    for flags, context in (("-c 0 -np 3 -fit off", 4608), ("-c 0 -np 3 -kvu", 4096), ("-c 0", 4096)):
        cells = cache_plan(shape, parse_server_flags(flags.split(), environ={})).cells
        assert cells is not None
        assert cells.context == context


def test_plan_withdrawn_after_different_reported_size(caplog: pytest.LogCaptureFixture) -> None:
    plan = plan_for(None)
    shape = shape_from_metadata(QWEN4EXP)
    model = LoadedModel(shape, parse_server_flags([], environ={}), plan)
    right = {"k": plan.total_bytes + 5000}  # rounded
    assert plan_error(plan, right) == 0
    assert _compared(model, right).plan_error_bytes == 0
    assert _compared(model, right).sure is plan
    assert _compared(model, {}).plan_error_bytes is None
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        wrong = _compared(model, {"k": plan.total_bytes * 2})
    assert (wrong.sure, wrong.plan_error_bytes) == (None, plan.total_bytes)
    assert wrong.plan is not None
    assert "more than planned" in str(wrong.plan.why_not_exact)
    assert len(caplog.records) == 1
    less = _compared(model, {"k": plan.total_bytes // 2})
    assert less.plan is not None
    assert "less than planned" in str(less.plan.why_not_exact)


def test_table_of_builds_gives_the_verified_ranges() -> None:
    table = recorded_table()
    assert len(table) > 12
    for name in {name for marks in table.values() for name in marks}:
        assert ranges_of(name, table) == " ".join(f"{first}-{last}" for first, last in verified_builds(name))


def test_table_of_builds_keeps_what_a_run_does_not_cover() -> None:
    old, new = LlamaBuild("b9000", 9000), LlamaBuild("2026.5.9000", 9000)
    assert merged({old: {"llama": "=", "qwen3": "≠"}}, {new: {"qwen3": "="}}) == {old: {"llama": "=", "qwen3": "="}}
