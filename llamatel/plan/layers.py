"""A model's layers from its metadata: which attend, which have a window, a state or an indexer, and what they cache.

Follows llama.cpp's own reading (``src/llama-model.cpp`` load_hparams, ``src/models/*.cpp`` load_arch_hparams, October
2026); what differs by architecture is in ``architectures.py``.
"""

from __future__ import annotations

from dataclasses import replace

from llamatel.plan.architectures import Architecture, Window
from llamatel.plan.metadata_keys import Keys
from llamatel.plan.model_shape import LayerShape, RecurrentState

# glm-dsa's layers with an indexer where a file for over a million tokens lists none (src/models/glm-dsa.cpp:6).
_GLM_52_CONTEXT = 1048576


def layers_of(keys: Keys, row: Architecture, blocks: int, drafting: int) -> tuple[tuple[LayerShape, ...], bool]:
    """The layers, and whether they cache a latent vector."""
    trunk = blocks - drafting
    heads = keys.per_layer("attention.head_count", blocks) or [0] * blocks
    kv_heads = keys.per_layer("attention.head_count_kv", blocks) or heads
    first_heads = heads[0] if heads else 0
    latent = row.latent and bool(keys.number("attention.key_length_mla") and keys.number("attention.value_length_mla"))
    key, value = _lengths(keys, row, first_heads)
    key_swa = keys.number("attention.key_length_swa") or key
    value_swa = keys.number("attention.value_length_swa") or value
    windows = _windows(keys, row.window, blocks, trunk)
    recurrent = _recurrent_layers(keys, row, blocks, trunk, kv_heads)
    window_size = _window_size(keys, row.window) if any(windows) else 0
    if row.window is not None and row.window.period == 0 and row.cache == "hybrid":
        windows = [slides and not recurrent[i] for i, slides in enumerate(windows)]
    attends = _attending_layers(keys, row, blocks, recurrent)
    state = _state(keys, row, first_heads)
    indexers = _indexers(keys, row, trunk, attends)
    ratios = (keys.array("attention.compress_ratios") or []) if row.cache == "compressed" else []
    history = _history(keys) if row.name == "qwen4exp" else {}
    own_kv = row.own_kv if row.own_kv is not None else blocks
    if row.shared_kv_key:
        own_kv = blocks - (keys.number("attention.shared_kv_layers") or 0)
    layers = []
    for i in range(blocks):
        kept = None
        if state is not None and recurrent[i]:
            kept = replace(state, history=history.get(i, 0))
        layers.append(
            LayerShape(
                index=i,
                heads=heads[i] or None,
                kv_heads=kv_heads[i],
                key_length=key_swa if windows[i] else key,
                value_length=value_swa if windows[i] else value,
                attends=attends[i],
                cached=attends[i] and (i < trunk or row.drafting_cached),
                kv_from=own_kv - (2 if windows[i] else 1) if attends[i] and i >= own_kv else None,
                window=window_size if windows[i] else None,
                chunked=windows[i] and row.window is not None and row.window.chunked,
                state=kept,
                indexer_length=key_swa
                if i in indexers and windows[i] and row.cache == "attention"
                else indexers.get(i),
                compress_ratio=ratios[i] if i < len(ratios) else 0,
                drafting=i >= trunk,
            )
        )
    if row.extra_layer:
        layers.append(LayerShape(blocks, 1, 1, key, value))
    if row.loops:
        loops = max(keys.number("num_loops") or 1, 1)
        layers = [replace(layers[i % blocks], index=i) for i in range(blocks * loops)]
    return tuple(layers), latent


def _lengths(keys: Keys, row: Architecture, first_heads: int) -> tuple[int, int]:
    """Key and value length of a full layer (src/llama-model.cpp:1435)."""
    if first_heads == 0:
        if row.lengths_without_heads:
            return keys.number("attention.key_length") or 0, keys.number("attention.value_length") or 0
        key = value = 0
    else:
        share = (keys.number("embedding_length") or 0) // first_heads
        key = _or(keys.number("attention.key_length"), share)
        value = _or(keys.number("attention.value_length"), share)
        if not key or not value:
            keys.missing.append(f"{keys.architecture}.attention.key_length")
    if row.value_is_latent:
        value = keys.required("attention.kv_lora_rank")
    return key, value


