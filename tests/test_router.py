"""llama-server in router mode: attached to, followed by its log, and launched by us."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from llamatel.llama.http.server_client import ServerClient
from llamatel.llama.log.log_file import FileSource
from llamatel.llama.server.manager import ServerManager
from llamatel.llama.watch.log_follower import LogFollower
from llamatel.llama.watch.process_log import router_log
from llamatel.llama.watch.router_models import parse_models
from llamatel.records import Completion, Outcome
from llamatel.snapshots import CountGaps, RouterModel, ServerSnapshot
from tests.attached import Attached, Server, Unmanaged, attached, unmanaged
from tests.parts import Child, free_port, wait_until
from tests.servers import LONG, complete, complete_in_background
from tests.tiny_gguf import write_tiny_model

pytestmark = pytest.mark.usefixtures("no_settings")

FLAGS = ("-np", "2", "-c", "8192", "-t", "1")
MODELS = {"a", "b", "c"}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three models."""
    folder = tmp_path_factory.mktemp("models")
    for name in MODELS:
        write_tiny_model(folder / f"{name}.gguf")
    return folder


@pytest.fixture
def start(llama_server_binary: Path, models: Path, tmp_path: Path) -> Iterator[Callable[..., Unmanaged]]:
    """Starts routers, which are stopped after the test together with their models."""
    started: list[Unmanaged] = []

    def start(*flags: str) -> Unmanaged:
        started.append(Unmanaged(llama_server_binary, tmp_path, "--models-dir", models, "--metrics", *FLAGS, *flags))
        return started[-1]

    yield start
    for router in started:
        router.child.stop()


def state_of(states: list[ServerSnapshot] | tuple[ServerSnapshot, ...], model: str | None) -> ServerSnapshot:
    [state] = [state for state in states if state.server.model == model]
    return state


def child_pid(router: Server, model: str) -> int:
    """The process of a loaded model."""
    [args] = [entry["status"]["args"] for entry in router.get("/models")["data"] if entry["id"] == model]
    wanted = [b"--port", args[args.index("--port") + 1].encode()]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has exited
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if wanted in ([*pair] for pair in pairwise(words)):
                    return int(entry.name)
    raise AssertionError(f"no process of {model}")


def kill_child(router: Server, model: str) -> None:
    """Kill the process of a model as the OOM killer would."""
    os.kill(child_pid(router, model), signal.SIGKILL)


def names(fleet: Attached) -> set[str | None]:
    return {state.server.model for state in fleet.states()}


def test_router_polling_loads_no_model(start: Callable[..., Unmanaged]) -> None:
    router = start()
    with attached(router.url, interval_s=0.05) as fleet:
        wait_until(lambda: names(fleet) == {None} | MODELS, 20, "three models")
        time.sleep(2)
        states = fleet.states()
    assert [(state.up, state.state) for state in states if state.server.model is None] == [(True, "ready")]
    assert {state.state for state in states if state.server.model} == {"unloaded"}
    assert {entry["status"]["value"] for entry in router.get("/models")["data"]} == {"unloaded"}
    assert "spawning" not in router.child.output()


def test_router_model_measured_then_sleeps(start: Callable[..., Unmanaged]) -> None:
    router = start("--sleep-idle-seconds", "1")
    with attached(router.url, interval_s=0.05) as fleet:
        fleet.wait(lambda state: state.state == "unloaded", "a")
        router.complete(9, model="a")
        state = fleet.wait(lambda state: state.counters.get("tokens_predicted_total") == 9 and state.slots, "a")
        assert state.kv_cache is not None
        # The pool follows from the flags that the router passed to it: 8192 tokens, half for each slot.
        assert (state.state, state.kv_cache.capacity, state.kv_cache.unified) == ("loaded", 8192, False)
        assert state.kv_cache.cached
        fleet.wait(lambda state: state.state == "sleeping", "a")
        time.sleep(3)
        state = fleet.wait(lambda state: state.state, "a")
        assert (state.state, state.slots, state.counters["tokens_predicted_total"]) == ("sleeping", None, 9)
        assert router.child.output().count("handle_sleep: server is exiting") == 0
        assert state_of(fleet.states(), "b").state == "unloaded"
        assert router.child.output().count("spawning server instance with name") == 1


def test_router_model_stalled(start: Callable[..., Unmanaged]) -> None:
    router = start()
    with attached(router.url, stalled_after_s=1.0) as fleet:
        fleet.wait(lambda state: state.state == "unloaded", "a")
        complete_in_background(router.url, 1, 1_500, model="a")
        fleet.wait(lambda state: state.slots is not None and any(slot.busy for slot in state.slots), "a")
        pid = child_pid(router, "a")
        os.kill(pid, signal.SIGSTOP)
        try:
            assert fleet.wait(lambda state: state.state == "stalled", "a").router_model is not None
            states = {state.server.model: state.state for state in fleet.states()}
            assert (states[None], states["b"]) == ("ready", "unloaded")
        finally:
            os.kill(pid, signal.SIGCONT)
        fleet.wait(lambda state: state.state == "loaded", "a")


