"""JSON and YAML from outside, bounded in size, depth, number of values and length of integers.

Both raise InvalidDocument, whose message is one line and does not quote the document. Values are checked where they are
used: ``text`` and ``count`` return None for what a field cannot hold.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

LARGEST = 8 << 20
"""Largest document in bytes. ``/slots`` of a server with a hundred slots has some 200 KiB."""
DEEPEST = 64
"""Most levels of nesting."""
MOST_VALUES = 1 << 18
"""Most values in a document; bounds its memory, as a document of 8 MiB may have four million."""
_LARGEST_YAML = 1 << 20
"""Parsing YAML takes some seconds a MiB."""
_INTEGER_DIGITS = 40
_LARGEST_COUNT = 1 << 40
"""Above any count of a server; sums and products of a few such numbers still fit 64 bits."""
_LONGEST_TEXT = 4096
"""Longest name in characters; a path has no more."""

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
"""What an error of the YAML parser quotes of the file, which may hold secrets."""
_BRACKET = re.compile(rb"[\[\]{}]")
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})


class InvalidDocument(ValueError):
    """A document is malformed or exceeds a limit."""


def parse_json(data: bytes | str, *, largest: int = LARGEST, most_values: int = MOST_VALUES) -> Any:
    """The value of a JSON document. Raises InvalidDocument.

    Numbers may be infinite or NaN, as Python reads them: check them where they are used.
    """
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    if len(raw) > largest:
        raise InvalidDocument(f"it has more than {largest >> 10} KiB")
    _check_json(raw, most_values)
    try:
        return json.loads(raw, parse_int=_integer)
    except InvalidDocument:
        raise
    except json.JSONDecodeError as error:
        raise InvalidDocument(f"it is not JSON: {error}") from None
    except UnicodeDecodeError:
        raise InvalidDocument("it is not JSON: its encoding is not UTF-8") from None
    except RecursionError:
        raise InvalidDocument("it is nested too deeply") from None


def _check_json(raw: bytes, most_values: int) -> None:
    """Raise InvalidDocument for a document that is too deep or has too many values, before values are created."""
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in raw[:4]:
        raise InvalidDocument("it is not JSON: its encoding is not UTF-8")  # json.loads would recode it
    opened = raw.count(b"[") + raw.count(b"{")
    if opened <= DEEPEST and opened + raw.count(b",") <= most_values:
        return
    bare = _STRING.sub(b"", raw)
    if bare.count(b"[") + bare.count(b"{") + bare.count(b",") > most_values:
        raise InvalidDocument(f"it has more than {most_values} values")
    depth = 0
    for match in _BRACKET.finditer(bare):
        depth += 1 if match.group() in b"[{" else -1
        if depth > DEEPEST:
            raise InvalidDocument("it is nested too deeply")


def _integer(digits: str) -> int:
    if len(digits) > _INTEGER_DIGITS:
        raise InvalidDocument("it has an integer that is too long")
    return int(digits)


def parse_yaml(data: str, *, largest: int = _LARGEST_YAML) -> Any:
    """The value of a YAML document: None, text, lists and maps of these. Raises InvalidDocument.

    Scalars stay text (``2026-02-30``, ``0x1F``, ``on``), as Prometheus reads labels; only an empty or null one is None.
    Anchors, aliases, tags and further documents are refused.
    """
    if len(data) > largest:
        raise InvalidDocument(f"it has more than {largest >> 10} Ki characters")
    import yaml

    try:
        return _build(yaml.parse(data, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        raise InvalidDocument(
            f"it is not YAML: {_QUOTED.sub('...', error.problem or 'not understood')}{where}"
        ) from None
    except yaml.YAMLError as error:
        raise InvalidDocument(
            f"it is not YAML: {_QUOTED.sub('...', (str(error).splitlines() or ['not understood'])[0])}"
        ) from None


def _build(events: Iterator[Any]) -> Any:
    """The value that PyYAML's events describe, without recursion."""
    import yaml

    root: list[Any] = []
    open_: list[list[Any]] = [root]
    """Lists that are being filled; a map is filled as a list of alternating keys and values."""
    values = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _refused(event, "anchors and aliases are not supported")
        if getattr(event, "tag", None) is not None:
            raise _refused(event, "tags are not supported")
        if isinstance(event, yaml.NodeEvent):
            values += 1
            if values > MOST_VALUES:
                raise InvalidDocument(f"it has more than {MOST_VALUES} values")
        if isinstance(event, yaml.ScalarEvent):
            open_[-1].append(None if event.implicit[0] and event.value in _NULLS else event.value)
        elif isinstance(event, yaml.CollectionStartEvent):
            if len(open_) > DEEPEST:
                raise _refused(event, "it is nested too deeply")
            open_.append([])
        elif isinstance(event, yaml.SequenceEndEvent):
            items = open_.pop()
            open_[-1].append(items)
        elif isinstance(event, yaml.MappingEndEvent):
            items = open_.pop()
            open_[-1].append(_map(items, event))
    if len(root) > 1:
        raise InvalidDocument("it contains more than one document")
    return root[0] if root else None


def _map(items: list[Any], event: Any) -> dict[str, Any]:
    keys, found = items[::2], dict[str, Any]()
    for key, value in zip(keys, items[1::2], strict=True):
        if not isinstance(key, str):
            raise _refused(event, "a key of a map is not text")
        if key in found:
            raise _refused(event, "a map has a key twice")
        found[key] = value
    return found


def _refused(event: Any, why: str) -> InvalidDocument:
    return InvalidDocument(f"{why} (line {event.start_mark.line + 1})")


def mapping(value: object) -> Mapping[str, Any]:
    """An object from a document; an empty one for anything else."""
    return value if isinstance(value, Mapping) else {}


def text(value: object) -> str | None:
    """A name from a document; None for anything else, or one that is too long to be one."""
    return value if isinstance(value, str) and 0 < len(value) <= _LONGEST_TEXT else None


def count(value: object, least: int = 0) -> int | None:
    """A count from a document; None for anything else."""
    return (
        value if isinstance(value, int) and not isinstance(value, bool) and least <= value <= _LARGEST_COUNT else None
    )
