"""Cache plans against llama-server: a quick sample of the exactness suite, and sizes worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamatel.flags.server_settings import resolve
from llamatel.plan import CachePlan, ModelShape, ServerSettings, cache_plan, parse_server_flags, shape_from_metadata
from llamatel.plan.llama_build import parse_build
from tests.exact.compare import shape_of
from tests.exact.grid import GRID, settings_for
from tests.exact.models import MODELS
from tests.exact.tensor_names import expand
from tests.exact.verify import Job, pairs, run
from tests.exact.writer import format_table, read_table
from tests.parts import MissingPart, in_ci

MIB = 1 << 20

SAMPLE = frozenset(
    {
        "llama", "gemma2:window", "gemma3n", "gemma4", "gpt-oss", "llama4", "deepseek2", "deepseek32:drafting",
        "glm-dsa:types", "dots3note", "minimax-m3", "deepseek4", "mamba", "rwkv7", "jamba", "falcon-h1", "lfm2:window",
        "qwen35:drafting", "kimi-linear", "qwen4exp", "nemotron_h", "openelm", "mimo2", "bert",
    }
)  # fmt: skip


def plan(shape: ModelShape, flags: str) -> CachePlan:
    return cache_plan(shape, parse_server_flags(["-fit", "off", *flags.split()], environ={}))


def metadata(architecture: str, **keys: Any) -> ModelShape:
    values = {f"{architecture}.{key.replace('__', '.')}": value for key, value in keys.items()}
    return shape_from_metadata({"general.architecture": architecture, **values})


LLAMA_3_8B = metadata(
    "llama",
    block_count=32,
    embedding_length=4096,
    context_length=131072,
    attention__head_count=32,
    attention__head_count_kv=8,
)
GEMMA_3_27B = metadata(
    "gemma3",
    block_count=62,
    embedding_length=5376,
    context_length=131072,
    attention__head_count=32,
    attention__head_count_kv=16,
    attention__key_length=128,
    attention__value_length=128,
    attention__sliding_window=1024,
)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_cache_plan_equals_llama_server_allocations(tmp_path: Path) -> None:
    """Every kind of cache, three settings of the grid each, another three for each model."""
    models = [model for model in MODELS if model.name in SAMPLE]
    assert len(models) == len(SAMPLE)
    jobs = []
    for number, model in enumerate(models):
        settings = settings_for(model)
        chosen = [settings[(number * 3 + i) % len(settings)] for i in range(3)]
        jobs.append(Job(model, [*chosen, *settings[len(GRID) :]]))
    jobs += [Job(job.model, job.settings[number % 3 :: 3], job.draft) for number, job in enumerate(pairs())]
    try:
        rows = run(jobs, workers=2, folder=tmp_path)
    except MissingPart as missing:
        if in_ci():
            raise
        pytest.skip(str(missing))
    assert not [str(row) for row in rows if not row.equal]


def test_exactness_models_have_tensors() -> None:
    table = read_table()
    assert {model.name for model in MODELS} == set(table)
    assert read_table(text=format_table(table)) == table
    assert expand("blk.{0,2-3}.a.weight 4 2") == {f"blk.{i}.a.weight": (4, 2) for i in (0, 2, 3)}


def test_exactness_models_planned_as_exact() -> None:
    table = read_table()
    for model in MODELS:
        # The newest builds crash on the suite's deepseek4, which is compared with those before.
        build = parse_build("0.5.0-dev") if model.architecture == "deepseek4" else None
        shape = shape_of(model, set(table[model.name]), build)
        assert shape.needs_target is (model.target is not None)
        if model.target is None:
            planned = plan(shape, "-c 4096 -np 1")
            assert planned.exact, (model.name, planned.why_not_exact)


def test_cache_plan_draft_model_has_own_cache_types() -> None:
    small = metadata("qwen2", block_count=2, embedding_length=256, context_length=512, attention__head_count=4)
    alone = plan(LLAMA_3_8B, "-c 8192 -np 2 -ctk q8_0 -ctv q8_0")
    both = plan(replace(LLAMA_3_8B, draft=small), "-c 8192 -np 2 -ctk q8_0 -ctv q8_0 -md small.gguf -ctkd q4_0")
    assert both.exact
    added = [part for part in both.parts if part.separate]
    assert [part.kind for part in added] == ["global"]
    assert both.parts[: len(alone.parts)] == alone.parts
    cells = 2 * 4096  # as many as the target model, although the draft model was trained on 512
    assert added[0].bytes_of("k") == 2 * 256 * 18 // 32 * cells
    assert added[0].bytes_of("v") == 2 * 256 * 2 * cells


def test_cache_plan_unread_draft_model_is_inexact() -> None:
    planned = plan(LLAMA_3_8B, "-c 8192 -md elsewhere.gguf")
    assert not planned.exact
    assert "was not read" in str(planned.why_not_exact)


def test_cache_plan_draft_only_model_refused_alone() -> None:
    eagle = metadata("eagle3", block_count=1, embedding_length=256, context_length=512, attention__head_count=4)
    assert plan(eagle, "-c 512").refused == "requires ctx_other to be set"
    assert plan(replace(LLAMA_3_8B, draft=eagle), "-c 512 -md eagle.gguf --spec-type draft-eagle3").exact


@pytest.mark.parametrize(
    ("flags", "mib"),
    [("-c 8192 -np 1", 1024), ("-c 8192", 1024), ("-c 8192 -np 3", 1056), ("-c 8192 -np 1 -ctk q8_0 -ctv q8_0", 544)],
)
def test_cache_plan_llama_3_8b(flags: str, mib: int) -> None:
    planned = plan(LLAMA_3_8B, flags)
    assert planned.total_bytes == mib * MIB
    assert planned.bytes_of("k") == planned.bytes_of("v")


@pytest.mark.parametrize(("flags", "mib"), [("-np 1", 3184), ("", 4432), ("-np 4", 5056), ("-np 1 --swa-full", 15872)])
def test_cache_plan_gemma_3_27b_at_32768(flags: str, mib: int) -> None:
    """The figures are those of kv-cache.md, section 9."""
    assert plan(GEMMA_3_27B, f"-c 32768 {flags}").total_bytes == mib * MIB


def test_resolve_default_is_four_unified_slots() -> None:
    cells = resolve(parse_server_flags(["-c", "3000"], environ={}), 4096)
    assert cells is not None
    assert (cells.context, cells.per_stream, cells.streams, cells.slots) == (3072, 3072, 1, 4)


@pytest.mark.parametrize(
    ("flags", "context"), [("-c 512 -np 4", 1024), ("-c 8192 -np 3", 8448), ("-c 2048 -np 8", 2048)]
)
def test_resolve_split_slots_are_rounded_up(flags: str, context: int) -> None:
    cells = resolve(parse_server_flags(flags.split(), environ={}), 4096)
    assert cells is not None
    assert cells.context == context


def test_resolve_fit_gives_each_split_slot_full_context() -> None:
    on, off = (resolve(ServerSettings(parallel=2, fit=fit), 4096) for fit in (True, False))
    assert on is not None
    assert off is not None
    assert (on.context, off.context) == (8192, 4096)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("-ctv q8_0 -fa off", "quantized V cache requires flash_attn to be enabled"),
        ("-np 300", "n_seq_max must be <= 256"),
        ("--spec-type draft-mtp", "context type MTP requested but model doesn't contain MTP layers"),
    ],
)
def test_cache_plan_settings_refused_by_llama_server(flags: str, reason: str) -> None:
    planned = plan(LLAMA_3_8B, f"-c 4096 {flags}")
    assert planned.refused == reason
    assert planned.parts == ()


def test_cache_plan_head_of_80_refuses_quantised_cache() -> None:
    phi = metadata("phi2", block_count=32, embedding_length=2560, context_length=2048, attention__head_count=32)
    assert "does not divide n_embd_head_k=80" in str(plan(phi, "-c 2048 -ctk q8_0").refused)


def test_cache_plan_unverified_architecture_is_inexact() -> None:
    other = metadata("frobnicator", block_count=2, embedding_length=64, context_length=512, attention__head_count=2)
    planned = plan(other, "-c 512 -np 1")
    assert not planned.exact
    assert "frobnicator" in str(planned.why_not_exact)


def test_cache_plan_without_context_length() -> None:
    planned = plan(metadata("llama", block_count=2, embedding_length=64, attention__head_count=2), "-np 1")
    assert planned.cells is None
    assert not planned.exact
    assert "-c" in str(planned.why_not_exact)


PASTED = (
    "-m x.gguf --host ::1 --ctx-size 8192 --parallel 2 --kv-unified -ctk q8_0 --temp 0.7 -ngl 99 -ts 1,1 --jinja "
    "--no-kv-unified"
)


def test_parse_server_flags_full_command_line() -> None:
    settings = parse_server_flags(
        PASTED.split(),
        environ={"LLAMA_ARG_CTX_SIZE": "1024", "LLAMA_ARG_UBATCH": "256"},
    )
    assert settings.model == "x.gguf"
    assert (settings.ctx_size, settings.parallel, settings.unified) == (8192, 2, False)
    assert (settings.cache_type_k, settings.ubatch_size) == ("q8_0", 256)
    assert (settings.gpu_layers, settings.tensor_split) == (99, (1.0, 1.0))
