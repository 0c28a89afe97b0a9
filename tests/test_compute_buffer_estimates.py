"""Estimated compute buffers compared with llama.cpp's, on models of real dimensions; `make estimates` prints each."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from llamatel.plan.compute_buffers import COMPUTE_ERROR
from tests.exact.estimates import SETTINGS, real_models
from tests.exact.real import REAL
from tests.parts import MissingPart, in_ci


def test_plan_compute_error_statement_matches_measurement(tmp_path: Path) -> None:
    try:
        errors = [abs(error) for error in real_models(tmp_path)]
    except MissingPart as missing:
        if in_ci():
            raise
        pytest.skip(str(missing))
    assert len(errors) == len(REAL) * len(SETTINGS)
    for figure in (f"{len(REAL)} models", f"{len(SETTINGS)} settings", f"median {statistics.median(errors):.1%}"):
        assert figure.replace("%", " %") in COMPUTE_ERROR
    assert f"worst {max(errors):.0%}".replace("%", " %") in COMPUTE_ERROR
