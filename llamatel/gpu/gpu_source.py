"""Reads this machine's GPUs on its own thread, so a driver that hangs or disappears blocks nothing else."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from llamatel.flags.server_settings import ServerSettings
from llamatel.gpu.ceilings import bandwidth_utilization, flops_utilization
from llamatel.gpu.energy import EnergyCurve, InFlight, share
from llamatel.gpu.nvml import DriverLost, NoGpu, Nvml
from llamatel.gpu.offload import devices_of, requested_layers
from llamatel.records import Completion, RequestGpu, ServerInfo
from llamatel.snapshots import DeviceSnapshot, ServerSnapshot, Snapshot

_log = logging.getLogger(__name__)

ENERGY_EVERY_S = 0.2
"""Interval of reading the energy counter; one reading takes 1 to 3 ms."""
DEVICES_EVERY_S = 1.0
STALE_S = 5.0
"""A reading older than this is discarded: the driver hangs."""
_AGAIN_S = 30.0
"""Interval of checking whether a driver that disappeared is back."""
_SERVERS = 64
JOULES_PER_KWH = 3.6e6


class Driver(Protocol):
    """The methods of ``Nvml`` that are used here."""

    def read(self) -> tuple[DeviceSnapshot, ...]:
        """All GPUs."""

    def energy(self) -> dict[str, tuple[float, float | None, float | None]]:
        """By UUID: time, joules of a counter, watts where there is none."""

    def close(self) -> None:
        """Close the driver."""


class GpuSource:
    """Reads the driver, keeps its energy over time, and computes each request's share.

    ``price_per_kwh`` is in any currency; without it there is no cost.
    """

    def __init__(
        self,
        open_driver: Callable[[], Driver] = Nvml,
        *,
        price_per_kwh: float | None = None,
        energy_every_s: float = ENERGY_EVERY_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._open = open_driver
        self._price = price_per_kwh
        self._every = energy_every_s
        self._clock = clock
        self._changed = threading.Condition()
        self._devices: tuple[DeviceSnapshot, ...] = ()
        self._curves: dict[str, EnergyCurve] = {}
        self._read_at = float("-inf")
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._servers: dict[ServerInfo, ServerSnapshot] = {}
        self._in_flight: dict[tuple[str, ...], InFlight] = {}

    def start(self) -> None:
        """Start reading; returns at once."""
        self._ending.clear()
        self._thread = threading.Thread(target=self._run, name="llamatel-gpu", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop; a thread that hangs in the driver is abandoned."""
        self._ending.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(0.5)

    def devices(self) -> tuple[DeviceSnapshot, ...]:
        """The last reading; empty if it is older than ``STALE_S``, and where there is no GPU."""
        with self._changed:
            fresh = self._clock() - self._read_at <= STALE_S
            return self._devices if fresh else ()

    def complete_snapshot(self, snapshot: Snapshot) -> Snapshot:
        """Add the GPUs to a snapshot; keep its servers' state for the energy of their requests."""
        devices = self.devices()
        if devices:
            for state in snapshot.servers:
                self._servers.pop(state.server, None)
                self._servers[state.server] = state
            while len(self._servers) > _SERVERS:
                del self._servers[next(iter(self._servers))]
        return replace(snapshot, devices=devices)

    def complete(self, completion: Completion) -> Completion:
        """Add a request's energy and utilisation. Waits for the next reading, some tenths of a second at most."""
        devices = self.devices()
        if not devices:
            return completion
        state = self._servers.get(completion.server) or ServerSnapshot(completion.server, up=None)
        holding, assumed = devices_of(state, devices)
        if not holding:
            return completion
        gpu = self._energy(completion, holding, assumed=assumed)
        if state.model is not None and _all_on_gpu(state):
            settings = state.settings or ServerSettings()
            gpu = replace(
                gpu,
                bandwidth_utilization=bandwidth_utilization(completion, state.model, settings, holding),
                flops_utilization=flops_utilization(completion, state.model, settings, holding),
            )
        return replace(completion, gpu=gpu)

    def _energy(self, completion: Completion, holding: tuple[DeviceSnapshot, ...], *, assumed: bool) -> RequestGpu:
        start, end, first = completion.started_at, completion.ended_at, completion.first_token_at
        # Servers that share cards share their energy.
        crowd = self._in_flight.setdefault(tuple(device.id for device in holding), InFlight())
        pieces = crowd.crowd(start, end, completion.in_flight)
        crowd.finish(start, end)
        self._wait_past(end)
        with self._changed:
            curves = [self._curves[device.id] for device in holding if device.id in self._curves]
            if len(curves) < len(holding):
                return RequestGpu(assumed=assumed)
            whole = share(curves, pieces, start, end)
            prefill = decode = None
            if completion.decode_s is not None and completion.prefill_s is not None and first is not None:
                prefill, decode = share(curves, pieces, start, first), share(curves, pieces, first, end)
            integrated = any(curve.integrated for curve in curves)
        tokens = (completion.generated or 0) - 1
        return RequestGpu(
            energy_j=whole,
            prefill_j=prefill,
            decode_j=decode,
            output_j_per_token=decode / tokens if decode is not None and tokens > 0 else None,
            shared=any(number > 1 for _, _, number in pieces),
            integrated=integrated,
            assumed=assumed,
            cost=whole / JOULES_PER_KWH * self._price if whole is not None and self._price is not None else None,
        )

    def _wait_past(self, moment: float) -> None:
        """Wait for an energy reading after ``moment``, at most as long as a working driver takes."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._ending.is_set() or self._known_until() >= moment,
                timeout=max(0.0, min(2 * self._every, moment + 2 * self._every - self._clock())),
            )

    def _known_until(self) -> float:
        ends = [curve.last[0] for curve in self._curves.values() if curve.last is not None]
        return min(ends, default=float("-inf"))

    # -- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        was_there = False
        while not self._ending.is_set():
            try:
                driver = self._open()
            except NoGpu as error:
                if not was_there:
                    _log.info("no GPU to measure: %s", error)
                    return
                self._ending.wait(_AGAIN_S)
                continue
            if was_there:
                _log.info("the GPU driver is back")
            was_there = True
            try:
                self._watch(driver)
            except DriverLost as error:
                _log.warning("the GPU driver stopped answering (%s); looking for it again", error)
                with self._changed:
                    self._devices, self._curves = (), {}
                self._ending.wait(_AGAIN_S)
            finally:
                driver.close()

    def _watch(self, driver: Driver) -> None:
        read_at = float("-inf")
        while not self._ending.is_set():
            started = time.monotonic()
            self._record_energy(driver.energy())
            if started - read_at >= DEVICES_EVERY_S - self._every / 2:
                self._record_devices(driver.read())
                read_at = started
            self._ending.wait(max(0.0, self._every - (time.monotonic() - started)))

    def _record_energy(self, readings: dict[str, tuple[float, float | None, float | None]]) -> None:
        with self._changed:
            for device, (at, joules, watts) in readings.items():
                curve = self._curves.setdefault(device, EnergyCurve())
                if joules is not None:
                    curve.counted(at, joules)
                elif watts is not None:
                    curve.measured(at, watts)
            self._changed.notify_all()

    def _record_devices(self, devices: tuple[DeviceSnapshot, ...]) -> None:
        with self._changed:
            self._devices = tuple(self._with_energy(device) for device in devices)
            self._read_at = self._clock()

    def _with_energy(self, device: DeviceSnapshot) -> DeviceSnapshot:
        curve = self._curves.get(device.id)
        if device.energy_j is None and curve is not None and curve.last is not None:
            return replace(device, energy_j=curve.last[1])
        return device


def _all_on_gpu(state: ServerSnapshot) -> bool:
    """False where the CPU is known to compute a part of the model, so that the cards' peaks are meaningless."""
    placement = state.placement
    if placement is not None and placement.gpu_layers is not None and placement.total_layers is not None:
        return placement.gpu_layers >= placement.total_layers
    layers = requested_layers(state)
    return layers is None or state.model is None or layers > len(state.model.layers)
