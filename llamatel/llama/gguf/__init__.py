"""GGUF model files: their headers, and no more of them."""

from __future__ import annotations

from llamatel.llama.gguf.header import GGUFHeader, TensorInfo, read_header
from llamatel.llama.gguf.metadata import Metadata, SkippedArray
from llamatel.llama.gguf.splits import parse_gguf_header
from llamatel.llama.gguf.types import FILE_TYPES, TENSOR_TYPES, TENSOR_TYPES_BY_NAME, TensorType

__all__ = [
    "FILE_TYPES",
    "TENSOR_TYPES",
    "TENSOR_TYPES_BY_NAME",
    "GGUFHeader",
    "Metadata",
    "SkippedArray",
    "TensorInfo",
    "TensorType",
    "parse_gguf_header",
    "read_header",
]
