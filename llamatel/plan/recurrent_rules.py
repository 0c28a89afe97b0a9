"""Configurations of recurrent layers: Mamba, gated delta nets, short convolutions, RWKV.

Source: llama.cpp's ``conversion/*.py`` (b11434, October 2026) and the defaults that transformers' classes compute
(``__post_init__``).
"""

from __future__ import annotations

from llamatel.plan.config_rules import Keys, Rule, drafting
from llamatel.plan.config_values import HEADS, KV_HEADS, LAYERS, WIDTH, ConfigValues
from llamatel.plan.latent_rules import indexer, indexer_types, latent


def mamba(values: ConfigValues, keys: Keys) -> None:
    """Mamba and Falcon Mamba; the converter refuses all but twice the width (Falcon Mamba's ``expand`` is not used)."""
    width = keys["embedding_length"]
    inner = values.number("intermediate_size", "d_inner") or 2 * width
    if inner != 2 * width:
        values.fail("has no intermediate_size of twice its width, which llama.cpp needs")
    keys |= {
        "ssm.conv_kernel": values.number("conv_kernel", "d_conv") or 4,
        "ssm.inner_size": inner,
        "ssm.state_size": values.number("state_size", "d_state") or 16,
        "context_length": 1 << 20,
        "feed_forward_length": 0,
        "attention.head_count": 0,
    }


def mamba2(values: ConfigValues, keys: Keys) -> None:
    """Mamba 2."""
    expand = values.number("expand", "mamba_expand") or 2
    keys |= {
        "ssm.conv_kernel": values.number("conv_kernel", "d_conv") or 4,
        "ssm.inner_size": values.number("intermediate_size", "d_inner") or expand * keys["embedding_length"],
        "ssm.state_size": values.number("state_size", "d_state") or 128,
        "ssm.group_count": values.number("n_groups") or 1,
        "context_length": 1 << 20,
        "feed_forward_length": 0,
        "attention.head_count": 0,
    }


def _mamba_part(values: ConfigValues, keys: Keys) -> None:
    """The state of a hybrid's Mamba 2 layers, with the keys of Bamba, Granite and Nemotron-H."""
    heads, length = values.number("mamba_num_heads", "mamba_n_heads"), values.number("mamba_head_dim")
    expand = values.number("mamba_expand", "expand")
    if length is not None and heads is not None:
        inner = heads * length
    elif expand is not None:
        inner = expand * keys["embedding_length"]
    else:
        inner = values.need("mamba_d_ssm")
    keys |= {
        "ssm.conv_kernel": values.need("mamba_d_conv", "conv_kernel", "d_conv"),
        "ssm.state_size": values.need("mamba_d_state", "ssm_state_size", "state_size", "d_state"),
        "ssm.group_count": values.need("mamba_n_groups", "n_groups", "num_groups"),
        "ssm.inner_size": inner,
    }


def _heads_where(attends: list[bool], keys: Keys) -> None:
    """KV heads of attention layers, 0 for recurrent layers."""
    heads = keys["attention.head_count_kv"]
    keys["attention.head_count_kv"] = [heads if each else 0 for each in attends]


def falcon_h1(values: ConfigValues, keys: Keys) -> None:
    """Falcon-H1: attention and a recurrent state in every layer."""
    inner = values.number("mamba_d_ssm")
    keys |= {
        "ssm.conv_kernel": values.need("mamba_d_conv"),
        "ssm.state_size": values.need("mamba_d_state"),
        "ssm.group_count": values.need("mamba_n_groups"),
        "ssm.inner_size": (values.number("mamba_expand") or 2) * keys["embedding_length"] if inner is None else inner,
        "attention.key_length": values.head_length,
        "attention.value_length": values.head_length,
    }


def granite_hybrid(values: ConfigValues, keys: Keys) -> None:
    """Granite 4 and Bamba: layers by type, index or period; a plain Granite if all attend."""
    layers = keys["block_count"]
    types = values.texts("layer_types", "layers_block_type")
    chosen = values.numbers("attn_layer_indices")
    if types is not None:
        attends = [each in ("attention", "full_attention") for each in types]
    elif chosen is not None:
        attends = [layer in chosen for layer in range(layers)]
    elif values.is_given("attn_layer_period"):
        period, offset = max(values.need("attn_layer_period"), 1), values.need("attn_layer_offset")
        attends = [layer % period == offset for layer in range(layers)]
    else:
        attends = [False] * layers
    if all(attends):
        keys["general.architecture"] = "granitemoe" if keys.get("expert_used_count") else "granite"
        return
    _heads_where(attends, keys)
    _mamba_part(values, keys)
    if values.model_type != "bamba":
        keys["context_length"] = 1 << 20


