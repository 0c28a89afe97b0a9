"""GGUF model files: reads their headers only."""

from __future__ import annotations

from llamatel.gguf.ggml_types import FILE_TYPES, TENSOR_TYPES, TENSOR_TYPES_BY_NAME, TensorType
from llamatel.gguf.header import GGUFHeader, TensorInfo, read_header
from llamatel.gguf.metadata import Metadata, SkippedArray
from llamatel.gguf.split_files import parse_gguf_header

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
