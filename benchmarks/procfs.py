"""What Linux knows of processes: CPU time, memory, children (``proc(5)``)."""

from __future__ import annotations

import os
import time
from pathlib import Path

_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
_MIB = 1024.0


def cpu_s(pid: int) -> float:
    """User and system time of a process since it started, all threads, in steps of 0.01 s."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def cores(pid: int, seconds: float) -> float:
    """CPU time that a process uses a second, over the next ``seconds``: 1 is one core."""
    used, started = cpu_s(pid), time.monotonic()
    time.sleep(seconds)
    return (cpu_s(pid) - used) / (time.monotonic() - started)


def memory_mib(pid: int) -> tuple[float, float]:
    """Resident memory now, and its peak since the start, in MiB."""
    sizes = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("VmRSS", "VmHWM"):
            sizes[name] = int(value.split()[0]) / _MIB
    return sizes["VmRSS"], sizes["VmHWM"]


def machine_busy_s() -> float:
    """CPU time that all processes of the machine have used, time stolen by its host included."""
    user, nice, system, _idle, _wait, irq, soft, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + soft + steal) * _TICK_S


def children(pid: int) -> list[int]:
    """The processes that a process started and that still are its children."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has exited
            if parent == pid:
                found.append(int(entry.name))
    return found


def command_line(pid: int) -> list[str]:
    """The arguments that a process was started with, its program first."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().rstrip("\0").split("\0")


def machine() -> dict[str, str | int]:
    """What a figure should be read with: processor, cores that we may use, kernel."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name")]
    return {
        "processor": models[0] if models else os.uname().machine,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": os.uname().release,
    }
