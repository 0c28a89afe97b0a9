"""llama.cpp builds from PyPI, each in its own cached folder, run as llama-server."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from .cache import cached, say
from .missing import MissingPart
from .sid import sid_llama_server

ROOT = Path(__file__).parent.parent.parent
RELEASES = (
    "2026.10.11549", "2026.9.11063", "2026.9.10809", "2026.8.10566", "2026.8.10229", "2026.7.10068", "2026.7.9873",
    "2026.6.9713", "2026.6.9538", "2026.5.9294", "2026.5.9093", "2026.4.8929", "2026.4.8672.1", "0.2.13", "0.2.12",
    "0.2.11", "0.2.10", "0.2.9", "0.2.8", "0.2.7",
)  # fmt: skip
"""Of xllamacpp: all since December 2025 but 0.2.14, with 0.2.13's llama.cpp. Older ones cannot run as llama-server."""
LIBRARY = "0.11739"
"""Of llama-cpp-py-sync: llama.cpp b11739 of October 2026, a library without a server."""


def install(site: Path, *packages: str) -> None:
    """Unpack wheels, without what they depend on, into a folder."""
    say(f"getting {packages[0]}")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-compile", "--only-binary", ":all:"]
    done = subprocess.run([*pip, "--target", str(site), *packages], capture_output=True, text=True, check=False)
    if done.returncode:
        raise MissingPart(packages[0], done.stderr.strip()[-300:])


def _script(folder: Path, text: str) -> Path:
    """Write the script of a cached folder, which several checkouts share: its paths are those of this one."""
    script = folder / "llama-server"
    if not script.exists() or script.read_text() != text:
        new = folder / f"llama-server.{os.getpid()}"
        new.write_text(text)
        new.chmod(0o755)
        new.replace(script)
    return script


def _tag() -> str:
    return sysconfig.get_config_var("SOABI") or sys.implementation.cache_tag or "python"


def xllamacpp_server(release: str) -> Path:
    """Return a script that runs the release with llama-server's command line. Raises MissingPart."""
    folder = cached(f"xllamacpp-{release}-{_tag()}", lambda made: install(made / "site", f"xllamacpp=={release}"))
    text = f"""#!/bin/sh
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$here/site:{ROOT}"
exec "{sys.executable}" -m llamatel.llama.server.xllamacpp_server "$@"
"""
    return _script(folder, text)


def library_server(release: str = LIBRARY) -> Path:
    """Return a script that allocates with a library, by llama-server's flags: ``tests.exact.library_server``.

    The library needs a newer C library than most machines have: Debian sid's. Raises MissingPart.
    """
    newer = (sid_llama_server().parent / "root/usr/lib/x86_64-linux-gnu").resolve()
    packages = (f"llama-cpp-py-sync=={release}", "cffi", "pycparser")
    folder = cached(f"llama-cpp-py-sync-{release}-{_tag()}", lambda made: install(made / "site", *packages))
    text = f"""#!/bin/sh
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$here/site:{ROOT}"
path=$here/site/llama_cpp_py_sync:{newer}
exec "{newer}/ld-linux-x86-64.so.2" --library-path "$path" "{sys.executable}" -m tests.exact.library_server "$@"
"""
    return _script(folder, text)
