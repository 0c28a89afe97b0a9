"""What llamatel itself spends: CPU time a request and a generated token, and memory.

CPU time is that of the ``llamatel serve`` process, less what it spends idle in the same time. The same number of
requests with short and with long answers tells what a generated token costs.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import procfs
from benchmarks.blocks import Block, Load, run
from benchmarks.ratios import Spread, spread
from benchmarks.servers import Collector, Running

_SETTLE_S = 1.5
_SCRAPES = 20


@dataclass(frozen=True, slots=True)
class Cost:
    """What one variant costs."""

    variant: str
    request_ms: Spread
    """CPU time of llamatel a request."""
    token_us: Spread
    """CPU time of llamatel a generated token."""
    server_token_us: float
    """And of llama.cpp, to compare."""
    collector_request_ms: float
    """CPU time of the OTLP collector a request."""
    scrape_ms: float
    """CPU time of llamatel for one scrape by Prometheus."""
    idle_ms: float
    """CPU time of llamatel a second when nothing happens."""
    idle_mib: float
    """Resident memory after the start and one scrape."""
    loaded_mib: float
    peak_mib: float
    """After and during ``requests`` requests."""
    requests: int
    seen: int
    """Requests that llamatel has counted; equal to ``requests`` if it missed none."""
    dropped: int
    """Spans that it did not deliver."""


def _total(text: str, metric: str) -> int:
    """The sum of a metric's series in a scrape."""
    return int(sum(float(value) for value in re.findall(rf"^{metric}(?:{{.*}})? (\S+)$", text, re.MULTILINE)))


def measure(
    server: Running,
    collector: Collector | None,
    *,
    connections: int,
    count: int,
    tokens: tuple[int, int],
    rounds: int,
    idle_s: float,
    progress: Callable[[str], None],
) -> tuple[Cost, list[Block]]:
    """Cost of one variant. ``count`` requests a block, answers of ``tokens`` (short, long) in turns.

    The server must be fresh: its memory before the load is part of what is told.
    """
    pid = server.llamatel_pid
    assert pid is not None, "only llamatel's own side has a cost"
    before = _total(server.scrape(), "llamacpp_requests_total")
    idle_mib, _ = procfs.memory_mib(pid)
    sent = 200
    run(server, Load(connections, sent, tokens[0]), settle_s=_SETTLE_S, collector=collector)

    progress(f"{server.variant.name}: idle for {idle_s:g} s")
    used = procfs.cpu_s(pid)
    time.sleep(idle_s)
    idle = (procfs.cpu_s(pid) - used) / idle_s
    used = procfs.cpu_s(pid)
    for _ in range(_SCRAPES):
        server.scrape()
    scrape_ms = (procfs.cpu_s(pid) - used) / _SCRAPES * 1e3

    blocks: dict[int, list[Block]] = {length: [] for length in tokens}
    for number in range(rounds):
        for length in tokens if number % 2 == 0 else reversed(tokens):
            progress(f"{server.variant.name}: round {number + 1} of {rounds}, {count} requests of {length} tokens")
            load = Load(connections, count, length)
            blocks[length].append(run(server, load, settle_s=_SETTLE_S, collector=collector))
            sent += count
    short, long = blocks[tokens[0]], blocks[tokens[1]]
    more = count * (tokens[1] - tokens[0])
    own = {length: [block.llamatel_cpu - idle * block.elapsed for block in blocks[length]] for length in tokens}
    loaded_mib, peak_mib = procfs.memory_mib(pid)
    text = server.scrape()
    cost = Cost(
        variant=server.variant.name,
        request_ms=spread([cpu / count * 1e3 for cpu in own[tokens[0]]]),
        token_us=spread([(many - few) / more * 1e6 for few, many in zip(own[tokens[0]], own[tokens[1]], strict=True)]),
        server_token_us=statistics.median(
            (many.server_cpu - few.server_cpu) / more * 1e6 for few, many in zip(short, long, strict=True)
        ),
        collector_request_ms=statistics.median(block.collector_cpu / count * 1e3 for block in short),
        scrape_ms=scrape_ms,
        idle_ms=idle * 1e3,
        idle_mib=idle_mib,
        loaded_mib=loaded_mib,
        peak_mib=peak_mib,
        requests=sent,
        seen=_total(text, "llamacpp_requests_total") - before,
        dropped=_total(text, "llamatel_records_dropped_total"),
    )
    return cost, [*short, *long]
