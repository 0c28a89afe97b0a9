"""Ollama's llama-servers on this machine, from the operating system.

A port from a log is connected to only if a llama-server listens there that was started for that port and whose parent
is the observed Ollama: another Ollama may have loaded the same models. In a container's own network the port is another
machine's.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llamatel.inputs.address import Address
from llamatel.llama.watch.local_process import find_listener, server_flags

if TYPE_CHECKING:
    import psutil

_MOST = 64
_LISTEN = "0A"
_LOOPBACK = re.compile(r"(?:0100007F|0{8}|0{32}|0{24}01000000):([0-9A-F]{4})$")
"""127.0.0.1, 0.0.0.0, :: and ::1, as Linux writes them."""
_MOST_ROWS = 1 << 16


@dataclass(frozen=True, slots=True)
class OllamaChild:
    """A llama-server that Ollama has started."""

    pid: int
    port: int
    model_path: str
    flags: tuple[str, ...]
    environ: dict[str, str]
    """Empty where it is another user's."""
    slots: int | None
    started_at: float
    """Unix time."""

    @property
    def most_loaded(self) -> int:
        """OLLAMA_MAX_LOADED_MODELS, which it has from Ollama; 0 where it is not set."""
        value = self.environ.get("OLLAMA_MAX_LOADED_MODELS", "")
        return int(value) if value.isdecimal() else 0


def find_children(ollama: Address) -> list[OllamaChild]:
    """Those of the Ollama at an address of this machine, each with a port that can be connected to from here.

    Empty where that is not known.
    """
    import psutil

    found: list[OllamaChild] = []
    try:
        for parent in _ollamas(ollama):
            for process in parent.children():
                if len(found) < _MOST and (child := _child(process)) is not None:
                    found.append(child)
    except (psutil.Error, OSError):
        return []
    return found


def find_ollama(address: Address) -> psutil.Process | None:
    """The process of the Ollama at an address of this machine; None where that is not known."""
    return next(_ollamas(address), None)


def _ollamas(address: Address) -> Iterator[psutil.Process]:
    """The Ollama at an address of this machine; several where it is not certain which of another user's it is."""
    import psutil

    if not address.is_local or address.port is None:
        return
    for process in psutil.process_iter():
        try:
            if _is_ollama(process) and _listens(process.pid, address.port):
                yield process
        except (psutil.Error, OSError):
            continue


def _child(process: psutil.Process) -> OllamaChild | None:
    import psutil

    try:
        flags = server_flags(process.cmdline())
    except (psutil.Error, OSError):
        return None
    if flags is None:
        return None
    port, model = _value(flags, "--port"), _value(flags, "--model")
    if port is None or not port.isdecimal() or model is None or _value(flags, "--host") != "127.0.0.1":
        return None
    try:
        if not _listens(process.pid, int(port)):
            return None
        try:
            environ = process.environ()
        except psutil.AccessDenied:
            environ = {}
        started_at = float(process.create_time())
    except (psutil.Error, OSError):
        return None
    slots = _value(flags, "-np")
    return OllamaChild(
        process.pid, int(port), model, tuple(flags), environ,
        int(slots) if slots is not None and slots.isdecimal() else None, started_at,
    )  # fmt: skip


def _value(flags: list[str], name: str) -> str | None:
    index = flags.index(name) + 1 if name in flags else len(flags)
    return flags[index] if index < len(flags) else None


def _is_ollama(process: psutil.Process) -> bool:
    words = process.cmdline()
    return process.name() in ("ollama", "ollama.exe") or (bool(words) and Path(words[0]).name == "ollama")


def _listens(pid: int, port: int) -> bool:
    """Whether the process listens on this port of our own loopback, as far as we are permitted to see."""
    listener = find_listener(Address("http", "127.0.0.1", port))
    return _listens_in_network(pid, port) if listener is None else listener == pid


def _listens_in_network(pid: int, port: int) -> bool:
    """Whether a process of this one's user and network listens there, a network that is ours, too.

    Another user's sockets are not listed, but its network's and its user's are.
    """
    own, its = set(_sockets("self", port)), set(_sockets(str(pid), port))
    user = f"{Path(f'/proc/{pid}').stat().st_uid}" if own else ""
    return any(uid == user for _, uid in own & its)


def _sockets(process: str, port: int) -> Iterator[tuple[str, str]]:
    """Inode and user of the sockets that listen on a port of loopback, in a process's network."""
    rows: list[str] = []
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            rows += Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:_MOST_ROWS]
    for row in rows:
        words = row.split()
        found = _LOOPBACK.match(words[1]) if len(words) > 9 and words[3] == _LISTEN else None
        if found is not None and int(found.group(1), 16) == port:
            yield words[9], words[7]
