"""Ollama: real llama-servers under its flags, with its log lines and endpoints by a stand-in (``ollama_stand_in``)."""

from __future__ import annotations

import json
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from llamatel.inputs.address import parse_address
from llamatel.inputs.http import HttpClient
from llamatel.llama.log.log_file import open_log
from llamatel.llama.log.log_line import split_line
from llamatel.llama.log.log_process import UNKNOWN
from llamatel.llama.log.ollama_log import (
    AccessLine,
    ChildReady,
    ChildStart,
    Eviction,
    LoadedModels,
    OllamaConfig,
    OllamaStart,
    parse_duration,
    parse_ollama,
)
from llamatel.llama.log.ollama_separation import OllamaSeparation
from llamatel.llama.log.wrapped_lines import WrappedLines
from llamatel.llama.watch.access_join import DatedAccess, join
from llamatel.llama.watch.ollama import Ollama
from llamatel.llama.watch.ollama_children import find_children
from llamatel.llama.watch.ollama_evictions import Evictions
from llamatel.llama.watch.ollama_log_location import find_log
from llamatel.llama.watch.ollama_log_reader import Ended
from llamatel.records import Completion, ObservedRequest, Outcome, ServerInfo
from tests.attached import unmanaged
from tests.ollama_stand_in import OllamaProcess
from tests.parts import free_port, wait_until
from tests.parts.wheels import xllamacpp_server

pytestmark = pytest.mark.usefixtures("no_settings")

RECORDED = Path(__file__).parent / "data" / "ollama" / "0.33.0-rc2"
DIGESTS = {"tiny-a": "de9b2f15cc5f", "tiny-b": "72c0acca15f0", "tiny-c": "91e45f79b79f"}


@dataclass(frozen=True)
class Sent:
    """A request as its client saw it; the number of tokens identifies it."""

    model: str
    tokens: int
    prompt_tokens: int


class Load:
    """Requests to several models, each with another number of tokens."""

    def __init__(self, ollama: OllamaProcess, first: int = 10) -> None:
        self.sent: dict[int, Sent] = {}
        self._ollama = ollama
        self._tokens = first
        self._lock = threading.Lock()

    def send(self, model: str) -> None:
        """One request; waits for its end."""
        with self._lock:
            self._tokens += 1
            tokens = self._tokens
        timings = self._ollama.generate(model, "Hello there " * (tokens % 5 + 1), tokens)["timings"]
        assert timings["predicted_n"] == tokens
        self.sent[tokens] = Sent(model, tokens, timings["prompt_n"] + timings["cache_n"])

    def at_once(self, *models: str, each: int) -> None:
        """A client for each name, all at the same time, ``each`` requests after one another.

        The pauses are long enough for most requests to be seen in a slot when slots are polled.
        """
        generator = random.Random(4)

        def client(model: str, pause: float) -> None:
            for _ in range(each):
                time.sleep(pause * generator.random())
                self.send(model)

        threads = [threading.Thread(target=client, args=(model, 0.5)) for model in models]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


@pytest.fixture
def ollama(llama_server_binary: Path, tiny_model: Path, tmp_path: Path) -> Iterator[OllamaProcess]:
    """``alpha`` with one slot on the llama-server that was built, ``beta`` with two and ``gamma`` on the wheel's."""
    wheel = str(xllamacpp_server("2026.10.11549"))
    models = {}
    (tmp_path / "blobs").mkdir()
    for number, (name, program, slots) in enumerate(
        (("alpha:1b", str(llama_server_binary), 1), ("beta:2b", wheel, 2), ("gamma:3b", wheel, 1))
    ):
        blob = tmp_path / "blobs" / f"sha256-{f'{number}abcdef0' * 8}"
        shutil.copy(tiny_model, blob)
        models[name] = {"program": program, "path": str(blob), "slots": slots, "unloaded_silently": name == "alpha:1b"}
    running = OllamaProcess(tmp_path, models)
    yield running
    running.close()


def attach(ollama: OllamaProcess, done: list[Completion], **options: bool) -> Ollama:
    """Observe it with its log, from the log's end."""
    observed = Ollama(
        HttpClient(ollama.url), ServerInfo("127.0.0.1", ollama.port), open_log(str(ollama.log)), interval_s=0.2,
        **options,
    )  # fmt: skip

    def keep(request: Completion | ObservedRequest) -> None:
        assert isinstance(request, Completion)
        done.append(request)

    observed.subscribe(keep)
    return observed.start()