def _or(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value


def _windows(keys: Keys, window: Window | None, blocks: int, trunk: int) -> list[bool]:
    """Which layers have a window."""
    size = keys.number("attention.sliding_window")
    if (
        window is None
        or (window.when == "positive" and not size)
        or (window.when == "unless zero" and size == 0)
        or (window.layers is not None and window.layers != trunk)
    ):
        return [False] * blocks
    if window.period == 0:  # all of them; the pattern is not read
        return [i < trunk or window.when == "always" for i in range(blocks)]
    listed = keys.array("attention.sliding_window_pattern")
    if listed is not None:
        return [i < len(listed) and bool(listed[i]) for i in range(blocks)]
    period = window.period
    if period is None:
        keys.missing.append(f"{keys.architecture}.attention.sliding_window_pattern")
        return [False] * blocks
    period = _or(keys.number("attention.sliding_window_pattern"), period)
    if period == 0:
        return [i < trunk for i in range(blocks)]
    dense = 0 if window.dense_first else period - 1
    return [i < trunk and i % period != dense for i in range(blocks)]


def _window_size(keys: Keys, window: Window | None) -> int:
    if window is None:
        return 0
    if window.forced is not None:
        return window.forced
    if window.default is not None:
        return _or(keys.number("attention.sliding_window"), window.default)
    return keys.required("attention.sliding_window")


def _recurrent_layers(keys: Keys, row: Architecture, blocks: int, trunk: int, kv_heads: list[int]) -> list[bool]:
    rule = row.recurrent
    if rule is None:
        return [False] * blocks
    if rule.layers == "all":
        return [i < trunk or row.cache == "hybrid" for i in range(blocks)]
    if rule.layers == "interval":
        listed = keys.per_layer("attention.recurrent_layers", blocks)
        interval = keys.number("full_attention_interval") or rule.interval
        recurrent = [bool(flag) for flag in listed] if listed else [(i + 1) % interval != 0 for i in range(blocks)]
    else:
        recurrent = [heads == 0 for heads in kv_heads]
        if rule.layers == "no KV heads, no feed-forward":
            widths = keys.per_layer("feed_forward_length", blocks) or [0] * blocks
            recurrent = [flag and width == 0 for flag, width in zip(recurrent, widths, strict=True)]
    return [flag and i < trunk for i, flag in enumerate(recurrent)]


def _attending_layers(keys: Keys, row: Architecture, blocks: int, recurrent: list[bool]) -> list[bool]:
    if row.cache in ("recurrent", "none"):
        return [row.cache == "none"] * blocks
    if row.recurrent is None or row.recurrent.layers == "all":
        return [True] * blocks
    attends = [not flag for flag in recurrent]
    if row.recurrent.layers == "no KV heads, no feed-forward":
        widths = keys.per_layer("feed_forward_length", blocks) or [0] * blocks
        attends = [flag and width == 0 for flag, width in zip(attends, widths, strict=True)]
    return attends


def _state(keys: Keys, row: Architecture, first_heads: int) -> RecurrentState | None:
    """The state of a recurrent layer (src/llama-hparams.cpp:208)."""
    rule = row.recurrent
    if rule is None:
        return None
    width = keys.required("embedding_length")
    if rule.state == "rwkv":
        return RecurrentState(_or(keys.number("token_shift_count"), 2) * width, width * keys.required("wkv.head_size"))
    if rule.state == "shortconv":
        return RecurrentState(width * (keys.required("shortconv.l_cache") - 1), 0)
    if rule.state == "kda":
        head, kernel = keys.required("kda.head_dim"), keys.required("ssm.conv_kernel")
        return RecurrentState(3 * (kernel - 1 if kernel else 3) * first_heads * head, head * head * first_heads)
    if rule.state == "linear":
        length, _ = _lengths(keys, row, first_heads)
        return RecurrentState(0, length * length * first_heads)
    kernel, inner, size = (keys.required(f"ssm.{key}") for key in ("conv_kernel", "inner_size", "state_size"))
    groups = keys.required("ssm.group_count") if rule.groups else 0
    return RecurrentState((kernel - 1 if kernel else 0) * (inner + 2 * groups * size), size * inner)


def _history(keys: Keys) -> dict[int, int]:
    """Values that a layer's convolution over n-gram embeddings keeps (src/llama-hparams.cpp:264)."""
    layers = keys.array("ple.layers")
    if not layers:  # the whole group of keys is optional
        return {}
    values = max(keys.required("ple.conv_kernel") - 1, 0) * keys.required("ple.ngram_size")
    values *= keys.required("hyper_connection.count") * keys.required("embedding_length")
    return dict.fromkeys(layers, values)


def _indexers(keys: Keys, row: Architecture, trunk: int, attends: list[bool]) -> dict[int, int]:
    """Key length of the indexer by layer."""
    rule = row.indexer
    if row.cache == "compressed":
        length = keys.required("attention.indexer.key_length")
        ratios = keys.array("attention.compress_ratios") or []
        return {i: length for i, ratio in enumerate(ratios[: len(attends)]) if ratio == 4}
    if rule is None or (rule == "types or none" and not keys.number("attention.indexer.top_k")):
        return {}
    length = keys.required("attention.indexer.key_length")
    if rule == "sparse":
        dense = keys.number("leading_dense_block_count") or 0
        return dict.fromkeys(range(dense, len(attends)), length)
    if rule == "attention":
        pooled = any(keys.array("attention.compress_ratios") or []) or bool(keys.number("attention.compress_ratios"))
        length *= row.pooled_rows if pooled else 1
        return {i: length for i, flag in enumerate(attends) if flag}
    chosen = [1] * (len(attends) if rule == "trunk" else trunk)
    if rule != "trunk":
        listed = keys.per_layer("attention.indexer.types", trunk)
        if listed is not None:
            chosen = listed
        elif rule == "types by length" and (keys.number("context_length") or 0) >= _GLM_52_CONTEXT:
            chosen = [int(i < 2 or (i % 4 == 2 and i < 78)) for i in range(trunk)]
        elif rule in ("types", "types or none"):
            keys.missing.append(f"{keys.architecture}.attention.indexer.types")
    if rule == "all types":
        if keys.number("attention.indexer.kpool"):
            length *= row.pooled_rows
        chosen += [1] * (len(attends) - trunk)
    return {i: length for i, flag in enumerate(chosen) if flag and attends[i]}
