"""Announcements of calls on loopback, and the clocks of two machines."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamatel.records import ClientCall, ServerInfo
from llamatel.tracing.call_announcements import Announcement, AnnouncementReceiver, Announcer
from llamatel.tracing.call_reporter import CallReporter
from llamatel.tracing.clock_offset import ClockOffset
from llamatel.tracing.joining import Joiner, OpenCalls
from tests.parts import free_port
from tests.samples import START_TIME, completion
from tests.test_call_reports import OpenCall, call

ABOUT = Announcement("a" * 32, "other", START_TIME - 0.3, ("127.0.0.1", 8090), any_server=False)


@contextlib.contextmanager
def receiving(token: str | None = None, host: str = "127.0.0.1") -> Iterator[tuple[AnnouncementReceiver, int]]:
    port = free_port()
    receiver = AnnouncementReceiver(host, port, "own", token)
    try:
        yield receiver, port
    finally:
        receiver.close()


@pytest.mark.parametrize("token", [None, "s3cret-\N{LATIN SMALL LETTER E WITH ACUTE}"])
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])  # noqa: S104
def test_announcement_has_arrived_when_it_is_sent(token: str | None, host: str) -> None:
    with receiving(token, host) as (receiver, port):
        Announcer("localhost", port, token).send(ABOUT)
        assert [*receiver.receive()] == [ABOUT]


def test_announcement_of_another_token_or_our_own() -> None:
    with receiving("token") as (receiver, port):
        Announcer("127.0.0.1", port, "tokem").send(ABOUT)
        Announcer("127.0.0.1", port, None).send(ABOUT)
        Announcer("127.0.0.1", port, "token").send(Announcement("a", "own", 1.0, ("h", 1), any_server=True))
        assert [*receiver.receive()] == []


def test_announcer_sends_nothing_to_other_machines() -> None:
    with receiving() as (receiver, port):
        for host in ("10.0.0.1", "gpu-host", socket.gethostname()):
            Announcer(host, port, None).send(ABOUT)
        Announcer("127.0.0.1", None, None).send(ABOUT)
        assert [*receiver.receive()] == []


@given(st.binary(max_size=2000))
def test_announcement_any_bytes(message: bytes) -> None:
    with receiving() as (receiver, port), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(message, ("127.0.0.1", port))
        assert [*receiver.receive()] == []


def test_reporter_announces_the_first_call_and_one_after_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving() as (receiver, port):
        reporter = CallReporter(f"http://127.0.0.1:{port}", "other")
        monkeypatch.setattr(reporter, "_notify", lambda: None)  # its thread gets no time
        monkeypatch.setattr(reporter, "_post", lambda _report: 204)
        for number in range(3):
            reporter.call_started(number, OpenCall())
        assert len([*receiver.receive()]) == 1
        reporter._calls_reported, reporter._announce_at = True, 0.0
        reporter.call_started(3, OpenCall())
        assert [*receiver.receive()] == []
        reporter._in_flight.clear()
        reporter._watched = frozenset({("127.0.0.1", 8090)})
        assert reporter._report(idle=True)  # it has no calls
        reporter.call_started(4, OpenCall())
        assert len([*receiver.receive()]) == 1


def announced(joiner: Joiner, about: Announcement) -> None:
    joiner.announced(about.open_calls, 10.0, any_server=about.any_server)


def test_joiner_waits_for_the_report_of_an_announced_call() -> None:
    """Ten seconds at most; a report that is older than the announcement does not end the wait."""
    for reported in (False, True):
        now = START_TIME + 1.51
        joiner = Joiner(lambda: now)  # noqa: B023 - used within this turn
        joiner.completed(completion(task=1))
        announced(joiner, ABOUT)
        joiner.reported(OpenCalls(ABOUT.client, ABOUT.at - 0.1, None), 10.0)
        assert [*joiner.due()] == []
        now += 8.0
        assert [*joiner.due()] == []
        if reported:
            one: ClientCall = call(1, elsewhere=True)
            joiner.finished(one)
            joiner.reported(OpenCalls(ABOUT.client, now, []), 10.0)
            now += 0.2
            assert [origin.parent for _, origin in joiner.due()] == [one]
        else:
            now += 2.5
            assert [origin.parent for _, origin in joiner.due()] == [None]


def test_joiner_ignores_announcements_of_servers_that_it_does_not_watch() -> None:
    now = START_TIME + 1.51
    joiner = Joiner(lambda: now)
    joiner.completed(completion(task=1))
    announced(joiner, Announcement("a", "", START_TIME, ("127.0.0.1", 9999), any_server=False))
    assert len([*joiner.due()]) == 1
    joiner.completed(completion(task=2))
    announced(joiner, Announcement("a", "", START_TIME, ("127.0.0.1", 9999), any_server=True))
    assert [*joiner.due()] == []


def test_joiner_late_log_line_of_a_reported_call() -> None:
    """The report of another process's call is there seconds before the log's lines are."""
    now = START_TIME + 1.51
    joiner = Joiner(lambda: now)
    joiner.completed(completion(task=0, server=ServerInfo("localhost", 8090)))
    list(joiner.due())
    one = call(1, elsewhere=True, output_tokens=20)
    joiner.finished(one)
    for _ in range(40):
        now += 0.1
        list(joiner.due())
    joiner.completed(completion(task=1, generated=20))
    now += 0.4
    assert [origin.parent for _, origin in joiner.due()] == [one]


def test_clock_offset_needs_evidence() -> None:
    now = time.monotonic()
    offset = ClockOffset(lambda: now)
    offset.add(100.0, 0.2, 100.15)  # equal clocks are possible
    assert offset.seconds == 0.0
    offset.add(100.0, 0.01, 3700.006)
    assert offset.seconds == pytest.approx(3600.0, abs=0.005)
    offset.add(200.0, 1.0, 3800.9)  # less precise
    assert offset.seconds == pytest.approx(3600.0, abs=0.005)
    offset.add(300.0, 0.4, 300.1)  # the clock was set
    assert offset.seconds == 0.0
    now += 61.0
    offset.add(400.0, 0.5, 395.0)
    assert offset.seconds == pytest.approx(-5.25)
