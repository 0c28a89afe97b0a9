"""Configurations of models that cache one latent vector for all heads (MLA), and of indexers.

Source: llama.cpp's ``conversion/*.py`` (b11434, October 2026) and the defaults that transformers' classes compute
(``__post_init__``).
"""

from __future__ import annotations

from llamatel.plan.config_rules import Keys
from llamatel.plan.config_values import HEADS, KV_HEADS, ConfigValues
from llamatel.plan.window_rules import is_sliding, window


def latent(values: ConfigValues, keys: Keys) -> None:
    """MLA: only the latent vector and the rotary part of a key are cached."""
    rank, rotary = values.need("kv_lora_rank", "n_lora_kv"), values.need("qk_rope_head_dim", "n_rot")
    keys |= {
        "attention.kv_lora_rank": rank,
        "attention.key_length": rank + rotary,
        "attention.value_length": rank,
        "attention.head_count_kv": 1,
        "attention.key_length_mla": values.need("qk_nope_head_dim") + rotary,
        "attention.value_length_mla": values.need("v_head_dim"),
        "rope.dimension_count": rotary,
    }
    values.get("qk_head_dim", "q_head_dim")  # their sum, and another name of the rotary part
    _leading_dense(values, keys)


def _leading_dense(values: ConfigValues, keys: Keys) -> None:
    dense = values.number("first_k_dense_replace")
    types = values.texts("mlp_layer_types")
    if dense is None and types is not None:
        dense = next((i for i, each in enumerate(types) if each != "dense"), len(types))
    if dense is not None:
        keys["leading_dense_block_count"] = dense


def full_heads_of_lora(values: ConfigValues, keys: Keys) -> None:
    """MiniCPM 3 and PLM: low-rank projections, but all heads are cached."""
    keys["attention.kv_lora_rank"] = values.need("kv_lora_rank")
    keys["attention.key_length"] = values.need("qk_nope_head_dim") + values.need("qk_rope_head_dim")
    values.get("qk_head_dim", "v_head_dim")


def value_length(values: ConfigValues, keys: Keys) -> None:
    """The value length is given separately."""
    keys["attention.value_length"] = values.need("v_head_dim")


def indexer(values: ConfigValues, keys: Keys) -> None:
    """DeepSeek's sparse attention: an indexer with its own keys."""
    keys |= {
        "attention.indexer.head_count": values.need("index_n_heads"),
        "attention.indexer.key_length": values.need("index_head_dim"),
        "attention.indexer.top_k": values.need("index_topk"),
    }


def indexer_types(values: ConfigValues, keys: Keys) -> None:
    """Which layers have their own indexer; derived as in the library if the file does not list them."""
    types = values.texts("indexer_types")
    pattern = values.get("index_topk_pattern")
    trunk = values.layers
    if types is None and isinstance(pattern, str) and pattern:
        types = [{"F": "full"}.get(letter, "shared") for letter in pattern[:trunk]]
    elif types is None and isinstance(pattern, list):
        types = [str(each) for each in pattern[:trunk]]
    if types is None:
        every = max(values.number("index_topk_freq") or 1, 1)
        offset = values.number("index_skip_topk_offset")
        offset = 2 if offset is None else offset
        types = ["shared" if max(layer - offset + 1, 0) % every else "full" for layer in range(trunk)]
    keys["attention.indexer.types"] = [each == "full" for each in types]


def hy_v4(values: ConfigValues, keys: Keys) -> None:
    """Hunyuan 4: an indexer in the layers that have their own, or in none."""
    types, trunk = values.texts("indexer_types"), keys["block_count"]
    if types is None:
        types = ["full" if layer == 0 or (layer - 1) % 4 == 0 else "shared" for layer in range(trunk)]
    indexer(values, keys)
    keys["attention.indexer.types"] = [each == "full" for each in types]


def dots3note(values: ConfigValues, keys: Keys) -> None:
    """dots.3 note: sliding layers have their own latent vector, dense layers an indexer."""
    layers = keys["block_count"]
    types = values.texts("layer_types")
    if types is None:
        slides = values.get("use_sliding_window") is not False
        sliding = [slides and layer >= 2 and layer % 4 != 1 for layer in range(layers)]
    else:
        sliding = [is_sliding(each) for each in types][:layers]
    heads, heads_sliding = values.need(*HEADS), values.number("swa_num_attention_heads") or 64
    keys["attention.head_count"] = [heads_sliding if each else heads for each in sliding]
    rank = values.number("swa_kv_lora_rank") or 1024
    nope = values.number("swa_qk_nope_head_dim") or 192
    rotary = values.number("swa_qk_rope_head_dim") or (values.number("swa_head_dim") or 256) - nope
    keys["attention.sliding_window"] = values.number("sliding_window_size", "sliding_window") or 512
    keys["attention.sliding_window_pattern"] = sliding
    keys["attention.key_length_swa"] = rank + rotary
    keys["attention.value_length_swa"] = rank
    indexer(values, keys)
    keys["attention.indexer.types"] = [not each for each in sliding]
    values.get("swa_num_key_value_heads", "swa_v_head_dim", "swa_head_dim")  # one latent vector replaces all of them


def minimax_m3(values: ConfigValues, keys: Keys) -> None:
    """MiniMax M3: block-sparse attention after the leading dense layers."""
    sparse = values.section("sparse_attention_config")
    keys["attention.indexer.head_count"] = sparse.number("sparse_num_index_heads") or values.need("index_n_heads")
    keys["attention.indexer.key_length"] = sparse.number("sparse_index_dim") or values.need("index_head_dim")
    keys["attention.indexer.top_k"] = sparse.number("sparse_topk_blocks") or values.need("index_topk_blocks")
    often, types = values.numbers("moe_layer_freq"), values.texts("mlp_layer_types")
    if often is None and types is not None:
        often = [int(each != "dense") for each in types]
    if often is not None:
        keys["leading_dense_block_count"] = next((i for i, each in enumerate(often) if each), len(often))


def deepseek4(values: ConfigValues, keys: Keys) -> None:
    """DeepSeek V4: compressed caches; the ratio of each layer."""
    indexer(values, keys)
    window()(values, keys)
    keys["attention.head_count_kv"] = values.number(*KV_HEADS) or 1
    ratios = values.numbers("compress_ratios")
    if ratios is None:
        types, layers = values.texts("layer_types"), keys["block_count"]
        if types is None:
            types = ["csa" if layer >= 2 and layer % 2 else "heavily" for layer in range(layers)]
        ratios = [0 if is_sliding(each) else 128 if "heavily" in each else 4 for each in types]
    keys["attention.compress_ratios"] = ratios
