"""Sources of a header's bytes: a source returns bytes at an offset, a cursor reads it chunk by chunk."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable
from functools import lru_cache
from itertools import repeat
from operator import length_hint
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from llamatel.errors import GGUFError

MAX_HEADER = 256 << 20
"""The largest known header has some 40 MB; a longer one is refused, so that a sparse file costs no time."""

MAX_STRING = 64 << 20
"""The longest string that is decoded. Chat templates have some 10 kB."""


class ByteSource(Protocol):
    """Bytes by offset. ``size`` is the whole file's, in bytes; ``name`` is for messages."""

    name: str
    size: int

    def read(self, offset: int, n_bytes: int) -> bytes:
        """At least ``n_bytes`` from ``offset`` (at most to the end), more if that is cheap. Raises GGUFError."""


class FileSource:
    """A local file, opened for reading; a context manager."""

    CHUNK = 64 << 10

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fspath(path)
        try:
            if not stat.S_ISREG(Path(path).stat().st_mode):  # before opening: a pipe without a writer would block
                raise GGUFError("not a file", path=self.name)
            self._file = Path(path).open("rb", buffering=0)  # noqa: SIM115 - closed by __exit__
            self.size = os.fstat(self._file.fileno()).st_size
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            why = error.strerror if isinstance(error, OSError) else None
            raise GGUFError(f"cannot be opened: {why or error}", path=self.name) from error

    def read(self, offset: int, n_bytes: int) -> bytes:
        """See ByteSource."""
        try:
            self._file.seek(offset)
            return self._file.read(max(n_bytes, self.CHUNK))
        except OSError as error:
            raise GGUFError(f"cannot be read: {error.strerror or error}", path=self.name) from error

    def __enter__(self) -> FileSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


@lru_cache(maxsize=2)
def _pairs(width: str) -> list[Callable[[bytes, int], tuple[Any, ...]]]:
    """For each length below 256: the struct of a string of that length and the next string's length."""
    return [struct.Struct(f"<{width}{length}x{width}").unpack_from for length in range(256)]


class Cursor:
    """Reads forward through a source, a chunk in memory at a time. Every error is a GGUFError with the position.

    ``order`` is ``<`` or ``>``; ``wide`` is False for version 1, whose lengths and counts have 32 bits.
    """

    def __init__(self, source: ByteSource) -> None:
        self.source = source
        self.order = "<"
        self.wide = True
        self._data = b""
        self._base = 0  # offset of _data[0] in the source
        self._at = 0  # the next byte, counted from _base; may be past the end of _data after a skip

    @property
    def position(self) -> int:
        """Offset of the next byte."""
        return self._base + self._at

    @property
    def _length_bytes(self) -> int:
        return 8 if self.wide else 4

    def error(self, message: str, reading: str, offset: int | None = None) -> GGUFError:
        """The error to raise for an item that starts at ``offset`` (default: the next byte)."""
        where = self.position if offset is None else offset
        return GGUFError(message, offset=where, reading=reading, path=self.source.name)

    def _need(self, n_bytes: int, reading: str) -> None:
        """Load the next ``n_bytes``."""
        missing = self._at + n_bytes - len(self._data)
        if missing <= 0:
            return
        self._fits(n_bytes, reading)
        kept = self._data[self._at :]
        start = self.position + len(kept)
        self._data = b""  # not two chunks at once
        more = self.source.read(start, n_bytes - len(kept))
        if len(kept) + len(more) < n_bytes:
            raise self.error("the file ends here", reading)
        self._base, self._at, self._data = start - len(kept), 0, kept + more

    def _fits(self, n_bytes: int, reading: str) -> None:
        """Raise unless that many bytes are left in the file and within a header's limit."""
        if n_bytes > self.source.size - self.position:
            raise self.error(f"the file ends before it ({self.source.size} bytes)", reading)
        if self.position + n_bytes > MAX_HEADER:
            raise self.error(f"the header would be longer than {MAX_HEADER >> 20} MiB", reading)

    def consume(self, n_bytes: int, reading: str) -> bytes:
        """The next bytes."""
        self._need(n_bytes, reading)
        found = self._data[self._at : self._at + n_bytes]
        self._at += n_bytes
        return found

    def rest(self, n_bytes: int) -> bytes:
        """Up to ``n_bytes`` of the next bytes, without consuming them; fewer where the file ends."""
        n_bytes = min(n_bytes, max(self.source.size - self.position, 0))
        try:
            self._need(n_bytes, "its first bytes")
        except GGUFError:
            return b""
        return self._data[self._at : self._at + n_bytes]

    def unpack(self, code: str, reading: str, count: int = 1) -> tuple[Any, ...]:
        """``count`` numbers of a struct format character."""
        layout = f"{self.order}{count}{code}"
        n_bytes = struct.calcsize(layout)
        self._need(n_bytes, reading)
        values = struct.unpack_from(layout, self._data, self._at)
        self._at += n_bytes
        return values

    def u32(self, reading: str) -> int:
        """An unsigned 32-bit number."""
        return int(self.unpack("I", reading)[0])

    def u64(self, reading: str) -> int:
        """An unsigned 64-bit number, in every version."""
        return int(self.unpack("Q", reading)[0])

    def length(self, reading: str) -> int:
        """A length or a count: 64 bits, in version 1 32."""
        return self.u64(reading) if self.wide else self.u32(reading)

    def string(self, reading: str, longest: int = MAX_STRING) -> str:
        """A string: its length, then UTF-8."""
        start = self.position
        length = self.length(reading)
        if length > longest:
            raise self.error(f"a string of {length} bytes, where at most {longest} are read", reading, start)
        try:
            return self.consume(length, reading).decode()
        except UnicodeDecodeError as error:
            raise self.error("not UTF-8", reading, start) from error

    def room_for(self, count: int, least: int, reading: str) -> None:
        """Raise before any loop if ``count`` items of at least ``least`` bytes do not fit into the rest of the file."""
        self._fits(count * least, reading)

    def skip(self, n_bytes: int, reading: str) -> None:
        """Skip bytes without reading them."""
        self._fits(n_bytes, reading)
        self._at += n_bytes

    def skip_strings(self, count: int, reading: str) -> None:
        """Skip strings, reading only their lengths."""
        self.room_for(count, self._length_bytes, reading)
        fast = self.order == "<"
        while count:
            if fast and count > 1:
                start = self._at
                passed = self._skip_pairs(count // 2)
                if self.position > self.source.size:  # one by one then, so that the error names it
                    self._at, passed, fast = start, 0, False
                count -= passed
                if not count:
                    break
            # The rest after the fast loop: a long string, one across the chunk's end, an odd one at the end.
            self.skip(self.length(reading), reading)
            count -= 1
        self._fits(0, reading)

    def _skip_pairs(self, pairs: int) -> int:
        """Skip strings two at a time while they are short and in memory; returns how many.

        A vocabulary has some 800,000 strings, and a call for each costs more than all else in a header: the low byte of
        a length selects which of 256 layouts to unpack, which gives that whole length and the next one.
        """
        data, at = self._data, self._at
        unpack = _pairs("Q" if self.wide else "I")
        lengths = 2 * self._length_bytes
        left = repeat(None, pairs)
        try:
            for _ in left:
                first, second = unpack[data[at]](data, at)
                if first > 255:
                    break
                at += first + second + lengths
            else:
                self._at = at
                return 2 * pairs
        except (IndexError, struct.error):
            pass  # the end of the chunk
        self._at = at
        return 2 * (pairs - length_hint(left) - 1)
