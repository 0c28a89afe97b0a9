"""Stores recent requests and calls of the joiner, indexed by prefill time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from llamatel.records import ClientCall, Completion

REMEMBERED = 1024
"""Most requests that are compared with calls that finish later."""
_BUCKET_S = 0.00001
"""Step of the prefill time index: the log's resolution."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request came from, as far as known."""

    parent: ClientCall | None = None
    candidates: tuple[ClientCall, ...] = ()


@dataclass(slots=True, eq=False)
class HeldRequest:
    """A finished request, and what is known of its client."""

    completion: Completion
    arrived_at: float
    check_at: float = 0.0
    """How long it waits for an origin."""
    written: bool = False
    origin: Origin | None = None
    candidates: list[ClientCall] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class FinishedCall:
    """A call that waits for its request."""

    call: ClientCall
    arrived_at: float
    searched_at: float = 0.0
    overdue: bool = False
    """Too many wait: it is decided with the present requests."""


class RecentRequests:
    """The last requests, newest last, and those of each prefill time."""

    def __init__(self) -> None:
        self._all: deque[HeldRequest] = deque()
        self._by_prefill: dict[int, list[HeldRequest]] = {}

    def add(self, held: HeldRequest) -> HeldRequest | None:
        """Add a request; returns the one that was dropped to make room."""
        oldest = self._all.popleft() if len(self._all) == REMEMBERED else None
        if oldest is not None and oldest.completion.prefill_s is not None:
            bucket = _bucket(oldest.completion.prefill_s)
            self._by_prefill[bucket].remove(oldest)
            if not self._by_prefill[bucket]:
                del self._by_prefill[bucket]
        self._all.append(held)
        if held.completion.prefill_s is not None:
            self._by_prefill.setdefault(_bucket(held.completion.prefill_s), []).append(held)
        return oldest

    def since(self, sent_at: float, prefill_s: float | None) -> Iterator[HeldRequest]:
        """The requests that arrived since ``moment``, newest first; with a prefill time only those that can have it."""
        if prefill_s is not None:
            found = [held for bucket in _near(prefill_s) for held in self._by_prefill.get(bucket, ())]
            yield from (held for held in reversed(found) if held.arrived_at >= sent_at)
            return
        for held in reversed(self._all):
            if held.arrived_at < sent_at:  # both by our clock
                return
            yield held


class CallsByPrefill:
    """Finished calls, looked up by the requests that they may match."""

    def __init__(self, calls: Iterable[ClientCall]) -> None:
        self._untimed: list[ClientCall] = []
        self._by_prefill: dict[int, list[ClientCall]] = {}
        for call in calls:
            if call.prefill_s is None:
                self._untimed.append(call)
            else:
                self._by_prefill.setdefault(_bucket(call.prefill_s), []).append(call)

    def of(self, completion: Completion) -> Iterator[ClientCall]:
        """A superset of the calls that may match this request."""
        yield from self._untimed
        if completion.prefill_s is not None:
            for bucket in _near(completion.prefill_s):
                yield from self._by_prefill.get(bucket, ())


def _bucket(seconds: float) -> int:
    return round(seconds / _BUCKET_S)


def _near(seconds: float) -> tuple[int, int, int]:
    bucket = _bucket(seconds)
    return bucket - 1, bucket, bucket + 1
