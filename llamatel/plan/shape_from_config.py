"""A ModelShape from a transformers ``config.json``: translated into the keys that llama.cpp's converter would write.

An unknown family, or an unread key that may change heads, head sizes or layers, is an error that names it: no number is
better than a wrong one. The tensors of a finetune are not known, so such a shape is never exact.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llamatel.errors import UsageError
from llamatel.plan.config_families import BY_CLASS, BY_TYPE, Family
from llamatel.plan.config_values import (
    HEAD_LENGTH,
    HEADS,
    LAYERS,
    WIDTH,
    WINDOW_KEYS,
    ConfigValues,
    library_defaults,
    library_text_defaults,
    library_text_type,
)
from llamatel.plan.model_shape import ModelShape
from llamatel.plan.shape_from_gguf import shape_from_metadata

CAVEAT = "it was read from a config.json: the GGUF made of it may differ"

_LARGEST_REAL = 1e30
_TEXT_PARTS = ("text_config", "llm_config", "lm_config", "language_config", "lfm", "thinker_config", "talker_config")
_CONTEXT = ("max_position_embeddings", "n_ctx", "n_positions", "max_length", "max_sequence_length", "model_max_length")
_OTHER: Mapping[str, tuple[str, ...]] = {
    "vocab_size": ("vocab_size",),
    "feed_forward_length": ("intermediate_size", "n_inner", "ffn_dim", "hidden_dim", "d_ff", "ffn_hidden_size"),
    "expert_count": ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"),
    "expert_used_count": ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_k", "moe_topk"),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "leading_dense_block_count": ("first_k_dense_replace",),
}


def shape_from_config(config: Mapping[str, Any]) -> ModelShape:
    """The shape of a model from its configuration. Raises UsageError with what is missing or unknown."""
    values, family = _family(config)
    values.read.update(family.ignored.split(), WINDOW_KEYS)
    if not (family.counts_blocks or values.is_part or any(values.is_given(name) for name in (*LAYERS, *WIDTH))):
        values.fail(
            "has no", LAYERS[0]
        )  # no keys, only the library's defaults: only text parts are published like this
    keys = _common(values, family)
    for rule in family.rules:
        rule(values, keys)
    unknown = values.unknown_keys()
    if unknown:
        names = ", ".join(name if name.isprintable() else repr(name) for name in unknown[:5])
        values.fail(f"has keys that llamatel does not know and that may change its heads or layers: {names:.300}")
    architecture = keys.pop("general.architecture", family.architecture)
    _rope(values, keys)
    metadata = {f"{architecture}.{key}": value for key, value in keys.items() if value is not None}
    shape = shape_from_metadata({"general.architecture": architecture, **metadata})
    _check_sizes(values, shape)
    name = config.get("_name_or_path")
    return replace(shape, unknown=(*shape.unknown, CAVEAT), name=name if isinstance(name, str) and name else None)


def _check_sizes(values: ConfigValues, shape: ModelShape) -> None:
    """Refuse a shape whose layers would cache nothing, as 0 bytes would be wrong."""
    if shape.cache == "none":
        return
    attending = [layer for layer in shape.layers if layer.attends and layer.cached]
    if not attending and all(layer.state is None for layer in shape.layers):
        values.fail("has no layer that keeps anything")
    if attending and not any(layer.kv_heads for layer in attending):
        values.fail("has 0 KV heads (num_key_value_heads, num_attention_heads)")
    keys_only = shape.latent or shape.cache == "compressed"
    if any(layer.kv_heads and not (layer.key_length and (keys_only or layer.value_length)) for layer in attending):
        values.fail("has heads of 0 values (head_dim, hidden_size)")


def _family(config: Mapping[str, Any]) -> tuple[ConfigValues, Family]:
    """The values of the language model, which may be a nested part of the configuration, and its family."""
    text: Mapping[str, Any] = config
    types: list[str] = []
    classes: list[str] = []
    for _ in range(4):  # Omni models nest a text part in a thinker
        _names(text, types, classes)
        part = next((text[name] for name in _TEXT_PARTS if isinstance(text.get(name), Mapping)), None)
        if part is None:
            break
        text = part
    if types and (inner := library_text_type(types[-1])) is not None:
        types.append(inner)  # the text part is absent, is the top level, or has no type
    if not types and not classes:
        raise UsageError("the config.json has no model_type")
    family = _find(types, classes, text)
    known = next((name for name in reversed(types) if library_defaults(name) is not None), None)
    model_type = known or next(iter([*reversed(types), *family.types.split(), family.architecture]))
    given = {**config, **text} if text is not config else config
    defaults = library_defaults(model_type)
    if defaults is not None and types and types[0] != model_type:
        defaults = {**defaults, **library_text_defaults(types[0], whole=text is config)}
    values = ConfigValues(model_type, given, defaults)
    if text is not config:
        values.read |= config.keys() - text.keys()  # of the other parts: vision, audio, projectors
        values.is_part = isinstance(text.get("model_type"), str) and values.in_library
    return values, family


def _names(config: Mapping[str, Any], types: list[str], classes: list[str]) -> None:
    model_type, architectures = config.get("model_type"), config.get("architectures")
    if isinstance(model_type, str) and model_type:
        types.append(model_type.lower())
    if isinstance(architectures, list) and architectures and isinstance(architectures[0], str):
        classes.append(architectures[0])


def _find(types: list[str], classes: list[str], text: Mapping[str, Any]) -> Family:
    """The family by class, as in llama.cpp's converter, else by the innermost known model_type."""
    whole = BY_CLASS.get(classes[0]) if classes else BY_TYPE.get(types[0])
    if whole is not None and whole.outermost:
        return whole
    innermost = next((BY_TYPE[name] for name in reversed(types) if name in BY_TYPE), None)
    by_class = next((BY_CLASS[name] for name in reversed(classes) if name in BY_CLASS), None)
    found = by_class
    llama = BY_TYPE["llama"]  # a class of models around a plain Llama or Mistral, such as Mistral3's, decides
    if by_class is None or (innermost not in (None, llama, by_class) and types[-1] in BY_TYPE):
        found = innermost
    if by_class is not None and innermost is not None and set(by_class.types.split()) & set(types):
        found = by_class  # a class that shares its model_type with others, such as Gemma3TextModel
    if found is None:
        names = [*types, *classes]
        near = difflib.get_close_matches((types or names)[-1], [*BY_TYPE, *BY_CLASS], 1, 0.85)
        shown = names[-1] if names[-1].isprintable() else repr(names[-1])
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"the config.json is of a family that llamatel does not know: {shown:.80}{hint}")
    if found.architecture == "deepseek2" and text.get("use_mla") is False:
        return BY_CLASS["DeepseekOCRForCausalLM"]  # keys and values of every head
    return found


