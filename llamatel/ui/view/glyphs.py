"""The characters and colours of bars, for terminals and pipes with and without Unicode."""

from __future__ import annotations

import codecs
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Glyphs:
    """The characters of drawings; each is one column wide."""

    queue: str
    prefill: str
    decode: str
    unattributed: str
    """Time that the log does not divide into phases."""
    span: str
    unknown: str
    arrow: str
    ellipsis: str


UNICODE = Glyphs(
    queue="·",
    prefill="▒",
    decode="█",
    unattributed="─",
    span="━",
    unknown="\N{EN DASH}",
    arrow="→",
    ellipsis="…",
)
ASCII = Glyphs(queue=".", prefill="=", decode="#", unattributed="~", span="-", unknown="-", arrow=">", ellipsis="~")

STYLES = {"queue": "yellow", "prefill": "cyan", "decode": "green", "unattributed": "dim", "span": "bold"}
OUTCOME_STYLES = {"ok": "green", "cancelled": "yellow", "error": "red", "context_full": "red"}


def glyphs_for(encoding: str | None) -> Glyphs:
    """Unicode if the output's encoding supports it, else ASCII."""
    try:
        name = codecs.lookup(encoding or "ascii").name
    except LookupError:
        return ASCII
    return UNICODE if name.startswith("utf") else ASCII