def loaded(observed: Ollama) -> set[str | None]:
    """The models that are loaded."""
    return {each.server.model for each in observed.snapshots() if each.state == "loaded"}


def check(done: list[Completion], sent: dict[int, Sent], durations: dict[int, str]) -> int:
    """No request is wrong; how many have their model."""
    assert len({request.generated for request in done}) == len(done)
    known = 0
    for request in done:
        assert request.outcome is Outcome.OK
        assert request.generated is not None
        truth = sent[request.generated]
        assert request.prompt_tokens == truth.prompt_tokens
        assert request.server.model in (truth.model, None)
        assert request.queue_s is None
        known += request.server.model is not None
        if request.access is not None:
            assert request.access.path == "/api/generate"
            assert request.access.status == 200
            took = parse_duration(durations[request.generated])
            assert took is not None
            assert request.access.ended_at - request.access.started_at == pytest.approx(took, abs=1e-5)
    return known


def test_ollama_restarting_is_down_and_polled_on(tmp_path: Path) -> None:
    """Its log (kubectl logs -f) ends with it: attach must not exit with status 0."""
    process = OllamaProcess(tmp_path, {})
    observed = Ollama(HttpClient(process.url), ServerInfo("127.0.0.1", process.port), interval_s=0.05)
    assert not observed.polled
    observed.start()
    try:
        wait_until(lambda: observed.snapshots()[0].up, 30)
        process.close()
        wait_until(lambda: observed.snapshots()[0].up is False, 30)
        assert observed.polled
    finally:
        observed.stop()


def test_ollama_two_models_at_once(ollama: OllamaProcess) -> None:
    done: list[Completion] = []
    observed = attach(ollama, done)
    load = Load(ollama)
    try:
        wait_until(lambda: observed.snapshots()[0].up, 30)
        load.at_once("alpha:1b", "beta:2b", "beta:2b", each=8)
        wait_until(lambda: len(done) >= len(load.sent) - 2, 30)
        time.sleep(0.5)
        snapshots = {each.server.model: each for each in observed.snapshots()}
    finally:
        observed.stop()
    known = check(done, load.sent, ollama.durations)
    lost = snapshots[None].log
    assert lost is not None
    assert len(done) + lost.requests_lost == len(load.sent) == 24
    assert known > len(done) // 2
    for name, slots in (("alpha:1b", 1), ("beta:2b", 2)):
        state = snapshots[name]
        assert state.state == "loaded"
        assert state.kv_cache is not None
        assert state.kv_cache.capacity == 1024 * slots
        assert state.kv_cache.reported_bytes
        assert state.kv_cache.active is not None
        assert state.router_model is not None
        assert (state.router_model.loads, state.router_model.evictions) == (1, 0)


def test_ollama_requests_after_one_another(ollama: OllamaProcess) -> None:
    """Of requests that do not overlap all is known, over evictions, an unload and a load without a request.

    The eviction of ``beta`` is logged, that of ``alpha`` (as with OLLAMA_MAX_LOADED_MODELS) is not.
    """
    load, done = Load(ollama), list[Completion]()
    load.send("alpha:1b")  # before it is attached to: found by its process
    observed = attach(ollama, done, client_addresses=True)
    try:
        wait_until(lambda: len(observed.snapshots()) > 1, 20)
        time.sleep(0.5)  # its log is read from here
        for model in ("alpha:1b", "beta:2b", "alpha:1b"):
            load.send(model)
            wait_until(lambda: len(done) == len(load.sent) - 1, 30)
        ollama.post("/api/generate", model="gamma:3b", prompt="")
        load.send("gamma:3b")
        wait_until(lambda: len(done) == len(load.sent) - 1, 30)
        ollama.post("/api/generate", model="beta:2b", prompt="")
        wait_until(lambda: "alpha:1b" not in loaded(observed), 10)
        ollama.post("/stand-in/unload", model="gamma:3b")
        states = {"alpha:1b": "unloaded", "beta:2b": "loaded", "gamma:3b": "unloaded"}
        wait_until(
            lambda: states.items() <= {each.server.model: each.state for each in observed.snapshots()}.items(), 10
        )
        models = {each.server.model: each.router_model for each in observed.snapshots()}
    finally:
        observed.stop()
    assert check(done, load.sent, ollama.durations) == len(done) == 4
    assert all(request.access is not None and request.access.client == "127.0.0.1" for request in done), [
        (request.server.model, request.started_at, request.ended_at, request.access) for request in done
    ]
    assert all((request.outside_s or 0.0) < 30 for request in done)
    assert {name: (life.loads, life.evictions, life.failures) for name, life in models.items() if life is not None} == {
        "alpha:1b": (0, 1, 0), "beta:2b": (2, 1, 0), "gamma:3b": (1, 0, 0)
    }  # fmt: skip