def jamba(values: ConfigValues, keys: Keys) -> None:
    """Jamba: one attention layer per period, the others Mamba."""
    period, offset = max(values.need("attn_layer_period"), 1), values.need("attn_layer_offset")
    _heads_where([i >= offset and (i - offset) % period == 0 for i in range(keys["block_count"])], keys)
    keys |= {
        "ssm.conv_kernel": values.number("mamba_d_conv") or 4,
        "ssm.state_size": values.number("mamba_d_state") or 16,
        "ssm.inner_size": values.need("mamba_expand") * keys["embedding_length"],
    }


_NEMOTRON_LETTERS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}


def nemotron_h(values: ConfigValues, keys: Keys) -> None:
    """Nemotron-H: separate layers for Mamba, attention and feed-forward."""
    pattern = values.get("hybrid_override_pattern")
    blocks = values.get("block_configs")
    types = values.texts("layers_block_type", "layer_types")
    if isinstance(blocks, list) and all(isinstance(each, dict) for each in blocks):
        types = [str(each.get("block_type")) for each in blocks]
    elif isinstance(pattern, str) and pattern:
        types = [_NEMOTRON_LETTERS.get(letter, letter) for letter in pattern]
    if types is None and values.in_library and not values.number(*LAYERS):
        types = ["mamba", "moe", "attention", "mlp"]
    if types is None:
        values.fail("has no layers_block_type")
    mixture = any(each == "moe" for each in types)
    keys["general.architecture"] = "nemotron_h_moe" if mixture else "nemotron_h"
    keys["block_count"] = len(types)
    if mixture and values.number("num_nextn_predict_layers"):
        keys |= {"block_count": len(types) + 1, "nextn_predict_layers": 1}
        types = [*types, "attention with moe"]
    attends = [each in ("attention", "full_attention", "attention with moe") for each in types]
    _heads_where(attends, keys)
    _mamba_part(values, keys)
    width = values.number("moe_intermediate_size") if mixture else keys.get("feed_forward_length")
    keys["feed_forward_length"] = [(width or 1) if each.endswith(("mlp", "moe")) else 0 for each in types]
    keys["context_length"] = 1 << 20
    keys["attention.key_length"] = keys["attention.value_length"] = values.head_length


