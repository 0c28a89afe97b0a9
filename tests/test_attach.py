"""Polling attached llama.cpp servers: idle, busy, sleeping, hanging, killed, restarted, refusing the API key."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llamatel.errors import ServerUnreachable, UsageError
from llamatel.inputs.credentials import present, read_headers, trust
from llamatel.inputs.rotated_files import RotatedFiles
from llamatel.llama.http.props import ServerProps
from llamatel.llama.http.server_client import ServerClient
from llamatel.llama.log.log_file import FileSource
from llamatel.llama.watch.fleet import Access
from llamatel.llama.watch.log_follower import LogFollower
from llamatel.llama.watch.polling import Polling
from llamatel.llama.watch.targets import Target, TargetFiles, parse_file, parse_label, target
from llamatel.records import ObservedRequest
from tests.attached import PathProxy, Server, Unmanaged, attached, unmanaged
from tests.certificates import make_certificate
from tests.parts import Child, wait_until, xllamacpp_server
from tests.parts.forwarder import Forwarder

pytestmark = pytest.mark.usefixtures("no_settings")

KEY = "sk-very-secret-0123456789"


@pytest.fixture
def start(llama_server_binary: Path, tiny_model: Path, tmp_path: Path) -> Iterator[Callable[..., Unmanaged]]:
    """Start servers that are killed at the end of the test."""
    started: list[Unmanaged] = []

    def start(*flags: str, key: str | None = None) -> Unmanaged:
        started.append(Unmanaged(llama_server_binary, tmp_path, "-m", tiny_model, *flags, key=key))
        return started[-1]

    yield start
    for server in started:
        server.child.kill()


@pytest.fixture(scope="module")
def server(
    llama_server_binary: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Unmanaged]:
    """A server shared by all tests of this file."""
    folder = tmp_path_factory.mktemp("attach")
    with unmanaged(llama_server_binary, folder, "-m", tiny_model, "--metrics", "-np", "2", "-c", "4096") as running:
        yield running


# -- slots, counters, requests -----------------------------------------------------------------------------------------


def test_attach_slots_and_counters_match_server(server: Unmanaged) -> None:
    with attached(server.url) as fleet:
        total = fleet.wait(lambda state: state.up and state.slots).counters["tokens_predicted_total"]
        before = server.get("/slots")
        server.complete(20)
        slots = server.get("/slots")
        held = sum(slot.get("n_prompt_tokens", 0) for slot in slots)
        state = fleet.wait(
            lambda state: (
                state.counters["tokens_predicted_total"] == total + 20
                and state.kv_cache
                and state.kv_cache.cached == held
            )
        )
        assert state.slots is not None
        assert [(slot.id, slot.context_tokens) for slot in state.slots] == [
            (slot["id"], slot.get("n_prompt_tokens", 0)) for slot in slots
        ]
        assert slots != before
        assert state.kv_cache is not None
        assert (state.kv_cache.active, state.kv_cache.cached) == (0, held)
        # /slots does not report whether the pool is shared; the command line's -c fits two slots of half its size.
        assert (state.kv_cache.capacity, state.kv_cache.unified) == (4096, False)
        assert (state.server.model, state.server.port, state.state) == ("tiny.gguf", server.port, "ready")
        assert state.server.build
        assert not [name for name in state.counters if name.endswith("_tokens_seconds")]


def test_attach_running_request_in_slots_before_counters(server: Unmanaged) -> None:
    with attached(server.url) as fleet:
        fleet.wait(lambda state: state.up)
        total = fleet.states()[0].counters["tokens_predicted_total"]
        thread = threading.Thread(target=server.complete, args=(1500,))
        thread.start()
        state = fleet.wait(lambda state: state.decode_rate)
        assert state.counters["tokens_predicted_total"] == total
        assert state.kv_cache is not None
        assert state.kv_cache.active
        thread.join()
        assert fleet.wait(lambda state: state.counters["tokens_predicted_total"] == total + 1500).up
        # The first poll after the request's end reports rate 0.
        assert fleet.wait(lambda state: state.decode_rate == 0).kv_cache


def test_attach_observed_request_matches_response(server: Unmanaged) -> None:
    observed: list[ObservedRequest] = []
    with attached(server.url, interval_s=0.05, added=lambda poller: poller.subscribe(observed.append)) as fleet:
        fleet.wait(lambda state: state.up)
        started_at = time.time()
        answer = server.complete(1500)
        finished_at = time.time()
        wait_until(lambda: observed, 20, "the request")
    [request] = [request for request in observed if request.decoded]
    assert (request.server.model, request.server.port) == ("tiny.gguf", server.port)
    assert request.prompt_tokens == answer["tokens_evaluated"]
    assert request.decoded is not None
    assert 0 < request.decoded <= 1500
    assert request.longest_s is not None
    # The observed interval lies within the real one, and longest_s is an upper bound of the duration.
    assert started_at <= request.first_seen_at <= request.last_seen_at <= finished_at
    assert request.last_seen_at - request.first_seen_at <= request.longest_s
    assert answer["timings"]["predicted_ms"] / 1e3 <= request.longest_s


# -- sleeping servers --------------------------------------------------------------------------------------------------


@pytest.fixture
def sleeper(sid_server: Path, tiny_model: Path, tmp_path: Path) -> Iterator[Unmanaged]:
    """A server with a numbered build that sleeps after one idle second."""
    with unmanaged(sid_server, tmp_path, "-m", tiny_model, "--metrics", "--sleep-idle-seconds", "1") as running:
        yield running


def test_attach_sleeping_server_is_not_woken(sleeper: Unmanaged) -> None:
    server = sleeper
    with attached(server.url, interval_s=0.05) as fleet:
        fleet.wait(lambda state: state.up)
        server.complete(4)
        fleet.wait(lambda state: state.counters.get("tokens_predicted_total") == 4 and state.slots)
        wait_until(lambda: "entering sleeping state" in server.child.output(), 20, "it sleeps")
        time.sleep(4)  # four idle timeouts, 80 polls
        log = server.child.output()
        assert (log.count("que    start_loop: entering sleeping"), log.count("exiting sleeping")) == (1, 0)
    # Attaching while it sleeps does not wake it either, and reports the state.
    with attached(server.url, interval_s=0.05) as fleet:
        state = fleet.wait(lambda state: state.state == "sleeping")
        assert (state.up, state.slots, state.counters["tokens_predicted_total"]) == (True, None, 4)
        assert server.get("/props")["is_sleeping"] is True
        # A wake-up by another client is noticed.
        server.complete(4)
        assert fleet.wait(lambda state: state.counters["tokens_predicted_total"] == 8 and state.slots).state == "ready"


def test_attach_server_asleep_since_last_poll_is_not_woken(start: Callable[..., Unmanaged]) -> None:
    server = start("--metrics", "--sleep-idle-seconds", "1")
    with attached(server.url, interval_s=600) as fleet:
        [poller] = fleet.fleet.servers
        wait_until(poller.snapshots, 20, "the first poll")
        thread = threading.Thread(target=server.complete, args=(1500,))
        thread.start()

        def found_busy() -> bool:
            poller.poll()
            return any(slot.busy for state in poller.snapshots() for slot in state.slots or ())

        wait_until(found_busy, 20, "it works")
        thread.join()
        wait_until(lambda: "entering sleeping state" in server.child.output(), 20, "it sleeps")
        poller.poll()
        assert [state.state for state in poller.snapshots()] == ["sleeping"]
        assert "exiting sleeping" not in server.child.output()


def test_attach_sleep_of_older_build(tiny_model: Path, tmp_path: Path) -> None:
    """Before August 2026 /metrics wakes a sleeping server, and keeps one awake."""
    program = xllamacpp_server("2026.7.9873")
    arguments = ("-m", tiny_model, "--metrics", "--sleep-idle-seconds", "2")
    with unmanaged(program, tmp_path, *arguments) as server:
        with attached(server.url, interval_s=0.2) as fleet:
            fleet.wait(lambda state: state.up)
            server.complete(4)
            fleet.wait(lambda state: state.counters.get("tokens_predicted_total") == 4)
            wait_until(lambda: "entering sleeping state" in server.child.output(), 40, "it sleeps")
            fleet.wait(lambda state: state.state == "sleeping")
            time.sleep(3)
            assert server.get("/props")["is_sleeping"] is True
        # Attached to while it sleeps.
        with attached(server.url, interval_s=0.2) as fleet:
            assert fleet.wait(lambda state: state.state == "sleeping").up is True
            time.sleep(1)
            assert server.get("/props")["is_sleeping"] is True
            server.complete(4)
            fleet.wait(lambda state: state.counters.get("tokens_predicted_total") == 8)


class ImpatientClient(ServerClient):
    """A client whose ``/props`` requests always time out."""

    def props(self, timeout_s: float | None = None) -> ServerProps:
        return super().props(1e-6)


def test_polling_no_slots_request_while_sleep_state_unknown(start: Callable[..., Unmanaged]) -> None:
    server = start("--metrics", "--sleep-idle-seconds", "1")
    wait_until(lambda: "entering sleeping state" in server.child.output(), 20, "it sleeps")
    polling = Polling(ImpatientClient(server.url), "it")
    polling.poll()
    assert polling.slots is None
    polling.use(ServerClient(server.url))
    polling.poll()
    assert polling.sleeping
    assert "exiting sleeping" not in server.child.output()


def test_attach_without_metrics_server_falls_asleep(
    start: Callable[..., Unmanaged], caplog: pytest.LogCaptureFixture
) -> None:
    server = start("--sleep-idle-seconds", "1")
    with attached(server.url) as fleet:
        state = fleet.wait(lambda state: state.slots)
        assert (state.up, state.counters, state.deferred) == (True, {}, None)
        wait_until(lambda: "entering sleeping state" in server.child.output(), 30, "it sleeps")
    assert [record.getMessage() for record in caplog.records if "--metrics" in record.getMessage()] == [
        f"{server.url} was started without --metrics: its counters are absent, its slots seldom polled"
    ]


def test_attach_server_without_slots(start: Callable[..., Unmanaged]) -> None:
    server = start("--metrics", "--no-slots")
    with attached(server.url) as fleet:
        server.complete(4)
        state = fleet.wait(lambda state: state.counters.get("tokens_predicted_total") == 4)
        assert (state.up, state.slots, state.kv_cache, state.decode_rate, state.deferred) == (True, None, None, None, 0)


# -- failures ----------------------------------------------------------------------------------------------------------


def test_attach_counters_continue_after_restart(
    start: Callable[..., Unmanaged], caplog: pytest.LogCaptureFixture
) -> None:
    server = start("--metrics")
    with attached(server.url) as fleet:
        server.complete(7)
        fleet.wait(lambda state: state.counters.get("tokens_predicted_total") == 7)
        server.child.kill()
        down = fleet.wait(lambda state: state.up is False)
        assert (down.counters, down.slots, down.kv_cache, down.deferred, down.decode_rate) == (
            {},
            None,
            None,
            None,
            None,
        )
        seen: list[float] = []
        server.start()
        server.complete(5)

        def total() -> bool:
            seen.extend(
                state.counters["tokens_predicted_total"]
                for state in fleet.states()
                if "n_decode_total" in state.counters
            )
            return bool(seen) and seen[-1] == 12

        wait_until(total, 30, "its counters")
        assert min(seen) >= 7
        assert fleet.states()[0].restarts == 1
    logged = [record.getMessage() for record in caplog.records if record.getMessage().startswith(server.url)]
    assert ["does not answer" in message for message in logged] == [True, False]
    assert logged[1] == f"{server.url} answers now"


def test_attach_one_start_time_per_process(start: Callable[..., Unmanaged]) -> None:
    """``changes(llamacpp_server_start_time_seconds)`` is the number of restarts, with a log as without."""
    server = start("--metrics")
    seen: list[float] = []

    def started_since(before: int) -> bool:
        seen.extend(state.process_started_at for state in fleet.states() if state.process_started_at is not None)
        return len(seen) > before

    with attached(server.url, has_log=True) as fleet:
        [observed] = fleet.fleet.servers
        follower = LogFollower(FileSource(server.child.log, from_start=True), observed).start()
        try:
            wait_until(lambda: started_since(5), 20, "its start")
            time.sleep(2.5)  # the next process starts noticeably later
            server.child.kill()
            fleet.wait(lambda state: state.up is False)
            assert fleet.states()[0].process_started_at is None
            server.start()
            fleet.wait(lambda state: state.up)
            number = len(seen)
            wait_until(lambda: started_since(number + 5), 20, "its second start")
        finally:
            follower.stop()
    assert len(set(seen)) == 2


def test_attach_restart_between_polls_without_counter_drop(start: Callable[..., Unmanaged]) -> None:
    server = start("--metrics")
    with attached(server.url, interval_s=600) as fleet:
        [poller] = fleet.fleet.servers
        wait_until(poller.snapshots, 20, "the first poll")
        server.complete(3)
        poller.poll()
        server.child.kill()
        server.start()
        server.complete(5)
        poller.poll()
        [state] = poller.snapshots()
        assert (state.restarts, state.counters["tokens_predicted_total"]) == (1, 8)


def test_attach_timeout_is_stale_not_down(start: Callable[..., Unmanaged]) -> None:
    server = start("--metrics")
    with attached(server.url) as fleet:
        server.complete(6)
        fleet.wait(lambda state: state.counters.get("tokens_predicted_total") == 6)
        os.kill(server.child.pid, signal.SIGSTOP)
        state = fleet.wait(lambda state: state.stale)
        assert (state.up, state.counters["tokens_predicted_total"]) == (True, 6)
        os.kill(server.child.pid, signal.SIGCONT)
        assert fleet.wait(lambda state: not state.stale).up


@pytest.mark.parametrize(
    ("flags", "environ", "pool"),
    [
        (("-c", "2048"), {}, (2048, True)),
        (("-c", "2048", "-np", "4"), {}, (2048, False)),
        (("-c", "65536", "-np", "2", "-kvu"), {}, (65536, True)),  # a slot is capped to what the model was made for
        ((), {"LLAMA_ARG_CTX_SIZE": "3072"}, (3072, True)),
        ((), {}, (None, True)),
    ],
)
def test_attach_kv_pool_from_local_command_line(
    llama_server_binary: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    flags: tuple[str, ...],
    environ: dict[str, str],
    pool: tuple[int | None, bool | None],
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    arguments = ("-m", str(tiny_model), "-lv", "4", "--metrics", *flags)
    with unmanaged(llama_server_binary, tmp_path, *arguments) as server, attached(server.url) as fleet:
        cache = fleet.wait(lambda state: state.kv_cache).kv_cache
        assert cache is not None
        assert (cache.capacity, cache.unified) == pool
        logged = re.search(r"llama_context: n_ctx +=+ +(\d+)", server.child.output())
        assert logged is not None
        assert cache.capacity in (None, int(logged.group(1)))
        # Through a forwarded port, the process and so the capacity are unknown.
        with Forwarder(server.port) as forwarder, attached(f"127.0.0.1:{forwarder.ports[0]}") as forwarded:
            cache = forwarded.wait(lambda state: state.kv_cache).kv_cache
            assert cache is not None
            assert cache.capacity is None


@pytest.mark.parametrize(
    ("status", "up", "line"),
    [
        (401, None, "the API key is missing or wrong: use --api-key-file"),
        (404, None, "no llama.cpp server, or the path is wrong"),
        (500, None, "see its log"),
        (502, False, "the proxy in front of it finds no server"),
    ],
)
def test_attach_target_is_not_llama_cpp(
    status: int, up: bool | None, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A web server, or a proxy without an upstream: neither counts as a llama.cpp server that is up."""
    refusing = type("Refusing", (BaseHTTPRequestHandler,), {})
    refusing.do_GET = lambda self: self.send_error(status)  # type: ignore[attr-defined]
    refusing.log_message = lambda *_: None  # type: ignore[attr-defined]
    with ThreadingHTTPServer(("127.0.0.1", 0), refusing) as web:
        serving = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.02})
        serving.start()
        url = f"http://127.0.0.1:{web.server_address[1]}"
        try:
            with attached(url) as fleet:
                state = fleet.wait(lambda _: True)
        finally:
            web.shutdown()
            serving.join()
    assert (state.up, state.state, state.counters, state.slots) == (up, None, {}, None)
    logged = [record.getMessage() for record in caplog.records if url in record.getMessage()]
    assert logged == [f"{url} answered {status}: {line}"]


