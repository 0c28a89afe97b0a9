"""Reranking calls as requests: llama.cpp logs a task for each document."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import llamatel
from llamatel.llama import LlamaCppClient, ServerManager
from llamatel.llama.http.server_client import parse_counters
from llamatel.llama.log.call_groups import RERANK, CallGroups
from llamatel.llama.log.log_file import FileSource
from llamatel.llama.log.log_source import Backlog, Batch
from llamatel.llama.watch.log_follower import LogFollower
from llamatel.records import Completion, GroupedCall, Outcome
from llamatel.telemetry.jsonl import JsonLines
from llamatel.tracing.semconv import operation
from tests.attached import Unmanaged, attached, unmanaged
from tests.golden.reading import log_lines, read_streams
from tests.parts import wait_until
from tests.samples import START_TIME, completion
from tests.tiny_gguf import write_tiny_model

FLAGS = ("--rerank", "--metrics", "-t", "1", "-c", "4096", "-b", "2048", "-ub", "2048")
RANK = 4
"""LLAMA_POOLING_TYPE_RANK."""
WORDS = "a river of words " * 25


def texts(number: int, text: str = "a llama") -> list[str]:
    return [f"{text} {n}" for n in range(number)]


def rerank(url: str, documents: Sequence[str], **more: Any) -> int:
    """Rerank documents; returns the tokens that the response reports."""
    body = json.dumps({"query": "what", "documents": documents, **more}).encode()
    request = urllib.request.Request(f"{url}/v1/rerank", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return int(json.load(response)["usage"]["total_tokens"])


def disconnect(port: int, documents: Sequence[str]) -> None:
    """Send a call and disconnect while it runs."""
    body = json.dumps({"query": "what", "documents": documents}).encode()
    head = (
        f"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(head.encode() + body)
        time.sleep(0.2)


def tasks(found: Sequence[Completion]) -> list[int]:
    return [each.tasks for each in found]


@contextlib.contextmanager
def reranking(backend: str, model: Path, slots: int, **more: Any) -> Iterator[tuple[ServerManager, list[Completion]]]:
    """A server, and the list of its requests."""
    found: list[Completion] = []
    with ServerManager(backend=backend, **more) as server:
        server.subscribe(found.append)
        server.start_server(model, port=0, n_parallel=slots, extra_args=FLAGS).wait_until_ready(60)
        yield server, found


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_rerank_call_is_one_request(backend: str, slots: int, tiny_model: Path, tmp_path: Path) -> None:
    calls = [1, 3, 50, 3, 5, 1, 1, 8]
    log = tmp_path / "server.log"
    with reranking(backend, tiny_model, slots, server_log=log) as (server, found):
        used = [rerank(server.base_url, texts(number)) for number in calls]
        wait_until(lambda: sum(tasks(found)) == sum(calls), 10, "the last call")
        with urllib.request.urlopen(f"{server.base_url}/metrics", timeout=30) as response:
            counters = parse_counters(response.read())
    assert tasks(found) == calls
    assert [each.prompt_tokens for each in found] == used
    assert counters["prompt_tokens_total"] == sum(used)
    assert {(operation(each), each.outcome) for each in found} == {("rerank", Outcome.OK)}
    assert all(first.ended_at <= second.started_at for first, second in pairwise(found))
    # The same from its log alone, written before or as it is read.
    lines = log.read_text().splitlines()
    for batches in ([Backlog(lines, time.time())], [Batch([line], time.time()) for line in lines]):
        again = [each for each in read_streams(batches) if each.outcome is Outcome.OK]
        assert [(each.tasks, each.prompt_tokens) for each in again] == list(zip(calls, used, strict=True))


def test_rerank_calls_at_once(backend: str, tiny_model: Path) -> None:
    clients, each = 4, 15
    with reranking(backend, tiny_model, 4) as (server, found):
        used: list[int] = []

        def call() -> None:
            used.extend(rerank(server.base_url, texts(5)) for _ in range(each))

        threads = [threading.Thread(target=call) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_until(lambda: sum(tasks(found)) == 5 * clients * each, 10, "all documents")
    assert sum(request.prompt_tokens or 0 for request in found) == sum(used)
    assert len(used) / 3 < len(found) < 2 * len(used)


def test_rerank_call_cancelled(tmp_path: Path) -> None:
    """llama.cpp notices a disconnect after a second without a result: a slow document, or a pause."""
    slow = write_tiny_model(tmp_path / "slow.gguf", embedding=256, feed_forward=1024, layers=6)
    with reranking("xllamacpp", slow, 1) as (server, found):
        state = server.snapshot()
        assert state is not None
        assert state.server.pid is not None
        disconnect(int(server.base_url.rpartition(":")[2]), [*texts(2), *texts(9, WORDS * 8)])
        os.kill(state.server.pid, signal.SIGSTOP)
        time.sleep(1.2)
        os.kill(state.server.pid, signal.SIGCONT)
        wait_until(lambda: found, 30, "its end is noticed")
        rerank(server.base_url, texts(3))
        wait_until(lambda: len(found) == 2, 10, "the call after it")
    cancelled, after = found
    assert cancelled.outcome is Outcome.CANCELLED
    assert operation(cancelled) == "rerank"
    assert 2 < cancelled.tasks < 11
    assert cancelled.prompt_tokens is None
    assert (after.outcome, after.tasks) == (Outcome.OK, 3)


def test_rerank_call_one_document_too_long(backend: str, tiny_model: Path) -> None:
    with reranking(backend, tiny_model, 4) as (server, found):
        with pytest.raises(urllib.error.HTTPError):
            rerank(server.base_url, [*texts(2), "word " * 3000])
        rerank(server.base_url, texts(2))
        wait_until(lambda: len(found) == 2, 10, "both calls")
    assert [(each.outcome, each.tasks) for each in found] == [(Outcome.ERROR, 3), (Outcome.OK, 2)]
    assert "exceeds" in (found[0].error or "")


def test_rerank_server_killed(backend: str, tiny_model: Path) -> None:
    with reranking(backend, tiny_model, 2) as (server, found):
        rerank(server.base_url, texts(2))
        call = threading.Thread(target=disconnect, args=(int(server.base_url.rpartition(":")[2]), texts(300, WORDS)))
        call.start()

        def busy() -> int | None:
            state = server.snapshot()
            assert state is not None
            return state.server.pid if any(slot.busy for slot in state.slots or ()) else None

        os.kill(wait_until(busy, 10, "it works") or 0, signal.SIGKILL)
        wait_until(lambda: len(found) == 2, 10, "the call failed")
        call.join()
    assert [each.outcome for each in found] == [Outcome.OK, Outcome.ERROR]
    assert found[1].error is not None


def test_rerank_server_stopped_at_once(backend: str, tiny_model: Path) -> None:
    with reranking(backend, tiny_model, 1) as (server, found):
        rerank(server.base_url, texts(4))
    assert tasks(found) == [4]


@pytest.fixture
def rank_model(tmp_path: Path) -> Path:
    """A model whose pooling is "rank" by default: llama.cpp does not log it."""
    return write_tiny_model(tmp_path / "rank.gguf", pooling=RANK)


@pytest.mark.usefixtures("no_settings")
def test_rerank_attached_process_flags(llama_server_binary: Path, rank_model: Path, tmp_path: Path) -> None:
    flags = ("-m", rank_model, "--embedding", "--pooling", "rank", "--metrics", "-np", "2")
    with unmanaged(llama_server_binary, tmp_path, *flags) as server, attached(server.url, has_log=True) as fleet:
        assert "pooling_type" not in server.child.output()
        found = follow_calls(server, fleet.fleet.servers[0], [3, 7])
    assert tasks(found) == [3, 7]


@pytest.mark.usefixtures("no_settings")
def test_rerank_router_model(llama_server_binary: Path, rank_model: Path, tmp_path: Path) -> None:
    flags = ("--models-dir", rank_model.parent, "--metrics", "-np", "2", "--rerank")
    with unmanaged(llama_server_binary, tmp_path, *flags) as server, attached(server.url, has_log=True) as fleet:
        rerank(server.url, texts(1), model="rank")  # loads it
        wait_until(lambda: "stop processing" in server.child.output(), 10, "its end is logged")
        found = follow_calls(server, fleet.fleet.servers[0], [3, 7], model="rank")
    assert tasks(found) == [3, 7]
    assert {each.server.model for each in found} == {"rank"}


def follow_calls(server: Unmanaged, observed: Any, calls: Sequence[int], **more: Any) -> list[Completion]:
    """Follow the log from its end while calls are made."""
    found: list[Completion] = []
    observed.subscribe(found.append)
    follower = LogFollower(FileSource(server.child.log, from_start=False), observed).start()
    try:
        time.sleep(0.5)
        for number in calls:
            rerank(server.url, texts(number), **more)
        wait_until(lambda: sum(tasks(found)) == sum(calls), 10, "the last call")
    finally:
        follower.stop(5)
    return found


@pytest.mark.usefixtures("telemetry")
def test_rerank_call_joined_with_client(backend: str, tiny_model: Path) -> None:
    with reranking(backend, tiny_model, 2) as (server, found):
        with llamatel.span("task"):
            ranking = LlamaCppClient(server.base_url).rerank("what", texts(5))
        wait_until(lambda: found, 10, "the request")
        spans = llamatel.last_trace().spans
    [call] = [span for span in spans if span.kind == "CLIENT"]
    [request] = [span for span in spans if span.kind == "SERVER"]
    assert request.parent_id == call.span_id
    assert request.attributes["gen_ai.operation.name"] == call.attributes["gen_ai.operation.name"] == "rerank"
    assert request.attributes["llamacpp.request.tasks"] == 5
    assert ranking.usage is not None
    assert call.attributes["gen_ai.usage.input_tokens"] == ranking.usage.total_tokens == found[0].prompt_tokens


@pytest.mark.usefixtures("no_settings")
def test_rerank_calls_counted_in_every_output(tiny_model: Path, tmp_path: Path) -> None:
    kept: list[str | None] = []
    lines = JsonLines.open(str(tmp_path / "requests.jsonl"))
    running = llamatel.init(
        metrics_addr="127.0.0.1:0", keep_traces=True, sinks=[lines, lambda _, trace: kept.append(trace)]
    )
    try:
        with reranking("xllamacpp", tiny_model, 2) as (server, found):
            for number in (3, 1, 9):
                rerank(server.base_url, texts(number))
            wait_until(lambda: len(kept) == 3, 10, "the calls")
            samples = scrape(running.pipeline.metrics_url)
    finally:
        llamatel.shutdown()
    assert len(found) == len(set(kept)) == 3
    rows = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert [(row["operation"], row["task_count"], row["prompt_tokens"]) for row in rows] == [
        ("rerank", each.tasks, each.prompt_tokens) for each in found
    ]
    assert samples["llamacpp_requests_total", "ok"] == 3
    assert samples["gen_ai_server_request_duration_seconds_count", "rerank"] == 3
    assert samples["llamacpp_request_input_tokens_sum", ""] == sum(each.prompt_tokens or 0 for each in found)
    assert samples["llamatel_requests_lost_total", ""] == 0


def scrape(url: str | None) -> dict[tuple[str, str], float]:
    """Samples by name, and outcome or operation."""
    assert url is not None
    with urllib.request.urlopen(url, timeout=30) as response:
        families = list(text_string_to_metric_families(response.read().decode()))
    found: dict[tuple[str, str], float] = {}
    for sample in (sample for family in families for sample in family.samples):
        kind = sample.labels.get("outcome") or sample.labels.get("gen_ai_operation_name") or ""
        found[sample.name, kind] = found.get((sample.name, kind), 0.0) + sample.value
    return found


class _Resumed(Backlog):
    """A log whose first lines were read by an earlier llamatel."""

    def __init__(self, lines: Sequence[str], recorded: int) -> None:
        super().__init__(lines, START_TIME)
        self._parts = [(lines[:recorded], True), (lines[recorded:], False)]

    def batches(self) -> Iterator[tuple[Sequence[str], bool]]:
        yield from self._parts


def test_rerank_log_resumed_after_and_during_a_call() -> None:
    lines = log_lines("rerank")
    last = next(number for number, line in enumerate(lines) if "release: id  3" in line)
    assert read_streams([_Resumed(lines, last + 1)]) == []
    assert tasks(read_streams([_Resumed(lines, last)])) == tasks(read_streams([_Resumed(lines, 0)])) == [3]


def test_rerank_router_log_shows_flags() -> None:
    start = [
        "0.00.020.002 I srv          load: spawning server instance with name=rank on port 49805",
        "0.00.020.033 I srv          load:   --reranking",
        "[49805] 0.00.001.548 I srv  llama_server: initializing ...",
    ]
    call = [f"[49805] {line}" for line in log_lines("rerank") if " slot " in line]
    [found] = read_streams([Backlog([*start, *call], START_TIME)])
    assert (found.tasks, found.server.model, operation(found)) == (3, "rank", "rerank")


# -- the estimate -----------------------------------------------------------------------------------------------------


class Tasks:
    """Tasks of a server, and the calls that they were grouped into, as numbers of tasks."""

    def __init__(self) -> None:
        self.now = 0.0
        self.groups = CallGroups(lambda: self.now)
        self.running: dict[int, float] = {}
        self.calls: list[GroupedCall] = []

    def start(self, *numbers: int) -> None:
        self.running |= dict.fromkeys(numbers, START_TIME + self.now)

    def finish(self, *numbers: int) -> list[int]:
        """Finish tasks; returns the tasks of all calls so far."""
        for number in numbers:
            started_at = self.running.pop(number)
            part = completion(task=number, started_at=started_at)
            self.add(self.groups.finished(part, self.running, RERANK))
        return tasks(self.calls)

    def settle(self, seconds: float) -> list[int]:
        self.now += seconds
        self.add(self.groups.settle(self.running, RERANK))
        return tasks(self.calls)

    def add(self, calls: Sequence[Completion]) -> None:
        self.calls += [call for call in calls if isinstance(call, GroupedCall)]


def test_call_groups_wait_for_tasks_without_slot() -> None:
    server = Tasks()
    server.start(0, 1)
    assert server.finish(1, 0) == []
    assert server.settle(0.1) == []
    server.start(2, 3)
    assert server.settle(60.0) == []
    assert server.finish(2, 3) == []
    assert server.settle(0.4) == [4]


def test_call_groups_held_while_server_is_busy() -> None:
    server = Tasks()
    server.start(0, 1, 3)
    assert server.finish(0, 1) == []
    assert server.settle(0.9) == []
    assert server.settle(0.2) == [2]
    assert server.finish(3) == [2]
    assert server.settle(0.4) == [2, 1]


def test_call_groups_numbers_of_calls_mixed() -> None:
    """Two calls that arrive together take their numbers in turn; one runs after the other."""
    server = Tasks()
    for tasks_at_once in ((0, 2), (4, 6), (1, 3), (5, 8)):
        server.start(*tasks_at_once)
        assert server.finish(*tasks_at_once) == []
    assert server.settle(0.4) == [7, 1]


def test_call_groups_calls_in_flight() -> None:
    server = Tasks()
    server.start(0, 1)
    server.now = 1.0
    server.start(3, 4)
    server.finish(0, 1)
    server.settle(1.0)
    [call] = server.calls
    assert call.in_flight == (START_TIME + 1.0,)
    assert call.started_at == START_TIME


def test_call_groups_number_of_tasks_is_bounded() -> None:
    server = Tasks()
    for number in range(10_000):
        server.start(number)
        server.finish(number)
    assert server.settle(1.0) == [4096, 4096, 10_000 - 2 * 4096]


def test_call_groups_log_ends_during_a_call() -> None:
    server = Tasks()
    server.start(0, 1, 3, 4)
    server.finish(0, 1, 3)
    calls, lost = server.groups.forget(server.running, RERANK)
    assert (tasks([*server.calls, *calls]), lost) == ([2], 1)
