"""Notebooks run as Jupyter runs them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.notebooks import cells, run_notebook


def test_notebooks_failing_cell_fails(tmp_path: Path) -> None:
    ran = run_notebook(cells("print(6 * 7)", "'shown'"), tmp_path)
    assert ran.text == "42\n\n'shown'"
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        run_notebook(cells("1 / 0"), tmp_path)
