"""The client's side of call reports: sends the calls made here to the llamatel that watches their server.

Callers only append to a queue; one thread sends. What cannot be sent, or not soon enough, is dropped and counted.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from llamatel.errors import HttpError
from llamatel.inputs.http import HttpClient
from llamatel.metrics import DEFAULT_METRICS_ADDR
from llamatel.records import ClientCall, ServerInfo
from llamatel.tracing.call_reports import (
    CALLS_PATH,
    MAX_CALLS,
    RENEWED_S,
    SERVERS_PATH,
    InvalidCallReport,
    has_trace,
    read_endpoint,
    write,
)
from llamatel.tracing.joining import OpenCall
from llamatel.tracing.server_addresses import HERE, Endpoint, endpoint_of

DEFAULT_URL = f"http://{DEFAULT_METRICS_ADDR}"
"""A llamatel's default address."""

_MAX_QUEUED = 512
"""Finished calls that wait to be sent."""
_BATCH_S = 0.03
"""Calls that finish within this time are sent together; requests wait a second for their calls."""
_TIMEOUT_S = 1.0
_RETRY_S = 30.0
"""When a llamatel that did not answer, or does not watch a server, is queried again."""
_BUSY_S = 1.0
"""The same where it did not answer in time."""
_MAX_ENDPOINTS = 256


class CallReporter:
    """Receives calls alongside the observer and reports them to another process's llamatel."""

    def __init__(self, url: str | None, instance: str, *, token: str | None = None) -> None:
        """Nothing is sent, and no thread started, before the first call.

        ``url``: the llamatel's address; None is the default one, for servers of this machine. With an address that was
        given, calls of any llama.cpp server are reported, as a proxy or tunnel may hide which one it is. ``instance``:
        our own id, as our own calls need no report. ``token``: sent to an ``url`` that was given, and nowhere else.
        """
        self._any_server = url is not None
        self._url = url or DEFAULT_URL
        self._instance = instance
        headers = {"Content-Type": "application/json"}
        if token is not None and url is not None:
            headers["Authorization"] = f"Bearer {token}"
        self._http = HttpClient(self._url, headers=headers)
        self._in_flight: dict[object, Endpoint] = {}
        self._finished: deque[ClientCall] = deque()
        self._quiet_until: dict[Endpoint, float] = {}
        """Until then a server need not be named: it was just named, or no llamatel answered."""
        self._watched: frozenset[Endpoint] | None = None
        """The servers that the llamatel watches; None where it did not answer, or is our own."""
        self._wake = threading.Event()
        self._starting = threading.Lock()
        self._closed = False
        self._thread: threading.Thread | None = None
        self.dropped = 0
        """Calls that could not be reported although a llamatel answers."""

    def watches(self, server: ServerInfo) -> bool:
        """Whether the llamatel of this machine has answered that it watches this server."""
        return not self._any_server and endpoint_of(server) in (self._watched or ())

    def call_started(self, key: object, call: OpenCall) -> None:
        """A call is about to be sent; returns at once."""
        endpoint = endpoint_of(call.server)
        if self._any_server or endpoint[0] in HERE:
            self._in_flight[key] = endpoint
            if self._quiet_until.get(endpoint, 0.0) <= time.monotonic():
                self._notify()

    def call_dropped(self, key: object) -> None:
        """Drop a call that was not one of llama.cpp."""
        self._in_flight.pop(key, None)

    def call_finished(self, call: ClientCall) -> None:
        """A call has finished; returns at once."""
        endpoint = self._in_flight.pop(call.key, None)
        unwatched = endpoint in self._quiet_until and not self._wants(endpoint)
        if endpoint is None or self._closed or not has_trace(call) or unwatched:
            call.resolved(False)
        elif len(self._finished) >= _MAX_QUEUED:
            self.dropped += 1
            call.resolved(False)
        else:
            self._finished.append(call)
            self._notify()

    def close(self, timeout_s: float = 1.0) -> None:
        """Send what is queued, within the time given."""
        self._closed = True
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
        if self._thread is None or not self._thread.is_alive():  # not started, or lost in a fork
            with self._starting, contextlib.suppress(RuntimeError):  # no new threads while the interpreter exits
                if not self._closed and (self._thread is None or not self._thread.is_alive()):
                    thread = threading.Thread(target=self._run, name="llamatel-calls", daemon=True)
                    thread.start()
                    self._thread = thread

    # -- its thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        sent_at = 0.0
        while not self._closed or self._finished:
            self._wake.wait(RENEWED_S if self._in_flight else None)
            self._wake.clear()
            self._send_endpoints()
            if self._finished and not self._closed:
                time.sleep(max(0.0, sent_at + _BATCH_S - time.monotonic()))
            self._send_calls()
            sent_at = time.monotonic()
        self._http.close()

    def _send_endpoints(self) -> None:
        """Name the servers that are being called and were not named lately."""
        now = time.monotonic()
        in_flight = [*self._in_flight.values(), *(endpoint_of(call.server) for call in list(self._finished))]
        called = {endpoint for endpoint in in_flight if self._quiet_until.get(endpoint, 0.0) <= now}
        retry_s = _RETRY_S
        if called and not called <= (self._watched or frozenset()):
            try:
                self._watched = self._query()
            except HttpError as error:
                self._watched = None
                retry_s = _BUSY_S if error.busy else _RETRY_S
        if len(self._quiet_until) > _MAX_ENDPOINTS:
            self._quiet_until = {}
        named = [endpoint for endpoint in called if self._wants(endpoint)][:MAX_CALLS]
        if named:
            self._post(named, [])
        now = time.monotonic()
        self._quiet_until.update(
            (endpoint, now + RENEWED_S if self._wants(endpoint) else now + retry_s) for endpoint in called
        )

    def _send_calls(self) -> None:
        while self._finished:
            queued = [self._finished.popleft() for _ in range(min(MAX_CALLS, len(self._finished)))]
            calls = [call for call in queued if self._wants(endpoint_of(call.server))]
            sent = bool(calls) and self._post([], calls)
            if calls and not sent:
                self.dropped += len(calls)
            watched = self._watched or frozenset()
            for call in queued:
                # Whether it was joined there is not known; of a server that is watched its own trace has the phases.
                call.resolved(sent and (endpoint_of(call.server) in watched or call.has_timings))

    def _query(self) -> frozenset[Endpoint] | None:
        """The servers that the llamatel watches; None where it is no llamatel, or our own. Raises HttpError."""
        try:
            answer = self._http.request(SERVERS_PATH, total_s=_TIMEOUT_S)
            document: Any = answer.json() if answer.status == 200 else None
            if not isinstance(document, dict) or document.get("instance") == self._instance:
                return None
            found = (read_endpoint(entry) for entry in document["servers"])
            return frozenset(endpoint_of(ServerInfo(*endpoint)) for endpoint in found)
        except (InvalidCallReport, ValueError, KeyError, TypeError):
            return None

    def _post(self, endpoints: list[Endpoint], calls: list[ClientCall]) -> bool:
        """Whether it was accepted. After a failed connection nothing is sent for a while."""
        try:
            body = write(endpoints, calls)
            answer = self._http.request(CALLS_PATH, body=body, total_s=_TIMEOUT_S)
        except HttpError:
            self._watched = None
            self._quiet_until = dict.fromkeys(self._quiet_until, time.monotonic() + _RETRY_S)
            return False
        return answer.status == 204
