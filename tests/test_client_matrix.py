"""Calls of client libraries, eight at once with identical prompts, in the server's process and in another one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import client_matrix
from tests.client_matrix import PAGE, ROWS, TABLE, OtherProcess, instrumentations, measure
from tests.conftest import _get
from tests.matrix_caller import CLIENTS
from tests.parts import OtlpSink
from tests.parts.environments import client_libraries

pytestmark = pytest.mark.slow
CALLS = 64


@pytest.fixture(scope="module")
def python(request: pytest.FixtureRequest) -> Path:
    return _get(request, client_libraries)


@pytest.mark.parametrize("process", ["same", "other"])
@pytest.mark.parametrize("row", client_matrix.SHORT, ids=" ".join)
def test_client_matrix_calls_are_joined(  # noqa: PLR0917 - fixtures
    row: tuple[str, str], process: str, python: Path, shared_sink: OtlpSink, served: OtherProcess, tiny_model: Path
) -> None:
    elsewhere = served if process == "other" else None
    for _ in range(3):  # on a busy machine a caller's thread may wait longer than its request does
        found = measure(shared_sink, *row, CALLS, model=tiny_model, elsewhere=elsewhere, python=python)
        assert (found.calls, found.wrong) == (CALLS, 0)
        if not found.none:
            break
    assert found.none == 0
    assert found.joined >= 0.9 * CALLS  # two requests that are equal to the microsecond are linked
    assert found.client_spans == CALLS  # the span of the other instrumentation, or llamatel's


def test_client_matrix_in_the_documentation() -> None:
    found = TABLE.search(PAGE.read_text(encoding="utf-8"))
    assert found is not None
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in found.group().splitlines()[2:]]
    assert [(row[0], row[1]) for row in rows[::2]] == [(client, instrumentations(other)) for client, other in ROWS]
    assert {client for client, _ in ROWS} == set(CLIENTS)
    assert {row[6] for row in rows} == {"0"}  # wrong joins
