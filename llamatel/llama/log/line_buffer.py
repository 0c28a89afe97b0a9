"""Splits a stream of bytes into whole lines."""

from __future__ import annotations

import re

from llamatel.llama.log.log_line import is_own_line

_MAX_LINE = 65536
"""A longer line is cut; llama.cpp's lines about requests are far shorter."""
_DOCUMENT = re.compile(r"[\s\ufeff]{0,16}(?:[\[{]\s{0,16}[\[{\"]|<[?A-Za-z])")


class DocumentPart(str):
    """A part of a JSON or XML document that is longer than a line may be. Never a line: it may start in a string."""

    __slots__ = ("first", "last")

    first: bool
    last: bool

    @classmethod
    def of(cls, text: str, *, first: bool, last: bool) -> DocumentPart:
        """``first`` and ``last``: whether it is the document's."""
        part = cls(text)
        part.first, part.last = first, last
        return part


class LineBuffer:
    """Joins chunks of bytes into whole lines. Memory is bounded by the longest line allowed."""

    def __init__(self, *, documents: bool = False) -> None:
        """``documents``: yield longer lines that are JSON or XML documents in parts (``DocumentPart``)."""
        self._rest = b""
        self._skipping = False
        self._documents = documents
        self._document = False
        """Whether the longer line is a document."""

    @property
    def rest(self) -> bytes:
        """The start of an incomplete line."""
        return self._rest

    @property
    def skipping(self) -> bool:
        """Whether the incomplete line is longer than a line may be, and its rest is left out."""
        return self._skipping and not self._document

    def feed(self, data: bytes) -> list[str]:
        """The lines that end in ``data``, without their ends; what is not UTF-8 is replaced."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        if self._skipping or max(map(len, (*whole, self._rest))) > _MAX_LINE:
            return self._cut(whole)
        if not whole:
            return []
        text = b"\n".join(whole).decode("utf-8", "replace")  # at once, in a tenth of the time of each line on its own
        lines = text.split("\n")
        return [line.rstrip("\r") for line in lines] if "\r" in text else lines

    def _cut(self, whole: list[bytes]) -> list[str]:
        """Whole lines, where one of them, or the incomplete one, is too long."""
        lines: list[str] = []
        if self._skipping and whole:
            if self._document:
                lines.append(DocumentPart.of(_text(whole[0]), first=False, last=True))
            del whole[0]
            self._skipping = self._document = False
        for line in whole:
            if len(line) <= _MAX_LINE:
                lines.append(_text(line))
            elif self._documents and _is_document(line):
                lines.append(DocumentPart.of(_text(line), first=True, last=True))
            else:
                lines.append(_text(line[:_MAX_LINE]))
        if len(self._rest) > _MAX_LINE:
            lines += self._over()
        return lines

    def flush(self) -> list[str]:
        """The last line, where the stream has no final line end."""
        rest, self._rest = self._rest, b""
        if self._document and rest:
            self._skipping = self._document = False
            return [DocumentPart.of(_text(rest), first=False, last=True)]
        return [_text(rest)] if rest and not self._skipping else []

    def _over(self) -> list[str]:
        """What is read of an incomplete line that is too long already."""
        rest, self._rest = self._rest, b""
        if not self._skipping:
            self._skipping = True
            self._document = self._documents and _is_document(rest)
            if not self._document:
                return [_text(rest[:_MAX_LINE])]
            first = True
        elif self._document:
            first = False
        else:
            return []
        end = len(rest)
        while end > len(rest) - 4 and rest[end - 1] & 0x80:  # not inside a character
            end -= 1
        self._rest = rest[end:]
        return [DocumentPart.of(_text(rest[:end]), first=first, last=False)]


def _is_document(line: bytes) -> bool:
    start = line[:256].decode("utf-8", "replace")
    return _DOCUMENT.match(start) is not None and not is_own_line(start)


def _text(line: bytes) -> str:
    return line.rstrip(b"\r").decode("utf-8", "replace")
