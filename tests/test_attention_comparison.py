"""Comparison of MHA, GQA, MQA and MLA, and bytes per token: known figures, and equality with the cache plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llamatel.flags.cache_types import CACHE_TYPES
from llamatel.plan import ModelShape, cache_plan, parse_server_flags, shape_from_metadata
from llamatel.plan.attention_comparison import AttentionLayer, Variant, compare, compare_shape
from llamatel.plan.attention_kind import attention_kind, group_sizes, meaning, state_bytes, token_bytes
from tests.exact.compare import shape_of
from tests.exact.models import MODELS, TinyModel
from tests.exact.writer import read_table


def shape(architecture: str = "llama", **keys: Any) -> ModelShape:
    metadata = {f"{architecture}.{key.replace('__', '.')}": value for key, value in keys.items()}
    return shape_from_metadata({"general.architecture": architecture, **metadata})


LLAMA_3_8B: dict[str, Any] = {
    "block_count": 32,
    "embedding_length": 4096,
    "attention__head_count": 32,
    "attention__head_count_kv": 8,
}


def by_name(variants: tuple[Variant, ...]) -> dict[str, Variant]:
    return {variant.name: variant for variant in variants}


def test_compare_hidden_1024_with_8_heads() -> None:
    found = by_name(compare([AttentionLayer(1024, 8, 8, 128, 128)]))
    assert found["MHA"].kv_parameters == 2_097_152
    assert found["MQA"].kv_parameters == 262_144
    assert found["MHA"].own
    assert not found["MQA"].own


def test_compare_d_model_256_with_16_heads_and_biases() -> None:
    found = by_name(compare([AttentionLayer(256, 16, 4, 16, 16, bias=True)]))
    figures = {name: variant.attention_parameters for name, variant in found.items()}
    assert figures["MHA"] == 263_168
    assert figures["MQA"] == 139_808
    assert figures["GQA of 4"] == 164_480
    assert found["GQA of 4"].own
    assert found["GQA of 4"].kv_heads == 4
    assert round(100 * (1 - 139_808 / 263_168), 1) == 46.9
    assert round(100 * (1 - 164_480 / 263_168), 1) == 37.5


def test_compare_shape_llama_3_8b() -> None:
    model = shape(**LLAMA_3_8B)
    assert (attention_kind(model), group_sizes(model)) == ("GQA", (4,))
    assert meaning(model) == ("4 query heads share one key and one value: the cache is 1/4 of MHA's.",)
    found = by_name(compare_shape(model))
    assert [name for name, variant in found.items() if variant.own] == ["GQA of 4"]
    assert {name: variant.kv_heads for name, variant in found.items()} == {
        "MHA": 32, "GQA of 4": 8, "GQA of 8": 4, "MQA": 1
    }  # fmt: skip
    assert found["MHA"].kv_parameters == 32 * 2 * 4096 * 4096
    assert found["GQA of 4"].kv_parameters == 32 * 2 * 4096 * 1024
    assert found["GQA of 4"].cache_bytes() == 131_072  # 128 KiB a token: 16 GiB at 131,072 tokens
    tokens = token_bytes(model)
    assert tokens is not None
    assert (tokens.lasting, tokens.windowed) == (131_072, 0)


@pytest.mark.parametrize(
    ("kv_heads", "kind", "sentence"),
    [
        (32, "MHA", "Every query head has its own keys and values: the largest cache."),
        (1, "MQA", "All 32 query heads share one key and one value: the cache is 1/32 of MHA's."),
        (16, "GQA", "2 query heads share one key and one value: the cache is 1/2 of MHA's."),
        ([8] * 31 + [4], "GQA", "Layers differ in how many query heads share a key and a value (see --layers)."),
        ([32] * 31 + [1], "MHA/MQA", "Layers differ in how many query heads share a key and a value (see --layers)."),
    ],
)
def test_attention_kind_and_meaning(kv_heads: Any, kind: str, sentence: str) -> None:
    model = shape(**{**LLAMA_3_8B, "attention__head_count_kv": kv_heads})
    assert attention_kind(model) == kind
    assert meaning(model) == (sentence,)
    own = [variant for variant in compare_shape(model) if variant.own]
    assert len(own) == 1
    assert own[0].name == ("as it is" if isinstance(kv_heads, list) else kind if kind != "GQA" else "GQA of 2")


def test_compare_single_head() -> None:
    variants = compare([AttentionLayer(64, 1, 1, 64, 64)])
    assert [(variant.name, variant.own) for variant in variants] == [("MHA", True)]
    assert compare([]) == ()


def test_compare_shape_latent_model() -> None:
    deepseek_v3 = {
        "block_count": 61,
        "embedding_length": 7168,
        "attention__head_count": 128,
        "attention__head_count_kv": 1,
        "attention__key_length": 576,
        "attention__value_length": 512,
        "attention__key_length_mla": 192,
        "attention__value_length_mla": 128,
        "attention__kv_lora_rank": 512,
    }
    model = shape("deepseek2", **deepseek_v3)
    assert attention_kind(model) == "MLA"
    assert meaning(model)[0].startswith("One vector of 576 values per token and layer replaces all heads'")
    assert compare_shape(model) == ()
    found = by_name(compare_shape(model, head_lengths=(192, 128)))
    assert found["MHA"].cache_values == 61 * 128 * (192 + 128)
    assert (found["MLA"].cache_values, found["MLA"].kv_parameters, found["MLA"].own) == (61 * 576, None, True)
    assert sum(variant.own for variant in found.values()) == 1


def test_meaning_windows_chunks_and_states() -> None:
    gemma3 = shape("gemma3", **{**LLAMA_3_8B, "block_count": 12, "attention__sliding_window": 1024})
    assert "10 of 12 layers see the last 1,024 tokens only: their cache stops growing there." in meaning(gemma3)
    tokens = token_bytes(gemma3)
    assert tokens is not None
    assert (tokens.lasting, tokens.windowed) == (2 * 4096, 10 * 4096)
    llama4 = shape("llama4", **{**LLAMA_3_8B, "block_count": 4})
    assert any("see only their chunk of 8,192 tokens" in sentence for sentence in meaning(llama4))
    mamba = shape(
        "mamba", block_count=2, embedding_length=64, ssm__conv_kernel=4, ssm__inner_size=128, ssm__state_size=16
    )
    assert (attention_kind(mamba), compare_shape(mamba)) == ("none", ())
    assert meaning(mamba)[0] == "No layer attends: memory does not grow with the context."
    assert state_bytes(mamba) == 2 * 4 * (3 * 128 + 128 * 16)


def test_token_bytes_quantised_needs_whole_blocks() -> None:
    assert token_bytes(shape(**LLAMA_3_8B), 32, 34) is not None
    assert token_bytes(shape(**{**LLAMA_3_8B, "embedding_length": 2560}), 32, 34) is None  # heads of 80


_TENSORS = read_table()


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_token_bytes_equal_cache_plan(model: TinyModel) -> None:
    found = replace(shape_of(model, set(_TENSORS[model.name])), needs_target=False)
    for kind in ("f16", "q8_0"):
        flags = f"-c 1024 -np 1 --swa-full -fit off -ctk {kind} -ctv {kind}"
        plan = cache_plan(found, parse_server_flags(flags.split(), environ={}))
        tokens = token_bytes(found, *CACHE_TYPES[kind])
        if plan.refused is not None:
            assert tokens is None or tokens.total == 0 or found.cache in ("recurrent", "none") or kind != "f16"
            continue
        if found.cache == "compressed":
            assert tokens is None
            continue
        assert tokens is not None
        growing = [part for part in plan.parts if part.kind not in ("recurrent", "state")]
        assert tokens.total * 1024 == sum(part.total_bytes for part in growing)
        assert state_bytes(found) == plan.total_bytes - sum(part.total_bytes for part in growing)
