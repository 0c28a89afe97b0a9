"""Valgrind, which counts instructions where perf may not: from PATH or installed from Debian."""

from __future__ import annotations

import shutil
from pathlib import Path

from . import apt
from .missing import MissingPart


def valgrind_program() -> Path:
    """Return the valgrind program. Raises MissingPart."""
    if shutil.which("valgrind") is None:
        apt.install("valgrind")
    found = shutil.which("valgrind")
    if found is None:
        raise MissingPart("valgrind", "sudo apt-get install valgrind")
    return Path(found)
