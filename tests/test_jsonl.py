"""JSON lines: their fields, and failing targets lose only their own lines."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from pathlib import Path

import pytest

from llamatel.errors import UsageError
from llamatel.records import Completion, Outcome, ServerInfo
from llamatel.telemetry.jsonl import JsonLines, completion_as_dict

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
DONE = Completion(
    server=ServerInfo("127.0.0.1", 8090, "tiny"),
    slot=1,
    task=42,
    started_at=100.5,
    ended_at=101.0,
    outcome=Outcome.OK,
    queue_s=0.5,
    prefill_s=0.1,
    decode_s=0.4,
    first_token_at=100.6,
    prompt_computed=10,
    prompt_cached=5,
    generated=5,
)
CANCELLED = Completion(server=DONE.server, slot=2, task=43, started_at=100.0, ended_at=100.2, outcome=Outcome.CANCELLED)


def test_jsonl_fields() -> None:
    row = json.loads(json.dumps(completion_as_dict(DONE, TRACE)))
    assert {field.name for field in dataclasses.fields(Completion)} < set(row)
    assert row["trace_id"] == TRACE
    assert row["outcome"] == "ok"
    assert row["server"] == {
        "address": "127.0.0.1", "port": 8090, "model": "tiny", "build": None, "backend": None, "pid": None,
        "labels": {},
    }  # fmt: skip
    derived = (row["prompt_tokens"], row["duration_s"], row["ttft_s"], row["tpot_s"], row["tokens_per_second"])
    assert derived == pytest.approx((15, 1.0, 0.6, 0.1, 10.0))


def test_jsonl_unknown() -> None:
    row = completion_as_dict(CANCELLED, None)
    unknown = ("trace_id", "queue_s", "prefill_s", "prompt_tokens", "generated", "ttft_s", "tpot_s")
    assert [row[name] for name in unknown] == [None] * len(unknown)


def test_jsonl_appends_immediately(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    for task in (1, 2):
        lines = JsonLines.open(str(path))
        lines(dataclasses.replace(DONE, task=task), TRACE)
        assert json.loads(path.read_text().splitlines()[-1])["task"] == task
        lines.close()
        lines.close()
        lines(DONE, TRACE)
    assert len(path.read_text().splitlines()) == 2


def test_jsonl_unwritable_path(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot write .*: No such file or directory"):
        JsonLines.open(str(tmp_path / "missing" / "requests.jsonl"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_jsonl_full_disk(caplog: pytest.LogCaptureFixture) -> None:
    lines = JsonLines.open("/dev/full")
    with caplog.at_level(logging.WARNING, logger="llamatel.telemetry.jsonl"):
        for _ in range(3):
            lines(DONE, TRACE)
    lines.close()
    assert lines.dropped == 3
    assert [record.getMessage() for record in caplog.records] == [
        "cannot write to /dev/full: No space left on device; its lines are dropped"
    ]


def test_jsonl_closed_reader() -> None:
    reading, writing = os.pipe()
    lines = JsonLines(writing, "a pipe")
    lines(DONE, TRACE)
    os.close(reading)
    lines(DONE, TRACE)
    lines.close()
    assert lines.dropped == 1


def test_jsonl_slow_reader() -> None:
    reading, writing = os.pipe()
    lines = JsonLines(writing, "a pipe", patience_s=0.01)
    before = -1
    while not lines.dropped:
        lines(DONE, TRACE)
        before += 1
    with os.fdopen(reading, "rb") as reader:
        rows = [json.loads(reader.readline()) for _ in range(before)]
        lines(dataclasses.replace(DONE, task=99), TRACE)
        rows.append(json.loads(reader.readline()))
    lines.close()
    assert rows[-1]["task"] == 99
    assert lines.dropped == 1
