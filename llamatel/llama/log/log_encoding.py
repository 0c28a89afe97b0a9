"""Decodes a log to UTF-8: gzip, and UTF-16 as PowerShell's ``>`` writes it. Memory is bounded by the chunk size."""

from __future__ import annotations

import codecs
import zlib
from collections.abc import Iterator

from llamatel.errors import LogSourceError

_GZIP = b"\x1f\x8b\x08"
_PIECE = 1 << 20
HEAD = 4
"""Bytes that show the encoding."""


def encoding_of(head: bytes) -> str:
    """``gzip``, ``utf-16-le``, ``utf-16-be`` or ``utf-8``, by a log's first bytes."""
    if head.startswith(_GZIP):
        return "gzip"
    if head.startswith(codecs.BOM_UTF16_LE):
        return "utf-16-le"
    if head.startswith(codecs.BOM_UTF16_BE):
        return "utf-16-be"
    return "utf-8"


class Decoder:
    """Decodes the bytes of one log to UTF-8."""

    def __init__(self, encoding: str = "utf-8") -> None:
        self.encoding = encoding
        self._plain = encoding == "utf-8"
        self._inflate = zlib.decompressobj(wbits=31) if encoding == "gzip" else None
        self._inner: Decoder | None = None
        self._text = codecs.getincrementaldecoder(encoding)("replace") if encoding.startswith("utf-16") else None

    @property
    def pending(self) -> int:
        """Received bytes of an incomplete character."""
        return len(self._text.getstate()[0]) if self._text is not None else 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The text of these bytes, in pieces of bounded size. Raises LogSourceError for a broken gzip file."""
        if self._plain:
            yield data
        elif self._inflate is not None:
            yield from self._decompress(data)
        elif self._text is not None:
            yield self._text.decode(data).encode("utf-8", "replace")

    def size_of(self, text: bytes) -> int:
        """Bytes of the log that a chunk of its text corresponds to."""
        return len(text) if self._text is None else len(text.decode("utf-8", "replace").encode("utf-16-le", "replace"))

    def _decompress(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._inflate is None or self._inflate.eof:
                if not data.startswith(_GZIP[: len(data)]):
                    return  # padding after the last member
                self._inflate = zlib.decompressobj(wbits=31)
            try:
                text = self._inflate.decompress(data, _PIECE)
            except zlib.error as error:
                raise LogSourceError(f"the log's gzip data is broken: {error}") from None
            data = self._inflate.unconsumed_tail or self._inflate.unused_data
            if text:
                if self._inner is None:
                    self._inner = Decoder(encoding_of(text[:HEAD]))
                    if self._inner.encoding == "gzip":
                        raise LogSourceError("the log is compressed twice")
                yield from self._inner.feed(text)
