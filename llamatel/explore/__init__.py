"""Captures a GGUF's attention while llama.cpp runs it: weights, keys, queries and values. Extra: ``explore``.

from llamatel import explore

run = explore.capture("model.gguf", "The cat sat on the mat. The cat")
explore.attention_picture(run, layer=0)
explore.head_scores(explore.capture("model.gguf", repeat=32))
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llamatel.explore.capture import Capture, LayerAttention
from llamatel.explore.explore_child import Progress
from llamatel.explore.explore_child import capture as _capture_request
from llamatel.explore.explore_request import CaptureRequest
from llamatel.explore.heads import KINDS, HeadScores, head_scores
from llamatel.models import tiny_model

__all__ = [
    "KINDS",
    "Capture",
    "CaptureRequest",
    "HeadScores",
    "LayerAttention",
    "capture",
    "head_scores",
    "tiny_model",
]


def capture(model: str | Path, prompt: str = "", *, progress: Progress | None = None, **how: Any) -> Capture:
    """Run ``prompt`` through a GGUF and return its attention; ``how``: other fields of ``CaptureRequest``."""
    return _capture_request(CaptureRequest(model=str(model), prompt=prompt, **how), progress)
