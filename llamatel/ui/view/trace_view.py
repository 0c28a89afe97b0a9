"""A trace as a waterfall: all its spans to scale, as text and as HTML."""

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
"""Most spans that are drawn."""
_NAME = 34
_TOOK = 8
COLOURS = {
    "queue": "#d6a100", "wait": "#d6a100", "prefill": "#1f9aa8", "decode": "#2e9e4f", "span": "#6b7a90",
    "failed": "#c8372d", "network": "#9a6fb0",
}  # fmt: skip
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
            _kind(span),
            _facts(span),
        )
        for span, depth in in_order(spans)[:_ROWS]
    ]


def _kind(span: KeptSpan) -> str:
    if span.failed:
        return "failed"
    name = span.name.partition(".")[0]
    return name if name in COLOURS else "span"


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
    lost = attributes.get("llamacpp.prompt.recomputed_tokens")
    cause = attributes.get("llamacpp.prompt.recompute_cause")
    if isinstance(cause, str):
        took = attributes.get("llamacpp.prompt.recompute_time")
        again = f"{lost:,} of {attributes.get('llamacpp.prompt.reusable_tokens', lost):,} cached " if lost else ""
        time = f" in {seconds(took)}" if isinstance(took, float) else ""
        parts.append(f"{again}computed again{time} ({printable(cause, 40)})")
    error = attributes.get("error.type")
    if span.failed and span.reason:
        parts.append(printable(span.reason, 300))
    elif isinstance(error, str):
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
        style = "red" if bar.kind == "failed" else STYLES.get(bar.kind, STYLES["span"])
        text.append(f"\n{name:{_NAME}}", "default").append(f" {seconds(bar.length, glyphs):>{_TOOK}} ")
        glyph = getattr(glyphs, bar.kind, glyphs.span)
        text.append(" " * left).append(glyph * length, style)
        if bar.facts:
            text.append(f"\n{'  ' * min(bar.depth, 8)}{bar.facts}", "dim")
    if (more := _left_out(spans, rows)) is not None:
        text.append(f"\n{more}", "dim")
    return text


def trace_html(spans: Sequence[KeptSpan], warnings: Sequence[str] = ()) -> str:
    """The same as an HTML fragment, below warnings: no script, no external resources, in the page's colours.

    Its styles are inline and of the few kinds that notebooks keep when they sanitize; without any it is a plain table.
    """
    rows = bars(spans)
    whole = total(rows) or 1.0
    lines = []
    for bar in rows:
        left = min(bar.start / whole * 100, 99.0)
        width = min(max(bar.length / whole * 100, 0.5), 100 - left)
        facts = f'<div style="{_FACTS}">{escape(bar.facts)}</div>' if bar.facts else ""
        lines.append(
            f'<tr><td style="{_CELL}padding-left:{min(bar.depth, 12) * 14 + 4}px;{_NAME_CELL}" '
            f'title="{escape(bar.name, quote=True)}">{escape(bar.name)}{facts}</td>'
            f'<td style="{_CELL}text-align:right;white-space:nowrap;width:70px">{seconds(bar.length)}</td>'
            f'<td style="{_CELL}width:45%;min-width:120px"><div style="height:11px;margin-left:{left:.2f}%;'
            f'width:{width:.2f}%;border-radius:2px;background-color:{COLOURS[bar.kind]}"></div></td></tr>'
        )
    about = f"trace {escape(spans[0].trace_id)}" if spans else "no trace yet"
    more = _left_out(spans, rows)
    return (
        f'<div style="font-family:system-ui,sans-serif;font-size:13px;max-width:1000px">{warnings_html(warnings)}'
        f'<div style="opacity:.75;padding:2px 4px">{about}</div>'
        f'<table style="{_TABLE}">{"".join(lines)}</table>{more or ""}</div>'
    )


def warnings_html(warnings: Sequence[str]) -> str:
    """Warnings as HTML."""
    style = f"border-left:4px solid {COLOURS['failed']};padding:4px 10px;margin:4px 0;background-color:#c8372d22"
    return "".join(f'<div style="{style}"><b>warning:</b> {escape(printable(text, 500))}</div>' for text in warnings)


# Notebooks lay tables out with fixed columns, cut what is longer, and align text to the right.
_TABLE = "border-collapse:collapse;width:100%;table-layout:auto;border:none;margin:0"
_CELL = "border:none;padding:2px 8px;text-align:left;vertical-align:top;background-color:transparent;"
_FACTS = "opacity:.7;font-size:11px;white-space:normal"
_NAME_CELL = "max-width:420px;overflow:hidden;text-overflow:ellipsis;white-space:nowrap"
