"""Where the log of an Ollama on this machine is: the file to which it writes its standard error, or how to pipe it.

Sources: Ollama's docs/troubleshooting.mdx; the operating system for an Ollama that this user started.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from llamatel.inputs.address import Address
from llamatel.llama.watch.ollama_children import find_ollama
from llamatel.llama.watch.process_log import log_command, output_file

_PIPE = "{} | llamatel attach --ollama --log -"


def find_log(ollama: Address) -> tuple[str | None, str]:
    """The file of its log, if there is one that can be read; and else the command that shows its log."""
    process = find_ollama(ollama)
    if process is not None:
        if (file := output_file(process.pid)) is not None:
            return file, ""
        if command := log_command(process.pid):
            return None, _PIPE.format(command)
    file = None if not ollama.is_local else _application_log()
    return file, _PIPE.format("journalctl -fu ollama -o cat")


def _application_log() -> str | None:
    """Of the desktop application: macOS and Windows."""
    paths = {
        "darwin": Path.home() / ".ollama" / "logs" / "server.log",
        "win32": Path(os.environ.get("LOCALAPPDATA", "")) / "Ollama" / "server.log",
    }
    path = paths.get(sys.platform)
    return str(path) if path is not None and path.is_file() else None
