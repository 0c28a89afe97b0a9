"""A ModelShape from a transformers-style ``config.json``: translated into the keys that a GGUF of it would have.

What llama.cpp's converter decides beyond that (``conversion/*.py``) is not known here, so such a shape is never exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llamatel.errors import UsageError
from llamatel.plan.model_shape import ModelShape
from llamatel.plan.shape_from_gguf import shape_from_metadata

CAVEAT = "it was read from a config.json: what the conversion to GGUF decides is not known"

# transformers' model_type: llama.cpp's architecture, where they differ.
_ARCHITECTURES = {
    "mistral": "llama",
    "mixtral": "llama",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "qwen2_vl": "qwen2vl",
    "qwen2_5_vl": "qwen2vl",
    "qwen3_vl": "qwen3vl",
    "qwen3_vl_moe": "qwen3vlmoe",
    "qwen3_next": "qwen3next",
    "qwen3_5": "qwen35",
    "qwen3_5_moe": "qwen35moe",
    "gemma4": "gemma4",
    "phi": "phi2",
    "gpt_oss": "gpt-oss",
    "gpt_neox": "gptneox",
    "gpt_bigcode": "starcoder",
    "cohere": "command-r",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
    "deepseek_v32": "deepseek32",
    "olmo3": "olmo2",
    "granitemoehybrid": "granitehybrid",
    "falcon_h1": "falcon-h1",
    "lfm2_moe": "lfm2moe",
    "glm4_moe": "glm4moe",
    "ernie4_5_moe": "ernie4_5-moe",
    "minimax_m2": "minimax-m2",
}
_KEYS: dict[str, tuple[str, ...]] = {
    "block_count": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "embedding_length": ("hidden_size", "n_embd", "d_model"),
    "feed_forward_length": ("intermediate_size", "n_inner", "ffn_dim"),
    "context_length": ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"),
    "vocab_size": ("vocab_size",),
    "attention.head_count": ("num_attention_heads", "n_head", "n_heads"),
    "attention.head_count_kv": ("num_key_value_heads", "num_kv_heads"),
    "attention.key_length": ("head_dim", "attention_head_dim"),
    "attention.value_length": ("head_dim", "attention_head_dim"),
    "attention.sliding_window": ("sliding_window",),
    "attention.shared_kv_layers": ("num_kv_shared_layers",),
    "expert_count": ("num_local_experts", "num_experts", "n_routed_experts"),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_used_count": ("num_experts_per_tok", "num_experts_per_token"),
    "leading_dense_block_count": ("first_k_dense_replace",),
    "rope.freq_base": ("rope_theta",),
    "full_attention_interval": ("full_attention_interval",),
    "attention.indexer.head_count": ("index_n_heads",),
    "attention.indexer.key_length": ("index_head_dim",),
    "attention.indexer.top_k": ("index_topk",),
    "ssm.conv_kernel": ("linear_conv_kernel_dim", "mamba_d_conv", "conv_kernel"),
    "ssm.state_size": ("linear_key_head_dim", "mamba_d_state", "ssm_state_size", "state_size"),
    "ssm.group_count": ("linear_num_key_heads", "mamba_n_groups", "n_groups"),
    "ssm.time_step_rank": ("linear_num_value_heads", "mamba_n_heads", "mamba_num_heads"),
    "ssm.inner_size": ("mamba_d_ssm",),
    "shortconv.l_cache": ("conv_L_cache",),
}


def shape_from_config(config: Mapping[str, Any]) -> ModelShape:
    """The shape of a model by its configuration. Raises UsageError where it tells no number of layers."""
    config = _text_part(config)
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise UsageError("the config.json names no model_type")
    kind = model_type.removesuffix("_text")
    architecture = _ARCHITECTURES.get(kind, kind)
    keys: dict[str, Any] = {}
    for key, names in _KEYS.items():
        value = next((config[name] for name in names if config.get(name) is not None), None)
        if value is not None:
            keys[key] = value
    if not isinstance(keys.get("block_count"), int):
        raise UsageError(f"the config.json of a '{model_type}' model names no number of layers")
    for translate in (_latent, _windows, _mixture, _linear, _rope):
        translate(config, keys)
    if architecture == "gpt2" or config.get("multi_query"):
        keys.setdefault("attention.head_count_kv", 1 if config.get("multi_query") else keys.get("attention.head_count"))
    metadata = {f"{architecture}.{key}": value for key, value in keys.items() if value is not None}
    shape = shape_from_metadata({"general.architecture": architecture, **metadata})
    return replace(shape, unknown=(*shape.unknown, CAVEAT), name=_name(config))


def _text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's part of a model that also sees or hears."""
    text = config.get("text_config") or config.get("llm_config")
    return {**config, **text} if isinstance(text, Mapping) else config


