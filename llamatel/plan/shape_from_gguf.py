"""A ModelShape from a GGUF's metadata and, if they were read, its tensors.

Follows llama.cpp's own reading of the keys; ``layers`` does so for what differs by layer.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from llamatel.errors import UsageError
from llamatel.gguf.file_kinds import not_a_model
from llamatel.gguf.ggml_types import REMOVED_TYPES, file_type_name, unknown_type
from llamatel.plan.architectures import ARCHITECTURES, DRAFT_ONLY, Architecture, architecture_of
from llamatel.plan.layers import layers_of
from llamatel.plan.llama_build import LlamaBuild
from llamatel.plan.metadata_keys import Keys
from llamatel.plan.model_shape import ModelShape, Rope
from llamatel.plan.verified import is_verified, verified_builds
from llamatel.plan.weights import Tensor, weigh

_MAX_LAYERS = 512  # LLAMA_MAX_LAYERS (src/llama-hparams.h:11)


class Header(Protocol):
    """The result of a header reader: metadata by key, tensors with their sizes."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Values by their full keys."""

    @property
    def tensors(self) -> Sequence[Tensor] | None:
        """None if they were not read."""

    @property
    def tensor_count(self) -> int:
        """Tensors in all of its files."""


def shape_from_gguf(header: Header, build: LlamaBuild | None = None) -> ModelShape:
    """The shape of the model in a GGUF for a build of llama.cpp. Raises UsageError for a file that is not a model.

    ``build`` None: the newest that llamatel knows.
    """
    what = not_a_model(header)
    if what is not None:
        raise UsageError(what)
    tensors = header.tensors
    if not tensors:
        return shape_from_metadata(header.metadata, build=build)
    shape = shape_from_metadata(header.metadata, {tensor.name for tensor in tensors}, build)
    unsized = dict.fromkeys(tensor.type for tensor in tensors if tensor.n_bytes is None)
    if unsized:
        types = ", ".join(unknown_type(name) for name in list(unsized)[:5])
        removed = next((unknown_type(name) for name in unsized if name in REMOVED_TYPES), None)
        return replace(
            shape,
            weights_unknown=f"tensors of type {types}",
            rejected=None if removed is None else f"it does not load tensors of type {removed}",
        )
    return replace(shape, weights=weigh(tensors, len(shape.layers), shape.experts, shape.experts_used))


def shape_from_metadata(
    metadata: Mapping[str, Any], tensor_names: set[str] | None = None, build: LlamaBuild | None = None
) -> ModelShape:
    """The shape that GGUF metadata describes; ``tensor_names`` are those of the file, where known."""
    keys = Keys(metadata)
    row = architecture_of(keys.architecture, build)
    unknown: list[str] = []
    if row is None:
        unknown.append(f"{unknown_architecture(keys.architecture)}: its cache is read as if all layers attend")
        row = Architecture(keys.architecture)
    blocks = keys.required("block_count")
    if not 0 <= blocks * max(keys.number("num_loops") or 1, 1) <= _MAX_LAYERS:
        raise UsageError(f"the file has {blocks} layers, and llama.cpp accepts at most {_MAX_LAYERS}")
    drafting = keys.number("nextn_predict_layers") or 0
    if row.cache == "compressed" and drafting:
        # The key matters only if the file has the blocks' tensors (src/models/deepseek4.cpp:20).
        if tensor_names is None:
            unknown.append("whether the file has the tensors of its drafting blocks")
        elif f"blk.{blocks - drafting}.nextn.eh_proj.weight" not in tensor_names:
            drafting = 0
    if row.name == "dflash" and keys.number("hyper_connection.count"):
        unknown.append("the cache of a DFlash draft for DeepSeek-V4")
    layers, latent = layers_of(keys, row, blocks, min(drafting, blocks))
    name = metadata.get("general.name")
    return ModelShape(
        architecture=keys.architecture,
        layers=layers,
        name=name if isinstance(name, str) else None,
        context_length=keys.number("context_length"),
        embedding_length=keys.number("embedding_length"),
        feed_forward_length=max(keys.per_layer("feed_forward_length", blocks) or [0]) or None,
        expert_feed_forward_length=max(keys.per_layer("expert_feed_forward_length", blocks) or [0]) or None,
        vocabulary=keys.number("vocab_size") or _vocabulary(metadata),
        experts=keys.number("expert_count"),
        experts_used=max(keys.per_layer("expert_used_count", blocks) or [0]) or None,
        build=build,
        latent=latent,
        latent_values=row.latent_values,
        drafting_keeps_all=row.drafting_keeps_all,
        cache=row.cache,
        flash_attention=row.flash_attention,
        causal=row.causal and keys.raw("attention.causal") is not False,
        rollback=row.rollback,
        drafts=row.drafts and any(layer.drafting for layer in layers),
        drafts_as=_drafts_as(row, blocks, tensor_names or set()),
        needs_target=row.name in DRAFT_ONLY and not _whole_model(row, tensor_names or set()),
        aborts=row.aborts,
        rejected=f"key not found in model: {keys.missing[0]}" if "block_count" in str(keys.missing) else None,
        rope=_rope(keys),
        file_type=file_type_name(metadata.get("general.file_type")),
        verified=is_verified(row, build),
        verified_builds=verified_builds(row.name),
        unknown=(*unknown, *(f"the file lacks {key}" for key in dict.fromkeys(keys.missing))),
    )


def unknown_architecture(name: str) -> str:
    """A message that an architecture is unknown, with a similar one if there is one."""
    from llamatel.plan.config_families import BY_TYPE

    by_type = BY_TYPE.get(name.lower().replace("-", "_"))
    plain = {re.sub(r"[^a-z0-9]", "", each): each for each in ARCHITECTURES}
    near = difflib.get_close_matches(re.sub(r"[^a-z0-9]", "", name.lower()), plain, 1, 0.8)
    meant = by_type.architecture if by_type is not None else plain[near[0]] if near else None
    return f"architecture '{name:.80}' is not known" + (f" (did you mean {meant}?)" if meant else "")


def _rope(keys: Keys) -> Rope:
    return Rope(
        base=keys.real("rope.freq_base"),
        base_windowed=keys.real("rope.freq_base_swa"),
        dimensions=keys.number("rope.dimension_count"),
        scaling=keys.text("rope.scaling.type"),
        factor=keys.real("rope.scaling.factor"),
        original_context=keys.number("rope.scaling.original_context_length"),
    )


def _drafts_as(row: Architecture, blocks: int, tensor_names: set[str]) -> tuple[str, ...]:
    """common_speculative_types_from_gguf (common/speculative.cpp:2270)."""
    if row.name == "dflash":
        return ("draft-dspark" if "markov_w1.weight" in tensor_names else "draft-dflash",)
    return ("draft-mtp",) if f"blk.{blocks - 1}.nextn.eh_proj.weight" in tensor_names else ()


def _whole_model(row: Architecture, tensor_names: set[str]) -> bool:
    """Whether a draft model has its own embeddings and output (src/llama-context.cpp:147)."""
    own = {"token_embd.weight"} if row.name == "dflash" else {"token_embd.weight", "output.weight"}
    return row.cache != "none" and own <= tensor_names


def _vocabulary(metadata: Mapping[str, Any]) -> int | None:
    tokens = metadata.get("tokenizer.ggml.tokens")
    return len(tokens) if tokens is not None and hasattr(tokens, "__len__") else None
