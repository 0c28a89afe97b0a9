"""Matches a server's requests with client calls.

llama.cpp's log does not name the client, so a request becomes the child of a call only where nothing else is possible:

- a call that succeeded has run as a request between its sending and its response;
- both agree in all figures that both have: tokens, prefill and decode to the log's 0.01 ms or better, the slot;
- a call that failed or was cancelled has no figures: times and outcome must leave one request to it. Requests that
  completed before the server noticed that their client was gone only get links;
- and no other request in that time agrees, nor another call with that request.

Where several agree, the requests get links to the calls that they may be. All others remain without a client.

A call to an address that no watched server has may have gone through a proxy or a tunnel. Its timings then identify the
request. The address counts as another name of that server once two calls were identified so and none was not; until
then the requests get links.

Requests wait here for calls that may be theirs, for a second at most; none waits without a call in flight. The same
holds for calls of other processes (``llamatel.tracing.call_reports``), of which only a bounded number is compared.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
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
from llamatel.tracing.server_addresses import Endpoint, ServerAddresses, endpoint_of

_LOOKS_S = 0.3
"""Time between two searches for a call's request."""
_WEIGHED_S = 0.1
"""Time between two checks whether a request has to wait: each costs a comparison with every call."""
_DECIDED_AFTER_S = (0.15, 0.4)
"""From a call's end until the log holds all requests before it: for calls with timings, and for those without."""
_LATE_S = 0.9
"""How long a call waits for a request that fits."""
_HELD_S = 1.0
"""How long a request waits for a call that may be its own."""
_HELD_FOR_STREAM_S = 60.0
"""The same while a stream that started with it is still being read: its reader may be slow."""
_REMEMBERED = 1024
_MAX_ELSEWHERE = (1024, 64)
"""Calls of other processes that wait for their requests: with timings, and without, which costs up to 1,024 comparisons
a search."""
_BUCKET_S = 0.00001
"""Requests and calls are found by their prefill time, in steps of the log's resolution."""
_MAX_FITTING = 64
"""If more fit, only the nearest are linked."""
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
class Origin:
    """Where a request came from, as far as known."""

    parent: ClientCall | None = None
    candidates: tuple[ClientCall, ...] = ()


@dataclass(slots=True, eq=False)
class _Held:
    completion: Completion
    arrived_at: float
    check_at: float = 0.0
    """Until then it waits, if it has no origin."""
    written: bool = False
    origin: Origin | None = None
    candidates: list[ClientCall] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Finished:
    call: ClientCall
    arrived_at: float
    searched_at: float = 0.0
    overdue: bool = False
    """Too many wait: it is decided with the requests that are there."""


class _Recent:
    """The last requests, newest last, and those of each prefill time."""

    def __init__(self) -> None:
        self._all: deque[_Held] = deque()
        self._by_prefill: dict[int, list[_Held]] = {}

    def add(self, held: _Held) -> _Held | None:
        """Add a request; returns the one that was dropped for it."""
        oldest = self._all.popleft() if len(self._all) == _REMEMBERED else None
        if oldest is not None and oldest.completion.prefill_s is not None:
            bucket = _bucket(oldest.completion.prefill_s)
            self._by_prefill[bucket].remove(oldest)
            if not self._by_prefill[bucket]:
                del self._by_prefill[bucket]
        self._all.append(held)
        if held.completion.prefill_s is not None:
            self._by_prefill.setdefault(_bucket(held.completion.prefill_s), []).append(held)
        return oldest

    def since(self, sent_at: float, prefill_s: float | None) -> Iterator[_Held]:
        """The requests that arrived since then, newest first; with a prefill time those that can have it."""
        if prefill_s is not None:
            found = [held for bucket in _near(prefill_s) for held in self._by_prefill.get(bucket, ())]
            yield from (held for held in reversed(found) if held.arrived_at >= sent_at)
            return
        for held in reversed(self._all):
            if held.arrived_at < sent_at:  # both by our clock
                return
            yield held


