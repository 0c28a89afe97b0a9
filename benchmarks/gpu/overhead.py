"""Throughput and time to the first token with and without llamatel, both servers on the one GPU, in turns."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import procfs
from benchmarks.blocks import percentile
from benchmarks.ratios import spread
from benchmarks.servers import PLAIN, Running

_LOAD = Path(__file__).parents[1] / "load.py"


@dataclass(frozen=True, slots=True)
class _Block:
    tokens_per_second: float
    first_s: list[float]
    failed: int
    llamatel_cpu_s: float
    seconds: float


def _block(server: Running, connections: int, count: int, tokens: int) -> _Block:
    plan = {
        "host": "127.0.0.1", "port": server.port, "connections": connections, "count": count, "tokens": tokens,
        "seed": time.monotonic_ns(), "stream": True,
    }  # fmt: skip
    before = procfs.cpu_s(server.llamatel_pid) if server.llamatel_pid else 0.0
    clients = subprocess.Popen([sys.executable, "-I", "-S", str(_LOAD), json.dumps(plan)], stdout=subprocess.PIPE)
    time.sleep(0.1)
    server.scrape()
    output, _ = clients.communicate()
    if clients.returncode:
        raise RuntimeError(f"the clients failed; see above, and {server.log}")
    result: dict[str, Any] = json.loads(output)
    time.sleep(0.2)
    used = procfs.cpu_s(server.llamatel_pid) - before if server.llamatel_pid else 0.0
    return _Block(count * tokens / result["seconds"], result["first_s"], result["failed"], used, result["seconds"])


def measure(
    servers: Sequence[Running],
    *,
    connections: int,
    tokens: int,
    seconds: float,
    rounds: int,
    progress: Callable[[str], None],
) -> list[dict[str, Any]]:
    """One row a server: medians over rounds, and ratios to the plain server's block of the same round."""
    for server in servers:
        trial = _block(server, connections, max(4, 2 * connections), tokens)
    count = max(2 * connections, int(trial.tokens_per_second / tokens * seconds))
    blocks: dict[str, list[_Block]] = {server.variant.name: [] for server in servers}
    for number in range(rounds):
        progress(f"{connections} connections, round {number + 1} of {rounds}, {count} requests a block")
        turn = number % len(servers)
        for server in (*servers[turn:], *servers[:turn]):
            blocks[server.variant.name].append(_block(server, connections, count, tokens))
    plain = blocks[PLAIN.name]
    rows = []
    for name, own in blocks.items():
        first = sorted(value for block in own for value in block.first_s)
        pairs = list(zip(own, plain, strict=True))

        def ratio(share: float, pairs: list[tuple[_Block, _Block]] = pairs) -> Any:
            return _spread(
                [percentile(sorted(a.first_s), share) / percentile(sorted(b.first_s), share) for a, b in pairs]
            )

        rows.append(
            {
                "variant": name,
                "connections": connections,
                "requests": count * rounds,
                "failed": sum(block.failed for block in own),
                "tokens_per_second": statistics.median(block.tokens_per_second for block in own),
                "ttft_p50_ms": percentile(first, 0.5) * 1e3,
                "ttft_p99_ms": percentile(first, 0.99) * 1e3,
                "throughput_ratio": _spread([a.tokens_per_second / b.tokens_per_second for a, b in pairs]),
                "ttft_p50_ratio": ratio(0.5),
                "ttft_p99_ratio": ratio(0.99),
                "llamatel_cores": statistics.median(block.llamatel_cpu_s / block.seconds for block in own),
            }
        )
    return rows


def _spread(values: Sequence[float]) -> dict[str, float]:
    found = spread(values)
    return {"median": found.median, "low": found.low, "high": found.high}
