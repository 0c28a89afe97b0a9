"""Fuzz the parsers of external input: ``python -m tests.fuzz --seconds 60``; ``--atheris`` is guided by coverage.

Without it, mutations of valid inputs. Prints for each target how many inputs were tried and accepted. When a property
is violated, writes the input to a file and exits with 1.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.fuzz import gguf_header, hub_response, model_config, server_answers
from tests.fuzz.gguf_files_target import GGUF
from tests.fuzz.server_log import RECORDS, TEXT
from tests.fuzz.target import Target, structured

TARGETS = {
    target.name: target
    for target in (
        GGUF,
        structured("gguf_keys", gguf_header.check, GGUF.corpus, gguf_header.structured, "gguf_header"),
        structured("model_config", model_config.check, model_config.corpus, model_config.structured, "model_config"),
        structured("hub_response", hub_response.check, hub_response.corpus, hub_response.structured, "hub_response"),
        *server_answers.TARGETS,
        TEXT,
        RECORDS,
    )
}


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
    module, _, function = target.instrumented.partition(":")
    with atheris.instrument_imports(include=["llamatel"]):
        for name in [name for name in sys.modules if name.startswith(("llamatel", "tests.fuzz.")) and name != __name__]:
            del sys.modules[name]
        check = getattr(importlib.import_module(module), function)
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(target.corpus()):
        (folder / f"seed-{number}").write_bytes(data)
    flags = [
        f"-max_total_time={int(seconds)}",
        "-max_len=65536",
        "-timeout=10",
        "-rss_limit_mb=1024",
        "-verbosity=0",
        "-print_final_stats=1",  # number_of_executed_units is how many inputs were tried
    ]
    atheris.Setup([sys.argv[0], *flags, str(folder)], lambda data: (check(data), None)[1])
    atheris.Fuzz()


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz the parsers of external input.")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=sorted(TARGETS), action="append", help="default: all")
    parser.add_argument("--atheris", action="store_true", help="guided by coverage")
    parser.add_argument("--corpus", type=Path, default=Path("build/fuzz-corpus"), help="atheris keeps its finds here")
    options = parser.parse_args()
    logging.disable()  # the inputs are full of reasons for warnings
    names = options.target or list(TARGETS)
    if not options.atheris:
        for name in names:
            tried, accepted = fuzz(TARGETS[name], options.seconds, options.seed)
            print(
                f"{name}: {tried} inputs, {accepted} accepted, none broke a promise (seed {options.seed})", flush=True
            )
        return 0
    if len(names) == 1:
        _guided(TARGETS[names[0]], options.seconds, options.corpus / names[0])
    # atheris exits its process after the first target.
    command = [sys.executable, "-m", "tests.fuzz", "--atheris", "--seconds", str(options.seconds)]
    for name in names:
        print(f"{name}:", flush=True)
        subprocess.run([*command, "--corpus", str(options.corpus), "--target", name], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
