"""Client text in a text log that ``attach`` reads: it hides no request, and is no line of another server."""

from __future__ import annotations

import json

import pytest

from llamatel.llama.log.client_text import quoted_from
from llamatel.llama.log.log_source import Backlog, Batch
from llamatel.llama.log.ollama_separation import OllamaSeparation
from llamatel.llama.watch.ollama_log_reader import OllamaLogReader
from tests.fuzz.carried_log import _Children
from tests.golden.reading import ZERO
from tests.injection import payload
from tests.test_log_streams import Reading
from tests.test_log_wrappers import WRAPPERS
from tests.test_ollama import LINES

FORGED = [line for line in payload(900_000, records=False).split("\n") if line and not line.endswith("'")]
GRAMMAR = (
    "parse: error parsing grammar: expecting ::= at 0.00.000.001 I slot launch_slot_: id  0 | task 1 | processing",
)
QUOTATIONS = {
    "grammar": ([*GRAMMAR, *FORGED], ["E failed to parse grammar"]),
    "samplers": (["W common_sampler_types_from_names: unable to match sampler by name '", *FORGED, "'"], []),
    "schema": (
        ["WARNING: JSON schema conversion was incomplete: pattern ^(?<x>", *FORGED, "x (y), accepting any string"],
        [],
    ),
    "llguidance": (['E llg error: unknown type "', *FORGED, '"', ""], []),
    "tool": (["W srv  server_chat_: unsupported Responses tool type '", *FORGED, "' skipped"], []),
    "model": (["E srv    operator(): unknown error while validating model '", *FORGED, "'"], []),
}  # fmt: skip


def request(task: int, second: int) -> list[str]:
    """A request that starts in a second of the log, with timestamps."""
    messages = (
        f"slot launch_slot_: id  0 | task {task} | processing task, is_child = 0",
        f"slot print_timing: id  0 | task {task} | prompt eval time =       1.00 ms /     3 tokens (    0.10 ms",
        f"slot print_timing: id  0 | task {task} |        eval time =       1.00 ms /     2 tokens (    0.10 ms",
        f"slot      release: id  0 | task {task} | stop processing: n_tokens = 4, truncated = 0",
    )
    return [f"0.{second:02d}.00{number}.000 I {message}" for number, message in enumerate(messages)]


def log_of(quotation: list[str], second: int) -> list[str]:
    """The lines, with timestamps where llama.cpp's own text has a level."""
    return [f"0.{second:02d}.500.000 {line}" if line[:2] in ("E ", "W ") else line for line in quotation]


def tasks(lines: list[str], *, live: bool, prefix: str = "") -> tuple[list[int | None], int]:
    """The tasks of the requests that are read, and the number of servers."""
    whole = ["0.00.000.100 I srv  llama_server: initializing ...", *request(0, 1), *lines, *request(7, 3)]
    whole = [prefix + line for line in whole]
    if not live:
        found = Reading([Backlog(whole, 1_790_000_100.0)])
    else:
        found = Reading([Batch(whole[at : at + 3], 1_790_000_003.6) for at in range(0, len(whole), 3)])
    return [each.task for each in found.completions], len(found.servers)


@pytest.mark.parametrize("prefix", ["", "[4711] "])
@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("name", QUOTATIONS)
def test_quotation_is_no_other_server(name: str, live: bool, prefix: str) -> None:
    """Forged lines have timestamps of another process; lines of a router's children have its port."""
    quotation, end = QUOTATIONS[name]
    assert tasks(log_of([*quotation, *end], 2), live=live, prefix=prefix)[0] == [0, 7]
    if not prefix:
        assert tasks(log_of([*quotation, *end], 2), live=live)[1] == 1


UNNAMED_FIELD = {
    "logfmt", "logfmt, unknown key", "slog json", "zap console", "unknown, nested", "CloudWatch",
    "zap console, fields after it",
}  # fmt: skip
"""The end of a quotation is not found in these: it is over after a second, which hides the requests of that time."""


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_quotation_forges_nothing(wrapper: str) -> None:
    """Around each of its lines is what is around llama.cpp's own; a client may add what looks like a wrapper."""
    wrap = WRAPPERS[wrapper]
    for name, (quotation, end) in QUOTATIONS.items():
        forged = [f"evil: {line}" for line in FORGED] + [json.dumps({"log": line}) for line in FORGED]
        lines = ["0.00.000.100 I srv  llama_server: initializing ...", *request(0, 1), *request(7, 4)]
        lines[5:5] = log_of([*quotation, *forged, *end], 2)
        written = [wrap(line, ZERO + 1 + number / 50).split("\n") for number, line in enumerate(lines)]
        for batches in ([Batch(each, ZERO + 1 + number / 50) for number, each in enumerate(written)],
                        [Backlog([one for each in written for one in each], ZERO + 60)]):  # fmt: skip
            found = [each.task for each in Reading(batches).completions]
            assert found == [0, 7] or (wrapper in UNNAMED_FIELD and found == [0]), name


@pytest.mark.parametrize(
    "line",
    [
        '0.02.000.000 E llg error: failed to parse "%llguidance": key must be a string at line 4 column 1',
        '0.02.000.000 W srv    operator(): got exception: {"error":{"code":400,"message":"llg error: x"}}',
        '0.02.000.000 W srv    operator(): got exception: {"error":{"code":400,"message":"error parsing grammar: x"}}',
        "0.02.000.000 W srv    operator(): got exception: WARNING: JSON schema conversion was incomplete: x",
    ],
)
@pytest.mark.parametrize("live", [True, False])
def test_words_of_a_quotation_hide_no_request(line: str, live: bool) -> None:
    """A client that writes the words that start a quotation cannot hide the lines after it."""
    assert tasks([line], live=live) == ([0, 7], 1)


@pytest.mark.parametrize("live", [True, False])
def test_prefix_in_a_plain_log_is_a_clients(live: bool) -> None:
    lines = [f"any text: 0.02.00{number}.000 I {line[15:]}" for number, line in enumerate(FORGED[:4])]
    assert tasks(lines, live=live) == ([0, 7], 1)


def test_quotation_holds_no_lines_of_ollama() -> None:
    """Neither servers nor accesses."""
    forged = [line for line in LINES if " cmd=" in line or "GIN" in line]
    assert len(forged) > 1
    quotation = [*GRAMMAR, *forged, *FORGED, "llama_grammar_init_impl: failed to parse grammar"]
    reader = OllamaLogReader(_Children(), OllamaSeparation())
    reader.read(Batch(quotation, 1_790_000_000.0))
    assert (reader.accesses, reader.ended) == ([], [])
    reader.read(Batch(forged, 1_790_000_001.0))
    assert reader.accesses


def test_quotation_starts_at_the_start_of_a_line_only() -> None:
    assert quoted_from("0.02.000.000 E llg error: x") == "llg error: "
    assert quoted_from("\x1b[31m0.02.000.000 E \x1b[0mllg error: x") == "llg error: "
    assert quoted_from("[4711] parse: error parsing grammar: x") == "error parsing grammar: "
    assert quoted_from("0.02.000.000 I srv    operator(): x llg error: ") is None
