"""The script's side: tells the llamatel that watches a server about the calls that are made here.

Callers only leave a note; a thread of its own sends. What cannot be sent, or not soon enough, is dropped and counted.
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
    MOST,
    RENEWED_S,
    SERVERS_PATH,
    InvalidCallReport,
    is_reported,
    read_endpoint,
    write,
)
from llamatel.tracing.joining import HERE, Endpoint, OpenCall, endpoint_of

DEFAULT_URL = f"http://{DEFAULT_METRICS_ADDR}"
"""Where a llamatel shows its page if nothing else is said."""

_WAITING = 512
"""Ended calls that wait to be told at most."""
_TOGETHER_S = 0.03
"""Calls that end within this time are told together; requests wait a second for their calls."""
_TIMEOUT_S = 1.0
_ASK_AGAIN_S = 30.0
"""When a llamatel that was not there, or does not watch a server, is asked again."""
_PLACES = 256


class CallReporter:
    """Listens to calls beside the observer."""

    def __init__(self, url: str | None, instance: str, *, token: str | None = None) -> None:
        """Nothing is sent, and no thread started, before the first call.

        ``url``: where the llamatel is; None is the default place, for servers of this machine. ``instance``: who we
        are, as we are not told of our own calls. ``token``: goes to an ``url`` that was given, and nowhere else.
        """
        self._elsewhere_too = url is not None
        self._url = url or DEFAULT_URL
        self._instance = instance
        self._headers = {"Content-Type": "application/json"}
        if token is not None and url is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        self._http = HttpClient(self._url, headers=self._headers)
        self._underway: dict[object, Endpoint] = {}
        self._ended: deque[ClientCall] = deque()
        self._quiet_until: dict[Endpoint, float] = {}
        """Until then nobody needs to be told that a server is called: it was said, or nobody listens."""
        self._watched: frozenset[Endpoint] = frozenset()
        """What the llamatel watches."""
        self._wake = threading.Event()
        self._starting = threading.Lock()
        self._closed = False
        self._thread: threading.Thread | None = None
        self.dropped = 0
        """Calls that could not be told though somebody listens."""

    def began(self, key: object, call: OpenCall) -> None:
        """A call is about to be sent; returns at once."""
        where = endpoint_of(call.server)
        if self._elsewhere_too or where[0] in HERE:
            self._underway[key] = where
            if self._quiet_until.get(where, 0.0) <= time.monotonic():
                self._hurry()

    def ended(self, call: ClientCall) -> None:
        """How it ended; returns at once."""
        where = self._underway.pop(call.key, None)
        if where is None or not is_reported(call) or (where not in self._watched and where in self._quiet_until):
            return
        if len(self._ended) >= _WAITING:
            self.dropped += 1
            return
        self._ended.append(call)
        self._hurry()

    def close(self, timeout_s: float = 1.0) -> None:
        """Tell what waits, within the time given."""
        self._closed = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def losses(self) -> Mapping[str, int]:
        """What was dropped, by reason; empty where nothing was."""
        return {"call_not_told": self.dropped} if self.dropped else {}

    def _hurry(self) -> None:
        self._wake.set()
        if self._thread is None or not self._thread.is_alive():  # not begun, or lost in a fork
            with self._starting, contextlib.suppress(RuntimeError):  # at the interpreter's end none can be started
                if not self._closed and (self._thread is None or not self._thread.is_alive()):
                    thread = threading.Thread(target=self._run, name="llamatel-calls", daemon=True)
                    thread.start()
                    self._thread = thread

    # -- its thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        told_at = 0.0
        while not self._closed or self._ended:
            self._wake.wait(RENEWED_S if self._underway else None)
            self._wake.clear()
            self._tell_places()
            if self._ended and not self._closed:
                time.sleep(max(0.0, told_at + _TOGETHER_S - time.monotonic()))
            self._tell_calls()
            told_at = time.monotonic()
        self._http.close()

    def _tell_places(self) -> None:
        """Name the servers that are being called and have not been named lately."""
        now = time.monotonic()
        called = {where for where in list(self._underway.values()) if self._quiet_until.get(where, 0.0) <= now}
        if called and not called <= self._watched:
            self._watched = self._ask()
        if len(self._quiet_until) > _PLACES:
            self._quiet_until = {}
        told = list(called & self._watched)[:MOST]
        if told:
            self._post(told, [])
        now = time.monotonic()
        self._quiet_until.update(
            (where, now + RENEWED_S if where in self._watched else now + _ASK_AGAIN_S) for where in called
        )

    def _tell_calls(self) -> None:
        while self._ended:
            calls = [self._ended.popleft() for _ in range(min(MOST, len(self._ended)))]
            calls = [call for call in calls if endpoint_of(call.server) in self._watched]
            if calls and not self._post([], calls):
                self.dropped += len(calls)

    def _ask(self) -> frozenset[Endpoint]:
        """The servers that the llamatel watches; none where there is no llamatel, or it is our own."""
        try:
            answer = self._http.request(SERVERS_PATH, total_s=_TIMEOUT_S)
            document: Any = answer.json() if answer.status == 200 else None
            if not isinstance(document, dict) or document.get("instance") == self._instance:
                return frozenset()
            found = (read_endpoint(entry) for entry in document["servers"])
            return frozenset(endpoint_of(ServerInfo(*where)) for where in found)
        except (HttpError, InvalidCallReport, ValueError, KeyError, TypeError):
            return frozenset()

    def _post(self, places: list[Endpoint], calls: list[ClientCall]) -> bool:
        """Whether it was taken. If nobody answers, nobody listens until we ask again."""
        try:
            body = write(places, calls)
            answer = self._http.request(CALLS_PATH, body=body, total_s=_TIMEOUT_S)
        except HttpError:
            self._watched = frozenset()
            self._quiet_until = dict.fromkeys(self._quiet_until, time.monotonic() + _ASK_AGAIN_S)
            return False
        return answer.status == 204
