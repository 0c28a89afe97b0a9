"""Model shapes from metadata: from the architecture's rules, from the file, and unknown values."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamatel.errors import UsageError
from llamatel.gguf import parse_gguf_header
from llamatel.plan import ModelShape, Rope, shape_from_config, shape_from_gguf, shape_from_metadata
from llamatel.plan.architectures import ARCHITECTURES
from llamatel.plan.attention_kind import attention_summary
from llamatel.plan.verified import _by_architecture, verified_builds
from tests.exact.compare import shape_of
from tests.exact.models import MODELS
from tests.exact.writer import read_table, write_model


def shape(architecture: str, **keys: Any) -> ModelShape:
    metadata = {f"{architecture}.{key.replace('__', '.')}": value for key, value in keys.items()}
    return shape_from_metadata({"general.architecture": architecture, **metadata})


LLAMA_3_8B = {
    "block_count": 32,
    "embedding_length": 4096,
    "context_length": 8192,
    "attention__head_count": 32,
    "attention__head_count_kv": 8,
}


def test_shape_grouped_heads() -> None:
    model = shape("llama", **LLAMA_3_8B)
    assert len(model.layers) == 32
    assert {(layer.heads, layer.kv_heads, layer.key_length, layer.group_size) for layer in model.layers} == {
        (32, 8, 128, 4)
    }
    assert attention_summary(model) == "GQA, 4 query heads to a KV head"
    assert model.verified
    assert model.unknown == ()


@pytest.mark.parametrize(("kv_heads", "words"), [(None, "MHA"), (32, "MHA"), (1, "MQA, 32 query heads to a KV head")])
def test_shape_attention_kind_from_kv_heads(kv_heads: int | None, words: str) -> None:
    keys: dict[str, Any] = {**LLAMA_3_8B, "attention__head_count_kv": kv_heads}
    assert attention_summary(shape("llama", **{k: v for k, v in keys.items() if v is not None})) == words


def test_shape_gemma_3_dense_layers() -> None:
    model = shape(
        "gemma3",
        block_count=62,
        embedding_length=5376,
        attention__head_count=32,
        attention__head_count_kv=16,
        attention__key_length=128,
        attention__value_length=128,
        attention__sliding_window=1024,
    )
    assert [layer.index for layer in model.layers if layer.window is None] == list(range(5, 62, 6))
    assert "window of 1024 in 52 of 62 layers" in attention_summary(model)


def test_shape_unused_window() -> None:
    assert not shape("phi3", **LLAMA_3_8B, attention__sliding_window=2047).windowed
    assert not shape("qwen2", **LLAMA_3_8B, attention__sliding_window=4096).windowed


def test_shape_latent_attention_missing_keys() -> None:
    keys = {
        "block_count": 61,
        "embedding_length": 7168,
        "attention__head_count": 128,
        "attention__head_count_kv": 1,
        "attention__key_length": 576,
        "attention__value_length": 512,
    }
    assert not shape("deepseek2", **keys).latent
    model = shape("deepseek2", **keys, attention__key_length_mla=192, attention__value_length_mla=128)
    assert model.latent
    assert attention_summary(model) == "MLA"
    assert model.layers[0].key_width == 576


def test_shape_hybrid_states() -> None:
    model = shape(
        "qwen3next",
        block_count=48,
        embedding_length=2048,
        attention__head_count=16,
        attention__head_count_kv=2,
        attention__key_length=256,
        attention__value_length=256,
        ssm__conv_kernel=4,
        ssm__inner_size=4096,
        ssm__state_size=128,
        ssm__group_count=16,
    )
    assert [layer.index for layer in model.layers if layer.attends] == list(range(3, 48, 4))
    assert sum(layer.state is not None for layer in model.layers) == 36
    assert "recurrent state in 36 of 48 layers" in attention_summary(model)


def test_shape_draft_blocks_outside_trunk() -> None:
    model = shape("glm4moe", **{**LLAMA_3_8B, "block_count": 47}, nextn_predict_layers=1)
    assert len(model.trunk) == 46
    assert [layer.index for layer in model.drafting] == [46]
    assert not model.layers[46].cached


def test_shape_shared_kv_layers() -> None:
    model = shape(
        "gemma3n",
        block_count=30,
        embedding_length=2048,
        attention__head_count=8,
        attention__head_count_kv=2,
        attention__sliding_window=512,
    )
    assert [layer.index for layer in model.layers if layer.kv_from is None] == list(range(20))
    assert {layer.kv_from for layer in model.layers[20:] if layer.window} == {18}
    assert {layer.kv_from for layer in model.layers[20:] if not layer.window} == {19}


def test_shape_unknown_architecture() -> None:
    model = shape("frobnicator", **LLAMA_3_8B)
    assert not model.verified
    assert "frobnicator" in model.unknown[0]


def test_shape_missing_metadata_is_named() -> None:
    model = shape("mamba", block_count=4, embedding_length=64)
    assert any("mamba.ssm.inner_size" in reason for reason in model.unknown)


def test_shape_without_architecture() -> None:
    with pytest.raises(UsageError, match=r"general\.architecture"):
        shape_from_metadata({})


def test_architectures_verified_ones_have_a_row() -> None:
    assert {name for name in ARCHITECTURES if verified_builds(name)} == set(_by_architecture())


def test_config_plain() -> None:
    """meta-llama/Llama-3.2-1B."""
    model = shape_from_config(
        {
            "model_type": "llama",
            "hidden_size": 2048,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "max_position_embeddings": 131072,
            "vocab_size": 128256,
        }
    )
    assert attention_summary(model) == "GQA, 4 query heads to a KV head"
    assert (model.layers[0].heads, model.layers[0].kv_heads, model.layers[0].key_length) == (32, 8, 64)
    assert "config.json" in model.unknown[-1]


def test_config_layer_types() -> None:
    model = shape_from_config(
        {
            "model_type": "gpt_oss",
            "hidden_size": 2880,
            "num_hidden_layers": 24,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "sliding_window": 128,
            "layer_types": ["sliding_attention", "full_attention"] * 12,
        }
    )
    assert "window of 128 in 12 of 24 layers" in attention_summary(model)


def test_config_latent_attention() -> None:
    model = shape_from_config(
        {
            "model_type": "deepseek_v3",
            "hidden_size": 7168,
            "num_hidden_layers": 61,
            "num_attention_heads": 128,
            "num_key_value_heads": 128,
            "kv_lora_rank": 512,
            "qk_rope_head_dim": 64,
            "qk_nope_head_dim": 128,
            "v_head_dim": 128,
        }
    )
    assert model.latent
    assert model.layers[0].key_width == 576


def test_config_multimodal_hybrid() -> None:
    text = {
        "model_type": "lfm2",
        "hidden_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "conv_L_cache": 3,
        "layer_types": ["conv", "conv", "full_attention", "conv"],
    }
    model = shape_from_config({"model_type": "lfm2_vl", "text_config": text})
    assert [layer.attends for layer in model.layers] == [False, False, True, False]
    assert model.layers[0].state is not None
    assert model.layers[0].state.conv == 2048


SCALED = {
    "model_type": "llama",
    "num_hidden_layers": 1,
    "hidden_size": 128,
    "num_attention_heads": 2,
    "rope_theta": 500000.0,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192},
}


def test_shape_rotary_embeddings() -> None:
    metadata = {
        "rope.freq_base": 1e6,
        "rope.freq_base_swa": 1e4,
        "rope.dimension_count": 64,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 32768,
    }
    given = {f"llama.{key}": value for key, value in metadata.items()}
    found = shape_from_metadata({"general.architecture": "llama", "llama.block_count": 0, **given})
    assert found.rope == Rope(1e6, 1e4, 64, "yarn", 4.0, 32768)
    assert shape_from_config(SCALED).rope == Rope(500000.0, scaling="llama3", factor=8.0, original_context=8192)


@pytest.mark.parametrize("config", [{}, {"model_type": "llama"}])
def test_config_missing_fields(config: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        shape_from_config(config)


def test_shape_from_file_equals_shape_from_metadata(tmp_path: Path) -> None:
    table = read_table()
    for model in (m for m in MODELS if m.name in ("qwen35:drafting", "gemma4", "openelm", "deepseek4")):
        path = write_model(tmp_path / "m.gguf", model, table[model.name])
        header = parse_gguf_header(path, read_tensors=True)
        found = shape_from_gguf(header)
        assert found.weights is not None
        assert found.weights.n_bytes == header.n_bytes
        assert sum(found.weights.layer_bytes) + found.weights.input_bytes + found.weights.output_bytes >= header.n_bytes
        expected = shape_of(model, set(table[model.name]))
        assert replace(found, weights=None, file_type=None) == replace(expected, file_type=None)


def test_shape_file_type_guessed_by_loader() -> None:
    metadata = {"general.architecture": "llama", "llama.block_count": 1, "general.file_type": 15 | 1024}
    assert shape_from_metadata(metadata).file_type == "Q4_K_M"
