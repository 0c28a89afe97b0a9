"""The log reader on logs of real llama.cpp builds, compared with their clients' responses (tests/golden/README.md).

The records of each log are golden files next to the logs; UPDATE_GOLDEN=1 rewrites them.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import datetime, timezone
from functools import cache
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llamatel.llama.log.line_buffer import LineBuffer
from llamatel.llama.log.log_line import split_line
from llamatel.records import Completion, Outcome
from tests.golden.reading import LOGS, ZERO, log_lines, read, read_attached, reading, timed

NAMES = sorted(path.stem for path in LOGS.glob("*.log"))
MIXED = [name for name in NAMES if json.loads((LOGS / f"{name}.json").read_text())["scenario"] == "mixed"]
ROUNDING_MS = 0.005 + 1e-9

# Not visible in the client's response: it requested several results, or the server did not notice its disconnect.
IN_LOG: dict[str, list[str]] = {
    "cancelled-queued": [],
    "cancelled-unnoticed": ["ok"],
    "embeddings-3": ["ok"] * 3,
}


@cache
def truth(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((LOGS / f"{name}.json").read_text())
    return found


def essence(completions: Iterable[Completion]) -> list[dict[str, Any]]:
    """A record without wall clock times (they depend on the reader's clock), with durations instead."""
    out = []
    for completion in completions:
        fields = asdict(completion)
        start, end, first = (fields.pop(name) for name in ("started_at", "ended_at", "first_token_at"))
        fields["in_flight"] = len(completion.in_flight)
        fields["took_us"] = round((end - start) * 1e6 / 5)
        fields["first_token_us"] = None if first is None else round((first - start) * 1e6 / 5)
        fields["queue_s"] = None if completion.queue_s is None else round(completion.queue_s, 4)
        out.append(fields)
    return out


def tokens(completions: Iterable[Completion]) -> list[dict[str, Any]]:
    """The fields that need no clock: task, outcome, tokens, llama.cpp's own durations."""
    left_out = ("server", "started_at", "ended_at", "first_token_at", "queue_s", "in_flight")
    return [{key: value for key, value in asdict(c).items() if key not in left_out} for c in completions]


# -- comparison with the clients' responses ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_reader_outcomes(name: str) -> None:
    expected: Counter[str] = Counter()
    for row in truth(name)["requests"]:
        if row["outcome"] == "refused":
            continue
        ends = IN_LOG.get(row["kind"]) if row["outcome"] in ("ok", "cancelled") else None
        expected.update(ends if ends is not None else [row["outcome"]] * row.get("choices", 1))
    assert Counter(c.outcome.value for c in reading(name).completions) == expected


@pytest.mark.parametrize("name", NAMES)
def test_reader_line_counts(name: str) -> None:
    counts = reading(name).counts
    assert counts.lines["malformed"] == 0
    assert counts.requests_lost == 0
    assert sum(counts.lines.values()) == len(log_lines(name))


@pytest.mark.parametrize("without", ["processing task, is_child", "stop processing: n_tokens"])
def test_reader_counts_requests_of_missing_lines(without: str) -> None:
    """A filtered or truncated log: a request whose start or end is missing is counted as lost."""
    lines = timed(log_lines("2026.10.11549"))
    found = [number for number, (line, _) in enumerate(lines) if without in line]
    removed = set(found[1::3])  # the first one stays: before it the reader cannot know that a request is its
    completions, counts, _ = read(line for number, line in enumerate(lines) if number not in removed)
    unended = sum(completion.error == "the server is gone" for completion in completions)
    assert counts.requests_lost + unended == len(removed) > 10
    assert unended <= 2


@pytest.mark.parametrize("name", NAMES)
def test_reader_tokens(name: str) -> None:
    rows = [row for row in truth(name)["requests"] if row["outcome"] == "ok" and "timings" in row]
    # After a context shift the release line no longer has the cached tokens.
    expected = Counter(
        (
            row["timings"]["prompt_n"],
            None if row.get("own", {}).get("truncated") else row["timings"]["cache_n"],
            row["timings"]["predicted_n"],
        )
        for row in rows
    )
    found = Counter(
        (c.prompt_computed, c.prompt_cached, c.generated)
        for c in reading(name).completions
        if c.outcome is Outcome.OK and c.generated is not None
    )
    assert not expected - found
    # With several choices the response has the figures of one; the others have the same prompt and length. In the
    # recording "unnoticed" a client disconnected before its response.
    rest = [
        ((computed or 0) + (cached or 0), generated) for computed, cached, generated in (found - expected).elements()
    ]
    choices = [row for row in rows for _ in range(row.get("choices", 1) - 1)]
    others = [(row["usage"]["prompt_tokens"], row["timings"]["predicted_n"]) for row in choices]
    assert rest == others + [(32, 500)] * (name == "unnoticed")


@pytest.mark.parametrize("name", NAMES)
def test_reader_record_of_each_response(name: str) -> None:
    left = [c for c in reading(name).completions if c.outcome is Outcome.OK and c.decode_s is not None]
    for row in truth(name)["requests"]:
        if row["outcome"] != "ok" or "timings" not in row:
            continue
        timings, own = row["timings"], row.get("own", {})
        fitting = [
            c
            for c in left
            if (c.prompt_computed, c.generated) == (timings["prompt_n"], timings["predicted_n"])
            and c.prompt_cached in (timings["cache_n"], None)
            and abs((c.prefill_s or 0) * 1e3 - timings["prompt_ms"]) <= ROUNDING_MS
            and abs((c.decode_s or 0) * 1e3 - timings["predicted_ms"]) <= ROUNDING_MS
            and own.get("id_slot", c.slot) == c.slot
        ]
        assert fitting, row
        completion = fitting[0]
        left.remove(completion)
        assert completion.draft_generated == (timings.get("draft_n") or None)
        assert completion.draft_accepted == (timings.get("draft_n_accepted") if timings.get("draft_n") else None)
        if own:
            assert (completion.context_tokens, completion.truncated) == (own["tokens_cached"], own["truncated"])
        if "first_content" in row and split_line(log_lines(name)[-1]).time is not None:
            # Client and record agree on the decode duration; the recordings show up to 9 ms difference.
            assert completion.first_token_at is not None
            decode = completion.ended_at - completion.first_token_at
            assert decode == pytest.approx(row["end"] - row["first_content"], abs=0.03)


@pytest.mark.parametrize("name", NAMES)
def test_reader_sums_equal_counters(name: str) -> None:
    counters = truth(name)["metrics"]
    whole = [c for c in reading(name).completions if c.outcome is Outcome.OK and c.generated is not None]
    # A child's prompt is its parent's: llama.cpp logs it twice and counts it once.
    prompt = sum(c.prompt_computed or 0 for c in whole if not c.is_child)
    generated = sum(c.generated or 0 for c in whole)
    if not counters or not whole:
        return
    if len(whole) == len(reading(name).completions):
        assert generated == counters["tokens_predicted_total"]
        assert prompt == counters["prompt_tokens_total"]
    else:
        # Requests that were cut short count in the counters too, but logged no figures.
        assert generated <= counters["tokens_predicted_total"]
        assert prompt <= counters["prompt_tokens_total"]


@pytest.mark.parametrize("name", NAMES)
def test_reader_logged_server(name: str) -> None:
    facts = reading(name).reader.logged_server
    assert facts.host == "127.0.0.1"
    assert facts.port
    if truth(name)["scenario"] != "router":
        assert facts.model_path == "tiny.gguf"
        assert facts.slots == (1 if name == "context-shift" else 4)


def test_reader_router_models() -> None:
    models = Counter(c.server.model for c in reading("router").completions)
    assert models == {"one": 5, "two": 5}


def test_reader_killed_server() -> None:
    completions = reading("killed").completions
    assert [(c.outcome, c.error) for c in completions] == [
        (Outcome.OK, None),
        (Outcome.ERROR, "the server is gone"),
        (Outcome.ERROR, "the server is gone"),
    ]


def test_reader_context_shifts() -> None:
    assert [c.context_shifts for c in reading("context-shift").completions] == [4, 0]


@pytest.mark.parametrize("name", NAMES)
def test_reader_golden_records(name: str) -> None:
    def row(completion: Completion) -> str:
        fields = {key: value for key, value in asdict(completion).items() if value is not None and value is not False}
        fields["server"] = completion.server.model
        fields["outcome"] = completion.outcome.value
        for key in ("started_at", "ended_at", "first_token_at"):
            if key in fields:
                fields[key] = round(fields[key] - ZERO, 5)
        for key in ("queue_s", "prefill_s", "decode_s"):
            if key in fields:
                fields[key] = round(fields[key], 5)
        fields["in_flight"] = [round(started - ZERO, 5) for started in fields["in_flight"]]
        return json.dumps(fields)

    text = "".join(row(c) + "\n" for c in reading(name).completions)
    golden = LOGS / f"{name}.records.jsonl"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


# -- any chunking, format, start and damage ----------------------------------------------------------------------------

many = settings(max_examples=25)
FOREIGN = st.sampled_from(
    [
        "",
        "GET /health HTTP/1.1 200",
        "ggml_cuda_init: found 2 CUDA devices:",
        "  Device 0: Tesla T4, compute capability 7.5, VMM: yes",
        '{"level":"info","msg":"sidecar started"}',
        '{"type":"fit_memory_breakdown","data":{"unit":"MiB","rows":[]}}',
        "2026-11-01T10:00:00Z stderr F something else [1234] listening",
        "Traceback (most recent call last):",
        "slot machine: id 7 | task force | jackpot",
        "total time flies",
        "\x1b[31m\u043f\u0440\u0438\u0432\u0435\u0442 \x00\ufffd\x1b[0m",
        "[60281]",
    ]
)


@many
@given(name=st.sampled_from(NAMES), data=st.data())
def test_line_buffer_any_cut(name: str, data: st.DataObject) -> None:
    text = (LOGS / f"{name}.log").read_bytes()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=60)))
    buffer = LineBuffer()
    lines: list[str] = []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        lines += buffer.feed(text[start:end])
    assert tuple(lines + buffer.flush()) == log_lines(name)


