"""Scripted requests for each cause of lost prompts, on both backends and a year of builds, as the client counts."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import urllib3

from llamatel.errors import LlamatelError
from llamatel.models import tiny_model
from llamatel.records import RecomputeCause
from tests.exact.models import MODELS
from tests.exact.writer import read_table, write_model
from tests.parts import llama_server
from tests.parts.wheels import xllamacpp_server
from tests.reuse_cases import CASES, Counted, run_case

NEWEST = ("llama-server", "xllamacpp")
"""Both backends, builds of October 2026: here every cause must be found."""
OLDER = (
    "2026.9.10809", "2026.8.10229", "2026.7.9873", "2026.6.9538", "2026.5.9093", "2026.4.8672.1", "0.2.13", "0.2.10",
    "0.2.7",
)  # fmt: skip
"""Of a year: here a cause may be unknown, never wrong."""


def _backend(build: str) -> str:
    if build == "llama-server":
        return str(llama_server())
    return build if build in NEWEST else str(xllamacpp_server(build))


def _result(one: Counted, build: str) -> str:
    """``right``, ``unknown`` or ``wrong``."""
    if one.agrees:
        return "right"
    unknown = one.record.recompute_cause in (None, RecomputeCause.UNKNOWN)
    return "unknown" if unknown and build not in NEWEST else "wrong"


def _cases(folder: Path, build: str) -> tuple[dict[str, str], list[str]]:
    """Results by expected cause; and the requests that are wrong."""
    known, tensors = {model.name: model for model in MODELS}, read_table()
    backend = _backend(build)
    results: dict[str, list[str]] = defaultdict(list)
    wrong, unable = [], []
    for case in CASES:
        file = folder / f"{case.model.replace(':', '-')}.gguf"
        if case.model != "tiny" and not file.exists():
            write_model(file, known[case.model], tensors[case.model])
        try:
            counted = run_case(case, backend, tiny_model() if case.model == "tiny" else file, folder)
        except (LlamatelError, urllib3.exceptions.HTTPError):
            if build in NEWEST:
                raise
            unable.append(case.name)  # the build has no such flag, or crashes
            continue
        for one in counted:
            result = _result(one, build)
            results[one.cause.value if one.cause else "none"].append(result)
            if result == "wrong" or (build in NEWEST and one.cause is not one.turn.cause):
                wrong.append(f"{build}, {case.name}: {one}")
    print(f"{build}: {sum(map(len, results.values()))} requests, wrong: {wrong or 'none'}", flush=True)
    figures = {cause: f"{found.count('right')} of {len(found)}" for cause, found in sorted(results.items())}
    return figures | ({"not run": ", ".join(unable)} if unable else {}), wrong


def run(folder: Path) -> dict[str, Any]:
    """The requests whose cause is right, by expected cause, for each build; the others are unknown."""
    figures: dict[str, Any] = {}
    wrong: list[str] = []
    for build in (*NEWEST, *OLDER):
        figures[build], failed = _cases(folder, build)
        wrong += failed
    figures["wrong"] = wrong
    if wrong:
        error = AssertionError("; ".join(wrong))
        error.figures = figures  # type: ignore[attr-defined]
        raise error
    return figures
