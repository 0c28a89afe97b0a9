"""config.json of every family that llama.cpp converts: the plan equals that of the converted GGUF."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamatel.errors import UsageError
from llamatel.flags.server_settings import ServerSettings
from llamatel.plan import ModelShape, shape_from_config
from llamatel.plan.cache_plan import cache_plan
from llamatel.plan.config_families import BY_CLASS, BY_TYPE, FAMILIES
from llamatel.plan.config_values import library_defaults, may_change_shape
from llamatel.plan.shape_from_gguf import shape_from_metadata

CONVERTED: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "configs" / "converted.json").read_text(encoding="utf-8")
)
FORMS: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "configs" / "published_forms.json").read_text(encoding="utf-8")
)
"""Published configurations with all their keys, and the bytes of 8192 tokens by hand; null is an error."""
SETTINGS = (
    ServerSettings(ctx_size=8192, parallel=1),
    ServerSettings(ctx_size=16384, cache_type_k="q8_0", cache_type_v="q8_0"),
)


def _comparable(shape: ModelShape) -> tuple[object, ...]:
    layers = shape.layers
    if shape.latent:  # one vector is both key and value, for any value length
        layers = tuple(replace(layer, value_length=0) for layer in layers)
    return layers, shape.latent, shape.cache, shape.context_length, shape.embedding_length


@pytest.mark.parametrize("name", CONVERTED)
def test_config_plan_equals_converted_gguf(name: str) -> None:
    config, metadata = CONVERTED[name]["config"], CONVERTED[name]["gguf"]
    ours, theirs = shape_from_config(config), shape_from_metadata(metadata)
    assert _comparable(ours) == _comparable(theirs)
    for settings in SETTINGS:
        planned, exact = cache_plan(ours, settings), cache_plan(theirs, settings)
        assert planned.total_bytes == exact.total_bytes
        assert not planned.exact


def test_config_families_cover_every_converted_architecture() -> None:
    """Each row of the table has a sample, except for those whose converter needs tensors."""
    tried = {entry["gguf"]["general.architecture"] for entry in CONVERTED.values()}
    assert {row.architecture for row in FAMILIES} - tried <= {
        "exaone",  # the library's class converts as a Llama
        "jina-bert-v2",
        "llada-moe",
        "neo-bert",
        "nomic-bert",
        "t5encoder",
        "cogvlm",
        "gemma-embedding",
        "mistral4",
    }


def _plan(config: dict[str, Any], ctx_size: int = 8192) -> int:
    return cache_plan(shape_from_config(config), ServerSettings(ctx_size=ctx_size, parallel=1)).total_bytes


@pytest.mark.parametrize("name", FORMS)
def test_config_as_published(name: str) -> None:
    if FORMS[name]["bytes"] is None:
        with pytest.raises(UsageError):
            shape_from_config(FORMS[name]["config"])
    else:
        assert _plan(FORMS[name]["config"]) == FORMS[name]["bytes"]


def test_config_suggests_only_close_names() -> None:
    for model_type, hint in (("qwen3moe", "; did you mean qwen3_moe?"), ("zamba2", ""), ("mymodel", "")):
        with pytest.raises(UsageError) as raised:
            shape_from_config({"model_type": model_type, "num_hidden_layers": 8})
        assert str(raised.value).endswith(f"does not know: {model_type}{hint}")


def test_config_gemma3_without_heads_uses_library_defaults() -> None:
    """wild.md A1: head counts and head size are those of the class, never 0."""
    config = {
        "model_type": "gemma3",
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 34,
            "sliding_window": 1024,
        },
    }
    shape = shape_from_config(config)
    assert {(layer.heads, layer.kv_heads, layer.key_length) for layer in shape.layers} == {(8, 4, 256)}
    # 5 dense layers of 8192 cells, 29 sliding ones of 1024 + 512
    assert _plan(config) == 2 * 2 * 4 * 256 * (5 * 8192 + 29 * 1536)


@pytest.mark.parametrize(
    ("name", "bytes_per_token_and_layer", "layers"),
    [
        ("published/glm_moe_dsa", 2 * 576, 78),
        ("published/kimi_linear", 2 * 576, 7),
        ("published/deepseek_v3", 2 * 576, 61),
        ("published/kimi_k2", 2 * 576, 61),
        ("published/deepseek_v2_lite", 2 * 576, 27),
        ("published/glm4_moe_lite", 2 * 576, 47),
    ],
)
def test_config_latent_families_cache_one_vector(name: str, bytes_per_token_and_layer: int, layers: int) -> None:
    """wild.md A4: K only, 576 wide; Kimi-Linear in 7 of 27 layers; GLM-5 with its indexer."""
    shape = shape_from_config(CONVERTED[name]["config"])
    plan = cache_plan(shape, ServerSettings(ctx_size=8192, parallel=1))
    main = [part for part in plan.parts if part.kind not in ("indexer", "recurrent") and not part.drafting]
    assert sum(part.total_bytes for part in main) == bytes_per_token_and_layer * layers * 8192
    indexer = sum(part.total_bytes for part in plan.parts if part.kind == "indexer")
    assert indexer == (2 * 128 * 78 * 8192 if name == "published/glm_moe_dsa" else 0)


def test_config_step3p5_attention_groups() -> None:
    """wild.md A5: some 0.54 GB at 8192 tokens, not the 12.1 GB of 64 KV heads."""
    config = CONVERTED["published/step3p5"]["config"]
    per_layer = 2 * 2 * 8 * 128
    dense, sliding = 12, 33
    assert _plan(config) == per_layer * (dense * 8192 + sliding * 1024)
    assert 0.4e9 < _plan(config) < 0.7e9


def test_config_nemotron_h_mlp_layers_have_no_cache() -> None:
    shape = shape_from_config(CONVERTED["published/nemotron_h_8b"]["config"])
    kinds = ["M" if layer.state else "*" if layer.attends and layer.kv_heads else "-" for layer in shape.layers]
    assert "".join(kinds) == "M-M-M-M*-M"


def test_config_falcon_7b_has_one_kv_head() -> None:
    """num_kv_heads is 71, but multi_query means that all heads share one."""
    config = {
        "model_type": "falcon",
        "architectures": ["FalconForCausalLM"],
        "hidden_size": 4544,
        "num_attention_heads": 71,
        "num_kv_heads": 71,
        "num_hidden_layers": 32,
        "multi_query": True,
        "new_decoder_architecture": False,
    }
    assert {layer.kv_heads for layer in shape_from_config(config).layers} == {1}


LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}


def _as(model_type: str, *left_out: str, **more: Any) -> dict[str, Any]:
    kept = {key: value for key, value in LLAMA.items() if key not in ("model_type", "architectures", *left_out)}
    return {"model_type": model_type, **kept, **more}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "the config.json has no model_type"),
        ({"model_type": "brandnew", **dict.fromkeys(("num_hidden_layers", "hidden_size"), 8)}, "brandnew"),
        ({"model_type": "gpt_os", "num_hidden_layers": 8}, "did you mean gpt_oss?"),
        ({**LLAMA, "num_attention_groups": 8}, "num_attention_groups"),
        ({**LLAMA, "kv_sharing_map": [0, 0]}, "kv_sharing_map"),
        ({**LLAMA, "head_dim_global": 512}, "head_dim_global"),
        ({**LLAMA, "num_hidden_layers": 0}, "has 0 layers (num_hidden_layers)"),
        ({**LLAMA, "num_hidden_layers": 513}, "has 513 layers (num_hidden_layers)"),
        ({**LLAMA, "num_hidden_layers": None}, "has no num_hidden_layers"),
        ({**LLAMA, "num_hidden_layers": "32"}, "no count in num_hidden_layers: '32'"),
        ({**LLAMA, "num_key_value_heads": -8}, "no count in num_key_value_heads: -8"),
        ({**LLAMA, "num_key_value_heads": float("inf")}, "no count in num_key_value_heads: inf"),
        ({**LLAMA, "num_attention_heads": None}, "has no num_attention_heads"),
        (_as("internlm2", "num_key_value_heads"), "has no num_key_value_heads"),
        (_as("step3p5", num_attention_heads=None), "has no num_attention_heads"),
        ({"model_type": "llama"}, "has no num_hidden_layers"),
        (_as("maple", sliding_window=512), "has no layer_types"),
    ],
)  # fmt: skip
def test_config_without_required_key_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as raised:
        shape_from_config(config)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_config_null_is_not_a_default() -> None:
    """A null head count means what the library makes of it: as many KV heads as heads."""
    shape = shape_from_config({**LLAMA, "num_key_value_heads": None})
    assert {layer.kv_heads for layer in shape.layers} == {32}


@pytest.mark.parametrize(
    "key",
    [
        "attention_bias", "attention_dropout", "hidden_act", "rope_scaling_layers", "layer_norm_eps", "num_labels",
        "vision_num_heads", "num_experts_per_layer", "quantization_layers", "use_cache", "lm_head_bias", "mlp_layers",
        "moe_layer_freq", "router_aux_loss_coef", "embedding_dim_layers", "transformers_version", "torch_dtype",
    ],
)  # fmt: skip
def test_config_harmless_unknown_keys_are_ignored(key: str) -> None:
    assert not may_change_shape(key, 5)
    assert shape_from_config({**LLAMA, key: 5}).layers


def test_config_tables_name_each_family_once() -> None:
    for table, names in ((BY_CLASS, "classes"), (BY_TYPE, "types")):
        listed = [name for row in FAMILIES for name in getattr(row, names).split()]
        twice = {name for name in listed if listed.count(name) > 1}
        assert twice <= {"gemma3_text"}  # a text model, and an embedding model by its class
        assert set(table) == set(listed)
    assert all(name == name.lower() for name in BY_TYPE)
    assert library_defaults("llama") is not None


def test_config_text_part_under_every_name() -> None:
    text = {key: value for key, value in LLAMA.items() if key != "architectures"}
    expected = shape_from_config(LLAMA).layers
    for name in ("text_config", "llm_config", "lm_config", "language_config"):
        config = {"model_type": "some_vlm", name: text, "vision_config": {"num_hidden_layers": 5}, "num_image_heads": 7}
        assert shape_from_config(config).layers == expected
    nested = {"model_type": "some_omni", "thinker_config": {"model_type": "some_thinker", "text_config": text}}
    assert shape_from_config(nested).layers == expected
