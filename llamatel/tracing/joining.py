"""Matches a server's requests with client calls.

llama.cpp's log does not identify clients, so a request becomes the child of a call only if no other match is possible:

- a successful call ran as a request between its sending and its response;
- both agree in all figures that they share: tokens, prefill and decode to the log's 0.01 ms or better, the slot;
- a failed or cancelled call has no figures: only one request may match its times and outcome. Requests that completed
  before the server noticed that their client had disconnected only get links;
- no other request in that time agrees, and no other call agrees with that request. If several calls and requests agree
  with each other, elimination may leave a call one request, which is joined (``only_match``).

If several remain, the requests get links to the possible calls. All others remain without a client.

A call to an address of no watched server may have gone through a proxy or a tunnel. Its timings then identify the
request. The address counts as another name of the server once two calls were identified this way, without an exception;
until then the requests get links.

Requests wait for calls that they may belong to, only while a call is in flight. On an idle machine they wait for a
second. The wait is extended by the recent delay of this process's own thread, as clients' threads are delayed, too; and
while another process, which has announced or reported a call, has not reported that it was still open after the request
finished (``call_announcements``, ``call_reports``). Calls wait for requests, extended by the recent delay of the
server's log. Nothing waits for more than ten seconds, except a request whose stream is still being read. The number of
calls of other processes that are compared is bounded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Protocol

from llamatel.records import ClientCall, Completion, Outcome, ServerInfo
from llamatel.tracing.call_matching import (
    CLOCK_S,
    NOTICED_S,
    agree,
    completed_unread,
    may_be,
    server_failed,
    started_stream,
)
from llamatel.tracing.lateness import Lateness
from llamatel.tracing.only_match import only_match
from llamatel.tracing.recent_requests import CallsByPrefill, FinishedCall, HeldRequest, Origin, RecentRequests
from llamatel.tracing.server_addresses import Endpoint, ServerAddresses, endpoint_of

__all__ = ["Joiner", "OpenCall", "OpenCalls", "Origin"]

_LOOKS_S = 0.3
"""Time between two searches for a call's request."""
_WEIGHED_S = 0.1
"""Time between two checks whether a request has to wait: each costs a comparison with every call."""
_DECIDED_AFTER_S = (0.15, 0.4)
"""Time from a call's end until the log has all requests before it: for calls with timings, and without."""
_LATE_S = 0.9
"""How long a call waits for a matching request."""
_LATE_ELSEWHERE_S = 5.0
"""The same for a call of another process to a server whose requests are observed: nothing waits for the decision."""
_HELD_S = 1.0
"""How long a request waits for a possible call."""
_HELD_FOR_STREAM_S = 60.0
"""The same while a stream that started with it is still being read, maybe slowly."""
_MAX_ELSEWHERE = (1024, 64)
"""Calls of other processes that wait for their requests: with timings, and without, which costs up to 1,024 comparisons
a search."""
_LONGEST_S = 10.0
"""Longest wait on a busy machine."""
_LATE_TIMES = 10.0
"""Most additional delay of a client's thread compared with the observer's."""
_BACKLOG_S = 30.0
"""Requests that arrive later than this come from an old log."""
_MAX_SERVERS = 1024
_MAX_CLIENTS = 256
_MAX_OPEN_ELSEWHERE = 256
_MAX_FITTING = 64
"""If more match, only the nearest are linked."""
_MAX_LINKS = 16


class OpenCall(Protocol):
    """A call in flight."""

    @property
    def server(self) -> ServerInfo:
        """The server's address."""

    @property
    def started_at(self) -> float:
        """Unix time."""

    @property
    def headers_at(self) -> float | None:
        """When the response of a stream started."""


@dataclass(frozen=True, slots=True)
class OpenCalls:
    """Another process's report of its calls in flight."""

    client: str
    """Identifies the process."""
    as_of: float
    """Unix time: an earlier call is among them, or has finished and was reported."""
    calls: Sequence[OpenCall] | None
    """None: no calls in flight, and the next one will be reported when it starts."""


