"""A real browser: Chromium, from PATH or installed from Debian."""

from __future__ import annotations

import shutil
from pathlib import Path

from . import apt
from .missing import MissingPart

_NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium_program() -> Path:
    """Return the Chromium program. Raises MissingPart."""
    for _ in range(2):
        found = next((path for name in _NAMES if (path := shutil.which(name))), None)
        if found is not None:
            return Path(found)
        if not apt.install("chromium"):
            break
    raise MissingPart("chromium", "sudo apt-get install chromium")
