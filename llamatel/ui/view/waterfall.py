"""One trace as a waterfall: the request's span and its children, to scale."""

from __future__ import annotations

import textwrap

from rich.text import Text

from llamatel.records import Completion
from llamatel.ui.view.glyphs import OUTCOME_STYLES, STYLES, UNICODE, Glyphs
from llamatel.ui.view.number_format import exact, plural, rate, seconds
from llamatel.ui.view.reuse_text import reuse_text
from llamatel.ui.view.text_page import printable

_NAME = 16
_TOOK = 8
_LONGEST_ERROR = 2000


def _spans(completion: Completion) -> list[tuple[str, float, float]]:
    """Children as (name, start, end) in seconds since arrival; unknown ones are left out."""
    queue = completion.queue_s or 0.0
    spans = []
    if completion.queue_s is not None:
        spans.append(("queue", 0.0, queue))
    if completion.prefill_s is not None:
        spans.append(("prefill", queue, queue + completion.prefill_s))
    if completion.decode_s is not None and completion.first_token_at is not None:
        first = completion.first_token_at - completion.arrived_at
        spans.append(("decode", first, first + completion.decode_s))
    return spans


def _facts(completion: Completion, glyphs: Glyphs) -> list[str]:
    facts = []
    if completion.prompt_tokens is not None:
        cached = exact(completion.prompt_cached, glyphs)
        facts.append(f"{exact(completion.prompt_tokens, glyphs)} tokens in ({cached} cached)")
    if completion.generated is not None:
        facts.append(f"{exact(completion.generated, glyphs)} out")
    if completion.tokens_per_second is not None:
        facts.append(f"{rate(completion.tokens_per_second, glyphs)} tok/s")
    if completion.time_to_first_token_s is not None:
        facts.append(f"first token after {seconds(completion.time_to_first_token_s, glyphs)}")
    if completion.context_shifts:
        facts.append(plural(completion.context_shifts, "context shift"))
    return facts


def waterfall(
    completion: Completion, width: int = 80, glyphs: Glyphs = UNICODE, *, trace_id: str | None = None
) -> Text:
    """Several lines, without a line break at the end. Bars start in one column and are to scale."""
    total = completion.duration_s
    cells = max(width - 2 - _NAME - _TOOK - 2, 10)
    text = Text(no_wrap=True)
    if trace_id is not None:
        text.append("trace ", "dim").append(trace_id).append("  ")
    if completion.slot is not None:
        text.append(f"slot {completion.slot}, task {completion.task}  ", "dim")
    text.append(completion.outcome.value, OUTCOME_STYLES[completion.outcome.value])

    def row(name: str, label: str, start: float, end: float) -> None:
        scale = cells / total if total > 0 else 0.0
        left = min(round(start * scale), cells - 1)
        length = min(max(round(end * scale) - left, 1 if end > start else 0), cells - left)
        text.append(f"\n{label:{_NAME}.{_NAME}}", STYLES["span"] if name == "span" else "default")
        text.append(f" {seconds(end - start, glyphs):>{_TOOK}}")
        if length:
            text.append(" " * (left + 1))
            text.append(getattr(glyphs, name) * length, STYLES[name])

    def wrapped(content: str, style: str) -> None:
        for line in textwrap.wrap(content, width):
            text.append(f"\n{line}", style)

    row("span", printable(completion.server.model or "request"), 0.0, total)
    for name, start, end in _spans(completion):
        row(name, f"  {name}", start, end)

    facts = _facts(completion, glyphs)
    if facts:
        wrapped(", ".join(facts), "dim")
    reuse = reuse_text(
        completion.prompt_reusable,
        completion.prompt_recomputed,
        completion.recompute_s,
        completion.recompute_cause,
        glyphs,
    )
    if reuse is not None:
        wrapped(f"prompt: {reuse}", "yellow" if completion.recompute_cause is not None else "dim")
    if completion.error is not None:
        wrapped(printable(completion.error, _LONGEST_ERROR), OUTCOME_STYLES[completion.outcome.value])
    return text
