"""Fuzz the parsers of external input: ``python -m tests.fuzz --seconds 60``; ``--atheris`` is guided by coverage.

Without it, mutations of valid inputs. Prints for each target how many inputs were tried. When a property is violated,
writes the input to a file and exits with 1.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.fuzz import (
    carried_log,
    gguf_header,
    hub_response,
    model_config,
    model_response,
    server_answers,
    server_log,
)
from tests.fuzz.gguf_files_target import GGUF
from tests.fuzz.target import Target, store, structured

TARGETS = {
    target.name: target
    for target in (
        GGUF,
        structured("gguf_keys", gguf_header.check, GGUF.seeds, gguf_header.structured),
        structured("model_config", model_config.check, model_config.corpus, model_config.structured),
        structured("hub_response", hub_response.check, hub_response.corpus, hub_response.structured),
        *server_answers.TARGETS,
        *server_log.TARGETS,
        *carried_log.TARGETS,
        *model_response.TARGETS,
    )
}
_EXECUTED = re.compile(r"^(?:stat::number_of_executed_units: +|Done )(\d+)", re.MULTILINE)


def fuzz(target: Target, seconds: float, seed: int) -> tuple[int, int]:
    """Try mutations for ``seconds``; return how many, and how many were accepted. Raises Broken."""
    seeds, dice = target.corpus(), random.Random(seed)
    tried = accepted = 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        data = target.mutate(dice.choice(seeds), seeds, dice)
        try:
            accepted += target.check(data)
        except Exception:
            path = Path(f"fuzz-broken-{target.name}-{seed}-{tried}")
            path.write_bytes(data)
            print(f"{target.name}: broken by input {tried} of seed {seed}, kept in {path}")
            raise
        tried += 1
    return tried, accepted


def _guided(target: Target, seconds: float, folder: Path) -> None:
    """Fuzz under atheris; exits the process."""
    atheris: Any = importlib.import_module("atheris")  # in no lock file: it has no wheels for every Python
    with atheris.instrument_imports(include=["llamatel"]):
        for name in [name for name in sys.modules if name.startswith(("llamatel", "tests.")) and name != __name__]:
            del sys.modules[name]
        check = getattr(importlib.import_module(target.check.__module__), target.check.__name__)
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(target.corpus()):
        (folder / f"seed-{number}").write_bytes(data)
    flags = [
        f"-max_total_time={int(seconds)}",
        "-max_len=16384",
        "-timeout=10",
        "-rss_limit_mb=1024",
        "-verbosity=0",
        f"-artifact_prefix=fuzz-broken-{target.name}-",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *flags, str(folder)], lambda data: (check(data), None)[1])
    atheris.Fuzz()


def _run_guided(target: Target, seconds: float, corpus: Path) -> int | None:
    """Run one target under atheris, which exits its process; returns the number of inputs, None if one broke it."""
    command = [sys.executable, "-m", "tests.fuzz", "--atheris", "--one", "--seconds", str(seconds)]
    command += ["--corpus", str(corpus), "--target", target.name]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    executed = _EXECUTED.search(done.stderr + done.stdout)
    if done.returncode != 0 or executed is None:
        print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
        return None
    return int(executed[1])


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz the parsers of external input.")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=sorted(TARGETS), action="append", help="default: all")
    parser.add_argument("--atheris", action="store_true", help="guided by coverage")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--corpus", type=Path, default=Path("build/fuzz-corpus"), help="atheris keeps its finds here")
    parser.add_argument("--store", action="store_true", help="check in finds of --corpus that reach other code")
    options = parser.parse_args()
    logging.disable()  # the inputs are full of reasons for warnings
    targets = [TARGETS[name] for name in options.target or TARGETS]
    if options.one:
        _guided(targets[0], options.seconds, options.corpus / targets[0].name)
    broken = 0
    for target in targets:
        if options.store:
            print(f"{target.name}: {store(target, options.corpus / target.name)} inputs stored", flush=True)
        elif options.atheris:
            executed = _run_guided(target, options.seconds, options.corpus)
            broken += executed is None
            result = "BROKEN" if executed is None else f"{executed} inputs guided by coverage, none broke a property"
            print(f"{target.name}: {result}", flush=True)
        else:
            tried, accepted = fuzz(target, options.seconds, options.seed)
            result = f"{tried} inputs, {accepted} accepted, none broke a property (seed {options.seed})"
            print(f"{target.name}: {result}", flush=True)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
