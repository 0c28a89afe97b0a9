"""Debian packages, if this user may install or refresh them without a password."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from .cache import say


def _as_root() -> list[str] | None:
    """Return the prefix that runs a command as root; None if that needs a password."""
    if os.geteuid() == 0:
        return []
    sudo = ["sudo", "-n"]
    if shutil.which("sudo") and subprocess.run([*sudo, "true"], capture_output=True, check=False).returncode == 0:
        return sudo
    return None


def _apt(arguments: list[str], prefix: list[str] | None, folder: Path | None = None) -> bool:
    """Run ``apt-get``; return whether it succeeded."""
    if prefix is None or shutil.which("apt-get") is None:
        return False
    argv = [*prefix, "apt-get", "-q", *arguments]
    return subprocess.run(argv, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0


def install(package: str) -> bool:
    """Install a package; return whether it is installed now."""
    prefix = _as_root()
    if prefix is None:
        return False
    say(f"installing Debian's {package}")
    arguments = ["install", "-y", "--no-install-recommends", package]
    return _apt(arguments, prefix) or (_apt(["update"], prefix) and _apt(arguments, prefix))


def unpack(package: str, folder: Path) -> bool:
    """Download a package and unpack it into ``folder`` without installing it; return whether that succeeded."""
    arguments = ["download", package]
    if not (_apt(arguments, [], folder) or (_apt(["update"], _as_root()) and _apt(arguments, [], folder))):
        return False
    [archive] = folder.glob("*.deb")
    return subprocess.run(["dpkg-deb", "-x", archive, folder], check=False).returncode == 0
