"""Joins wrapped lines: records of several lines, and lines that were split over several records.

``journalctl -o export``, ``-o verbose`` and ``-o json-pretty`` write a record over many lines; an export of a log store
is one JSON document with many records, or a CSV table; containerd, docker and journald split long lines; ``tail -F a
b`` names the file before its lines. Everything is bounded in lines and size.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from llamatel.inputs.documents import InvalidDocument, parse_json
from llamatel.llama.log.client_text import quoted_from
from llamatel.llama.log.csv_lines import CsvLines
from llamatel.llama.log.json_records import JsonStream, Record, records
from llamatel.llama.log.line_buffer import DocumentPart
from llamatel.llama.log.line_suffix import LineSuffix
from llamatel.llama.log.log_line import OWN_START, is_own_line, starts_like_llama_cpp
from llamatel.llama.log.log_wrapper import KnownWrappers, holds_own_line, peel, prefix_before, unwrap, without_colours
from llamatel.llama.log.otel_debug_lines import START as OTEL_START
from llamatel.llama.log.otel_debug_lines import OtelDebugLines
from llamatel.llama.log.variable_origins import VariableOrigins
from llamatel.llama.log.wrapper_fields import Carried, from_fields, from_json
from llamatel.llama.log.wrapper_time import JOURNAL_FULL, find_time
from llamatel.llama.log.xml_records import START as XML_START
from llamatel.llama.log.xml_records import XmlStream

_TAIL_HEADER = re.compile(r"==> (.{1,1024}) <==$")
_VERBOSE = re.compile(rf"({JOURNAL_FULL}) \[s=[0-9a-f]{{1,40}};")
_FIELD = re.compile(r"\s{0,8}([A-Z_][A-Z0-9_]{0,63})=(.*)", re.DOTALL)
_MANY = re.compile(r"\[\s{0,8}[\[{\"\d]")
"""A JSON array of records, lines or values."""
_UNFINISHED = re.compile(r"[\[{]\s{0,8}(?:[\"\[{].{0,65536}[^\]}]|)$|[^\"'{}]{1,300}\s\{$", re.DOTALL)
"""The first line of a JSON document of many lines, perhaps after a prefix."""
_BINARY_START = re.compile(rf".{{0,9}}?(?={OWN_START})", re.DOTALL)
_MOST_LINES = 1000
_LARGEST = 1 << 18
_MOST_PARTIAL = 64
_LONGEST_LINE = 1 << 16


class WrappedLines:
    """Converts the lines of one stream to llama.cpp's. Not thread-safe."""

    def __init__(self, origins: VariableOrigins | None = None) -> None:
        """``origins``: what an earlier scan of the same lines has learned."""
        self._record: list[str] | None = None
        """Lines of a record that is not complete yet."""
        self._size = 0
        self._kind = ""
        self._json: JsonStream | None = None
        """The JSON document that is not complete yet; ``_record`` has its lines until it is known to hold records."""
        self._prefix = Carried("")
        """What was before that document."""
        self._xml: XmlStream | None = None
        self._otel: OtelDebugLines | None = None
        """The records of the Collector's debug exporter; None outside of them."""
        self._suffix = LineSuffix()
        self._origins = origins or VariableOrigins()
        self._table = CsvLines()
        self._partial: dict[tuple[str, int], Carried] = {}
        """Lines that continue in a later record, by origin and wrappers."""
        self._file = ""
        """The file that ``tail`` is showing."""
        self._known = KnownWrappers()
        self._plain: bool | None = None
        """Whether the first two of llama.cpp's lines had nothing around them. Then a prefix is a client's; None: not
        known yet."""
        self._own_first = False

    @property
    def origins(self) -> VariableOrigins:
        """Which words of prefixes name no source."""
        return self._origins

    @property
    def open(self) -> bool:
        """Whether a record or line continues, so that the next line is parsed even if it is llama.cpp's own."""
        return self._record is not None or self._json is not None or bool(self._file) or self._suffix.found

    def feed(self, line: str) -> Iterable[Carried]:
        """llama.cpp's lines that a line holds or completes."""
        return self._suffix.removed(self._feed(line))

    def _feed(self, line: str) -> Iterable[Carried]:
        if (found := self._continued(line)) is not None:
            return found
        if is_own_line(line):
            if self._plain is None and self._own_first:
                self._plain = not self._file
            self._own_first = True
            return self._from_file((Carried(line.lstrip(" ")),))
        if not self._plain and self._starts(line):
            return ()
        if line.startswith("==> ") and (header := _TAIL_HEADER.match(line)) is not None:
            self._file = header.group(1)
            return ()
        if self._partial:
            return self._from_file(self._rest(line))
        if self._plain or quoted_from(line) is not None:
            return self._from_file((Carried(line),))
        one_by_one = self._unwrapped(line)
        if one_by_one is None:
            return self._from_file((Carried(line),))
        self._plain = False
        return self._from_file([each for one in one_by_one for each in self._whole(one)])

    def _continued(self, line: str) -> Iterable[Carried] | None:
        """The lines that a line completes of a document or of a record over many lines; None if it is part of none."""
        if isinstance(line, DocumentPart):
            return self._document_part(line)
        if self._json is not None:
            return self._document_line(self._json, line)
        if self._record is not None:
            return self._gather(line)
        if self._plain:
            return None
        if self._otel is not None or OTEL_START.match(line) is not None:
            self._otel = self._otel or OtelDebugLines()
            part, record = self._otel.feed(line)
            if part:
                return () if record is None else self._records([record])
            self._otel = None
        if (self._xml is not None and self._xml.pending) or XML_START.match(line) is not None:
            self._xml = self._xml or XmlStream()
            found = self._xml.feed(f"{line}\n")
            return self._records(found) if found or self._xml.pending else (Carried(line),)
        return None

    def _records(self, found: Iterable[Record]) -> Iterable[Carried]:
        """The lines of records."""
        self._plain = False
        return self._from_file([each for record in found for each in self._whole(self._from_record(record))])

    def _unwrapped(self, line: str) -> Sequence[Carried] | None:
        """The records of a line; None if it is none."""
        whole, line = line, without_colours(line)
        if "[" in line and line.lstrip()[:1] in ("[", "{") and _MANY.search(line) is not None:
            several = [self._from_record(record) for record in _several(line)]
            if several:
                first, last = several[0].wall, several[-1].wall
                newest_first = first is not None and last is not None and first > last
                return several[::-1] if newest_first else several
        if self._table.is_header(line):
            return ()
        record = self._table.record(line)
        if record is not None:
            found = self._from_record(record)
        elif (unwrapped := unwrap(line, self._known)) is not None:
            found = unwrapped
        else:
            return None if line == whole else (Carried(line),)
        return (found._replace(origin=self._origins.origin(found.origin)),)

    def flush(self) -> Iterable[Carried]:
        """The incomplete record; call after a while without lines, and at the end."""
        if self._record is None:
            return ()
        self._json = None
        return self._complete()

    def _from_file(self, found: Iterable[Carried]) -> Iterable[Carried]:
        if not self._file:
            return found
        return [each._replace(origin=f"{self._file}/{each.origin}".rstrip("/")) for each in found]

    def _starts(self, line: str) -> bool:
        text = line.strip("\x1e \t\ufeff")
        if text[-1:] not in ("}", "]") and _UNFINISHED.match(text) is not None and not starts_like_llama_cpp(text):
            self._kind = "json"
            start = 0 if text[0] in "{[" else len(text) - 1
            self._prefix = prefix_before(text, start)
            self._json = JsonStream(holds_own_line)
            self._record, self._size = [], 0
            return not self._json_failed(text[start:], line)
        if line.startswith("__CURSOR="):
            self._kind = "export"
        elif _VERBOSE.match(line):
            self._kind = "verbose"
        else:
            return False
        self._record, self._size = [line], len(line)
        return True

    def _json_failed(self, text: str, line: str) -> bool:
        """Start a document; whether it is none."""
        stream = self._json
        if stream is None or list(stream.feed(text, whole=True)) or stream.failed or stream.finished:
            self._json = self._record = None
            return True
        self._record, self._size = [line], len(line)
        return False

    def _document_line(self, stream: JsonStream, line: str) -> Iterable[Carried]:
        """A line of a JSON document."""
        found = [self._from_record(record, self._prefix) for record in stream.feed(line, whole=True)]
        record = self._record or []
        if stream.found:
            self._record, self._plain = None, False
        else:
            record.append(line)
            self._size += len(line)
        if not stream.failed and not stream.finished and len(record) <= _MOST_LINES and self._size <= _LARGEST:
            return self._from_file([each for one in found for each in self._whole(one)])
        self._json, self._record = None, None
        if not stream.found:
            self._record = record
            return self._complete()
        lines = [each for one in found for each in self._whole(one)]
        return self._from_file([*lines, *self._feed(line)] if stream.failed and not found else lines)

    def _document_part(self, part: DocumentPart) -> Iterable[Carried]:
        """A part of a JSON document in one line."""
        if part.first and not self._plain:
            self._json, self._record, self._prefix, self._xml = None, None, Carried(""), None
            if XML_START.match(part) is not None:
                self._xml = XmlStream()
            else:
                self._json = JsonStream(holds_own_line)
        if self._xml is not None:
            return self._records(self._xml.feed(part))
        stream = self._json
        if stream is None:
            return ()
        found = [self._from_record(record) for record in stream.feed(part, whole=part.last)]
        if found:
            self._plain = False
        if part.last:
            self._json = None
        return self._from_file([each for one in found for each in self._whole(one)])

    def _gather(self, line: str) -> Iterable[Carried]:
        record = self._record or []
        over = len(record) > _MOST_LINES or self._size > _LARGEST
        if self._kind == "verbose":
            if over or not line.startswith("    "):
                done = list(self._complete())
                return [*done, *self._feed(line)]
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
        return self._from_file(self._whole(self._peel(found._replace(text=without_colours(found.text)))))

    def _from_record(self, record: Record, prefix: Carried | None = None) -> Carried:
        found = from_fields(record, holds_own_line) or Carried("")
        if prefix is not None and (prefix.origin or prefix.wall):
            origin = "/".join(filter(None, (prefix.origin, found.origin)))
            found = found._replace(origin=origin, wall=found.wall or prefix.wall)
        return self._peel(found._replace(text=without_colours(found.text)))

    def _peel(self, found: Carried) -> Carried:
        found = peel(found, known=self._known)
        self._known.learn(found)
        return found

    def _rest(self, line: str) -> Iterable[Carried]:
        """A line that may continue a split one; its wrapper is known only with the other part."""
        found = Carried(without_colours(line))
        while (peeled := peel(found, 1, known=self._known)) is not found:
            found = peeled
            before = self._partial.pop((found.origin, found.layers), None)
            if before is not None:
                text = (before.text + found.text)[:_LONGEST_LINE]
                return self._whole(self._peel(found._replace(text=text, wall=before.wall or found.wall)))
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


def _several(line: str) -> list[Record]:
    """The records of a JSON document in one line; empty if it has only one."""
    try:
        document = parse_json(line)
    except InvalidDocument:
        return []
    found = list(records(document, holds_own_line))
    if not found or (len(found) == 1 and isinstance(document, dict) and found[0].keys() == document.keys()):
        return []
    return found


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
