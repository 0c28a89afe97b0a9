"""Text views of fixed records: golden files in tests/golden/view (UPDATE_GOLDEN=1 writes them again)."""

from __future__ import annotations

import dataclasses
import io
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from llamatel.cli.telemetry_options import columns
from llamatel.records import Completion, Outcome, ServerInfo
from llamatel.ui.request_statistics import Distribution, RequestStatistics
from llamatel.ui.view import (
    ASCII,
    UNICODE,
    Glyphs,
    glyphs_for,
    request_header,
    request_line,
    summary_sentence,
    summary_table,
    waterfall,
)
from llamatel.ui.view.number_format import count, exact, rate, seconds
from llamatel.ui.view.phase_bar import phases, shares

GOLDEN = Path(__file__).parent / "golden" / "view"
START = 1_790_000_000.0
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"

OK = Completion(
    server=ServerInfo("127.0.0.1", 8090, "tiny"),
    slot=1,
    task=42,
    started_at=START + 0.030,
    ended_at=START + 0.430,
    outcome=Outcome.OK,
    queue_s=0.030,
    prefill_s=0.082,
    decode_s=0.318,
    first_token_at=START + 0.112,
    prompt_computed=27,
    prompt_cached=96,
    generated=48,
)
WAITED = dataclasses.replace(
    OK,
    task=43,
    queue_s=0.9,
    started_at=START + 0.9,
    first_token_at=START + 0.982,
    ended_at=START + 1.3,
    prompt_cached=0,
)
NO_QUEUE = dataclasses.replace(OK, task=44, queue_s=None)
LONG = dataclasses.replace(
    OK,
    task=45,
    prompt_cached=131_072,
    generated=123_456,
    decode_s=4000.0,
    ended_at=START + 4000.112,
    context_shifts=2,
    server=ServerInfo("gpu.example", None, "Meta-Llama-3.1-8B-Instruct-Q4_K_M.gguf"),
)
CANCELLED = Completion(
    server=OK.server, slot=2, task=46, started_at=START, ended_at=START + 0.2, outcome=Outcome.CANCELLED, queue_s=0.05
)
TOO_LONG = dataclasses.replace(
    CANCELLED,
    task=47,
    ended_at=START + 0.0012,
    outcome=Outcome.ERROR,
    queue_s=0.0,
    error="request (24578 tokens) exceeds the available context size (1024 tokens), try increasing it",
)
FULL = dataclasses.replace(
    CANCELLED, task=48, outcome=Outcome.CONTEXT_FULL, error="Context size has been exceeded.", queue_s=None
)
EMBEDDING = dataclasses.replace(OK, task=49, decode_s=None, first_token_at=None, generated=None, prompt_cached=None)
ALL = (OK, WAITED, NO_QUEUE, LONG, CANCELLED, TOO_LONG, FULL, EMBEDDING)


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def page(glyphs: Glyphs, width: int = 80, *, cut: bool = True) -> Text:
    """Everything that can be drawn, on one page."""
    statistics = RequestStatistics()
    parts = [request_header(glyphs)]
    for completion in ALL:
        parts.append(request_line(completion, width, glyphs, cut=cut))
        statistics(completion, TRACE)
    for completion in (OK, LONG, CANCELLED, TOO_LONG, EMBEDDING):
        parts.append(Text())
        parts.append(waterfall(completion, width, glyphs, trace_id=TRACE))
    for summary in (statistics.summary(), RequestStatistics().summary()):
        parts += [Text(), summary_table(summary, glyphs), Text(summary_sentence(summary))]
    return Text("\n").join(parts)


def compare(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "glyphs"), [("unicode.txt", UNICODE), ("ascii.txt", ASCII)])
def test_request_lines_plain(name: str, glyphs: Glyphs) -> None:
    text = page(glyphs).plain + "\n"
    compare(name, text)
    assert glyphs is not ASCII or text.isascii()


def test_request_lines_terminal() -> None:
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, color_system="standard", _environ={})
    console.print(page(UNICODE))
    compare("terminal.ansi", out.getvalue())


@pytest.mark.parametrize("width", [60, 80, 132, 300])
def test_request_line_width(width: int) -> None:
    text = page(UNICODE, width)
    too_wide = [line.plain for line in text.split("\n") if line.cell_len > max(width, 80)]
    assert not too_wide


