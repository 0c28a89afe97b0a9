"""Several servers in one log, with and without prefix: each request is correct or reported as unknown."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llamatel.llama.log.log_line import split_line
from llamatel.llama.log.log_process import UNKNOWN, own_slot
from llamatel.llama.log.log_source import Backlog, Batch
from llamatel.llama.log.ollama_separation import OllamaSeparation
from llamatel.llama.log.reader import LogReader
from llamatel.llama.watch.log_streams import REPLACED, LogStreams
from llamatel.llama.watch.observed_server import ObservedServer
from llamatel.llama.watch.server_log import ServerLog
from llamatel.records import Completion, Outcome, ServerInfo
from llamatel.snapshots import LogCounts
from tests.golden.reading import ZERO, log_lines, reading, timed

GOLDEN = ("2026.10.11549", "2026.9.11063", "2026.8.10566")
PORTS = {"2026.10.11549": 34129, "2026.9.11063": 44085}
Line = tuple[str, float, int]


class Reading:
    """The records of a log with several servers."""

    def __init__(self, batches: Iterable[Batch | Backlog], *, url_of: ServerInfo | None = None) -> None:
        info = url_of or ServerInfo("unknown")
        self.servers: list[ObservedServer] = []
        self.completions: list[Completion] = []
        first = ObservedServer(info, log=ServerLog(info))
        self._watch(first)
        streams = LogStreams(first, added=self._watch)
        for batch in batches:
            if isinstance(batch, Backlog):
                streams.read_backlog(batch)
            else:
                streams.read(batch)
        streams.forget()
        self.explanation = streams.explanation

    def _watch(self, server: ObservedServer) -> None:
        self.servers.append(server)
        server.subscribe(lambda each: self.completions.append(each) if isinstance(each, Completion) else None)

    @property
    def counts(self) -> list[LogCounts]:
        return [counts for server in self.servers for snapshot in server.snapshots() if (counts := snapshot.log)]

    @property
    def lost(self) -> int:
        return sum(counts.requests_lost for counts in self.counts)


def shifted(line: str, seconds: float) -> str:
    """The line of a process that started ``seconds`` earlier."""
    parts = split_line(line)
    if parts.time is None:
        return line
    minutes, micros = divmod(round((parts.time + seconds) * 1e6), 60_000_000)
    stamp = f"{minutes}.{micros // 1_000_000:02d}.{micros // 1000 % 1000:03d}.{micros % 1000:03d}"
    return stamp + line[line.index(" ") :]


def unstamped(line: str) -> str:
    return split_line(line).text


def interleaved(names: Sequence[str], shifts: Sequence[float], seed: int | None) -> list[Line]:
    """The logs as one stream: in the order of time, or in any order that keeps each log's own."""
    logs = [
        [(shifted(line, shift), now, number) for line, now in timed(log_lines(name))]
        for number, (name, shift) in enumerate(zip(names, shifts, strict=True))
    ]
    if seed is None:
        return sorted((line for log in logs for line in log), key=lambda line: line[1])
    source, out = random.Random(seed), []
    while any(logs):
        log = source.choice([log for log in logs if log])
        number = source.randint(1, 4)
        out += log[:number]
        del log[:number]
    return [(line, ZERO + position * 1e-3, number) for position, (line, _, number) in enumerate(out)]


def essence(completion: Completion) -> tuple[object, ...]:
    """The fields of a request that do not depend on the reader's clock or on concurrent requests."""
    return (
        completion.slot, completion.task, completion.outcome, completion.error, completion.prompt_computed,
        completion.prompt_cached, completion.generated, completion.prefill_s, completion.decode_s,
        completion.context_tokens, completion.draft_generated, completion.draft_accepted,
    )  # fmt: skip


def truth(names: Iterable[str]) -> Counter[tuple[object, ...]]:
    return Counter(essence(completion) for name in names for completion in reading(name).completions)


def live(lines: Iterable[Line], change: Callable[[str], str] = str) -> list[Batch]:
    return [Batch([change(line)], now) for line, now, _ in lines]