def test_router_killed_child_and_killed_router(start: Callable[..., Unmanaged]) -> None:
    router = start()
    with attached(router.url) as fleet:
        fleet.wait(lambda state: state.state == "unloaded", "b")
        router.complete(5, model="b")
        fleet.wait(lambda state: state.counters.get("tokens_predicted_total") == 5, "b")
        kill_child(router, "b")
        failed = fleet.wait(lambda state: state.state == "failed", "b")
        assert failed.counters["tokens_predicted_total"] == 5  # totals stay while it is not loaded
        assert (failed.slots, failed.router_model) == (None, RouterModel(loads=1, failures=1))
        router.complete(3, model="b")
        again = fleet.wait(lambda state: state.counters.get("tokens_predicted_total") == 8, "b")
        assert again.router_model == RouterModel(loads=2, failures=1)
        router.child.kill()
        fleet.wait(lambda state: state.up is False)
        assert len(fleet.states()) == 1
        router.start()
        fleet.wait(lambda state: state.state == "unloaded", "b")
        router.complete(2, model="b")
        fleet.wait(lambda state: state.counters.get("tokens_predicted_total") == 10, "b")


def test_router_log_requests_by_model_and_evictions(start: Callable[..., Unmanaged]) -> None:
    router = start("--models-max", "1")
    done: list[Completion] = []
    with attached(router.url, interval_s=0.3, has_log=True) as fleet:
        [server] = fleet.fleet.servers
        server.subscribe(done.append)  # type: ignore[arg-type]
        follower = LogFollower(FileSource(router.child.log, from_start=True), server).start()
        try:
            for number, model in enumerate("abca", 3):
                router.complete(number, model=model)
            wait_until(lambda: len(done) == 4, 20, "four requests")
            assert [(entry.server.model, entry.generated) for entry in done] == [("a", 3), ("b", 4), ("c", 5), ("a", 6)]
            assert {entry.server.port for entry in done} == {router.port}
            wait_until(lambda: state_of(server.snapshots(), "a").state == "loaded", 20, "the last state")
            states = server.snapshots()
        finally:
            follower.stop()
    a, b = state_of(states, "a"), state_of(states, "b")
    assert a.router_model == RouterModel(loads=2, evictions=1, failures=0)
    assert b.router_model == RouterModel(loads=1, evictions=1, failures=0)
    assert (a.server.key, a.loading_s is not None, b.loading_s) == (done[-1].server.key, True, None)
    assert a.loading_s is not None
    assert 0 < a.loading_s < 60


@pytest.mark.parametrize("log", [True, False], ids=["log", "polled"])
def test_router_swaps_keep_token_totals(start: Callable[..., Unmanaged], log: bool) -> None:
    """Models that are swapped several times between two polls, and after they were polled."""
    router = start("--models-max", "1")
    seen = {name: {"tokens_predicted_total": 0, "prompt_tokens_total": 0} for name in MODELS}
    with attached(router.url, interval_s=0.3, has_log=log) as fleet:
        [server] = fleet.fleet.servers
        follower = LogFollower(FileSource(router.child.log, from_start=True), server).start() if log else None
        try:
            for number, model in enumerate("abcabacca" if log else "abca", 3):
                timings = router.complete(number, model=model)["timings"]
                seen[model]["tokens_predicted_total"] += timings["predicted_n"]
                seen[model]["prompt_tokens_total"] += timings["prompt_n"]
                if not log:  # what is generated after the last poll of a process is known from the log only
                    fleet.wait(lambda state: state.counters.items() >= seen[model].items(), model)  # noqa: B023

            def totals() -> dict[str | None, dict[str, float]]:
                models = {state.server.model: state.counters for state in server.snapshots() if state.server.model}
                return {name: {each: counters.get(each, 0) for each in seen["a"]} for name, counters in models.items()}

            try:
                wait_until(lambda: totals() == seen, 20, "all tokens")
            except TimeoutError:
                assert totals() == seen
            states = {state.server.model: state.state for state in server.snapshots()}
            assert list(states.values()).count("unloaded") == 2
        finally:
            if follower is not None:
                follower.stop()


def test_router_without_log_shows_what_is_missing(start: Callable[..., Unmanaged]) -> None:
    """A request that runs at its model's last poll: what its slots showed is counted, and that the rest is missing."""
    router = start("--models-max", "1")
    with attached(router.url, interval_s=60) as fleet:
        [server] = fleet.fleet.servers

        def decoded() -> int:
            server.poll()
            slots = [slot for state in server.snapshots() if state.server.model == "a" for slot in state.slots or ()]
            return sum(slot.decoded or 0 for slot in slots)

        thread = threading.Thread(target=complete, args=(router.url, LONG), kwargs={"model": "a"})
        thread.start()
        try:
            shown = wait_until(decoded, 20, "it generates")
            assert server.due_in_s <= 0.5
            kill_child(router, "a")
        finally:
            thread.join()

        def failed() -> bool:
            server.poll()
            return state_of(server.snapshots(), "a").state == "failed"

        wait_until(failed, 20, "its end is seen")
        a = state_of(server.snapshots(), "a")
        assert a.count_gaps == CountGaps(unloads=1, requests=1)
        assert a.counters["tokens_predicted_total"] == shown


