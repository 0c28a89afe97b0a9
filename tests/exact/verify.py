"""Compare every model of the suite with llama-server: ``python -m tests.exact.verify [NAME ...]``.

The tests' own llama-server runs the whole grid; every other available build (Debian sid's, a year of xllamacpp wheels,
a library of October 2026) a few settings per model. ``--random N`` adds N random settings per model. ``--update``
writes the results to ``docs/accuracy.md`` and ``llamatel/plan/verified.py``; builds and models that were
not run keep theirs. Exit status 1 if a row of the own build differs, or if ``verified.py`` does not match the results.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from queue import SimpleQueue

from llamatel.plan.llama_build import LlamaBuild
from llamatel.plan.verified import verified_builds
from tests.parts import free_port

from .builds import NAMES, Server, server, servers
from .compare import Row, Written, compare
from .fork_server import fork_server
from .grid import DRAFTING, OTHER_BUILDS, WITH_DRAFT, Flags, random_settings, settings_for
from .harness import Bench, preloaded_library
from .models import MODELS, PAIRS, TinyModel
from .verified_table import CRASHED, DIFFERENT, EQUAL, UNKNOWN, merged, ranges_of, recorded_table, update
from .writer import read_table, write_model


@dataclass(frozen=True)
class Job:
    """A model, its settings, and optionally a draft model."""

    model: TinyModel
    settings: Sequence[Flags]
    draft: TinyModel | None = None


def run(jobs: Sequence[Job], workers: int, folder: Path, of: Server | None = None) -> list[Row]:
    """Return all rows, by default of the tests' own llama-server; model files are temporary."""
    of = server("built") if of is None else of
    library, table = preloaded_library(folder), read_table()
    always = ("--no-warmup", "-fit", "off") if "-fit" in of.flags else ("--no-warmup",)
    benches: SimpleQueue[Bench] = SimpleQueue()
    forks = ExitStack()
    for port in {free_port() for _ in range(workers)}:
        server_of_forks = fork_server(of.program, library)
        if server_of_forks is not None:
            forks.callback(server_of_forks.close)
        benches.put(Bench(of.program, library, port, folder / f"{port}.txt", always, server_of_forks))

    def write(model: TinyModel, role: str) -> Written:
        path = write_model(folder / f"{role}-{model.name}.gguf", model, table[model.name])
        return Written(model, path, frozenset(table[model.name]))

    def one(model: Written, draft: Written | None, flags: Flags) -> Row:
        bench = benches.get()
        try:
            return compare(bench, model, draft, flags, of.build)
        finally:
            benches.put(bench)

    rows: list[Row] = []
    with forks, ThreadPoolExecutor(workers) as pool:
        for job in jobs:
            model = write(job.model, "model")
            draft = write(job.draft, "draft") if job.draft is not None else None
            first = one(model, draft, job.settings[0])
            if "missing tensor 'output.weight'" in first.allocation.output:
                # Older builds do not use the embeddings as the output of every architecture.
                table[job.model.name] |= {"output.weight": table[job.model.name]["token_embd.weight"]}
                model = write(job.model, "model")
                first = one(model, draft, job.settings[0])
            rows.append(first)
            if judged([first]):  # a model that the build does not know needs no other settings
                pending = [pool.submit(one, model, draft, flags) for flags in job.settings[1:]]
                rows += [future.result() for future in pending]
            for written in (model, draft):
                if written is not None:
                    written.path.unlink()
    return rows


def pairs() -> Iterator[Job]:
    """Models with a draft model."""
    by_name = {model.name: model for model in MODELS}
    for name, draft, speculation in PAIRS:
        yield Job(by_name[name], [(*speculation.split(), *flags) for flags in WITH_DRAFT], by_name[draft])


def _dies_while_fitting(row: Row) -> bool:
    return row.allocation.outcome == "aborted" and ("-fit", "on") in pairwise(row.flags)


def judged(rows: Iterable[Row]) -> list[Row]:
    """Return the rows with known models and flags, without crashes (also while fitting)."""
    known = [row for row in rows if row.allocation.outcome not in ("unsupported", "crashed")]
    return [row for row in known if not _dies_while_fitting(row)]