def backlog(lines: Iterable[Line], change: Callable[[str], str] = str) -> list[Backlog]:
    lines = list(lines)
    return [Backlog([change(line) for line, _, _ in lines], lines[-1][1])]


READ: dict[str, Callable[..., Sequence[Batch | Backlog]]] = {"live": live, "backlog": backlog}


@pytest.mark.parametrize("how", READ)
@pytest.mark.parametrize(("shifts", "seed"), [((0, 600), None), ((600, 0), None), ((0, 600), 1), ((600, 0), 2)])
def test_streams_two_servers_by_clock(how: str, shifts: tuple[float, float], seed: int | None) -> None:
    names = GOLDEN[:2]
    found = Reading(READ[how](interleaved(names, shifts, seed)))
    assert found.lost == 0
    for name in names:
        of_port = [completion for completion in found.completions if completion.server.port == PORTS[name]]
        assert Counter(map(essence, of_port)) == truth([name])
        assert {completion.server.model for completion in of_port} == {"tiny.gguf"}


@pytest.mark.parametrize("how", READ)
def test_streams_three_servers_by_clock(how: str) -> None:
    found = Reading(READ[how](interleaved(GOLDEN, (0, 600, 1500), None)))
    assert Counter(map(essence, found.completions)) == truth(GOLDEN)
    assert len({completion.server.key for completion in found.completions}) == 3


@pytest.mark.parametrize("how", READ)
@pytest.mark.parametrize("number", [2, 3])
def test_streams_by_prefix(how: str, number: int) -> None:
    lines = [
        (f"llama-{'abc'[server]}-1  | {line}", now, server)
        for line, now, server in interleaved(GOLDEN[:number], (0, 0, 0)[:number], 5)
    ]
    found = Reading(READ[how](lines))
    assert found.lost == 0
    for server, name in enumerate(GOLDEN[:number]):
        of_service = [each for each in found.completions if each.server.address == f"llama-{'abc'[server]}-1"]
        assert Counter(map(essence, of_service)) == truth([name])


@pytest.mark.parametrize("how", READ)
@pytest.mark.parametrize("seed", [None, 1, 2])
@pytest.mark.parametrize(
    ("names", "shifts", "change"),
    [
        (GOLDEN[:2], (0, 0.4), str),
        (GOLDEN[:2], (0, 0), unstamped),
        (("verbose", "unstamped"), (0, 0), unstamped),
        (("0.2.9", "0.2.12"), (0, 0), unstamped),
        (("0.2.9", "0.2.12"), (0, 600), str),
        (GOLDEN, (0, 0, 0), unstamped),
    ],
    ids=["started together", "no stamps", "Ollama's flags", "old, no stamps", "old", "three, no stamps"],
)
def test_streams_without_prefix_are_correct_or_unknown(
    how: str, seed: int | None, names: Sequence[str], shifts: Sequence[float], change: Callable[[str], str]
) -> None:
    found = Reading(READ[how](interleaved(names, shifts, seed), change))
    requests, expected = Counter(map(essence, found.completions)), truth(names)
    assert not requests - expected
    assert found.lost == (expected - requests).total()
    by_port = {PORTS[name]: truth([name]) for name in names if name in PORTS}  # a named server is the correct one
    for completion in found.completions:
        if completion.server.port in by_port:
            assert essence(completion) in by_port[completion.server.port]