def test_attach_wrong_api_key(
    start: Callable[..., Unmanaged], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    server = start("--metrics", key=KEY)
    line = f"{server.url} answered 401: the API key is missing or wrong: use --api-key-file"
    with attached(server.url, access=Access("wrong")) as fleet:
        assert fleet.wait(lambda state: state.up).counters == {}
        time.sleep(0.5)
    with attached(server.url, access=Access("wrong"), interval_s=600) as fleet:
        fleet.wait(lambda state: state.up)
        with pytest.raises(ServerUnreachable, match=re.escape(line)):
            fleet.fleet.servers[0].check()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == 2 * [line]
    # The right key: for all targets, as a header, or in a target's own key file.
    own, headers = tmp_path / "key", tmp_path / "headers"
    own.write_text(KEY)
    headers.write_text(f"# a comment\nX-Api-Key: {KEY}\n")
    listed = tmp_path / "targets"
    listed.write_text(f"# one\n{server.url} {own}\n")
    for ways in (
        {"urls": (server.url,), "access": Access(KEY)},
        {"urls": (server.url,), "access": Access(headers=read_headers(headers))},
        {"files": (str(listed),), "access": Access("wrong")},
    ):
        with attached(*ways.pop("urls", ()), **ways) as fleet:  # type: ignore[misc, arg-type]
            assert fleet.wait(lambda state: state.counters).server.model == "tiny.gguf"


# -- addresses, TLS, targets -------------------------------------------------------------------------------------------


def test_attach_tls_private_ca(server: Unmanaged, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    certificate, key = make_certificate(tmp_path)
    pem = tmp_path / "both.pem"
    pem.write_text(key.read_text() + certificate.read_text())
    with Forwarder(server.port, certificate=pem) as forwarder:
        url = f"https://127.0.0.1:{forwarder.ports[0]}"
        with attached(url, access=Access(tls=trust(certificate))) as fleet:
            state = fleet.wait(lambda state: state.counters)
            assert (state.up, state.server.port) == (True, forwarder.ports[0])
        assert not caplog.records
        with attached(url) as fleet:
            assert fleet.wait(lambda state: state.up is False).counters == {}
    [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "certificate" in record.getMessage()
    assert "--ca-file" in record.getMessage()


def test_attach_client_certificate(server: Unmanaged, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    own, own_key = make_certificate(tmp_path, "client")
    pem = tmp_path / "both.pem"
    pem.write_text(key.read_text() + certificate.read_text())
    with Forwarder(server.port, certificate=pem, clients=own) as forwarder:
        url = f"https://127.0.0.1:{forwarder.ports[0]}"
        with attached(url, access=Access(tls=present(trust(certificate), own, own_key))) as fleet:
            assert fleet.wait(lambda state: state.counters).up
        with attached(url, access=Access(tls=trust(certificate))) as fleet:
            assert fleet.wait(lambda state: state.up is False).counters == {}
    with pytest.raises(UsageError, match="do not fit"):
        present(trust(certificate), own, key)
    with pytest.raises(UsageError, match="do not fit"):
        present(trust(certificate), key, None)


def test_attach_certificates_are_rotated(server: Unmanaged, tmp_path: Path) -> None:
    """A CA file and a client's certificate that are replaced while llamatel runs, as cert-manager does."""
    certificate, key = make_certificate(tmp_path)
    own, own_key = make_certificate(tmp_path, "client")
    other, other_key = make_certificate(tmp_path, "other")
    pem = tmp_path / "both.pem"
    pem.write_text(key.read_text() + certificate.read_text())
    files = [tmp_path / name for name in ("ca.pem", "tls.crt", "tls.key")]
    for file, content in zip(files, (other, other, other_key), strict=True):
        file.write_bytes(content.read_bytes())
    ca, client, client_key = files
    tls = RotatedFiles(files, lambda: present(trust(ca), client, client_key))
    with Forwarder(server.port, certificate=pem, clients=own) as forwarder:
        url = f"https://127.0.0.1:{forwarder.ports[0]}"
        with attached(url, access=Access(tls=tls), interval_s=0.2) as fleet:
            fleet.wait(lambda state: state.up is False)
            for file, content in zip(files, (certificate, own, own_key), strict=True):
                replacement = file.with_suffix(".new")
                replacement.write_bytes(content.read_bytes())
                replacement.replace(file)
            assert fleet.wait(lambda state: state.counters).up


def test_attach_many_servers(server: Unmanaged) -> None:
    with Forwarder(server.port, 60) as forwarder:
        with attached(*(f"127.0.0.1:{port}" for port in forwarder.ports), interval_s=0.5) as fleet:
            wait_until(lambda: len([state for state in fleet.states() if state.counters]) == 60, 30, "all sixty")
            assert sorted(state.server.port or 0 for state in fleet.states()) == sorted(forwarder.ports)
            assert len({state.server for state in fleet.states()}) == 60


def test_targets_file_reloaded_when_changed(
    server: Unmanaged, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "targets.json"
    removed: list[int | None] = []

    def write(*ports: int) -> None:
        new = tmp_path / "new"
        new.write_text(json.dumps([{"targets": [f"127.0.0.1:{port}" for port in ports], "labels": {"job": "llama"}}]))
        new.rename(file)

    with Forwarder(server.port, 2) as forwarder:
        first, second = forwarder.ports
        write(first)
        with attached(files=(str(file),), removed=lambda poller: removed.append(poller.info.port)) as fleet:
            assert fleet.wait(lambda state: state.counters).server.port == first
            write(first, second)
            fleet.wait(lambda state: state.server.port == second and state.counters)
            assert len(fleet.states()) == 2
            file.write_text("nonsense")
            wait_until(lambda: "its last targets are kept" in caplog.text, 20, "the warning")
            assert len(fleet.fleet.servers) == 2
            write(second)
            wait_until(lambda: removed == [first], 20, "the removed target")
            assert {state.server.port for state in fleet.states()} == {second}


ENV = (("env", "prod"), ("team", "x"))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("list", "# ours\n10.0.0.1:8080\n\nhttps://llama.example/api  /run/key # its own\nunix:///run/l.sock\n",
         [Target("http://10.0.0.1:8080"), Target("https://llama.example/api", "/run/key"),
          Target("unix:///run/l.sock")]),
        ("sd.json",
         '[{"targets": ["a:1", "b:2"], "labels": {"__scheme__": "https", "team": "x", "env": "prod"}}]',
         [Target("https://a:1", None, ENV), Target("https://b:2", None, ENV)]),
        ("sd.yml", "- targets: ['[::1]:8080']\n  labels: {__api_key_file__: /run/key, __m: y, since: 2026-02-30}\n",
         [Target("http://[::1]:8080", "/run/key", (("since", "2026-02-30"),))]),
        ("sd.yml", "- targets: [a:1]\n  labels: {n: 0x_, on: on, none: ~, big: " + "9" * 200 + "}\n",
         [Target("http://a:1", None, (("big", "9" * 200), ("n", "0x_"), ("on", "on")))]),
        ("empty.yaml", "", []),
    ],
)  # fmt: skip
def test_parse_targets_file(name: str, text: str, expected: list[Target]) -> None:
    assert parse_file(name, text) == expected


DEEP = "[" * 5000
ALIASES = "a: &a [x, x]\nb: [*a, *a]\n"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("list", "ftp://a", "line 1: 'ftp://a' is not a server address"),
        ("list", "http://me:secret@host", "line 1: a server's address has no user, password"),
        ("sd.json", "{", "not JSON"),
        ("sd.json", "{}", "not a list of target groups"),
        ("sd.yml", "- targets: a", "has no list 'targets'"),
        ("sd.yml", "- {", "not YAML"),
        ("sd.json", '[{"targets": ["a:99999"]}]', "not a server address"),
        ("sd.json", '[{"targets": [1]}]', "a target is not text"),
        ("sd.json", DEEP, "too deeply"),
        ("sd.yml", DEEP, "too deeply"),
        ("sd.json", '[{"targets": ["a:1"], "labels": {"a": ' + "9" * 5000 + "}}]", "integer that is too long"),
        ("sd.json", '[{"targets": ["a:1"], "labels": {"a": 1}}]', "the label a is not text"),
        ("sd.json", '[{"targets": ["a:1"], "labels": {"a b": "1"}}]', "'a b' is not a label name"),
        ("sd.json", '[{"targets": ["a:1"], "labels": {"server_port": "1"}}]', "set by llamatel"),
        ("sd.json", '[{"targets": ["a:1"], "labels": {"a": "' + "x" * 300 + '"}}]', "at most 256 characters"),
        ("sd.json", '[{"targets": ["a:1"], "labels": {"__scheme__": 1}}]', "__scheme__ is not text"),
        ("sd.yml", ALIASES, "anchors and aliases"),
        ("sd.yml", "- &a\n  targets: [*a]\n", "anchors and aliases"),
        ("sd.yml", "- targets: [a:1]\n  labels: !!python/name:os.system x\n", "tags"),
    ],
)
def test_parse_targets_file_invalid(name: str, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_file(name, text)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("t.yml", ALIASES), ("t.yml", DEEP), ("t.yml", "- targets: [a"), ("t.json", DEEP), ("t.json", "9" * 5000),
        ("t.json", '[{"targets": ["a:1"], "labels": []'), ("t.txt", "ftp://x"), ("t.txt", "\x00" * 10),
    ],
)  # fmt: skip
def test_targets_file_becomes_invalid(
    name: str, bad: str, start: Callable[..., Unmanaged], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The last valid list stays active, stopped servers are down, and the file is read again once it is fixed."""
    server = start("--metrics")
    file = tmp_path / name
    address = f"127.0.0.1:{server.port}"
    good = json.dumps([{"targets": [address], "labels": {"since": "2026-02-30"}}]) if name != "t.txt" else address
    file.write_text(good)
    with attached(files=(str(file),)) as fleet:
        fleet.wait(lambda state: state.counters)
        file.write_text(bad)
        wait_until(lambda: "its last targets are kept" in caplog.text, 20, "a warning")
        server.child.kill()
        assert fleet.wait(lambda state: state.up is False).counters == {}
        file.write_text(f"{good}\n")
        server.start()
        assert fleet.wait(lambda state: state.up).server.port == server.port
        file.write_text("[]" if name != "t.txt" else "# none")
        wait_until(lambda: not fleet.states(), 20, "no targets")
    assert caplog.text.count("its last targets are kept") == 1


def test_attach_polls_continue_after_discovery_error(
    server: Unmanaged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An unexpected error while reading the files: polling continues and the error is logged once."""
    file = tmp_path / "targets"
    file.write_text(f"127.0.0.1:{server.port}\n")
    with attached(files=(str(file),)) as fleet:
        fleet.wait(lambda state: state.counters)

        def changed(_files: TargetFiles) -> bool:
            raise ZeroDivisionError

        monkeypatch.setattr(TargetFiles, "changed", changed)
        wait_until(lambda: "could not be read again" in caplog.text, 20, "the error")
        total = fleet.states()[0].counters["tokens_predicted_total"]
        server.complete(3)
        fleet.wait(lambda state: state.counters["tokens_predicted_total"] == total + 3)
        time.sleep(2.5)
    assert caplog.text.count("could not be read again") == 1


def test_targets_labels() -> None:
    files = TargetFiles(
        (), [target("h:81/a", labels={"env": "dev", "team": "x", "empty": ""}), target("h:82")], labels={"env": "prod"}
    )
    first, second = files.targets()
    assert first.server.attributes == {
        "server.address": "h", "server.port": 81, "server.path": "/a", "env": "dev", "team": "x",
    }  # fmt: skip
    assert second.server.attributes == {"server.address": "h", "server.port": 82, "env": "prod"}
    assert (first.server.shown_address, first.server.key) != (second.server.shown_address, second.server.key)


@pytest.mark.parametrize("label", ["", "a", "=b", "a b=c", "__x=y", "server_port=1", "a=" + "x" * 300, "a=\n"])
def test_parse_label_invalid(label: str) -> None:
    with pytest.raises(UsageError):
        parse_label(label)


def test_target_address_and_port() -> None:
    assert [(entry.address, entry.port) for entry in map(target, ("h", "https://h", "h:81", "http://[::1]:8080/"))] == [
        ("h", 80), ("h", 443), ("h", 81), ("::1", 8080),
    ]  # fmt: skip


def test_attach_servers_separated_by_path(start: Callable[..., Unmanaged], tmp_path: Path) -> None:
    servers = {path: start("--metrics", "--api-prefix", path) for path in ("/llama-a", "/llama-b")}
    with PathProxy({path: server.port for path, server in servers.items()}) as proxy:
        urls = [f"http://127.0.0.1:{proxy.port}{path}" for path in servers]
        with attached(*urls, urls[0] + "/") as fleet:
            assert len(fleet.fleet.servers) == 2
            for number, path in enumerate(servers, 3):
                Server(f"http://127.0.0.1:{proxy.port}{path}").complete(number)
            for number, path in enumerate(servers, 3):
                state = fleet.wait(
                    lambda state, path=path, number=number: (  # type: ignore[misc]
                        state.server.shown_address.endswith(path)
                        and state.counters.get("tokens_predicted_total") == number
                    )
                )
                assert state.server.port == proxy.port


def test_attach_unix_socket(llama_server_binary: Path, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "l.sock"
    argv: list[str | Path] = [
        llama_server_binary,
        "-m",
        tiny_model,
        "-t",
        "1",
        "--metrics",
        "-c",
        "2048",
        "--host",
        path,
    ]
    child = Child(argv, tmp_path / "server.log", {})
    try:
        child.wait_ready(lambda: "listening on" in child.output(), 60)
        with attached(f"unix://{path}") as fleet:
            state = fleet.wait(lambda state: state.counters and state.slots)
            assert (state.up, state.server.address, state.server.port) == (True, str(path), None)
            assert state.kv_cache is not None
            assert (state.kv_cache.capacity, state.server.model) == (2048, "tiny.gguf")
    finally:
        child.kill()
