"""Truncated, inconsistent and malicious files: a GGUFError with the offset, in little time and memory."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamatel.errors import GGUFError, LlamatelError
from llamatel.gguf.header import read_header
from llamatel.llama import GGUFHeader, parse_gguf_header
from tests.bytes_source import BytesSource
from tests.gguf_files import ARRAY, STRING, U32, Writer, sample

_WRITE = Writer()
_HUGE = 1 << 63


def _read(data: bytes) -> None:
    read_header(BytesSource(data, "x.gguf"), read_tensors=True)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [1, 2, 3])
def test_header_truncated_anywhere(version: int, order: str) -> None:
    whole = sample(version, order)
    end = whole.index(b"scale") + 5 + 4 + 4 + 8
    _read(whole[:end])
    for length in range(end):
        with pytest.raises(GGUFError) as caught:
            _read(whole[:length])
        assert caught.value.offset is not None
        assert caught.value.offset <= length
        assert caught.value.reading
        assert str(caught.value).startswith("x.gguf: ")


def _array_head(element: int, count: int) -> bytes:
    return _WRITE.string("k") + _WRITE.number("I", ARRAY, element) + _WRITE.number("Q", count)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file ends before it"),
        (b"GGML" + bytes(40), "not a GGUF file, it starts with b'GGML'"),
        (b"tjgg" + bytes(40), "a format from before GGUF"),
        (b"GGUF" + bytes(40), "version 0, where 1 to 3 are known"),
        (Writer(4).file(), "version 4"),
        (Writer(4, ">").file(), "version 4"),
        (_WRITE.file(n_keys=_HUGE), f"{_HUGE}, where at most 65536 are accepted"),
        (_WRITE.file(n_tensors=_HUGE), f"{_HUGE}, where at most 131072 are accepted"),
        (_WRITE.file(n_keys=60_000), "the file ends before it"),
        (_WRITE.file(n_tensors=60_000), "the file ends before it"),
        (_WRITE.file([_WRITE.string("k", _HUGE)]), "a string of 9223372036854775808 bytes"),
        (_WRITE.file([_WRITE.string("k", 60_000)]), "the file ends before it"),
        (_WRITE.file([_WRITE.string("k" * 65_536)]), "a string of 65536 bytes, where at most 65535 are read"),
        (_WRITE.file([_WRITE.key("", U32, 1)]), "an empty key"),
        (_WRITE.file([_WRITE.key(b"\xff", U32, 1)]), "not UTF-8"),
        (_WRITE.file([_WRITE.key("k", STRING, b"a\xff")]), "not UTF-8"),
        (_WRITE.file([_WRITE.key("k", ARRAY, (STRING, (b"\xed\xa0\x80",)))]), "not UTF-8"),
        (_WRITE.file([_WRITE.key("k", U32, 1)] * 2), "the key 'k' occurs twice"),
        (_WRITE.file([_WRITE.string("k") + _WRITE.number("I", 13)]), "unknown value type 13"),
        (_WRITE.file([_array_head(13, 1)]), "unknown element type 13"),
        (_WRITE.file([_WRITE.key("k", ARRAY, (ARRAY, ((U32, (1,)),)))]), "an array of arrays"),
        (_WRITE.file([_array_head(U32, _HUGE)]), "the file ends before it"),
        (_WRITE.file([_array_head(STRING, (1 << 64) - 1)]), "the file ends before it"),
        (_WRITE.file([_WRITE.key("general.alignment", U32, 0)]), "general.alignment is 0"),
        (_WRITE.file([_WRITE.key("general.alignment", U32, 48)]), "general.alignment is 48, not a power of two"),
        (_WRITE.file([_WRITE.key("general.alignment", 10, 32)]), "general.alignment is not a u32"),
        (_WRITE.file([_WRITE.key("general.alignment", ARRAY, (U32, (32,)))]), "general.alignment is not a u32"),
        (_WRITE.file([], [_WRITE.tensor("t", (1,), 0, 0)] * 2), "the tensor 't' occurs twice"),
        (_WRITE.file([], [_WRITE.tensor("t", (1,) * 5, 0, 0)]), "5 dimensions"),
        (_WRITE.file([], [_WRITE.string("t") + _WRITE.number("I", 1 << 31) + bytes(20)]), "2147483648 dimensions"),
        (_WRITE.file([], [_WRITE.tensor("t", (_HUGE,), 0, 0)]), "overflows"),
        (_WRITE.file([], [_WRITE.tensor("t", (0, _HUGE), 0, 0)]), "overflows"),
        (_WRITE.file([], [_WRITE.tensor("t", (1 << 32, 1 << 32), 0, 0)]), "overflows"),
        (_WRITE.file([], [_WRITE.tensor("t", (1 << 62,), 0, 0)]), "bytes overflow"),
        (_WRITE.file([], [_WRITE.tensor("t", (64,), 0, (1 << 63) - 32)]), "bytes overflow"),
        (_WRITE.file([], [_WRITE.tensor("t", (33,), 2, 0)]), "rows of 33 are not whole blocks of Q4_0"),
        (_WRITE.file([], [_WRITE.tensor("t", (), 12, 0)]), "rows of 1 are not whole blocks of Q4_K"),
        (_WRITE.file([], [_WRITE.tensor("t", (32,), 1 << 31, 0)]), "tensor type 2147483648"),
        (_WRITE.file([], [_WRITE.tensor("t", (32,), 0, 16)]), "offset 16 is not a multiple of the alignment, 32"),
        (_WRITE.file([], [_WRITE.tensor(b"\xfe", (32,), 0, 0)]), "not UTF-8"),
    ],
)
def test_header_impossible_values(data: bytes, message: str) -> None:
    with pytest.raises(GGUFError, match=r"^x\.gguf: ") as caught:
        _read(data)
    assert message in str(caught.value)
    assert "(at byte " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, LlamatelError)


@pytest.mark.parametrize("version", [1, 3])
@pytest.mark.parametrize("bad", [1 << 31, 5000, 256])
@pytest.mark.parametrize("index", [0, 1, 2, 499, 998, 999])
def test_header_token_past_the_end(version: int, bad: int, index: int) -> None:
    write = Writer(version)
    words = [write.string("ab")] * 1000
    words[index] = write.string("ab", bad + 13_000)
    head = write.string("tokenizer.ggml.tokens") + write.number("I", ARRAY, STRING) + write.number(write.size, 1000)
    with pytest.raises(GGUFError, match=r"tokenizer\.ggml\.tokens"):
        _read(write.file([head + b"".join(words)]))


def test_header_of_fifo_and_folder(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    for path, message in (
        (tmp_path, "not a file"),
        (tmp_path / "pipe.gguf", "not a file"),  # and does not wait for its writer
        (tmp_path / "none.gguf", "cannot be opened: No such file or directory"),
        (Path("/dev/zero"), "not a file"),
        (tmp_path / "a\0b", "cannot be opened"),
    ):
        with pytest.raises(GGUFError, match=message) as caught:
            parse_gguf_header(path)
        assert caught.value.offset is None


def test_header_sparse_terabyte_is_fast(tmp_path: Path) -> None:
    path = tmp_path / "sparse.gguf"
    for head, message in (
        (_array_head(STRING, 1 << 36), "the header would be longer than 256 MiB"),
        (_array_head(0, 1 << 36), "the header would be longer than 256 MiB"),
        (_WRITE.string("k") + _WRITE.number("I", STRING) + _WRITE.number("Q", 1 << 36), "a string of 68719476736"),
    ):
        path.write_bytes(_WRITE.file([head]))
        os.truncate(path, 1 << 40)
        tracemalloc.start()
        with pytest.raises(GGUFError, match=message):
            parse_gguf_header(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
        tracemalloc.stop()


# Mutations of a valid file: a header or a GGUFError for any mutation.

_WHOLE = {(version, order): sample(version, order) for version in (1, 2, 3) for order in "<>"}
_NUMBERS = st.sampled_from(
    [
        0,
        1,
        7,
        8,
        9,
        31,
        255,
        256,
        1 << 16,
        (1 << 31) - 1,
        1 << 31,
        (1 << 32) - 1,
        1 << 40,
        _HUGE - 1,
        _HUGE,
        2 * _HUGE - 1,
    ]
)


@st.composite
def _mutated(draw: st.DrawFn) -> bytes:
    data = bytearray(_WHOLE[draw(st.sampled_from(sorted(_WHOLE)))])
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.integers(0, 5))
        if kind == 0:
            data[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == 1:
            size = draw(st.sampled_from([4, 8]))
            number = draw(_NUMBERS) & ((1 << 8 * size) - 1)
            data[at : at + size] = number.to_bytes(size, draw(st.sampled_from(["little", "big"])))
        elif kind == 2:
            del data[at : at + draw(st.integers(1, 40))]
        elif kind == 3:
            data[at:at] = draw(st.binary(max_size=40))
        elif kind == 4:
            data[at:at] = data[at : at + draw(st.integers(1, 400))]
        else:
            del data[at:]
    return bytes(data)


def _read_or_refuse(data: bytes, arrays: bool) -> GGUFHeader | None:
    """Return the header, or None after a GGUFError with an offset."""
    try:
        return read_header(BytesSource(data), read_tensors=True, read_arrays=arrays)
    except GGUFError as error:
        if error.offset is None or not 0 <= error.offset <= len(data) or not error.reading:
            raise AssertionError(f"nowhere: {error}") from error
        return None


@settings(max_examples=1500)
@given(_mutated(), st.booleans())
def test_header_mutated_files(data: bytes, arrays: bool) -> None:
    tracemalloc.start()
    try:
        header = _read_or_refuse(data, arrays)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert header is None or header.tensor_count == len(header.tensors or ())
    assert peak < 24 * len(data) + (1 << 17)


@settings(max_examples=300)
@given(st.binary(max_size=300))
def test_header_noise_after_valid_start(noise: bytes) -> None:
    for start in (b"", b"GGUF\3\0\0\0", b"GGUF\3\0\0\0" + bytes(8) + b"\2" + bytes(7)):
        _read_or_refuse(start + noise, arrays=True)