def test_ollama_recorded_log() -> None:
    """A log of Ollama v0.33.0-rc2 itself: three models of which two are loaded at once, one unloaded for another.

    Built from its source without the conversion of models; its llama-servers are llama-cpp-python 0.3.36's.
    """
    done: list[Completion] = []
    observed = Ollama(
        HttpClient("http://127.0.0.1:1"), ServerInfo("127.0.0.1", 1),
        open_log(f"{RECORDED}.log.gz", from_start=True),
    )  # fmt: skip
    observed.subscribe(lambda request: done.append(request) if isinstance(request, Completion) else None)
    observed.start()
    assert observed.wait(60)
    wait_until(lambda: [each for each in observed.snapshots() if each.router_model], 30)  # a poll
    observed.stop()
    sent = {(each["prompt"], each["generated"]): each for each in json.loads(Path(f"{RECORDED}.json").read_text())}
    assert sorted((request.prompt_tokens, request.generated) for request in done) == sorted(sent)
    names = {name: f"sha256-{digest}" for name, digest in DIGESTS.items()}
    for request in done:
        assert request.outcome is Outcome.OK
        truth = sent[request.prompt_tokens, request.generated]
        assert request.server.model in (None, names[truth["model"]])
        assert request.started_at < truth["end"] + 1.0  # of the last line before it that has a date
    assert any(request.server.model is not None for request in done)
    models = {each.server.model: each for each in observed.snapshots()}
    assert {name: state.router_model.loads for name, state in models.items() if state.router_model is not None} == {
        names["tiny-a"]: 2, names["tiny-b"]: 1, names["tiny-c"]: 1
    }  # fmt: skip


LINES = {
    'time=2026-07-21T14:48:34.530+08:00 level=INFO source=llama_server.go:433 msg="starting llama-server" '
    'cmd="/usr/local/lib/ollama/llama-server --model /usr/share/ollama/.ollama/models/blobs/sha256-65 --port 40031 '
    '--host 127.0.0.1 --no-webui --offline -c 262144 -np 1 --log-verbosity 4"': ChildStart(
        "/usr/share/ollama/.ollama/models/blobs/sha256-65", 40031, 262144, 1
    ),
    'time=2026-07-21T14:48:34.530+08:00 level=INFO source=llama_server.go:433 msg="starting llama-server" '
    r'cmd="C:\\llama-server.exe --model C:\\Users\\A B\\blobs\\sha256-65 --port 1 --host 127.0.0.1 -c 1 -np 2"': (
        ChildStart(r"C:\Users\A B\blobs\sha256-65", 1, 1, 2)
    ),
    '[GIN] 2026/07/21 - 14:48:33 | 200 |     509.979µs |       127.0.0.1 | POST     "/api/show"': AccessLine(
        "/api/show", "POST", 200, 509.979 * 1e-6, "127.0.0.1"
    ),
    '[GIN] 2026/07/21 - 14:48:33 | 500 |          1m2s |             ::1 | POST     "/api/chat?x=1"': AccessLine(
        "/api/chat", "POST", 500, 62.0, "::1"
    ),
    'time=2026-07-21T14:48:34.530+08:00 level=INFO source=sched.go:728 msg="loaded runners" count=2': LoadedModels(2),
    'time=2026-07-21T14:48:34.530+08:00 level=INFO source=a.go:1 msg="llama-server started in 1.20 seconds"': (
        ChildReady(1.2)
    ),
    'time=2026-07-21T14:48:34.530Z level=INFO source=routes.go:1 msg="Listening on [::]:11434 (version 0.31.1)"': (
        OllamaStart("0.31.1")
    ),
    'time=2026-11-26T17:07:49.347Z level=INFO source=routes.go:1951 msg="server config" env="map[HTTP_PROXY: '
    'OLLAMA_KEEP_ALIVE:5m0s OLLAMA_MAX_LOADED_MODELS:2 OLLAMA_MAX_QUEUE:512 no_proxy:]"': OllamaConfig(2),
    'time=2026-07-21T14:48:34.530Z level=DEBUG source=sched.go:266 msg="max runners achieved, unloading one to make '
    'room" runner_count=3': Eviction(),
    'time=2026-07-21T14:48:34.530Z level=INFO source=sched.go:1 msg="llama-server model predicted to exceed available '
    'memory, evicting" predicted="1 GiB"': Eviction(),
}
WRAPPERS = (
    "{}",
    "Jul 21 14:48:33 host ollama[12]: {}",
    "ollama-1  | {}",
    "[pod/ollama-0/ollama] {}",
    "2026-07-21T14:48:34.529123456Z {}",
    "2026-07-21T14:48:34.529123456Z stderr F {}",
)


