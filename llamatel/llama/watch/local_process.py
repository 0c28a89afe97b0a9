"""The process of a llama-server on this machine: its flags, its model's file, its CPU time and memory.

Nothing is known of other users' processes and other machines' servers. A path from a server's log or response is opened
only if the operating system lists that file among the mappings of the server's process.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamatel.flags.parse import parse_server_flags
from llamatel.flags.server_settings import ServerSettings
from llamatel.inputs.address import Address, is_loopback
from llamatel.snapshots import ProcessState

if TYPE_CHECKING:
    import psutil

_WORKING_SHARE = 0.1
"""Share of one CPU; a process that used more while a request waited for its response is working."""
_PROGRAM = re.compile(r"llama-server(?!\w)|llamatel\.llama\.server\.xllamacpp_server$")
_LOADER = re.compile(r"(?:ld[-.]|ld64|qemu-|box64|valgrind|python)")
"""Programs that run another program in their own process; the arguments before that program are their own."""
_ANY = frozenset({"0.0.0.0", "::"})  # noqa: S104 - recognised, not bound


def server_flags(command: Sequence[str]) -> list[str] | None:
    """llama-server's flags in a process's command line; None if it is another program."""
    if not command:
        return None
    own, loaded = Path(command[0]).name, range(1, len(command))
    if _PROGRAM.search(own):
        return list(command[1:])
    if _LOADER.match(own):
        for index in loaded:
            if _PROGRAM.search(Path(command[index]).name):
                return list(command[index + 1 :])
    return None


class LocalProcess:
    """A llama-server's process. After its exit everything is unknown; nothing is raised."""

    def __init__(self, process: psutil.Process, flags: Sequence[str], environ: Mapping[str, str]) -> None:
        self._process = process
        self.pid: int = process.pid
        self.flags = tuple(flags)
        """Its command line without the program."""
        self.environ = environ

    @property
    def settings(self) -> ServerSettings:
        """The settings from its flags and environment."""
        return parse_server_flags(self.flags, environ=self.environ, lenient=True)

    @property
    def started_at(self) -> float | None:
        """Unix time."""
        import psutil

        try:
            return float(self._process.create_time())
        except psutil.Error:
            return None

    @property
    def cpu_s(self) -> float | None:
        """Its CPU time in seconds."""
        return _cpu_s(self._process)

    def model_file(self, given: str | None, named: Sequence[str | None] = ()) -> Path | None:
        """The model's file: from its flags, else ``named`` if the process has that file mapped."""
        if given is not None:
            path = self._seen(given)
            if path is not None and path.is_file():
                return path
        wanted = {name for name in named if name}
        for mapped in self._mapped() if wanted else ():
            if mapped in wanted and (path := self._seen(mapped)) is not None and path.is_file():
                return path
        return None

    def _seen(self, name: str) -> Path | None:
        """A file of the process: in its working directory and its mounts, which may be a container's."""
        import psutil

        try:
            path = Path(self._process.cwd()) / name
            elsewhere = Path("/proc/self/ns/mnt").readlink() != Path(f"/proc/{self.pid}/ns/mnt").readlink()
        except FileNotFoundError:  # not Linux
            elsewhere = False
        except (psutil.Error, OSError):
            return None
        return Path(f"/proc/{self.pid}/root") / path.relative_to("/") if elsewhere else path

    def _mapped(self) -> list[str]:
        import psutil

        try:
            return [entry.path for entry in self._process.memory_maps()]
        except (psutil.Error, OSError, AttributeError):  # macOS has none
            return []


def find_process(address: Address) -> LocalProcess | None:
    """The one llama-server that listens at an address of this machine; None if uncertain.

    Also None for another machine's address, for a program that only forwards the port, and for other users' processes.
    """
    pid = find_listener(address)
    return None if pid is None else process_of(pid)


