"""Many requests in a few lines."""

from __future__ import annotations

from rich.text import Text

from llamatel.records import Outcome
from llamatel.ui.request_statistics import Summary
from llamatel.ui.view.glyphs import OUTCOME_STYLES, UNICODE, Glyphs
from llamatel.ui.view.number_format import exact, plural, seconds


def summary_sentence(summary: Summary) -> str:
    """One line without colours: ``12 requests: 9 ok, 2 cancelled, 1 error``."""
    parts = [f"{number} {name}" for name, number in summary.outcomes.items() if number]
    return plural(summary.requests, "request") + (": " + ", ".join(parts) if parts else "")


def summary_table(summary: Summary, glyphs: Glyphs = UNICODE) -> Text:
    """Several lines of at most 80 columns, without a line break at the end."""
    text = Text(no_wrap=True)
    text.append(f"{plural(summary.requests, 'request')}", "bold")
    for name, number in summary.outcomes.items():
        text.append("  ")
        text.append(f"{number} {name}", OUTCOME_STYLES[name] if number else "dim")
    completed = summary.outcomes[Outcome.OK.value]
    text.append(f"\n{f'of the {completed} ok':28}{'p50':>9}{'p95':>9}{'p99':>9}", "bold")
    for label, distribution in (
        ("waited for a slot", summary.queue),
        ("time to first token", summary.time_to_first_token),
        ("time per output token", summary.time_per_output_token),
        ("end to end", summary.end_to_end),
    ):
        text.append(f"\n{label:28}")
        for value in (distribution.p50, distribution.p95, distribution.p99):
            text.append(f"{seconds(value, glyphs):>9}")
    text.append(
        f"\n{'tokens':28}{exact(summary.tokens_in, glyphs)} in "
        f"({exact(summary.tokens_cached, glyphs)} from the KV cache), "
        f"{exact(summary.tokens_out, glyphs)} out"
    )
    return text