class _Rivals:
    """Finished calls, found by the requests that they may be."""

    def __init__(self, calls: Iterable[ClientCall]) -> None:
        self._untimed: list[ClientCall] = []
        self._by_prefill: dict[int, list[ClientCall]] = {}
        for call in calls:
            if call.prefill_s is None:
                self._untimed.append(call)
            else:
                self._by_prefill.setdefault(_bucket(call.prefill_s), []).append(call)

    def of(self, completion: Completion) -> Iterator[ClientCall]:
        """Calls that may be this request; more than are."""
        yield from self._untimed
        if completion.prefill_s is not None:
            for bucket in _near(completion.prefill_s):
                yield from self._by_prefill.get(bucket, ())


def _bucket(seconds: float) -> int:
    return round(seconds / _BUCKET_S)


def _near(seconds: float) -> tuple[int, int, int]:
    bucket = _bucket(seconds)
    return bucket - 1, bucket, bucket + 1


class Joiner:
    """Consumes calls and requests as they end, and returns the requests with their origin.

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
        self._finished: list[_Finished] = []
        self._held: list[_Held] = []
        self._recent = _Recent()
        self._addresses = ServerAddresses()
        self.grace_s = 0.0
        """How long each request waits for a report of another process, which may be the first one."""
        self._now = 0.0
        """When ``due`` was called last."""
        self._forgotten_at = 0.0
        """When the last relevant request was dropped."""

    def started(self, key: object, call: OpenCall) -> None:
        """A call is about to be sent."""
        with self._lock:
            self._in_flight[key] = call

    def dropped(self, key: object, *, other_server: bool = False) -> None:
        """A call is over; ``finished`` may follow. ``other_server``: it was not a call of llama.cpp."""
        with self._lock:
            call = self._in_flight.pop(key, None)
            if other_server and call is not None:
                self._addresses.other(endpoint_of(call.server))

    def expect(self, endpoint: Endpoint | None, seconds: float) -> None:
        """Another process calls this server (None: one of them): requests of that time may be its own."""
        with self._lock:
            self._expected[endpoint] = self._clock() + seconds

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
        self._finished.append(_Finished(call, self._clock()))
        return True

    def completed(self, completion: Completion) -> None:
        """A request has finished."""
        held = _Held(completion, self._clock())
        self._held.append(held)
        if completion.call is not None:  # inside of this process: it names its caller itself
            held.origin = Origin()
            return
        self._addresses.watch(endpoint_of(completion.server))
        # Always: a report of another process's call may arrive after its request has finished.
        dropped = self._recent.add(held)
        if dropped is not None:
            self._forgotten_at = dropped.arrived_at

    def due(self, *, all_of_them: bool = False) -> Iterator[tuple[Completion, Origin]]:
        """The requests whose origin is known, or that need not wait longer."""
        now = self._clock()
        if now < self._now:
            self._set_back(now)
        self._now = now
        decided = [
            (one, found)
            for one in self._finished
            if (found := self._fitting(one.call) if all_of_them else self._found(one, now)) is not None
        ]
        # All at once: two calls that fit the same request must both be seen.
        every = _Rivals(one.call for one in self._finished)
        for one, found in decided:
            self._decided(one.call, self._decide(one.call, found, every))
        done = {id(one) for one, _ in decided}
        self._finished = [one for one in self._finished if id(one) not in done]
        with self._lock:
            in_flight = [(self._addresses.server(endpoint_of(call.server)), call) for call in self._in_flight.values()]
        kept = []
        for held in self._held:
            if held.origin is None and not all_of_them and self._has_to_wait(held, in_flight, now):
                kept.append(held)
            else:
                held.written = True
                origin = held.origin or Origin(candidates=_nearest(held))
                yield held.completion, origin
        self._held = kept

    def _set_back(self, now: float) -> None:
        """The clock was set back to ``now``: nothing may wait until it is where it was."""
        for held in self._held:
            held.arrived_at, held.check_at = min(held.arrived_at, now), min(held.check_at, now)
        for one in self._finished:
            one.arrived_at, one.searched_at = min(one.arrived_at, now), min(one.searched_at, now)
        with self._lock:
            self._expected = {endpoint: until - (self._now - now) for endpoint, until in self._expected.items()}

    @property
    def waits(self) -> bool:
        """Whether ``due`` should be called again soon."""
        return bool(self._held or self._finished)

    # -- matching ----------------------------------------------------------------------------------------

    def _found(self, finished: _Finished, now: float) -> list[_Held] | None:
        """The requests that fit a call, once it can be decided; None before."""
        call, waited = finished.call, now - finished.arrived_at
        if finished.overdue:
            return self._fitting(call)
        if waited < _DECIDED_AFTER_S[not call.has_timings]:
            return None
        if call.outcome is not Outcome.OK:
            return self._fitting(call) if waited >= self._noticed(call) else None
        if waited >= _LATE_S:
            return self._fitting(call)
        if now < finished.searched_at + _LOOKS_S:
            return None
        finished.searched_at = now
        return self._fitting(call) or None

    def _noticed(self, call: ClientCall) -> float:
        """How long it takes until the log shows the end of a call that failed."""
        return _DECIDED_AFTER_S[1] if server_failed(call) else NOTICED_S

    def _decide(self, call: ClientCall, fitting: list[_Held], others: _Rivals) -> bool:
        """Give the requests that fit a call their origin; whether one was joined."""
        found = [held for held in fitting if held.origin is None]
        endpoint = endpoint_of(call.server)
        named = self._addresses.server(endpoint) is not None
        if len(found) > _MAX_FITTING + call.tasks:
            for held in sorted(found, key=lambda held: abs(held.completion.ended_at - call.ended_at))[:_MAX_LINKS]:
                held.candidates.append(call)
            return False
        if not found or len(found) < call.tasks:
            if not named and call.has_timings and not fitting:
                self._addresses.other(endpoint)
            return False
        joined = False
        for held in found:
            alike = (other for other in others.of(held.completion) if other is not call)
            rivals = any(agree(other, held.completion, self._addresses) for other in alike)
            unread = call.outcome is not Outcome.OK and held.completion.outcome is Outcome.OK
            certain = len(found) == call.tasks and (call.tasks > 1 or not rivals) and not unread
            if certain and not named:
                self._addresses.identified(endpoint, endpoint_of(held.completion.server))
                certain = False
            if certain and (call.has_timings or call.sent_at - CLOCK_S > self._forgotten_at):
                held.origin = Origin(parent=call)
                joined = joined or not held.written
            else:
                held.candidates.append(call)
        return joined

    def _fitting(self, call: ClientCall) -> list[_Held]:
        """The requests that agree with a call and are not yet another's; those already written count as well."""
        since = self._recent.since(call.sent_at, call.prefill_s if call.tasks == 1 else None)
        free = [held for held in since if held.origin is None]
        return [held for held in free if agree(call, held.completion, self._addresses)] or [
            held for held in free if completed_unread(call, held.completion, self._addresses)
        ]

    def _has_to_wait(self, held: _Held, in_flight: list[tuple[Endpoint | None, OpenCall]], now: float) -> bool:
        """Whether a call may still turn out to be its own."""
        if now >= held.check_at:
            until = held.arrived_at + self._patience(held, in_flight, now)
            held.check_at = min(until, now + _WEIGHED_S)
        return now < held.check_at

    def _patience(self, held: _Held, in_flight: list[tuple[Endpoint | None, OpenCall]], now: float) -> float:
        """How long a request may wait, from its arrival, for a call that is its own."""
        completion = held.completion
        here, patience = endpoint_of(completion.server), self.grace_s
        for one in self._finished:  # for a second or two each: then it is decided
            if may_be(one.call, completion, self._addresses):
                patience = max(patience, one.arrived_at - held.arrived_at + _HELD_S + NOTICED_S)
        if max(self._expected.get(here, 0.0), self._expected.get(None, 0.0)) > now:
            patience = max(patience, _HELD_S)
        for endpoint, call in in_flight:
            if endpoint not in (here, None) or completion.ended_at < call.started_at - CLOCK_S:
                continue
            headers_at = call.headers_at
            if headers_at is None:
                patience = max(patience, _HELD_S)
            elif completion.started_at >= call.started_at - CLOCK_S and started_stream(headers_at, completion):
                patience = max(patience, _HELD_FOR_STREAM_S)
        return patience


def _nearest(held: _Held) -> tuple[ClientCall, ...]:
    """The calls that a request may be; of many those that finished closest to it."""
    if len(held.candidates) <= _MAX_LINKS:
        return tuple(held.candidates)
    ended_at = held.completion.ended_at
    return tuple(sorted(held.candidates, key=lambda call: abs(call.ended_at - ended_at))[:_MAX_LINKS])