def _common(values: ConfigValues, family: Family) -> dict[str, Any]:
    """The keys of all families (TextModel.set_gguf_parameters)."""
    keys: dict[str, Any] = {
        "block_count": 0 if family.counts_blocks and not values.number(*LAYERS) else values.layers,
        "context_length": values.number(*family.context, *_CONTEXT),
        "embedding_length": values.need(*WIDTH),
    }
    for key, names in _OTHER.items():
        keys[key] = values.counts(*names)
    heads = values.counts(*HEADS)
    keys["attention.head_count"] = heads
    kv_heads = values.counts(*family.kv_names)
    if family.heads == "given":
        if not heads:
            values.fail("has no", HEADS[0])
        if kv_heads is None and values.in_library:
            kv_heads = heads  # the default of the library's classes
        if kv_heads is None:
            values.fail("has no", family.kv_names[0])
    if kv_heads is not None:
        keys["attention.head_count_kv"] = kv_heads
    length = values.number(*HEAD_LENGTH)
    if length is not None:
        keys["attention.key_length"] = keys["attention.value_length"] = length
    return keys


def _rope(values: ConfigValues, keys: dict[str, Any]) -> None:
    """Rotary embeddings: scaling, and the rotated values of a head."""
    given = values.get("rope_parameters", "rope_scaling")
    keys.setdefault("rope.freq_base", _real(values.get("rope_theta")))
    if isinstance(given, Mapping):
        full = given.get("full_attention")
        scaling = full if isinstance(full, Mapping) else given
        if _real(scaling.get("rope_theta")) is not None:
            keys["rope.freq_base"] = _real(scaling.get("rope_theta"))
        kind = scaling.get("rope_type") or scaling.get("type")
        if isinstance(kind, str) and kind != "default":
            keys["rope.scaling.type"] = kind
            keys["rope.scaling.factor"] = _real(scaling.get("factor"))
            keys["rope.scaling.original_context_length"] = scaling.get("original_max_position_embeddings")
    share, length = values.get("partial_rotary_factor"), keys.get("attention.key_length")
    if "rope.dimension_count" not in keys and isinstance(share, (int, float)) and isinstance(length, int):
        keys["rope.dimension_count"] = int(share * length)


def _real(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < _LARGEST_REAL:
        return None
    return float(value)
