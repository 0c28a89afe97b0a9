"""Finds the records in JSON documents with many lines: exports and API responses of log stores.

Loki (push, query_range), Elasticsearch, OTLP, CloudWatch, Cloud Logging, Azure tables, arrays of records or of plain
lines. A record is an element of an innermost array with llama.cpp's lines; the fields around the array are its context.
Documents over many lines, or longer than a line may be, are read in pieces. Linear; memory is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from llamatel.llama.log.log_line import starts_like_llama_cpp
from llamatel.llama.log.wrapper_time import parse_time

_DEEPEST = 24
_MOST_NODES = 20_000
"""Most values of a document that are kept at a time."""
_LONGEST_TOKEN = 1 << 18
_TOKEN = re.compile(
    r'[ \t\r\n]*(?:("(?:[^"\\]|\\.)*")|([{}\[\],:])|(-?\d{1,40}(?:\.\d{1,40})?(?:[eE][+-]?\d{1,4})?|true|false|null)'
    r"(?=[ \t\r\n,\]}]))",
    re.DOTALL,
)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_NAME_KEYS = ("field", "key", "name")
_TYPED_VALUES = frozenset(("stringValue", "intValue", "boolValue", "doubleValue"))

Record = Mapping[str, object]
IsLine = Callable[[str], bool]


def records(document: object, inner: IsLine) -> Iterator[Record]:
    """The records of a parsed document; itself if it is only one. ``inner``: see ``from_fields``."""
    yield from _split(document, {}, lambda text: starts_like_llama_cpp(text) or inner(text), 0)


def _split(value: object, context: Record, is_line: IsLine, depth: int) -> Iterator[Record]:
    if isinstance(value, list):
        named = _named_values(value)
        if named is not None:
            yield {**context, **named}
        elif any(isinstance(element, str) and is_line(element) for element in value):
            yield from row(value, context, is_line)
        else:
            for element in value:
                if isinstance(element, (dict, list)):
                    yield from _split(element, context, is_line, depth + 1)
    elif isinstance(value, dict):
        many = {
            key: item for key, item in value.items() if isinstance(item, (dict, list)) and _many(item, is_line, depth)
        }
        own = {key: _simple(item, depth) for key, item in value.items() if key not in many}
        if not many or any(isinstance(item, str) and is_line(item) for item in own.values()):
            yield {**own, **{key: item for key, item in context.items() if key not in own}}  # its own fields first
        for item in many.values():
            yield from _split(item, {**context, **own}, is_line, depth + 1)


def row(values: Sequence[object], context: Record, is_line: IsLine) -> Iterator[Record]:
    """Lines in a row of values; with one line, one of the others is its time (Loki, tables of results)."""
    lines = [value for value in values if isinstance(value, str) and is_line(value)]
    times = [value for value in values if value not in lines and parse_time(value) is not None]
    dated = {"time": times[0]} if len(lines) == 1 and times else {}
    for line in lines:
        yield {**context, **dated, "line": line}


def _many(value: object, is_line: IsLine, depth: int) -> bool:
    """Whether an array with llama.cpp's lines is in a value; of an array, each element is a record then."""
    if depth >= _DEEPEST:
        return False
    if isinstance(value, dict):
        return any(_many(item, is_line, depth + 1) for item in value.values() if isinstance(item, (dict, list)))
    return isinstance(value, list) and any(_holds_line(item, is_line, depth + 1) for item in value)


def _holds_line(value: object, is_line: IsLine, depth: int) -> bool:
    if isinstance(value, str):
        return is_line(value)
    if depth >= _DEEPEST:
        return False
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(_holds_line(item, is_line, depth + 1) for item in items)


def _named_values(values: list[object]) -> dict[str, object] | None:
    """``[{"field": "@message", "value": …}, …]`` (CloudWatch, OTLP's attributes) as an object."""
    found: dict[str, object] = {}
    for value in values:
        name = _name_of(value)
        if name is None or not isinstance(value, dict):
            return None
        found[name] = _untyped(value["value"])
    return found or None


def _name_of(value: object) -> str | None:
    if not isinstance(value, dict) or "value" not in value or len(value) > 3:
        return None
    return next((value[key] for key in _NAME_KEYS if isinstance(value.get(key), str)), None)


def _untyped(value: object) -> object:
    """OTLP's ``{"stringValue": "x"}`` as the value itself."""
    if isinstance(value, dict) and len(value) == 1 and (kind := next(iter(value))) in _TYPED_VALUES:
        return value[kind]
    return value


def _simple(value: object, depth: int) -> object:
    """The same, with named values as objects."""
    if isinstance(value, list):
        return _named_values(value) or value
    value = _untyped(value)
    if isinstance(value, dict) and depth < _DEEPEST:
        return {key: _simple(item, depth + 1) for key, item in value.items()}
    return value


