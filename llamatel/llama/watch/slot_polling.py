"""When a server's slots are asked for: as seldom as can be, because the question keeps a server from sleeping.

``/slots`` is asked at a collection while a request runs, and once after the log last told of something done to a slot.
Otherwise the last answer still holds, because what an idle slot keeps changes with a line of the log only: another
request clears it as it starts (``--cache-idle-slots``, in one pool) or takes it over, a full pool purges it, llama.cpp
sleeps. The one way without a line, ``/slots/ID?action=...``, needs ``--slot-save-path``; then it is asked always.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from llamatel.errors import ServerUnreachable
from llamatel.llama.http.server_client import ServerClient
from llamatel.llama.http.slots_endpoint import DecodeRate
from llamatel.snapshots import SlotState

_log = logging.getLogger(__name__)

_MARGIN_S = 1.0
"""A server that may sleep is not asked when it is this close to it."""
_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class Activity:
    """What the log says about the slots' work."""

    lines: int
    """Lines about slots so far."""
    busy: bool
    """Whether requests run."""
    quiet_s: float
    """Seconds since ``lines`` changed."""
    sleeping: bool = False


@dataclass(frozen=True, slots=True)
class SlotsNow:
    """The slots; None where they are not known."""

    slots: tuple[SlotState, ...] | None = None
    decode_rate: float | None = None
    stale: bool = False
    """The server was too busy to answer: these are from before."""
    asked: bool = False


class SlotWatch:
    """Asks for one server's slots. Thread-safe."""

    def __init__(self, *, sleeps_after_s: float | None = None, always: bool = False) -> None:
        """``sleeps_after_s``: ``--sleep-idle-seconds``; None: it never sleeps. ``always``: ask at every collection."""
        self._sleeps_after_s = sleeps_after_s
        self._always = always
        self._lock = threading.Lock()
        self._rate = DecodeRate()
        self._slots: tuple[SlotState, ...] | None = None
        self._lines: int | None = None
        self._refused = False

    def restarted(self) -> None:
        """The server's process was replaced: its slots are new."""
        with self._lock:
            self._rate = DecodeRate()
            self._slots = self._lines = None
            self._refused = False

    def look(self, client: ServerClient, activity: Activity, generated_total: float | None, now: float) -> SlotsNow:
        """The slots at ``now`` (monotonic, seconds).

        ``generated_total`` is llama.cpp's own counter of generated tokens a moment ago.
        """
        with self._lock:
            if activity.sleeping:
                self._slots = self._lines = None
                return SlotsNow()
            unchanged = self._slots is not None and self._lines == activity.lines and not activity.busy
            asked = False
            if not unchanged or self._always:
                if self._refused or self._about_to_sleep(activity):
                    return SlotsNow()
                try:
                    self._slots = client.slots(_TIMEOUT_S)
                    self._lines, asked = activity.lines, True
                except ServerUnreachable as error:
                    _log.debug("the slots cannot be read: %s", error)
                    self._refused = error.status is not None and error.status != 503
                    self._lines = None
                    return SlotsNow(self._slots, stale=self._slots is not None) if error.busy else SlotsNow()
            slots = self._slots or ()
            rate = self._rate.observe(slots, generated_total, now)
            return SlotsNow(self._rate.paced(slots), rate, asked=asked)

    def _about_to_sleep(self, activity: Activity) -> bool:
        if self._sleeps_after_s is None or activity.busy:
            return False
        return activity.quiet_s > self._sleeps_after_s - _MARGIN_S
