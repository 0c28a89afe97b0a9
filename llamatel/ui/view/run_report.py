"""A run on one page: requests, percentiles, KV cache over time, tokens a second, the slowest traces. One HTML file.

It takes the document of ``llamatel.ui.live`` and draws it; no script, no network, nothing of prompts or answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from llamatel.records import RecomputeCause
from llamatel.telemetry.kept_spans import KeptSpan
from llamatel.ui.view.number_format import exact, plural, seconds
from llamatel.ui.view.reuse_text import CAUSES, reuse_text
from llamatel.ui.view.svg_charts import dots, stacked_areas
from llamatel.ui.view.text_page import printable, size
from llamatel.ui.view.trace_view import COLOURS, trace_html, warnings_html

SLOWEST = 5
Spans = Callable[[str], Sequence[KeptSpan]]

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2530; --paper: #fff }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaee; --paper: #14181d } }
body { color: var(--ink); background: var(--paper); margin: 0 auto; max-width: 860px; padding: 24px }
"""
# In a notebook these are next to its own styles: each rule is for the report alone, and colours are those of the page.
_SCOPED = """
.llamatel { font: 14px/1.45 system-ui, sans-serif; max-width: 860px }
.llamatel h1 { font-size: 22px; margin: 0 } .llamatel h2 { font-size: 16px; margin: 28px 0 8px }
.llamatel p, .llamatel figcaption { opacity: .75; margin: 4px 0 12px }
.llamatel .cards { display: flex; flex-wrap: wrap; gap: 10px; margin: 16px 0 }
.llamatel .card { background: #8881; border-radius: 8px; padding: 10px 16px; min-width: 90px }
.llamatel .card b { display: block; font-size: 21px } .llamatel .card span { opacity: .75 }
.llamatel table.lines { border-collapse: collapse; table-layout: auto }
.llamatel table.lines td, .llamatel table.lines th { padding: 4px 14px 4px 0; text-align: right; font-weight: normal }
.llamatel table.lines tr > :first-child { text-align: left }
.llamatel table.lines tr { border-top: 1px solid #8884; background: none }
.llamatel figure { margin: 0 } .llamatel svg { width: 100%; height: auto }
.llamatel svg text { font: 11px system-ui; fill: currentColor; opacity: .75 }
.llamatel .key { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin: 0 5px 0 12px }
.llamatel .trace { border-top: 1px solid #8884; padding: 8px 0; overflow-x: auto }
"""


