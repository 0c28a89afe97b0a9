"""The flags of a llama-server on this machine, by the port that it listens on. Linux; elsewhere nothing is known.

``/slots`` and ``/props`` do not say how large the KV pool is; the command line does, where somebody wrote it there.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

from llamatel.flags.parse import parse_server_flags
from llamatel.flags.server_settings import ServerSettings

_LISTEN = "0A"
_PROC = Path("/proc")


def local_flags(address: str | None, port: int | None, proc: Path = _PROC) -> ServerSettings | None:
    """The settings of the one llama-server that listens there; None where that is unsure.

    That is so for another machine's address, for what only forwards the port (its program has another name), and for
    processes of other users.
    """
    if port is None or not _is_this_machine(address):
        return None
    sockets = {f"socket:[{inode}]" for inode in _listening(port, proc)}
    owners = [process for process in _processes(proc) if sockets and not sockets.isdisjoint(_open_files(process))]
    if len(owners) != 1:
        return None
    words = _strings(owners[0] / "cmdline")
    if not words or "llama-server" not in Path(words[0]).name:
        return None
    environ = dict(entry.split("=", 1) for entry in _strings(owners[0] / "environ") if "=" in entry)
    return parse_server_flags(words[1:], environ=environ, lenient=True)


def _is_this_machine(address: str | None) -> bool:
    if address == "localhost":
        return True
    try:
        return ip_address(address or "").is_loopback
    except ValueError:
        return False


def _listening(port: int, proc: Path) -> Iterator[str]:
    """Inodes of the TCP sockets that listen on a port (``proc_net_tcp``: columns 2, 4 and 10)."""
    for table in ("tcp", "tcp6"):
        try:
            rows = (proc / "self" / "net" / table).read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            columns = row.split()
            if columns[3] == _LISTEN and int(columns[1].rpartition(":")[2], 16) == port:
                yield columns[9]


def _processes(proc: Path) -> Iterator[Path]:
    try:
        yield from (entry for entry in proc.iterdir() if entry.name.isdigit())
    except OSError:
        return


def _open_files(process: Path) -> Iterator[str]:
    try:
        entries = list((process / "fd").iterdir())
    except OSError:  # gone meanwhile, or another user's
        return
    for entry in entries:
        try:
            yield str(entry.readlink())
        except OSError:
            continue


def _strings(path: Path) -> list[str]:
    try:
        return path.read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return []
