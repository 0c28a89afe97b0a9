"""Finds llama.cpp's lines in XML and HTML: Windows events, log4j, java.util.logging. Linear, bounded memory."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping

from llamatel.llama.log.log_line import starts_like_llama_cpp
from llamatel.llama.log.log_wrapper import holds_own_line, without_colours
from llamatel.llama.log.wrapper_time import parse_time

START = re.compile(r"[\s\ufeff]{0,64}<[?!/A-Za-z]")
_ATTRIBUTE = re.compile(r"([\w:.-]{1,64})\s?=\s?(?:\"([^\"]{0,1000})\"|'([^']{0,1000})')")
_CDATA = "<![CDATA["
_LONGEST = 1 << 16
_LONGEST_NAME = 256
_MOST_FIELDS = 64


class XmlStream:
    """Feed it lines, or parts of a document. A record is a text that is llama.cpp's, with the values before it."""

    def __init__(self) -> None:
        self._rest = ""
        self._element = ""
        self._fields: dict[str, object] = {}

    @property
    def pending(self) -> bool:
        """Whether a tag or text is not complete yet."""
        return bool(self._rest)

    def feed(self, text: str) -> list[Mapping[str, object]]:
        """The records that are complete with this text."""
        text, at, found = self._rest + text, 0, list[Mapping[str, object]]()
        while (start := text.find("<", at)) >= 0:
            cdata = text.startswith(_CDATA, start)
            end = text.find("]]>" if cdata else ">", start)
            if end < 0:
                break
            content = text[start + len(_CDATA) : end] if cdata else html.unescape(text[at:start])
            if (record := self._text(without_colours(content).strip())) is not None:
                found.append(record)
            if not cdata:
                self._tag(text[start + 1 : end])
            at = end + (3 if cdata else 1)
        self._rest = text[at:].lstrip() if start >= 0 or text[at:].strip() else ""
        if len(self._rest) > _LONGEST:
            self._rest = ""
        return found

    def _text(self, content: str) -> Mapping[str, object] | None:
        if not content:
            return None
        if starts_like_llama_cpp(content) or holds_own_line(content):
            return {**self._fields, "message": content}
        self._add(self._element, content)
        return None

    def _tag(self, tag: str) -> None:
        name = re.match(r"[\w:.-]{1,64}", tag)
        if name is not None:
            self._element = name.group()
            for key, double, single in _ATTRIBUTE.findall(tag):
                self._add(key, html.unescape(double or single))

    def _add(self, key: str, value: str) -> None:
        if len(value) > _LONGEST_NAME:
            return
        if parse_time(value) is not None:
            key = "time"
        if key in self._fields or len(self._fields) < _MOST_FIELDS:
            self._fields[key] = value