@many
@given(name=st.sampled_from(NAMES), foreign=st.lists(st.tuples(st.floats(0, 1), FOREIGN), max_size=40))
def test_reader_foreign_lines(name: str, foreign: list[tuple[float, str]]) -> None:
    lines = timed(log_lines(name))
    for place, text in sorted(foreign, reverse=True):
        index = int(place * len(lines))
        lines.insert(index, (text, lines[max(0, index - 1)][1]))
    found = read(lines)
    assert essence(found.completions) == essence(reading(name).completions)
    assert found.counts.lines["malformed"] == 0


@many
@given(name=st.sampled_from(NAMES), seed=st.integers(0, 2**32))
def test_reader_late_lines(name: str, seed: int) -> None:
    """The reader does not run for seconds, then reads everything at once."""
    source = random.Random(seed)
    lines, lag, now = [], 0.0, 0.0
    for line, at in timed(log_lines(name)):
        if source.random() < 0.02:
            lag = source.choice([0.0, 0.3, 2.0, 4.0])
        now = max(now, at + lag)
        lines.append((line, now))
    assert tokens(read(lines).completions) == tokens(reading(name).completions)
    # Requests cut off by the server's crash finish when the reader notices it.
    if name != "killed" and split_line(log_lines(name)[-1]).time is not None:
        assert essence(read(lines).completions) == essence(reading(name).completions)