def _name(config: Mapping[str, Any]) -> str | None:
    name = config.get("_name_or_path")
    return name if isinstance(name, str) and name else None


def _latent(config: Mapping[str, Any], keys: dict[str, Any]) -> None:
    """MLA: one latent vector and the rotary part of a key."""
    rank, rotary = config.get("kv_lora_rank"), config.get("qk_rope_head_dim")
    if not (isinstance(rank, int) and isinstance(rotary, int)):
        return
    keys |= {
        "attention.kv_lora_rank": rank,
        "attention.key_length": rank + rotary,
        "attention.value_length": rank,
        "attention.head_count_kv": 1,
        "attention.key_length_mla": (config.get("qk_nope_head_dim") or 0) + rotary,
        "attention.value_length_mla": config.get("v_head_dim"),
    }


def _windows(config: Mapping[str, Any], keys: dict[str, Any]) -> None:
    types = config.get("layer_types")
    if isinstance(types, list) and any("sliding" in str(kind) or "chunked" in str(kind) for kind in types):
        keys["attention.sliding_window_pattern"] = [int("full" not in str(kind)) for kind in types]
    elif isinstance(period := config.get("sliding_window_pattern"), int):
        keys["attention.sliding_window_pattern"] = period
    if config.get("use_sliding_window") is False:
        keys.pop("attention.sliding_window", None)


def _attending(config: Mapping[str, Any], layers: int) -> list[bool] | None:
    """Which layers attend, in the ways that hybrids have of saying so."""
    types = config.get("layer_types") or config.get("layers_block_type")
    pattern, period = config.get("hybrid_override_pattern"), config.get("attn_layer_period")
    if isinstance(types, list) and any(word in str(kind) for kind in types for word in ("mamba", "conv", "linear")):
        return ["attention" in str(kind) and "linear" not in str(kind) for kind in types]
    if isinstance(pattern, str):
        return [letter == "*" for letter in pattern]
    if isinstance(period, int):
        return [layer % period == config.get("attn_layer_offset", 0) for layer in range(layers)]
    return None


def _mixture(config: Mapping[str, Any], keys: dict[str, Any]) -> None:
    """Hybrids: a KV head count for each layer, 0 where it keeps a state."""
    attends = _attending(config, keys["block_count"])
    if attends is None or "full_attention_interval" in keys:
        return
    heads = keys.get("attention.head_count_kv", keys.get("attention.head_count", 0))
    keys["attention.head_count_kv"] = [heads if flag else 0 for flag in attends]
    pattern = config.get("hybrid_override_pattern")
    if isinstance(pattern, str):
        width = keys.get("feed_forward_length", 1)
        keys["feed_forward_length"] = [width if letter in "-E" else 0 for letter in pattern]


def _linear(config: Mapping[str, Any], keys: dict[str, Any]) -> None:
    """The inner size of states, which configurations give as a product."""
    products: tuple[tuple[str, str], ...] = (
        ("linear_num_value_heads", "linear_value_head_dim"),
        ("mamba_num_heads", "mamba_head_dim"),
        ("mamba_n_heads", "mamba_d_head"),
        ("mamba_expand", "hidden_size"),
        ("expand", "hidden_size"),
    )
    for one, other in products:
        first, second = config.get(one), config.get(other)
        if "ssm.inner_size" not in keys and isinstance(first, int) and isinstance(second, int):
            keys["ssm.inner_size"] = first * second


def _rope(config: Mapping[str, Any], keys: dict[str, Any]) -> None:
    """Rotary embeddings: what is scaled, and how much of a head is rotated."""
    told = config.get("rope_parameters") or config.get("rope_scaling")
    if isinstance(told, Mapping):
        keys.setdefault("rope.freq_base", told.get("rope_theta"))
        kind = told.get("rope_type") or told.get("type")
        if kind not in (None, "default"):
            keys["rope.scaling.type"] = kind
            keys["rope.scaling.factor"] = told.get("factor")
            keys["rope.scaling.original_context_length"] = told.get("original_max_position_embeddings")
    rotary, share, length = (config.get(name) for name in ("qk_rope_head_dim", "partial_rotary_factor", "head_dim"))
    if isinstance(rotary, int):
        keys["rope.dimension_count"] = rotary
    elif isinstance(share, (int, float)) and isinstance(length, int):
        keys["rope.dimension_count"] = int(share * length)
