"""Observes one server from the available sources: its process, its log, HTTP, its flags, its model's file.

Launched and attached servers are observed in the same way. A missing source leaves fields of the snapshot unknown; no
query wakes a sleeping server, keeps one awake or makes a router load a model (see ``polling``).

``poll`` queries the sources; ``snapshots`` returns what was seen last, so that exports and polls do not wait for each
other. A poll that times out while the server works makes its figures stale, not the server down. Counters go on from
where they were when a server comes back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from llamatel.errors import ServerUnreachable
from llamatel.flags.parse import parse_server_flags
from llamatel.flags.server_settings import ServerSettings
from llamatel.inputs.address import parse_address
from llamatel.llama.http.identify import NotIdentified, NotLlamaCpp, identify
from llamatel.llama.http.props import is_scrape_harmless
from llamatel.llama.http.server_client import ServerClient
from llamatel.llama.listeners import Listeners
from llamatel.llama.log.router_log import RouterLog
from llamatel.llama.watch.local_process import LocalProcess, find_process, has_worked, own_process
from llamatel.llama.watch.poll_outcome import PollOutcome, failed_poll, refusal
from llamatel.llama.watch.polling import Polling
from llamatel.llama.watch.progress import STALLED_AFTER_S, ProgressWatch
from llamatel.llama.watch.router_models import Router, models_with_log
from llamatel.llama.watch.server_lifecycle import Lifecycle
from llamatel.llama.watch.server_log import ServerLog, warn_unless_understood
from llamatel.llama.watch.snapshot_builder import SnapshotBuilder
from llamatel.outputs.log_once import LogOnce
from llamatel.records import Completion, ObservedRequest, ServerInfo
from llamatel.snapshots import ServerSnapshot

_log = logging.getLogger(__name__)

_HEALTH_S = 0.5
_SILENT_S = 60.0
"""A server that accepts connections and sends no response for this long is down, unless its process is working."""
_SLOW_S = 1.0
_FAR_S = 10.0
"""Pause for a server that is down and takes longer than ``_SLOW_S`` to detect, so it does not delay the others."""
_LATE_S = 10.0
_LOST_S = 120.0


class ObservedServer:
    """Observes one server. Thread-safe."""

    def __init__(
        self,
        info: ServerInfo,
        *,
        client: ServerClient | None = None,
        log: ServerLog | None = None,
        lifecycle: Callable[[], Lifecycle | None] | None = None,
        interval_s: float = 1.0,
        has_metrics: bool = True,
        stalled_after_s: float = STALLED_AFTER_S,
        on_stall: Callable[[str], object] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Sources: ``client`` (HTTP), ``log``, and ``lifecycle`` of a server that this program has launched.

        ``has_metrics``: False if it is known to run without ``--metrics``.
        ``on_stall`` is called, with a sentence, when the server is found to be stalled: see ``progress``.
        """
        self.info = info
        self.log = log
        self.due_in_s = interval_s
        """Time of the next poll."""
        self.blocking = False
        """Whether a listener may block the log's reader: True if its lines wait in a file or pipe."""
        self._client = client
        self._lifecycle = lifecycle
        self._interval_s = interval_s
        self._has_metrics = has_metrics
        self._stalled_after_s = stalled_after_s
        self._progress = ProgressWatch(
            stalled_after_s, interval_s=interval_s, name=lambda: self.info.shown_address, on_stall=on_stall, clock=clock
        )
        self._clock = clock
        self._poll_lock = threading.Lock()
        self._poll_started_at = float("-inf")
        self._polled_at = clock()
        self._answered_at: float | None = None
        self._unknown = True
        """Whether it has to be identified (again)."""
        self._polling = None if client is None else self._new_polling(client)
        self._router: Router | None = None
        self._process: LocalProcess | None = None
        self._builder = SnapshotBuilder(log)
        self._settings: ServerSettings | None = None
        """Settings from its flags and environment."""
        self._environ: dict[str, str] = {}
        self._words: tuple[str, ...] = ()
        self._named_model: str | None = None
        """The path of its model in ``/props``."""
        self._refused: int | None = None
        self._refused_before: int | None = None
        self._reports_key = False
        """Whether the caller reports a wrong key."""
        self._once = LogOnce(_log)
        self._snapshots: tuple[ServerSnapshot, ...] = ()
        self._last = PollOutcome()
        self._build_lock = threading.Lock()
        self._listeners = Listeners[Completion | ObservedRequest]()

    # -- snapshots and listeners --------------------------------------------------------------------------------------

    @property
    def url(self) -> str | None:
        """The polled URL, without credentials."""
        return None if self._client is None else self._client.base_url

    @property
    def is_router(self) -> bool:
        """Whether it is known to be a router."""
        return self._router is not None or (self.log is not None and self.log.is_router)

    def subscribe(self, listener: Callable[[Completion | ObservedRequest], None]) -> Callable[[], None]:
        """Call ``listener`` for each finished request, from the log, or as observed in the slots.

        Returns a function that unsubscribes.
        """
        return self._listeners.add(listener)

    def publish(self, finished: Sequence[Completion | ObservedRequest]) -> None:
        """Hand finished requests to the listeners."""
        for request in finished:
            self._listeners.call(request)

    def snapshots(self) -> tuple[ServerSnapshot, ...]:
        """The last state of the server and, if it is a router, of its models; empty before the first poll."""
        grows = self._lifecycle is None and self.log is not None  # the log is read between polls, too
        snapshots = self._build() if grows else self._snapshots
        late_s = self._clock() - self._polled_at
        if self._client is not None and self._lifecycle is None and late_s > max(_LATE_S, 5 * self.due_in_s):
            # Without recent polls nothing is known.
            lost = late_s > max(_LOST_S, 10 * self.due_in_s)
            return tuple(replace(one, stale=True, up=None if lost else one.up) for one in snapshots)
        return snapshots

    def check(self) -> None:
        """Poll once; raises ServerUnreachable, with one clear line, where the key is wrong."""
        self._reports_key = True
        self.poll()
        if self._refused == 401:
            raise ServerUnreachable(refusal(self.url, 401), status=401)

    def poll(self) -> None:
        """Query the sources. Raises nothing that a server can cause. One thread polls, others use its result."""
        wanted_at = self._clock()
        with self._poll_lock:
            if self._poll_started_at > wanted_at:
                return
            self._poll_started_at = self._clock()
            self.due_in_s = self._interval_s
            self._refused_before, self._refused = self._refused, None
            self._poll()
            self._polled_at = self._clock()

    def poll_counters(self, timeout_s: float) -> None:
        """Read the counts of a server that is about to be stopped."""
        if not self._poll_lock.acquire(timeout=timeout_s):
            return  # another thread polls it, without a response
        try:
            life = None if self._lifecycle is None else self._lifecycle()
            if life is not None:
                self._follow(life)
            if self._polling is not None and not self.is_router:
                self._polling.poll_counters(timeout_s)
        finally:
            self._poll_lock.release()

    def close(self) -> None:
        """Close its connections."""
        if self._client is not None:
            self._client.close()

    # -- for the owner of its process ---------------------------------------------------------------------------------

    def launch(self, words: Sequence[str], environ: dict[str, str]) -> None:
        """Prepare for a launch with these flags and this environment."""
        self._words, self._environ = tuple(words), environ
        self._settings = parse_server_flags(words, environ=environ, lenient=True)
        if self.log is not None:
            self.log.describe_cache(rewindable=None, settings=self._settings)

    def process_replaced(self) -> None:
        """Prepare for a new process."""
        if self._polling is not None:
            self._polling.replaced()
        self._unknown = True

    def learn_from_log(self) -> None:
        """Complete its identity from its log; called for lines with new data (within ``ServerLog.feed``)."""
        if self.log is None or self._lifecycle is not None:
            return
        logged, info = self.log.logged, self.info
        if info.address == "unknown" and logged.host is not None:
            info = replace(info, address=logged.host, port=logged.port)
        if info.model is None and logged.model_path is not None and not self.is_router:
            info = replace(info, model=logged.model_path.rpartition("/")[2])
        if info.build is None and logged.build is not None:
            info = replace(info, build=logged.build)
        if info != self.info:
            self.info = info
            self.log.identify_unlocked(info)

    # -- one poll -----------------------------------------------------------------------------------------------------

    def _poll(self) -> None:
        life = None if self._lifecycle is None else self._lifecycle()
        if life is not None:
            self._follow(life)
            if self._process is None or self._process.pid != life.info.pid:
                self._process = own_process(life.info.pid, self._words, self._environ)
            if life.state != "ready" or life.client is None:
                self._publish(PollOutcome(life, up=life.state == "ready", state=life.state))
                return
        elif self._client is None or self._lifecycle is not None:
            self._publish(PollOutcome(None, up=None, state=None))
            return
        started_at, process = self._clock(), self._process
        before_s = None if process is None else process.cpu_s
        try:
            self._poll_http(life)
        except ServerUnreachable as error:
            after_s = None if process is None else process.cpu_s
            working = has_worked(before_s, after_s, self._clock() - started_at)
            stalled = self._is_stalled(started_at, working=error.busy)
            self._failed(error, life, started_at, working=working, stalled=stalled)
        else:
            if self._once.reset("down"):
                _log.warning("%s answers now", self.url)
            self._answered_at = self._clock()
            asleep = self._polling is not None and self._polling.sleeping
            busy = self._polling is not None and self._polling.busy
            stalled = self._is_stalled(started_at, working=busy)
            self._publish(PollOutcome(life, up=True, state="sleeping" if asleep else "stalled" if stalled else "ready"))
        source = self._router or self._polling
        if source is not None:
            observed = source.take_observed(self.info)
            if not self._log_shows_requests:
                self.publish(observed)

    def _is_stalled(self, started_at: float, *, working: bool) -> bool:
        """Whether it has work and has made no progress for long; ``working``: it has work at this poll."""
        marks = self._polling.marks if working and self._polling is not None else None
        cpu_s = self._process.cpu_s if working and self._process is not None else None
        return self._progress.observe(started_at=started_at, working=working, marks=marks, cpu_s=cpu_s)

    def _follow(self, life: Lifecycle) -> None:
        """Record what the supervisor reports of the process."""
        self.info = life.info
        if life.client is not None and life.client is not self._client:
            self._client = life.client
            self._unknown = True
            if self._polling is None:
                self._polling = self._new_polling(life.client)
            self._polling.use(life.client)
            # /slots/ID?action=restore changes slots without a log line or a counter.
            self._polling.always_slots = self._settings is not None and self._settings.slot_save_path is not None
            if self._router is not None:
                self._router.use(life.client)

    def _poll_http(self, life: Lifecycle | None) -> None:
        if self._unknown:
            self._identify(life)
        activity = None if self.log is None else self.log.activity()
        polling = self._polling
        if self._router is not None:
            self._poll_router(self._router)
        elif polling is not None and polling.poll(activity):
            self._identify(life)  # another process: perhaps with another model
            if self._polling is not polling and self._polling is not None:
                self._polling.poll(activity)
        if self.log is not None and self._polling is not None and self._router is None:
            self.log.audit(self._polling.generated_total, self._polling.slots if self._polling.slots_are_new else None)

    def _poll_router(self, router: Router) -> None:
        if self.log is None:
            router.poll_list()
        else:
            router.poll_list(self.log.with_router(RouterLog.pop_exited))
            self.log.with_router(lambda log: log.name_processes(router.ports, router.reranking))
        router.poll_models()
        self.due_in_s = router.due_in_s

    def _identify(self, life: Lifecycle | None) -> None:
        """Identify the server: once, and again when another process responds."""
        client = self._client
        if client is None:
            return
        props = client.describe() if life is not None else identify(client)
        self._named_model = props.model_path
        build = self.info.build or props.build if life is not None else props.build
        model = self.info.model
        if props.role == "router":
            self._router = self._router or Router(
                client, interval_s=self._interval_s, stalled_after_s=self._stalled_after_s,
                has_log=self.log is not None, on_task=self._note_task, clock=self._clock,
            )  # fmt: skip
            model = model if life is not None else None
        else:
            card = client.model_card()
            if life is None:
                if self._router is not None or (model is not None and card.name != model):
                    # Its series belong to another server from now on, and start at zero.
                    self._polling = self._new_polling(client)
                model = card.name or model
            self._router = None
            if self._polling is not None:
                self._polling.trained_context = card.trained_context
                if (harmless := is_scrape_harmless(props, card)) is not None:
                    self._polling.scrape_wakes = not harmless
        if life is None:
            self._process = find_process(parse_address(client.base_url))
            self._settings = None if self._process is None else self._process.settings
        if self._polling is not None and self._settings is not None:
            self._polling.may_sleep = self._settings.sleep_idle_seconds > 0
        self._set_info(replace(self.info, model=model, build=build))
        self._unknown = False

    def _set_info(self, info: ServerInfo) -> None:
        self.info = info
        if self.log is not None and self._lifecycle is None:
            self.log.identify(info)

    def _failed(
        self, error: ServerUnreachable, life: Lifecycle | None, started_at: float, *, working: bool, stalled: bool
    ) -> None:
        now, status = self._clock(), error.status
        outcome = failed_poll(
            error, life, is_alive=lambda: self._is_healthy(now) or working or self._answered_lately(life, now),
            again=status is not None and status == self._refused_before, was_up=self._answered_at is not None,
        )  # fmt: skip
        slow = False
        if isinstance(error, NotLlamaCpp):
            self._once.warning(error.program.name, "%s", error)
        elif status is not None and status != 503:
            self._refused = status
            if status != 401 or not self._reports_key:
                looks = error.looks if isinstance(error, NotIdentified) else ""
                self._once.warning(str(status), "%s", refusal(self.url, status, looks))
        elif status is None and not outcome.stale:
            slow = now - started_at > _SLOW_S
            if life is None:
                self._once.warning("down", "%s", error)
        if not outcome.stale:
            self._disconnected()
        self._publish(replace(outcome, state="stalled") if stalled else outcome)
        if slow or status == 404 or isinstance(error, NotLlamaCpp):
            self.due_in_s = max(_FAR_S, self._interval_s)

    def _is_healthy(self, now: float) -> bool:
        """Whether a server that timed out responds to ``/health``, which waits for nothing."""
        if self._client is None or not self._client.healthy(_HEALTH_S):
            return False
        self._answered_at = now
        return True

    def _answered_lately(self, life: Lifecycle | None, now: float) -> bool:
        """Whether it responded recently. Of our own process it is known whether it is working."""
        return life is None and self._answered_at is not None and now - self._answered_at < _SILENT_S

    def _disconnected(self) -> None:
        self._unknown = True
        if self._polling is not None:
            self._polling.disconnected()
        if self._router is not None:
            self._router.clear()

    @property
    def _log_shows_requests(self) -> bool:
        """Whether the log has all requests exactly."""
        own = next(iter(self._snapshots), None)
        return self.log is not None and (own is None or own.log is None or own.log.understood is not False)

    def _note_task(self, model: str | None = None) -> None:
        if self.log is not None:
            self.log.polled(model)

    def _new_polling(self, client: ServerClient) -> Polling:
        return Polling(
            client, client.base_url, interval_s=self._interval_s, on_task=self._note_task,
            has_metrics=self._has_metrics, clock=self._clock,
        )  # fmt: skip

    # -- the snapshot -------------------------------------------------------------------------------------------------

    def _publish(self, outcome: PollOutcome) -> None:
        self._last = outcome
        self._snapshots = self._build()

    def _build(self) -> tuple[ServerSnapshot, ...]:
        """The current server and its models, from the last poll and the log."""
        with self._build_lock:
            last, polling, router = self._last, self._polling, self._router
            log = None
            if self.log is not None:
                log = self.log.state(None if polling is None else polling.generated_total)
                warn_unless_understood(log, self.info, self._once)
            own = self._builder.build(
                self.info, last, polling, log, process=self._process, settings=self._settings,
                named_model=self._named_model, is_router=self.is_router,
            )  # fmt: skip
            if self.log is None or log is None or not log.is_router:
                models = () if router is None else router.snapshots(own.server)
            else:
                polled = router if last.up or last.life is None else None
                models = self.log.with_router(lambda seen: models_with_log(own.server, polled, seen))
            return own, *(replace(model, stale=last.stale or model.stale) for model in models)
