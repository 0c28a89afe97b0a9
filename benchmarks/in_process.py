"""What the instrumentor adds to a call of llama-cpp-python: the same call with and without it, in turns.

CPU time, of the thread that calls and of the whole process (spans and metrics are made on other threads). The tiny
model needs a fraction of a millisecond for such a call, so this is the largest share that it will ever be.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

_TOKENS = 100_000


@dataclass(frozen=True, slots=True)
class InProcessFigures:
    """Microseconds of CPU time: medians over the rounds of the differences within a round."""

    plain: float
    """A call that generates one token, without the instrumentor."""
    thread: float
    """What the instrumentor adds to it, on the thread that calls."""
    process: float
    """And in the whole process."""
    again: float
    """What a second block without it differs by, on the thread that calls: what the method resolves."""
    token: float
    """What it adds to each token, on the thread that calls."""


def _block(call: Callable[[], object], calls: int) -> tuple[float, float]:
    thread, process = time.thread_time(), time.process_time()
    for _ in range(calls):
        call()
    thread, taken = time.thread_time() - thread, time.process_time() - process
    time.sleep(0.05)  # its remaining work must not be counted in the next block
    return thread / calls * 1e6, taken / calls * 1e6


def _per_token(llama: Any) -> float:
    from llamatel.llama.in_process.in_process_call import RunningCall
    from llamatel.llama.in_process.loaded_llama import known

    source = known(llama)
    assert source is not None
    followed = RunningCall(llama, "text_completion", source[0], {}).follow(1, iter(range(1, _TOKENS)))
    times = []
    for tokens in (iter(range(1, _TOKENS)), followed):
        started = time.thread_time()
        for _ in tokens:
            pass
        times.append((time.thread_time() - started) / _TOKENS * 1e6)
    return times[1] - times[0]


def measure(rounds: int, calls: int = 100) -> InProcessFigures:
    """``rounds`` of blocks of ``calls``: without, with, and without again."""
    import llama_cpp

    import llamatel
    from llamatel.llama.in_process import LlamaCppInstrumentor
    from tests.tiny_gguf import write_tiny_model

    llamatel.init(metrics_addr="127.0.0.1:0", keep_traces=100)
    instrumentor = LlamaCppInstrumentor()
    turns: list[dict[str, tuple[float, float]]] = []
    with TemporaryDirectory(prefix="llamatel-bench-") as folder:
        model = write_tiny_model(Path(folder) / "tiny.gguf")
        instrumentor.instrument()
        llama = llama_cpp.Llama(str(model), n_ctx=512, n_threads=1, n_threads_batch=1, verbose=False)
        instrumentor.uninstrument()

        def ask() -> object:
            return llama("Hello", max_tokens=1, temperature=0.0)

        for _ in range(rounds + 1):
            turn = {}
            for side in ("plain", "traced", "again"):
                if side == "traced":
                    instrumentor.instrument()
                turn[side] = _block(ask, calls)
                if side == "traced":
                    instrumentor.uninstrument()
            turns.append(turn)
        del turns[0]  # it warmed up
        tokens = [_per_token(llama) for _ in range(rounds)]
        llama.close()
    llamatel.shutdown()

    def added(side: str, clock: int) -> float:
        return statistics.median(turn[side][clock] - turn["plain"][clock] for turn in turns)

    plain = statistics.median(turn["plain"][0] for turn in turns)
    return InProcessFigures(plain, added("traced", 0), added("traced", 1), added("again", 0), statistics.median(tokens))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure; prints JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.in_process", description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    print(json.dumps(asdict(measure(parser.parse_args(arguments).rounds))))


if __name__ == "__main__":
    main()