@pytest.mark.parametrize("line", LINES)
def test_ollama_line_in_wrappers(line: str) -> None:
    found = WrappedLines()
    wrapped = [wrapper.format(line) for wrapper in WRAPPERS]
    wrapped.append(json.dumps({"log": line + "\n", "stream": "stderr", "time": "2026-07-21T14:48:34.529Z"}))
    wrapped.append(
        json.dumps({"MESSAGE": line, "_SYSTEMD_UNIT": "ollama.service", "__REALTIME_TIMESTAMP": "1784616514"})
    )
    for each in wrapped:
        [carried] = found.feed(each)
        assert parse_ollama(carried.text) == LINES[line], each


@pytest.mark.parametrize(
    "line",
    [
        (
            'srv    operator(): got exception: {"message":"time=2026-07-21T14:48:34.530Z level=INFO source=a.go:1 '
            'msg=\\"llama-server started in 1.20 seconds\\""}'
        ),
        '[GIN] 2026/07/21 - 14:48:33 | 200 |     x |       127.0.0.1 | POST     "/api/show"',
        'time=2026-07-21T14:48:34.530Z level=INFO source=a.go:1 msg="starting llama-server" cmd="rm --model x"',
        (
            'time=2026-07-21T14:48:34.530Z level=INFO source=a.go:1 msg="starting llama-server" '
            'cmd="x --model m --port 80 --host 10.0.0.1 -c 1 -np 1"'
        ),
        (
            'time=2026-07-21T14:48:34.530Z level=INFO source=a.go:1 msg="starting llama-server" '
            'cmd="x --model m --port 99999 --host 127.0.0.1 -c 1 -np 1"'
        ),
    ],
)
def test_ollama_line_not_ollamas(line: str) -> None:
    assert parse_ollama(line) is None


@pytest.mark.parametrize(
    ("text", "seconds"), [("0s", 0.0), ("1h2m3.5s", 3723.5), ("12ms", 0.012), ("5", None), ("", None), ("1x2s", None)]
)
def test_parse_duration(text: str, seconds: float | None) -> None:
    assert parse_duration(text) == (None if seconds is None else pytest.approx(seconds))


def finished(
    started_at: float, ended_at: float, *, embedding: bool = False, launched: int = 0, late_s: float = 0.0
) -> Ended:
    generated = None if embedding else 5
    completion = Completion(ServerInfo("a"), 0, 1, started_at, ended_at, Outcome.OK, generated=generated)
    return Ended(completion, 1, (), live=True, error_s=0.0, launched=launched, late_s=late_s)


def access(at: float, seconds: float, path: str = "/api/chat") -> DatedAccess:
    return DatedAccess(AccessLine(path, "POST", 200, seconds, "10.0.0.9"), at)


