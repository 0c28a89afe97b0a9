"""One line a request."""

from __future__ import annotations

import time

from rich.text import Text

from llamatel.records import Completion, Outcome
from llamatel.ui.view.glyphs import OUTCOME_STYLES, STYLES, UNICODE, Glyphs
from llamatel.ui.view.number_format import count, rate, seconds
from llamatel.ui.view.phase_bar import phase_bar
from llamatel.ui.view.reuse_text import reuse_text
from llamatel.ui.view.text_page import printable

# time 8, outcome 12, took 7, in 5, (cached) 7, arrow 1, out 4, tok/s 5, and a space after each
_COLUMNS = 57
_BAR_AT_LEAST = 8
_BAR_AT_MOST = 48
_LONGEST_ERROR = 2000
_OUTCOME = max(len(outcome.value) for outcome in Outcome)


def _bar_cells(width: int) -> int:
    return min(max(width - _COLUMNS, _BAR_AT_LEAST), _BAR_AT_MOST)


def request_header(glyphs: Glyphs = UNICODE) -> Text:
    """The heading of the request lines, and the key to their bars."""
    header = Text(
        f"{'time':8} {'outcome':{_OUTCOME}} {'took':>7} {'in':>5} {'cached':7} {glyphs.arrow} {'out':>4} {'tok/s':>5} ",
        "bold",
    )
    for index, name in enumerate(("queue", "prefill", "decode")):
        header.append(" " if index else "")
        header.append(f"{getattr(glyphs, name)}{name}", STYLES[name])
    return header


def reuse_line(completion: Completion, width: int = 80, glyphs: Glyphs = UNICODE, *, cut: bool = True) -> Text | None:
    """A line below a request whose prompt was partly recomputed: how many tokens, how long, why."""
    if completion.recompute_cause is None:
        return None
    text = reuse_text(
        completion.prompt_reusable,
        completion.prompt_recomputed,
        completion.recompute_s,
        completion.recompute_cause,
        glyphs,
    )
    line = f"{'':9}prompt: {text}"
    if cut and len(line) > width:
        line = line[: max(width - 1, 0)] + glyphs.ellipsis
    return Text(line, "yellow", no_wrap=True)


def request_line(completion: Completion, width: int = 80, glyphs: Glyphs = UNICODE, *, cut: bool = True) -> Text:
    """One finished request, ``width`` columns at most; ``cut=False`` (for pipes) keeps long error texts whole.

    The time is the end of the request in local time. For a failed request the error's text replaces the token columns,
    which llama.cpp does not log then.
    """
    outcome = completion.outcome.value
    line = Text(no_wrap=True).append(time.strftime("%H:%M:%S ", time.localtime(completion.ended_at)), "dim")
    if completion.outcome is Outcome.OK and completion.truncated:
        # Its slot's context was full: the answer ends there, or the oldest tokens were dropped to continue.
        line.append(f"{'ok, shifted' if completion.context_shifts else 'ok, cut off':{_OUTCOME}}", "yellow")
    else:
        line.append(f"{outcome:{_OUTCOME}}", OUTCOME_STYLES[outcome])
    line.append(f" {seconds(completion.duration_s, glyphs):>7} ", "default")
    if completion.error is not None and completion.prompt_computed is None:
        room = max(width - line.cell_len, _BAR_AT_LEAST)
        text = printable(" ".join(completion.error.split()), _LONGEST_ERROR)
        if cut and len(text) > room:
            text = text[: room - 1] + glyphs.ellipsis
        return line.append(text, OUTCOME_STYLES[outcome])
    line.append(f"{count(completion.prompt_tokens, glyphs):>5} ", "default")
    cached = f"({count(completion.prompt_cached, glyphs)})" if completion.prompt_cached is not None else ""
    # Yellow: tokens that had been in the cache were computed again.
    line.append(f"{cached:7}", "dim" if completion.recompute_cause is None else "yellow")
    line.append(f" {glyphs.arrow} ", "dim")
    line.append(f"{count(completion.generated, glyphs, width=4):>4} ", "default")
    line.append(f"{rate(completion.tokens_per_second, glyphs):>5} ", "default")
    return line.append_text(phase_bar(completion, _bar_cells(width), glyphs))
