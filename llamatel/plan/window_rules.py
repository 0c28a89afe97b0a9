"""Which layers of a configuration have a sliding window, with the keys of each family.

Source: llama.cpp's ``conversion/*.py`` (b11434, October 2026) and the defaults that transformers' classes compute
(``__post_init__``).
"""

from __future__ import annotations

from collections.abc import Callable

from llamatel.plan.config_rules import Keys, Rule
from llamatel.plan.config_values import HEADS, KV_HEADS, ConfigValues


def window(*names: str) -> Rule:
    """The window; None: no sliding layers."""

    def rule(values: ConfigValues, keys: Keys) -> None:
        size = values.number(*(names or ("sliding_window",)))
        if size is not None:
            keys["attention.sliding_window"] = size

    return rule


def is_sliding(layer_type: str) -> bool:
    """Whether a type in ``layer_types`` has a window."""
    return "sliding" in layer_type or "chunked" in layer_type


def sliding_layers(default: Callable[[ConfigValues, int], list[bool]] | None = None) -> Rule:
    """Which layers have the window, by ``layer_types``; ``default``: the library's rule if that is absent."""

    def rule(values: ConfigValues, keys: Keys) -> None:
        types = values.texts("layer_types")
        layers = keys["block_count"]
        if types is not None:
            keys["attention.sliding_window_pattern"] = [is_sliding(each) for each in types]
        elif default is not None:
            keys["attention.sliding_window_pattern"] = default(values, layers)
        elif keys.get("attention.sliding_window"):
            values.fail("has no layer_types")

    return rule


def last_of(period: int, name: str | None = None) -> Callable[[ConfigValues, int], list[bool]]:
    """All but the last of every ``period`` layers slide; ``name`` is the key that changes the period."""

    def pattern(values: ConfigValues, layers: int) -> list[bool]:
        every = values.number(name) if name is not None else None
        every = period if every is None else every
        return [every > 0 and (layer + 1) % every != 0 for layer in range(layers)]

    return pattern


def first_of(period: int) -> Callable[[ConfigValues, int], list[bool]]:
    """All but the first of every ``period`` layers slide."""
    return lambda _, layers: [layer % period != 0 for layer in range(layers)]


def from_last(period: int) -> Callable[[ConfigValues, int], list[bool]]:
    """As ``last_of``, counted from the last layer."""
    return lambda _, layers: [(layers - 1 - layer) % period != 0 for layer in range(layers)]


def no_sliding(_: ConfigValues, layers: int) -> list[bool]:
    """No layer slides."""
    return [False] * layers


def exaone4(values: ConfigValues, keys: Keys) -> None:
    """EXAONE 4: the pattern only with a window; it may be a period, or letters such as LLLG."""
    window()(values, keys)
    layers = keys["block_count"]
    if "attention.sliding_window" not in keys:
        return
    pattern, types = values.get("sliding_window_pattern"), values.texts("layer_types")
    if types is not None:
        keys["attention.sliding_window_pattern"] = [is_sliding(each) for each in types]
    elif isinstance(pattern, str) and pattern:
        keys["attention.sliding_window_pattern"] = [pattern[i % len(pattern)] == "L" for i in range(layers)]
    else:
        keys["attention.sliding_window_pattern"] = last_of(4, "sliding_window_pattern")(values, layers)


def cohere2moe(values: ConfigValues, keys: Keys) -> None:
    """Command A (MoE): the leading dense layers have their own pattern."""
    window()(values, keys)
    dense = values.number("first_k_dense_replace") or 0

    def pattern(_: ConfigValues, count: int) -> list[bool]:
        first = last_of(1, "prefix_dense_sliding_window_pattern")(values, min(dense, count))
        return first + last_of(4, "sliding_window_pattern")(values, count - len(first))

    sliding_layers(pattern)(values, keys)


def gemma3(values: ConfigValues, keys: Keys) -> None:
    """Gemma 3: no window if every layer is dense (``sliding_window_pattern`` 1)."""
    if values.number("sliding_window_pattern") != 1:
        window()(values, keys)


def gemma4(values: ConfigValues, keys: Keys) -> None:
    """Gemma 4: dense layers have their own head length, and may have their own KV heads."""
    window()(values, keys)
    types = values.texts("layer_types")
    layers = keys["block_count"]
    sliding = last_of(6)(values, layers) if types is None else [is_sliding(each) for each in types]
    if sliding:
        sliding[-1] = False  # the library's class makes the last layer dense
    keys["attention.sliding_window_pattern"] = sliding
    keys["attention.shared_kv_layers"] = values.need("num_kv_shared_layers")
    by_layer = values.section("per_layer_config")
    dense = next((by_layer.section(str(layer)) for layer, slides in enumerate(sliding) if not slides), by_layer)
    length = values.number("global_head_dim") or dense.number("head_dim") or 512
    keys["attention.key_length_swa"] = keys["attention.value_length_swa"] = values.head_length
    keys["attention.key_length"] = keys["attention.value_length"] = length
    heads = values.number(*KV_HEADS)
    dense_heads = None
    if values.get("attention_k_eq_v") is not False:
        dense_heads = values.number("num_global_key_value_heads")
    dense_heads = dense_heads or dense.number("num_key_value_heads")
    if dense_heads and heads is not None:
        keys["attention.head_count_kv"] = [heads if slides else dense_heads for slides in sliding]


