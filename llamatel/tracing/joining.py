"""Which of a server's requests was which of our client's calls.

llama.cpp's log does not say who asked, so a request becomes the child of a call only where nothing else is possible:

- a call that ended well has run as a request in the time from its sending to its answer;
- the two agree in all that both tell: tokens, and prefill and decode to the log's 0.01 ms, the slot;
- and no other request in that time agrees, nor another call with that request.

Where several would fit, the requests get links to the calls that they may be. A call that was cancelled or failed has
no figures: it is linked if times leave one request to it and one call to that. Everything else is nobody's.

Requests wait here for calls that may be theirs, at most a second; without a call under way none waits. Calls of other
processes (``llamatel.tracing.call_reports``) are held to the same, and only so many of them are looked at.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from threading import Lock
from typing import Protocol

from llamatel.records import ClientCall, Completion, Outcome, ServerInfo
from llamatel.semconv import operation

_CLOCK_S = 0.25
"""How far a log's time and the clock on the wall may be apart; far more than they are."""
_ROUNDED_S = 0.0000051
"""Half of the log's 0.01 ms, and what floating point adds."""
_LOOKS_S = 0.3
"""From one look for a call's request to the next."""
_WEIGHED_S = 0.1
"""And from one look whether a request has to wait to the next: it costs a comparison with each call."""
_DECIDED_AFTER_S = (0.15, 0.4)
"""From a call's end until the log has told all that came before it: for calls with timings, and for those without."""
_LATE_S = 0.9
"""How long a call waits for a request that fits."""
_HELD_S = 1.0
"""How long a request waits for a call that may be its own."""
_HELD_FOR_STREAM_S = 5.0
"""The same where a stream began with it: its reader may be slow."""
_NOTICED_S = 1.5
"""llama.cpp looks once a second whether its client is still there."""
_REMEMBERED = 1024
_ELSEWHERE = 64
"""Calls of other processes that wait for their requests at most: each costs up to 1,024 comparisons a look."""
_MOST_FITTING = 64
"""Where more fit than that, nothing can be told."""
_MOST_LINKS = 8
HERE = frozenset({"localhost", "127.0.0.1", "0.0.0.0", "::1", "::"})  # noqa: S104 - recognised, not bound
"""Names of this machine."""


class OpenCall(Protocol):
    """A call that has not ended."""

    @property
    def server(self) -> ServerInfo:
        """Whom it asks."""

    started_at: float
    headers_at: float | None


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request came from, as far as that is known: opaque contexts of the calls' spans."""

    parent: ClientCall | None = None
    candidates: tuple[ClientCall, ...] = ()


@dataclass(slots=True, eq=False)
class _Held:
    completion: Completion
    arrived_at: float
    look_at: float = 0.0
    """Until then it waits, if it is nobody's."""
    written: bool = False
    origin: Origin | None = None
    candidates: list[ClientCall] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Ended:
    call: ClientCall
    arrived_at: float
    looked_at: float = 0.0


Endpoint = tuple["str | None", "int | None"]


def endpoint_of(server: ServerInfo) -> Endpoint:
    """What tells servers apart for both sides; the names of this machine are one."""
    address = None if server.address is None else server.address.lower()
    return ("127.0.0.1" if address in HERE else address, server.port)


