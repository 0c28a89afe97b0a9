"""Polls one llama.cpp process, a server or a router's model, without waking it or keeping it awake.

``/metrics`` and ``/props`` neither wake a sleeping server nor keep one awake; ``/slots`` does both. So each poll sends
only ``/metrics``. ``/slots`` is sent while requests run, or once after a change of a counter or the log, if ``/props``
reports that the server is awake. Without ``--metrics`` changes are unknown: the slots are then polled at intervals that
double while nothing changes, so the server falls asleep after at most twice its idle time.

In builds before August 2026 ``/metrics`` also wakes a sleeping server and keeps it awake. There it is sent only if
``/props`` reports that the server is awake, and at the same intervals while nothing changes, unless its flags are known
and it never sleeps.

Data of an endpoint that a server lacks (501, or an older build's 404) is absent, which is logged once. Gauges that
llama.cpp resets at each scrape (``*_tokens_seconds``) are not used.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from llamatel.errors import ServerUnreachable
from llamatel.llama.http.carried_counters import CarriedCounters
from llamatel.llama.http.props import ServerProps
from llamatel.llama.http.server_client import Scrape, ServerClient, is_counter
from llamatel.llama.http.slots_endpoint import DecodeRate
from llamatel.llama.watch.kv_state import Polled
from llamatel.llama.watch.observed_requests import SlotTrace
from llamatel.llama.watch.server_log import Activity
from llamatel.outputs.log_once import LogOnce
from llamatel.records import ObservedRequest, ServerInfo
from llamatel.snapshots import SlotState

_log = logging.getLogger(__name__)

_PROPS_S = 10.0
"""Interval of checking whether an idle server sleeps."""
_LONGEST_S = 3600.0
_LONGEST_SCRAPE_S = 300.0
"""Interval of scraping an idle server of an older build that may sleep."""
_HARMLESS = "prompt_tokens_cached_total"
"""A counter that only builds with a harmless ``/metrics`` have."""
_MISSING = (404, 501)
_MAX_PROCESSES = 16
_NO_SERVER = ServerInfo("unknown")


class Polling:
    """Polls one llama.cpp process. One thread polls at a time; ``replaced`` may be called from any."""

    def __init__(
        self,
        client: ServerClient,
        name: str,
        *,
        interval_s: float = 1.0,
        on_task: Callable[[], None] = lambda: None,
        has_metrics: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``name`` is for messages; ``on_task`` is called before each request that takes a task number of llama.cpp.

        ``has_metrics``: False if the server is known to run without ``--metrics``.
        """
        self._client = client
        self._name = name
        self._interval_s = interval_s
        self._on_task = on_task
        self._clock = clock
        self._lock = threading.Lock()
        """Held while a scrape is recorded, and while the process is declared replaced."""
        self._counters = CarriedCounters()
        self._values: Mapping[str, float] = {}
        self._scrape: Scrape | None = None
        """The last recorded scrape of a server that responds."""
        self._process: str | None = None
        self._earlier: dict[str, Mapping[str, float]] = {}
        """Last counters of earlier processes, by their start."""
        self._rate = DecodeRate()
        self.decode_rate: float | None = None
        """Tokens per second over all slots."""
        self._trace = SlotTrace()
        self._observed: list[ObservedRequest] = []
        self.uncounted: list[ObservedRequest] = []
        """Requests seen in the slots after the last scrape, which no counter includes yet."""
        self._lacks: set[str] = set() if has_metrics else {"metrics"}
        self._has_metrics = has_metrics
        self._once = LogOnce(_log)
        self.slots: tuple[SlotState, ...] | None = None
        """The slots as last polled."""
        self.slots_are_new = False
        """Whether they are from the last poll."""
        self._changed = True
        """Whether something changed since the slots were polled."""
        self._log_lines: int | None = None
        self._props_at = float("-inf")
        self._pause_s = interval_s
        self._slots_at = float("-inf")
        self.sleeping: bool | None = None
        self.restarts = 0
        """Times another process was found at its address."""
        self.trained_context: int | None = None
        self.may_sleep: bool | None = None
        """From its flags; None if they are unknown."""
        self.scrape_wakes: bool | None = None
        """Whether ``/metrics`` wakes it; None while unknown, until the first scrape."""
        self._scrape_at = float("-inf")
        self.always_slots = False
        """Poll the slots each time, because they can change without a counter or log line."""

    @property
    def busy(self) -> bool:
        """Whether requests ran or waited at the last poll."""
        return self._works or any(slot.busy for slot in self.slots or ())

    @property
    def marks(self) -> object:
        """Values that change while the server makes progress: its counters, and the tokens in its slots."""
        slots = tuple((slot.id, slot.task, slot.prompt_computed, slot.decoded) for slot in self.slots or ())
        return tuple(self._counters.totals().items()), slots

    @property
    def _works(self) -> bool:
        """Whether its gauges report running or waiting requests."""
        return any(self._values.get(gauge, 0) > 0 for gauge in ("requests_processing", "requests_deferred"))

    @property
    def polled(self) -> Polled:
        """The data from which the KV cache's state is derived."""
        return Polled(self.slots, self.trained_context, self._values, self.sleeping)

    @property
    def answers(self) -> bool:
        """Whether its counters are from a server that currently responds."""
        return bool(self._values)

    @property
    def totals(self) -> dict[str, float]:
        """llama.cpp's counters, summed over the server's processes."""
        return self._counters.totals()

    @property
    def generated_total(self) -> float | None:
        """Tokens that the current process has generated."""
        return self._counters.raw("tokens_predicted_total")

    @property
    def deferred(self) -> int | None:
        """Requests that wait for a slot."""
        value = self._values.get("requests_deferred")
        return None if value is None else int(value)

    @property
    def busy_slots_per_step(self) -> float | None:
        """Mean busy slots per decode step of the current process; None before the first step."""
        return self._values.get("n_busy_slots_per_decode") if self._values.get("n_decode_total") else None

    def take_observed(self, server: ServerInfo) -> list[ObservedRequest]:
        """Remove and return the observed requests that have finished since the last call."""
        observed, self._observed = self._observed, []
        return [replace(request, server=server) for request in observed]

    def poll(self, log: Activity | None = None) -> bool:
        """Poll once; True if another process was found. ``log``: the state of the server's log, if there is one.

        Raises ServerUnreachable.
        """
        self.slots_are_new = False
        if log is not None and log.lines != self._log_lines:
            self._changed, self._log_lines = True, log.lines
        if log is not None and log.sleeping != bool(self.sleeping):
            self._props_at = float("-inf")
        if "metrics" in self._lacks:
            self._poll_without_metrics()
            return False
        if not self._may_scrape(log):
            return False
        life = self._counters.process
        try:
            self._on_task()
            scrape = self._client.scrape()
        except ServerUnreachable as error:
            if error.status not in _MISSING:
                raise
            self._lack("metrics", "was started without --metrics: its counters are absent, its slots seldom polled")
            self._poll_without_metrics()
            return False
        if not scrape.values:
            raise ServerUnreachable(f"{self._name}/metrics has none of llama.cpp's series", status=200)
        with self._lock:
            if life != self._counters.process:
                return False  # of a process that was replaced in the meantime
            restarted = self._record(scrape)
        self.scrape_wakes = _HARMLESS not in scrape.values
        quiet = not self._changed and not self.busy
        self._pause_s = min(2 * self._pause_s, _LONGEST_SCRAPE_S) if quiet else self._interval_s
        self._scrape_at = self._clock() + self._pause_s
        self._poll_slots()
        return restarted

    def poll_counters(self, timeout_s: float) -> None:
        """Read the counters of a server that is about to stop; errors are ignored."""
        life = self._counters.process
        try:
            self._on_task()
            scrape = self._client.scrape(timeout_s)
        except ServerUnreachable as error:
            _log.debug("llama.cpp's counters cannot be read: %s", error)
            return
        self._counters.observe(scrape.values, life)

    def use(self, client: ServerClient) -> None:
        """Use another client from now on."""
        self._client = client

    def replaced(self) -> Mapping[str, float]:
        """Prepare for a new process, with continuing counters. Returns the last counters of the previous one."""
        with self._lock:
            last = self._counters.restarted()
            self._process = None
            self.disconnected()
            self.uncounted = []
            return last

    def add(self, missed: Mapping[str, float]) -> None:
        """Add counts of a process after its last poll."""
        self._counters.add(missed)

    def asleep(self) -> None:
        """Record that it sleeps: its model and KV cache are unloaded."""
        self.sleeping = True
        self.slots = self.decode_rate = None
        self._rate = DecodeRate()
        self._changed = False

    def disconnected(self) -> None:
        """Record that it does not respond: its state is unknown. Its counters are kept."""
        self.slots = self.decode_rate = self.sleeping = None
        self._values, self._scrape = {}, None
        self._changed = True
        self._rate = DecodeRate()
        self._trace.forget()
        self._lacks = set() if self._has_metrics else {"metrics"}  # the next process may be started with other flags
        self.scrape_wakes, self._scrape_at = None, float("-inf")

    # -- requests -----------------------------------------------------------------------------------------------------

    def _record(self, scrape: Scrape) -> bool:
        self.uncounted = []
        if scrape is self._scrape:
            return False  # nothing changed
        values = {name: value for name, value in scrape.values.items() if not name.endswith("_tokens_seconds")}
        totals = {name: value for name, value in values.items() if is_counter(name)}
        known = self._process is not None and scrape.process is not None
        fell = any(value < (self._counters.raw(name) or 0.0) for name, value in totals.items())
        restarted = scrape.process != self._process if known else fell
        if restarted:
            self._switch(scrape.process)
        self._process = scrape.process
        if any(value != self._counters.raw(name) for name, value in totals.items()):
            self._changed = True
        self._counters.observe(values, self._counters.process)
        self._values, self._scrape = values, scrape
        return restarted

    def _switch(self, process: str | None) -> None:
        """Handle a response of another process: a new one, or one of several replicas."""
        self.disconnected()
        last = self._counters.restarted()
        if self._process is not None:
            self._earlier[self._process] = last
            if len(self._earlier) > _MAX_PROCESSES:
                del self._earlier[next(iter(self._earlier))]
        if process is None or process not in self._earlier:
            self.restarts += 1
            return
        self._counters.resumed(self._earlier.pop(process))
        if self._once.warning(
            "turns",
            "%s: several servers answer at this address in turns, as replicas behind one Service. Their counters are "
            "added up; slots and KV cache are of one of them at a time: attach to each server (one llamatel per pod)",
            self._name,
        ):
            self.restarts = max(0, self.restarts - 1)  # the same process

    def _poll_slots(self) -> None:
        now = self._clock()
        if not self._values.get("requests_processing", 1):
            self._trace.idle(time.time())
        if self._works:
            self._changed, self.sleeping = True, False
            self._look(now)
        elif self._changed or self.busy or self.always_slots:  # busy at the last poll, which may be long ago
            if self._ask_sleeping(now):
                self._look(now)
                self._changed = False
        elif now - self._props_at > _PROPS_S:
            self._ask_sleeping(now)
        elif self.slots is not None:
            self._observe_rate(now)

    def _may_scrape(self, log: Activity | None) -> bool:
        """Whether ``/metrics`` may be sent now. Raises ServerUnreachable."""
        if self.scrape_wakes is False or self.may_sleep is False or self._works:
            return True
        if self.scrape_wakes and not (log is not None and self._changed) and self._clock() < self._scrape_at:
            if (status := self._client.health()) != 200:
                raise ServerUnreachable(f"{self._name} answered {status}", status=status)
            return False
        props = self._client.props()
        self._props_at = self._clock()
        if props.sleeping:
            self.asleep()
        elif props.sleeping is not None:
            self.sleeping = False
        return not props.sleeping

    def _ask_sleeping(self, now: float) -> bool:
        """Check whether it sleeps; True if its slots may be polled: it responded and is awake (or never sleeps)."""
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
            self._on_task()
            sent_at = time.time()
            self.slots = self._client.slots()
        except ServerUnreachable as error:
            if error.status not in _MISSING:
                raise
            self._lack("slots", "was started with --no-slots: its slots and the use of its KV cache are absent")
            return
        self.slots_are_new = True
        self._observed += self._trace.observe(_NO_SERVER, self.slots, time.time(), sent_at)
        self.uncounted = self._trace.running
        self._observe_rate(now)

    def _observe_rate(self, now: float) -> None:
        self.decode_rate = self._rate.observe(self.slots or (), self._values.get("tokens_predicted_total"), now)
        if self.slots is not None:
            self.slots = self._rate.paced(self.slots)

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
            before = self.slots
            self._look(now)
            quiet = self.slots == before and not self.busy
            self._pause_s = min(2 * self._pause_s, _LONGEST_S) if quiet else self._interval_s
            self._slots_at = now + self._pause_s

    def _lack(self, what: str, sentence: str) -> None:
        self._lacks.add(what)
        self._once.warning(what, "%s %s", self._name, sentence)