@many
@given(name=st.sampled_from(NAMES))
def test_reader_old_log(name: str) -> None:
    lines = timed(log_lines(name))
    found = read([(line, lines[-1][1] + 3600) for line, _ in lines])
    assert tokens(found.completions) == tokens(reading(name).completions)


@pytest.mark.parametrize("name", MIXED)
def test_reader_colours(name: str) -> None:
    stamped = re.compile(r"^([\d.]+) ([A-Z]) (.*)$")
    paint = "\x1b[34m\\1\x1b[0m \x1b[32m\\2 \x1b[0m\\3\x1b[0m"
    lines = [(stamped.sub(paint, line), now) for line, now in timed(log_lines(name))]
    assert essence(read(lines).completions) == essence(reading(name).completions)


def _as_json(line: str) -> str:
    parts = split_line(line)
    if parts.time is None:
        return line
    level = {"I": "info", "W": "warn", "E": "error"}[parts.level or "I"]
    entry = {"type": "log", "time": round(parts.time * 1e6), "level": level, "msg": parts.text + "\n"}
    return json.dumps(entry, separators=(",", ":"))


@pytest.mark.parametrize("name", MIXED)
def test_reader_json_lines(name: str) -> None:
    lines = [(_as_json(line), now) for line, now in timed(log_lines(name))]
    assert essence(read(lines).completions) == essence(reading(name).completions)


