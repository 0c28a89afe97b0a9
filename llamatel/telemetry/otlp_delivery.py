"""Delivers to one OTLP endpoint with retries; counts losses; logs when failures start and when they end."""

from __future__ import annotations

import logging
import random
import threading
import time

from llamatel.outputs.log_once import LogOnce
from llamatel.telemetry.otlp_transport import Sent, Transport

_log = logging.getLogger(__name__)

_FIRST_BACKOFF_S = 0.5
_MAX_BACKOFF_S = 8.0


class Delivery:
    """Sends messages of one kind ("spans", "metrics") to one URL. For one thread; ``stop_retrying`` from any."""

    def __init__(self, what: str, url: str, transport: Transport, timeout_s: float) -> None:
        self._what = what
        self._url = url
        self._transport = transport
        self._timeout_s = timeout_s
        self.failing = False
        """Whether the last message was not delivered."""
        self.may_retry = True
        """Whether the last message that was not delivered may be delivered later."""
        self.delivered_any = False
        self.refused = False
        """Whether the endpoint rejected this signal and never accepted it."""
        self.rejected = 0
        """Spans or data points that the endpoint rejected."""
        self._once = LogOnce(_log)
        self._deadline: float | None = None
        self._stop = threading.Event()

    def send(self, message: bytes, *, retries: bool = True) -> bool:
        """Send a message within the timeout, retries included; True if it was delivered."""
        deadline = time.monotonic() + self._timeout_s
        backoff_s = _FIRST_BACKOFF_S
        while True:
            if self._deadline is not None:
                deadline = min(deadline, self._deadline)
            left = deadline - time.monotonic()
            if left <= 0:
                self.failing = self.may_retry = True
                return False
            sent = self._transport.send(message, left)
            self._report(sent)
            if sent.delivered:
                return True
            wait_s = sent.retry_after_s or backoff_s * random.uniform(0.8, 1.2)
            backoff_s = min(_MAX_BACKOFF_S, 2 * backoff_s)
            if not sent.retry or not retries or time.monotonic() + wait_s >= deadline or self._stop.wait(wait_s):
                return False

    def end_by(self, deadline: float) -> None:
        """Stop retries now, and send nothing after ``moment`` (``time.monotonic``)."""
        self._deadline = deadline
        self._stop.set()

    def close(self) -> None:
        """Close connections."""
        self._transport.close()

    def reset(self) -> None:
        """Reset, in a forked child: no connections, nothing delivered yet."""
        self._transport.reset()
        self._once = LogOnce(_log)
        self._stop = threading.Event()
        self._deadline = None
        self.failing = self.delivered_any = self.refused = False
        self.rejected = 0

    def _report(self, sent: Sent) -> None:
        self.failing, self.may_retry = not sent.delivered, sent.retry
        self.refused = sent.unsupported and not self.delivered_any
        if not sent.delivered:
            self._once.warning("failing", "cannot send %s to %s: %s", self._what, self._url, sent.reason)
            return
        self.delivered_any = True
        if self._once.reset("failing"):
            _log.warning("%s arrive at %s again", self._what, self._url)
        if sent.rejected:
            self.rejected += sent.rejected
            self._once.warning(
                "rejected", "%s rejects some %s: %s", self._url, self._what, sent.reason or "no reason given"
            )
        elif sent.reason:
            self._once.warning("message", "%s on %s: %s", self._url, self._what, sent.reason)
