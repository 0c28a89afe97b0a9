"""What ``@llamatel.task`` costs a call, compared with a bare ``start_as_current_span`` and other libraries' decorators.

All in one process and one run, in turns: blocks of calls of an empty function, each library's spans given to a
BatchSpanProcessor whose exporter forgets them. OpenLLMetry and Logfire are measured where they are installed:
``python -m benchmarks --only decorators --others`` installs them into a virtual environment that is thrown away.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Tracer

import llamatel
from llamatel.tracing import decorators as tracing

BARE = "start_as_current_span"
OURS = "@llamatel.task"
OFF = "@llamatel.task, telemetry off"
PLAIN = "the function alone"
_OTHERS = ("traceloop-sdk", "httpx", "logfire")  # httpx: OpenLLMetry needs it without declaring it
_ROOT = Path(__file__).resolve().parent.parent


class _Forgets(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


@dataclass(frozen=True, slots=True)
class DecoratorFigures:
    """Microseconds a call by name, medians over the rounds; and each round's ratio to the bare span, the median."""

    us: dict[str, float]
    ratios: dict[str, float]

    @property
    def ratio(self) -> float:
        """Ours over the bare span."""
        return self.ratios[OURS]

    def lines(self) -> list[str]:
        """For people."""
        return [
            f"  {name:32} {us:8.2f} us" + (f"   {self.ratios[name]:.2f} times" if name in self.ratios else "")
            for name, us in self.us.items()
        ]


def _nothing() -> None:
    pass


def _contestants() -> tuple[dict[str, Callable[[], None]], Tracer]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(_Forgets()))
    tracer = provider.get_tracer("benchmark")
    ours = llamatel.task(_nothing)

    def bare() -> None:
        with tracer.start_as_current_span("nothing"):
            _nothing()

    found: dict[str, Callable[[], None]] = {PLAIN: _nothing, OFF: ours, BARE: bare, OURS: ours}
    found.update(_others())
    return found, tracer


def _others() -> dict[str, Callable[[], None]]:
    found: dict[str, Callable[[], None]] = {}
    try:
        traceloop = importlib.import_module("traceloop.sdk")
        decorators = importlib.import_module("traceloop.sdk.decorators")
        traceloop.Traceloop.init(app_name="benchmark", exporter=_Forgets(), telemetry_enabled=False, instruments=set())
        found[f"OpenLLMetry {version('traceloop-sdk')} @task"] = decorators.task(name="nothing")(_nothing)
    except (ImportError, PackageNotFoundError):
        pass
    try:
        logfire = importlib.import_module("logfire")
        logfire.configure(
            send_to_logfire=False, console=False, additional_span_processors=[BatchSpanProcessor(_Forgets())]
        )
        found[f"Logfire {version('logfire')} @instrument"] = logfire.instrument()(_nothing)
    except (ImportError, PackageNotFoundError):
        pass
    return found


def _block(call: Callable[[], None], calls: int) -> float:
    started = time.process_time()
    for _ in range(calls):
        call()
    return (time.process_time() - started) / calls * 1e6


def measure(rounds: int, calls: int = 1000) -> DecoratorFigures:
    """``rounds`` blocks of ``calls`` of each, the order shifted every round; CPU time of this process's threads."""
    contestants, tracer = _contestants()
    times: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    try:
        for turn in range(-1, rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                tracing.use(tracer if name == OURS else None)
                spent = _block(contestants[name], calls)
                if turn >= 0:  # the first round warms up
                    times[name].append(spent)
    finally:
        tracing.use(None)
    ratios = {
        name: statistics.median(own / bare for own, bare in zip(times[name], times[BARE], strict=True))
        for name in names
        if name not in (PLAIN, OFF, BARE)
    }
    return DecoratorFigures({name: statistics.median(own) for name, own in times.items()}, ratios)


def measure_with_others(rounds: int) -> DecoratorFigures:
    """The same in a virtual environment that has the other libraries; it is made for this, and thrown away."""
    with tempfile.TemporaryDirectory(prefix="llamatel-bench-") as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = f"{folder}/bin/python"
        subprocess.run([python, "-m", "pip", "install", "-q", str(_ROOT), *_OTHERS], check=True)
        done = subprocess.run(
            [python, "-m", "benchmarks.decorators", "--rounds", str(rounds)],
            cwd=_ROOT, env={**os.environ, "TRACELOOP_TELEMETRY": "false"}, stdout=subprocess.PIPE, check=True,
        )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    return DecoratorFigures(found["us"], found["ratios"])


def main() -> None:
    """Measure with what is installed; prints JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decorators", description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    found = measure(parser.parse_args().rounds)
    print(json.dumps({"us": found.us, "ratios": found.ratios}))


if __name__ == "__main__":
    main()
