"""Keys that llama.cpp's converter writes for families that differ from Llama: shared rules, heads under other names.

A rule reads the configuration's values and adds keys of the GGUF, without the architecture's prefix.

Source: llama.cpp's ``conversion/*.py`` (b11434, October 2026) and the defaults that transformers' classes compute
(``__post_init__``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llamatel.plan.config_values import HEADS, KV_HEADS, WIDTH, ConfigValues

Keys = dict[str, Any]
Rule = Callable[[ConfigValues, Keys], None]


def fixed(**keys: Any) -> Rule:
    """Keys that the converter writes for every configuration; ``__`` is a dot."""

    def rule(_: ConfigValues, found: Keys) -> None:
        found.update({key.replace("__", "."): value for key, value in keys.items()})

    return rule


def kv_heads_as_heads(_: ConfigValues, keys: Keys) -> None:
    """MHA in all models of the family."""
    keys["attention.head_count_kv"] = keys["attention.head_count"]


def no_kv_channels(values: ConfigValues, keys: Keys) -> None:
    """Qwen (the first): the head length is in ``kv_channels``, and has to be the width divided by the heads."""
    length, heads = values.number("kv_channels"), keys["attention.head_count"]
    if length is not None and heads is not None and length * heads != keys["embedding_length"]:
        values.fail("has heads of another size in kv_channels")


def no_head_length(_: ConfigValues, keys: Keys) -> None:
    """The converter does not write ``head_dim``."""
    keys.pop("attention.key_length", None)
    keys.pop("attention.value_length", None)


def drafting(*names: str) -> Rule:
    """Drafting blocks (multi-token prediction) after the layers, where the converter writes them."""

    def rule(values: ConfigValues, keys: Keys) -> None:
        number = values.number(*(names or ("num_nextn_predict_layers", "num_mtp_layers")))
        if number:
            keys["block_count"] += number
            keys["nextn_predict_layers"] = number

    return rule


def chatglm(values: ConfigValues, keys: Keys) -> None:
    """ChatGLM and GLM: KV heads are groups of a multi-query attention."""
    no_head_length(values, keys)
    values.get("kv_channels")
    groups = values.number("multi_query_group_num", *KV_HEADS)
    if values.get("multi_query_attention") is False:
        groups = None
    keys["attention.head_count_kv"] = keys["attention.head_count"] if groups is None else groups
    keys["context_length"] = values.number("seq_length") or keys["embedding_length"]


def falcon(values: ConfigValues, keys: Keys) -> None:
    """Falcon: with the old decoder all heads may share one key and value, whatever ``num_kv_heads`` is.

    Before Falcon was part of the library, the key was ``n_head_kv``, with 1 as default.
    """
    groups, before = values.number("num_kv_heads"), values.number("n_head_kv")
    old, single = values.get("new_decoder_architecture") is not True, values.get("multi_query") is not False
    given = (1 if old and single else groups) or keys["attention.head_count"]
    keys["attention.head_count_kv"] = given if before is None else before
    keys["context_length"] = 2048
    keys["feed_forward_length"] = 4 * keys["embedding_length"]


def nested_attention(values: ConfigValues, keys: Keys) -> None:
    """MPT and DBRX: KV heads in ``attn_config``."""
    found = values.section("attn_config").number("kv_n_heads") or values.number("kv_n_heads")
    if found is None and values.model_type == "dbrx":
        found = 1  # the library's default
    keys["attention.head_count_kv"] = found or keys["attention.head_count"]
    keys["context_length"] = values.number("max_seq_len", "max_position_embeddings")
    experts = values.section("ffn_config")
    keys["expert_count"], keys["expert_used_count"] = experts.number("moe_num_experts"), experts.number("moe_top_k")


def deci(values: ConfigValues, keys: Keys) -> None:
    """DeciLM and Nemotron (NAS): heads differ by layer, and some layers have none."""
    blocks = values.get("block_configs")
    by_layer = values.numbers("num_key_value_heads_per_layer")
    if by_layer is not None:
        keys["attention.head_count_kv"] = by_layer
        return
    if not isinstance(blocks, list):
        values.fail("has no block_configs")
    heads = values.need(*HEADS)
    counts, kv_counts = [], []
    for each in blocks[:512]:
        attention = each.get("attention") if isinstance(each, dict) else None
        block = ConfigValues(values.model_type, attention if isinstance(attention, dict) else {}, None)
        group = block.number("n_heads_in_group")
        kv_counts.append(heads // group if group else 0)
        counts.append(heads if group or block.get("replace_with_linear") is True else 0)
    keys["attention.head_count"], keys["attention.head_count_kv"] = counts, kv_counts
    length = values.need(*WIDTH) // heads if heads else 0
    keys["attention.key_length"] = keys["attention.value_length"] = length


def openelm(values: ConfigValues, keys: Keys) -> None:
    """OpenELM: heads by layer."""
    heads, kv_heads = values.numbers("num_query_heads"), values.numbers("num_kv_heads")
    if heads is None or kv_heads is None:
        values.fail("has no num_query_heads or num_kv_heads")
    keys["attention.head_count"], keys["attention.head_count_kv"] = heads, kv_heads
    keys["context_length"] = values.number("max_context_length")


def hrm_text(values: ConfigValues, keys: Keys) -> None:
    """HRM text: the layers of a stack run several times, each time with a separate cache."""
    stack = values.number("num_layers_per_stack") or values.layers
    cycles = values.need("H_cycles") * (values.need("L_cycles") + 1)
    keys["block_count"] = stack * cycles


def nanbeige(values: ConfigValues, keys: Keys) -> None:
    """Nanbeige: all layers may run several times."""
    keys["num_loops"] = max(values.number("num_loops") or 1, 1)


def t5(values: ConfigValues, keys: Keys) -> None:
    """T5: the head length is independent of the width."""
    keys["attention.key_length"] = keys["attention.value_length"] = values.need("d_kv")
    keys["context_length"] = values.number("n_positions") or 512


def old_bert_positions(values: ConfigValues, keys: Keys) -> None:
    """RoBERTa: positions start after the padding token."""
    padding, length = values.number("pad_token_id"), keys.get("context_length")
    if padding is not None and length is not None:
        keys["context_length"] = length - padding - 1


def seq_length(values: ConfigValues, keys: Keys) -> None:
    """BLOOM: the trained context is ``seq_length``."""
    keys["context_length"] = values.number("seq_length") or keys["embedding_length"]
