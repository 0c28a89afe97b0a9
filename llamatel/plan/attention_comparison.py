"""Compares the cost of a model's attention with that of the same attention as MHA, GQA and MQA."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from llamatel.plan.model_shape import LayerShape, ModelShape

_GROUPS = (4, 8)


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to share keys and values among query heads, summed over all layers.

    ``kv_parameters`` are those of the K and V projections, ``attention_parameters`` of Q, K, V and O, ``cache_values``
    the values that one token adds to the cache. ``kv_heads`` is None where layers differ.
    """

    name: str
    kv_heads: int | None
    kv_parameters: int | None
    attention_parameters: int | None
    cache_values: int
    own: bool = False
    """The model is this variant."""

    def cache_bytes(self, bytes_per_value: float = 2.0) -> float:
        """Bytes of the cache per token; 2 bytes a value is f16."""
        return self.cache_values * bytes_per_value


@dataclass(frozen=True, slots=True)
class AttentionLayer:
    """The numbers of a layer that are compared. A head's key has ``key_length`` values, its value ``value_length``."""

    embedding: int
    heads: int
    kv_heads: int
    key_length: int
    value_length: int
    bias: bool = False

    def kv_parameters(self, kv_heads: int) -> int:
        """Parameters of the K and V projections with that many KV heads."""
        return (self.embedding + self.bias) * kv_heads * (self.key_length + self.value_length)

    def attention_parameters(self, kv_heads: int) -> int:
        """Parameters of the Q, K, V and O projections."""
        query = (self.embedding + self.bias) * self.heads * self.key_length
        output = (self.heads * self.value_length + self.bias) * self.embedding
        return query + self.kv_parameters(kv_heads) + output

    def cache_values(self, kv_heads: int) -> int:
        """Values that a token adds to the cache."""
        return kv_heads * (self.key_length + self.value_length)


def compare(layers: Iterable[AttentionLayer]) -> tuple[Variant, ...]:
    """MHA, GQA with the usual group sizes and the model's, MQA; the model's own is marked, or appended."""
    layers = tuple(layers)
    if not layers:
        return ()
    most = max(layer.heads for layer in layers)
    own = {(layer.heads, layer.kv_heads) for layer in layers}
    groups = {heads // kv_heads for heads, kv_heads in own if kv_heads and heads % kv_heads == 0}
    shared = sorted({*_GROUPS, *groups} - {1, most})
    variants = []
    for group in (1, *(group for group in shared if all(layer.heads % group == 0 for layer in layers)), most):
        kv = [max(layer.heads // group, 1) for layer in layers]
        name = "MHA" if group == 1 else "MQA" if group == most else f"GQA of {group}"
        variants.append(_variant(name, layers, kv, own=kv == [layer.kv_heads for layer in layers]))
        if most == 1:
            break
    if not any(variant.own for variant in variants):
        variants.append(_variant("as it is", layers, [layer.kv_heads for layer in layers], own=True))
    return tuple(variants)


def _variant(name: str, layers: tuple[AttentionLayer, ...], kv_heads: list[int], *, own: bool) -> Variant:
    pairs = list(zip(layers, kv_heads, strict=True))
    return Variant(
        name=name,
        kv_heads=kv_heads[0] if len(set(kv_heads)) == 1 else None,
        kv_parameters=sum(layer.kv_parameters(kv) for layer, kv in pairs),
        attention_parameters=sum(layer.attention_parameters(kv) for layer, kv in pairs),
        cache_values=sum(layer.cache_values(kv) for layer, kv in pairs),
        own=own,
    )


def compare_shape(
    shape: ModelShape, *, bias: bool = False, head_lengths: tuple[int, int] | None = None
) -> tuple[Variant, ...]:
    """The comparison for a model's attending layers that keep keys and values; () where its heads are not known.

    ``bias``: its projections have biases. ``head_lengths``: key and value length of a head of a latent model (MLA),
    whose layers have those of the latent vector; without it a latent model has no comparison.
    """
    attending = [layer for layer in shape.trunk if layer.attends and layer.kv_from is None and layer.kv_heads]
    embedding = shape.embedding_length
    if not attending or not embedding or (shape.latent and head_lengths is None) or shape.cache == "compressed":
        return ()
    layers = [_layer(layer, layer.heads, embedding, bias, head_lengths) for layer in attending if layer.heads]
    if len(layers) != len(attending) or not all(layer.key_length for layer in layers):
        return ()
    if not shape.latent:
        return compare(layers)
    # A latent model's projections have other shapes, which the comparison does not know: its cache it does.
    others = [variant for variant in compare(layers) if variant.name != "as it is"]
    latent = sum(layer.key_width for layer in attending)
    return (
        *(Variant(v.name, v.kv_heads, v.kv_parameters, v.attention_parameters, v.cache_values) for v in others),
        Variant("MLA", None, None, None, latent, own=True),
    )


def _layer(
    layer: LayerShape, heads: int, embedding: int, bias: bool, head_lengths: tuple[int, int] | None
) -> AttentionLayer:
    key, value = head_lengths or (layer.key_length, layer.value_length)
    return AttentionLayer(embedding, heads, layer.kv_heads, key, value, bias)