def _rfc3339(now: float) -> str:
    return datetime.fromtimestamp(now, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f") + "123Z"


def _journald(now: float) -> str:
    return datetime.fromtimestamp(now, timezone.utc).strftime("%b %d %H:%M:%S") + " gpu-1 llama-server[4711]:"


PREFIXES: dict[str, Callable[[float], str]] = {
    "router": lambda _: "[8123]",
    "docker": _rfc3339,
    "kubectl --prefix": lambda _: "[pod/llama-0/server]",
    "cri": lambda now: _rfc3339(now) + " stderr F",
    "compose": lambda _: "llama-1  |",
    "journald": _journald,
    "router in docker": lambda now: _rfc3339(now) + " [8123]",
}


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("name", MIXED)
def test_reader_prefixes(name: str, prefix: str) -> None:
    lines = [(f"{PREFIXES[prefix](now)} {line}", now) for line, now in timed(log_lines(name))]
    found = read_attached(lines)
    for one, other in zip(essence(found), essence(reading(name).completions), strict=True):
        assert {**one, "server": None} == {**other, "server": None}  # the log adds details of the server
    for read_one, true_one in zip(found, reading(name).completions, strict=True):
        assert read_one.ended_at == pytest.approx(true_one.ended_at, abs=0.001)


@pytest.mark.parametrize("name", MIXED)
def test_reader_tokens_without_stamps(name: str) -> None:
    lines = [(split_line(line).text, now) for line, now in timed(log_lines(name))]
    assert tokens(read(lines).completions) == tokens(reading(name).completions)


@many
@given(name=st.sampled_from(MIXED), start=st.floats(0, 1))
def test_reader_starts_anywhere(name: str, start: float) -> None:
    """Requests started before are left out; those started after are as if the whole log had been read."""
    lines = timed(log_lines(name))
    lines = lines[int(start * len(lines)) :]
    launched = {(int(m[1]), int(m[2])) for line, _ in lines if (m := re.search(_LAUNCH, line))}
    expected = tokens(c for c in reading(name).completions if (c.slot, c.task) in launched)
    found = tokens(read(lines).completions)
    for one, other in zip(found, expected, strict=True):
        if one["prompt_reusable"] is None:  # its slot was selected before the start
            other.update(dict.fromkeys(REUSE))
    assert found == expected


REUSE = ("prompt_reusable", "prompt_recomputed", "recompute_s", "recompute_cause")
_LAUNCH = r"id +(\d+) \| task (\d+) \| processing task"


@many
@given(name=st.sampled_from(MIXED), times=st.integers(2, 3), cut=st.floats(0.3, 1))
def test_reader_process_replaced(name: str, times: int, cut: float) -> None:
    """A restarted server appends to the same log: requests in flight fail, and the rest repeats."""
    part = timed(log_lines(name))
    part = part[: int(cut * len(part))]
    length = part[-1][1] - ZERO + 30
    assume(length > 32)  # by times alone, a process that ran for a second cannot be distinguished from the next
    lines = [(line, now + number * length) for number in range(times) for line, now in part]
    once = tokens(read(part).completions)
    found = tokens(read(lines).completions)
    assert [completions["outcome"] for completions in found] == [completions["outcome"] for completions in once] * times
    assert [completions["generated"] for completions in found] == [
        completions["generated"] for completions in once
    ] * times


@many
@given(name=st.sampled_from(MIXED), seed=st.integers(0, 2**32), share=st.floats(0.01, 0.6))
def test_reader_missing_or_cut_lines(name: str, seed: int, share: float) -> None:
    """No exception and no invented figures: each recorded figure is true or unknown."""
    source = random.Random(seed)
    lines = []
    for line, now in timed(log_lines(name)):
        chance = source.random()
        if chance < share / 2:
            continue
        cut = source.randrange(len(line) + 1) if chance < share else len(line)
        lines.append((line[:cut], now))
    found = read(lines)
    assert sum(found.counts.lines.values()) == len(lines)
    known = {(c.slot, c.task): c for c in reading(name).completions}
    assert all((c.slot, c.task) in known for c in found.completions if c.outcome is Outcome.OK)


@settings(max_examples=200)
@given(
    st.lists(
        st.one_of(
            st.text(max_size=80),
            st.sampled_from(
                [line for name in ("0.2.9", "2026.10.11549", "jsonl", "router") for line in log_lines(name)]
            ),
            st.from_regex(
                r"[0-9]{1,12}\.[0-9]{2}\.[0-9]{3}\.[0-9]{3} [IWE] slot +\w+: id +-?\d+ \| task -?\d+ \| .{0,40}"
            ),
            st.from_regex(r'\{"type":"log","time":[-0-9e.]{1,9},"level":"\w*","msg":".{0,30}"\}'),
            st.from_regex(r"\[\d{1,7}\] ?.{0,30}"),
        ),
        max_size=60,
    )
)
def test_reader_garbage(lines: list[str]) -> None:
    found = read([(line, ZERO + number) for number, line in enumerate(lines)])
    assert sum(found.counts.lines.values()) == len(lines)
