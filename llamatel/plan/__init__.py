"""What a model is (from a GGUF header or a ``config.json``) and what it costs to run: caches, memory, what fits."""

from llamatel.flags.parse import parse_server_flags
from llamatel.flags.server_settings import ServerSettings
from llamatel.plan.cache_plan import CachePart, CachePlan, cache_plan
from llamatel.plan.model_shape import LayerShape, ModelShape, RecurrentState, Rope
from llamatel.plan.shape_from_config import shape_from_config
from llamatel.plan.shape_from_gguf import shape_from_gguf, shape_from_metadata

__all__ = [
    "CachePart",
    "CachePlan",
    "LayerShape",
    "ModelShape",
    "RecurrentState",
    "Rope",
    "ServerSettings",
    "cache_plan",
    "parse_server_flags",
    "shape_from_config",
    "shape_from_gguf",
    "shape_from_metadata",
]
