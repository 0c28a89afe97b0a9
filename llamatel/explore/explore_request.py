"""The request of a capture, and its memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llamatel.errors import UsageError
from llamatel.plan.model_shape import ModelShape

MAX_BYTES = 1 << 30
_CELLS = 256
"""llama.cpp rounds the cells that a pass attends to up to a multiple of this."""


@dataclass(frozen=True, slots=True)
class CaptureRequest:
    """One capture. ``layers``, ``heads`` None: all. ``rows``: positions whose rows are kept, from and up to.

    ``prompt`` is text, or ``tokens`` are given; or ``repeat`` is a number of random tokens, used twice. ``chat`` puts
    the prompt into the model's chat template. ``generate`` tokens follow, always the most likely one. ``cache_type``:
    f16, as in servers, or f32.
    """

    model: str
    prompt: str = ""
    tokens: tuple[int, ...] | None = None
    repeat: int | None = None
    chat: bool = False
    generate: int = 0
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    rows: tuple[int, int] | None = None
    cache_type: str = "f16"
    threads: int | None = None
    gpu_layers: int = 0
    seed: int = 0
    max_bytes: int = MAX_BYTES

    def __post_init__(self) -> None:
        if self.cache_type not in ("f16", "f32"):
            raise UsageError(f"keys and values are captured as f16 or f32, not {self.cache_type}")
        if self.generate < 0 or (self.repeat is not None and self.repeat < 2):
            raise UsageError("the number of tokens is at least 0, and 2 to repeat")
        if self.rows is not None and not 0 <= self.rows[0] < self.rows[1]:
            raise UsageError("rows are FROM-TO with FROM before TO")

    def as_dict(self) -> dict[str, Any]:
        """For the child process."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CaptureRequest:
        """The opposite of ``as_dict``, after JSON."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)

    def chosen_layers(self, shape: ModelShape) -> tuple[int, ...]:
        """The chosen layers. Raises UsageError for one that the model lacks."""
        there = [layer.index for layer in shape.trunk]
        if self.layers is None:
            return tuple(there)
        wrong = sorted(set(self.layers) - set(there))
        if wrong:
            raise UsageError(f"{Path(self.model).name} has layers 0 to {max(there)}, not {wrong[0]}")
        return tuple(sorted(set(self.layers)))

    def check_heads(self, shape: ModelShape) -> None:
        """Raises UsageError for a head that no chosen layer has."""
        most = max((layer.heads or 0 for layer in shape.trunk), default=0)
        wrong = [head for head in self.heads or () if not 0 <= head < most]
        if wrong and most:
            raise UsageError(f"{Path(self.model).name} has heads 0 to {most - 1}, not {wrong[0]}")


@dataclass(frozen=True, slots=True)
class Needed:
    """Bytes by part."""

    weights: int
    queries: int
    keys_values: int
    scores: int
    """llama.cpp's own buffer for the scores of one layer, three times: scores, mask and what is copied."""

    @property
    def total(self) -> int:
        """The sum."""
        return self.weights + self.queries + self.keys_values + self.scores


def bytes_needed(request: CaptureRequest, shape: ModelShape, tokens: int) -> Needed:
    """What a capture of ``tokens`` (prompt and generated) holds at its peak, from the header's lengths."""
    first, last = request.rows or (0, tokens)
    rows = max(min(last, tokens) - first, 0)
    cells = -(-tokens // _CELLS) * _CELLS
    weights = queries = stored = scores = 0
    chosen = set(request.chosen_layers(shape))
    for layer in shape.trunk:
        if not layer.attends:
            continue
        heads = layer.heads or layer.kv_heads or 1
        scores = max(scores, 3 * 4 * heads * tokens * cells)
        if layer.index in chosen:
            kept = heads if request.heads is None else min(heads, len(request.heads))
            weights += 4 * kept * rows * tokens
            queries += 4 * kept * rows * layer.key_length
            stored += 4 * tokens * (layer.key_width + layer.value_width) + rows * tokens
    return Needed(weights, queries, stored, scores)


def check_memory(request: CaptureRequest, shape: ModelShape, tokens: int) -> None:
    """Raise UsageError with the sum where a capture needs more than ``max_bytes``."""
    needed = bytes_needed(request, shape, tokens)
    if needed.total > request.max_bytes:
        parts = (
            f"{needed.weights:,} of weights, {needed.queries:,} of queries, {needed.keys_values:,} of keys and values, "
            f"{needed.scores:,} in llama.cpp"
        )
        raise UsageError(
            f"the attention of {tokens:,} tokens needs {needed.total:,} bytes ({parts}), more than --max-bytes "
            f"{request.max_bytes:,}: choose fewer --layers, --heads or --rows, or a shorter prompt"
        )
