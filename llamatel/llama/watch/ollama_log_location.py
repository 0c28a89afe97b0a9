"""Where the log of an Ollama on this machine is: the file to which it writes its standard error, or how to pipe it.

Sources: Ollama's docs/troubleshooting.mdx; the operating system for an Ollama that this user started.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from llamatel.inputs.address import Address
from llamatel.llama.watch.ollama_children import find_ollama

_UNIT = re.compile(r"/([\w@.-]{1,200}\.service)(?:/|$)")
_CONTAINER = re.compile(r"(?:docker|libpod|cri-containerd)[-/]([0-9a-f]{12})")
_PIPE = "{} | llamatel attach --ollama --log -"


def find_log(ollama: Address) -> tuple[str | None, str]:
    """The file of its log, if there is one that can be read; and else the command that shows its log."""
    process = find_ollama(ollama)
    if process is not None:
        if (file := _stderr_file(process.pid)) is not None:
            return file, ""
        group = _read(f"/proc/{process.pid}/cgroup")
        if (container := _CONTAINER.search(group)) is not None:
            return None, _PIPE.format(f"docker logs -f {container.group(1)} 2>&1")
        if (unit := _UNIT.search(group)) is not None:
            return None, _PIPE.format(f"journalctl -fu {unit.group(1)} -o cat")
    file = None if not ollama.is_local else _application_log()
    return file, _PIPE.format("journalctl -fu ollama -o cat")


def _stderr_file(pid: int) -> str | None:
    """The regular file that a process's standard error goes to, as seen from here."""
    try:
        path = Path(f"/proc/{pid}/fd/2").readlink()
        same_mounts = Path("/proc/self/ns/mnt").readlink() == Path(f"/proc/{pid}/ns/mnt").readlink()
        if not same_mounts or not path.is_file() or not os.access(path, os.R_OK):
            return None
        return str(path) if path.samefile(f"/proc/{pid}/fd/2") else None
    except OSError:
        return None


def _application_log() -> str | None:
    """Of the desktop application: macOS and Windows."""
    paths = {
        "darwin": Path.home() / ".ollama" / "logs" / "server.log",
        "win32": Path(os.environ.get("LOCALAPPDATA", "")) / "Ollama" / "server.log",
    }
    path = paths.get(sys.platform)
    return str(path) if path is not None and path.is_file() else None


def _read(path: str) -> str:
    try:
        return Path(path).read_text()[:65536]
    except OSError:
        return ""
