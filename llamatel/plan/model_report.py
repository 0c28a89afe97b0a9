"""All that ``inspect`` shows of a model, as data: from a GGUF's header, or from a ``config.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import PurePath
from typing import Any

from llamatel.errors import UsageError
from llamatel.gguf.ggml_types import TENSOR_TYPES_BY_NAME
from llamatel.gguf.header import GGUFHeader, TensorInfo
from llamatel.gguf.metadata import SkippedArray
from llamatel.plan.attention_comparison import Variant, compare_shape
from llamatel.plan.attention_kind import (
    TokenBytes,
    attention_kind,
    attention_summary,
    group_sizes,
    meaning,
    state_bytes,
    token_bytes,
)
from llamatel.plan.model_shape import LayerShape, ModelShape
from llamatel.plan.shape_from_gguf import shape_from_gguf

CACHE_TYPES = ("f16", "q8_0", "q4_0")
"""Types for which ``inspect`` shows the bytes of a token; ``plan`` has the others."""

_ROLES = {
    "attn_q": "q", "attn_q_a": "q", "attn_q_b": "q",
    "attn_k": "k", "attn_k_b": "k", "attn_kv_a_mqa": "k", "attn_kv_b": "k",
    "attn_v": "v", "attn_v_b": "v",
    "attn_output": "o", "attn_out": "o",
    "attn_qkv": "qkv",
}  # fmt: skip
"""Attention's matrices by the middle of their names (llama.cpp, gguf-py ``constants.py``)."""


@dataclass(frozen=True)
class ModelReport:
    """``name`` comes from the file or repository. Without a ``shape`` the file is not a model."""

    name: str
    shape: ModelShape | None
    header: GGUFHeader | None = None
    config: Mapping[str, Any] | None = None
    reported_parameters: int | None = None
    """The Hub's figure for a model whose tensors were not read."""
    why_no_shape: str | None = None

    @property
    def title(self) -> str:
        """The name in the model's metadata, else that of its file or repository."""
        own = self.header.metadata.get("general.name") if self.header is not None else None
        return own if isinstance(own, str) and own else PurePath(self.name).name or self.name

    @property
    def parameters(self) -> int | None:
        """Parameters: the values in its tensors."""
        return self.reported_parameters if self.header is None else self.header.n_params

    @property
    def bits_per_weight(self) -> float | None:
        """Bits per parameter in the file."""
        n_bytes, parameters = (self.header.n_bytes, self.header.n_params) if self.header else (None, None)
        return n_bytes * 8 / parameters if n_bytes and parameters else None

    @property
    def active_parameters(self) -> int | None:
        """Parameters that one token uses, if fewer."""
        weights = self.shape.weights if self.shape is not None else None
        return weights.active_parameters if weights and weights.active_parameters != weights.parameters else None

    @cached_property
    def projections(self) -> dict[int, dict[str, list[TensorInfo]]]:
        """Attention's matrices by layer and role: q, k, v, o, and qkv if one matrix has all three."""
        found: dict[int, dict[str, list[TensorInfo]]] = {}
        for tensor in (self.header.tensors if self.header is not None else None) or ():
            parts = tensor.name.split(".")
            if len(parts) == 4 and parts[0] == "blk" and parts[1].isdecimal() and parts[3] == "weight":
                role = _ROLES.get(parts[2])
                if role is not None:
                    found.setdefault(int(parts[1]), {}).setdefault(role, []).append(tensor)
        return found

    @property
    def has_bias(self) -> bool:
        """Whether the key projection has a bias, as the files of some families do."""
        if self.config is not None:
            return bool(self.config.get("attention_bias"))
        tensors = (self.header.tensors if self.header is not None else None) or ()
        return any(tensor.name.endswith((".attn_k.bias", ".attn_qkv.bias")) for tensor in tensors)

    @cached_property
    def comparison(self) -> tuple[Variant, ...]:
        """The comparison with MHA, GQA and MQA; () if there is nothing to compare."""
        if self.shape is None:
            return ()
        lengths = None
        if self.shape.latent:
            lengths = self._head_lengths()
        return compare_shape(self.shape, bias=self.has_bias, head_lengths=lengths)

    def _head_lengths(self) -> tuple[int, int] | None:
        """Key and value length of a head of a latent model."""
        if self.header is not None:
            found = [self.header.metadata.own(f"attention.{which}_length_mla") for which in ("key", "value")]
        else:
            config = self.config or {}
            nope, rope = config.get("qk_nope_head_dim"), config.get("qk_rope_head_dim")
            both = isinstance(nope, int) and isinstance(rope, int)
            found = [nope + rope if both else None, config.get("v_head_dim")]  # type: ignore[operator]
        key, value = found
        return (key, value) if isinstance(key, int) and isinstance(value, int) else None

    def bytes_per_token(self, cache_type: str) -> TokenBytes | None:
        """Bytes that a token adds to the cache with this type for K and V; None if unknown, or not in whole blocks."""
        if self.shape is None:
            return None
        stored = TENSOR_TYPES_BY_NAME[cache_type.upper()]
        return token_bytes(self.shape, stored.block, stored.n_bytes)

    def tokenizer(self) -> dict[str, str | bool | None]:
        """Tokenizer: kind, pre-tokenizer, whether there is a chat template; empty without a header."""
        if self.header is None:
            return {}
        metadata = self.header.metadata
        kind, splitter = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
        return {
            "model": kind if isinstance(kind, str) else None,
            "pre": splitter if isinstance(splitter, str) else None,
            "chat_template": "tokenizer.chat_template" in metadata,
        }

    def as_dict(self, *, layers: bool = False, tensors: bool = False) -> dict[str, Any]:
        """For JSON: bytes, values and tokens as numbers, null where unknown."""
        shape, header = self.shape, self.header
        document: dict[str, Any] = {"model": self.name, "name": self.title, "architecture": None}
        if header is not None:
            document |= _file(header)
        document["parameters"] = self.parameters
        document["active_parameters"] = self.active_parameters or self.parameters
        document["bits_per_weight"] = self.bits_per_weight
        document["tokenizer"] = {**self.tokenizer(), "vocabulary": shape.vocabulary if shape else None}
        if shape is not None:
            document |= self._shape(shape)
        else:
            document["why_no_shape"] = self.why_no_shape
        if layers and shape is not None:
            document["layers"] = [self._layer(layer) for layer in shape.layers]
        if tensors and header is not None:
            document["tensors"] = [_tensor(tensor) for tensor in header.tensors or ()]
        return document

    def _shape(self, shape: ModelShape) -> dict[str, Any]:
        weights = shape.weights
        attending = [layer for layer in shape.trunk if layer.attends]
        return {
            "architecture": shape.architecture,
            "attention": {
                "type": attention_kind(shape),
                "description": attention_summary(shape),
                "meaning": list(meaning(shape)),
                "heads": _same(layer.heads for layer in attending),
                "kv_heads": _same(layer.kv_heads for layer in attending),
                "group_size": _same(group_sizes(shape)),
                "key_length": _same(layer.key_length for layer in attending),
                "value_length": _same(layer.value_length for layer in attending),
                "window": _same(layer.window for layer in attending if layer.window is not None),
                "window_layers": sum(layer.window is not None for layer in attending),
                "layers": len(attending),
            },
            "layer_count": len(shape.trunk),
            "drafting_layers": len(shape.drafting),
            "recurrent_layers": sum(layer.state is not None for layer in shape.trunk),
            "embedding_length": shape.embedding_length,
            "feed_forward_length": shape.feed_forward_length,
            "experts": shape.experts,
            "experts_used": shape.experts_used,
            "context_length": shape.context_length,
            "rope": asdict(shape.rope),
            "kv_bytes_per_token": {kind: self._token(kind) for kind in CACHE_TYPES},
            "state_bytes_per_sequence": state_bytes(shape),
            "weights": {
                "n_bytes": weights.n_bytes,
                "parts": [dict(zip(("part", "parameters", "n_bytes"), part, strict=True)) for part in weights.parts],
            }
            if weights is not None
            else None,
            "comparison": [{**asdict(each), "cache_bytes_f16": each.cache_bytes()} for each in self.comparison],
            "verified": shape.verified,
            "unknown": list(shape.unknown),
        }

    def _token(self, kind: str) -> dict[str, int] | None:
        found = self.bytes_per_token(kind)
        return None if found is None else {**asdict(found), "total": found.total}

    def _layer(self, layer: LayerShape) -> dict[str, Any]:
        mine = self.projections.get(layer.index, {})
        tensors = {role: [_tensor(tensor) for tensor in found] for role, found in mine.items()}
        return {**asdict(layer), "projections": tensors}