@settings(max_examples=60, deadline=None)
@example(536870911, ["2026.10.11549", "killed", "2026.9.11063"], 600.0, False, "backlog", 0.046875)
@example(8827, ["2026.10.11549", "killed"], 3.0, False, "backlog", 0.0)
@example(14622109, ["2026.10.11549", "killed", "2026.9.11063"], 0, False, "live", 0.0)
@example(4064812978, ["2026.9.11063", "0.2.9", "queued"], 0, False, "live", 0.0)
@example(1183911265, ["verbose", "2026.10.11549", "2026.9.11063"], 600.0, False, "backlog", 0.5832919609988568)
@example(4121117478, ["killed", "0.2.9", "2026.9.11063"], 0, False, "live", 0.0)
@example(3626247774, ["killed", "2026.10.11549"], 3.0, False, "backlog", 0.0)
@example(684, ["2026.10.11549", "killed"], 0, False, "backlog", 0.0)
@given(
    seed=st.integers(0, 2**32),
    names=st.lists(st.sampled_from(("2026.10.11549", "2026.9.11063", "verbose", "0.2.9", "queued", "killed")),
                   min_size=2, max_size=3, unique=True),
    shift=st.sampled_from([0, 0.1, 3.0, 600.0]),
    strip=st.booleans(),
    how=st.sampled_from(sorted(READ)),
    start=st.floats(0, 0.8),
)  # fmt: skip
def test_streams_random_interleavings_are_never_wrong(  # noqa: PLR0917 - one for each strategy
    seed: int, names: list[str], shift: float, strip: bool, how: str, start: float
) -> None:
    """Also where reading starts in the middle, if clocks distinguish them from the first line on."""
    if shift != 600.0 or strip:
        start = 0.0
    lines = interleaved(names, [shift * number for number in range(len(names))], seed)
    lines = lines[int(start * len(lines)) :]
    found = Reading(READ[how](lines, unstamped if strip else str))
    wrong = Counter(map(essence, found.completions)) - truth(names)
    assert not {each for each in wrong if REPLACED not in str(each[3])}


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    names=st.lists(st.sampled_from(("2026.10.11549", "2026.9.11063", "2026.8.10566", "queued", "verbose")),
                   min_size=2, max_size=3, unique=True),
    announced=st.booleans(),
)  # fmt: skip
def test_streams_ollama_random_interleavings_are_never_wrong(seed: int, names: list[str], announced: bool) -> None:
    """``announced``: the first server's start is read, too."""
    separation, readers = OllamaSeparation(), dict[int, LogReader]()
    separation.owners.complete = True
    for number in range(len(names)):
        separation.add(number, port=None, slots=None, loading=number > 0 or announced)
    for line, now, writer in interleaved(names, [0.0] * len(names), seed):
        text = unstamped(line)
        for event in separation.route(text, split_line(text), now):
            reader = readers.setdefault(event.process, LogReader(ServerInfo("ollama")))
            if event.parts is None:
                reader.lose(event.slot)
                continue
            for request in reader.feed(event.line, event.now, event.parts):
                assert request.slot is not None
                assert request.task is not None
                candidates = separation.owners.candidates.pop((request.slot, request.task), (event.process,))
                assert event.process == UNKNOWN or candidates == (event.process,)
                found = essence(replace(request, slot=own_slot(request.slot)))
                assert any(found in truth([names[number]]) for number in candidates if number != UNKNOWN)
        if "listening on" in text:
            separation.ready(writer)


def test_streams_mixed_log_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    Reading(live(interleaved(GOLDEN[:2], (0, 0), None), unstamped))
    assert caplog.text.count("holds lines of several servers without a mark") == 1


# -- one server -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", READ)
@pytest.mark.parametrize("change", [str, unstamped])
def test_streams_restart_on_the_same_port(how: str, change: Callable[[str], str]) -> None:
    """Requests in flight fail with the process; the server's identity stays."""
    first = timed(log_lines("killed"))
    later = first[-1][1] - ZERO + 30
    lines = [(line, now + number * later, 0) for number in range(3) for line, now in first]
    found = Reading(READ[how](lines, change))
    outcomes = Counter(completion.outcome for completion in found.completions)
    in_flight = [each for each in found.completions if each.error == REPLACED]
    assert len(in_flight) == 2 * sum(each.outcome is Outcome.ERROR for each in reading("killed").completions)
    assert outcomes[Outcome.OK] == 3 * sum(each.outcome is Outcome.OK for each in reading("killed").completions)
    assert {completion.server.port for completion in found.completions} == {34605}
    assert len(found.servers) == 1


def test_streams_backlog_dates_every_process() -> None:
    """A process that follows another started after the other's last line; the last line was written last."""
    first = timed(log_lines("killed"))
    lines = [line for _ in range(2) for line, _ in first]
    found = Reading([Backlog(lines, ZERO + 100)])
    times = [completion.ended_at for completion in found.completions]
    assert times == sorted(times)
    assert max(times) <= ZERO + 100
    length = first[-1][1] - first[0][1]
    assert min(times) >= ZERO + 100 - 2 * length - 1


