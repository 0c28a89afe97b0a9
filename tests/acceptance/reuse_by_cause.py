"""Scripted requests for each cause of lost prompts, on both backends: causes, tokens, seconds as the client counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llamatel.models import tiny_model
from tests.exact.models import MODELS
from tests.exact.writer import read_table, write_model
from tests.parts import llama_server
from tests.reuse_cases import CASES, Counted, run_case

BUILDS = ("llama-server", "xllamacpp")
"""Both backends, builds of October 2026."""


def _cases(folder: Path, build: str) -> tuple[dict[str, str], list[str]]:
    """Agreeing requests of all, by expected cause; and those that disagree."""
    known, tensors = {model.name: model for model in MODELS}, read_table()
    backend = str(llama_server()) if build == "llama-server" else build
    found: list[tuple[str, Counted]] = []
    for case in CASES:
        file = folder / f"{case.model.replace(':', '-')}.gguf"
        if case.model != "tiny" and not file.exists():
            write_model(file, known[case.model], tensors[case.model])
        model = tiny_model() if case.model == "tiny" else file
        found += [(case.name, one) for one in run_case(case, backend, model, folder)]
        wrong = [str(one) for _, one in found if not one.agrees]
        print(f"{build}, {case.name}: {len(found)} requests so far, wrong: {wrong or 'none'}", flush=True)
    by_cause: dict[str, list[bool]] = {}
    for _, one in found:
        by_cause.setdefault(one.turn.cause.value if one.turn.cause else "none", []).append(one.agrees)
    wrong = [f"{build}, {name}: {one}" for name, one in found if not one.agrees]
    return {cause: f"{sum(right)} of {len(right)}" for cause, right in sorted(by_cause.items())}, wrong


def run(folder: Path) -> dict[str, Any]:
    """The requests that agree, by expected cause, for each build."""
    figures: dict[str, Any] = {}
    wrong: list[str] = []
    for build in BUILDS:
        figures[build], failed = _cases(folder, build)
        wrong += failed
    figures["wrong"] = wrong
    if wrong:
        error = AssertionError("; ".join(wrong))
        error.figures = figures  # type: ignore[attr-defined]
        raise error
    return figures
