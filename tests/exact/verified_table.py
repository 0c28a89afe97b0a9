"""Results of comparing builds: a table in ``docs/accuracy.md``, and from it the ranges of ``verified.py``."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from llamatel.plan.architectures import architecture_of
from llamatel.plan.llama_build import LlamaBuild, parse_build

ROOT = Path(__file__).parent.parent.parent
RANGES = ROOT / "llamatel" / "plan" / "verified.py"
DOCUMENT = ROOT / "docs" / "accuracy.md"
START, END = "<!-- builds: start -->", "<!-- builds: end -->"
EQUAL, DIFFERENT, CRASHED, UNKNOWN = "=", "≠", "!", "·"
"""All rows equal; some differ; llama-server crashes on the suite's model; unknown architecture."""

Table = Mapping[LlamaBuild, Mapping[str, str]]
"""By build: each architecture's mark."""


def ranges_of(architecture: str, table: Table) -> str:
    """Return ranges like ``7376-10229 11063-11669`` of consecutive builds that are equal by the same rules."""
    builds = sorted((build for build in table if build.number is not None), key=lambda build: build.number or 0)
    known = [build for build in builds if table[build].get(architecture, UNKNOWN) != CRASHED]
    runs: list[list[LlamaBuild]] = []
    for before, build in pairwise([None, *known]):
        if build is None or table[build].get(architecture, UNKNOWN) != EQUAL:
            continue
        row = architecture_of(architecture, build)
        joined = runs and runs[-1][-1] == before and architecture_of(architecture, before) == row
        if joined:
            runs[-1].append(build)
        else:
            runs.append([build])
    return " ".join(f"{run[0].number}-{run[-1].number}" for run in runs)


def ranges_text(table: Table) -> str:
    """The lines of ``verified.py``."""
    by_range: dict[str, list[str]] = {}
    for architecture in sorted({name for marks in table.values() for name in marks}):
        ranges = ranges_of(architecture, table)
        if ranges:
            by_range.setdefault(ranges, []).append(architecture)
    lines = []
    for ranges, names in sorted(by_range.items()):
        wrapped = textwrap.wrap(" ".join(names), 118 - len(ranges), break_on_hyphens=False, break_long_words=False)
        lines += [f"{ranges}: {line}" for line in wrapped]
    return "\n".join(lines)


def document_table(table: Table, models: Mapping[str, int]) -> str:
    """Return a Markdown table: a row per architecture, a column per build."""
    builds = sorted(table, key=lambda build: build.number or 0)
    head = ["architecture", "models", *(f"b{b.number}" if b.text != "0.5.0-dev" else b.text for b in builds)]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---|" * (len(head) - 1)]
    for architecture in sorted({name for marks in table.values() for name in marks}):
        marks = [table[build].get(architecture, UNKNOWN) for build in builds]
        lines.append(f"| {architecture} | {models.get(architecture, 0)} | {' | '.join(marks)} |")
    return "\n".join(lines)


def replace_between(path: Path, start: str, end: str, text: str) -> None:
    """Put text between two marks of a file."""
    before, _, rest = path.read_text(encoding="utf-8").partition(start)
    _, _, after = rest.partition(end)
    path.write_text(f"{before}{start}\n{text}\n{end}{after}", encoding="utf-8")


def recorded_table() -> dict[LlamaBuild, dict[str, str]]:
    """The table in the document."""
    _, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(START)
    rows = [line.strip("| ").split(" | ") for line in rest.partition(END)[0].strip().splitlines()]
    found: dict[LlamaBuild, dict[str, str]] = {}
    for column, text in enumerate(rows[0][2:] if rows else (), 2):
        build = parse_build(text)
        assert build is not None
        found[build] = {row[0]: row[column] for row in rows[2:]}
    return found


def merged(recorded: Table, found: Table) -> dict[LlamaBuild, dict[str, str]]:
    """``recorded`` with what was found now: a run may cover some of the builds and some of the architectures."""
    by_number = {build.number: (build, dict(marks)) for build, marks in recorded.items()}
    for build, marks in found.items():
        by_number.setdefault(build.number, (build, {}))[1].update(marks)
    return dict(by_number.values())


def update(found: Table, models: Mapping[str, int]) -> None:
    """Write both."""
    table = merged(recorded_table(), found)
    replace_between(RANGES, '_RANGES = """', '"""', ranges_text(table))
    replace_between(DOCUMENT, START, END, document_table(table, models))
