"""Random valid files, written by gguf-py and read by both: everything must be equal."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamatel.gguf import GGUFHeader, SkippedArray
from llamatel.llama import parse_gguf_header

_TYPE = gguf.GGUFValueType
_KINDS = {
    _TYPE.UINT8: "u8", _TYPE.INT8: "i8", _TYPE.UINT16: "u16", _TYPE.INT16: "i16", _TYPE.UINT32: "u32",
    _TYPE.INT32: "i32", _TYPE.FLOAT32: "f32", _TYPE.BOOL: "bool", _TYPE.STRING: "string", _TYPE.UINT64: "u64",
    _TYPE.INT64: "i64", _TYPE.FLOAT64: "f64",
}  # fmt: skip


def _text(longest: int) -> st.SearchStrategy[str]:
    return st.text(st.characters(exclude_categories=["Cs"]), max_size=longest)


def _values(kind: gguf.GGUFValueType, longest: int = 400) -> st.SearchStrategy[Any]:
    name = _KINDS[kind]
    if name == "string":
        return _text(longest)
    if name == "bool":
        return st.booleans()
    bits = int(name[1:])
    if name[0] == "f":
        return st.floats(width=64 if bits == 64 else 32, allow_nan=False)
    return st.integers(0, 2**bits - 1) if name[0] == "u" else st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


_KEYS = st.one_of(
    st.text("abc.-_", min_size=1, max_size=12).map(lambda text: f"llama.{text}"),
    st.sampled_from(["tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.scores", "general.tags"]),
    _text(20).filter(lambda text: text and not text.startswith(("general.", "GGUF."))),
)


@st.composite
def _pairs(draw: st.DrawFn) -> dict[str, tuple[gguf.GGUFValueType, Any, gguf.GGUFValueType | None]]:
    pairs: dict[str, tuple[gguf.GGUFValueType, Any, gguf.GGUFValueType | None]] = {}
    for key in draw(st.lists(_KEYS, unique=True, max_size=10)):
        kind = draw(st.sampled_from(sorted(_KINDS)))
        if draw(st.booleans()):
            # Many of them, so that arrays are longer than those that hypothesis draws element by element.
            values = draw(st.lists(_values(kind), min_size=1, max_size=8)) * draw(st.integers(1, 60))
            pairs[key] = (_TYPE.ARRAY, values, kind)
        else:
            pairs[key] = (kind, draw(_values(kind)), None)
    return pairs


_TENSOR_TYPES = sorted(
    set(gguf.GGML_QUANT_SIZES) - {gguf.GGMLQuantizationType.Q8_1}
)  # gguf-py's size of this type is wrong


@st.composite
def _tensors(draw: st.DrawFn) -> dict[str, tuple[tuple[int, ...], gguf.GGMLQuantizationType]]:
    tensors = {}
    for name in draw(st.lists(_text(40).filter(lambda text: len(text.encode()) < 64), unique=True, max_size=6)):
        kind = draw(st.sampled_from(_TENSOR_TYPES))
        block = gguf.GGML_QUANT_SIZES[kind][0]
        rows = draw(st.lists(st.integers(1, 4), max_size=3))
        tensors[name] = ((draw(st.integers(1, 3)) * block, *rows), kind)
    return tensors


def _write(path: Path, pairs: Any, tensors: Any, alignment: int | None, endian: gguf.GGUFEndian) -> None:
    writer = gguf.GGUFWriter(path, "llama", endianess=endian)
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    for key, (kind, value, element) in pairs.items():
        writer.add_key_value(key, value, kind, sub_type=element)
    for name, (shape, kind) in tensors.items():
        block, n_bytes = gguf.GGML_QUANT_SIZES[kind]
        stored = (*reversed(shape[1:]), shape[0] // block * n_bytes)
        writer.add_tensor(name, np.zeros(stored, dtype=np.uint8), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _compare(header: GGUFHeader, reader: gguf.GGUFReader) -> None:
    theirs = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert list(header.metadata) == list(theirs)
    for key, field in theirs.items():
        ours = header.metadata[key]
        if field.types[0] is _TYPE.ARRAY:
            element = _KINDS[field.types[1]]
            assert header.metadata.kind(key) == f"array of {element}"
            if isinstance(ours, SkippedArray):
                assert (ours.kind, ours.count) == (element, len(field.data))
            else:
                assert isinstance(ours, tuple)
                assert list(ours) == field.contents()
        else:
            assert header.metadata.kind(key) == _KINDS[field.types[0]]
            assert ours == field.contents()
            assert type(ours) is type(field.contents())
    assert header.alignment == reader.alignment
    assert header.data_offset == reader.data_offset
    assert header.tensors is not None
    assert [
        (each.name, each.shape, each.type, each.n_bytes, each.offset + reader.data_offset, each.n_elements)
        for each in header.tensors
    ] == [
        (each.name, tuple(each.shape.tolist()), each.tensor_type.name, each.n_bytes, each.data_offset, each.n_elements)
        for each in reader.tensors
    ]


@settings(max_examples=400)
@given(
    pairs=_pairs(),
    tensors=_tensors(),
    alignment=st.sampled_from([None, 8, 32, 64, 4096]),
    endian=st.sampled_from(list(gguf.GGUFEndian)),
)
def test_header_equals_gguf_py(pairs: Any, tensors: Any, alignment: int | None, endian: gguf.GGUFEndian) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.gguf"
        _write(path, pairs, tensors, alignment, endian)
        reader = gguf.GGUFReader(path)
        _compare(parse_gguf_header(path, read_tensors=True, read_arrays=True), reader)
        short = parse_gguf_header(path, read_tensors=True)
        _compare(short, reader)
        assert short.big_endian == (endian is gguf.GGUFEndian.BIG)
        assert short.missing_bytes == 0


@pytest.mark.slow
def test_header_of_real_vocabularies_equals_gguf_py(vocabulary_files: list[Path]) -> None:
    small = [path for path in vocabulary_files if path.stat().st_size < 800_000]
    assert small
    for path in small:
        _compare(parse_gguf_header(path, read_tensors=True, read_arrays=True), gguf.GGUFReader(path))
