"""Pushes all metrics at an interval, over OTLP or to the console, on its own thread."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from opentelemetry.sdk.metrics.export import MetricsData

from llamatel.outputs.log_once import LogOnce

_log = logging.getLogger(__name__)


class MetricPush:
    """Thread-safe. Totals are cumulative, so a push that fails loses nothing."""

    def __init__(
        self,
        collect: Callable[[], MetricsData],
        send: Callable[[MetricsData], bool],
        interval_s: float,
        end_by: Callable[[float], object] = lambda _: None,
    ) -> None:
        """``send`` returns whether the data was delivered; ``end_by`` is called with the deadline."""
        self._collect = collect
        self._send = send
        self._interval_s = interval_s
        self._end_by = end_by
        self._once = LogOnce(_log)
        self.reset()

    def reset(self) -> None:
        """Start the thread; called again in a forked child."""
        self._changed = threading.Condition()
        self._requested = 0
        """Number of pushes requested by ``flush``, and of those done."""
        self._done = 0
        self._delivered = True
        self._closed = self._ending = False
        self._thread = threading.Thread(target=self._run, name="llamatel-otlp-metrics", daemon=True)
        self._thread.start()

    def flush(self, timeout_s: float) -> bool:
        """Push now; False if that took longer or was not delivered."""
        deadline = time.monotonic() + timeout_s
        self._request()
        return self._wait(deadline) and self._delivered

    def request_flush(self, deadline: float) -> None:
        """Start the last push, which ends by ``deadline``; ``close`` waits for it."""
        if not self._closed and not self._ending:
            self._ending = True
            self._end_by(deadline)
            self._request()

    def _request(self) -> None:
        with self._changed:
            self._requested += 1
            self._changed.notify_all()

    def _wait(self, deadline: float) -> bool:
        with self._changed:
            mine = self._requested
            while self._done < mine:
                left = deadline - time.monotonic()
                if left <= 0 or not self._thread.is_alive():
                    return False
                self._changed.wait(left)
        return True

    def close(self, deadline: float) -> bool:
        """Push once more until ``deadline`` (``time.monotonic``) and stop; False if that took longer.

        ``OtlpDelivery`` records whether it was delivered.
        """
        if self._closed:
            return True
        self.request_flush(deadline)
        done = self._wait(deadline)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if done:
            self._thread.join(1.0)
        return done

    def _run(self) -> None:
        due = time.monotonic() + self._interval_s
        while True:
            with self._changed:
                while not self._closed and self._done == self._requested and (left := due - time.monotonic()) > 0:
                    self._changed.wait(left)
                if self._closed:
                    return
                wanted = self._requested
            delivered = self._push()
            due = max(due + self._interval_s, time.monotonic())
            with self._changed:
                self._done, self._delivered = wanted, delivered
                self._changed.notify_all()

    def _push(self) -> bool:
        try:
            return self._send(self._collect())
        except Exception:  # noqa: BLE001 - the boundary of the thread: logged, and tried again at the next interval
            self._once.error("failed", "metrics could not be pushed; further failures are not logged", exc_info=True)
            return False
