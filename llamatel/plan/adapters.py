"""Weights that llama-server loads next to a model: LoRA adapters (``--lora``), a multimodal projector (``--mmproj``).

Source: llama.cpp's ``src/llama-adapter.cpp`` (each pair is on the device of the tensor that it changes) and
``tools/mtmd/clip.cpp`` (all of a projector is on one device, by default the first GPU).
"""

from __future__ import annotations

from dataclasses import replace

from llamatel.gguf.header import GGUFHeader
from llamatel.plan.model_shape import ModelShape

_PAIR = (".lora_a", ".lora_b")


def with_lora(shape: ModelShape, adapter: GGUFHeader) -> ModelShape | None:
    """The shape with an adapter's tensors; None if it is not a LoRA adapter, or bytes are unknown."""
    tensors = adapter.tensors or ()
    if adapter.metadata.get("adapter.type") != "lora" or shape.weights is None or not shape.weights.tensors:
        return None
    found = [(each.name[:-7], each.n_bytes) for each in tensors if each.name.endswith(_PAIR)]
    sized = tuple((name, size) for name, size in found if size is not None)
    if len(sized) < len(found):
        return None
    if adapter.metadata.get("general.architecture") != shape.architecture:
        return replace(shape, rejected="model arch and LoRA arch mismatch")
    known = {name for name, _ in shape.weights.tensors}
    absent = next((name for name, _ in sorted(sized) if name not in known and not name.startswith("token_embd.")), None)
    if absent is not None:
        return replace(shape, rejected=f"LoRA tensor '{absent}' does not exist in base model")
    return replace(shape, adapters=shape.adapters + sized)


def with_projector_weights(shape: ModelShape, projector: GGUFHeader) -> ModelShape | None:
    """The shape with a projector's weights; None if it is not a projector, or its bytes are unknown."""
    if projector.metadata.get("general.architecture") != "clip":
        return None
    sizes = [each.n_bytes for each in projector.tensors or ()]
    known = [size for size in sizes if size is not None]
    return replace(shape, projector_bytes=sum(known)) if known and len(known) == len(sizes) else None