class _Open:
    """An array or object that is not complete yet."""

    __slots__ = ("emitted", "fields", "is_list", "items", "key", "nodes")

    def __init__(self, nodes: int, *, is_list: bool) -> None:
        self.nodes = nodes
        """Values that were kept before it."""
        self.is_list = is_list
        self.key: str | None = None
        """The key whose value comes next."""
        self.items: list[object] = []
        self.fields: dict[str, object] = {}
        self.emitted = False
        """Whether its elements are records."""

    @property
    def value(self) -> object:
        return self.items if self.is_list else self.fields


class JsonStream:
    """Reads one JSON document in pieces; keeps only incomplete records."""

    def __init__(self, inner: IsLine) -> None:
        self.finished = False
        self.failed = False
        """Whether it is not JSON, or too large."""
        self.found = False
        """Whether a record was in it."""
        self._is_line: IsLine = lambda text: starts_like_llama_cpp(text) or inner(text)
        self._text = ""
        self._open: list[_Open] = []
        self._nodes = 0
        self._comma = True
        """Whether a value or key may come next."""

    def feed(self, text: str, *, whole: bool) -> Iterator[Record]:
        """The records that a piece completes. ``whole``: it ends at a line's end, which no string holds."""
        text, position = self._text + text + ("\n" if whole else ""), 0
        while not self.finished and not self.failed and (found := _TOKEN.match(text, position)) is not None:
            position = found.end()
            for record in self._token(*found.groups()):
                self.found = True
                yield record
        self._text = text[position:].lstrip(" \t\r\n")
        if self.finished:
            self.failed = self.failed or bool(self._text.strip(" \t\r\n,;"))
        elif self._text and (whole or len(self._text) > _LONGEST_TOKEN):
            self.failed = True
        if self.failed:
            self._text, self._open = "", []

    def _token(self, string: str | None, sign: str | None, other: str | None) -> Iterator[Record]:
        frame = self._open[-1] if self._open else None
        if sign in ("{", "["):
            if not self._comma or len(self._open) >= _DEEPEST or (frame and not frame.is_list and frame.key is None):
                self.failed = True
            self._open.append(_Open(self._nodes, is_list=sign == "["))
        elif frame is None:
            self.failed = True
        elif sign in ("}", "]"):
            if frame.is_list != (sign == "]") or (frame.key is not None):
                self.failed = True
                return
            yield from self._close(frame)
            self._comma = False
        elif sign == ",":
            self.failed = self._comma
            self._comma = True
        elif sign == ":":
            self.failed = frame.is_list or frame.key is None or self._comma
            self._comma = True
        elif not self._comma:
            self.failed = True
        else:
            self._comma = False
            value: object = _unescape(string[1:-1]) if string is not None else _plain(other or "")
            if frame.is_list or frame.key is not None:
                yield from self._add(frame, value)
            elif isinstance(value, str):
                frame.key = value
            else:
                self.failed = True

    def _add(self, frame: _Open, value: object) -> Iterator[Record]:
        """A complete value of an array or object."""
        if not frame.is_list:
            frame.fields[frame.key or ""], frame.key = value, None
        elif self._is_element(frame, value):
            if not frame.emitted:
                frame.emitted = True
                for earlier in frame.items:
                    yield from self._records(earlier)
                frame.items.clear()
            yield from self._records(value)
            return
        else:
            frame.items.append(value)
        self._nodes += 1
        self.failed = self.failed or self._nodes > _MOST_NODES

    def _is_element(self, frame: _Open, value: object) -> bool:
        """Whether an array's element is a separate record."""
        if frame.emitted:
            return True
        if isinstance(value, str):  # [time, line] in an array is one record
            return not self._inside_list() and self._is_line(value)
        return _name_of(value) is None and _holds_line(value, self._is_line, 0)

    def _inside_list(self) -> bool:
        return len(self._open) > 1 and self._open[-2].is_list

    def _records(self, value: object) -> Iterator[Record]:
        context: dict[str, object] = {}
        for frame in self._open:
            context.update(frame.fields)
        yield from _split([value] if isinstance(value, str) else value, context, self._is_line, 0)

    def _close(self, frame: _Open) -> Iterator[Record]:
        self._open.pop()
        if not self._open:
            self.finished = True
            if not frame.emitted and _holds_line(frame.value, self._is_line, 0):
                yield from _split(frame.value, {}, self._is_line, 0)
            return
        parent = self._open[-1]
        if parent.is_list and not frame.is_list and not frame.fields:
            return
        if not frame.emitted or frame.value:
            yield from self._add(parent, _named(frame.value))
        else:
            parent.key = None
            parent.emitted = parent.emitted or parent.is_list
        if parent.emitted:
            self._nodes = frame.nodes


def _named(value: object) -> object:
    named = _named_values(value) if isinstance(value, list) else None
    return value if named is None else named


def _plain(text: str) -> object:
    if text in ("true", "false", "null"):
        return {"true": True, "false": False}.get(text)
    return float(text) if "." in text or "e" in text.lower() else int(text)


def _unescape(text: str) -> str:
    if "\\" not in text:
        return text
    plain = _ESCAPE.sub(lambda at: chr(int(at[1], 16)) if at[1] else _ESCAPED.get(at[2], at[2]), text)
    return plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
