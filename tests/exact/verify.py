"""Compare every model of the suite with llama-server over the whole grid: ``python -m tests.exact.verify [NAME ...]``.

``--random N`` adds N settings a model that nobody chose. Exit status 1 if a row differs, or if the architectures whose
rows were all equal are not those that ``llamatel/plan/verified.py`` names.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from queue import SimpleQueue

from llamatel.plan.verified import VERIFIED
from tests.parts import free_port, llama_server

from .compare import Row, Written, compare
from .grid import BESIDE, Flags, random_settings, settings_for
from .harness import Bench, preloaded_library
from .models import MODELS, PAIRS, TinyModel
from .writer import read_table, write_model


@dataclass(frozen=True)
class Job:
    """A model, the settings to start it with, and perhaps a model beside it that drafts."""

    model: TinyModel
    settings: Sequence[Flags]
    draft: TinyModel | None = None


def run(jobs: Sequence[Job], workers: int, folder: Path) -> list[Row]:
    """All rows; models are written as they are needed and deleted when done."""
    server, library, table = llama_server(), preloaded_library(folder), read_table()
    benches: SimpleQueue[Bench] = SimpleQueue()
    for port in {free_port() for _ in range(workers)}:
        benches.put(Bench(server, library, port, folder / f"{port}.txt"))

    def write(model: TinyModel, role: str) -> Written:
        path = write_model(folder / f"{role}-{model.name}.gguf", model, table[model.name])
        return Written(model, path, frozenset(table[model.name]))

    def one(model: Written, draft: Written | None, flags: Flags) -> Row:
        bench = benches.get()
        try:
            return compare(bench, model, draft, flags)
        finally:
            benches.put(bench)

    rows: list[Row] = []
    with ThreadPoolExecutor(workers) as pool:
        for job in jobs:
            model = write(job.model, "model")
            draft = write(job.draft, "draft") if job.draft is not None else None
            pending = [pool.submit(one, model, draft, flags) for flags in job.settings]
            rows += [future.result() for future in pending]
            for written in (model, draft):
                if written is not None:
                    written.path.unlink()
    return rows


def pairs() -> Iterator[Job]:
    """Models with another beside them that drafts."""
    by_name = {model.name: model for model in MODELS}
    for name, draft, speculation in PAIRS:
        yield Job(by_name[name], [(*speculation.split(), *flags) for flags in BESIDE], by_name[draft])


def report(rows: Sequence[Row]) -> int:
    """Print what differs and what was found; the number of rows that differ."""
    different = [row for row in rows if not row.equal]
    for row in different:
        print(f"DIFFERENT {row}")
    outcomes = Counter(row.allocation.outcome for row in rows)
    started = [model for row in rows for model in (row.model, row.draft) if model is not None]
    models, architectures = {model.name for model in started}, {model.architecture for model in started}
    print(
        f"{len(rows) - len(different)} of {len(rows)} rows equal, "
        f"on {len(models)} models of {len(architectures)} architectures; llama-server "
        f"{', '.join(f'{outcome} {number}' for outcome, number in sorted(outcomes.items()))}"
    )
    return len(different)


def proven(rows: Sequence[Row]) -> frozenset[str]:
    """Architectures with rows that started, all equal."""

    def of(some: Iterable[Row]) -> set[str]:
        return {model.architecture for row in some for model in (row.model, row.draft) if model is not None}

    return frozenset(of(row for row in rows if row.allocation.outcome != "refused")) - of(
        row for row in rows if not row.equal
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="models of the suite; all without one")
    parser.add_argument("--random", type=int, default=2, metavar="N", help="settings by chance for each model")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args(argv)
    table = read_table()
    chosen = [m for m in MODELS if m.name in (options.names or table)]
    jobs = [
        Job(model, (*settings_for(model), *islice(random_settings(options.seed * 1000 + i), options.random)))
        for i, model in enumerate(chosen)
        if model.target is None
    ]
    jobs += [
        job
        for job in pairs()
        if not options.names or {job.model.name, job.draft and job.draft.name} & set(options.names)
    ]
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        rows = run(jobs, options.jobs, Path(folder))
    different = report(rows)
    print(f"{time.monotonic() - begun:.0f} s")
    if options.names:
        return 1 if different else 0
    found = proven(rows)
    if found != VERIFIED:
        print(f"llamatel/plan/verified.py should gain {sorted(found - VERIFIED)} and lose {sorted(VERIFIED - found)}")
    return 1 if different or found != VERIFIED else 0


if __name__ == "__main__":
    sys.exit(main())
