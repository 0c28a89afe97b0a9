"""What ``llamatel attach`` uses for many servers: CPU time, memory, and whether it keeps its timetable.

A few real llama-servers stand for all: a TCP forwarder, in a process of its own, gives each many ports, so that every
target has an address and connections of its own. How often they are polled follows from llama.cpp's task numbers, of
which each question takes one.
"""

from __future__ import annotations

import contextlib
import re
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import procfs
from tests.attached import Unmanaged, unmanaged
from tests.parts import Child, free_port
from tests.servers import LONG, complete
from tests.tiny_gguf import write_tiny_model

_SCRAPES = 5
_SETTLE_S = 3.0
_SCRAPE_EVERY_S = 15.0
_ALL_UP_S = 300.0


@dataclass(frozen=True, slots=True)
class Attached:
    """What watching so many servers at one poll a second costs."""

    targets: int
    servers: int
    """Real servers that they lead to."""
    up: int
    """Of the targets, as llamatel saw them."""
    start_s: float
    """Until all of them were up, if they were; their processes are looked for, as they are on this machine."""
    start_cpu_s: float
    """CPU time of llamatel until then."""
    idle_cores: float
    """CPU time of llamatel a second while nothing happens; of the machine's cores, one is 1."""
    busy_cores: float
    """And while every server works, so that its slots are polled too."""
    polls_per_s: float
    """As the servers counted them, while idle."""
    scrape_ms: float
    """CPU time for one scrape by Prometheus of all."""
    scrape_wall_ms: float
    """And how long it takes."""
    scrape_mib: float
    """Its text."""
    memory_mib: float
    peak_mib: float

    def lines(self) -> list[str]:
        """For people."""
        what = f"{self.targets} targets, {self.servers} real llama-servers through a TCP forwarder"
        cores = f"cores while idle {self.idle_cores:.3f}, while all work {self.busy_cores:.3f}"
        every = self.scrape_ms / 1e3 / _SCRAPE_EVERY_S
        scrape = f"{self.scrape_ms:.0f} ms of CPU, {self.scrape_wall_ms:.0f} ms, {self.scrape_mib:.1f} MiB"
        return [
            f"  {what}, one poll a second each",
            f"  up {self.up} after {self.start_s:.0f} s and {self.start_cpu_s:.0f} s of CPU",
            f"  polls a second {self.polls_per_s:.0f} (by llama.cpp's task numbers)",
            f"  {cores}; a scrape every {_SCRAPE_EVERY_S:.0f} s adds {every:.3f}",
            f"  a scrape of all: {scrape}",
            f"  resident memory {self.memory_mib:.0f} MiB, peak {self.peak_mib:.0f} MiB",
        ]


def _last_task(server: Unmanaged) -> int:
    """The number of a request that runs now; earlier requests have smaller ones."""
    server.complete(1)
    return max(int(slot.get("id_task", -1)) for slot in server.get("/slots"))


def _ports(child: Child) -> list[int]:
    child.wait_ready(lambda: child.output().endswith("all\n"), 60)
    return [int(line) for line in child.output().split() if line.isdecimal()]


def measure(
    program: Path, *, targets: int = 200, real: int = 4, seconds: float, progress: Callable[[str], None]
) -> Attached:
    """Attach to so many targets that lead to ``real`` servers and watch each phase for ``seconds``."""
    progress(f"attached to {targets} servers: idle and at work, {seconds:g} s each")
    with tempfile.TemporaryDirectory(prefix="llamatel-bench-") as temporary, contextlib.ExitStack() as stack:
        folder = Path(temporary)
        model = write_tiny_model(folder / "tiny.gguf")
        servers = [
            stack.enter_context(unmanaged(program, folder, "-m", model, "--metrics", "-np", "4")) for _ in range(real)
        ]
        ports: list[int] = []
        for server in servers:
            argv = [sys.executable, "-m", "tests.parts.forwarder", str(server.port), str(targets // real)]
            forwarder = Child(argv, folder / f"forwarder-{server.port}.log")
            stack.callback(forwarder.kill)
            ports += _ports(forwarder)
        listed = folder / "targets"
        listed.write_text("".join(f"127.0.0.1:{port}\n" for port in ports))
        metrics = free_port()
        argv = [sys.executable, "-m", "llamatel.cli.main", "attach", "--targets", str(listed)]
        attached = Child([*argv, "--metrics-addr", f"127.0.0.1:{metrics}"], folder / "attached.log")
        stack.callback(attached.stop)
        return _measure(attached, servers, len(ports), f"http://127.0.0.1:{metrics}/metrics", seconds)


def _measure(attached: Child, servers: Sequence[Unmanaged], targets: int, url: str, seconds: float) -> Attached:
    attached.wait_ready(lambda: "OTLP" in attached.output(), 60)
    deadline = time.monotonic() + _ALL_UP_S
    launched = time.monotonic()
    while _up(_scrape(url)) < targets and time.monotonic() < deadline:
        time.sleep(_SETTLE_S)
    start_s, start_cpu_s = time.monotonic() - launched, procfs.cpu_s(attached.pid)
    time.sleep(_SETTLE_S)
    before, started = [_last_task(server) for server in servers], time.monotonic()
    time.sleep(2 * _SETTLE_S)
    idle = procfs.cores(attached.pid, seconds)
    elapsed = time.monotonic() - started
    # The requests that show the first number had every target's slots polled once.
    polls = sum(_last_task(server) for server in servers) - sum(before) - targets
    used, scraping = procfs.cpu_s(attached.pid), time.monotonic()
    for _ in range(_SCRAPES):
        text = _scrape(url)
    scrape_wall_ms = (time.monotonic() - scraping) / _SCRAPES * 1e3
    scrape_ms = max(0.0, (procfs.cpu_s(attached.pid) - used) / _SCRAPES * 1e3 - idle * scrape_wall_ms)
    end = threading.Event()
    threads = [threading.Thread(target=_work, args=(server.url, end), daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    time.sleep(_SETTLE_S)
    busy = procfs.cores(attached.pid, seconds)
    end.set()
    memory, peak = procfs.memory_mib(attached.pid)
    return Attached(
        targets=targets,
        servers=len(servers),
        up=_up(text),
        start_s=start_s,
        start_cpu_s=start_cpu_s,
        idle_cores=idle,
        busy_cores=busy,
        polls_per_s=polls / elapsed,
        scrape_ms=scrape_ms,
        scrape_wall_ms=scrape_wall_ms,
        scrape_mib=len(text) / 2**20,
        memory_mib=memory,
        peak_mib=peak,
    )


def _up(text: str) -> int:
    return len(re.findall(r"^llamacpp_server_up\{.*\} 1\.0$", text, re.MULTILINE))


def _scrape(url: str) -> str:
    """One scrape's text."""
    with urllib.request.urlopen(url, timeout=120) as answer:  # noqa: S310 - an address of our own
        return str(answer.read().decode())


def _work(url: str, end: threading.Event) -> None:
    while not end.is_set():
        complete(url, LONG)
