"""Where a process on this machine writes its log, as the operating system shows it: a file, or what to pipe it from."""

from __future__ import annotations

import os
import re
from pathlib import Path

from llamatel.errors import ServerUnreachable
from llamatel.llama.http.identify import identify
from llamatel.llama.http.server_client import ServerClient
from llamatel.llama.watch.local_process import LocalProcess, find_process

_UNIT = re.compile(r"/([\w@.-]{1,200}\.service)(?:/|$)")
_CONTAINER = re.compile(r"(?:docker|libpod|cri-containerd)[-/]([0-9a-f]{12})")
_LOGS_REQUESTS = 3
"""Verbosity from which llama.cpp logs requests."""


def router_log(client: ServerClient) -> tuple[str | None, str]:
    """The file of a router's log, if this user's router writes one on this machine; and else the command that shows it.

    Only a router's totals need its log. None and an empty text for other servers, and where it is unknown. Raises
    nothing.
    """
    process = find_process(client.address)
    if process is None:
        return None, ""
    try:
        if identify(client).role != "router":
            return None, ""
    except ServerUnreachable:
        return None, ""
    file = _own_log(process)
    return file, "" if file is not None else log_command(process.pid)


def output_file(pid: int, descriptor: int = 2) -> str | None:
    """The regular file that a process's standard output (1) or error (2) goes to, as seen from here."""
    try:
        path = Path(f"/proc/{pid}/fd/{descriptor}").readlink()
        same_mounts = Path("/proc/self/ns/mnt").readlink() == Path(f"/proc/{pid}/ns/mnt").readlink()
        if not same_mounts or not path.is_file() or not os.access(path, os.R_OK):
            return None
        return str(path) if path.samefile(f"/proc/{pid}/fd/{descriptor}") else None
    except OSError:
        return None


def log_command(pid: int) -> str:
    """The command that follows the log of a process in a container or a systemd unit; empty for others."""
    try:
        group = Path(f"/proc/{pid}/cgroup").read_text()[:65536]
    except OSError:
        return ""
    if (container := _CONTAINER.search(group)) is not None:
        return f"docker logs -f {container.group(1)} 2>&1"
    if (unit := _UNIT.search(group)) is not None:
        return f"journalctl -fu {unit.group(1)} -o cat"
    return ""


def _own_log(process: LocalProcess) -> str | None:
    """The file that has all that this user's llama-server logs: its requests are on standard output, the rest on error.

    JSON records are all on standard output.
    """
    settings = process.settings
    try:
        if Path(f"/proc/{process.pid}").stat().st_uid != os.getuid():
            return None
    except (OSError, AttributeError):  # not Linux
        return None
    if settings.log_disable or settings.verbosity < _LOGS_REQUESTS:
        return None
    output, error = output_file(process.pid, 1), output_file(process.pid)
    return output if output == error or settings.log_jsonl else None