def llama4(values: ConfigValues, keys: Keys) -> None:
    """Llama 4: chunks, unless every layer sees the whole context."""
    types = values.texts("layer_types")
    rope = values.numbers("no_rope_layers") or []
    interval = values.number("no_rope_layer_interval") or 4
    rope = rope or [int((layer + 1) % interval != 0) for layer in range(keys["block_count"])]
    if types is None:
        chunked = values.number("attention_chunk_size") is not None and any(rope)
    else:
        chunked = any(each != "full_attention" for each in types)
    if not chunked:
        keys["attention.sliding_window"] = 0
    keys["feed_forward_length"] = values.number("intermediate_size_mlp", "intermediate_size")


def mellum(values: ConfigValues, keys: Keys) -> None:
    """Mellum: the window may be switched off."""
    if values.get("use_sliding_window") in (True, None):
        window()(values, keys)
    if "attention.sliding_window" in keys:
        sliding_layers(no_sliding)(values, keys)


def smallthinker(values: ConfigValues, keys: Keys) -> None:
    """SmallThinker: the window only where its layout has a sliding layer."""
    keys["expert_count"] = values.number("moe_num_primary_experts")
    keys["expert_used_count"] = values.number("moe_num_active_primary_experts")
    if any(values.numbers("sliding_window_layout") or []):
        window("sliding_window_size")(values, keys)


def plamo3(values: ConfigValues, keys: Keys) -> None:
    """PLaMo 3: a period (``sliding_window_pattern``)."""
    window("window_size", "sliding_window")(values, keys)
    pattern = values.counts("sliding_window_pattern")
    if "attention.sliding_window" in keys and pattern is not None:
        keys["attention.sliding_window_pattern"] = pattern


def modern_bert(values: ConfigValues, keys: Keys) -> None:
    """ModernBERT: local attention, a global layer every few."""
    window("local_attention")(values, keys)
    every = values.number("global_attn_every_n_layers")
    if every is not None:
        keys["attention.sliding_window_pattern"] = every


def mimo2(values: ConfigValues, keys: Keys) -> None:
    """MiMo-V2: sliding layers have their own KV heads, values are narrower than keys, three drafting blocks."""
    window("sliding_window", "sliding_window_size")(values, keys)
    trunk, drafting = keys["block_count"], 3
    sliding: list[bool]
    hybrid, types = values.numbers("hybrid_layer_pattern"), values.texts("layer_types")
    if hybrid is not None:
        sliding = [each == 1 for each in hybrid]
    elif types is not None:
        sliding = [is_sliding(each) for each in types]
    else:
        sliding = [layer != 0 and (layer + 1) % 6 != 0 for layer in range(trunk)]
    sliding += [True] * drafting
    keys |= {"block_count": trunk + drafting, "nextn_predict_layers": drafting}
    heads, of_sliding = values.need(*KV_HEADS), values.number("swa_num_key_value_heads")
    keys["attention.head_count_kv"] = [of_sliding if each and of_sliding else heads for each in sliding]
    keys["attention.sliding_window_pattern"] = sliding
    keys["attention.value_length"] = values.need("v_head_dim")
    for sliding_name, name in (("swa_head_dim", "head_dim"), ("swa_v_head_dim", "v_head_dim")):
        if values.number(sliding_name) not in (None, values.number(name)):
            values.fail(f"has another {sliding_name} than {name}")
    values.get("swa_num_attention_heads")


def step35(values: ConfigValues, keys: Keys) -> None:
    """Step 3.5: KV heads are called attention groups; sliding layers may have their own heads."""
    layers = keys["block_count"]
    types = (values.texts("layer_types") or [])[:layers]
    types += ["full_attention"] * (layers - len(types))
    other = values.section("attention_other_setting")
    heads, groups = values.need(*HEADS), values.need("num_attention_groups", "num_key_value_heads")
    heads_sliding = other.number("num_attention_heads") or values.number("num_sliding_attention_heads") or heads
    groups_sliding = other.number("num_attention_groups") or values.number("num_sliding_key_value_heads") or groups
    sliding = [is_sliding(each) for each in types]
    keys["attention.head_count"] = [heads_sliding if each else heads for each in sliding]
    keys["attention.head_count_kv"] = [groups_sliding if each else groups for each in sliding]
    keys["attention.sliding_window_pattern"] = sliding
    window()(values, keys)
    keys["attention.key_length"] = keys["attention.value_length"] = values.need("head_dim")


def laguna(values: ConfigValues, keys: Keys) -> None:
    """Laguna: query heads by layer."""
    heads = values.numbers("num_attention_heads_per_layer")
    if heads:
        keys["attention.head_count"] = heads
    window()(values, keys)
    if not keys.get("attention.sliding_window"):
        keys.pop("attention.sliding_window", None)