def test_router_log_from_its_end_names_models(start: Callable[..., Unmanaged]) -> None:
    """A model whose start is not in the part of the log that is read."""
    router = start()
    router.complete(3, model="b")
    done: list[Completion] = []
    with attached(router.url, has_log=True) as fleet:
        [server] = fleet.fleet.servers
        server.subscribe(done.append)  # type: ignore[arg-type]
        follower = LogFollower(FileSource(router.child.log, from_start=False), server).start()
        try:
            fleet.wait(lambda state: state.state == "loaded", "b")
            router.complete(4, model="b")
            wait_until(lambda: done, 20, "its request")
        finally:
            follower.stop()
    assert [(request.server.model, request.generated) for request in done] == [("b", 4)]


def test_router_log_found_and_read(
    start: Callable[..., Unmanaged], llama_server_binary: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """``attach`` reads the log of this machine's router by itself, and so has each token of models that are swapped."""
    router = start("--models-max", "1")
    assert router_log(ServerClient(router.url)) == (str(router.child.log), "")
    with unmanaged(llama_server_binary, tmp_path, "-m", tiny_model) as other:
        assert router_log(ServerClient(other.url)) == (None, "")  # only a router's totals need it
    out, metrics = tmp_path / "requests.jsonl", f"127.0.0.1:{free_port()}"
    attach = [sys.executable, "-m", "llamatel.cli.main", "attach", router.url, "--metrics-addr", metrics]
    child = Child([*attach, "--jsonl", out], tmp_path / "attach.log")
    try:
        child.wait_ready(lambda: "--no-log: only poll" in child.output(), 30)
        for number, model in enumerate("abcab", 3):
            router.complete(number, model=model)

        def rows() -> list[tuple[str, int]]:
            found = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
            return [(row["server"]["model"], row["generated"]) for row in found]

        wait_until(lambda: len(rows()) == 5, 20, "five requests")
        assert rows() == [("a", 3), ("b", 4), ("c", 5), ("a", 6), ("b", 7)]

        def generated() -> float:
            series = Server(f"http://{metrics}").text("/metrics").splitlines()
            tokens = [line for line in series if line.startswith("llamacpp_tokens_total") and 'type="output"' in line]
            return sum(float(line.rpartition(" ")[2]) for line in tokens)

        wait_until(lambda: generated() == 25, 20, "all tokens")
    finally:
        child.stop()


def test_router_model_requests_pause(start: Callable[..., Unmanaged]) -> None:
    """A second request in the moment in which the router unloads the model would hold its process for ten seconds."""
    router = start()
    router.complete(1, model="a")
    client = ServerClient(router.url).of_model("a")
    started_at = time.monotonic()
    for _ in range(3):
        client.scrape()
    assert time.monotonic() - started_at >= 0.04


def test_router_launched_by_manager(llama_server_binary: Path, models: Path) -> None:
    done: list[Completion] = []
    with ServerManager(backend=str(llama_server_binary)) as server:
        server.subscribe(done.append)
        server.start_server(None, port=0, extra_args=["--models-dir", str(models), "--models-max", "2", *FLAGS])
        server.wait_until_ready(60)
        router = Server(server.base_url)
        states = server.snapshots()
        assert [(state.up, state.state) for state in states if state.server.model is None] == [(True, "ready")]
        assert {state.server.model: state.state for state in states[1:]} == dict.fromkeys(MODELS, "unloaded")
        router.complete(7, model="a")
        wait_until(lambda: done, 20, "its request")
        a = state_of(server.snapshots(), "a")
        assert (a.state, a.counters["tokens_predicted_total"], done[0].server) == ("loaded", 7, a.server)
        assert a.kv_cache is not None
        assert (a.kv_cache.capacity, a.kv_cache.unified) == (8192, False)
        assert a.router_model == RouterModel(loads=1, evictions=0, failures=0)
        # The requests of a process that dies fail.
        thread = threading.Thread(target=complete, args=(server.base_url, LONG), kwargs={"model": "b"})
        thread.start()
        wait_until(lambda: (cache := state_of(server.snapshots(), "b").kv_cache) and cache.active, 20, "it works")
        kill_child(router, "b")
        thread.join()
        wait_until(lambda: len(done) == 2, 20, "its request's end")
        assert (done[1].server.model, done[1].outcome, done[1].error) == (
            "b", Outcome.ERROR, "the model's process ended",
        )  # fmt: skip
        b = state_of(server.snapshots(), "b")
        assert (b.state, b.router_model) == ("failed", RouterModel(loads=1, evictions=0, failures=1))


def test_router_invalid_model_lists() -> None:
    assert parse_models([{}, {"id": 1, "status": {}}, {"id": "x", "status": "loaded"}]) == []
    [entry] = parse_models([{"id": "x", "status": {"value": "dreaming", "args": [None, "--port", "no"]}}])
    assert (entry.state, entry.port, entry.card.name) == (None, None, "x")
