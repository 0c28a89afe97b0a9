"""``--preset`` and ``start_server(preset=…)``: arguments for a machine, computed from the model's header."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llamatel.errors import UsageError
from llamatel.flags.parse import parse_server_flags
from llamatel.gguf import parse_gguf_header
from llamatel.plan.presets import PRESETS, Chosen, choose
from llamatel.plan.shape_from_gguf import shape_from_gguf


def preset_arguments(
    name: str, model_path: str | os.PathLike[str] | None, words: Sequence[str]
) -> tuple[dict[str, Any], Chosen]:
    """The arguments of ``start_server`` that a preset adds, and its choice; ``words`` are the given flags.

    Raises UsageError for an unknown preset or a model that does not fit, GGUFError for a file that is not a model.
    """
    preset = PRESETS.get(name)
    if preset is None:
        raise UsageError(f"there is no preset '{name}': use {', '.join(PRESETS)}")
    if model_path is None:
        raise UsageError(f"the preset {name} needs a model file")
    shape = shape_from_gguf(parse_gguf_header(model_path, read_tensors=True))
    given = parse_server_flags(list(words))
    chosen = choose(preset, Path(model_path).name, shape, given)
    settings = chosen.settings
    found: dict[str, Any] = {
        "gpu_layers": settings.gpu_layers,
        "tensor_split": ",".join(f"{share:g}" for share in settings.tensor_split) or None,
        "ctx_size": settings.ctx_size,
        "flash_attn": settings.flash_attn,
        "cache_type_k": settings.cache_type_k,
        "cache_type_v": settings.cache_type_v,
    }
    return {key: value for key, value in found.items() if key not in given.given and value is not None}, chosen
