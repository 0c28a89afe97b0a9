"""``serve --preset``: arguments for a machine, computed from the model's header before the server starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llamatel.cli.plan import flag_words
from llamatel.errors import UsageError
from llamatel.flags.parse import parse_server_flags
from llamatel.gguf import parse_gguf_header
from llamatel.plan.advice import devices_in_words
from llamatel.plan.presets import PRESETS, choose
from llamatel.plan.shape_from_gguf import shape_from_gguf


def with_preset(
    name: str, model: str | None, arguments: Mapping[str, Any], server_args: Sequence[str]
) -> tuple[dict[str, Any], str]:
    """The arguments of ``ServerManager.start_server`` with those of the preset, and a line that describes them.

    Raises UsageError for an unknown preset and a model that does not fit, GGUFError for an invalid file.
    """
    preset = PRESETS.get(name)
    if preset is None:
        raise UsageError(f"there is no preset '{name}': use {', '.join(PRESETS)}")
    if model is None:
        raise UsageError(f"--preset {name} needs to know MODEL: name the file before --")
    words = [*flag_words(arguments), *server_args]
    shape = shape_from_gguf(parse_gguf_header(model, read_tensors=True))
    given = parse_server_flags(words)
    chosen = choose(preset, Path(model).name, shape, given)
    settings = chosen.settings
    adds: dict[str, Any] = {
        "gpu_layers": settings.gpu_layers,
        "tensor_split": ",".join(f"{share:g}" for share in settings.tensor_split) or None,
        "ctx_size": settings.ctx_size,
        "flash_attn": settings.flash_attn,
        "cache_type_k": settings.cache_type_k,
        "cache_type_v": settings.cache_type_v,
    }
    added = {key: value for key, value in adds.items() if key not in given.given and value is not None}
    flags = " ".join(flag_words(added))
    summary = f"llamatel: {name} ({devices_in_words(chosen.devices)}): {flags or 'nothing to add to your flags'}"
    if chosen.longest > (settings.ctx_size or 0):
        summary += f"; the context can grow to {chosen.longest} tokens"
    return {**arguments, **added}, summary
