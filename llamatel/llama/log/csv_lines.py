"""Rows of CSV exports with llama.cpp's lines: Kibana, Grafana, CloudWatch, Azure, Datadog, spreadsheets."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping

from llamatel.llama.log.json_records import row
from llamatel.llama.log.log_line import OWN_QUOTED, starts_like_llama_cpp
from llamatel.llama.log.wrapper_fields import is_message_key

_HEADER = re.compile(r"[\"@\w][^'{}=|\\]{3,2000}$")
_COLUMN = re.compile(r"[@\w][\w@ .:\[\]()/-]{0,63}")
_CELL = re.compile(rf"[^{{\[][^{{]{{0,400}}?(?:([,;\t])\"|([,;]))(?={OWN_QUOTED})|\"(?={OWN_QUOTED})")
_MOST_COLUMNS = 64


class CsvLines:
    """The table of one stream: its columns are known from a header, or from the first row with llama.cpp's line."""

    def __init__(self) -> None:
        self._delimiter = ""
        self._columns: tuple[str, ...] = ()
        """Names from a header."""
        self._message = 0
        """Index of the column with the line."""
        self._count = 0
        """Number of columns; 0: no table."""

    def is_header(self, line: str) -> bool:
        """Whether a line names columns, one of them for messages."""
        if _HEADER.match(line) is None:
            return False
        for delimiter in (",", ";", "\t"):
            if delimiter not in line:
                continue
            names = _cells(line, delimiter)
            if not 2 <= len(names) <= _MOST_COLUMNS or not all(_COLUMN.fullmatch(name) for name in names):
                continue
            messages = [number for number, name in enumerate(names) if is_message_key(name)]
            if messages:
                self._delimiter, self._columns, self._count = delimiter, tuple(names), len(names)
                self._message = messages[0]
                return True
        return False

    def record(self, line: str) -> Mapping[str, object] | None:
        """The fields of a row; None for any other line."""
        if self._count and self._delimiter in line:
            cells = self._known(_cells(line, self._delimiter), quoted='"' in line)
            if cells is not None:
                if self._columns:
                    return dict(zip(self._columns, cells, strict=True))
                return _row(cells, self._message)
        found = _CELL.match(line)
        if found is None:
            return None
        for delimiter in filter(None, found.groups() if found.group(1) or found.group(2) else (",", ";", "\t")):
            quoted = '"' in line
            cells = _cells(line, delimiter)
            index = next((number for number, cell in enumerate(cells) if starts_like_llama_cpp(cell)), None)
            if index is None or len(cells) < 2:
                continue
            if not quoted:  # commas of the line itself are not marked
                cells[index:] = [delimiter.join(cells[index:])]
            if not self._columns and quoted:
                self._delimiter, self._message, self._count = delimiter, index, len(cells)
            return _row(cells, index)
        return None

    def _known(self, cells: list[str], *, quoted: bool) -> list[str] | None:
        """The cells of a row of the known table, if it is one."""
        more = len(cells) - self._count
        if more > 0 and self._columns and not quoted:
            end = self._message + more + 1
            cells[self._message : end] = [self._delimiter.join(cells[self._message : end])]
            more = 0
        return None if more else cells


def _row(cells: list[str], message: int) -> Mapping[str, object]:
    line = cells[message]
    return next(row(cells, {}, lambda text: text is line))


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []
