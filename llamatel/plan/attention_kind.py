"""What a model's attention is, in words, and what a token adds to its cache."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from llamatel.plan.model_shape import LayerShape, ModelShape


@dataclass(frozen=True, slots=True)
class TokenBytes:
    """Bytes that a token adds to the cache: permanently, and only while it is within a window."""

    lasting: int
    windowed: int = 0

    @property
    def total(self) -> int:
        """Both: a token's bytes while every layer holds it."""
        return self.lasting + self.windowed


def attention_kind(shape: ModelShape) -> str | None:
    """``MHA``, ``GQA``, ``MQA``, ``MLA``, several of them (``GQA/MHA``), ``none``; None where heads are not known."""
    layers = _attending(shape)
    if not layers:
        return "none" if shape.layers else None
    if shape.latent:
        return "MLA"
    kinds = {_kind(layer) for layer in layers}
    return None if None in kinds else "/".join(sorted(kind for kind in kinds if kind is not None))


def attention_summary(shape: ModelShape) -> str:
    """``GQA, 4 query heads to a KV head, window of 1024 in 5 of 6 layers, recurrent state in 36 of 48 layers``."""
    attending = [layer for layer in shape.trunk if layer.attends]
    parts = []
    if attending:
        kind, groups = attention_kind(shape) or "attention", group_sizes(shape)
        several = kind not in ("MLA", "MHA", "attention")
        parts.append(f"{kind}, {_ends(groups)} query heads to a KV head" if several else kind)
    windows = Counter(layer.window for layer in attending if layer.window is not None)
    parts += [
        f"window of {window} in {'all' if number == len(attending) else number} of {len(attending)} layers"
        for window, number in sorted(windows.items())
    ]
    states = sum(layer.state is not None for layer in shape.trunk)
    if states:
        parts.append(f"recurrent state in {states} of {len(shape.trunk)} layers")
    return ", ".join(parts) or "none"


def _ends(sizes: tuple[int, ...]) -> str:
    return "-".join(map(str, sorted({sizes[0], sizes[-1]})))


def group_sizes(shape: ModelShape) -> tuple[int, ...]:
    """The group sizes (query heads per KV head) that occur."""
    return tuple(sorted({layer.group_size for layer in _attending(shape) if layer.group_size is not None}))


def token_bytes(shape: ModelShape, block: int = 1, block_bytes: int = 2) -> TokenBytes | None:
    """What a token adds to the main cache if ``block`` values take ``block_bytes`` (f16: 1 and 2).

    None where the cache does not grow by tokens (compressed, unknown lengths) or does not fit into blocks.
    """
    lasting = windowed = 0
    if shape.cache == "compressed":
        return None
    if shape.cache == "none":
        return TokenBytes(0)
    for layer in shape.layers:
        if not layer.attends or not layer.cached or layer.kv_from is not None:
            continue
        if layer.kv_heads and not layer.key_length:
            return None
        if layer.key_length % block or (layer.value_length % block and not shape.latent):
            return None  # llama.cpp refuses it (unless flash attention is off)
        widths = [layer.key_width, 0 if shape.latent else layer.value_width]
        if layer.indexer_length is not None:
            # If the model is neither latent nor a hybrid, llama.cpp allocates a V with the indexer's keys.
            unread = 0 if shape.latent or shape.cache != "attention" else layer.value_length
            widths += [layer.indexer_length, unread]
        if any(width % block for width in widths):
            return None
        size = sum(width // block * block_bytes for width in widths)
        if layer.window is None:
            lasting += size
        else:
            windowed += size
    return TokenBytes(lasting, windowed)


def state_bytes(shape: ModelShape) -> int:
    """Bytes of recurrent state that each sequence has, whatever its length. Always f32."""
    states = [layer.state for layer in shape.trunk if layer.state is not None]
    return 4 * sum(state.conv + state.state + state.history for state in states)


def meaning(shape: ModelShape) -> tuple[str, ...]:
    """Sentences on what the attention means for the cache: sharing of heads, windows, states."""
    return tuple(
        sentence for sentence in (_sharing(shape), _windows(shape), _shared_layers(shape), _states(shape)) if sentence
    )


def _attending(shape: ModelShape) -> list[LayerShape]:
    """The layers whose heads are compared: those with KV heads, unless no layer's heads are known."""
    layers = [layer for layer in shape.trunk if layer.attends]
    return [layer for layer in layers if layer.kv_heads] or layers


def _kind(layer: LayerShape) -> str | None:
    if layer.heads is None or not layer.kv_heads:
        return None
    return "MHA" if layer.heads == layer.kv_heads else "MQA" if layer.kv_heads == 1 else "GQA"


def _sharing(shape: ModelShape) -> str | None:
    layers = _attending(shape)
    kind = attention_kind(shape)
    groups = group_sizes(shape)
    if kind == "none":
        return "No layer attends: memory does not grow with the context."
    if kind == "MLA":
        return f"One vector of {layers[0].key_width} values per token and layer replaces all heads' keys and values."
    if kind == "MHA":
        return "Every query head has its own keys and values: the largest cache."
    if kind == "MQA" and len(groups) == 1:
        return f"All {groups[0]} query heads share one key and one value: the cache is 1/{groups[0]} of MHA's."
    if kind == "GQA" and len(groups) == 1:
        return f"{groups[0]} query heads share one key and one value: the cache is 1/{groups[0]} of MHA's."
    if kind is not None:
        return "Layers differ in how many query heads share a key and a value (see --layers)."
    return None


def _windows(shape: ModelShape) -> str | None:
    layers = _attending(shape)
    windows = Counter((layer.window, layer.chunked) for layer in layers if layer.window is not None)
    if not windows:
        return None
    parts = []
    for (window, chunked), number in sorted(windows.items(), key=str):
        seen = f"only their chunk of {window:,} tokens" if chunked else f"the last {window:,} tokens only"
        parts.append(f"{number} of {len(layers)} layers see {seen}")
    return "; ".join(parts) + ": their cache stops growing there."


def _shared_layers(shape: ModelShape) -> str | None:
    layers = _attending(shape)
    number = sum(layer.kv_from is not None for layer in layers)
    return (
        f"{number} of {len(layers)} layers read earlier layers' keys and values: they cache none." if number else None
    )


def _states(shape: ModelShape) -> str | None:
    number = sum(layer.state is not None for layer in shape.trunk)
    if not number:
        return None
    return f"{number} of {len(shape.trunk)} layers keep a state of fixed size, whatever the context length."
