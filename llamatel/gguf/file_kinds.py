"""Recognises files that are not models: GGUFs of other kinds by their metadata, other formats by their first bytes.

Source: llama.cpp's ``gguf-py/gguf/constants.py`` (general.type), ``tools/imatrix``, ``tools/cvector-generator``,
``convert_lora_to_gguf.py``, ``tools/mtmd/clip.cpp``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class AnyHeader(Protocol):
    """The needed part of a GGUF's header."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Values by their full keys."""

    @property
    def tensor_count(self) -> int:
        """Tensors in all of its files."""


_OTHER_PROGRAMS = {
    "for images or video, of stable-diffusion.cpp or ComfyUI": (
        "aura", "cosmos", "flux", "hidream", "hyvid", "ltxv", "lumina2", "pig", "qwen_image", "sd1", "sd2", "sd3",
        "sdxl", "wan",
    ),
    "for speech, of whisper.cpp": ("whisper",),
}  # fmt: skip
"""Architectures of GGUFs that other programs read."""


def not_a_model(header: AnyHeader) -> str | None:
    """The kind of a GGUF that llama-server does not load as its model, and its flag; None for a model."""
    metadata = header.metadata
    architecture, kind = metadata.get("general.architecture"), metadata.get("general.type")
    if architecture == "clip" or kind == "mmproj":
        return "this is a multimodal projector, not a model: give it to llama-server with --mmproj, next to its model"
    if architecture == "controlvector" or "controlvector.model_hint" in metadata:
        return "this is a control vector, not a model: give it to llama-server with --control-vector"
    if kind == "adapter" or "adapter.type" in metadata:
        return "this is a LoRA adapter, not a model: give it to llama-server with --lora, next to its model"
    if kind == "imatrix" or "imatrix.datasets" in metadata or "imatrix.chunk_count" in metadata:
        return "this is an importance matrix, not a model: it is for llama-quantize --imatrix"
    for purpose, names in _OTHER_PROGRAMS.items():
        if architecture in names:
            return f"this is a model {purpose} ({architecture}): llama-server cannot load it"
    number = metadata.get("split.no")
    if isinstance(number, int) and number > 0 and architecture is None:
        return f"this is part {number + 1} of a split model: name its first file"
    if header.tensor_count == 0 and "tokenizer.ggml.tokens" in metadata:
        return "this is a vocabulary without weights, not a model: llama-server cannot load it"
    return None


_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer in place of the file: run git lfs pull"),
    (b"PK\x03\x04", "a zip archive, as PyTorch's weights are: llama.cpp reads GGUF only"),
    (b"\x80\x02", "a Python pickle, as PyTorch's weights are: llama.cpp reads GGUF only"),
    (b"\x1f\x8b", "a gzip archive: unpack it"),
    (b"\x00" * 16, "zeros, as an unfinished download has"),
    (b"%PDF", "a PDF document"),
    (b"{", "a JSON document"),
    (b"<", "a web page in place of the file"),
)
_BEFORE_GGUF = frozenset({b"lmgg", b"fmgg", b"tjgg", b"algg", b"ggml", b"ggmf", b"ggjt"})
_MAX_SAFETENSORS_HEADER = 100 << 20


def other_format(start: bytes) -> str | None:
    """The format of a file that starts with these bytes and is not a GGUF; None if unknown."""
    if start[:4] in _BEFORE_GGUF:
        return "a format from before GGUF, which llama.cpp no longer reads"
    length = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and length <= _MAX_SAFETENSORS_HEADER:
        return "safetensors weights: convert them to GGUF first (llama.cpp's convert_hf_to_gguf.py)"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    return next((words for first, words in _STARTS if start.startswith(first) or text.startswith(first)), None)
