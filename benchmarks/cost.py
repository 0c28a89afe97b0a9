"""What llamatel itself spends: CPU time a request and a generated token, and memory.

CPU time is that of the ``llamatel serve`` process, less what it spends idle in the same time. The same number of
requests with answers of different length shows what a generated token costs (both lengths long enough that a request's
beginning and end are not read from the log together, which would save a little).
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
from benchmarks.servers import EXPORT_EVERY_S, Collector, Running, Variant

_SETTLE_S = 1.0
"""A request waits half a second for the report of another process's call before it is counted."""
_SCRAPES = 20
_WARM_UP = 200
_LENGTHS = (64, 192)


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


def _settle_s(variant: Variant) -> float:
    """Until what waits has been exported."""
    return _SETTLE_S if variant.protocol is None else _SETTLE_S + EXPORT_EVERY_S


def _total(text: str, metric: str) -> int:
    """The sum of a metric's series in a scrape."""
    return int(sum(float(value) for value in re.findall(rf"^{metric}(?:{{.*}})? (\S+)$", text, re.MULTILINE)))


def measure(
    server: Running,
    collector: Collector | None,
    *,
    connections: int,
    count: int,
    tokens: int,
    rounds: int,
    idle_s: float,
    progress: Callable[[str], None],
) -> tuple[Cost, list[Block]]:
    """Cost of one variant: of a request from ``count`` of ``tokens`` a block, of a token from half as many longer ones.

    The server must be fresh: its memory before the load is part of the report.
    """
    pid = server.llamatel_pid
    assert pid is not None, "only llamatel's own side has a cost"
    before = _total(server.scrape(), "llamacpp_requests_total")
    idle_mib, _ = procfs.memory_mib(pid)
    settle_s = _settle_s(server.variant)
    run(server, Load(connections, _WARM_UP, tokens), settle_s=settle_s, collector=collector)

    progress(f"{server.variant.name}: idle for {idle_s:g} s")
    used = procfs.cpu_s(pid)
    time.sleep(idle_s)
    idle = (procfs.cpu_s(pid) - used) / idle_s
    used = procfs.cpu_s(pid)
    for _ in range(_SCRAPES):
        server.scrape()
    scrape_ms = (procfs.cpu_s(pid) - used) / _SCRAPES * 1e3

    plain, few, many = loads = (
        Load(connections, count, tokens),
        *(Load(connections, max(1, count // 2), length) for length in _LENGTHS),
    )
    blocks: dict[Load, list[Block]] = {load: [] for load in loads}
    for number in range(rounds):
        for load in loads if number % 2 == 0 else reversed(loads):
            what = f"{load.count} requests of {load.tokens} tokens"
            progress(f"{server.variant.name}: round {number + 1} of {rounds}, {what}")
            blocks[load].append(run(server, load, settle_s=settle_s, collector=collector))
    own = {load: [block.llamatel_cpu - idle * block.elapsed for block in blocks[load]] for load in loads}
    more = few.count * (many.tokens - few.tokens)
    loaded_mib, peak_mib = procfs.memory_mib(pid)
    text = server.scrape()
    cost = Cost(
        variant=server.variant.name,
        request_ms=spread([cpu / count * 1e3 for cpu in own[plain]]),
        token_us=spread([(long - short) / more * 1e6 for short, long in zip(own[few], own[many], strict=True)]),
        server_token_us=statistics.median(
            (long.server_cpu - short.server_cpu) / more * 1e6
            for short, long in zip(blocks[few], blocks[many], strict=True)
        ),
        collector_request_ms=statistics.median(block.collector_cpu / count * 1e3 for block in blocks[plain]),
        scrape_ms=scrape_ms,
        idle_ms=idle * 1e3,
        idle_mib=idle_mib,
        loaded_mib=loaded_mib,
        peak_mib=peak_mib,
        requests=_WARM_UP + rounds * sum(load.count for load in loads),
        seen=_total(text, "llamacpp_requests_total") - before,
        dropped=_total(text, "llamatel_records_dropped_total"),
    )
    return cost, [block for measured in blocks.values() for block in measured]
