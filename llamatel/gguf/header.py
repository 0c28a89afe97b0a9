"""Reads the header of one file: everything before a GGUF file's tensor data.

Source: llama.cpp's ``ggml/src/gguf.cpp`` and ggml's ``docs/gguf.md``, versions 1 to 3, either byte order. What
llama.cpp's own loader refuses is refused here too (nested arrays, duplicate keys, sizes that overflow), with two
exceptions: version 1, and tensor types that are newer than our table, whose size is then unknown.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath

from llamatel.gguf.byte_source import ByteSource, Cursor
from llamatel.gguf.file_kinds import other_format
from llamatel.gguf.ggml_types import TENSOR_TYPES, file_type_name
from llamatel.gguf.metadata import Metadata, Scalar, SkippedArray, Value
from llamatel.providers import HtmlRepresentation

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
_START = 64
"""Bytes by which other formats are recognized."""

_STRING, _ARRAY = 8, 9
_KINDS = {
    0: ("u8", "B"), 1: ("i8", "b"), 2: ("u16", "H"), 3: ("i16", "h"), 4: ("u32", "I"), 5: ("i32", "i"),
    6: ("f32", "f"), 7: ("bool", "?"), 8: ("string", ""), 9: ("array", ""), 10: ("u64", "Q"), 11: ("i64", "q"),
    12: ("f64", "d"),
}  # fmt: skip
"""GGUF's value types: our name and struct's character."""

_PER_TOKEN = ("tokenizer.ggml.", "tokenizer.huggingface.")
"""Arrays with these name prefixes have an element per token or merge, and are skipped unless requested."""

_MAX_ARRAY = 16384
"""Longer arrays are skipped too: no array that describes a model is that long."""

_MAX_KEYS = 1 << 16
_MAX_TENSORS = 1 << 17
"""Real files have some 50 keys and, with each expert apart, up to 50,000 tensors."""

_MAX_NAME = (1 << 16) - 1
_MAX_TYPE = 1023
"""ggml's tensor types end at 42, those of ik_llama.cpp at 399; a larger number is not a type of a newer version."""
_MAX_DIMENSIONS = 4
_INT64_MAX = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor. ``shape`` is in ggml's order, the row's length first; () is a single number.

    ``type`` is ``F32``, ``Q4_K``, ... (``type 99`` for one that we do not know). ``offset`` is in bytes from the start
    of the file's tensor data; ``n_bytes`` is None for an unknown type. ``shard`` counts the files of a split model.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    n_bytes: int | None
    shard: int = 0

    @property
    def dtype(self) -> str:
        """``type``, by the name that numpy and torch have for it."""
        return self.type

    @property
    def n_elements(self) -> int:
        """The number of its values."""
        product = 1
        for size in self.shape:
            product *= size
        return product


@dataclass(frozen=True)
class GGUFHeader(HtmlRepresentation):
    """The content of a GGUF file before its tensor data.

    ``tensors`` is None if they were not requested; ``tensor_count`` is known anyway, for a split model from the
    metadata. ``data_offset`` is where the tensor data starts (None without the tensors), ``files`` the names of the
    files read (one, or one a shard), ``file_sizes`` their bytes, ``big_endian`` the byte order.
    """

    files: tuple[str, ...]
    file_sizes: tuple[int, ...]
    version: int
    big_endian: bool
    alignment: int
    metadata: Metadata
    tensor_count: int
    tensors: tuple[TensorInfo, ...] | None = None
    data_offsets: tuple[int, ...] | None = None
    projector: str | None = None
    """The multimodal projector that ``llama-server -hf`` loads with this file of a repository."""

    @property
    def path(self) -> str:
        """The file; of a split model the first."""
        return self.files[0]

    @property
    def file(self) -> str:
        """The name of ``path`` without its folders."""
        return PurePath(self.path).name

    @property
    def size_mb(self) -> float:
        """All files' sizes together, in units of 2**20 bytes."""
        return sum(self.file_sizes) / 2**20

    @property
    def data_offset(self) -> int | None:
        """Where the tensor data starts in ``path``; None without the tensors."""
        return None if self.data_offsets is None else self.data_offsets[0]

    @property
    def architecture(self) -> str | None:
        """``general.architecture``."""
        value = self.metadata.get("general.architecture")
        return value if isinstance(value, str) else None

    @property
    def file_type(self) -> str | None:
        """``general.file_type`` by its name, ``Q4_K_M``; None if it is absent or not known."""
        return file_type_name(self.metadata.get("general.file_type"))

    @cached_property
    def n_params(self) -> int | None:
        """The values in all tensors; None without the tensors."""
        return None if self.tensors is None else sum(tensor.n_elements for tensor in self.tensors)

    @cached_property
    def n_bytes(self) -> int | None:
        """The bytes of all tensors; None without the tensors, or with one of an unknown type."""
        if self.tensors is None:
            return None
        sizes = [tensor.n_bytes for tensor in self.tensors]
        return sum(size for size in sizes if size is not None) if None not in sizes else None

    @property
    def missing_bytes(self) -> int | None:
        """Missing bytes of tensor data, as after an interrupted download; None without the tensors."""
        if self.tensors is None or self.data_offsets is None:
            return None
        ends = [0] * len(self.file_sizes)
        for tensor in self.tensors:
            end = self.data_offsets[tensor.shard] + tensor.offset + (tensor.n_bytes or 0)
            ends[tensor.shard] = max(ends[tensor.shard], end)
        return sum(max(0, end - size) for end, size in zip(ends, self.file_sizes, strict=True))

    def __repr__(self) -> str:
        # The number of tensors instead of the tensors themselves.
        architecture = self.architecture or "an unnamed architecture"
        return f"<GGUFHeader of {self.file}: {architecture}, {len(self.metadata)} keys, {self.tensor_count} tensors>"


