"""A model in a notebook: the same page as in a terminal, as HTML. Every text is escaped: names come from strangers."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from llamatel.model.report import ModelReport
from llamatel.view.model import LAYERS, layer_rows, model_page
from llamatel.view.page import Row, Table, printable

_LEFT = ' style="text-align: left"'


def model_html(report: ModelReport) -> str:
    """The report as an HTML fragment, its layers folded away."""
    page = model_page(report)
    rows = [block for block in page.blocks if isinstance(block, Row)]
    body = "".join(f"<tr><th{_LEFT}>{escape(row.label)}</th><td{_LEFT}>{escape(row.content)}</td></tr>" for row in rows)
    parts = [f"<b>{escape(printable(report.title))}</b><table>{body}</table>"]
    tables = [block for block in page.blocks if isinstance(block, Table)]
    parts += [_folded(table.title, _grid(table.header, table.rows)) for table in tables]
    layers = [[" ".join(cell) for cell in row] for row in layer_rows(report)]
    if layers:
        parts.append(_folded("layers", _grid(LAYERS, layers)))
    return "<div>" + "".join(parts) + "</div>"


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def _grid(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th{_LEFT}>{escape(title)}</th>" for title in header)
    body = "".join("<tr>" + "".join(f"<td{_LEFT}>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
