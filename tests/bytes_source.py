"""A GGUF in memory."""

from __future__ import annotations

from llamatel.gguf.byte_source import FileSource


class BytesSource:
    """Bytes in memory."""

    def __init__(self, data: bytes, name: str = "") -> None:
        self._data = data
        self.name = name
        self.size = len(data)

    def read(self, offset: int, n_bytes: int) -> bytes:
        """See ByteSource."""
        return self._data[offset : offset + max(n_bytes, FileSource.CHUNK)]
