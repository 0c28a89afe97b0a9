"""``llamatel serve`` end to end with crashes: llama.cpp, llamatel or the collector is killed. All parts are real.

conftest.py checks at the end of every session that no process is left.
"""

from __future__ import annotations

import os
import re
import signal
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.load import Answer, Clients, Request, completion, endless
from tests.parts import OtlpSink, RotelAgent, SinkSpan, wait_until
from tests.servers import BACKENDS, has_exited, without_settings
from tests.serving import CONTEXT, SLOTS, Serving, Start, servings

EXIT_S = 2.0
"""The longest time that llama.cpp may run after llamatel was killed."""
Protocol = pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])


@pytest.fixture
def serve(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    without_settings(monkeypatch)
    with servings(tmp_path, tiny_model) as start:
        yield start


def endless_load(number: int) -> list[Request]:
    """Requests that no client cancels and that run for many seconds."""
    return [endless(f"Tell {n}", context=CONTEXT, stream=True, hang_up=float("inf")) for n in range(number)]


SMALL = [completion(f"Number {n}", 12, stream=bool(n % 2)) for n in range(20)]


def in_flight(serving: Serving, number: int) -> None:
    """Wait until ``number`` requests hold a slot, by llama.cpp's gauge: its log does not show it yet."""
    pattern = re.compile(rb"^llamacpp:requests_processing (\d+)", re.MULTILINE)

    def processing() -> bool:
        with urllib.request.urlopen(f"{serving.url}/metrics", timeout=30) as answer:
            found = pattern.search(answer.read())
        return found is not None and int(found.group(1)) >= number

    wait_until(processing, 30, f"{number} requests in flight")


def roots(sink: OtlpSink) -> list[SinkSpan]:
    return [span for span in sink.spans() if not span.parent_id]


def otlp(rotel: RotelAgent, protocol: str = "grpc") -> tuple[str, dict[str, str]]:
    """Return the endpoint (the flag's value) and the environment."""
    endpoint = rotel.grpc_endpoint if protocol == "grpc" else rotel.http_endpoint
    return endpoint, {"OTEL_EXPORTER_OTLP_PROTOCOL": protocol, "OTEL_BSP_SCHEDULE_DELAY": "200"}


# -- llama.cpp -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_crash_server_killed_during_requests(
    request: pytest.FixtureRequest, serve: Start, rotel: RotelAgent, otlp_sink: OtlpSink, backend: str
) -> None:
    endpoint, env = otlp(rotel)
    chosen = str(request.getfixturevalue("llama_server_binary")) if backend == "llama-server" else backend
    serving = serve("--otlp-endpoint", endpoint, backend=chosen, **env)
    with Clients(serving.url) as clients:
        sending = clients.keep_sending(endless_load(SLOTS), at_once=SLOTS)
        in_flight(serving, SLOTS)
        killed_at = time.time()
        os.kill(serving.server_pid, signal.SIGKILL)
        assert serving.exit_within(10) == 1
        cut_off = [answer for answer in sending.end() if answer.sent_at < killed_at]
    assert serving.child.output().splitlines()[-1] == "llamatel: error: the server ended with signal 9"
    assert Counter(answer.outcome for answer in cut_off) == {"error": SLOTS}

    otlp_sink.wait_for(lambda sink: len(roots(sink)) == SLOTS, what="a span for each request")
    for span in roots(otlp_sink):
        assert span.status == "ERROR"
        assert span.status_message == "the server ended with signal 9"
        assert span.attributes["llamacpp.outcome"] == "error"
        assert span.attributes["error.type"]
        assert span.start_ns < span.end_ns
    assert [(row["outcome"], row["error"]) for row in serving.records()] == [
        ("error", "the server ended with signal 9")
    ] * SLOTS


