"""The newest llama-server that Debian has: that of its unstable suite (sid), unpacked into the cache, not installed.

A canary for changes of llama.cpp: whatever version comes is used and reported. The packages come from the mirror that
this machine's apt sources name, through a private apt state with an empty list of installed packages, so that they come
with all that they need, the C library included; the programs are run through that library's own loader.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from datetime import datetime, timezone
from pathlib import Path

from .cache import cached, say
from .missing import MissingPart

PACKAGES = ("llama.cpp-tools", "llama.cpp-tools-extra", "libggml0-backend-rpc")
_SOURCES = Path("/etc/apt")


def _mirror() -> str:
    """The mirror of the running Debian release. Raises MissingPart."""
    release = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    for path in sorted((_SOURCES / "sources.list.d").glob("*.sources")):
        for stanza in re.split(r"\n\s*\n", path.read_text()):
            fields = dict(re.findall(r"^([A-Za-z-]+):[ \t]*(.*)$", stanza, re.MULTILINE))
            if release in fields.get("Suites", "").split():
                return str(fields["URIs"].split()[0])
    for path in (_SOURCES / "sources.list", *sorted((_SOURCES / "sources.list.d").glob("*.list"))):
        text = path.read_text() if path.is_file() else ""
        if found := re.search(rf"^deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+{release}\s", text, re.MULTILINE):
            return found[1]
    raise MissingPart("llama-server of Debian sid", "a Debian machine whose apt sources name a mirror")


def _unpack(folder: Path) -> None:
    if shutil.which("apt-get") is None or platform.machine() != "x86_64":
        raise MissingPart("llama-server of Debian sid", "a Debian machine (x86_64)")
    say("getting llama-server from Debian sid (20 MB)")
    work = folder / "apt"
    for name in ("lists/partial", "archives/partial"):
        (work / name).mkdir(parents=True)
    (work / "status").touch()
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (work / "sources.list").write_text(f"deb [signed-by={keyring}] {_mirror()} sid main\n")
    settings = {
        "Dir::State": work,
        "Dir::State::lists": work / "lists",
        "Dir::State::status": work / "status",
        "Dir::Cache": work,
        "Dir::Cache::archives": work / "archives",
        "Dir::Etc::sourcelist": work / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "APT::Install-Recommends": "0",
        "APT::Sandbox::User": "",
    }
    apt = ["apt-get", "-q", "-y", *(word for name, value in settings.items() for word in ("-o", f"{name}={value}"))]
    for words in (["update"], ["install", "--download-only", *PACKAGES]):
        done = subprocess.run([*apt, *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise MissingPart("llama-server of Debian sid", f"apt-get {words[0]} failed: {done.stderr.strip()[-300:]}")
    root = folder / "root"
    for archive in sorted((work / "archives").glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", archive, root], check=True)
    shutil.rmtree(work)
    libraries = root / "usr/lib/x86_64-linux-gnu"
    for name in ("llama-server", "llama-fit-params", "ggml-rpc-server"):
        _starter(folder, libraries.relative_to(folder), name)


def _starter(folder: Path, libraries: Path, name: str) -> None:
    """A script ``name`` that runs the program with its own loader and libraries, wherever the folder is moved to."""
    program = next(
        (path for path in (folder / "root").rglob(name) if path.is_file() and os.access(path, os.X_OK)), None
    )
    if program is None:
        return
    script = folder / name
    script.write_text(
        f"""#!/bin/sh
here=$(cd "$(dirname "$0")" && pwd)
lib=$here/{libraries}
export GGML_BACKEND_DIR=$lib/ggml/backends0
cd "$lib/ggml/backends0" || exit 1
path=$lib:$lib/llama:$lib/ggml/backends0
exec "$lib/ld-linux-x86-64.so.2" --library-path "$path" "$here/{program.relative_to(folder)}" "$@"
"""
    )
    script.chmod(0o755)


def sid_llama_server() -> Path:
    """A script that runs llama-server; ``ggml-rpc-server`` is in the same folder. Fetched once a month.

    Raises MissingPart.
    """
    month = datetime.now(timezone.utc).strftime("%Y-%m")
    return cached(f"llama-server-sid-{platform.machine()}-{month}", _unpack) / "llama-server"