def report_of(header: GGUFHeader, name: str | None = None) -> ModelReport:
    """The report on a GGUF, named by its path unless ``name`` is given; without a shape if it is not a model."""
    name = name or header.path
    try:
        return ModelReport(name, shape_from_gguf(header), header)
    except UsageError as error:
        return ModelReport(name, None, header, why_no_shape=str(error))


def _same(values: Any) -> Any:
    """The value that all share, a list of the distinct values if they differ, None if there is none."""
    distinct = list(dict.fromkeys(values))
    if len(distinct) > 1:
        return sorted(distinct, key=lambda value: (value is None, value or 0))
    return distinct[0] if distinct else None


def _file(header: GGUFHeader) -> dict[str, Any]:
    return {
        "architecture": header.architecture,
        "files": list(header.files),
        "file_bytes": sum(header.file_sizes),
        "missing_bytes": header.missing_bytes,
        "gguf_version": header.version,
        "big_endian": header.big_endian,
        "alignment": header.alignment,
        "file_type": header.file_type,
        "tensor_count": header.tensor_count,
        "tensor_bytes": header.n_bytes,
        "metadata": {key: _plain(value) for key, value in header.metadata.items()},
    }


def _plain(value: object) -> object:
    """A metadata value for JSON, which has no NaN or infinity; a skipped array by what is known of it."""
    if isinstance(value, SkippedArray):
        return {"skipped": value.kind, "count": value.count}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def _tensor(tensor: TensorInfo) -> dict[str, Any]:
    return {**asdict(tensor), "shape": list(tensor.shape)}