def test_crash_server_restarted_on_failure(serve: Start, rotel: RotelAgent, otlp_sink: OtlpSink) -> None:
    endpoint, env = otlp(rotel)
    serving = serve("--restart", "on-failure", "--otlp-endpoint", endpoint, **env)
    with Clients(serving.url) as clients:
        assert clients.send(SMALL[0]).outcome == "ok"
        wait_until(lambda: serving.metric("llamacpp_requests_total", outcome="ok") == 1, 10)
        tokens = serving.metric("llamacpp_tokens_total", type="output")
        assert tokens
        sending = clients.keep_sending(endless_load(SLOTS), at_once=SLOTS)
        in_flight(serving, SLOTS)
        killed_at = time.time()
        os.kill(serving.server_pid, signal.SIGKILL)
        cut_off = [answer for answer in sending.end() if answer.sent_at < killed_at]
        assert Counter(answer.outcome for answer in cut_off) == {"error": SLOTS}

        wait_until(lambda: serving.metric("llamacpp_server_up") == 1 and clients.send(SMALL[1]).outcome == "ok", 30)
        wait_until(lambda: serving.metric("llamacpp_requests_total", outcome="ok") == 2, 10)
    assert serving.metric("llamacpp_server_restarts_total") == 1
    assert serving.metric("llamacpp_requests_total", outcome="error") == SLOTS
    # Tokens of the killed requests are lost with the process; its counts from before are kept.
    wait_until(lambda: serving.metric("llamacpp_tokens_total", type="output") == tokens + 12, 10)
    serving.child.process.terminate()
    assert serving.exit_within(15) == 0
    otlp_sink.wait_for(lambda sink: len(roots(sink)) == SLOTS + 2, what="all spans")
    assert Counter(span.status for span in roots(otlp_sink)) == {"ERROR": SLOTS, "UNSET": 2}


# -- llamatel --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_crash_llamatel_killed(request: pytest.FixtureRequest, serve: Start, backend: str) -> None:
    chosen = str(request.getfixturevalue("llama_server_binary")) if backend == "llama-server" else backend
    serving = serve(backend=chosen)
    with Clients(serving.url) as clients:
        sending = clients.keep_sending(endless_load(SLOTS + 2), at_once=SLOTS + 2)
        in_flight(serving, SLOTS)
        serving.child.kill()
        wait_until(lambda: has_exited(serving.server_pid), EXIT_S, "the exit of llama.cpp")
        assert {answer.outcome for answer in sending.end()} == {"error"}


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_crash_llamatel_terminated_under_load(
    serve: Start, rotel: RotelAgent, otlp_sink: OtlpSink, signum: signal.Signals
) -> None:
    endpoint, env = otlp(rotel)
    serving = serve("--otlp-endpoint", endpoint, **env)
    with Clients(serving.url) as clients:
        answers = clients.send_all(SMALL, at_once=8)
        sending = clients.keep_sending(endless_load(SLOTS), at_once=SLOTS)
        in_flight(serving, SLOTS)
        signalled_at = time.time()
        os.kill(serving.pid, signum)
        assert serving.exit_within(15) == 0
        assert time.time() - signalled_at < 9, "longer than a container runtime's grace period"
        assert has_exited(serving.server_pid)
        cut_off = [answer for answer in sending.end() if answer.sent_at < signalled_at]
    assert {answer.outcome for answer in answers} == {"ok"}
    # A stopping llama.cpp may end a stream in good order, though it is not complete.
    assert len(cut_off) == SLOTS
    assert all(not answer.timings for answer in cut_off)
    otlp_sink.wait_for(lambda sink: len(roots(sink)) == len(SMALL) + SLOTS, what="a span for each request")
    outcomes = Counter(span.attributes["llamacpp.outcome"] for span in roots(otlp_sink))
    assert outcomes["ok"] == len(SMALL)
    assert outcomes["error"] + outcomes["cancelled"] == SLOTS
    assert Counter(row["outcome"] for row in serving.records()) == outcomes


