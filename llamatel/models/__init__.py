"""The model that llamatel ships. ``tiny.md``: how it was made, and what it cannot do."""

from __future__ import annotations

from pathlib import Path


def tiny_model() -> Path:
    """The GGUF: llama architecture, 3 layers, 8 query heads on 2 KV heads, 0.8 MB."""
    return Path(__file__).with_name("tiny.gguf")