def test_ollama_children_of_another_ollama_are_not_its_own(ollama: OllamaProcess) -> None:
    ollama.generate("alpha:1b", "Hello")
    [child] = find_children(parse_address(ollama.url))
    assert child.slots == 1
    assert find_children(parse_address(f"http://127.0.0.1:{free_port()}")) == []
    with socket.socket() as other:  # of the same user, in the same network
        other.bind(("127.0.0.1", 0))
        other.listen()
        assert find_children(parse_address(f"http://127.0.0.1:{other.getsockname()[1]}")) == []
    assert find_children(parse_address(f"http://ollama.example:{ollama.port}")) == []  # another machine's


def test_evictions_only_what_made_room() -> None:
    """An exit before its time, with as many models loaded as Ollama permits, and another load at once."""

    def evicted(*, expires_in_s: float | None = 200.0, loaded: int = 3, load_at: float = 10.2, limit: int = 0) -> bool:
        found = Evictions()
        found.limit(limit)
        before = found.exited("a", 10.0, expires_in_s=expires_in_s, loaded=loaded)
        assert not before
        return found.starts("b", load_at) == "a"

    assert evicted()
    assert evicted(limit=2, loaded=2)
    assert not evicted(loaded=2)  # there was room for a third one
    assert not evicted(expires_in_s=0.3)
    assert not evicted(expires_in_s=None)
    assert not evicted(load_at=20.0)
    noticed_late = Evictions()
    assert noticed_late.starts("b", 9.5) is None
    assert noticed_late.exited("a", 10.0, expires_in_s=200.0, loaded=3)
    assert not noticed_late.exited("c", 10.0, expires_in_s=200.0, loaded=3)  # one exit for each load


def test_find_log_of_a_running_ollama(ollama: OllamaProcess) -> None:
    """The file to which it writes its standard error."""
    assert find_log(parse_address(ollama.url)) == (str(ollama.log), "")
    assert find_log(parse_address("http://ollama.example:11434"))[0] is None


def test_access_join_only_if_one_fits() -> None:
    one = finished(100.0, 105.0)
    assert join([one], [access(105.1, 6.0)])[0].started_at == pytest.approx(99.1)
    assert join([one], [access(105.1, 6.0)])[0].client is None
    assert join([one], [access(105.1, 6.0)], with_client=True)[0].client == "10.0.0.9"
    assert not join([one], [access(105.1, 3.0)])  # it had started before
    assert not join([one], [access(108.0, 30.0)])  # too late
    assert not join([one], [access(104.0, 30.0)])  # before its end
    assert not join([one], [access(105.1, 6.0), access(105.2, 7.0)])
    assert not join([one, finished(101.0, 105.0)], [access(105.1, 6.0)])
    assert not join([one], [access(105.1, 6.0, "/api/embed")])
    assert join([finished(100.0, 105.0, embedding=True)], [access(105.1, 6.0, "/api/embed")])


def test_access_join_only_requests_launched_before() -> None:
    """A load without a request has an access line, too; all lines are read at the same moment."""
    loaded, answered = (DatedAccess(access(100.0, 2.0).line, 100.0, number=number) for number in (7, 12))
    assert set(join([finished(100.0, 100.0, launched=9)], [loaded, answered])) == {0}
    assert not join([finished(100.0, 100.0, launched=3)], [loaded, answered])


def test_access_join_lines_dated_when_read() -> None:
    """A file is read every 0.2 s: the lines of a request of 10 ms are read at one moment, or at two."""
    [line] = [access(100.2, 0.01).line]
    read_late = DatedAccess(line, 100.2, late_s=0.2)
    assert join([finished(100.0, 100.2, late_s=0.2)], [read_late])  # its launch was written just before a read
    assert not join([finished(100.0, 100.2)], [DatedAccess(line, 100.2)])
    assert join([finished(100.0, 100.2, late_s=0.2)], [DatedAccess(line, 100.0)])  # its end just after one
    assert not join([finished(99.7, 100.2, late_s=0.2)], [read_late])
    assert not join([finished(100.2, 100.5, late_s=0.1)], [read_late])


