"""What goes wrong in a soak: each fault happens to a running ``serve`` or ``attach`` and is over when it returns."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.attached import Unmanaged
from tests.parts import OtlpSink, RotelAgent, wait_until
from tests.parts.fake_clock import FakeClock
from tests.parts.small_disk import SmallDisk
from tests.serving import SLOTS, Serving

_CLOCK_STEPS_S = (-3600, -30, 30, 3600)


def _stopped(pid: int, seconds: float) -> None:
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(pid, signal.SIGCONT)


@dataclass
class Faults:
    """Picks one fault after another from a seed and counts them."""

    serving: Serving
    rotel: RotelAgent
    disk: SmallDisk
    clock: FakeClock | None
    """None: no clock steps."""
    attached_pid: int
    """Of ``llamatel attach``."""
    observed: Unmanaged
    """The server that it observes."""
    sink: OtlpSink
    """Where it exports to."""
    source: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    history: list[tuple[float, str]] = field(default_factory=list)
    """Unix time and name of each."""
    expected_cuts: int = 0
    """Requests that ran at most when the server was killed."""
    _bag: list[Callable[[], None]] = field(default_factory=list)

    def next(self) -> None:
        """Have the next one; all happen equally often."""
        if not self._bag:
            self._bag = [
                self.kill_server, self.stall_server, self.stop_llamatel, self.kill_collector, self.stall_collector,
                self.rotate, self.truncate_own_files, self.fill_disk, self.truncate_log, self.stall_observed,
                self.stop_attached, self.refuse_exports, self.delay_exports,
            ]  # fmt: skip
            if self.clock is not None:
                self._bag.append(self.step_clock)
            self.source.shuffle(self._bag)
        fault = self._bag.pop()
        name = fault.__name__.replace("_", " ")
        self.counts[name] += 1
        self.history.append((time.time(), name))
        fault()

    # -- serve ------------------------------------------------------------------------------------------------------

    def kill_server(self) -> None:
        """SIGKILL; it is started again."""
        self.expected_cuts += 2 * SLOTS
        os.kill(self.serving.find_server(), signal.SIGKILL)
        wait_until(lambda: self.serving.metric("llamacpp_server_up") == 1, 60, "the server is up again")

    def stall_server(self) -> None:
        """It stops for up to eight seconds."""
        _stopped(self.serving.find_server(), self.source.uniform(1, 8))

    def stop_llamatel(self) -> None:
        """The server's pipe is not read."""
        _stopped(self.serving.pid, self.source.uniform(1, 6))

    def kill_collector(self) -> None:
        """It is down for some seconds."""
        self.rotel.kill()
        time.sleep(self.source.uniform(1, 8))
        self.rotel.start()

    def stall_collector(self) -> None:
        """It accepts connections and does not answer."""
        assert self.rotel.child is not None
        _stopped(self.rotel.child.pid, self.source.uniform(1, 8))

    def rotate(self) -> None:
        """Rename and SIGHUP, as logrotate does with ``create``."""
        for path in self._own_files():
            path.rename(path.with_name(f"{path.name}.{time.time_ns()}"))
        os.kill(self.serving.pid, signal.SIGHUP)
        wait_until(self.serving.rows.exists, 60, "the request log is open again")

    def truncate_own_files(self) -> None:
        """Copy and truncate, while nothing is written: what comes between the two is lost by design."""
        os.kill(self.serving.pid, signal.SIGSTOP)
        try:
            for path in self._own_files():
                shutil.copyfile(path, path.with_name(f"{path.name}.{time.time_ns()}"))
                os.truncate(path, 0)
        finally:
            os.kill(self.serving.pid, signal.SIGCONT)

    def fill_disk(self) -> None:
        """Not a byte fits for some seconds."""
        self.disk.fill()
        time.sleep(self.source.uniform(1, 6))
        self.disk.free()

    def step_clock(self) -> None:
        """The wall clock is wrong for some seconds; what is shown goes on."""
        assert self.clock is not None
        before = self.serving.metric("llamacpp_requests_total") or 0
        self.clock.step(self.source.choice(_CLOCK_STEPS_S))
        try:
            wait_until(
                lambda: (self.serving.metric("llamacpp_requests_total") or 0) > before, 30, "requests are counted", 0.5
            )
            time.sleep(self.source.uniform(0, 3))
        finally:
            self.clock.step(0)

    def _own_files(self) -> list[Path]:
        folder = self.serving.rows.parent
        return [path for path in (self.serving.rows, folder / "server.log") if path.exists()]

    # -- attach -----------------------------------------------------------------------------------------------------

    def truncate_log(self) -> None:
        """Copy and truncate the log that is read, while its writer stands still."""
        log = self.observed.child.log
        os.kill(self.observed.child.pid, signal.SIGSTOP)
        try:
            shutil.copyfile(log, log.with_name(f"{log.name}.{time.time_ns()}"))
            os.truncate(log, 0)
        finally:
            os.kill(self.observed.child.pid, signal.SIGCONT)

    def stall_observed(self) -> None:
        """The observed server stops for up to eight seconds."""
        _stopped(self.observed.child.pid, self.source.uniform(1, 8))

    def stop_attached(self) -> None:
        """The log is not read for some seconds."""
        _stopped(self.attached_pid, self.source.uniform(1, 8))

    def refuse_exports(self) -> None:
        """The backend answers 503 for some seconds."""
        self.sink.status = 503
        time.sleep(self.source.uniform(1, 8))
        self.sink.status = 200

    def delay_exports(self) -> None:
        """The backend takes a second for each answer."""
        self.sink.delay = 1.0
        time.sleep(self.source.uniform(1, 8))
        self.sink.delay = 0.0
