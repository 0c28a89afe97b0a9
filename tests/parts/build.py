"""Run the compilers of parts that are built from source, with progress on the terminal."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from . import apt
from .cache import Progress
from .missing import MissingPart


def need_compiler() -> None:
    """Require a C++ compiler: this machine's, or Debian's. Raises MissingPart."""
    for compiler in ("cc", "c++"):
        if shutil.which(compiler) is None and not apt.install("g++"):
            raise MissingPart(f"a compiler ({compiler})", "sudo apt-get install g++")


def run(part: str, argv: list[str], log: Path, label: str, env: Mapping[str, str] | None = None) -> None:
    """Run a command, with output to ``log`` and ninja's ``[n/m]`` as progress. Raises MissingPart on failure."""
    progress = Progress(label)
    with (
        log.open("a") as output,
        subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, **(env or {})},
        ) as child,
    ):
        for line in child.stdout or ():
            output.write(line)
            if step := re.match(r"\s*\[(\d+)/(\d+)\]", line):
                progress.show(int(step[1]), int(step[2]))
    if child.returncode:
        tail = "\n".join(log.read_text().splitlines()[-15:])
        raise MissingPart(part, f"{label} failed, see {log}; its end:\n{tail}")
