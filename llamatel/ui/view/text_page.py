"""The blocks of a page, for a terminal of 80 columns, a pipe and a notebook."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.text import Text

from llamatel.ui.view.glyphs import UNICODE, Glyphs

WIDTH = 80
_LABEL = 14


def printable(text: str, longest: int = 200) -> str:
    """Untrusted text without terminal control characters and changes of direction, cut to ``longest``."""
    cut = text if len(text) <= longest else text[: longest - 3] + "..."
    return "".join(letter if letter.isprintable() else "?" for letter in cut)


def cut(text: str, width: int, glyphs: Glyphs = UNICODE) -> str:
    """Text of at most ``width`` characters; an ellipsis marks a cut."""
    return text if len(text) <= width else text[: max(width - 1, 0)] + glyphs.ellipsis


def size(n_bytes: float | None, glyphs: Glyphs = UNICODE) -> str:
    """Bytes, with three digits that matter: ``512 B``, ``96.5 KiB``, ``4.58 GiB``."""
    if n_bytes is None:
        return glyphs.unknown
    if n_bytes < 1000:
        return f"{n_bytes:.0f} B"
    value, units = n_bytes / 1024, iter(("KiB", "MiB", "GiB", "TiB"))
    unit = next(units)
    while round(value) >= 1000 and unit != "TiB":
        value, unit = value / 1024, next(units)
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"


def parameters(number: int | None, glyphs: Glyphs = UNICODE) -> str:
    """``1.24 B``, ``355 M``, ``119,360``."""
    if number is None:
        return glyphs.unknown
    for unit, name in ((10**12, "T"), (10**9, "B"), (10**6, "M")):
        if number >= unit:
            return f"{number / unit:.3g} {name}" if number < 999.5 * unit else f"{number / unit:.0f} {name}"
    return f"{number:,}"


def exact_bytes(number: int | None, glyphs: Glyphs) -> str:
    """Bytes in full."""
    return glyphs.unknown if number is None else f"{number:,}"


@dataclass(frozen=True, slots=True)
class Row:
    """A label, which may be empty, and a sentence."""

    label: str
    content: str


@dataclass(frozen=True, slots=True)
class Table:
    """Numbers under a title; the row ``marked`` is highlighted."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marked: int | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """The blocks of a report, as they are added."""

    glyphs: Glyphs
    blocks: list[Row | Table]

    def row(self, label: str, content: str) -> None:
        """Add a row."""
        self.blocks.append(Row(label, content))

    def table(
        self, title: str, header: Sequence[str], rows: Iterable[Sequence[str]], *, marked: int | None = None
    ) -> None:
        """Add a table."""
        self.blocks.append(Table(title, tuple(header), tuple(map(tuple, rows)), marked))


def row_text(row: Row) -> Text:
    """Wrapped lines, each after a newline."""
    text = Text()
    lines = textwrap.wrap(row.content, WIDTH - _LABEL, break_on_hyphens=False, break_long_words=False) or [""]
    for number, line in enumerate(lines):
        text.append(f"\n{row.label if number == 0 else '':{_LABEL}}", "dim")
        text.append(line)
    return text


def table_text(table: Table) -> Text:
    """A left-aligned first column, then right-aligned ones."""
    text = Text(f"\n\n{table.title}", "bold")
    lines = [table.header, *table.rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.header))]
    widths[0] = max(widths[0], _LABEL - 2)
    for number, line in enumerate(lines):
        style = "dim" if number == 0 else "green" if number - 1 == table.marked else ""
        cells = [line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))]
        text.append("\n" + "  ".join(cells).rstrip(), style)
    return text


def stacked(header: Sequence[str], rows: Sequence[Sequence[Sequence[str]]], width: int | None) -> Text:
    """Left-aligned columns. A cell's words are on one line if all fit into ``width``, else one per line."""
    side = [[[" ".join(cell)] for cell in row] for row in rows]
    table = [[[title] for title in header], *(side if width is None or _total(header, side) <= width else rows)]
    widths = [max(len(word) for row in table for word in (row[column] or [""])) for column in range(len(header))]
    text = Text()
    for number, row in enumerate(table):
        for words in itertools.zip_longest(*row, fillvalue=""):
            line = "  ".join(word.ljust(size) for word, size in zip(words, widths, strict=True)).rstrip()
            text.append(f"{line}\n", "dim" if number == 0 else "")
    text.rstrip()
    return text


def _total(header: Sequence[str], rows: Sequence[Sequence[Sequence[str]]]) -> int:
    widths = [max([len(title), *(len(row[column][0]) for row in rows)]) for column, title in enumerate(header)]
    return sum(widths) + 2 * (len(header) - 1)
