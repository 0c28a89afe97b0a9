"""docs/attach.md says for each engine what shows that it works: those tests exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "attach.md"
_TEST = re.compile(r"`(test_\w+\.py)::(test_\w+)`")


def rows() -> list[list[str]]:
    """The cells of the table of engines, without its heading."""
    table = PAGE.read_text().partition("## Engines")[2]
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_engine_table_is_complete() -> None:
    assert len(rows()) >= 10
    assert {len(row) for row in rows()} == {7}


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:30])
def test_engine_table_evidence_exists(row: list[str]) -> None:
    evidence = row[-1]
    named = _TEST.findall(evidence)
    assert named or evidence == "not tested"
    assert evidence.startswith(("real", "recorded", "stand-in", "not tested"))
    for file, name in named:
        assert f"def {name}(" in (TESTS / file).read_text(), f"{file}::{name}"
