"""KV cache sizes of popular models, rebuilt as headers from their published hyperparameters.

Bytes of a token are written out in each row from the published numbers (layers x 2 x KV heads x head size x 2 bytes, or
the latent vector of MLA), not taken from llamatel.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llamatel.flags.server_settings import ServerSettings
from llamatel.gguf import parse_gguf_header
from llamatel.plan import shape_from_config, shape_from_gguf
from llamatel.plan.attention_kind import state_bytes, token_bytes
from llamatel.plan.cache_plan import cache_plan
from llamatel.plan.shape_from_gguf import shape_from_metadata
from tests.exact.real import REAL, TABLE, write_sparse
from tests.exact.writer import VOCABULARY, read_table

Keys = dict[str, Any]
KIB = 1024


@dataclass(frozen=True)
class Published:
    """One model: its GGUF's keys, what a token adds to the cache in f16, and the cache at 8192 tokens in one slot."""

    name: str
    architecture: str
    keys: Keys
    per_token: int
    windowed_per_token: int = 0
    window: int = 0
    states: int = 0


def _keys(layers: int, width: int, heads: int, kv_heads: Any, length: int, context: int = 131072, **more: Any) -> Keys:  # noqa: PLR0917
    return {
        "block_count": layers,
        "embedding_length": width,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": length,
        "attention.value_length": length,
        "context_length": context,
        **{key.replace("__", "."): value for key, value in more.items()},
    }


def _kv(layers: int, kv_heads: int, length: int) -> int:
    return layers * 2 * kv_heads * length * 2


def _mla(layers: int, width: int, heads: int, context: int, nope: int = 128, value: int = 128) -> Keys:  # noqa: PLR0917
    return _keys(layers, width, heads, 1, 576, context) | {
        "attention.value_length": 512,
        "attention.kv_lora_rank": 512,
        "attention.key_length_mla": nope + 64,
        "attention.value_length_mla": value,
    }


_LFM2 = [0, 0, 8, 0, 0, 8, 0, 0, 8, 0, 8, 0, 8, 0, 8, 0]
_GRANITE = [8 if layer in (5, 15, 25, 35) else 0 for layer in range(40)]
_DELTA = {"ssm__conv_kernel": 4, "ssm__state_size": 128, "ssm__group_count": 16, "full_attention_interval": 4}