class Joiner:
    """Consumes finished calls and requests, and returns the requests with their origin.

    ``started``, ``dropped`` and ``expect`` may be called by any thread; all else by one.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.time,
        decided: Callable[[ClientCall, bool], None] = lambda call, joined: call.resolved(joined),
    ) -> None:
        """``decided`` is called for each finished call with whether a request was joined with it."""
        self._clock = clock
        self._decided = decided
        self._lock = Lock()
        self._in_flight: dict[object, OpenCall] = {}
        self._expected: dict[Endpoint | None, float] = {}
        self._elsewhere: dict[str, tuple[OpenCalls, float]] = {}
        self._finished: list[FinishedCall] = []
        self._held: list[HeldRequest] = []
        self._recent = RecentRequests()
        self._addresses = ServerAddresses()
        self._own_lateness = Lateness()
        self._log_lateness: dict[Endpoint, Lateness] = {}
        self.grace_s = 0.0
        """How long each request waits for a report from another machine, which may be the first one."""
        self._now = 0.0
        """When ``due`` was called last."""
        self._forgotten_at = 0.0
        """When the last relevant request was dropped."""

    def started(self, key: object, call: OpenCall) -> None:
        """A call is about to be sent."""
        with self._lock:
            self._in_flight[key] = call

    def dropped(self, key: object, *, other_server: bool = False) -> None:
        """A call is no longer in flight; ``finished`` may follow. ``other_server``: it was not a call to llama.cpp."""
        with self._lock:
            call = self._in_flight.pop(key, None)
            if other_server and call is not None:
                self._addresses.other(endpoint_of(call.server))

    def expect(self, endpoint: Endpoint | None, seconds: float) -> None:
        """Another process calls this server (None: one of them): requests of that time may be its own."""
        with self._lock:
            self._expected[endpoint] = self._clock() + seconds

    def announced(self, report: OpenCalls, seconds: float, *, any_server: bool) -> None:
        """As ``reported``, for a call that is about to be sent, maybe to a server that is not watched."""
        if any_server or any(self._addresses.is_watched(endpoint_of(call.server)) for call in report.calls or ()):
            self.reported(report, seconds)

    def reported(self, report: OpenCalls, seconds: float) -> None:
        """Another process reports its open calls; that counts for ``seconds``."""
        now = self._clock()
        known, until = self._elsewhere.get(report.client, (None, now))
        if known is not None and until > now and known.as_of > report.as_of:
            return  # announcements and reports travel separately
        others = {client: one for client, one in self._elsewhere.items() if one[1] > now and client != report.client}
        room = _MAX_OPEN_ELSEWHERE - sum(len(one.calls or ()) for one, _ in others.values())
        if report.calls is not None and len(others) < _MAX_CLIENTS:
            limited = OpenCalls(report.client, min(report.as_of, now), report.calls[:room])
            others[report.client] = limited, now + seconds
        self._elsewhere = others

    def late(self, seconds: float) -> None:
        """``due`` was called this much later than scheduled."""
        self._own_lateness.add(seconds, self._clock())

    def finished(self, call: ClientCall) -> bool:
        """A call has finished; False if too many wait."""
        self.dropped(call.key)
        if call.elsewhere:
            waiting = [one for one in self._finished if one.call.elsewhere and one.call.has_timings == call.has_timings]
            limit = _MAX_ELSEWHERE[not call.has_timings]
            if len(waiting) >= 2 * limit:
                return False
            for one in waiting[: max(0, len(waiting) - limit + 1)]:  # the oldest
                one.overdue = True
        self._finished.append(FinishedCall(call, self._clock()))
        return True

    def completed(self, completion: Completion) -> None:
        """A request has finished."""
        now = self._clock()
        held = HeldRequest(completion, now, check_at=now + self.grace_s)
        self._held.append(held)
        if completion.call is not None:  # from this process: the record has its caller
            held.origin = Origin()
            return
        endpoint = endpoint_of(completion.server)
        self._addresses.watch(endpoint)
        lateness = self._log_lateness.get(endpoint)
        if lateness is None and len(self._log_lateness) < _MAX_SERVERS:
            lateness = self._log_lateness[endpoint] = Lateness()
        if lateness is not None:
            late = now - completion.ended_at
            lateness.add(late if late < _BACKLOG_S else 0.0, now)
        # A report of another process's call may always arrive after its request has finished.
        dropped = self._recent.add(held)
        if dropped is not None:
            self._forgotten_at = dropped.arrived_at

    def due(self, *, all_of_them: bool = False) -> Iterator[tuple[Completion, Origin]]:
        """The requests whose origin is known, or that have waited long enough."""
        now = self._clock()
        if now < self._now:
            self._set_back(now)
        self._now = now
        if self._finished:
            self._decide_finished(now, all_of_them=all_of_them)
        with self._lock:
            in_flight = [*self._open(self._in_flight.values(), now)]
        others = [one for one, until in self._elsewhere.values() if until > now]
        in_flight += [found for one in others for found in self._open(one.calls or (), one.as_of)]
        reported_at = min((one.as_of for one in others), default=now)
        calls = in_flight or self._finished or any(until > now for until in self._expected.values())
        kept = []
        for held in self._held:
            waits = held.origin is None and not all_of_them
            if waits and (now < held.check_at or (calls and self._has_to_wait(held, in_flight, reported_at, now))):
                kept.append(held)
            else:
                held.written = True
                yield (
                    held.completion,
                    held.origin or (Origin(candidates=_nearest(held)) if held.candidates else _NO_CALL),
                )
        self._held = kept

    def _decide_finished(self, now: float, *, all_of_them: bool) -> None:
        """Decide the finished calls whose time has come."""
        decided = [
            (one, found)
            for one in self._finished
            if (found := self._fitting(one.call) if all_of_them else self._found(one, now)) is not None
        ]
        # All at once: two calls that fit the same request must both be seen.
        every = CallsByPrefill(one.call for one in self._finished)
        fits = {id(one.call): found for one, found in decided}
        matched = [(one, found, self._only_match(one.call, fits, every)) for one, found in decided]
        if not all_of_them:
            matched = [each for each in matched if each[2] is not None or not self._may_clear_up(each[0], each[1], now)]
        for one, found, match in sorted(matched, key=lambda each: each[2] is None):
            self._decided(one.call, self._decide(one.call, found, match, every))
        done = {id(one) for one, _, _ in matched}
        self._finished = [one for one in self._finished if id(one) not in done]

    def _set_back(self, now: float) -> None:
        """The clock was set back to ``now``: shorten waits, which would otherwise last until the old time."""
        for held in self._held:
            held.arrived_at, held.check_at = min(held.arrived_at, now), min(held.check_at, now)
        for one in self._finished:
            one.arrived_at, one.searched_at = min(one.arrived_at, now), min(one.searched_at, now)
        with self._lock:
            self._expected = {endpoint: until - (self._now - now) for endpoint, until in self._expected.items()}
        self._elsewhere = {}

    @property
    def waits(self) -> bool:
        """Whether ``due`` should be called again soon."""
        return bool(self._held or self._finished)

    @property
    def has_calls(self) -> bool:
        """Whether calls are known; else requests only wait for the first report of another process."""
        return bool(self._finished or self._in_flight or self._elsewhere or self._expected)

    # -- matching ----------------------------------------------------------------------------------------

    def _found(self, finished: FinishedCall, now: float) -> list[HeldRequest] | None:
        """The requests that fit a call, once it can be decided; None before."""
        call, late = finished.call, self._lateness(finished.call, now)
        waited = now - finished.arrived_at
        if finished.overdue:
            return self._fitting(call)
        # Figures identify a present request; without them all requests that may match the call must be present.
        if waited < _DECIDED_AFTER_S[not call.has_timings] + (
            self._own_lateness.largest(now) if call.has_timings else late
        ):
            return None
        if call.outcome is not Outcome.OK:
            return self._fitting(call) if waited >= self._noticed(call) + late else None
        seen = call.elsewhere and self._addresses.is_watched(endpoint_of(call.server))
        if waited >= (_LATE_ELSEWHERE_S if seen else _LATE_S) + 2 * late:
            return self._fitting(call)
        if now < finished.searched_at + _LOOKS_S:
            return None
        finished.searched_at = now
        return self._fitting(call) or None

    def _may_clear_up(self, finished: FinishedCall, found: Sequence[HeldRequest], now: float) -> bool:
        """Whether a call fits more than its own request, and a request or call that would decide may still arrive."""
        until = finished.arrived_at + _LATE_S + 2 * self._lateness(finished.call, now)
        return bool(found) and _has_figures(finished.call) and not finished.overdue and now < until

    def _lateness(self, call: ClientCall, now: float) -> float:
        """How much later than on a quiet machine the log may show a call's request."""
        endpoint = endpoint_of(call.server)
        log = self._log_lateness.get(self._addresses.server(endpoint) or endpoint)
        late = self._own_lateness.largest(now) + (0.0 if log is None else log.largest(now))
        return min(_LONGEST_S / 2, late)

    def _noticed(self, call: ClientCall) -> float:
        """Time until the log has the end of a failed call."""
        return _DECIDED_AFTER_S[1] if server_failed(call) else NOTICED_S

    def _only_match(
        self, call: ClientCall, fits: Mapping[int, list[HeldRequest]], others: CallsByPrefill
    ) -> HeldRequest | None:
        """The request that elimination leaves to a call with timings; None if it leaves several."""
        if not _has_figures(call):
            return None

        def rivals(held: HeldRequest) -> Iterator[ClientCall]:
            timed = (other for other in others.of(held.completion) if _has_figures(other))
            return (other for other in timed if agree(other, held.completion, self._addresses))

        return only_match(call, lambda one: (fits.get(id(one)) or self._fitting(one))[:_MAX_FITTING], rivals)

    def _decide(
        self, call: ClientCall, fitting: list[HeldRequest], match: HeldRequest | None, others: CallsByPrefill
    ) -> bool:
        """Give the requests that fit a call their origin; whether one was joined."""
        found = [match] if match is not None else [held for held in fitting if held.origin is None]
        whole = [held for held in found if held.completion.tasks == call.tasks > 1]
        if len(whole) == 1:  # the others are at most parts of it
            found = whole
        tasks = sum(held.completion.tasks for held in found)
        endpoint = endpoint_of(call.server)
        named = self._addresses.server(endpoint) is not None
        if len(found) > _MAX_FITTING + call.tasks:
            for held in sorted(found, key=lambda held: abs(held.completion.ended_at - call.ended_at))[:_MAX_LINKS]:
                held.candidates.append(call)
            return False
        if not found or tasks < call.tasks:
            if not named and call.has_timings and not fitting:
                self._addresses.other(endpoint)
            return False
        joined = False
        for held in found:
            if match is not None:
                certain = held.origin is None
            elif _has_figures(call):
                certain = False
            else:
                alike = (other for other in others.of(held.completion) if other is not call)
                rivals = any(agree(other, held.completion, self._addresses) for other in alike)
                unread = call.outcome is not Outcome.OK and held.completion.outcome is Outcome.OK
                certain = tasks == call.tasks and (call.tasks > 1 or not rivals) and not unread
            if certain and not named:
                self._addresses.identified(endpoint, endpoint_of(held.completion.server))
                certain = False
            if certain and (call.has_timings or call.sent_at - CLOCK_S > self._forgotten_at):
                held.origin = Origin(parent=call)
                joined = joined or not held.written
            else:
                held.candidates.append(call)
        return joined

    def _fitting(self, call: ClientCall) -> list[HeldRequest]:
        """The requests that agree with a call and are not joined with another; includes those already written."""
        since = self._recent.since(call.sent_at, call.prefill_s if call.tasks == 1 else None)
        free = [held for held in since if held.origin is None]
        return [held for held in free if agree(call, held.completion, self._addresses)] or [
            held for held in free if completed_unread(call, held.completion, self._addresses)
        ]

    def _open(self, calls: Iterable[OpenCall], as_of: float) -> Iterator[_Open]:
        """Calls in flight at a time, with their server if known."""
        return ((self._addresses.server(endpoint_of(call.server)), call, as_of) for call in calls)

    def _has_to_wait(self, held: HeldRequest, in_flight: Sequence[_Open], reported_at: float, now: float) -> bool:
        """Whether a call may still match it; called when the time of its last check is over."""
        until = held.arrived_at + self._patience(held, in_flight, reported_at, now)
        held.check_at = min(until, now + _WEIGHED_S)
        return now < held.check_at

    def _patience(self, held: HeldRequest, in_flight: Sequence[_Open], reported_at: float, now: float) -> float:
        """How long a request may wait, from its arrival, for its call.

        ``reported_at``: the oldest of the last reports of other processes.
        """
        completion = held.completion
        here, patience = endpoint_of(completion.server), self.grace_s
        held_s = min(_LONGEST_S, _HELD_S + _LATE_TIMES * self._own_lateness.largest(now))
        until_reported = min(_LONGEST_S, now - held.arrived_at + _WEIGHED_S)
        for one in self._finished:  # for a second or two each, until it is decided
            if may_be(one.call, completion, self._addresses):
                until = one.arrived_at + _HELD_S + NOTICED_S + 2 * self._lateness(one.call, now)
                patience = max(patience, until - held.arrived_at)
        if max(self._expected.get(here, 0.0), self._expected.get(None, 0.0)) > now:
            patience = max(patience, held_s, until_reported if reported_at < completion.ended_at else 0.0)
        for endpoint, call, as_of in in_flight:
            if endpoint not in (here, None) or completion.ended_at < call.started_at - CLOCK_S:
                continue
            if call.headers_at is None:
                # A call that is still open that long after the request has another request.
                answered = as_of < completion.ended_at + _HELD_S
                patience = max(patience, held_s, until_reported if answered else 0.0)
            elif completion.started_at >= call.started_at - CLOCK_S and started_stream(call.headers_at, completion):
                patience = max(patience, _HELD_FOR_STREAM_S)
        return patience


_NO_CALL = Origin()
_Open = tuple["Endpoint | None", OpenCall, float]
"""A call in flight: its server as far as known, the call, the time when it was."""


def _has_figures(call: ClientCall) -> bool:
    """Whether a call's figures identify its one request."""
    return call.outcome is Outcome.OK and call.tasks == 1 and call.has_timings


def _nearest(held: HeldRequest) -> tuple[ClientCall, ...]:
    """The calls that a request may belong to; if many, those that finished closest to it."""
    if len(held.candidates) <= _MAX_LINKS:
        return tuple(held.candidates)
    ended_at = held.completion.ended_at
    return tuple(sorted(held.candidates, key=lambda call: abs(call.ended_at - ended_at))[:_MAX_LINKS])
