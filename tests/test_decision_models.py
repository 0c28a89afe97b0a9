"""Requests of ``/v1/systemone``, which log neither timings nor their kind.

The lines are those of a recorded server with embeddings, and the start line of server-decision.cpp (b11434):
no decision model is small enough, or public, to run one here.
"""

from __future__ import annotations

from llamatel.records import GroupedCall, Outcome
from llamatel.tracing.semconv import operation
from tests.golden.reading import log_lines, read, timed

START = "0.00.000.001 I srv          init: decision model type: clef"


def test_decision_model_operation() -> None:
    lines = list(log_lines("embeddings"))
    found = read(timed([lines[0], START, *lines[1:]])).completions
    assert found
    ok = [each for each in found if each.outcome is Outcome.OK]
    assert {operation(each) for each in ok} == {"decision"}
    assert {operation(each) for each in found if each.outcome is not Outcome.OK} <= {"generate_content"}
    assert [each.tasks for each in found if isinstance(each, GroupedCall)] == [1, 3, 1]
    assert {operation(each) for each in read(timed(lines)).completions if each.outcome is Outcome.OK} == {"embeddings"}


def test_decision_model_type_in_text_of_clients() -> None:
    lines = list(log_lines("embeddings"))
    forged = "0.00.000.001 W srv    operator(): got exception: srv          init: decision model type: clef"
    found = read(timed([lines[0], forged, *lines[1:]])).completions
    assert "decision" not in {operation(each) for each in found}