MODELS = (
    Published("Llama-3.1-8B", "llama", _keys(32, 4096, 32, 8, 128), _kv(32, 8, 128)),  # 128 KiB
    Published("Llama-3.2-1B", "llama", _keys(16, 2048, 32, 8, 64), _kv(16, 8, 64)),
    Published("Llama-3.2-3B", "llama", _keys(28, 3072, 24, 8, 128), _kv(28, 8, 128)),
    Published("Llama-3.1-70B", "llama", _keys(80, 8192, 64, 8, 128), _kv(80, 8, 128)),  # 320 KiB
    Published("Mistral-7B-v0.3", "llama", _keys(32, 4096, 32, 8, 128, 32768), _kv(32, 8, 128)),
    Published("Mixtral-8x7B", "llama", _keys(32, 4096, 32, 8, 128, 32768, expert_count=8), _kv(32, 8, 128)),
    Published("Qwen3-4B", "qwen3", _keys(36, 2560, 32, 8, 128, 40960), _kv(36, 8, 128)),
    Published("Qwen3-8B", "qwen3", _keys(36, 4096, 32, 8, 128, 40960), _kv(36, 8, 128)),  # 144 KiB
    Published("Qwen3-30B-A3B", "qwen3moe", _keys(48, 2048, 32, 4, 128, 40960), _kv(48, 4, 128)),  # 96 KiB
    Published("Qwen2.5-7B", "qwen2", _keys(28, 3584, 28, 4, 128, 32768), _kv(28, 4, 128)),  # 56 KiB
    Published("Phi-4", "phi3", _keys(40, 5120, 40, 10, 128, 16384), _kv(40, 10, 128)),  # 200 KiB
    Published("Phi-3.5-mini", "phi3", _keys(32, 3072, 32, 32, 96), _kv(32, 32, 96)),  # 384 KiB
    Published(
        "Gemma-3-4B", "gemma3", _keys(34, 2560, 8, 4, 256, attention__sliding_window=1024), _kv(5, 4, 256),
        _kv(29, 4, 256), 1024,
    ),
    Published(
        "Gemma-3-27B", "gemma3", _keys(62, 5376, 32, 16, 128, attention__sliding_window=1024), _kv(10, 16, 128),
        _kv(52, 16, 128), 1024,
    ),
    Published(
        "gpt-oss-20b", "gpt-oss", _keys(24, 2880, 64, 8, 64, attention__sliding_window=128), _kv(12, 8, 64),
        _kv(12, 8, 64), 128,
    ),
    Published(
        "gpt-oss-120b", "gpt-oss", _keys(36, 2880, 64, 8, 64, attention__sliding_window=128), _kv(18, 8, 64),
        _kv(18, 8, 64), 128,
    ),
    Published("DeepSeek-V2-Lite", "deepseek2", _mla(27, 2048, 16, 163840), 27 * 576 * 2),
    Published("DeepSeek-V3", "deepseek2", _mla(61, 7168, 128, 163840), 61 * 576 * 2),  # 68.6 KiB
    Published(
        "GLM-4.5-Air", "glm4moe", _keys(47, 4096, 96, 8, 128, nextn_predict_layers=1), _kv(46, 8, 128)
    ),
    Published("GLM-4.7-Flash", "deepseek2", _mla(47, 2048, 20, 202752, 192, 256), 47 * 576 * 2),
    Published("Granite-3.3-8B", "granite", _keys(40, 4096, 32, 8, 128), _kv(40, 8, 128)),  # 160 KiB
    Published(
        "Granite-4.0-H-Small", "granitehybrid",
        _keys(40, 4096, 32, _GRANITE, 128, ssm__conv_kernel=4, ssm__inner_size=8192, ssm__state_size=128,
              ssm__group_count=1),
        _kv(4, 8, 128), states=36 * 4 * (3 * (8192 + 2 * 128) + 128 * 8192),
    ),
    Published(
        "Falcon-H1-1.5B", "falcon-h1",
        _keys(24, 2048, 8, 2, 128, ssm__conv_kernel=4, ssm__inner_size=3072, ssm__state_size=256, ssm__group_count=1),
        _kv(24, 2, 128), states=24 * 4 * (3 * (3072 + 2 * 256) + 256 * 3072),
    ),
    Published(
        "LFM2-1.2B", "lfm2", _keys(16, 2048, 32, _LFM2, 64, 128000, shortconv__l_cache=3), _kv(6, 8, 64),
        states=10 * 4 * 2048 * 2,
    ),
    Published(
        "Qwen3-Next-80B-A3B", "qwen3next", _keys(48, 2048, 16, 2, 256, 262144, ssm__inner_size=4096, **_DELTA),
        _kv(12, 2, 256), states=36 * 4 * (3 * (4096 + 2 * 16 * 128) + 128 * 4096),
    ),
)  # fmt: skip


def _metadata(model: Published) -> dict[str, Any]:
    keys = {f"{model.architecture}.{key}": value for key, value in model.keys.items()}
    return {"general.architecture": model.architecture, **keys}


