"""Debian's newest llama-server, from its unstable suite (sid), unpacked into the cache but not installed.

A canary for changes of llama.cpp: whatever version comes is used and reported. It is unpacked with all that it needs,
the C library included, and runs through that library's own loader.
"""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from pathlib import Path

from . import debian_sid
from .cache import cached
from .missing import MissingPart

PACKAGES = ("llama.cpp-tools", "llama.cpp-tools-extra", "libggml0-backend-rpc")


def _unpack(folder: Path) -> None:
    root = folder / "root"
    root.mkdir()
    if platform.machine() != "x86_64" or not debian_sid.unpack(PACKAGES, root, closure=True):
        raise MissingPart("llama-server of Debian sid", "a Debian machine (x86_64) whose mirror has sid")
    libraries = root / "usr/lib/x86_64-linux-gnu"
    for name in ("llama-server", "llama-fit-params", "ggml-rpc-server"):
        _starter(folder, libraries.relative_to(folder), name)


def _starter(folder: Path, libraries: Path, name: str) -> None:
    """Write a script ``name`` that runs the program with its own loader and libraries, from any location."""
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
