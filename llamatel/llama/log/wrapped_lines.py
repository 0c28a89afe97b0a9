"""Joins wrapped lines: records of several lines, and lines that were split over several records.

``journalctl -o export``, ``-o verbose`` and ``-o json-pretty`` write a record over many lines; containerd, docker and
journald split long lines; ``tail -F a b`` names the file before its lines. Everything is bounded in lines and size.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from llamatel.llama.log.client_text import quoted_from
from llamatel.llama.log.log_line import OWN_START, is_own_line
from llamatel.llama.log.log_wrapper import holds_own_line, peel, unwrap, without_colours
from llamatel.llama.log.wrapper_fields import Carried, from_fields, from_json
from llamatel.llama.log.wrapper_time import JOURNAL_FULL, find_time

_TAIL_HEADER = re.compile(r"==> (.{1,1024}) <==$")
_VERBOSE = re.compile(rf"({JOURNAL_FULL}) \[s=[0-9a-f]{{1,40}};")
_FIELD = re.compile(r"\s{0,8}([A-Z_][A-Z0-9_]{0,63})=(.*)", re.DOTALL)
_BINARY_START = re.compile(rf".{{0,9}}?(?={OWN_START})", re.DOTALL)
_MOST_LINES = 1000
_LARGEST = 1 << 18
_MOST_PARTIAL = 64
_LONGEST_LINE = 1 << 16


class WrappedLines:
    """Converts the lines of one stream to llama.cpp's. Not thread-safe."""

    def __init__(self) -> None:
        self._record: list[str] | None = None
        """Lines of a record that is not complete yet."""
        self._size = 0
        self._kind = ""
        self._partial: dict[tuple[str, int], Carried] = {}
        """Lines that continue in a later record, by origin and wrappers."""
        self._file = ""
        """The file that ``tail`` is showing."""
        self._plain: bool | None = None
        """Whether the first of llama.cpp's lines had nothing around it. Then a prefix is a client's; None: none yet."""

    @property
    def open(self) -> bool:
        """Whether a record or line continues, so that the next line is parsed even if it is llama.cpp's own."""
        return self._record is not None or bool(self._file)

    def feed(self, line: str) -> Iterable[Carried]:
        """llama.cpp's lines that a line holds or completes."""
        if self._record is not None:
            return self._gather(line)
        if is_own_line(line):
            if self._plain is None:
                self._plain = not self._file
            return self._from_file((Carried(line),))
        if self._starts(line):
            return ()
        if line.startswith("==> ") and (header := _TAIL_HEADER.match(line)) is not None:
            self._file = header.group(1)
            return ()
        if self._partial:
            return self._from_file(self._rest(line))
        found = None if self._plain or quoted_from(line) is not None else unwrap(line)
        if found is None:
            return self._from_file((Carried(line),))
        self._plain = False
        return self._from_file(self._whole(found))

    def flush(self) -> Iterable[Carried]:
        """The incomplete record; call after a while without lines, and at the end."""
        if self._record is None:
            return ()
        return self._complete()

    def _from_file(self, found: Iterable[Carried]) -> Iterable[Carried]:
        if not self._file:
            return found
        return [each._replace(origin=f"{self._file}/{each.origin}".rstrip("/")) for each in found]

    def _starts(self, line: str) -> bool:
        text = line.strip("\x1e \t")
        if text == "{":
            self._kind = "json"
        elif line.startswith("__CURSOR="):
            self._kind = "export"
        elif _VERBOSE.match(line):
            self._kind = "verbose"
        else:
            return False
        self._record, self._size = [line], len(line)
        return True

    def _gather(self, line: str) -> Iterable[Carried]:
        record = self._record or []
        over = len(record) > _MOST_LINES or self._size > _LARGEST
        if self._kind == "verbose":
            if over or not line.startswith("    "):
                done = list(self._complete())
                return [*done, *self.feed(line)]
        elif over or (self._kind == "json" and line.rstrip(" ,") == "}") or (self._kind == "export" and not line):
            record.append(line)
            return self._complete()
        record.append(line)
        self._size += len(line)
        return ()

    def _complete(self) -> Iterable[Carried]:
        record, self._record = self._record or [], None
        if self._kind == "json":
            found = from_json("\n".join(record), holds_own_line)
        else:
            fields = _journal_fields(record)
            found = from_fields(fields, holds_own_line)
            if found is not None and self._kind == "verbose" and found.wall is None:
                found = found._replace(wall=find_time(record[0]))
        if found is None:
            # Not a record: use its lines separately.
            return [Carried(line) if (each := unwrap(line)) is None else each for line in record]
        return self._from_file(self._whole(peel(found._replace(text=without_colours(found.text)))))

    def _rest(self, line: str) -> Iterable[Carried]:
        """A line that may continue a split one; its wrapper is known only with the other part."""
        found = Carried(without_colours(line))
        while (peeled := peel(found, 1)) is not found:
            found = peeled
            before = self._partial.pop((found.origin, found.layers), None)
            if before is not None:
                text = (before.text + found.text)[:_LONGEST_LINE]
                return self._whole(peel(found._replace(text=text, wall=before.wall or found.wall)))
        return self._whole(found)

    def _whole(self, found: Carried) -> Iterable[Carried]:
        """The lines of a record; none if it is only the first part of one."""
        if found.partial:
            if len(self._partial) >= _MOST_PARTIAL:
                self._partial.pop(next(iter(self._partial)))
            self._partial[found.origin, found.layers] = found
            return ()
        if "\n" not in found.text:
            return (found,)
        return [found._replace(text=text) for text in found.text.split("\n")[:_MOST_LINES]]


def _journal_fields(record: Iterable[str]) -> dict[str, object]:
    fields: dict[str, object] = {}
    binary: str | None = None
    for line in record:
        if binary is not None:
            # Journald writes what is not printable as its size in eight bytes, and then the text.
            start = _BINARY_START.match(without_colours(line))
            fields[binary] = without_colours(line)[start.end() :] if start is not None else line[8:]
            binary = None
        elif (found := _FIELD.match(line)) is not None:
            fields.setdefault(found.group(1), found.group(2))
        elif line == "MESSAGE":
            binary = line
    return fields
