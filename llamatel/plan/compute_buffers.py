"""Estimates llama.cpp's compute buffer, which does not follow from a header; always labelled as an estimate.

The terms are the largest tensors alive at once in llama.cpp's graph of one micro-batch: the activations around a
feed-forward, the attention mask, and without flash attention every head's scores. They give the buffer of the CPU
backend; a GPU's differs by its own temporary pools. ``make estimates`` compares them with what llama.cpp reports.
"""

from __future__ import annotations

from llamatel.flags.server_settings import Cells
from llamatel.plan.model_shape import LayerShape, ModelShape

COMPUTE_ERROR = (
    "against llama.cpp's own on the CPU, for 11 models of real dimensions with 4 settings each: median 1.3 %, three "
    "quarters within 4.2 %, worst 16 % (Mamba); on the tiny models of the suite recurrent and sparse ones are worse"
)
"""How far off they were in October 2026 (``make estimates``)."""


def _activations(shape: ModelShape, embedding: int) -> int:
    """Values per token around a feed-forward."""
    dense = 3 * (shape.feed_forward_length or 4 * embedding) + 4 * embedding
    if shape.experts_used and shape.expert_feed_forward_length:
        mixed = 2 * shape.experts_used * (embedding + shape.expert_feed_forward_length)
        return max(mixed, 4 * embedding)
    return dense


def _window_cells(cells: Cells, window: int | None) -> int:
    return 0 if window is None else min(cells.per_stream, window + cells.ubatch)


def _widest(layers: list[LayerShape]) -> tuple[int, int, int]:
    """Heads, query values and key values of the widest layer."""
    return max(((layer.heads or 0), (layer.heads or 0) * layer.key_length, layer.key_width) for layer in layers)


def compute_bytes(shape: ModelShape, cells: Cells, *, flash: bool) -> int | None:
    """llama-server's compute buffer; None where the model's width is unknown."""
    embedding = shape.embedding_length
    if embedding is None:
        return None
    activations = 4 * cells.ubatch * _activations(shape, embedding)
    attending = [layer for layer in shape.trunk if layer.attends]
    if not attending:
        return activations
    windows = next((layer.window for layer in attending if layer.window is not None), None)
    longest = _window_cells(cells, windows) if all(layer.window for layer in attending) else cells.per_stream
    if shape.cache == "none":
        longest = cells.ubatch
    mask = cells.ubatch * (longest + (_window_cells(cells, windows) if longest == cells.per_stream else 0))
    if any(layer.indexer_length for layer in attending):  # what sparse attention ranks, and its own mask
        activations += 7 * cells.ubatch * cells.per_stream
    if flash:
        return activations + 2 * mask
    heads, queries, keys = _widest(attending)
    scores = 4 * cells.ubatch * (heads * longest + 3 * embedding + 2 * queries + 2 * keys)
    return max(activations, scores) + 4 * mask


_COPIES = 4
"""GGML_SCHED_MAX_COPIES."""


def pipeline_bytes(shape: ModelShape, cells: Cells) -> int:
    """Additional bytes per device, where several devices work on different batches at the same time.

    Copies of the attention mask (f16) and of the activations that come from the device before it.
    """
    mask = 2 * cells.ubatch * cells.per_stream if any(layer.attends for layer in shape.trunk) else 0
    return (_COPIES - 1) * mask + _COPIES * 4 * cells.ubatch * (shape.embedding_length or 0)