def test_ollama_separation_output_copied_late() -> None:
    """Ollama logs that a server is ready before it has copied all of the server's output."""
    separation = OllamaSeparation()

    def server_of(line: str) -> list[int]:
        return [event.process for event in separation.route(line, split_line(line), 0.0)]

    buffer = "llama_kv_cache:        CPU KV buffer size =     0.50 MiB"
    separation.add(1, port=7001, slots=1)
    assert server_of(buffer) == [1]
    separation.ready(1)
    assert server_of(buffer) == [1]
    separation.add(2, port=7002, slots=1)
    assert server_of(buffer) == []  # of either
    assert server_of("srv  llama_server: server is listening on http://127.0.0.1:7001") == [1]
    assert server_of(buffer) == [2]


def test_ollama_separation_ambiguous_requests() -> None:
    """A server whose slot shows a task ran it, but not which of two requests with that number it was."""
    separation = OllamaSeparation()
    for number in (1, 2):
        separation.add(number, port=number, slots=1, loading=False)
    owners = separation.owners

    def log(message: str) -> None:
        line = f"slot launch_slot_: id  0 | task 7 | {message}"
        separation.route(line, split_line(line), 0.0)

    log("processing task, is_child = 0")
    assert owners.is_only(1, 0, 7)
    assert owners.is_only(2, 0, 7)
    log("stop processing: n_tokens = 9, truncated = 0")
    log("processing task, is_child = 0")
    assert not owners.is_only(1, 0, 7)
    owners.exclude([1], 0, 7)
    assert owners.is_only(1, 0, 7)
    assert not owners.is_only(2, 0, 7)
    log("processing task, is_child = 0")  # two at once: both are lost
    assert not owners.is_only(1, 0, 7)


def test_ollama_separation_servers_not_announced() -> None:
    """A request is never given to the one server that is known while there may be others."""
    separation = OllamaSeparation()
    separation.add(1, port=1, slots=1, loading=False)
    launch = "slot launch_slot_: id  0 | task 7 | processing task, is_child = 0"
    [line] = separation.route(launch, split_line(launch), 0.0)
    assert line.process == UNKNOWN
    assert separation.owners.candidates[0, 7] == (1, UNKNOWN)
    separation.owners.complete = True
    launch = launch.replace("task 7", "task 9")
    [line] = separation.route(launch, split_line(launch), 0.0)
    assert line.process == 1


def test_ollama_forged_start_connects_to_nothing(llama_server_binary: Path, tiny_model: Path, tmp_path: Path) -> None:
    """A port in the log is not connected to, though a llama-server listens there: it is no child of Ollama's."""
    with unmanaged(llama_server_binary, tmp_path, "-m", tiny_model, "-lv", "4") as server:
        log = tmp_path / "ollama.log"
        log.write_text(
            'time=2026-07-21T14:48:34.530Z level=INFO source=a.go:1 msg="starting llama-server" cmd="llama-server '
            f'--model {tiny_model} --port {server.port} --host 127.0.0.1 --no-webui -c 1 -np 1"\n'
        )
        time.sleep(0.5)  # the last lines of its start
        before = server.child.output()
        observed = Ollama(
            HttpClient("http://127.0.0.1:1"), ServerInfo("127.0.0.1", 1), open_log(str(log), from_start=True),
            interval_s=0.1,
        ).start()  # fmt: skip
        wait_until(lambda: len(observed.snapshots()) > 1, 20)
        time.sleep(1.0)
        observed.stop()
        assert server.child.output() == before


def test_attach_ollama_command(ollama: OllamaProcess, tmp_path: Path) -> None:
    """From the log's start, by the command line; Ollama is gone when it is read."""
    load = Load(ollama)
    load.send("alpha:1b")
    wait_until(lambda: "stop processing" in ollama.log.read_text(), 20, "llama-server's last line")
    ollama.close()
    command = [sys.executable, "-m", "llamatel.cli.main", "attach", "--ollama", ollama.url, "--metrics-addr", "none"]
    with ollama.log.open() as log:
        done = subprocess.run(
            [*command, "--log", "-", "--jsonl", str(tmp_path / "requests.jsonl")], stdin=log, capture_output=True,
            text=True, timeout=120, check=True,
        )  # fmt: skip
    assert "1 request" in done.stderr
    [request] = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert (request["generated"], request["server"]["model"]) == (11, "sha256-0abcdef00abc")
    assert request["access"] is None  # nothing in the file dates a request to the second
    assert find_log(parse_address(ollama.url))[0] is None
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 1
    assert "/api/ps: connection refused" in refused.stderr