def find_listener(address: Address) -> int | None:
    """The id of the one process that listens at an address of this machine; None if uncertain."""
    if not address.is_local:
        return None
    if address.scheme == "unix":
        found = [entry for entry in _sockets.list("unix") if str(entry.laddr) == address.host and entry.pid]
    else:
        found = [entry for entry in _sockets.list("tcp") if _listens(entry, address.port)]
    owners = {entry.pid for entry in found}
    return owners.pop() if len(owners) == 1 else None


def own_process(pid: int | None, flags: Sequence[str], environ: Mapping[str, str]) -> LocalProcess | None:
    """A process that was started with these flags; None if it has exited."""
    import psutil

    try:
        return None if pid is None else LocalProcess(psutil.Process(pid), flags, environ)
    except psutil.Error:
        return None


def process_of(pid: int) -> LocalProcess | None:
    """The llama-server with this process id; None if it is another program, or another user's."""
    import psutil

    try:
        process = psutil.Process(pid)
        flags = server_flags(process.cmdline())
        return None if flags is None else LocalProcess(process, flags, process.environ())
    except (psutil.Error, OSError):
        return None


class _Sockets:
    """The machine's sockets with their processes; concurrent callers share a list."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lists: dict[str, tuple[float, list[Any]]] = {}

    def list(self, kind: str) -> list[Any]:
        """The list of psutil; empty if not permitted. Takes some ms, more with many processes."""
        import psutil

        wanted_at = time.monotonic()
        with self._lock:
            made_at, sockets = self._lists.get(kind, (float("-inf"), []))
            if made_at < wanted_at:
                made_at = time.monotonic()
                try:
                    sockets = psutil.net_connections(kind)
                except (psutil.Error, OSError, RuntimeError):
                    sockets = []
                self._lists[kind] = made_at, sockets
            return sockets


_sockets = _Sockets()


def _listens(entry: Any, port: int | None) -> bool:
    """Whether a TCP socket of psutil's list listens on a port of loopback."""
    if entry.status != "LISTEN" or not entry.laddr or entry.laddr.port != port:
        return False
    host = str(entry.laddr.ip)
    return host in _ANY or is_loopback(host)


class ProcessUsage:
    """CPU time and memory of a server's current process; the CPU time never decreases. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: psutil.Process | None = None
        self._before_s = (0.0, 0.0)
        """User and system time of earlier processes."""
        self._last_s: tuple[float, float] | None = None

    def read(self, pid: int | None) -> ProcessState:
        """State of process ``pid``; if it is None or unreadable, the CPU time until then and no memory."""
        import psutil

        with self._lock:
            if pid is not None and (self._process is None or pid != self._process.pid):
                user_s, system_s = self._last_s or (0.0, 0.0)
                self._before_s = (self._before_s[0] + user_s, self._before_s[1] + system_s)
                self._last_s = None
                try:
                    self._process = psutil.Process(pid)
                except psutil.Error:
                    self._process = None
            memory = None
            if pid is not None and self._process is not None:
                try:
                    with self._process.oneshot():
                        times, memory = self._process.cpu_times(), int(self._process.memory_info().rss)
                    user_s, system_s = self._last_s or (0.0, 0.0)
                    self._last_s = (max(times.user, user_s), max(times.system, system_s))
                except psutil.Error:
                    memory = None
            if self._last_s is None and not any(self._before_s):
                return ProcessState(memory_bytes=memory)
            user_s, system_s = self._last_s or (0.0, 0.0)
            return ProcessState(self._before_s[0] + user_s, self._before_s[1] + system_s, memory)


def cpu_time(pid: int | None) -> float | None:
    """A process's CPU time in seconds; None if unknown."""
    import psutil

    try:
        return None if pid is None else _cpu_s(psutil.Process(pid))
    except psutil.Error:
        return None


def has_worked(before_s: float | None, after_s: float | None, seconds: float) -> bool:
    """Whether a process used the CPU during ``seconds``, given its CPU time before and after."""
    return before_s is not None and after_s is not None and after_s - before_s > _WORKING_SHARE * seconds


def _cpu_s(process: psutil.Process) -> float | None:
    import psutil

    try:
        times = process.cpu_times()
    except psutil.Error:
        return None
    return float(times.user + times.system)
