"""Captures of small models for the explorer's tests, and attention recomputed from captures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llamatel.explore import Capture, CaptureRequest, LayerAttention
from llamatel.explore.explore_session import capture_here
from tests.exact.models import MODELS
from tests.exact.writer import read_table, write_model

Floats = npt.NDArray[np.float32]

_TENSORS = read_table()
_BY_NAME = {model.name: model for model in MODELS}

TEXT = tuple(300 + 7 * number % 50 for number in range(24))
"""Letters: 24 tokens of the suite's vocabulary, without repetitions."""


def write_strong(folder: Path, name: str, **metadata: Any) -> Path:
    """A suite model with weights large enough for its heads to differ."""
    model = _BY_NAME[name]
    keys = {key.replace("__", "."): value for key, value in metadata.items()}
    path = folder / f"{name.replace(':', '-')}.gguf"
    return write_model(path, replace(model, metadata={**model.metadata, **keys}), _TENSORS[name], scale=0.3)


def captured(path: Path | str, **how: Any) -> Capture:
    """Capture in this process, on one thread, with keys and values in f32 to avoid rounding differences."""
    how = {"tokens": TEXT, "cache_type": "f32", "threads": 1, **how}
    return capture_here(CaptureRequest(model=str(path), **how))


def softmax(scores: Floats, extra: Floats | None = None) -> Floats:
    """Softmax over the last dimension; ``extra``, a score per head, is in the sum but not in the result."""
    highest = scores.max(-1, keepdims=True)
    if extra is not None:
        highest = np.maximum(highest, extra[:, None, None])
    raised = np.exp(scores - highest)
    whole = raised.sum(-1, keepdims=True)
    if extra is not None:
        whole = whole + np.exp(extra[:, None, None] - highest)
    return np.asarray(raised / whole, np.float32)


def recomputed(
    layer: LayerAttention, *, softcap: float | None = None, sinks: Floats | None = None, keys: Floats | None = None
) -> Floats:
    """softmax(Q·Kᵀ·scale + mask) from the captured queries and keys."""
    shared = np.repeat(layer.keys, layer.group_size, 0) if keys is None else keys
    scores = np.einsum("hrd,htd->hrt", layer.queries, shared)
    if softcap is not None:
        scores = softcap * np.tanh(scores / softcap)
    return softmax(np.where(layer.visible, scores * layer.scale, -np.inf).astype(np.float32), sinks)
