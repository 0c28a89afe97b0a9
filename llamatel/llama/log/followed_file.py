"""One file of a followed log, how far it was read and whether it was truncated; and files that rotation made of it."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from llamatel.llama.log.line_buffer import LineBuffer
from llamatel.llama.log.log_encoding import HEAD, Decoder, encoding_of
from llamatel.llama.log.log_source import READ_BYTES
from llamatel.llama.log.read_position import HEAD_BYTES, Fingerprint, Position

_MOST_SIBLINGS = 1000
_ROTATED = re.compile(r"[-._](?:[0-9]{1,3}|[0-9]{4}-?[0-9]{2}-?[0-9]{2}[0-9TZ:._+-]{0,40})")
"""What rotation appends to a file's name: a number or a time; a longer number may be another server's port."""


class FollowedFile:
    """One file, and how far it was read. For one thread."""

    def __init__(self, descriptor: int, offset: int = 0, name: str = "") -> None:
        self.name = name
        self.descriptor = descriptor
        self.offset = offset
        self.buffer = LineBuffer(documents=True)
        self.decoder = Decoder(encoding_of(os.pread(descriptor, HEAD, 0)))
        self._start = os.pread(descriptor, HEAD_BYTES, 0)
        self.read_at = time.monotonic()
        self.since: float | None = None
        """When everything in it was read (Unix time)."""
        self.reached = 0
        """How far the writer was read before the file was truncated."""
        self._long_line_at: int | None = None
        """Start of a line whose rest is left out: no reading may begin in the middle of a client's text."""

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return os.fstat(self.descriptor).st_size

    @property
    def replaced(self) -> bool:
        """Whether it starts differently than it did: it was truncated and written again, maybe beyond what was read."""
        return os.pread(self.descriptor, len(self._start), 0) != self._start

    @property
    def head(self) -> Fingerprint:
        """Hash of its first bytes, as many as it had when they were read."""
        return Fingerprint.of_bytes(self._start)

    def position(self) -> Position:
        """Position of the end of the last whole line."""
        if self._long_line_at is not None:
            return Position(self.head, self._long_line_at)
        rest = self.decoder.size_of(self.buffer.rest) + self.decoder.pending
        return Position(self.head, max(0, self.offset - rest))

    def restart(self, reached: int) -> None:
        """Reset after truncation: the next line is the first. ``reached``: how far the writer was read."""
        self.reached = max(self.reached, reached)
        self.offset, self._long_line_at = 0, None
        self.buffer = LineBuffer(documents=True)
        self._start = os.pread(self.descriptor, HEAD_BYTES, 0)
        self.decoder = Decoder(encoding_of(self._start[:HEAD]))

    def read(self, end: int | None = None) -> tuple[bytes, int]:
        """The next bytes, up to ``end``, and the bytes of a hole skipped before them. Nothing if it was replaced."""
        before = self.offset
        skipped = self._skip_hole(end)
        size = READ_BYTES if end is None else max(0, min(READ_BYTES, end - self.offset))
        data = os.pread(self.descriptor, size, self.offset)
        if self.replaced:  # checked after reading: these bytes may be in the middle of another line
            self.offset = before
            return b"", 0
        if self.offset <= len(self._start) < HEAD_BYTES:
            self._start = (self._start[: self.offset] + data)[:HEAD_BYTES]
        self.offset += len(data)
        if data:
            self.read_at = time.monotonic()
        if data[:1] == b"\0" and not self.decoder.encoding.startswith("utf-16"):
            text = data.lstrip(b"\0")  # the rest of the hole's last block
            skipped += len(data) - len(text)
            data = text or b"\0"  # which lines leave out: empty is the end
        return data, skipped

    def lines(self, data: bytes) -> list[str]:
        """The lines that end in these bytes."""
        return [line for piece in self.pieces(data) for line in piece]

    def pieces(self, data: bytes) -> Iterator[list[str]]:
        """The same, in bounded batches. NULs are left by a truncation under a writer that does not append."""
        for text in self.decoder.feed(data):
            rest = self.buffer.rest
            yield self.buffer.feed(text.replace(b"\0", b"") if b"\0" in text else text)
            if not self.buffer.skipping:
                self._long_line_at = None
            elif self._long_line_at is None or b"\n" in text:
                start = text.rpartition(b"\n")[2] if b"\n" in text else rest + text
                self._long_line_at = self.offset - self.decoder.size_of(start) - self.decoder.pending

    def close(self) -> None:
        """Close it."""
        os.close(self.descriptor)

    def _skip_hole(self, end: int | None) -> int:
        size = self.size  # before the check: data appended in between is no hole
        try:
            data_at = os.lseek(self.descriptor, self.offset, os.SEEK_DATA)
        except OSError as error:
            # At its end, or a file system without holes.
            if error.errno == errno.ENXIO and self.offset < size:
                data_at = size  # nothing but a hole until its end
            else:
                return 0
        skipped = max(0, (data_at if end is None else min(data_at, end)) - self.offset)
        self.offset += skipped
        return skipped


def _siblings(path: Path) -> Iterator[FollowedFile]:
    """Files next to a log whose names start with its name; the caller closes them."""
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        for entry in itertools.islice(entries, _MOST_SIBLINGS):
            is_sibling = entry.name.startswith(path.name) and entry.name != path.name
            if is_sibling and entry.is_file(follow_symlinks=False):
                yield FollowedFile(os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC), name=entry.name)


def copy_of(path: Path, position: Position) -> FollowedFile | None:
    """The file of a position in the log, after it was moved or copied."""
    for file in _siblings(path):
        if position.head.matches(file.descriptor) and file.size >= position.offset:
            return file
        file.close()
    return None


def rotated_after(path: Path, earlier: FollowedFile, known: Sequence[FollowedFile]) -> list[FollowedFile]:
    """Rotated files of the log that were written after ``earlier``, oldest first; no ``known`` file or copy of one."""
    since = os.fstat(earlier.descriptor).st_mtime_ns
    found: list[tuple[int, FollowedFile]] = []
    for file in _siblings(path):
        written_at = os.fstat(file.descriptor).st_mtime_ns
        is_new = written_at >= since and file.size and file.decoder.encoding != "gzip"
        is_known = any(each.head.matches(file.descriptor) for each in (earlier, *known))
        if is_new and not is_known and _ROTATED.fullmatch(file.name[len(path.name) :]):
            found.append((written_at, file))
        else:
            file.close()
    return [file for _, file in sorted(found, key=lambda each: each[0])]
