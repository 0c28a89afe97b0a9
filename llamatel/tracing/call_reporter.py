"""Sends reports of this process's calls to the llamatel that watches their server.

Callers only append to a queue; one thread sends. A report without a response in time is sent again; reports that cannot
be sent within ten seconds are dropped and counted.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from llamatel.errors import HttpError
from llamatel.inputs.address import parse_address
from llamatel.inputs.credentials import trust
from llamatel.inputs.http import HttpClient, Response
from llamatel.inputs.rotated_files import RotatedFiles
from llamatel.metrics import DEFAULT_METRICS_ADDR
from llamatel.outputs.log_once import LogOnce
from llamatel.records import ClientCall, ServerInfo
from llamatel.tracing.call_announcements import Announcement, Announcer
from llamatel.tracing.call_reports import (
    CALLS_PATH,
    MAX_CALLS,
    MAX_OPEN,
    RENEWED_S,
    SERVERS_PATH,
    TIME_HEADER,
    CallReport,
    InvalidCallReport,
    has_trace,
    read_endpoint,
    write,
)
from llamatel.tracing.clock_offset import ClockOffset
from llamatel.tracing.joining import OpenCall, OpenCalls
from llamatel.tracing.server_addresses import HERE, Endpoint, endpoint_of

_log = logging.getLogger(__name__)

DEFAULT_URL = f"http://{DEFAULT_METRICS_ADDR}"
"""A llamatel's default address."""

_MAX_QUEUED = 512
"""Finished calls that wait to be sent."""
_BATCH_S = 0.03
"""Calls that finish within this time are sent together; requests wait a second for their calls."""
_TIMEOUT_S = 2.0
_RETRY_S = 30.0
"""Seconds until a llamatel that did not respond, or does not watch a server, is queried again."""
_REFUSED_S = 2.0
"""The same if the connection was refused on loopback: llamatel may be about to start."""
_ANNOUNCED_S = 1.0
"""How long an announcement covers further calls, until the report that follows."""
_BUSY_S = 1.0
"""The same after a timeout."""
_KEPT_S = 10.0
"""How long a finished call waits for a llamatel that times out."""
_KNOWN_S = 5.0
"""Interval of queries without calls to a llamatel elsewhere, which expects calls for ten seconds after each."""
_IDLE_S = 0.5
"""Seconds without open calls until that is reported."""
_MAX_ENDPOINTS = 256
_LATEST = 1e11
"""A Unix time is smaller."""
_ACCEPTED = 204
_LATE = ("timeout", "connect_timeout")
"""Kinds of HttpError after which a llamatel may respond soon."""
_REASONS = {
    401: "it requires its page token: LLAMATEL_PAGE_TOKEN",
    403: "it was started without --page-token-file, and accepts reports only from its own machine",
    404: "it is not a llamatel, or its page has another path",
}


