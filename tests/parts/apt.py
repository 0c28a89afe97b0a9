"""Debian packages, where this user may install or refresh them without being asked for a password."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from .cache import say


def _as_root() -> list[str] | None:
    """What to put before a command so that root runs it; None where that would need a password."""
    if os.geteuid() == 0:
        return []
    sudo = ["sudo", "-n"]
    if shutil.which("sudo") and subprocess.run([*sudo, "true"], capture_output=True, check=False).returncode == 0:
        return sudo
    return None


def _apt(words: list[str], before: list[str] | None, folder: Path | None = None) -> bool:
    """Whether ``apt-get`` did it."""
    if before is None or shutil.which("apt-get") is None:
        return False
    argv = [*before, "apt-get", "-q", *words]
    return subprocess.run(argv, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0


def install(package: str) -> bool:
    """Install a package. Returns whether it is there now."""
    before = _as_root()
    if before is None:
        return False
    say(f"installing Debian's {package}")
    words = ["install", "-y", "--no-install-recommends", package]
    return _apt(words, before) or (_apt(["update"], before) and _apt(words, before))


def unpack(package: str, folder: Path) -> bool:
    """Download a package and unpack it into ``folder``, without installing it. Returns whether that worked."""
    words = ["download", package]
    if not (_apt(words, [], folder) or (_apt(["update"], _as_root()) and _apt(words, [], folder))):
        return False
    [archive] = folder.glob("*.deb")
    return subprocess.run(["dpkg-deb", "-x", archive, folder], check=False).returncode == 0