def report(rows: Sequence[Row], name: str = "llama-server") -> int:
    """Print differences and a summary; return the number of rows that differ."""
    rows, others = judged(rows), Counter(row.allocation.outcome for row in rows) - Counter()
    different = [row for row in rows if not row.equal]
    for row in different:
        print(f"DIFFERENT {row}")
    started = [model for row in rows for model in (row.model, row.draft) if model is not None]
    models, architectures = {model.name for model in started}, {model.architecture for model in started}
    print(
        f"{name}: {len(rows) - len(different)} of {len(rows)} rows equal, "
        f"on {len(models)} models of {len(architectures)} architectures; "
        f"{', '.join(f'{outcome} {number}' for outcome, number in sorted(others.items()))}",
        flush=True,
    )
    return len(different)


def marks(rows: Sequence[Row]) -> dict[str, str]:
    """Return a mark per architecture. A row with a draft model counts for both; a difference only for the draft."""
    found: dict[str, str] = {}
    order = (UNKNOWN, CRASHED, EQUAL, DIFFERENT)
    for row in rows:
        outcome = row.allocation.outcome
        if _dies_while_fitting(row):
            continue
        mark = UNKNOWN if outcome == "unsupported" else CRASHED if outcome == "crashed" else EQUAL
        if row.draft is not None and mark != EQUAL:
            continue  # either of the two is not known
        if mark == EQUAL and not row.equal:
            mark = DIFFERENT
        elif mark == EQUAL and outcome == "refused":
            continue
        differs = mark == DIFFERENT and row.draft is not None
        for model in (row.draft,) if differs else (row.model, row.draft):
            if model is not None:
                found[model.architecture] = max(mark, found.get(model.architecture, UNKNOWN), key=order.index)
    return found


def jobs_for(of: Server, names: Sequence[str], random: int, seed: int) -> list[Job]:
    """Return a build's jobs: the whole grid for the tests' own build, a part of it for others."""
    table = read_table()
    chosen = [model for model in MODELS if model.name in (names or table)]
    jobs = []
    for i, model in enumerate(chosen):
        settings: tuple[Flags, ...] = OTHER_BUILDS
        if of.name == "built":
            settings = (*settings_for(model), *islice(random_settings(seed * 1000 + i), random))
        elif model.metadata.get("nextn_predict_layers"):
            settings += DRAFTING[:2]
        if model.target is None:
            jobs.append(Job(model, settings))
    with_draft = [job for job in pairs() if not names or {job.model.name, job.draft and job.draft.name} & set(names)]
    return jobs + (
        with_draft if of.name == "built" else [Job(job.model, job.settings[:2], job.draft) for job in with_draft]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="models of the suite; all without one")
    parser.add_argument("--builds", default=",".join(NAMES), metavar="NAME,...", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--random", type=int, default=2, metavar="N", help="settings by chance for each model")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--update", action="store_true", help="write docs/accuracy.md and verified.py")
    options = parser.parse_args(argv)
    # A mark is about all models of an architecture: not about one that is only in a pair with a named model.
    architectures = {model.architecture for model in MODELS if not options.names or model.name in options.names}
    if options.update and options.names:
        options.names = [model.name for model in MODELS if model.architecture in architectures]
    different, table = 0, dict[LlamaBuild, dict[str, str]]()
    for each in servers(options.builds.split(",")):
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            rows = run(jobs_for(each, options.names, options.random, options.seed), options.jobs, Path(folder), each)
        differs = report(rows, f"{each.name} ({each.build})")
        different += differs if each.name == "built" else 0
        table[each.build] = {name: mark for name, mark in marks(rows).items() if name in architectures}
        print(f"{time.monotonic() - start:.0f} s", flush=True)
    if options.update:
        update(table, Counter(model.architecture for model in MODELS))
        return 1 if different else 0
    expected = merged(recorded_table(), table)
    stale = [
        name
        for name in sorted({name for found in table.values() for name in found})
        if ranges_of(name, expected) != " ".join(f"{first}-{last}" for first, last in verified_builds(name))
    ]
    if stale:
        print(f"llamatel/plan/verified.py is not what was found for {', '.join(stale)}: run it again with --update")
    return 1 if different or stale else 0


if __name__ == "__main__":
    sys.exit(main())
