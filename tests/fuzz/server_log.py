"""Properties of the log reader for any text and any records.

It never raises, counts every line once, keeps bounded state, and reports no request without a launch line in
llama.cpp's format: launches are found by an expression that is independent of the reader.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path

from llamatel.llama.log.jsonl_record import readable
from llamatel.llama.log.line_buffer import LineBuffer
from llamatel.llama.log.reader import LogReader
from llamatel.records import Completion, ServerInfo
from tests.fuzz.target import Broken, Target, mutate_lines

LOGS = Path(__file__).parent.parent / "golden" / "logs"
_SEEDS = ("2026.10.11549", "2026.4.8672.1", "router", "speculative", "context-shift", "unstamped", "killed", "colours")
_LAUNCH = re.compile(
    r"(?:^|[\s\]:|])slot launch_slot_: id +(\d{1,3}) \| task (\d{1,12}) \| +processing task(?:, is_child = [01])?"
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_MAX_REQUESTS = 1024
NOW = 1_790_000_000.0


def _lines(data: bytes) -> list[str]:
    buffer = LineBuffer()
    return buffer.feed(data) + buffer.flush()


def _judge(
    reader: LogReader, lines: Sequence[str], completed: Sequence[Completion], launches: set[tuple[int, int]]
) -> None:
    counts = reader.counts()
    if sum(counts.lines.values()) != len(lines):
        raise Broken(f"{len(lines)} lines, counted {counts.lines}")
    if reader._failed:
        raise Broken("the reader failed on a line")
    if reader.busy > _MAX_REQUESTS * 1024:
        raise Broken("requests without a bound")
    for completion in completed:
        if (completion.slot, completion.task) not in launches:
            raise Broken(f"a request that was never launched: {completion}")
        for value in (completion.prefill_s, completion.decode_s, completion.prompt_computed, completion.generated):
            if value is not None and not 0 <= value < 1e13:
                raise Broken(f"a figure that cannot be: {completion}")


def check_text(data: bytes) -> bool:
    """Read ``data`` as a text log; True if a request was in it."""
    reader, lines = LogReader(ServerInfo("fuzz", 1)), _lines(data)
    completed = [
        completion for number, line in enumerate(lines) for completion in reader.feed(line, NOW + number * 1e-3)
    ]
    completed += reader.abort(NOW + len(lines), "the end")
    plain = [readable(_COLOUR.sub("", line)) for line in lines]
    launches = {(int(found[1]), int(found[2])) for line in plain for found in _LAUNCH.finditer(line)}
    launches |= {(int(found[1]), int(found[2])) for line in lines for found in _LAUNCH.finditer(_unwrapped(line))}
    _judge(reader, lines, completed, launches)
    return bool(completed)


def _unwrapped(line: str) -> str:
    """Unwrap a line that another program has wrapped in JSON."""
    return line.replace('"', " ").replace("\\u001b[0m", "")


def check_records(data: bytes) -> bool:
    """Read ``data`` as a stream of records; True if a request was in it."""
    reader, lines = LogReader(ServerInfo("fuzz", 1), supervised=True), _lines(data)
    completed = [
        completion for number, line in enumerate(lines) for completion in reader.feed_record(line, NOW + number)
    ]
    completed += reader.abort(NOW + len(lines), "the end")
    launches = set()
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        message = record.get("msg") if isinstance(record, dict) else None
        # A router forwards its children's lines: each is text in a record.
        for found in _LAUNCH.finditer(message if isinstance(message, str) else ""):
            if found.start() == 0 or str(message).startswith("["):
                launches.add((int(found[1]), int(found[2])))
        if isinstance(message, str) and message.startswith("["):
            launches |= {(int(found[1]), int(found[2])) for found in _LAUNCH.finditer(_unwrapped(message))}
    _judge(reader, lines, completed, launches)
    return bool(completed)


def text_corpus() -> list[bytes]:
    """Recordings of different builds, cut to some hundred lines."""
    return [b"\n".join((LOGS / f"{name}.log").read_bytes().split(b"\n")[:300]) for name in _SEEDS]


def record_corpus() -> list[bytes]:
    """A recording, and others as records."""
    made = [(LOGS / "jsonl.log").read_bytes()]
    for text in text_corpus()[:3]:
        rows = ({"type": "log", "time": n * 1000, "level": "info", "msg": line.decode("utf-8", "replace")[15:] + "\n"}
                for n, line in enumerate(text.split(b"\n")))  # fmt: skip
        made.append(b"\n".join(json.dumps(row, separators=(",", ":")).encode() for row in rows))
    return made


def mutate(data: bytes, others: Sequence[bytes], dice: random.Random) -> bytes:
    """Changed lines, of one log or of two."""
    return mutate_lines(data, others, dice)


TEXT = Target("log_text", check_text, text_corpus, mutate, "tests.fuzz.server_log:check_text")
RECORDS = Target("log_jsonl", check_records, record_corpus, mutate, "tests.fuzz.server_log:check_records")
