"""Encoded span batches on disk until the OTLP endpoint has accepted them (``--otlp-spool DIR``): at least once.

One gzip file per batch, written before it is sent and removed after it was accepted; its name contains its order and
number of spans. Size and number of files are bounded: the oldest are dropped. Other files are not touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import os
import re
import stat
import time
import zlib
from collections import deque
from typing import NamedTuple

from llamatel.errors import PipelineError
from llamatel.inputs.text_file import user_path

MAX_BYTES = 512 << 20
MAX_FILES = 65_536
_MAX_MESSAGE = 64 << 20
_NAME = re.compile(r"(\d{20})-(\d{1,9})\.otlp\.gz")
_LOCK = "lock"


class _File(NamedTuple):
    name: str
    spans: int
    size: int


class Spool:
    """Used by one thread; ``size`` and ``spans`` by any."""

    def __init__(
        self, folder: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES, max_files: int = MAX_FILES
    ) -> None:
        """Create the folder, lock it, and find the batches left in it. Raises PipelineError."""
        self._folder = user_path(folder)
        self._max_bytes, self._max_files = max_bytes, max_files
        self._files: deque[_File] = deque()
        self.size = 0
        """Bytes."""
        self.spans = 0
        self.dropped = 0
        """Spans that were dropped because the spool was full, or that could not be read again."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._find()
        except BlockingIOError:
            raise PipelineError(f"another llamatel uses the spool {self._folder}: give each one its own") from None
        except OSError as error:
            raise PipelineError(f"cannot use the spool {self._folder}: {error.strerror}") from None

    def __len__(self) -> int:
        return len(self._files)

    def put(self, message: bytes, spans: int) -> None:
        """Add a batch. Raises OSError where it cannot be written."""
        data = gzip.compress(message, 1)
        number = max(time.time_ns(), int(self._files[-1].name[:20]) + 1 if self._files else 0)
        file = _File(f"{number:020d}-{spans}.otlp.gz", spans, len(data))
        while self._files and (self.size + len(data) > self._max_bytes or len(self._files) >= self._max_files):
            self.dropped += self.remove()
        partial = self._folder / f"{file.name}.tmp"
        try:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "wb", buffering=0) as stream:
                rest = memoryview(data)
                while rest:
                    rest = rest[stream.write(rest) or 0 :]
            partial.rename(self._folder / file.name)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise
        self._add(file)

    def oldest(self) -> tuple[bytes, int] | None:
        """The oldest batch and its number of spans; None if there is none. Unreadable files are dropped."""
        while self._files:
            file = self._files[0]
            try:
                descriptor = os.open(self._folder / file.name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                with os.fdopen(descriptor, "rb") as stream:
                    data = stream.read(self._max_bytes)
                unpacker = zlib.decompressobj(wbits=31)
                message = unpacker.decompress(data, _MAX_MESSAGE)
                if unpacker.eof:
                    return message, file.spans
            except (OSError, zlib.error):
                pass
            self.dropped += self.remove()
        return None

    def remove(self) -> int:
        """Remove the oldest batch; returns its number of spans."""
        file = self._files.popleft()
        self.size -= file.size
        self.spans -= file.spans
        with contextlib.suppress(OSError):
            (self._folder / file.name).unlink()
        return file.spans

    def close(self) -> None:
        """Unlock the folder; its batches stay."""
        os.close(self._lock)

    def _add(self, file: _File) -> None:
        self._files.append(file)
        self.size += file.size
        self.spans += file.spans

    def _find(self) -> None:
        found = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                whole, about = _NAME.fullmatch(entry.name), entry.stat(follow_symlinks=False)
                if not stat.S_ISREG(about.st_mode):
                    continue
                if whole is not None:
                    found.append(_File(entry.name, int(whole[2]), about.st_size))
                elif _NAME.fullmatch(entry.name.removesuffix(".tmp")) is not None:
                    with contextlib.suppress(OSError):
                        (self._folder / entry.name).unlink()  # of a process that was killed
        for file in sorted(found):
            self._add(file)
        while len(self._files) > self._max_files or self.size > self._max_bytes:
            self.dropped += self.remove()
