"""Models in several files: ``name-00001-of-00003.gguf`` has the metadata, each file has its own tensors."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TypeAlias

from llamatel.errors import GGUFError
from llamatel.gguf.byte_source import ByteSource, FileSource
from llamatel.gguf.header import GGUFHeader, TensorInfo, read_header

OpenShard: TypeAlias = Callable[[str], AbstractContextManager[ByteSource]]
"""Opens a file by its name or address. Raises GGUFError."""

_SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<rest>\.gguf.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Shard:
    """A file's position in a split model."""

    model: str
    """The common part of the names of its files."""
    number: int
    count: int


def shard_of(name: str) -> Shard:
    """The position by a file's name; the only file of its model if it is not split.

    The pattern is llama.cpp's (``llama_split_path``).
    """
    found = _SHARD.fullmatch(name)
    if found is None or not 1 <= int(found["number"]) <= int(found["count"]):
        return Shard(name, 1, 1)
    return Shard(f"{found['stem']}-of-{found['count']}{found['rest']}", int(found["number"]), int(found["count"]))


def shard_names(name: str) -> tuple[str, ...]:
    """The names of all of a model's files, given one; what follows ``.gguf``, as in an address, is kept."""
    found = _SHARD.fullmatch(name)
    count = shard_of(name).count
    if found is None or count == 1:
        return (name,)
    return tuple(f"{found['stem']}-{number:05d}-of-{count:05d}{found['rest']}" for number in range(1, count + 1))


def parse_gguf_header(
    path: str | os.PathLike[str], read_tensors: bool = False, *, read_arrays: bool | Collection[str] = False
) -> GGUFHeader:
    """Read a local GGUF file's header; of a split model, given by any of its files, the whole model's.

    ``read_tensors``: the tensor table too. ``read_arrays``: decode the arrays with an element for each token, which are
    otherwise skipped (``SkippedArray``): True for all, or the keys wanted. Raises GGUFError.
    """
    return read_model(os.fspath(path), FileSource, read_tensors=read_tensors, read_arrays=read_arrays)


def read_model(
    name: str, open_shard: OpenShard, *, read_tensors: bool = False, read_arrays: bool | Collection[str] = False
) -> GGUFHeader:
    """The header of a model, from all its files if the tensors are requested, else from the first. Raises GGUFError."""
    names = shard_names(name)
    try:
        first = open_shard(names[0])
    except GGUFError as error:
        if name == names[0]:
            raise
        shard = shard_of(name)
        what = f"part {shard.number} of {shard.count} of a split model, whose first file cannot be read"
        raise type(error)(f"{what}: {error.message}", path=names[0]) from error
    with first as source:
        header = read_header(source, read_tensors=read_tensors, read_arrays=read_arrays)
    count = header.metadata.get("split.count", 1)
    if count != len(names) and (len(names) > 1 or (isinstance(count, int) and count > 1)):
        hint = "" if len(names) > 1 else f": the parts of a split model are named like x-00001-of-{count:05d}.gguf"
        raise GGUFError(f"the metadata says split.count {count}, the name says {len(names)}{hint}", path=names[0])
    if len(names) == 1:
        return header
    total = header.metadata.get("split.tensors.count")
    if not read_tensors or header.tensors is None or header.data_offsets is None:
        return replace(header, tensor_count=total) if isinstance(total, int) else header
    tensors: dict[str, TensorInfo] = {tensor.name: tensor for tensor in header.tensors}
    sizes, offsets = list(header.file_sizes), list(header.data_offsets)
    for number, other in enumerate(names[1:], 1):
        with open_shard(other) as source:
            part = read_header(source, read_tensors=True, shard=number)
        if part.metadata.get("split.no") != number:
            raise GGUFError(
                f"not shard {number + 1} of its model: split.no {part.metadata.get('split.no')}", path=other
            )
        for tensor in part.tensors or ():
            if tensor.name in tensors:
                raise GGUFError(f"tensor {tensor.name[:200]!r} is in an earlier shard too", path=other)
            tensors[tensor.name] = tensor
        sizes += part.file_sizes
        offsets += part.data_offsets or ()
    if isinstance(total, int) and total != len(tensors):
        raise GGUFError(f"the shards have {len(tensors)} tensors, split.tensors.count says {total}", path=names[0])
    return replace(
        header,
        files=names,
        file_sizes=tuple(sizes),
        tensor_count=len(tensors),
        tensors=tuple(tensors.values()),
        data_offsets=tuple(offsets),
    )
