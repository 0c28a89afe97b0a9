"""Runs the proofs: ``python -m tests.acceptance [NAME ...]``; each writes its figures to ``results/NAME.json``."""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from importlib.metadata import version
from pathlib import Path

from tests import acceptance

RESULTS = Path(__file__).parent / "results"


def names() -> list[str]:
    """The proofs there are."""
    return sorted(module.name for module in pkgutil.iter_modules(acceptance.__path__) if module.name != "__main__")


def _commit() -> str | None:
    git = ["git", "-C", str(RESULTS), "describe", "--always", "--abbrev=12", "--dirty"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def run(name: str, suffix: str = "") -> bool:
    """Run one proof and write its result to ``results/NAMESUFFIX.json``; False if it failed."""
    commit = _commit()
    proof = importlib.import_module(f"tests.acceptance.{name}")
    print(f"{name}: {(proof.__doc__ or '').splitlines()[0]}", flush=True)
    started = time.time()
    with tempfile.TemporaryDirectory() as folder:
        try:
            figures, failure = proof.run(Path(folder)), None
        except Exception as error:  # noqa: BLE001 - one failed proof must not end the others; it is reported
            traceback.print_exc()
            figures, failure = getattr(error, "figures", {}), f"{type(error).__name__}: {error}"
    result = {
        "proof": name,
        "command": f"python -m tests.acceptance {name}",
        "date": time.strftime("%Y-%m-%d", time.gmtime(started)),
        "commit": commit,
        "seconds": round(time.time() - started, 1),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "llamatel": version("llamatel"),
        "xllamacpp": version("xllamacpp"),
        "passed": failure is None,
        **({"failure": failure} if failure else {}),
        "figures": figures,
    }
    (RESULTS / f"{name}{suffix}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"{name}: {'passed' if failure is None else 'FAILED'} in {result['seconds']} s: {figures}", flush=True)
    return failure is None


def main() -> int:
    """Exit status 1 if a proof failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"proofs to run (all: {', '.join(names())})")
    parser.add_argument("--suffix", default="", help="appended to the names of the results")
    arguments = parser.parse_args()
    chosen = arguments.names or names()
    unknown = sorted(set(chosen) - set(names()))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(names())}")
    results = {name: run(name, arguments.suffix) for name in chosen}  # all of them, whatever fails
    return 0 if all(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
