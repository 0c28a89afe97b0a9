"""Throughput and latency with and without llamatel: blocks of the same load, side by side, in turns.

All servers run all the time and only one of them has work; the order changes with every round. What is compared is a
block with the plain server's block of the same round, so that other load on the machine affects both.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.blocks import Block, Load, run
from benchmarks.servers import PLAIN, Collector, Running

EXPORT_EVERY_S = 0.5
"""Spans leave that often here, ten times as often as by default, so that a block pays for its own exports."""
_PAUSE_S = EXPORT_EVERY_S + 0.2
"""After each block, so that no block pays for exports of the one before."""
_TRIAL = 60


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some figures, and their ends."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Ratios:
    """A variant against the plain server at one number of connections; each figure is theirs over its own."""

    variant: str
    connections: int
    requests_per_second: float
    p50_ms: float
    p99_ms: float
    throughput: Spread
    p50: Spread
    p99: Spread
    server_cpu: Spread
    """CPU time of llama.cpp itself, a request."""
    llamatel_cores: float
    """How much of a core llamatel used under this load."""
    failed: int


def spread(values: Sequence[float]) -> Spread:
    """Of one value at least."""
    return Spread(statistics.median(values), min(values), max(values))


def _counted(servers: Sequence[Running], connections: int, tokens: int, seconds: float) -> Load:
    """A load that takes the plain server about ``seconds``; warms all servers up."""
    for server in servers:
        rate = run(server, Load(connections, _TRIAL, tokens), settle_s=0.0, scrape=False).requests_per_second
    plain = next(server for server in servers if server.variant == PLAIN)
    rate = run(plain, Load(connections, max(_TRIAL, int(rate / 2)), tokens), settle_s=0.0).requests_per_second
    return Load(connections, max(20, int(rate * seconds)), tokens)


def measure(
    servers: Sequence[Running],
    collector: Collector | None,
    *,
    connections: int,
    tokens: int,
    seconds: float,
    rounds: int,
    progress: Callable[[str], None],
) -> tuple[list[Ratios], list[Block]]:
    """Ratios of every variant, the plain server's own first, and all blocks."""
    load = _counted(servers, connections, tokens, seconds)
    blocks: dict[str, list[Block]] = {server.variant.name: [] for server in servers}
    for number in range(rounds):
        progress(f"{connections} connections, round {number + 1} of {rounds}, {load.count} requests a block")
        turn = number % len(servers)
        for server in (*servers[turn:], *servers[:turn]):
            blocks[server.variant.name].append(run(server, load, settle_s=_PAUSE_S, collector=collector))
    plain = blocks[PLAIN.name]
    found = []
    for name, own in blocks.items():
        pairs = list(zip(own, plain, strict=True))
        found.append(
            Ratios(
                variant=name,
                connections=connections,
                requests_per_second=statistics.median(block.requests_per_second for block in own),
                p50_ms=statistics.median(block.p50 for block in own) * 1e3,
                p99_ms=statistics.median(block.p99 for block in own) * 1e3,
                throughput=spread([mine.requests_per_second / other.requests_per_second for mine, other in pairs]),
                p50=spread([mine.p50 / other.p50 for mine, other in pairs]),
                p99=spread([mine.p99 / other.p99 for mine, other in pairs]),
                server_cpu=spread([mine.server_cpu / other.server_cpu for mine, other in pairs]),
                llamatel_cores=statistics.median(
                    block.llamatel_cpu / (load.count / block.requests_per_second) for block in own
                ),
                failed=sum(block.failed for block in own),
            )
        )
    return found, [block for own in blocks.values() for block in own]
