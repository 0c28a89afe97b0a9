"""Older llama.cpp servers: releases of the xllamacpp wheel, each in its own cached folder, run as llama-server."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

from .cache import cached, say
from .missing import MissingPart

ROOT = Path(__file__).parent.parent.parent
RELEASES = (
    "2026.10.11549", "2026.9.11063", "2026.9.10809", "2026.8.10566", "2026.8.10229", "2026.7.9873", "2026.6.9538",
    "2026.5.9093", "2026.4.8672.1", "0.2.7",
)  # fmt: skip
"""One a month back to December 2025."""


def xllamacpp_server(release: str) -> Path:
    """Return a script that runs the release with llama-server's command line. Raises MissingPart."""

    def install(folder: Path) -> None:
        say(f"getting xllamacpp {release}")
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-compile", "--only-binary", ":all:"]
        done = subprocess.run(
            [*pip, "--target", str(folder / "site"), f"xllamacpp=={release}"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise MissingPart(f"xllamacpp {release}", done.stderr.strip()[-300:])
        script = folder / "llama-server"
        script.write_text(
            f"""#!/bin/sh
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$here/site:{ROOT}"
exec "{sys.executable}" -m llamatel.llama.server.xllamacpp_server "$@"
"""
        )
        script.chmod(0o755)

    tag = sysconfig.get_config_var("SOABI") or sys.implementation.cache_tag
    return cached(f"xllamacpp-{release}-{tag}", install) / "llama-server"