def test_streams_other_port_is_another_server() -> None:
    """A model replaced by another, as Ollama and llama-swap do."""
    lines = [(line, now, 0) for line, now in timed(log_lines("2026.10.11549"))]
    end = lines[-1][1]
    lines += [(line, now - ZERO + end + 60, 1) for line, now in timed(log_lines("2026.9.11063"))]
    for change in (str, unstamped):
        found = Reading(live(lines, change))
        ports = Counter(completion.server.port for completion in found.completions)
        assert ports == {34129: 37, 44085: 37}
        assert all(completion.error != REPLACED for completion in found.completions)


def test_streams_have_the_labels_of_the_command() -> None:
    """Each server of a log has the labels; the path of the polled one's address is not the others'."""
    first, second = (list(log_lines(name)) for name in GOLDEN[:2])
    lines = [f"llama-a-1  | {line}" for line in first] + [f"llama-b-1  | {line}" for line in second]
    polled = ServerInfo("127.0.0.1", 8080, labels=(("env", "prod"), ("server.path", "/a")))
    found = Reading([Batch(lines, ZERO)], url_of=polled)
    assert {each.server.labels for each in found.completions} == {polled.labels, (("env", "prod"),)}


def test_streams_by_process_id_of_the_wrapper() -> None:
    """A restarted unit has another pid, although neither timestamps nor a decreased clock show it."""
    lines = [
        (f"Sep 21 14:13:20 gpu-1 llama-server[{4711 + number}]: {unstamped(line)}", now, number)
        for number in range(2)
        for line, now in timed(log_lines("killed"))
    ]
    found = Reading(live(lines))
    assert [each.error for each in found.completions].count(REPLACED) == 2
    assert len(found.servers) == 1


def test_streams_number_of_servers_is_bounded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A log can name ever new servers: the lines of those beyond the limit are counted and not read."""
    monkeypatch.setattr("llamatel.llama.watch.log_streams._MOST_SERVERS", 2)
    lines = [
        (f"llama-{number}  | {line}", now, number) for line, now in timed(log_lines(GOLDEN[0])) for number in range(3)
    ]
    found = Reading(live(lines))
    assert Counter(map(essence, found.completions)) == truth([GOLDEN[0]] * 2)
    assert len(found.servers) == 2
    assert sum(counts.lines["other"] for counts in found.counts) >= len(lines) // 3
    assert "has lines of more than 2 servers: those of further ones are skipped" in caplog.text


# -- nothing found ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "nothing was written to it"),
        (["total 12", "-rw-r--r-- 1 a b"], "none of its 2 lines is llama.cpp's: another program's log"),
        (['{"a": 1}', '{"b": "hello"}'], "2 of its 2 lines are JSON without llama.cpp's lines"),
        (["", ""], "its 2 lines are empty"),
        (["x ['slot launch_slot_: id  0 | task 0 | processing task']"], "1 of its 1 line hold words"),
        (list(log_lines("2026.10.11549")[1:11]), "10 of its 10 lines are llama.cpp's, none about a request"),
        (
            ["0.00.002.678 I cmn  common_param: verbosity = 1 (adjust with"],
            "verbosity 1: requests are logged from -lv 3",
        ),
        (["Nov 26 10:00:00 gpu llama-server[1]: [105B blob data]"], "add --all to journalctl"),
        ([line for line in log_lines("2026.10.11549") if "print_timing" in line], "none shows its start and its end"),
    ],
)
def test_streams_log_without_requests_is_explained(lines: list[str], words: str) -> None:
    found = Reading([Batch(lines, ZERO)] if lines else [])
    assert found.completions == []
    assert found.explanation is not None
    assert words in found.explanation


def test_streams_log_with_requests_is_not_explained() -> None:
    assert Reading(live(interleaved(GOLDEN[:1], (0,), None))).explanation is None
