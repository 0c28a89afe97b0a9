"""What a model is: its layers, heads, windows, states, from a GGUF's header or a transformers-style ``config.json``."""

from llamatel.model.from_config import shape_from_config
from llamatel.model.from_gguf import shape_from_gguf, shape_from_metadata
from llamatel.model.shape import LayerShape, ModelShape, RecurrentState, Rope

__all__ = [
    "LayerShape",
    "ModelShape",
    "RecurrentState",
    "Rope",
    "shape_from_config",
    "shape_from_gguf",
    "shape_from_metadata",
]
