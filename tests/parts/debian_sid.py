"""Packages of a Debian suite (sid by default), unpacked but not installed, from this machine's apt mirror.

A private apt state (own sources, lists and cache, and an empty dpkg status, so that all dependencies count as missing)
leaves the machine's unchanged. sid changes daily: tests report the version found.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from .cache import cache_folder, locked, say

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def _mirror() -> str | None:
    """Return the base URL of the machine's own Debian mirror."""
    folder = Path("/etc/apt")
    files = [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*"))]
    for file in files:
        text = file.read_text(errors="replace") if file.is_file() else ""
        for url in re.findall(r"(?m)^(?:URIs:|deb(?: \[[^\]]*\])?)\s+(\S+?)/?(?:\s|$)", text):
            if url.endswith("/debian"):
                return str(url)
    return None


def _options(state: Path) -> Iterator[str]:
    for name, value in (
        ("Dir::Etc::SourceList", state / "sources.list"),
        ("Dir::Etc::SourceParts", "/dev/null"),
        ("Dir::State::Lists", state / "lists"),
        ("Dir::State::status", state / "status"),
        ("Dir::Cache", state / "cache"),
        ("APT::Install-Recommends", "0"),
        ("APT::Sandbox::User", "root"),
    ):
        yield from ("-o", f"{name}={value}")


def _apt_get(state: Path, *arguments: str, folder: Path | None = None) -> str | None:
    """Return the output of ``apt-get`` with the private state; None if it failed."""
    argv = ["apt-get", "-q", *_options(state), *arguments]
    done = subprocess.run(argv, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None


def unpack(packages: tuple[str, ...], folder: Path, *, closure: bool = False, suite: str = "sid") -> bool:
    """Download and unpack packages, with all dependencies if ``closure``; return whether that succeeded."""
    mirror = _mirror()
    if mirror is None or shutil.which("apt-get") is None or not _KEYRING.exists():
        return False
    state = cache_folder() / f"apt-{suite}"
    with locked(cache_folder() / f"apt-{suite}.lock", f"the lists of Debian {suite}"):
        for part in ("lists/partial", "cache/archives/partial"):
            (state / part).mkdir(parents=True, exist_ok=True)
        (state / "status").write_text("")
        (state / "sources.list").write_text(f"deb [signed-by={_KEYRING}] {mirror} {suite} main\n")
        say(f"getting {', '.join(packages)} from Debian {suite}")
        if _apt_get(state, "update") is None:
            return False
        names = list(packages)
        if closure:
            planned = _apt_get(state, "install", "--simulate", *packages)
            if planned is None:
                return False
            names = re.findall(r"(?m)^Inst (\S+)", planned)
        if _apt_get(state, "download", *names, folder=folder) is None:
            return False
    archives = list(folder.glob("*.deb"))
    for archive in archives:
        if subprocess.run(["dpkg-deb", "-x", archive, folder], check=False).returncode:
            return False
        archive.unlink()
    return bool(archives)