def plamo2(values: ConfigValues, keys: Keys) -> None:
    """PLaMo 2: attention every ``mamba_step`` layers."""
    layers, step = keys["block_count"], max(values.number("mamba_step") or 2, 1)
    attends = [i % step == step // 2 for i in range(layers)]
    if layers <= step // 2:
        attends = [i == layers - 1 for i in range(layers)]
    if values.get("mamba_enabled") is not False:
        heads, kv_heads = values.need(*HEADS), values.need(*KV_HEADS)
        keys["attention.head_count"] = [heads if each else 0 for each in attends]
        keys["attention.head_count_kv"] = [kv_heads if each else 0 for each in attends]
    length, mamba_heads = values.number("hidden_size_per_head") or 128, values.number("mamba_num_heads") or 64
    keys |= {
        "attention.key_length": length,
        "attention.value_length": length,
        "ssm.state_size": values.number("mamba_d_state") or 64,
        "ssm.conv_kernel": values.number("mamba_d_conv") or 4,
        "ssm.inner_size": mamba_heads * length,
        "ssm.group_count": 0,
    }


def lfm2(values: ConfigValues, keys: Keys) -> None:
    """LFM2: short convolutions between layers that attend."""
    types, layers = values.texts("layer_types"), keys["block_count"]
    if types is not None:
        attends = [each == "full_attention" for each in types]
    else:
        chosen = values.numbers("full_attn_idxs")
        if chosen is None and values.model_type != "lfm2":
            values.fail("has no layer_types")
        attends = [chosen is None or layer in chosen for layer in range(layers)]
    _heads_where(attends, keys)
    keys["shortconv.l_cache"] = values.need("conv_L_cache")


def delta_net(values: ConfigValues, keys: Keys) -> None:
    """Qwen3-Next and Qwen3.5: gated delta nets, attention every few layers."""
    types, trunk = values.texts("layer_types"), keys["block_count"]
    interval = values.number("full_attention_interval") or 4
    drafting("mtp_num_hidden_layers")(values, keys)
    if types is None:
        recurrent = [(layer + 1) % interval != 0 for layer in range(trunk)]
    else:
        recurrent = [each == "linear_attention" for each in types]
    keys |= {
        "full_attention_interval": interval,
        "attention.recurrent_layers": recurrent + [False] * (keys["block_count"] - len(recurrent)),
        "ssm.conv_kernel": values.need("linear_conv_kernel_dim"),
        "ssm.state_size": values.need("linear_key_head_dim"),
        "ssm.group_count": values.need("linear_num_key_heads"),
        "ssm.inner_size": values.need("linear_value_head_dim") * values.need("linear_num_value_heads"),
    }


def qwen4exp(values: ConfigValues, keys: Keys) -> None:
    """Qwen4 (experimental): delta nets, an indexer in the layers that attend, n-gram embeddings."""
    trunk = keys["block_count"]
    delta_net(values, keys)
    recurrent = keys["attention.recurrent_layers"]
    ratio = values.need("indexer_compress_ratio")
    keys |= {
        "hyper_connection.count": values.need("hc_count"),
        "attention.indexer.head_count": values.need("indexer_n_heads"),
        "attention.indexer.key_length": values.need("indexer_head_dim"),
        "attention.indexer.top_k": values.need("indexer_budget"),
        "attention.compress_ratios": [0 if i < trunk and each else ratio for i, each in enumerate(recurrent)],
    }
    ple = values.numbers("ple_layer_ids") or []
    if ple:
        keys["ple.layers"] = [layer - 1 for layer in ple if layer]
        keys["ple.ngram_size"] = values.need("ngram_size")
        keys["ple.conv_kernel"] = values.need("ple_conv_kernel_size")


def kimi_linear(values: ConfigValues, keys: Keys) -> None:
    """Kimi-Linear and Kimi K3: MLA in some layers, Kimi delta attention in the others."""
    linear, layers = values.section("linear_attn_config"), values.layers
    full, types = linear.numbers("full_attn_layers"), values.texts("layer_types")
    if full is not None:
        attends = [layer + 1 in full for layer in range(layers)]
    elif types is not None:
        attends = [each != "linear_attention" for each in types]
    elif values.in_library:
        attends = [layer > 0 and layer % 4 == 0 for layer in range(layers)]
    else:
        values.fail("has no linear_attn_config.full_attn_layers")
    latent(values, keys)
    length = values.number("head_dim") if values.is_given("head_dim") else None
    keys["attention.value_length"] = keys["rope.dimension_count"] if length is None else length
    _heads_where(attends, keys)
    _delta_attention(values, keys)


def kimi_k3(values: ConfigValues, keys: Keys) -> None:
    """Kimi K3: as Kimi-Linear, with the length of the latent vector as that of a value."""
    kimi_linear(values, keys)
    keys["attention.value_length"] = keys["attention.kv_lora_rank"]


def _delta_attention(values: ConfigValues, keys: Keys) -> None:
    linear = values.section("linear_attn_config")
    kernel, length = linear.number("short_conv_kernel_size"), linear.number("head_dim")
    keys["ssm.conv_kernel"] = values.need("linear_conv_kernel_dim") if kernel is None else kernel
    keys["kda.head_dim"] = values.need("linear_head_dim") if length is None else length
    heads = linear.number("num_heads") or values.number("linear_num_heads")
    if heads is not None and heads != values.need(*HEADS):
        values.fail("has other heads in num_heads of its state")


def glm5_next(values: ConfigValues, keys: Keys) -> None:
    """GLM 5 next: as Kimi-Linear, with an indexer whose keys are pooled."""
    types, trunk = values.texts("layer_types"), keys["block_count"]
    attends = [i % 4 == 3 for i in range(trunk)] if types is None else [each != "linear_attention" for each in types]
    drafting()(values, keys)
    latent(values, keys)
    _heads_where(attends + [True] * (keys["block_count"] - len(attends)), keys)
    _delta_attention(values, keys)
    indexer(values, keys)
    keys["attention.indexer.kpool"] = values.need("index_kpool")
    indexer_types(values, keys)


def bailing3(values: ConfigValues, keys: Keys) -> None:
    """Ling 3: as Kimi-Linear; a layer of each group attends."""
    trunk = keys["block_count"]
    types, every = values.texts("layer_types"), values.number("layer_group_size")
    drafting()(values, keys)
    if types is not None:
        attends = ["linear" not in each for each in types]
    elif every:
        attends = [(layer + 1) % every == 0 or layer >= trunk // every * every for layer in range(trunk)]
    else:
        values.fail("has no layer_group_size")
    latent(values, keys)
    _heads_where(attends + [True] * (keys["block_count"] - len(attends)), keys)
    keys["attention.value_length"] = keys["kda.head_dim"] = values.need("head_dim")
    keys["ssm.conv_kernel"] = values.need("short_conv_kernel_size")


def rwkv(*head_names: str) -> Rule:
    """RWKV: a matrix for each head, no attention."""

    def rule(values: ConfigValues, keys: Keys) -> None:
        size = values.number(*head_names) if head_names else None
        if size is None:
            heads = values.need(*HEADS)
            size = values.need(*WIDTH) // heads if heads else 0
        if head_names:
            keys.pop("attention.head_count_kv", None)
        keys |= {"wkv.head_size": size, "context_length": 1 << 20, "attention.head_count": 0}

    return rule