class CallReporter:
    """Receives calls alongside the observer and reports them to another process's llamatel."""

    def __init__(
        self,
        url: str | None,
        instance: str,
        *,
        token: str | RotatedFiles[str] | None = None,
        ca_file: str | None = None,
    ) -> None:
        """Before the first call nothing is sent and no thread is started.

        ``url``: the llamatel's address; None is the default one, for servers of this machine. With an address that was
        given, calls of any llama.cpp server are reported, as a proxy or tunnel may hide which one it is. ``instance``:
        our own id, as our own calls need no report. ``token``: sent to an ``url`` that was given, and nowhere else.
        ``ca_file``: certificates to trust there, instead of the system's.
        """
        self._any_server = url is not None
        self._url = url or DEFAULT_URL
        self._instance = instance
        self._token = None if url is None else token
        self._here = parse_address(self._url).is_local
        self._connect = functools.partial(
            HttpClient,
            self._url,
            api_key=self._token,
            headers={"Content-Type": "application/json"},
            tls=None if ca_file is None else trust(ca_file),
        )
        self._once = LogOnce(_log)
        self.dropped = 0
        """Calls that could not be reported although a llamatel answers."""
        self._start_over()

    def after_fork(self) -> None:
        """Reset, in a forked process: the parent's own llamatel is now another process's."""
        self._instance = ""
        self._start_over()

    def _start_over(self) -> None:
        """Start without calls, connections and locks: after a fork those of the parent are in an unknown state."""
        self._client = uuid.uuid4().hex
        self._stay_known = False
        """Whether the llamatel is to expect calls at any time."""
        self._http = self._connect()
        self._announcer = Announcer(self._http.address.host, self._http.address.port, self._token)
        self._clock_offset = ClockOffset()
        self._announce_at = 0.0
        """From then on a call that starts announces itself, unless open calls are reported."""
        self._in_flight: dict[object, OpenCall] = {}
        self._finished: deque[ClientCall] = deque()
        self._others: set[Endpoint] = set()
        """Servers that were not llama.cpp when they were last called."""
        self._calls_reported = False
        """The llamatel expects further reports of our open calls."""
        self._quiet_until: dict[Endpoint, float] = {}
        """Until then a server is not announced: it just was, or no llamatel responded."""
        self._watched: frozenset[Endpoint] | None = None
        """The servers that the llamatel watches; None if it did not respond, or is our own."""
        self._wake = threading.Event()
        self._starting = threading.Lock()
        self._closed = threading.Event()
        self._close_by = 0.0
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Make ourselves known to a llamatel whose address was given: announcements do not reach other machines."""
        if self._any_server:
            self._stay_known = True
            self._notify()

    def watches(self, server: ServerInfo) -> bool:
        """Whether this machine's llamatel has reported that it watches this server."""
        return not self._any_server and endpoint_of(server) in (self._watched or ())

    def call_started(self, key: object, call: OpenCall) -> None:
        """A call is about to be sent; returns at once."""
        endpoint = endpoint_of(call.server)
        if self._any_server or endpoint[0] in HERE:
            self._in_flight[key] = call
            now = time.monotonic()
            if self._quiet_until.get(endpoint, 0.0) <= now or (self._wants(endpoint) and not self._calls_reported):
                if self._announce_at <= now and not self._calls_reported and endpoint not in self._others:
                    self._announce_at = now + _ANNOUNCED_S
                    about = Announcement(self._client, self._instance, time.time(), endpoint, self._any_server)
                    self._announcer.send(about)
                self._notify()

    def call_dropped(self, key: object) -> None:
        """Drop a call that was not one of llama.cpp."""
        dropped = self._in_flight.pop(key, None)
        if dropped is not None and len(self._others) < _MAX_ENDPOINTS:
            self._others.add(endpoint_of(dropped.server))

    def call_finished(self, call: ClientCall) -> None:
        """A call has finished; returns at once."""
        known = call.key in self._in_flight
        endpoint = endpoint_of(call.server)
        self._others.discard(endpoint)
        unwatched = endpoint in self._quiet_until and not self._wants(endpoint)
        if not known or self._closed.is_set() or not has_trace(call) or unwatched:
            call.resolved(False)
        elif len(self._finished) >= _MAX_QUEUED:
            self.dropped += 1
            call.resolved(False)
        else:
            self._finished.append(call)
            self._notify()
        self._in_flight.pop(call.key, None)  # here, so that a report finds it in one of the two

    def close(self, timeout_s: float = 1.0) -> None:
        """Send the queue within the given time."""
        self._close_by = time.monotonic() + timeout_s
        self._closed.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def losses(self) -> Mapping[str, int]:
        """Dropped calls by reason; empty where none was dropped."""
        return {"call_not_reported": self.dropped} if self.dropped else {}

    def _wants(self, endpoint: Endpoint | None) -> bool:
        """Whether the llamatel may see the requests of a server."""
        watched = self._watched
        return watched is not None and (endpoint in watched or (self._any_server and bool(watched)))

    def _notify(self) -> None:
        self._wake.set()
        if self._thread is None or not self._thread.is_alive():
            with self._starting, contextlib.suppress(RuntimeError):  # no new threads while the interpreter exits
                if not self._closed.is_set() and (self._thread is None or not self._thread.is_alive()):
                    thread = threading.Thread(target=self._run, name="llamatel-calls", daemon=True)
                    thread.start()
                    self._thread = thread

    # -- its thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        sent_at = 0.0
        while True:
            idle = not self._wake.wait(self._pause())
            self._wake.clear()
            if self._finished and not self._closed.is_set():
                time.sleep(max(0.0, sent_at + _BATCH_S - time.monotonic()))
            answered = self._find_servers() and self._report(idle=idle)
            sent_at = time.monotonic()
            if self._closed.is_set() and (not self._finished if answered else time.monotonic() >= self._close_by):
                break
            if not answered:
                self._drop(call for call in self._finished.copy() if call.ended_at < time.time() - _KEPT_S)
                self._closed.wait(_BUSY_S)
                if self._in_flight or self._finished or self._closed.is_set():
                    self._wake.set()
        self._drop(self._finished.copy())
        self._http.close()

    def _pause(self) -> float | None:
        """How long to wait for the next call; None without a limit."""
        if self._in_flight:
            return RENEWED_S
        if self._calls_reported:
            return _IDLE_S
        return None if not self._stay_known else _KNOWN_S if self._watched else _RETRY_S

    def _drop(self, calls: Iterable[ClientCall]) -> None:
        for call in calls:
            self._finished.remove(call)
            self.dropped += self._wants(endpoint_of(call.server))
            call.resolved(False)

    def _find_servers(self) -> bool:
        """Query which servers are watched, if unknown for a called one; False after a timeout."""
        now, retry_s = time.monotonic(), _RETRY_S
        called = {endpoint_of(call.server) for call in self._unreported()}
        unnamed = {endpoint for endpoint in called if self._quiet_until.get(endpoint, 0.0) <= now}
        if not unnamed <= (self._watched or frozenset()) or (self._stay_known and not called):
            try:
                self._watched = self._query()
            except HttpError as error:
                if error.kind in _LATE:
                    return False
                self._watched = None
                if self._here:
                    retry_s = _REFUSED_S
                if self._any_server and (not error.refused or self._url.startswith("https:")):
                    self._refused(str(error).replace("--ca-file", "LLAMATEL_CA_FILE"))
        if len(self._quiet_until) > _MAX_ENDPOINTS:
            self._quiet_until = {}
        now = time.monotonic()
        for endpoint in unnamed:
            self._quiet_until[endpoint] = now + (RENEWED_S if self._wants(endpoint) else retry_s)
        return True

    def _unreported(self) -> list[OpenCall]:
        """Calls that are open, or finished and not sent; in this order, as they move from one to the other."""
        in_flight = self._in_flight.copy().values()
        return [
            *(call for call in in_flight if endpoint_of(call.server) not in self._others),
            *self._finished.copy(),
        ]

    def _report(self, *, idle: bool) -> bool:
        """Send the finished and the open calls; False after a timeout."""
        while True:
            queued = [self._finished.popleft() for _ in range(min(MAX_CALLS, len(self._finished)))]
            as_of = time.time()
            calls = [call for call in queued if self._wants(endpoint_of(call.server))]
            waiting = [call for call in self._unreported() if self._wants(endpoint_of(call.server))]
            closed = self._closed.is_set()
            reported = self._calls_reported
            over = closed or (idle and not waiting)
            if over:  # first, so that a call that starts now is either found or announces itself
                self._calls_reported, self._announce_at = False, 0.0
                waiting = [call for call in self._unreported() if self._wants(endpoint_of(call.server))]
                over = closed or not waiting
            answer: int | None = None
            if calls or waiting or (over and reported):
                servers = {endpoint_of(call.server) for call in (*calls, *waiting)}
                oldest = sorted(waiting, key=lambda call: call.started_at)[:MAX_OPEN]
                about = OpenCalls(self._client, as_of, None if over else oldest)
                answer = self._post(CallReport([*servers][:MAX_CALLS], calls, about, self._clock_offset.seconds))
                self._calls_reported = about.calls is not None and answer == _ACCEPTED
                if answer is None and self._watched is not None:
                    self._finished.extendleft(reversed(queued))
                    return False
            if answer != _ACCEPTED:
                self.dropped += len(calls)
            watched = self._watched or frozenset()
            sent = {id(call) for call in calls} if answer == _ACCEPTED else set()
            for call in queued:
                # Unknown whether it was joined there; for a watched server, the server's own span has the phases.
                call.resolved(id(call) in sent and (endpoint_of(call.server) in watched or call.has_timings))
            if not self._finished:
                return True

    def _query(self) -> frozenset[Endpoint] | None:
        """The servers that the llamatel watches; None if it is not a llamatel, or our own. Raises HttpError."""
        try:
            answer = self._request(SERVERS_PATH)
            if self._any_server and answer.status != 200 and (reason := _REASONS.get(answer.status)) is not None:
                self._refused(f"{reason} (HTTP {answer.status})")
            document: Any = answer.json() if answer.status == 200 else None
            if not isinstance(document, dict) or document.get("instance") == self._instance:
                return None
            found = (read_endpoint(entry) for entry in document["servers"])
            return frozenset(endpoint_of(ServerInfo(*endpoint)) for endpoint in found)
        except (InvalidCallReport, ValueError, KeyError, TypeError):
            return None

    def _request(self, path: str, body: bytes | None = None) -> Response:
        """Send a request, and compare the clocks by its response. Raises HttpError."""
        sent_at, start = time.time(), time.monotonic()
        response = self._http.request(path, body=body, total_s=_TIMEOUT_S)
        with contextlib.suppress(ValueError):
            theirs = float(response.headers.get(TIME_HEADER, "nan"))
            if 0 <= theirs < _LATEST:
                self._clock_offset.add(sent_at, time.monotonic() - start, theirs)
        return response

    def _refused(self, reason: str) -> None:
        self._once.warning(reason, "calls are not reported to %s: %s", self._url, reason)

    def _post(self, report: CallReport) -> int | None:
        """The status of the response; None without one. After a failed connection nothing is sent for a while."""
        try:
            return self._request(CALLS_PATH, write(report)).status
        except HttpError as error:
            if error.kind not in _LATE:
                self._watched = None
                retry_s = _REFUSED_S if self._here else _RETRY_S
                self._quiet_until = dict.fromkeys(self._quiet_until, time.monotonic() + retry_s)
            return None
