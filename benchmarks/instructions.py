"""Instructions that each stage of a request takes: a figure that other work on the machine does not change.

``perf stat``, or valgrind where perf may not count, counts a process that runs a stage (``stages``) once, and one that
runs it some times more; their difference is those passes, whatever starting up takes. Alone:
``make bench ARGS="--only instructions"``; with ``--gate`` it fails if a stage takes more than its bound.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks import load
from benchmarks.stages import COLLECTIONS, STAGES
from llamatel.llama import ServerManager

_EVENT = "instructions:u"
_MORE = 2
_MORE_COLLECTIONS = 20
_REQUESTS = 1000

BOUNDS: dict[str, float] = {
    "bytes to lines": 38,
    "log reader": 655,
    "log reader, JSONL": 605,
    "collectors: samples": 89,
    "histograms and counters": 104,
}
"""Thousands of instructions a request: an eighth more than valgrind counted on the golden log of 2026.10.11549 (34,
582, 537, 79 and 93; Python 3.11.7), where a stage differs by less than a hundredth from run to run."""
_PYTHON = (3, 11)
_OTHER_PYTHON = 1.5
"""Factor for a Python that the bounds were not measured with."""


class NotCounted(Exception):
    """This machine does not count instructions."""


@dataclass(frozen=True, slots=True)
class Instructions:
    """Thousands of instructions in user space."""

    log_lines: float
    """Lines of the log a request."""
    request: dict[str, float]
    """A request, by stage."""
    collection: dict[str, float]
    """A collection of all metrics and its text for Prometheus, by servers."""

    def lines(self) -> list[str]:
        """For people."""
        width = max(map(len, (*self.request, *self.collection)))
        return [f"  {name:<{width}}  {thousands:9,.0f}" for name, thousands in (self.request | self.collection).items()]


def record(backend: str | None, model: Path, log: Path, requests: int = _REQUESTS) -> None:
    """Write the log of a server to which four clients send requests for 8 tokens each."""
    with ServerManager(backend=backend, server_log=log) as server:
        server.start_server(model, port=0, n_parallel=4, extra_args=["-t", "1"])
        server.wait_until_ready(60)
        port = server.info.port
        assert port is not None
        load.run(host="127.0.0.1", port=port, connections=4, count=requests, tokens=8)


def measure(log: Path, progress: Callable[[str], None]) -> Instructions:
    """Count every stage on a recorded log. Raises NotCounted where there is no ``perf``, or it may not count."""
    request, about = count_requests(log, STAGES, progress)
    collection = {}
    for stage in COLLECTIONS:
        progress(stage)
        collection[stage] = _each(stage, _MORE_COLLECTIONS, log, {})
    return Instructions(about["lines"] / about["requests"], request, collection)


def count_requests(
    log: Path, stages: Iterable[str], progress: Callable[[str], None], *, passes: int = _MORE
) -> tuple[dict[str, float], dict[str, int]]:
    """Thousands of instructions a request, by stage, and the numbers of lines and requests in the log."""
    found: dict[str, float] = {}
    about: dict[str, int] = {}
    for stage in stages:
        progress(stage)
        found[stage] = _each(stage, passes, log, about) / about["requests"]
    return found, about


def _each(stage: str, passes: int, log: Path, about: dict[str, int]) -> float:
    """Thousands of instructions of one pass."""
    once, often = (_count(stage, number, log, about) for number in (1, 1 + passes))
    return (often - once) / passes / 1e3


def _count(stage: str, passes: int, log: Path, about: dict[str, int]) -> int:
    """Instructions of a process that runs a stage so often; by perf, or by valgrind where perf cannot count."""
    command = [sys.executable, "-m", "benchmarks.stages", stage, str(passes), str(log)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "LLAMA"))}
    # The order of sets and the addresses of objects must not differ from run to run.
    env = {**kept, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    reasons = []
    for program, count in (("perf", _by_perf), ("valgrind", _by_valgrind)):
        if shutil.which(program) is None:
            reasons.append(f"there is no {program}")
            continue
        try:
            with tempfile.TemporaryDirectory() as folder:
                counted, output = count(command, Path(folder) / "counts", env)
        except NotCounted as error:
            reasons.append(str(error))
            continue
        about.update(json.loads(output))
        return counted
    raise NotCounted(" and ".join(reasons))


def _by_perf(command: list[str], counts: Path, env: dict[str, str]) -> tuple[int, str]:
    done = subprocess.run(
        ["perf", "stat", "-x", ",", "-e", _EVENT, "-o", str(counts), "--", *command],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise NotCounted(f"perf could not count: {(done.stderr.strip() or 'no reason given').splitlines()[-1]}")
    [line] = (text for text in counts.read_text().splitlines() if _EVENT in text)
    counted = line.partition(",")[0]
    if not counted.isdecimal():
        raise NotCounted(f"perf reports for {_EVENT}: {counted}")
    return int(counted), done.stdout


def _by_valgrind(command: list[str], counts: Path, env: dict[str, str]) -> tuple[int, str]:
    tool = ["--tool=cachegrind", "--cache-sim=no", f"--cachegrind-out-file={counts}"]
    done = subprocess.run(
        ["valgrind", *tool, *command],
        env={**env, "PYTHONMALLOC": "malloc"},
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"I\s+refs:\s+([\d,]+)", done.stderr)
    if done.returncode or found is None:
        raise NotCounted(f"valgrind could not count: {(done.stderr.strip() or 'no reason given').splitlines()[-1]}")
    return int(found.group(1).replace(",", "")), done.stdout


def over_bound(counted: Mapping[str, float]) -> list[str]:
    """The stages that take more than their bound, a line each."""
    slack = 1.0 if sys.version_info[:2] == _PYTHON else _OTHER_PYTHON
    return [
        f"{stage}: {counted[stage]:,.0f} thousand instructions, the bound is {bound * slack:,.0f}"
        for stage, bound in BOUNDS.items()
        if counted[stage] > bound * slack
    ]
