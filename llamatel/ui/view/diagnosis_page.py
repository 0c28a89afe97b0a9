"""A diagnosis on a page of 80 columns, and as HTML."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from rich.text import Text

from llamatel.records import RecomputeCause
from llamatel.ui.diagnosis import LAST_S, Diagnosis, TimeUse
from llamatel.ui.drafting import Drafting
from llamatel.ui.request_speed import SHORT, RateLine
from llamatel.ui.view.glyphs import UNICODE, Glyphs
from llamatel.ui.view.html import page_html
from llamatel.ui.view.number_format import count, plural, rate, seconds
from llamatel.ui.view.text_page import Page, Row, printable, row_text, size, table_text

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color-scheme:light dark}"
    "table{border-collapse:collapse}th,td{padding:.15em .8em .15em 0;vertical-align:top}"
    "th{white-space:nowrap}summary{cursor:pointer}"
)
_PHASES = (
    ("queue", "queue_s"),
    ("prefill, new tokens", "prefill_s"),
    ("prefill, computed again", "recompute_s"),
    ("decode", "decode_s"),
    ("not in the log", "other_s"),
)


def diagnosis_text(diagnosis: Diagnosis, glyphs: Glyphs = UNICODE) -> Text:
    """The page for a terminal or a pipe, without a final newline."""
    text = Text(printable(title(diagnosis)), "bold")
    after_table = False
    for block in diagnosis_page(diagnosis, glyphs).blocks:
        if isinstance(block, Row):
            text.append("\n" * after_table).append_text(row_text(block))
        else:
            text.append_text(table_text(block))
        after_table = not isinstance(block, Row)
    return text


def diagnosis_html(diagnosis: Diagnosis) -> str:
    """The page as one HTML document that needs no network."""
    name = escape(printable(title(diagnosis)))
    body = page_html(title(diagnosis), diagnosis_page(diagnosis), open_tables=True)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name} · llamatel doctor</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style>'
        f"<h1>llamatel doctor</h1>{body}</html>\n"
    )


def title(diagnosis: Diagnosis) -> str:
    """What was diagnosed."""
    return " ".join(filter(None, (diagnosis.server or diagnosis.source, diagnosis.model)))


def diagnosis_page(diagnosis: Diagnosis, glyphs: Glyphs = UNICODE) -> Page:
    """The blocks of the page."""
    page = Page(glyphs, [])
    total = sum(diagnosis.outcomes.values())
    kinds = ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in sorted(diagnosis.outcomes.items()))
    page.row("observed", f"{printable(diagnosis.source)}, {seconds(diagnosis.seconds, glyphs)}")
    page.row("requests", f"{plural(total, 'request')}: {kinds}" if total else "none")
    if diagnosis.build:
        page.row("llama.cpp", printable(diagnosis.build))
    if diagnosis.time_use is not None and diagnosis.time_use.total_s:
        _time(page, diagnosis.time_use)
    _reuse(page, diagnosis)
    _speed(page, diagnosis)
    if total:
        page.row("decode limit", f"{diagnosis.decode_limit[0]}: {diagnosis.decode_limit[1]}")
    if total or diagnosis.concurrency_limit[0] != "unknown":
        limit, evidence = diagnosis.concurrency_limit
        page.row("concurrency", f"{limit.replace('_', ' ')}: {evidence}")
    if total or diagnosis.changes:
        _changes(page, diagnosis)
    for number, sentence in enumerate(diagnosis.undetermined):
        page.row("unknown" if number == 0 else "", printable(sentence))
    return page


def _time(page: Page, use: TimeUse) -> None:
    rows = []
    for name, attribute in _PHASES:
        value = float(getattr(use, attribute))
        if value:
            rows.append((name, seconds(value, page.glyphs), f"{value / use.total_s:.0%}"))
    page.table("where the time went", ("", "all requests", "share"), rows)


def _reuse(page: Page, diagnosis: Diagnosis) -> None:
    if diagnosis.prompt_tokens:
        share = (diagnosis.reused_tokens or 0) / diagnosis.prompt_tokens
        page.row("prompt cache", f"{share:.0%} of {diagnosis.prompt_tokens:,} prompt tokens were reused")
    if diagnosis.losses:
        rows = [
            (_cause(loss.cause), count(loss.requests), count(loss.tokens), seconds(loss.seconds, page.glyphs))
            for loss in diagnosis.losses
        ]
        page.table("prompt tokens computed again", ("cause", "requests", "tokens", "time"), rows)


def _cause(name: str) -> str:
    return name.replace("_", " ") + (", at most" if RecomputeCause(name).at_most else "")


def _speed(page: Page, diagnosis: Diagnosis) -> None:
    glyphs, speed = page.glyphs, diagnosis.speed
    if diagnosis.prefill_tokens_per_second is not None and not (speed.prefill or speed.prefill_short):
        page.row("prefill", f"{rate(diagnosis.prefill_tokens_per_second, glyphs)} tok/s (median)")
    by_phase = (("prefill", speed.prefill), (f"prefill <{SHORT}", speed.prefill_short), ("decode", speed.decode))
    phases = [(name, line) for name, lines in by_phase for line in lines]
    if phases:
        known = any(point.ceiling_share is not None for _, line in phases for point in line.points)
        rows = [row for name, line in phases for row in _line(name, line, glyphs, known=known)]
        header = ("phase", "busy slots", "context", "tok/s", *(("of the maximum",) if known else ()), "requests")
        page.table("speed of one request, by busy slots and tokens of context", (*header, "spread"), rows)
        if speed.prefill_short:
            page.row(f"prefill <{SHORT}", f"prompts with fewer than {SHORT} new tokens, whose rate is mostly overhead")
    single = {
        n: value for n, value in speed.decode_by_busy_slots.items() if n not in {x.busy_slots for x in speed.decode}
    }
    if single:
        parts = [f"{rate(value, glyphs)} with {plural(number, 'busy slot')}" for number, value in single.items()]
        page.row("decode", f"median tok/s, too few requests for a line: {', '.join(parts[:8])}")
    if diagnosis.drafting is not None:
        _drafting(page, diagnosis.drafting)


def _line(name: str, line: RateLine, glyphs: Glyphs, *, known: bool) -> Iterator[tuple[str, ...]]:
    """A row for each point; one for all contexts where they make no difference."""
    points = line.points if line.slope_s else line.points[-1:]
    for number, point in enumerate(points):
        context = f"{point.context:,}" if line.slope_s else f"{line.points[0].context:,}-{point.context:,}"
        share = glyphs.unknown if point.ceiling_share is None else f"{point.ceiling_share:.0%}"
        cells = (context, rate(point.tokens_per_second, glyphs), *((share,) if known else ()))
        first = (name, str(line.busy_slots), *cells, f"{line.requests:,}", f"{line.spread:.0%}")
        yield first if number == 0 else ("", "", *cells, "", "")


def _drafting(page: Page, found: Drafting) -> None:
    steps = "" if found.tokens_per_step is None else f", {found.tokens_per_step:.2f} tokens per step"
    page.row("drafting", f"{found.acceptance:.0%} of the draft tokens were accepted{steps}")
    if found.by_position:
        shares = ", ".join(f"{number}: {share:.0%}" for number, share in enumerate(found.by_position[:8], 1))
        page.row("", f"accepted by position in the draft: {shares}")
    if found.speedup is not None:
        verdict = "it pays" if found.speedup > 1 else "it does not pay"
        page.row("", f"{verdict}: {found.speedup:.2f} times the decode rate of requests without drafts")
    elif found.ceiling_share is not None and found.ceiling_share > 1:
        page.row("", f"it pays: {found.ceiling_share:.2f} times what the memory bandwidth allows without drafts")
    else:
        known = found.tokens_per_second
        with_drafts = "" if known is None else f", and compare with {rate(known, page.glyphs)} tok/s with them"
        page.row("", f"whether it pays: unknown; measure requests without drafts{with_drafts}")


def _changes(page: Page, diagnosis: Diagnosis) -> None:
    for number, remedy in enumerate(diagnosis.changes, 1):
        effect = []
        if remedy.at_most_s is not None:
            over = "last hour's" if diagnosis.seconds > LAST_S else "observed"
            effect.append(f"saves at most {seconds(remedy.at_most_s, page.glyphs)} of the {over} time")
        if remedy.cost_bytes:
            effect.append(f"costs {size(remedy.cost_bytes)} of KV cache")
        tail = f" ({'; '.join(effect)})" if effect else ""
        page.row(f"change {number}", f"{remedy.change}: {remedy.reason}{tail}")
    if not diagnosis.changes:
        page.row("change", "none found")
