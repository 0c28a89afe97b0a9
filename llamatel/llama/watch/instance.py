"""One running llama.cpp as polling sees it: a server, or one of a router's models.

The manners: ``/metrics`` and ``/props`` neither wake a sleeping server nor keep one awake, ``/slots`` does both. So
each round asks ``/metrics`` alone, and ``/slots`` only while requests run or after counters moved, then behind a look
at ``is_sleeping``. A server without ``--metrics`` does not say whether anything moved: its slots are looked at in
pauses that double while nothing happens, so that it falls asleep after at most twice its time.

What a server does not offer (501, or an older build's 404) is absent and said once. Gauges that llama.cpp resets at
each scrape (``*_tokens_seconds``) are not used.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from llamatel.errors import ServerUnreachable
from llamatel.flags.server_settings import ServerSettings
from llamatel.inputs.documents import count
from llamatel.llama.http.carried_counters import CarriedCounters
from llamatel.llama.http.props import ServerProps
from llamatel.llama.http.server_client import Scrape, ServerClient
from llamatel.llama.http.slots_endpoint import DecodeRate
from llamatel.llama.watch.observed_requests import SlotTrace
from llamatel.records import ObservedRequest, ServerInfo
from llamatel.snapshots import KvCacheState, ServerSnapshot, SlotState

_log = logging.getLogger(__name__)

_PROPS_S = 10.0
"""How often an idle server is asked whether it sleeps."""
_LONGEST_S = 3600.0
_MISSING = (404, 501)
_NOBODY = ServerInfo("unknown")


class Instance:
    """Polls one llama.cpp. Not thread-safe: one thread polls, the snapshot it makes may go anywhere."""

    def __init__(
        self,
        client: ServerClient,
        name: str,
        *,
        interval_s: float = 1.0,
        asked: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``name`` is for messages; ``asked`` is called at each question that takes a task number of llama.cpp's."""
        self._client = client
        self._name = name
        self._interval_s = interval_s
        self._asked = asked
        self._clock = clock
        self._counters = CarriedCounters()
        self._values: Mapping[str, float] = {}
        self._process: str | None = None
        self._rate = DecodeRate()
        self._decode_rate: float | None = None
        self._trace = SlotTrace()
        self._observed: list[ObservedRequest] = []
        self._lacks: set[str] = set()
        self._logged: set[str] = set()
        self._slots: tuple[SlotState, ...] | None = None
        self._unseen = True
        """Whether something happened since the slots were looked at."""
        self._props_at = float("-inf")
        self._pause_s = interval_s
        self._slots_at = float("-inf")
        self.sleeping: bool | None = None
        self.restarts = 0
        """Times another process was found in its place."""
        self.trained_context: int | None = None
        self.flags: ServerSettings | None = None
        """llama-server's settings, where its flags are known."""

    @property
    def busy(self) -> bool:
        """Whether requests ran, or waited, at the last look."""
        return self._works or any(slot.busy for slot in self._slots or ())

    @property
    def _works(self) -> bool:
        """Whether its gauges say so."""
        return any(self._values.get(gauge, 0) > 0 for gauge in ("requests_processing", "requests_deferred"))

    @property
    def slots(self) -> tuple[SlotState, ...] | None:
        """The slots as last seen."""
        return self._slots

    def take_observed(self, server: ServerInfo) -> list[ObservedRequest]:
        """The requests that looks at the slots showed to be gone since this was asked last."""
        observed, self._observed = self._observed, []
        return [replace(request, server=server) for request in observed]

    def poll(self) -> bool:
        """One round; True if another process was found. Raises ServerUnreachable where it cannot be had."""
        if "metrics" in self._lacks:
            self._poll_without_metrics()
            return False
        try:
            self._asked()
            scrape = self._client.scrape()
        except ServerUnreachable as error:
            if error.status not in _MISSING:
                raise
            self._lack("metrics", "was started without --metrics: its counters are absent, its slots seldom looked at")
            self._poll_without_metrics()
            return False
        restarted = self._take(scrape)
        now = self._clock()
        if not self._values.get("requests_processing", 1):
            self._trace.idle(time.time())
        if self._works:
            self._unseen, self.sleeping = True, False
            self._look(now)
        elif self._unseen or self.busy:  # its slots worked when they were looked at, which may be long ago
            if self._ask_sleeping(now):
                self._look(now)
                self._unseen = False
        elif now - self._props_at > _PROPS_S:
            self._ask_sleeping(now)
        elif self._slots is not None:
            self._observe_rate(now)
        return restarted

    def use(self, client: ServerClient) -> None:
        """It is reached another way now."""
        self._client = client

    def asleep(self) -> None:
        """It sleeps: its model, and with it its KV cache, is unloaded."""
        self.sleeping = True
        self._slots = self._decode_rate = None
        self._rate = DecodeRate()
        self._unseen = False

    def gone(self) -> None:
        """It does not answer any more: what was true of it is not known now. Its counters are kept, to be resumed."""
        self._slots = self._decode_rate = self.sleeping = None
        self._values = {}
        self._unseen = True
        self._rate = DecodeRate()
        self._trace.forget()
        self._lacks.clear()  # who comes back may be started in another way

    def snapshot(
        self, server: ServerInfo, *, up: bool | None, state: str | None, stale: bool = False
    ) -> ServerSnapshot:
        """What was seen last."""
        deferred = self._values.get("requests_deferred")
        return ServerSnapshot(
            server=server,
            up=up,
            state=state,
            stale=stale,
            restarts=self.restarts,
            counters=self._counters.totals() if self._values else {},
            deferred=None if deferred is None else int(deferred),
            slots=self._slots,
            decode_rate=self._decode_rate,
            kv_cache=self._kv_cache(),
        )

    # -- asking -----------------------------------------------------------------------------------------------------

    def _take(self, scrape: Scrape) -> bool:
        values = {name: value for name, value in scrape.values.items() if not name.endswith("_tokens_seconds")}
        totals = {name: value for name, value in values.items() if name.endswith("_total")}
        known = self._process is not None and scrape.process is not None
        fell = any(value < (self._counters.raw(name) or 0.0) for name, value in totals.items())
        restarted = scrape.process != self._process if known else fell
        if restarted:
            self.gone()
            self._counters.restarted()
            self.restarts += 1
        self._process = scrape.process
        if any(value != self._counters.raw(name) for name, value in totals.items()):
            self._unseen = True
        self._counters.observe(values)
        self._values = values
        return restarted

    def _ask_sleeping(self, now: float) -> bool:
        """Ask whether it sleeps; True if it may be asked for its slots: it answered, and does not (or never sleeps)."""
        self._props_at = now
        props = self._client.props()
        if props == ServerProps():
            return False
        if props.sleeping:
            self.asleep()
        self.sleeping = props.sleeping
        return not props.sleeping

    def _look(self, now: float) -> None:
        if "slots" in self._lacks:
            return
        try:
            self._asked()
            self._slots = self._client.slots()
        except ServerUnreachable as error:
            if error.status not in _MISSING:
                raise
            self._lack("slots", "was started with --no-slots: its slots and its KV cache's use are absent")
            return
        self._observed += self._trace.observe(_NOBODY, self._slots, time.time())
        self._observe_rate(now)

    def _observe_rate(self, now: float) -> None:
        self._decode_rate = self._rate.observe(self._slots or (), self._values.get("tokens_predicted_total"), now)
        if self._slots is not None:
            self._slots = self._rate.paced(self._slots)

    def _poll_without_metrics(self) -> None:
        status = self._client.health()
        if status != 200:
            raise ServerUnreachable(f"{self._name} answered {status}", status=status)
        now = self._clock()
        due = "slots" not in self._lacks and now >= self._slots_at
        if not due and now - self._props_at <= _PROPS_S:
            return
        slept = self.sleeping
        awake = self._ask_sleeping(now)
        if slept and awake:
            self._pause_s, due = self._interval_s, "slots" not in self._lacks
        if due and awake:
            before = self._slots
            self._look(now)
            quiet = self._slots == before and not self.busy
            self._pause_s = min(2 * self._pause_s, _LONGEST_S) if quiet else self._interval_s
            self._slots_at = now + self._pause_s

    def _lack(self, what: str, sentence: str) -> None:
        self._lacks.add(what)
        if what not in self._logged:
            self._logged.add(what)
            _log.warning("%s %s", self._name, sentence)

    # -- the KV cache -----------------------------------------------------------------------------------------------

    def _kv_cache(self) -> KvCacheState | None:
        """Tokens from the slots; the pool's size only where it is proven (see ``_pool``)."""
        if self.sleeping:
            return KvCacheState(active=0, cached=0)  # its memory is freed
        if self._slots is None and "kv_cache_usage_ratio" not in self._values:
            return None
        cache = self._pool(self._slots or ())
        if self._slots is None:
            return cache
        return replace(
            cache,
            active=_tokens(slot for slot in self._slots if slot.busy),
            cached=_tokens(slot for slot in self._slots if not slot.busy),
        )

    def _pool(self, slots: tuple[SlotState, ...]) -> KvCacheState:
        """The pool, where its size can be told.

        llama.cpp says how much one slot may hold: the whole pool if it is shared (unified), the slot's share if it is
        split, and neither if it is capped at what the model was made for. Several slots alone do not tell which (what
        they hold together proves nothing: the answers to one prompt share cells). So it takes a gauge of llama.cpp's
        own, a single slot, or the flag that sized the pool.
        """
        ratio, tokens = self._values.get("kv_cache_usage_ratio"), self._values.get("kv_cache_tokens")
        if ratio and tokens and 1e-9 < ratio <= 1:  # llama.cpp's until May 2025, and proposed anew
            return KvCacheState(capacity=count(round(tokens / ratio)))
        sizes = {slot.context_size for slot in slots}
        size = sizes.pop() if len(sizes) == 1 else None
        if size is None:
            return KvCacheState()
        number = len(slots)
        asked = max(self.flags.ctx_size or 0, 0) if self.flags is not None else 0
        pool = _padded(asked)
        if number > 1 and asked:
            if size == pool:
                return KvCacheState(capacity=pool, unified=True)
            if size == _padded(-(-pool // number)):
                return KvCacheState(capacity=size * number, unified=False)
            if size == self.trained_context and size < pool and self.flags is not None and self.flags.kv_unified:
                return KvCacheState(capacity=pool, unified=True)
        if number == 1 and self.trained_context is not None and size < self.trained_context:
            return KvCacheState(capacity=size)
        return KvCacheState()


def _padded(tokens: int) -> int:
    """llama.cpp rounds contexts up to multiples of 256 (src/llama-context.cpp)."""
    return -(-tokens // 256) * 256


def _tokens(slots: Iterable[SlotState]) -> int | None:
    """What they hold together; None if one does not say."""
    total = 0
    for slot in slots:
        if slot.context_tokens is None:
            return None
        total += slot.context_tokens
    return total
