"""Writes the suite's models: metadata of ``models``, tensors of ``tensors.txt``, random weights."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from .models import TinyModel
from .tensor_names import Shape, expand, spans

TABLE = Path(__file__).with_name("tensors.txt")

TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *map(chr, range(33, 127))]
VOCABULARY = len(TOKENS)


def full_key(architecture: str, key: str) -> str:
    """Return a key as written in the file."""
    return key[1:] if key.startswith("/") else f"{architecture}.{key}"


def _add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value and isinstance(value[0], int) and key.endswith(("multipliers", "offsets", "vocab_sizes")):
        writer.add_key_value(key, value, gguf.GGUFValueType.ARRAY, sub_type=gguf.GGUFValueType.UINT64)
    else:
        writer.add_array(key, value)


def _add_tokenizer(writer: gguf.GGUFWriter, vocabulary: int) -> None:
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    kinds += [gguf.TokenType.BYTE] * 256 + [gguf.TokenType.NORMAL] * (vocabulary - 259)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(TOKENS + [f"<{number}>" for number in range(VOCABULARY, vocabulary)])
    writer.add_token_scores([0.0] * 3 + [-1000.0] * 256 + [-1.0] * (vocabulary - 259))
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def write_head(writer: gguf.GGUFWriter, model: TinyModel, vocabulary: int = VOCABULARY) -> None:
    """The metadata."""
    for key, value in model.metadata.items():
        _add_value(writer, full_key(model.architecture, key), value)
    if "vocab_size" not in model.metadata:
        writer.add_vocab_size(vocabulary)
    _add_tokenizer(writer, vocabulary)


def write_model(path: Path, model: TinyModel, tensors: Mapping[str, Shape], *, scale: float = 0.05) -> Path:
    """Write the GGUF. Shapes are in ggml's order (fastest dimension first), as llama.cpp prints them.

    ``scale``: the weights' standard deviation; with small ones attention is spread evenly.
    """
    writer = gguf.GGUFWriter(path, model.architecture)
    write_head(writer, model)
    random = np.random.default_rng(zlib.crc32(model.name.encode()))
    for name, shape in tensors.items():
        weights = random.standard_normal(shape[::-1], dtype=np.float32)
        writer.add_tensor(name, weights * np.float32(scale))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def read_table(path: Path = TABLE, text: str | None = None) -> dict[str, dict[str, Shape]]:
    """Tensors by model. A line ``[name]`` opens a model; ``blk.{0,2}.attn_q.weight 128 64`` is one or more tensors."""
    table: dict[str, dict[str, Shape]] = {}
    for line in (path.read_text() if text is None else text).splitlines():
        if line.startswith("["):
            current = table.setdefault(line.strip("[]"), {})
        elif line:
            current |= expand(line)
    return table


def format_table(table: Mapping[str, Mapping[str, Shape]]) -> str:
    """The text that ``read_table`` reads."""
    text = []
    for model, tensors in sorted(table.items()):
        text.append(f"[{model}]")
        groups: dict[tuple[str, Shape], list[int]] = {}
        for name, shape in tensors.items():
            if name.startswith("blk."):
                _, layer, rest = name.split(".", 2)
                groups.setdefault((rest, shape), []).append(int(layer))
            else:
                text.append(" ".join([name, *map(str, shape)]))
        text += [
            " ".join([f"blk.{{{spans(layers)}}}.{rest}", *map(str, shape)]) for (rest, shape), layers in groups.items()
        ]
    return "\n".join([*text, ""])