def test_request_line_error_in_pipe() -> None:
    assert TOO_LONG.error is not None
    assert request_line(TOO_LONG, 80, cut=False).plain.endswith(TOO_LONG.error)


def test_request_line_truncated() -> None:
    cut = dataclasses.replace(OK, truncated=True)
    assert request_line(cut).plain[9:21] == "ok, cut off "
    assert request_line(dataclasses.replace(cut, context_shifts=1)).plain[9:21] == "ok, shifted "


def test_request_line_unknown() -> None:
    assert "0" not in request_line(CANCELLED).plain.split("250 ms")[1]
    assert (seconds(None), count(None), exact(None), rate(None)) == (UNICODE.unknown,) * 4
    assert RequestStatistics().summary().as_dict()["tokens"] == {"input": None, "input_cached": None, "output": None}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0 ms"),
        (0.00042, "0.42 ms"),
        (0.009996, "10.0 ms"),
        (0.412, "412 ms"),
        (0.9996, "1.00 s"),
        (9.996, "10.0 s"),
        (99.96, "1m40s"),
        (723.0, "12m03s"),
        (3599.7, "1h00m"),
        (11_100.0, "3h05m"),
    ],
)
def test_seconds(value: float, text: str) -> None:
    assert seconds(value) == text


@given(st.floats(min_value=0, max_value=3.5e6))
def test_seconds_width(value: float) -> None:
    assert len(seconds(value)) <= 7


@given(st.integers(min_value=0, max_value=10**12 - 10**9), st.integers(min_value=4, max_value=9))
def test_count_width(value: int, width: int) -> None:
    assert len(count(value, width=width)) <= width


@given(st.floats(min_value=0, max_value=1e11))
def test_rate_width(value: float) -> None:
    assert len(rate(value)) <= 5


@given(st.lists(st.floats(min_value=0, max_value=1e9), max_size=6), st.integers(min_value=0, max_value=200))
def test_phase_bar_shares(values: list[float], cells: int) -> None:
    parts = shares(values, cells)
    assert sum(parts) == (cells if sum(values) > 0 else 0)
    assert all(part >= 0 for part in parts)
    total = sum(values)
    assert all(abs(part - value / total * cells) <= 1 for part, value in zip(parts, values, strict=True) if total > 0)


def test_phase_bar_unknown_phase() -> None:
    assert [name for name, _ in phases(CANCELLED)] == ["queue", "unattributed"]
    assert [name for name, _ in phases(OK)] == ["queue", "prefill", "decode"]


def test_request_statistics_bounded() -> None:
    statistics = RequestStatistics(keep=3)
    for number in range(10):
        statistics(dataclasses.replace(OK, ended_at=START + number, queue_s=None, started_at=START))
    summary = statistics.summary()
    assert (summary.requests, summary.outcomes["ok"], statistics.requests) == (10, 10, 10)
    assert summary.end_to_end == Distribution(3, 8.0, 8.9, 8.98)
    assert (summary.tokens_in, summary.tokens_cached, summary.tokens_out) == (1230, 960, 480)
    assert summary.time_to_first_token == Distribution(0)


def test_percentiles() -> None:
    assert Distribution.of([3.0]) == Distribution(1, 3.0, 3.0, 3.0)
    middle = Distribution.of([4.0, 1.0, 2.0, 3.0]).p50
    assert middle == 2.5


@pytest.mark.parametrize(
    ("encoding", "glyphs"),
    [("utf-8", UNICODE), ("UTF8", UNICODE), ("ascii", ASCII), ("latin-1", ASCII), (None, ASCII), ("?", ASCII)],
)
def test_glyphs_for_encoding(encoding: str | None, glyphs: Glyphs) -> None:
    assert glyphs_for(encoding) is glyphs


def test_request_line_escapes_names() -> None:
    hostile = dataclasses.replace(
        OK,
        server=ServerInfo("h", 1, "\x1b[2Jm"),
        outcome=Outcome.ERROR,
        prompt_computed=None,
        error="\x1b]0;x\x07 broken",
    )
    shown = (waterfall(hostile), request_line(hostile, cut=False), *columns({"server": "http://h:1 \x1b[2J"}))
    assert not [text.plain for text in shown if "\x1b" in text.plain or "\x07" in text.plain]
    assert "broken" in shown[0].plain
    assert "broken" in shown[1].plain