def report_html(document: Mapping[str, Any], histories: Sequence[Mapping[str, Any]], spans: Spans, title: str) -> str:
    """The page. ``histories``: the document once for each server, with that one in focus. ``spans``: of a trace."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(printable(title))}</title><style>{_STYLE}</style></head>"
        f"<body>{report_fragment(document, histories, spans, title)}</body></html>"
    )


def report_fragment(
    document: Mapping[str, Any], histories: Sequence[Mapping[str, Any]], spans: Spans, title: str
) -> str:
    """The same for a notebook cell. In an untrusted notebook, which drops styles and pictures, the text remains."""
    requests = document["requests"]
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(document["taken_at"]))
    about = f"llamatel {document['about'].get('version') or ''}, {when}; {_servers(document['servers'])}"
    body = [
        f"<h1>{escape(printable(title))}</h1><p>{escape(about)}</p>",
        warnings_html(list(dict.fromkeys(str(alarm["text"]) for alarm in document["alarms"]))),
        _cards(document["summary_of_all"]),
        "<h2>Latency</h2>" + _percentiles(document["summary_of_all"]),
        *(_kv_cache(history) for history in histories),
        _reuse(requests),
        _speed(requests),
        _slowest(requests, spans),
    ]
    return f'<style>{_SCOPED}</style><div class="llamatel">{"".join(body)}</div>'


def _servers(servers: Sequence[Mapping[str, Any]]) -> str:
    return "; ".join(printable(str(server["key"])) for server in servers) or "no server"


def _cards(summary: Mapping[str, Any]) -> str:
    requests, tokens = summary["requests"], summary["tokens"]
    cards = [(exact(requests["total"]), "requests")]
    outcomes = [(name, number) for name, number in requests.items() if name != "total" and number]
    cards += [(exact(number), name.replace("_", " ")) for name, number in outcomes]
    cards += [
        (exact(tokens["input"]), "tokens in"),
        (exact(tokens["input_cached"]), "of them cached"),
        (exact(tokens["output"]), "tokens out"),
    ]
    inside = "".join(f'<div class="card"><b>{value}</b> <span>{escape(label)}</span></div>' for value, label in cards)
    return f'<div class="cards">{inside}</div>'


def _percentiles(summary: Mapping[str, Any]) -> str:
    rows = []
    for label, key in (
        ("waited for a slot", "queue_s"),
        ("time to first token", "time_to_first_token_s"),
        ("time per output token", "time_per_output_token_s"),
        ("end to end", "end_to_end_s"),
    ):
        found = summary[key]
        cells = "".join(f"<td>{seconds(found[name])}</td>" for name in ("p50", "p95", "p99"))
        rows.append(f"<tr><td>{label}</td><td>{found['n']}</td>{cells}</tr>")
    head = "<tr><th></th><th>requests</th><th>p50</th><th>p95</th><th>p99</th></tr>"
    return f'<table class="lines">{head}{"".join(rows)}</table>'


def _kv_cache(document: Mapping[str, Any]) -> str:
    """Tokens over time; nothing for a server whose KV cache was not observed."""
    history = document["history"]
    looks = list(zip(history["at"], history["active"], history["cached"], strict=True))
    known = [active + cached for _, active, cached in looks if active is not None and cached is not None]
    if len(known) < 2:
        return ""
    server = next(each for each in document["servers"] if each["key"] == document["focus"])
    cache = server["kv_cache"] or {}
    capacity = cache.get("capacity")
    chart = stacked_areas(
        "tokens in the KV cache",
        [
            (COLOURS["decode"], [(at, active) for at, active, _ in looks]),
            (COLOURS["span"], [(at, cached) for at, _, cached in looks]),
        ],
        None if capacity is None else float(capacity),
    )
    words = [
        f"tokens in the KV cache, {max(known):,} at most",
        _key("decode", "of running requests"),
        _key("span", "kept for the next one"),
    ]
    if capacity is not None:
        words.append(f"; dashed: capacity, {capacity:,} tokens")
    planned = sum((cache.get("planned_bytes") or {}).values())
    if planned:
        words.append(f" = {size(planned)}, computed from the model's file")
    key = escape(printable(str(document["focus"])))
    return f"<h2>KV cache of {key}</h2><figure>{chart}<figcaption>{''.join(words)}</figcaption></figure>"


def _key(colour: str, words: str) -> str:
    return f'<span class="key" style="background:{COLOURS[colour]}"></span>{words}'


def _reuse(requests: Sequence[Mapping[str, Any]]) -> str:
    """Tokens that were in the cache, and those computed again by cause; nothing where that is not known."""
    known = [one for one in requests if one["prompt_reusable"] is not None]
    if not known:
        return ""
    reusable = sum(one["prompt_reusable"] for one in known)
    lost = sum(one["prompt_recomputed"] or 0 for one in known)
    words = f"Of the last {plural(len(known), 'request')}: {exact(reusable)} prompt tokens were in the slot's cache, "
    words += f"{exact(reusable - lost)} of them were reused, {exact(lost)} computed again."
    rows = []
    for cause in dict.fromkeys(one["recompute_cause"] for one in known if one["recompute_cause"]):
        found = [one for one in known if one["recompute_cause"] == cause]
        tokens = exact(sum(one["prompt_recomputed"] or 0 for one in found))
        took = seconds(sum(one["recompute_s"] or 0.0 for one in found))
        cells = f"<td>{len(found)}</td><td>{tokens}</td><td>{took}</td>"
        rows.append(f"<tr><td>{escape(CAUSES[RecomputeCause(cause)])}</td>{cells}</tr>")
    head = "<tr><th>computed again because</th><th>requests</th><th>tokens</th><th>prefill</th></tr>"
    table = f'<table class="lines">{head}{"".join(rows)}</table>' if rows else ""
    return f"<h2>Prompt cache</h2><p>{words}</p>{table}"


def _speed(requests: Sequence[Mapping[str, Any]]) -> str:
    points = [(one["ended_at"], one["tokens_per_second"]) for one in requests if one["tokens_per_second"] is not None]
    if not points:
        return ""
    chart = dots("tokens a second", points, COLOURS["decode"])
    words = f"tokens that each of the last {plural(len(points), 'request')} generated a second, by llama.cpp's figures"
    return f"<h2>Decoding speed</h2><figure>{chart}<figcaption>{words}</figcaption></figure>"


def slowest(requests: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The slowest, longest first."""
    return sorted(requests, key=lambda one: one["ended_at"] - one["arrived_at"], reverse=True)[:SLOWEST]


def _slowest(requests: Sequence[Mapping[str, Any]], spans: Spans) -> str:
    parts = []
    drawn: set[str] = set()
    for one in slowest(requests):
        trace_id = one["trace_id"]
        trace = spans(trace_id) if trace_id else ()
        about = f"{seconds(one['ended_at'] - one['arrived_at'])}, {one['outcome']}, {printable(str(one['server']))}"
        tokens = f"{exact(one['prompt_tokens'])} tokens in, {exact(one['generated'])} out"
        reuse = reuse_text(one["prompt_reusable"], one["prompt_recomputed"], one["recompute_s"], one["recompute_cause"])
        tokens += f"; {escape(reuse)}" if reuse and one["recompute_cause"] else ""
        if not trace:
            shown = f"<p>trace {escape(str(trace_id or 'not kept'))}</p>"
        elif trace_id in drawn:  # those of one workflow are often the slowest together
            shown = f"<p>in trace {escape(trace_id)}, above</p>"
        else:
            drawn.add(trace_id)
            shown = trace_html(trace)
        parts.append(f'<div class="trace"><b>{escape(about)}</b> <span>{tokens}</span>{shown}</div>')
    return f"<h2>Slowest requests</h2>{''.join(parts) or '<p>none</p>'}"
