"""Which stream the log reader uses, which lines count as rejections, and which contradictions it finds."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

from llamatel.llama.log.jsonl_record import parse_record, readable
from llamatel.llama.log.log_audit import LogAudit
from llamatel.llama.log.reader import LogReader
from llamatel.llama.log.rejections import REASONS, launch_rejection, rejection
from llamatel.llama.log.server_output import LineKind, ServerOutput
from llamatel.records import Completion, ServerInfo
from llamatel.snapshots import SlotState
from tests.golden.reading import log_lines, read, timed

SERVER = ServerInfo("127.0.0.1", 8080)
FIRST = "srv  llama_server: initializing ..."
LAUNCH = "slot launch_slot_: id  0 | task 5 | processing task, is_child = 0"
RELEASE = "slot      release: id  0 | task 5 | stop processing: n_tokens = 32, truncated = 0"


def record(message: str, time: int = 1_000_000, level: str = "info") -> str:
    return json.dumps({"type": "log", "time": time, "level": level, "msg": message + "\n"}, separators=(",", ":"))


def fed(output: ServerOutput, reader: LogReader, stdout: Sequence[str], stderr: Sequence[str]) -> list[Completion]:
    lines = output.lines(stdout, stderr, listening=reader.logged_server.host is not None)
    return [completion for line in lines for completion in reader.feed_output(line, 1000.0)]


# -- records ----------------------------------------------------------------------------------------------------------


def test_record_slot_line() -> None:
    parts = parse_record(record(LAUNCH, 63_500_250, "warn"))
    assert parts is not None
    assert (parts.slot, parts.task, parts.time, parts.level) == (0, 5, 63.50025, "W")
    assert parts.text == LAUNCH


@pytest.mark.parametrize("message", [f"x\n0.00.000.001 I {LAUNCH}", f'"{LAUNCH}', f"\\n{LAUNCH}"])
def test_record_message_matched_from_start(message: str) -> None:
    reader = LogReader(SERVER)
    reader.feed_records([record(message)], 1000.0)
    assert reader.busy == 0
    parts = parse_record(record(message))
    assert parts is not None
    assert parts.text == message


@pytest.mark.parametrize(
    "line", ["", LAUNCH, "{", '{"a":1}', '{"type":3,"msg":"x"}', "[1]", '{"type":"log","time":' + "[" * 99_999]
)
def test_record_other_lines(line: str) -> None:
    assert parse_record(line) is None
    reader = LogReader(SERVER)
    assert not reader.feed_records([line], 1.0)
    assert reader.counts().lines["other"] == 1


def test_readable_equals_llama_cpp_text() -> None:
    assert readable(record(LAUNCH, 63_500_250)) == f"1.03.500.250 I {LAUNCH}"
    assert readable(record(f"x\n{LAUNCH}")) == f"0.01.000.000 I x\\n{LAUNCH}"
    assert readable(record(f"[8123] {record(LAUNCH)}", level="none")) == f"[8123] 0.01.000.000 I {LAUNCH}"
    assert readable("error: invalid argument: -x") == "error: invalid argument: -x"


def test_readable_text_parses_like_the_records() -> None:
    lines = [(readable(line), now) for line, now in timed(log_lines("jsonl"))]
    assert [c.generated for c in read(lines).completions] == [5, 5, 5, None, None, 6]


# -- streams ----------------------------------------------------------------------------------------------------------


def test_output_records_on_stdout_only() -> None:
    output, reader = ServerOutput(), LogReader(SERVER)
    fed(output, reader, [record(FIRST)], ["warning: no usable GPU found, --gpu-layers option will be ignored"])
    assert output.jsonl is True
    assert reader.logged_server.placement is not None
    forged = [f"0.02.000.000 I {line}" for line in (LAUNCH, RELEASE)]
    assert fed(output, reader, [], [*forged, record(LAUNCH), record(RELEASE)]) == []
    assert fed(output, reader, forged, []) == []
    assert len(fed(output, reader, [record(LAUNCH), record(RELEASE)], [])) == 1
    assert reader.counts().lines["other"] == 7


def test_output_text_log_of_older_builds() -> None:
    output, reader = ServerOutput(), LogReader(SERVER)
    fed(output, reader, [], ["xllamacpp: wheel 2026.4", f"0.00.001.000 I {FIRST}"])
    assert output.jsonl is False
    completed = fed(output, reader, [record(LAUNCH)], [f"0.02.000.000 I {line}" for line in (LAUNCH, RELEASE)])
    assert len(completed) == 1


def test_output_records_take_precedence_in_the_same_read() -> None:
    output, reader = ServerOutput(), LogReader(SERVER)
    assert fed(output, reader, [record(FIRST)], [f"0.02.000.000 I {line}" for line in (LAUNCH, RELEASE)]) == []
    assert output.jsonl is True


def test_output_without_log() -> None:
    output = ServerOutput()
    kinds = {line.kind for line in output.lines([record(FIRST)], [f"0.00.001.000 I {FIRST}"], listening=True)}
    assert kinds == {LineKind.OTHER}


def test_output_format_detected_per_process() -> None:
    output, reader = ServerOutput(), LogReader(SERVER)
    fed(output, reader, [record(FIRST)], [])
    output.restart()
    fed(output, reader, [], [f"0.00.001.000 I {FIRST}"])
    assert output.jsonl is False


# -- rejections -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ('got exception: {"error":{"code":400,"message":"x","type":"invalid_request_error"}}', "invalid_request"),
        ('got exception: {"code":500,"message":"x"}', "server_error"),
        ('got exception: {"error":{"code":503,"message":"\\"code\\":400,"}}', "unavailable"),
        ('got exception: {"error":{"message":"\\"code\\":400,"}}', "other"),
        ("got exception: what a client wrote", "other"),
        ("unauthorized: Invalid API Key", "unauthorized"),
        ("Unauthorized: Invalid API Key", "unauthorized"),
        ('x got exception: {"error":{"code":400,', None),
        ("cleaning up before exit...", None),
    ],
)
def test_rejection_reason(message: str, reason: str | None) -> None:
    assert rejection(message) == reason
    assert reason is None or reason in REASONS


def test_rejection_of_a_task_without_launch() -> None:
    reader = LogReader(SERVER)
    reader.feed("0.01.000.000 E srv    send_error: task id = 7, error: Failed to initialize samplers: x", 1.0)
    reader.feed("0.01.000.000 E srv    send_error: task id = 8, error: prompt is too long", 1.0)
    assert {reason: count for reason, count in reader.counts().rejected.items() if count} == {"sampling": 1}
    assert launch_rejection("x Failed to initialize samplers") is None


def test_rejection_ignores_quoted_text() -> None:
    quoted = json.dumps({"error": {"code": 400, "message": f"{LAUNCH} listening on unix:///tmp/x n_slots = 9"}})
    reader = LogReader(SERVER)
    before = reader.logged_server
    reader.feed(f"0.01.000.000 W srv    operator(): got exception: {quoted.replace(': ', ':')}", 1.0)
    assert (reader.busy, reader.logged_server) == (0, before)
    assert reader.counts().rejected["invalid_request"] == 1


# -- contradictions ---------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def audited(*, supervised: bool = True) -> tuple[LogAudit, dict[str, int], Clock]:
    counts: dict[str, int] = {}
    clock = Clock()
    audit = LogAudit(counts, supervised=supervised, clock=clock)
    audit.restart()
    return audit, counts, clock


@pytest.mark.parametrize("supervised", [True, False])
def test_audit_tokens_beyond_the_counter(supervised: bool, caplog: pytest.LogCaptureFixture) -> None:
    audit, counts, clock = audited(supervised=supervised)
    for _ in range(100):
        clock.now += 1.0
        audit.generated += 10
        audit.compare(audit.generated * 1.0, None)
    assert counts == {}
    audit.generated += 500
    for _ in range(40):
        clock.now += 1.0
        audit.compare(1000.0, None)
    assert counts == {"tokens": 1}
    assert caplog.text.count("contradicts llama.cpp's own figures") == 1


def test_audit_late_lines_and_stale_counters() -> None:
    audit, counts, clock = audited(supervised=False)
    audit.compare(5000.0, None)  # counted before the first look, read afterwards
    audit.generated += 5000
    for second in range(200):
        clock.now += 1.0
        audit.generated += 7
        audit.compare(5000.0 + 7 * max(0, second - 20), None)
    assert counts == {}


def test_audit_slots_tasks_and_times() -> None:
    audit, counts, clock = audited()
    audit.compare(None, [SlotState(0, False, task=3), SlotState(1, False, task=4)])
    assert audit.launch(0, 5)
    assert not audit.launch(2, 6)
    assert not audit.launch(1, 5)
    assert not audit.is_future(1.5 - 1.0)
    assert audit.is_future(500.0)
    assert counts == {"slot": 1, "task": 1, "time": 1}
    assert audit.launch(0, 777)
    for _ in range(40):
        clock.now += 1.0
        audit.compare(None, [SlotState(0, False, task=5), SlotState(1, False, task=4)])
    assert counts == {"slot": 1, "task": 2, "time": 1}


def test_audit_golden_logs_without_contradictions() -> None:
    for path in sorted((Path(__file__).parent / "golden" / "logs").glob("*.log")):
        reader = LogReader(SERVER, supervised=True)
        for line in log_lines(path.stem):
            reader.feed(line, 1000.0)
        counts = reader.counts().contradictions
        assert counts["slot"] + counts["task"] == 0, path.name


def test_reader_supervised_ignores_forged_restart_and_router_lines(caplog: pytest.LogCaptureFixture) -> None:
    reader = LogReader(SERVER, supervised=True)
    reader.restart()
    for line in (FIRST, "srv  llama_server: listening on http://127.0.0.1:8080", LAUNCH):
        reader.feed(f"0.00.500.000 I {line}", 1000.0)
    for line in (
        "0.00.000.001 I srv  llama_server: starting server in router mode",
        f"[4711] 0.00.000.001 I {LAUNCH}",
        "0.00.000.001 I srv          load: spawning server instance with name=x on port 4711",
    ):
        assert not reader.feed(line, 1000.0)
    assert (reader.busy, reader.router.seen, reader.router.models) == (1, False, {})
    assert caplog.records == [] or caplog.records[0].levelno <= logging.WARNING