def read_header(
    source: ByteSource, *, read_tensors: bool = False, read_arrays: bool | Collection[str] = False, shard: int = 0
) -> GGUFHeader:
    """The header of one file from any source. Raises GGUFError."""
    cursor = Cursor(source)
    version = _start(cursor)
    n_tensors = _count(cursor, "the number of tensors", _MAX_TENSORS)
    n_keys = _count(cursor, "the number of metadata keys", _MAX_KEYS)
    metadata = _metadata(cursor, n_keys, read_arrays)
    alignment = _alignment(cursor, metadata)
    tensors, offsets = None, None
    if read_tensors:
        tensors = _tensors(cursor, n_tensors, alignment, shard)
        offsets = (-(-cursor.position // alignment) * alignment,)
    return GGUFHeader(
        files=(source.name,),
        file_sizes=(source.size,),
        version=version,
        big_endian=cursor.order == ">",
        alignment=alignment,
        metadata=metadata,
        tensor_count=n_tensors,
        tensors=tensors,
        data_offsets=offsets,
    )


def _start(cursor: Cursor) -> int:
    """Magic and version, which show the byte order."""
    magic = cursor.consume(4, "the magic number")
    if magic != MAGIC:
        format_words = other_format(magic + cursor.rest(_START - len(magic)))
        hint = f": {format_words}" if format_words else ""
        raise cursor.error(f"not a GGUF file, it starts with {magic!r}{hint}", "the magic number", 0)
    version = cursor.u32("the version")
    if version and not version & 0xFFFF:
        version = int.from_bytes(version.to_bytes(4, "little"), "big")
        cursor.order = ">"
    if not 1 <= version <= 3:
        raise cursor.error(f"version {version}, where 1 to 3 are known", "the version", 4)
    cursor.wide = version > 1
    return version


def _count(cursor: Cursor, reading: str, most: int) -> int:
    start = cursor.position
    count = cursor.length(reading)
    if count > most:
        raise cursor.error(f"{count}, where at most {most} are accepted", reading, start)
    return count


def _metadata(cursor: Cursor, n_keys: int, read_arrays: bool | Collection[str]) -> Metadata:
    values: dict[str, Value] = {}
    kinds: dict[str, str] = {}
    for number in range(n_keys):
        start = cursor.position
        key = cursor.string(f"metadata key {number + 1} of {n_keys}", _MAX_NAME)
        reading = f"the value of {key[:200]!r}"
        if not key:
            raise cursor.error("an empty key", f"metadata key {number + 1} of {n_keys}", start)
        if key in values:
            raise cursor.error(f"the key {key[:200]!r} occurs twice", f"metadata key {number + 1}", start)
        kind = cursor.u32(reading)
        if kind == _ARRAY:
            wanted = read_arrays if isinstance(read_arrays, bool) else key in read_arrays
            name, values[key] = _array(cursor, key, reading, wanted)
            kinds[key] = f"array of {name}"
        else:
            kinds[key], values[key] = _scalar(cursor, kind, reading)
    return Metadata(values, kinds)


def _scalar(cursor: Cursor, kind: int, reading: str) -> tuple[str, Scalar]:
    if kind == _STRING:
        return "string", cursor.string(reading)
    if kind not in _KINDS:
        raise cursor.error(f"unknown value type {kind}", reading)
    name, code = _KINDS[kind]
    value: Scalar = cursor.unpack(code, reading)[0]
    return name, value


def _array(cursor: Cursor, key: str, reading: str, wanted: bool) -> tuple[str, Value]:
    start = cursor.position
    kind = cursor.u32(reading)
    if kind == _ARRAY or kind not in _KINDS:
        what = "an array of arrays, which llama.cpp refuses too" if kind == _ARRAY else f"unknown element type {kind}"
        raise cursor.error(what, reading, start)
    name, code = _KINDS[kind]
    count = cursor.length(reading)
    size = (8 if cursor.wide else 4) if kind == _STRING else struct.calcsize(f"={code}")
    cursor.room_for(count, size, f"{count} elements of {key[:200]!r}")
    if not wanted and (count > _MAX_ARRAY or key.startswith(_PER_TOKEN)):
        skipped = SkippedArray(name, count, cursor.position)
        if kind == _STRING:
            cursor.skip_strings(count, reading)
        else:
            cursor.skip(count * size, reading)
        return name, skipped
    if kind == _STRING:
        return name, tuple(cursor.string(reading) for _ in range(count))
    return name, cursor.unpack(code, reading, count)


def _alignment(cursor: Cursor, metadata: Metadata) -> int:
    value = metadata.get("general.alignment")
    if value is None:
        return DEFAULT_ALIGNMENT
    if metadata.kind("general.alignment") != "u32" or not isinstance(value, int):
        raise cursor.error("general.alignment is not a u32", "general.alignment")
    if value == 0 or value & (value - 1):
        raise cursor.error(f"general.alignment is {value}, not a power of two", "general.alignment")
    return value


def _tensors(cursor: Cursor, n_tensors: int, alignment: int, shard: int) -> tuple[TensorInfo, ...]:
    tensors: dict[str, TensorInfo] = {}
    cursor.room_for(n_tensors, 24, f"{n_tensors} tensors")
    for number in range(n_tensors):
        start = cursor.position
        name = cursor.string(f"the name of tensor {number + 1} of {n_tensors}", _MAX_NAME)
        reading = f"tensor {name[:200]!r}"
        if name in tensors:
            raise cursor.error(f"the tensor {name[:200]!r} occurs twice", f"tensor {number + 1}", start)
        n_dimensions = cursor.u32(reading)
        if n_dimensions > _MAX_DIMENSIONS:
            raise cursor.error(f"{n_dimensions} dimensions, where at most {_MAX_DIMENSIONS} can be", reading, start)
        shape = cursor.unpack("Q" if cursor.wide else "I", reading, n_dimensions)
        kind = cursor.u32(reading)
        offset = cursor.u64(reading)
        try:
            type_name, n_bytes = _size(shape, kind, offset)
        except ValueError as error:
            raise cursor.error(str(error), reading, start) from error
        if offset % alignment:
            raise cursor.error(f"offset {offset} is not a multiple of the alignment, {alignment}", reading, start)
        tensors[name] = TensorInfo(name, shape, type_name, offset, n_bytes, shard)
    return tuple(tensors.values())


def _size(shape: tuple[int, ...], kind: int, offset: int) -> tuple[str, int | None]:
    """A tensor's type by name and its bytes. Raises ValueError if they are impossible."""
    elements = 1
    for size in shape:
        elements *= size
    if elements > _INT64_MAX or any(size > _INT64_MAX for size in shape):
        raise ValueError(f"the shape {shape} overflows")
    if kind not in TENSOR_TYPES:
        if kind > _MAX_TYPE:
            raise ValueError(f"tensor type {kind}")
        return f"type {kind}", None
    known = TENSOR_TYPES[kind]
    if not known.block:
        return known.name, None
    row = known.row_bytes(shape[0] if shape else 1)
    if row is None:
        raise ValueError(f"rows of {shape[0] if shape else 1} are not whole blocks of {known.name} ({known.block})")
    n_bytes = elements // known.block * known.n_bytes
    if offset + n_bytes > _INT64_MAX:
        raise ValueError(f"offset {offset} and {n_bytes} bytes overflow")
    return known.name, n_bytes