def test_crash_llamatel_stopped_and_continued(serve: Start) -> None:
    serving = serve()
    with Clients(serving.url) as clients:
        before = clients.send_all(SMALL, at_once=8)
        wait_until(lambda: len(serving.records()) == len(before), 10)
        sending = clients.keep_sending(SMALL, at_once=8)
        os.kill(serving.pid, signal.SIGSTOP)
        time.sleep(2)
        answered_while_stopped = len(sending.answers)
        os.kill(serving.pid, signal.SIGCONT)
        answers = before + sending.end()
    assert answered_while_stopped > 20, "the server did not continue"
    assert {answer.outcome for answer in answers} == {"ok"}
    wait_until(lambda: len(serving.records()) == len(answers), 20, "a record for each request")
    assert serving.metric("llamacpp_requests_total", outcome="ok") == len(answers)
    assert serving.metric("llamatel_requests_lost_total") == 0
    assert serving.metric("llamatel_log_lines_total", kind="malformed") == 0
    assert not serving.metric("llamatel_records_dropped_total")
    responses = Counter(_timings(t["prompt_n"], t["predicted_n"], t["prompt_ms"]) for a in answers for t in a.timings)
    recorded = Counter(
        _timings(row["prompt_computed"], row["generated"], row["prefill_s"] * 1e3) for row in serving.records()
    )
    assert responses == recorded
    # Times are those of the requests, not of the reading.
    first, last = min(answer.sent_at for answer in answers), max(answer.ended_at for answer in answers)
    assert all(first - 0.5 < row["started_at"] < row["ended_at"] < last + 0.5 for row in serving.records())
    outcomes = sorted(row["ended_at"] for row in serving.records())
    gaps = [late - early for early, late in pairwise(outcomes)]
    assert max(gaps[len(before) :]) < 1.5, "requests of two seconds have one time"


def _timings(prompt: int, generated: int, prompt_ms: float) -> tuple[int, int, str]:
    return prompt, generated, f"{prompt_ms:.2f}"


# -- the collector ---------------------------------------------------------------------------------------------------


def _all_succeed(serving: Serving, clients: Clients, seconds: float) -> list[Answer]:
    """Send requests for ``seconds``; all of them must succeed."""
    sending = clients.keep_sending(SMALL, at_once=8)
    time.sleep(seconds)
    answers = sending.end()
    assert {answer.outcome for answer in answers} == {"ok"}
    return answers


@Protocol
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
def test_crash_collector_killed_or_hanging(
    serve: Start, rotel: RotelAgent, otlp_sink: OtlpSink, protocol: str, signum: signal.Signals
) -> None:
    endpoint, env = otlp(rotel, protocol)
    serving = serve("--otlp-endpoint", endpoint, **{**env, "OTEL_BSP_MAX_QUEUE_SIZE": "256"})
    assert rotel.child is not None
    with Clients(serving.url) as clients:
        before = _all_succeed(serving, clients, 1.0)
        otlp_sink.wait_for(lambda sink: len(roots(sink)) >= len(before) / 2, what="spans before")
        memory = serving.resident_mib()
        os.kill(rotel.child.pid, signum)
        try:
            answers = before + _all_succeed(serving, clients, 1.5)
            # The queue holds 256 spans, about 85 requests: send enough to lose some.
            while len(answers) < len(before) + 250:
                answers += _all_succeed(serving, clients, 0.5)
            wait_until(lambda: serving.metric("llamatel_records_dropped_total"), 30, "losses are counted")
            wait_until(lambda: serving.metric("llamacpp_requests_total", outcome="ok") == len(answers), 10)
            assert serving.resident_mib() - memory < 30
            serving.child.process.terminate()
            start = time.monotonic()
            assert serving.exit_within(15) == 0
            assert time.monotonic() - start < 12
        finally:
            if signum == signal.SIGSTOP:
                os.kill(rotel.child.pid, signal.SIGCONT)
    output = serving.child.output()
    assert len(re.findall(r"cannot send spans to", output)) <= 1
    assert "Transient error" not in output, "the SDK logs it at every attempt"
    assert re.search(r"\d+ spans could not be sent", output)
    assert len(serving.records()) == len(answers)


@Protocol
def test_crash_collector_restarted(serve: Start, rotel: RotelAgent, otlp_sink: OtlpSink, protocol: str) -> None:
    endpoint, env = otlp(rotel, protocol)
    serving = serve("--otlp-endpoint", endpoint, **env)
    with Clients(serving.url) as clients:
        rotel.kill()
        missed = _all_succeed(serving, clients, 1.0)
        rotel.start()
        answers = missed + _all_succeed(serving, clients, 1.0)
        sent = [answers[-1]]

        def arrives() -> bool:
            sent.append(clients.send(SMALL[0]))
            return any(span.end_ns / 1e9 > answers[-1].ended_at for span in roots(otlp_sink))

        wait_until(arrives, 40, "spans arrive again", every=0.5)
    serving.child.process.terminate()
    assert serving.exit_within(15) == 0
