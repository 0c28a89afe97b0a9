"""Properties of the log readers for any text and any records.

They never raise, count every line once, keep bounded state, and report no request without a launch line in llama.cpp's
format: launches are found by expressions that are independent of the readers. On mutated recordings this is the
differential check: what is reported is in the recording, or a mutation is itself a valid line.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from llamatel.llama.log.jsonl_record import readable
from llamatel.llama.log.line_buffer import LineBuffer
from llamatel.llama.log.reader import LogReader
from llamatel.records import Completion, Outcome, ServerInfo
from tests.fuzz.target import Broken, Target

LOGS = Path(__file__).parent.parent / "golden" / "logs"
_SEEDS = ("2026.10.11549", "2026.4.8672.1", "router", "speculative", "context-shift", "unstamped", "killed", "colours")
_START = r"(?:\[\d{1,5}\] ?)?(?:\d{1,7}\.\d\d\.\d{3}\.\d{3} [A-Z] )?"
_LAUNCH = r"slot launch_slot_: id +(\d{1,3}) \| task (\d{1,12}) \| +processing task"
_OWN_LAUNCH = re.compile(_START + _LAUNCH)
ANY_LAUNCH = re.compile(r"(?<!\w)" + _LAUNCH)
_KEY_VALUE = re.compile(r" {0,2}(?:INFO|WARN|ERR|VERB|DBG) \[ *\S{1,64}\] slot is processing task \| ?(.*)")
_SLOT, _TASK = (re.compile(rf'\bid_{name}=(?=("?)(\d{{1,12}})\1)') for name in ("slot", "task"))
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_MAX_REQUESTS = 1024
NOW = 1_790_000_000.0

Launches = Counter[tuple[int, int]]


def lines_of(data: bytes) -> list[str]:
    """Lines as a log source splits them."""
    buffer = LineBuffer()
    return buffer.feed(data) + buffer.flush()


def check_requests(completed: Iterable[Completion], launches: Launches) -> None:
    """Raise unless each request was launched, and its figures are possible."""
    reported = Counter((completion.slot or 0, completion.task or 0) for completion in completed)
    for request, count in reported.items():
        if count > launches[request]:
            raise Broken(f"slot and task {request}: {count} requests, {launches[request]} launches")
    for completion in completed:
        for value in (completion.prefill_s, completion.decode_s, completion.prompt_computed, completion.generated):
            if value is not None and not 0 <= value < 1e13:
                raise Broken(f"a figure that cannot be: {completion}")


def _judge(reader: LogReader, lines: Sequence[str], completed: Sequence[Completion], launches: Launches) -> None:
    counts = reader.counts()
    if sum(counts.lines.values()) != len(lines):
        raise Broken(f"{len(lines)} lines, counted {counts.lines}")
    if reader._failed:
        raise Broken("the reader failed on a line")
    if reader.busy > _MAX_REQUESTS * 1024:
        raise Broken("requests without a bound")
    if sum(completion.outcome is Outcome.OK for completion in completed) > sum("release" in line for line in lines):
        raise Broken("more requests completed than slots were released")
    check_requests(completed, launches)


def check_text(data: bytes) -> bool:
    """Read ``data`` as a text log; True if a request was in it."""
    reader, lines = LogReader(ServerInfo("fuzz", 1)), lines_of(data)
    completed = [
        completion for number, line in enumerate(lines) for completion in reader.feed(line, NOW + number * 1e-3)
    ]
    completed += reader.abort(NOW + len(lines), "the end")
    _judge(reader, lines, completed, Counter(launch for line in lines for launch in own_launches(line)))
    return bool(completed)


def own_launches(line: str) -> set[tuple[int, int]]:
    """Slot and task of the launch that a line of llama.cpp's own reports, in any of its formats."""
    line = _COLOUR.sub("", line)
    found = {found.groups() for text in (line, readable(line)) if (found := _OWN_LAUNCH.match(text)) is not None}
    child = re.sub(r"^\[\d{1,5}\] ?", "", line)
    if (values := _KEY_VALUE.match(child)) is not None:
        rest = values[1]
        found |= {(slot[2], task[2]) for slot in _SLOT.finditer(rest) for task in _TASK.finditer(rest)}
    if child.startswith("{"):
        found |= _of_record(child)
    return {(int(slot), int(task)) for slot, task in found}


def _of_record(line: str) -> set[tuple[str | Any, ...]]:
    try:
        record, _ = json.JSONDecoder().raw_decode(line)  # other programs add text after it
    except (ValueError, RecursionError):
        return set()
    message = record.get("msg") if isinstance(record, dict) else None
    if not isinstance(message, str):
        return set()
    if message == "slot is processing task":
        numbers = (str(record.get("id_slot")), str(record.get("id_task")))
        return {numbers} if all(re.fullmatch(r"\d{1,12}", each) for each in numbers) else set()
    found = _OWN_LAUNCH.match(message)
    return {found.groups()} if found is not None else set()


def check_records(data: bytes) -> bool:
    """Read ``data`` as a stream of records; True if a request was in it."""
    reader, lines = LogReader(ServerInfo("fuzz", 1), supervised=True), lines_of(data)
    completed = [
        completion for number, line in enumerate(lines) for completion in reader.feed_records([line], NOW + number)
    ]
    completed += reader.abort(NOW + len(lines), "the end")
    launches: Launches = Counter()
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        message = record.get("msg") if isinstance(record, dict) else None
        if not isinstance(message, str):
            continue
        if message.startswith("["):  # a router forwards its children's lines: each is text in a record
            launches.update(own_launches(message.rstrip("\n")))
        elif (found := re.match(_LAUNCH, message)) is not None:
            launches[int(found[1]), int(found[2])] += 1
    _judge(reader, lines, completed, launches)
    return bool(completed)


def text_corpus() -> list[bytes]:
    """Recordings of different builds, and the format of ik_llama.cpp."""
    made = [b"\n".join((LOGS / f"{name}.log").read_bytes().split(b"\n")[:120]) for name in _SEEDS]
    return [*made, *key_value_corpus()]


def key_value_corpus() -> list[bytes]:
    """The key=value and the JSON format of llama.cpp's 2024 code, with timings in both ways."""
    from tests.test_key_value_log import log, record, text

    return ["\n".join(log(form, inline=inline)).encode() for form in (text, record) for inline in (True, False)]


def record_corpus() -> list[bytes]:
    """A recording, and others as records."""
    made = [b"\n".join((LOGS / "jsonl.log").read_bytes().split(b"\n")[:120])]
    for data in text_corpus()[:3]:
        rows = ({"type": "log", "time": n * 1000, "level": "info", "msg": line.decode("utf-8", "replace")[15:] + "\n"}
                for n, line in enumerate(data.split(b"\n")))  # fmt: skip
        made.append(b"\n".join(json.dumps(row, separators=(",", ":")).encode() for row in rows))
    return made


TARGETS = (
    Target("log_text", check_text, text_corpus),
    Target("log_key_value", check_text, key_value_corpus),
    Target("log_jsonl", check_records, record_corpus),
)
