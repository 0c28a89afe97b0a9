"""Settings with which llama-server does not start, and its message (src/llama-context.cpp:3816-3871)."""

from __future__ import annotations

from llamatel.flags.cache_types import CACHE_TYPES
from llamatel.flags.server_settings import MAX_SLOTS, ServerSettings
from llamatel.plan.model_shape import ModelShape

HEADS_OF_BLOCKS_SINCE = 9873
"""First build seen to refuse heads that are not whole blocks; b9538 required whole rows only."""


def refusal(shape: ModelShape, settings: ServerSettings, *, drafting: bool = False, alone: bool = True) -> str | None:
    """llama-server's reason for refusing one context, or None; in llama-server's order, as it reports the first.

    ``drafting``: the context is that of the blocks that draft. ``alone``: no other model is loaded before it.
    """
    if shape.rejected is not None:
        return shape.rejected
    if alone and shape.needs_target:
        return "requires ctx_other to be set"
    refused = _numbers(settings) or _cache_types(shape, settings)
    if refused is not None:
        return refused
    if drafting and not shape.drafting:
        return "context type MTP requested but model doesn't contain MTP layers"
    if drafting and not shape.drafts:
        return "failed to initialize the context"  # llama.cpp has no graph that uses these blocks
    return None


def _numbers(settings: ServerSettings) -> str | None:
    if settings.slots > MAX_SLOTS:
        return f"n_seq_max must be <= {MAX_SLOTS}"
    if settings.batch_size == 0 and settings.ubatch_size == 0:
        return "n_batch and n_ubatch cannot both be zero"
    if min(settings.batch_size, settings.ubatch_size) < 0 or settings.batch_size == 0:
        return "llama-server aborts: n_batch has to be above 0"
    return "failed to create context" if (settings.ctx_size or 0) < 0 else None


def _cache_types(shape: ModelShape, settings: ServerSettings) -> str | None:
    flash = settings.flash_attn if shape.flash_attention else "off"
    name_k, name_v = settings.cache_type_k, settings.cache_type_v
    type_k, type_v = CACHE_TYPES[name_k], CACHE_TYPES[name_v]
    if (shape.latent or shape.cache == "compressed") and name_k != name_v:
        return f"model does not support different K ({name_k}) and V ({name_v}) cache types"
    if type_v.quantised and flash == "off":
        return "quantized V cache requires flash_attn to be enabled"
    build = None if shape.build is None else shape.build.number
    if flash != "off" and (build is None or build >= HEADS_OF_BLOCKS_SINCE):
        for letter, name, kind, lengths in (
            ("K", name_k, type_k, [layer.key_length for layer in shape.trunk]),
            ("V", name_v, type_v, [layer.value_length for layer in shape.trunk]),
        ):
            odd = next((length for length in lengths if kind.quantised and length % kind.block), None)
            if odd is not None:
                return (
                    f"{letter} cache type {name} with block size {kind.block} does not divide "
                    f"n_embd_head_{letter.lower()}={odd}"
                )
    elif type_k.quantised:
        rows = [layer.key_width for layer in shape.layers if layer.cached and layer.kv_from is None]
        rows += [layer.indexer_length for layer in shape.layers if layer.indexer_length is not None]
        odd = next((row for row in rows if row % type_k.block), None)
        if odd is not None:
            return (
                f"llama-server aborts: a row of {odd} values is not a whole number of {name_k} blocks ({type_k.block})"
            )
    return None
