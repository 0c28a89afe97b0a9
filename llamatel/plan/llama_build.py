"""llama.cpp's builds: names and order."""

from __future__ import annotations

import re
from typing import NamedTuple

_RELEASES = {
    "0.5.0": 11433, "0.2.14": 8352, "0.2.13": 8352, "0.2.12": 8156, "0.2.11": 7964, "0.2.10": 7827, "0.2.9": 7710,
    "0.2.8": 7551, "0.2.7": 7376, "0.2.6": 7079,
}  # fmt: skip
"""Versions without a build number: llama.cpp 0.5.0-dev is older than b11434; xllamacpp's by its ``BUILD_INFO``."""
_LEAST = 1000
"""Smaller numbers come from a checkout without llama.cpp's history."""


class LlamaBuild(NamedTuple):
    """One build of llama.cpp."""

    text: str
    """As reported: ``b11549-0c1e570``, ``2026.10.11549``, ``0.5.0-dev``."""
    number: int | None = None
    """The build number, by which builds are ordered; None if it has none."""

    def __str__(self) -> str:
        return self.text if self.number is None or f"b{self.number}" in self.text else f"{self.text} (b{self.number})"


def parse_build(text: str | None) -> LlamaBuild | None:
    """The build that ``/props``, ``--version`` or a wheel's version names; None for None."""
    if text is None:
        return None
    numbered = re.match(r"b(\d{1,7})\b", text) or re.fullmatch(r"20\d\d\.\d{1,2}\.(\d{4,7})(?:\.\d+)?", text)
    if numbered is not None and int(numbered[1]) >= _LEAST:
        return LlamaBuild(text, int(numbered[1]))
    version = re.match(r"\d+\.\d+\.\d+", text)
    return LlamaBuild(text, _RELEASES.get(version[0]) if version is not None else None)
