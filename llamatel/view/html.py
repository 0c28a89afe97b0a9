"""Models, plans, summaries and results in a notebook: the same as in a terminal, as HTML.

Every text is escaped: names come from strangers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape

from llamatel.model.report import ModelReport
from llamatel.plan.cache import CachePlan
from llamatel.tally import Summary
from llamatel.view.model import LAYERS, layer_rows, model_page
from llamatel.view.page import Page, Row, Table, printable
from llamatel.view.plan import cache_page
from llamatel.view.summary import summary_table

_LONGEST = 2000
_LEFT = ' style="text-align: left"'


def model_html(report: ModelReport) -> str:
    """The report as an HTML fragment, its layers folded away."""
    page = model_page(report)
    layers = [[" ".join(cell) for cell in row] for row in layer_rows(report)]
    return page_html(report.title, page, _folded("layers", _grid(LAYERS, layers)) if layers else "")


def plan_html(plan: CachePlan) -> str:
    """A cache plan as an HTML fragment, its caches folded away."""
    return page_html("KV cache", cache_page(plan))


def summary_html(summary: Summary) -> str:
    """A summary as an HTML fragment."""
    return f"<pre>{escape(summary_table(summary).plain)}</pre>"


def fields_html(title: str, fields: Mapping[str, object]) -> str:
    """Named values as an HTML fragment; those that are not known are left out, long ones cut."""
    rows = [(name, _short(value)) for name, value in fields.items() if value is not None and value != ()]
    return f"<div><b>{escape(printable(title))}</b>{_grid((), rows)}</div>"


def _short(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text[:_LONGEST])


def page_html(title: str, page: Page, more: str = "") -> str:
    """A page's rows as a table, its tables folded away; ``more`` is HTML that follows."""
    rows = [block for block in page.blocks if isinstance(block, Row)]
    body = "".join(f"<tr><th{_LEFT}>{escape(row.label)}</th><td{_LEFT}>{escape(row.content)}</td></tr>" for row in rows)
    parts = [f"<b>{escape(printable(title))}</b><table>{body}</table>"]
    tables = [block for block in page.blocks if isinstance(block, Table)]
    parts += [_folded(table.title, _grid(table.header, table.rows)) for table in tables]
    return "<div>" + "".join(parts) + more + "</div>"


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def _grid(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th{_LEFT}>{escape(title)}</th>" for title in header)
    body = "".join("<tr>" + "".join(f"<td{_LEFT}>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{f'<tr>{head}</tr>' if head else ''}{body}</table>"
