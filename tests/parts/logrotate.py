"""Debian's logrotate, unpacked, not installed."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

from . import apt
from .cache import cached
from .missing import MissingPart


def logrotate_program() -> Path:
    """Return Debian's logrotate, next to its library. Raises MissingPart."""

    def get(folder: Path) -> None:
        for package in ("logrotate", "libpopt0"):
            work = folder / "work"
            work.mkdir()
            if not apt.unpack(package, work):
                raise MissingPart(package, f"sudo apt-get install {package}")
            for found in (*work.glob("usr/sbin/logrotate"), *work.glob("**/libpopt.so.0")):
                shutil.copy(found, folder)
            shutil.rmtree(work)

    return cached(f"logrotate-debian-{platform.machine()}", get) / "logrotate"


def rotate(rules: Path, state: Path) -> None:
    """Rotate at once by a file of rules. Raises CalledProcessError, or MissingPart."""
    program = logrotate_program()
    environment = {**os.environ, "LD_LIBRARY_PATH": str(program.parent)}
    subprocess.run([program, "--force", "--state", state, rules], check=True, capture_output=True, env=environment)