class Joiner:
    """Takes calls and requests as they end, and gives the requests back with their origin.

    ``began``, ``gone`` and ``expect`` may be called by any thread; all else by one.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = Lock()
        self._underway: dict[object, OpenCall] = {}
        self._expected: dict[Endpoint, float] = {}
        self._ended: list[_Ended] = []
        self._held: list[_Held] = []
        self._recent: deque[_Held] = deque(maxlen=_REMEMBERED)
        self._forgotten_at = 0.0
        """When the last request that may matter was forgotten."""

    def began(self, key: object, call: OpenCall) -> None:
        """A call is about to be sent."""
        with self._lock:
            self._underway[key] = call

    def gone(self, key: object) -> None:
        """A call has ended; ``ended`` may follow."""
        with self._lock:
            self._underway.pop(key, None)

    def expect(self, where: Endpoint, seconds: float) -> None:
        """Another process calls this server: for so long requests may be its own."""
        with self._lock:
            self._expected[where] = self._clock() + seconds

    def ended(self, call: ClientCall) -> bool:
        """How it ended; False if too many wait."""
        self.gone(call.key)
        if call.elsewhere and sum(ended.call.elsewhere for ended in self._ended) >= _ELSEWHERE:
            return False
        self._ended.append(_Ended(call, self._clock()))
        return True

    def completed(self, completion: Completion) -> None:
        """A request has ended."""
        held = _Held(completion, self._clock())
        self._held.append(held)
        if completion.call is not None:  # in this process: it says itself who asked
            held.origin = Origin()
            return
        # Always: news of another process's call may come when its request has ended.
        if len(self._recent) == _REMEMBERED:
            self._forgotten_at = self._recent[0].arrived_at
        self._recent.append(held)

    def due(self, *, all_of_them: bool = False) -> Iterator[tuple[Completion, Origin]]:
        """The requests whose origin is known, or need not be waited for any longer."""
        now = self._clock()
        decided = [
            (ended, found)
            for ended in self._ended
            if (found := self._fitting(ended.call) if all_of_them else self._found(ended, now)) is not None
        ]
        # All at once: two calls that fit the same request must both be seen.
        every = [ended.call for ended in self._ended]
        for ended, found in decided:
            self._decide(ended.call, found, every)
        over = {id(ended) for ended, _ in decided}
        self._ended = [ended for ended in self._ended if id(ended) not in over]
        with self._lock:
            underway = [(endpoint_of(call.server), call) for call in self._underway.values()]
        kept = []
        for held in self._held:
            if held.origin is None and not all_of_them and self._has_to_wait(held, underway, now):
                kept.append(held)
            else:
                held.written = True
                origin = held.origin or Origin(candidates=tuple(held.candidates[:_MOST_LINKS]))
                yield held.completion, origin
        self._held = kept

    @property
    def waits(self) -> bool:
        """Whether ``due`` should be asked again soon."""
        return bool(self._held or self._ended)

    # -- what belongs together ----------------------------------------------------------------------------------------

    def _found(self, ended: _Ended, now: float) -> list[_Held] | None:
        """The requests that fit a call, once it can be decided; None before."""
        call, waited = ended.call, now - ended.arrived_at
        if waited < _DECIDED_AFTER_S[not call.has_timings]:
            return None
        if call.outcome is not Outcome.OK:
            return self._fitting(call) if waited >= _NOTICED_S / 2 else None
        if waited >= _LATE_S:
            return self._fitting(call)
        if now < ended.looked_at + _LOOKS_S:
            return None
        ended.looked_at = now
        return self._fitting(call) or None

    def _decide(self, call: ClientCall, fitting: list[_Held], others: list[ClientCall]) -> None:
        found = [held for held in fitting if held.origin is None]
        if not found or len(found) < call.tasks or len(fitting) > _MOST_FITTING + call.tasks:
            return
        sure = call.outcome is Outcome.OK and len(found) == call.tasks
        for held in found:
            rivals = any(other is not call and _agree(other, held.completion) for other in others)
            certain = sure and (call.tasks > 1 or not rivals)
            if certain and (call.has_timings or call.sent_at - _CLOCK_S > self._forgotten_at):
                held.origin = Origin(parent=call)
            elif call.outcome is Outcome.OK or (len(found) == 1 and not rivals):
                held.candidates.append(call)

    def _fitting(self, call: ClientCall) -> list[_Held]:
        """The requests that agree with a call and are not yet another's; those already written count as well."""
        found = []
        for held in reversed(self._recent):
            if held.arrived_at < call.sent_at:  # both by our clock
                break
            if held.origin is None and _agree(call, held.completion):
                found.append(held)
                if len(found) > _MOST_FITTING + call.tasks:
                    break
        return found

    def _has_to_wait(self, held: _Held, underway: list[tuple[Endpoint, OpenCall]], now: float) -> bool:
        """Whether a call may still turn out to be its own."""
        if now >= held.look_at:
            until = held.arrived_at + self._patience(held.completion, underway, now)
            held.look_at = min(until, now + _WEIGHED_S)
        return now < held.look_at

    def _patience(self, completion: Completion, underway: list[tuple[Endpoint, OpenCall]], now: float) -> float:
        """How long a request may wait for a call that is its own; 0 where there is none that may be."""
        here, patience = endpoint_of(completion.server), 0.0
        if any(_may_be(ended.call, completion) for ended in self._ended):
            patience = _HELD_S + _NOTICED_S / 2
        if self._expected.get(here, 0.0) > now:
            patience = max(patience, _HELD_S)
        for where, call in underway:
            if where != here or completion.ended_at < call.started_at - _CLOCK_S:
                continue
            began = call.headers_at
            if began is None:
                patience = max(patience, _HELD_S)
            elif abs(began - completion.started_at) < _CLOCK_S:
                patience = max(patience, _HELD_FOR_STREAM_S)
        return patience


def _may_be(call: ClientCall, completion: Completion) -> bool:
    """Whether places and times allow it."""
    late = _CLOCK_S if call.outcome is Outcome.OK else _NOTICED_S + _CLOCK_S
    in_time = completion.started_at >= call.sent_at - _CLOCK_S and completion.ended_at <= call.ended_at + late
    return in_time and endpoint_of(call.server) == endpoint_of(completion.server)


def _agree(call: ClientCall, completion: Completion) -> bool:
    """Whether a request may be a call: in place and time, in how it ended, and in all figures that both have."""
    if call.outcome is not Outcome.OK:
        return _may_be(call, completion) and _broke_off(call, completion)
    # The figures first: they are quick to compare, and tell most apart.
    if call.tasks == 1 and (
        completion.is_child
        or _differ(call.slot, completion.slot)
        or _differ(call.output_tokens, completion.generated)
        or _differ(call.prompt_computed, completion.prompt_computed)
        or _differ(call.cached_tokens, completion.prompt_cached)
        or _differ(call.prefill_s, completion.prefill_s, _ROUNDED_S)
        or _differ(call.decode_s, completion.decode_s, _ROUNDED_S)
        or _differ(call.input_tokens, completion.prompt_tokens if call.generates else completion.context_tokens)
    ):
        return False
    if completion.outcome is not Outcome.OK or (operation(completion) == "embeddings") == call.generates:
        return False
    return _may_be(call, completion)


def _differ(ours: float | None, theirs: float | None, by: float = 0) -> bool:
    return ours is not None and theirs is not None and abs(ours - theirs) > by


def _broke_off(call: ClientCall, completion: Completion) -> bool:
    """Whether a request that did not complete may be a call that did not."""
    wanted = (Outcome.CANCELLED,) if call.outcome is Outcome.CANCELLED else (Outcome.ERROR, Outcome.CONTEXT_FULL)
    if completion.outcome not in wanted:
        return False
    if call.outcome is Outcome.CANCELLED and completion.ended_at < call.ended_at - _CLOCK_S:
        return False
    return call.headers_at is None or abs(call.headers_at - completion.started_at) <= _CLOCK_S
