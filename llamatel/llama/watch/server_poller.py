"""One attached server, polled: whether it is up, who it is, its figures or, of a router, its models' figures.

``poll`` asks; ``snapshots`` hands out what was seen last, so that exports and polls have nothing to do with each other.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

from llamatel.errors import ServerUnreachable
from llamatel.llama.http.props import ServerProps
from llamatel.llama.http.server_client import ServerClient
from llamatel.llama.listeners import Listeners
from llamatel.llama.watch.instance import Instance
from llamatel.llama.watch.local_process import local_flags
from llamatel.llama.watch.router_models import Router
from llamatel.llama.watch.targets import Target
from llamatel.records import ObservedRequest, ServerInfo
from llamatel.snapshots import ServerSnapshot

_log = logging.getLogger(__name__)

_HEALTH_S = 0.5
_SILENT_S = 60.0
"""A server that takes connections and answers nothing at all for that long is down."""
_SLOW_S = 1.0
_AFAR_S = 10.0
"""Pause for a server that is down and takes longer than ``_SLOW_S`` to say so: it must not hold up the others."""
_LATE_S = 10.0
_NOBODY_BEHIND = (502, 504)
_NOBODY = "what stands in front of it finds no server"


class ServerPoller:
    """Polls one server. ``poll`` is called by one thread at a time, the rest may be called from any.

    A poll that times out while the server decodes makes its figures stale, not the server down. A server that is down
    is only that: a gap in its series. Counters go on from where they were when it is back.
    """

    def __init__(
        self,
        target: Target,
        client: ServerClient,
        *,
        interval_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.target = target
        self.info = ServerInfo(target.address, target.port)
        self.asked: Callable[[str | None], None] = lambda _: None
        """Called at each question that takes a task number of llama.cpp's, for those who count them; with the model's
        name if it went to one of a router's."""
        self.due_in_s = interval_s
        """When it wants to be polled again."""
        self._client = client
        self._interval_s = interval_s
        self._clock = clock
        self._instance = self._new_instance()
        self._router: Router | None = None
        self._unknown = True
        self._answered_at: float | None = None
        self._polled_at = clock()
        self._logged: set[int] = set()
        """Refusals that were told."""
        self._refused: int | None = None
        self._down_logged = False
        self._snapshots: tuple[ServerSnapshot, ...] = ()
        self._listeners = Listeners[ObservedRequest]()

    def subscribe(self, listener: Callable[[ObservedRequest], None]) -> Callable[[], None]:
        """Have ``listener`` called for requests as polling sees them, once they are gone; returns what ends that."""
        return self._listeners.add(listener)

    def snapshots(self) -> tuple[ServerSnapshot, ...]:
        """What was seen last, of the server and, if it is a router, of its models; none before the first poll."""
        snapshots = self._snapshots
        if self._clock() - self._polled_at > max(_LATE_S, 5 * self.due_in_s):
            return tuple(replace(snapshot, stale=True) for snapshot in snapshots)
        return snapshots

    @property
    def router(self) -> bool:
        """Whether it is one, as far as is known."""
        return self._router is not None

    def check(self) -> None:
        """Poll once; raises ServerUnreachable, with one clear line, where the key is wrong."""
        self._logged.add(401)  # by us, as an error
        self.poll()
        if self._refused == 401:
            raise ServerUnreachable(self._refusal(401), status=401)

    def poll(self) -> None:
        """Ask, as far as manners allow. Never raises what a server can cause."""
        begun = self._clock()
        self.due_in_s = self._interval_s
        self._refused = None
        try:
            if self._unknown:
                self._introduce()
            if self._router is not None:
                self._router.poll()
            elif self._instance.poll():
                before = self._instance
                self._introduce()  # another process: perhaps with another model
                if self._instance is not before:
                    self._instance.poll()
        except ServerUnreachable as error:
            self._failed(error, begun)
        else:
            if self._down_logged:
                self._down_logged = False
                _log.warning("%s answers now", self._client.base_url)
            self._answered_at = self._clock()
            self._publish(up=True, state="sleeping" if self._instance.sleeping else "ready")
        source = self._router or self._instance
        for request in source.take_observed(self.info):
            for listener in self._listeners:
                listener(request)
        self._polled_at = self._clock()

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    # -- how it went ------------------------------------------------------------------------------------------------

    def _introduce(self) -> None:
        """Who it is: asked once, and again when another process answers."""
        status = self._client.health()
        if status != 200:
            raise ServerUnreachable(f"{self._client.base_url}/health answered {status}", status=status)
        props = self._client.props()
        if props == ServerProps():
            return  # it does not say: with a wrong key the next question tells
        if props.role == "router":
            self._router = self._router or Router(
                self._client, interval_s=self._interval_s, asked=self._note_asked, clock=self._clock
            )
            self.info = replace(self.info, model=None, build=props.build)
        else:
            card = self._client.model_card()
            if self._router is not None or (self.info.model is not None and card.name != self.info.model):
                # Another server to those who look at the figures: what was counted until now is not its own.
                self._instance = self._new_instance()
            self._router = None
            self._instance.trained_context = card.trained_context
            self._instance.flags = local_flags(self.info.address, self.info.port)
            self.info = replace(self.info, model=card.name or self.info.model, build=props.build)
        self._unknown = False

    def _failed(self, error: ServerUnreachable, begun: float) -> None:
        now = self._clock()
        if error.status == 503:
            # Loading, says llama.cpp; or a proxy in front of it finds nobody. It is of no use yet either way.
            self._gone()
            self._publish(up=False, state="starting")
        elif error.status is not None:
            # Only 401 is llama.cpp's own; else somebody answers of whom nothing is known, or who finds nobody.
            self._refused = error.status
            self._log_refusal(error.status)
            self._gone()
            up = {401: True}.get(error.status, False if error.status in _NOBODY_BEHIND else None)
            self._publish(up=up, state=None)
        elif error.busy and self._breathes(now):
            self._publish(up=True, state="ready", stale=True)
        else:
            if not self._down_logged:
                self._down_logged = True
                _log.warning("%s", error)
            self._gone()
            self._publish(up=False, state=None)
            if now - begun > _SLOW_S:
                self.due_in_s = max(_AFAR_S, self._interval_s)

    def _breathes(self, now: float) -> bool:
        """Whether a server that did not answer in time is busy: it tells its health, or told something lately."""
        try:
            if self._client.health(_HEALTH_S) == 200:
                self._answered_at = now
        except ServerUnreachable as error:
            if not error.busy:
                return False
        return self._answered_at is not None and now - self._answered_at < _SILENT_S

    def _gone(self) -> None:
        self._unknown = True
        self._instance.gone()
        if self._router is not None:
            self._router.gone()

    def _publish(self, *, up: bool | None, state: str | None, stale: bool = False) -> None:
        if self._router is not None:
            own = ServerSnapshot(self.info, up=up, state=state, stale=stale)
            self._snapshots = (
                own,
                *(replace(model, stale=stale or model.stale) for model in self._router.snapshots(self.info)),
            )
        else:
            self._snapshots = (self._instance.snapshot(self.info, up=up, state=state, stale=stale),)

    def _refusal(self, status: int) -> str:
        hints = {
            200: "with something that llama.cpp does not say",
            401: "the API key is missing or wrong: use --api-key-file",
            403: "what stands in front of it forbids it",
            404: "no llama.cpp server, or one behind another path",
            502: _NOBODY,
            504: _NOBODY,
        }
        return f"{self._client.base_url} answered {status}: {hints.get(status, 'see its log')}"

    def _log_refusal(self, status: int) -> None:
        if status not in self._logged:
            self._logged.add(status)
            _log.warning("%s", self._refusal(status))

    def _new_instance(self) -> Instance:
        return Instance(
            self._client,
            self._client.base_url,
            interval_s=self._interval_s,
            asked=self._note_asked,
            clock=self._clock,
        )

    def _note_asked(self, model: str | None = None) -> None:
        self.asked(model)