@pytest.mark.parametrize("model", MODELS, ids=[model.name for model in MODELS])
def test_real_model_cache_equals_published_numbers(model: Published) -> None:
    shape = shape_from_metadata(_metadata(model))
    added = token_bytes(shape)
    assert added is not None
    assert (added.lasting, added.windowed) == (model.per_token, model.windowed_per_token)
    assert state_bytes(shape) == model.states
    context = 8192
    plan = cache_plan(shape, ServerSettings(ctx_size=context, parallel=1))
    cells = min(context, -(-(model.window + 512) // 256) * 256)
    assert plan.total_bytes == model.per_token * context + model.windowed_per_token * cells + model.states
    assert not shape.unknown


@pytest.mark.parametrize(
    ("name", "kib"),
    [
        ("Llama-3.1-8B", 128), ("Llama-3.1-70B", 320), ("Qwen3-8B", 144), ("Qwen3-30B-A3B", 96), ("Qwen2.5-7B", 56),
        ("Phi-4", 200),
    ],
)  # fmt: skip
def test_real_model_bytes_per_token_equal_publications(name: str, kib: int) -> None:
    model = next(each for each in MODELS if each.name == name)
    assert model.per_token == kib * KIB


CONFIGS: dict[str, dict[str, Any]] = {
    "Llama-3.1-8B": {
        "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
        "num_key_value_heads": 8, "max_position_embeddings": 131072,
    },
    "Qwen3-30B-A3B": {
        "model_type": "qwen3_moe", "num_hidden_layers": 48, "hidden_size": 2048, "num_attention_heads": 32,
        "num_key_value_heads": 4, "head_dim": 128, "max_position_embeddings": 40960,
    },
    "Gemma-3-4B": {
        "model_type": "gemma3", "text_config": {"hidden_size": 2560, "num_hidden_layers": 34, "sliding_window": 1024},
    },
    "gpt-oss-20b": {
        "model_type": "gpt_oss", "num_hidden_layers": 24, "hidden_size": 2880, "num_attention_heads": 64,
        "num_key_value_heads": 8, "head_dim": 64, "sliding_window": 128, "max_position_embeddings": 131072,
        "layer_types": ["sliding_attention", "full_attention"] * 12,
    },
    "DeepSeek-V3": {
        "model_type": "deepseek_v3", "num_hidden_layers": 61, "hidden_size": 7168, "num_attention_heads": 128,
        "num_key_value_heads": 128, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128,
        "v_head_dim": 128, "max_position_embeddings": 163840,
    },
    "Qwen3-Next-80B-A3B": {
        "model_type": "qwen3_next", "num_hidden_layers": 48, "hidden_size": 2048, "num_attention_heads": 16,
        "num_key_value_heads": 2, "head_dim": 256, "max_position_embeddings": 262144, "linear_num_value_heads": 32,
        "linear_value_head_dim": 128, "linear_num_key_heads": 16, "linear_key_head_dim": 128,
        "linear_conv_kernel_dim": 4,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_real_model_config_and_gguf_give_the_same_plan(name: str) -> None:
    model = next(each for each in MODELS if each.name == name)
    settings = ServerSettings(ctx_size=16384, parallel=2)
    ours, theirs = shape_from_config(CONFIGS[name]), shape_from_metadata(_metadata(model))
    assert cache_plan(ours, settings).total_bytes == cache_plan(theirs, settings).total_bytes > 0
    assert ours.context_length == theirs.context_length


PARAMETERS = {
    "llama:3.2-1B": (1_235_814_400, 128256, 1), "llama:3.1-8B": (8_030_261_248, 128256, 2),
    "qwen3:8B": (8_190_735_360, 151936, 2), "qwen3moe:30B-A3B": (30_532_122_624, 151936, 2),
    "gemma3:27B": (27_009_346_304, 262208, 1), "deepseek2:V2-Lite": (15_706_484_224, 102400, 2),
    "lfm2:1.2B": (1_170_340_608, 65536, 1), "mamba2:2.7B": (2_702_599_680, 50288, 1),
}  # fmt: skip
"""Published numbers of parameters, the vocabulary, and its matrices: 2 where the output is not the embeddings."""


@pytest.mark.parametrize("name", PARAMETERS)
def test_real_model_weights_equal_published_parameters(name: str, tmp_path: Path) -> None:
    published, vocabulary, matrices = PARAMETERS[name]
    model = next(each for each in REAL if each.name == name)
    path = write_sparse(tmp_path / "model.gguf", model, read_table(TABLE)[name])
    weights = shape_from_gguf(parse_gguf_header(path, read_tensors=True)).weights
    assert weights is not None
    width = model.metadata["embedding_length"]
    stored = next(number for part, number, _ in weights.parts if part == "embeddings")
    assert stored == VOCABULARY * width  # the suite's models have a small vocabulary
    assert weights.parameters - stored == published - matrices * vocabulary * width
    assert weights.n_bytes <= path.stat().st_size < weights.n_bytes + 200_000  # the header, and padding
