"""Splits a stream of bytes into whole lines."""

from __future__ import annotations

_MAX_LINE = 65536
"""A longer line is cut; llama.cpp's lines about requests are far shorter."""


class LineBuffer:
    """Joins chunks of bytes into whole lines. Memory is bounded by the longest line allowed."""

    def __init__(self) -> None:
        self._rest = b""
        self._skipping = False

    @property
    def rest(self) -> bytes:
        """The start of an incomplete line."""
        return self._rest

    def feed(self, data: bytes) -> list[str]:
        """The lines that end in ``data``, without their ends; what is not UTF-8 is replaced."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        lines = [line[:_MAX_LINE].rstrip(b"\r").decode("utf-8", "replace") for line in whole]
        if self._skipping and lines:
            del lines[0]
            self._skipping = False
        if len(self._rest) > _MAX_LINE:
            if not self._skipping:
                lines.append(self._rest[:_MAX_LINE].decode("utf-8", "replace"))
            self._rest, self._skipping = b"", True
        return lines

    def flush(self) -> list[str]:
        """The last line, where the stream has no final line end."""
        rest, self._rest = self._rest, b""
        return [rest.rstrip(b"\r").decode("utf-8", "replace")] if rest and not self._skipping else []
