"""The error for a part that is not available."""

from __future__ import annotations

import os


class MissingPart(RuntimeError):
    """A real part needed by tests is not available; ``mend`` is the command that gets it."""

    def __init__(self, part: str, mend: str) -> None:
        super().__init__(f"{part} is missing: {mend}")
        self.part = part
        self.mend = mend


def in_ci() -> bool:
    """Whether this runs in CI, where a missing part is an error and never a skip."""
    return os.environ.get("CI", "").lower() in ("1", "true", "yes")
