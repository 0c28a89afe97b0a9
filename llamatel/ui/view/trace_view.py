"""A trace as a waterfall: all its spans at their true places, as text and as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from rich.text import Text

from llamatel.telemetry.kept_spans import KeptSpan, in_order
from llamatel.ui.view.glyphs import STYLES, UNICODE, Glyphs
from llamatel.ui.view.number_format import plural, rate, seconds
from llamatel.ui.view.text_page import printable

_ROWS = 200
"""Spans that are drawn at most."""
_NAME = 34
_TOOK = 8
COLOURS = {"queue": "#d6a100", "prefill": "#1f9aa8", "decode": "#2e9e4f", "span": "#6b7a90", "failed": "#c8372d"}
"""Of bars, in HTML and pictures; readable on white and on black."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One span's row. ``start`` and ``length`` are seconds from the trace's start."""

    name: str
    depth: int
    start: float
    length: float
    kind: str
    """A key of ``COLOURS``."""
    facts: str


def bars(spans: Sequence[KeptSpan]) -> list[Bar]:
    """The rows of a trace, parents before their children."""
    if not spans:
        return []
    begin = min(span.started_at for span in spans)
    return [
        Bar(
            printable(span.name, 80),
            depth,
            span.started_at - begin,
            max(span.ended_at - span.started_at, 0.0),
            "failed" if span.failed else span.name if span.name in COLOURS else "span",
            _facts(span),
        )
        for span, depth in in_order(spans)[:_ROWS]
    ]


def _left_out(spans: Sequence[KeptSpan], rows: Sequence[Bar]) -> str | None:
    """The line below the rows of a trace that has more spans."""
    more = len(spans) - len(rows)
    return f"and {plural(more, 'more span')}" if more else None


def _facts(span: KeptSpan) -> str:
    attributes = span.attributes
    parts = []
    for name, words in (
        ("gen_ai.usage.input_tokens", "in"),
        ("gen_ai.usage.cache_read.input_tokens", "cached"),
        ("gen_ai.usage.output_tokens", "out"),
    ):
        value = attributes.get(name)
        if isinstance(value, int):
            parts.append(f"{value:,} {words}")
    speed = attributes.get("llamacpp.decode.tokens_per_second")
    if isinstance(speed, float):
        parts.append(f"{rate(speed)} tok/s")
    error = attributes.get("error.type")
    if isinstance(error, str):
        parts.append(printable(error, 60))
    elif attributes.get("llamacpp.outcome") == "cancelled":
        parts.append("cancelled")
    return ", ".join(parts)


def total(rows: Sequence[Bar]) -> float:
    """Seconds from the first start to the last end."""
    return max((bar.start + bar.length for bar in rows), default=0.0)


def trace_text(spans: Sequence[KeptSpan], width: int = 80, glyphs: Glyphs = UNICODE) -> Text:
    """A line for each span, and its tokens below it; no line break at the end."""
    rows = bars(spans)
    cells = max(width - _NAME - _TOOK - 3, 10)
    whole = total(rows)
    scale = cells / whole if whole > 0 else 0.0
    text = Text(no_wrap=True).append("trace ", "dim").append(spans[0].trace_id if spans else "none")
    for bar in rows:
        name = f"{'  ' * min(bar.depth, 8)}{bar.name}"
        if len(name) > _NAME:
            name = name[: _NAME - 1] + glyphs.ellipsis
        left = min(round(bar.start * scale), cells - 1)
        length = min(max(round((bar.start + bar.length) * scale) - left, 1), cells - left)
        style = "red" if bar.kind == "failed" else STYLES[bar.kind]
        text.append(f"\n{name:{_NAME}}", "default").append(f" {seconds(bar.length, glyphs):>{_TOOK}} ")
        glyph = glyphs.span if bar.kind == "failed" else getattr(glyphs, bar.kind)
        text.append(" " * left).append(glyph * length, style)
        if bar.facts:
            text.append(f"\n{'  ' * min(bar.depth, 8)}{bar.facts}", "dim")
    if (more := _left_out(spans, rows)) is not None:
        text.append(f"\n{more}", "dim")
    return text


def trace_html(spans: Sequence[KeptSpan]) -> str:
    """The same as an HTML fragment: no script, nothing from elsewhere; it takes the colours of the page around it."""
    rows = bars(spans)
    whole = total(rows) or 1.0
    lines = []
    for bar in rows:
        left, width = bar.start / whole * 100, max(bar.length / whole * 100, 0.3)
        lines.append(
            f'<tr><td style="{_CELL}padding-left:{bar.depth * 14 + 4}px;white-space:nowrap">{escape(bar.name)}</td>'
            f'<td style="{_CELL}text-align:right;white-space:nowrap">{seconds(bar.length)}</td>'
            f'<td style="{_CELL}width:55%"><div style="position:relative;height:12px">'
            f'<div style="position:absolute;left:{min(left, 99.7):.2f}%;width:{min(width, 100 - min(left, 99.7)):.2f}%;'
            f'height:12px;border-radius:2px;background:{COLOURS[bar.kind]}"></div></div></td>'
            f'<td style="{_CELL}white-space:nowrap;opacity:.75">{escape(bar.facts)}</td></tr>'
        )
    about = f"trace {escape(spans[0].trace_id)}" if spans else "no trace yet"
    more = _left_out(spans, rows)
    return (
        f'<div style="font:13px system-ui,sans-serif"><div style="opacity:.75;padding:2px 4px">{about}</div>'
        f'<table style="border-collapse:collapse;width:100%">{"".join(lines)}</table>{more or ""}</div>'
    )


_CELL = "border:none;padding:2px 8px;text-align:left;"
