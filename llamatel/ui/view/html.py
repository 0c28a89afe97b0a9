"""Models, plans, summaries and results as HTML for notebooks, with the same content as in a terminal.

Every text is escaped: names are untrusted.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import singledispatch
from html import escape

from llamatel.gguf.header import GGUFHeader
from llamatel.llama.client.result import Result
from llamatel.plan.cache_plan import CachePlan
from llamatel.plan.model_report import ModelReport, report_of
from llamatel.plan.model_shape import ModelShape
from llamatel.ui.request_statistics import Summary
from llamatel.ui.view.model_page import LAYERS, layer_rows, model_page
from llamatel.ui.view.plan_page import cache_page
from llamatel.ui.view.summary_text import summary_table
from llamatel.ui.view.text_page import Page, Row, Table, printable

_LONGEST = 2000
_LEFT = ' style="text-align: left"'


@singledispatch
def html_of(value: object) -> str:
    """A value as an HTML fragment for a notebook."""
    raise TypeError(f"{type(value).__name__} has no HTML representation")


@html_of.register
def model_html(report: ModelReport) -> str:
    """The report as an HTML fragment, its layers folded away."""
    page = model_page(report)
    layers = [[" ".join(cell) for cell in row] for row in layer_rows(report)]
    return page_html(report.title, page, _folded("layers", _grid(LAYERS, layers)) if layers else "")


@html_of.register
def _header_html(header: GGUFHeader) -> str:
    return model_html(report_of(header))


@html_of.register
def _shape_html(shape: ModelShape) -> str:
    return model_html(ModelReport(shape.name or shape.architecture, shape))


@html_of.register
def _plan_html(plan: CachePlan) -> str:
    """A cache plan as an HTML fragment, its caches folded away."""
    return page_html("KV cache", cache_page(plan))


@html_of.register
def _summary_html(summary: Summary) -> str:
    return f"<pre>{escape(summary_table(summary).plain)}</pre>"


@html_of.register
def _result_html(result: Result) -> str:
    """A response as an HTML fragment; long values are cut."""
    rows = [(printable(name), _short(value)) for name, value in result.raw.items() if value is not None]
    return f"<div><b>{escape(printable(type(result).__name__))}</b>{_grid((), rows)}</div>"


def _short(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text[:_LONGEST])


def page_html(title: str, page: Page, more: str = "", *, open_tables: bool = False) -> str:
    """A page's rows as a table, then its tables, folded unless ``open_tables``; ``more`` is HTML that follows."""
    rows = [block for block in page.blocks if isinstance(block, Row)]
    body = "".join(f"<tr><th{_LEFT}>{escape(row.label)}</th><td{_LEFT}>{escape(row.content)}</td></tr>" for row in rows)
    parts = [f"<b>{escape(printable(title))}</b><table>{body}</table>"]
    tables = [block for block in page.blocks if isinstance(block, Table)]
    parts += [_folded(table.title, _grid(table.header, table.rows), is_open=open_tables) for table in tables]
    return "<div>" + "".join(parts) + more + "</div>"


def _folded(title: str, content: str, *, is_open: bool = False) -> str:
    return f"<details{' open' if is_open else ''}><summary>{escape(title)}</summary>{content}</details>"


def _grid(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th{_LEFT}>{escape(title)}</th>" for title in header)
    body = "".join("<tr>" + "".join(f"<td{_LEFT}>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{f'<tr>{head}</tr>' if head else ''}{body}</table>"
