"""GPUs: driver readings, what a server has on them, the energy of requests and their utilisation.

Names are those of the semantic conventions (docs/hardware) where there is one. Without an NVIDIA GPU there is nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from llamatel.collectors import Collector, Sample
from llamatel.errors import UsageError
from llamatel.flags.server_settings import ServerSettings
from llamatel.gpu.ceilings import decode_ceiling
from llamatel.gpu.gpu_memory import memory_parts
from llamatel.gpu.gpu_source import GpuSource
from llamatel.gpu.nvml import THROTTLES
from llamatel.gpu.offload import devices_of, fell_back, process_bytes
from llamatel.records import Completion
from llamatel.snapshots import DeviceSnapshot, ServerSnapshot, Snapshot

PRICE_VARIABLE = "LLAMATEL_PRICE_PER_KWH"


class GpuCollector(Collector):
    """Hardware, offload, memory by part, energy, utilisation."""

    name = "gpu"

    def __init__(self, source: GpuSource | None = None) -> None:
        """Raises UsageError for a price that is no number."""
        self._source = GpuSource(price_per_kwh=_price()) if source is None else source

    def start(self) -> None:
        """Start reading the driver."""
        self._source.start()

    def stop(self) -> None:
        """Stop reading."""
        self._source.stop()

    def complete(self, completion: Completion) -> Completion:
        """Energy and utilisation of a request."""
        return self._source.complete(completion)

    def complete_snapshot(self, snapshot: Snapshot) -> Snapshot:
        """The GPUs."""
        return self._source.complete_snapshot(snapshot)

    def on_completion(self, completion: Completion) -> Iterator[Sample]:
        """Energy and utilisation of one request, as far as they are known."""
        gpu = completion.gpu
        if gpu is None:
            return
        server = completion.server
        for metric, value in (
            ("llamacpp.request.energy", gpu.energy_j),
            ("llamacpp.request.output_token.energy", gpu.output_j_per_token),
            ("llamacpp.request.bandwidth_utilization", gpu.bandwidth_utilization),
            ("llamacpp.request.flops_utilization", gpu.flops_utilization),
            ("llamacpp.energy.cost", gpu.cost),
        ):
            if value is not None:
                yield Sample(metric, value, server)
        if gpu.prefill_j is not None and gpu.decode_j is not None:
            yield Sample("llamacpp.energy", gpu.prefill_j, server, {"phase": "prefill"})
            yield Sample("llamacpp.energy", gpu.decode_j, server, {"phase": "decode"})
        elif gpu.energy_j is not None:
            yield Sample("llamacpp.energy", gpu.energy_j, server, {"phase": "unknown"})

    def on_snapshot(self, snapshot: Snapshot) -> Iterator[Sample]:
        """The hardware, and each server on it."""
        for device in snapshot.devices:
            yield from _hardware(device)
        for state in snapshot.servers:
            yield from _server(state, snapshot.devices)


def _price() -> float | None:
    text = os.environ.get(PRICE_VARIABLE, "").strip()
    if not text:
        return None
    try:
        price = float(text)
    except ValueError:
        price = -1.0
    if not 0 <= price < float("inf"):
        raise UsageError(f"{PRICE_VARIABLE} is '{text}': it must be a price for one kWh, such as 0.30")
    return price


def _about(device: DeviceSnapshot) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {
        "hw.id": device.id, "hw.name": device.name, "hw.type": "gpu", "hw.vendor": "NVIDIA",
    }  # fmt: skip
    if device.driver is not None:
        attributes["hw.driver_version"] = device.driver
    if device.parent is not None:
        attributes["hw.parent"] = device.parent
    return attributes


def _hardware(device: DeviceSnapshot) -> Iterator[Sample]:
    about = _about(device)
    used, limit = device.memory_used, device.memory_limit
    for metric, value in (
        ("hw.gpu.utilization", device.utilization),
        ("hw.gpu.memory.usage", used),
        ("hw.gpu.memory.limit", limit),
        ("hw.gpu.memory.utilization", used / limit if used is not None and limit else None),
        ("hw.power", device.power_w),
        ("llamatel.gpu.power.limit", device.power_limit_w),
        ("hw.energy", device.energy_j),
        ("hw.temperature", device.temperature_c),
        ("hw.temperature.limit", device.temperature_limit_c),
    ):
        if value is not None:
            yield Sample(metric, value, None, about)
    for metric, clocks in (
        ("llamatel.gpu.clock", device.clocks_hz),
        ("llamatel.gpu.clock.limit", device.clock_limits_hz),
    ):
        for domain, hertz in clocks.items():
            yield Sample(metric, hertz, None, {**about, "domain": domain})
    if device.throttled_by is not None:
        for reason in THROTTLES.values():
            yield Sample(
                "llamatel.gpu.throttled", int(reason in device.throttled_by), None, {**about, "reason": reason}
            )


def _server(state: ServerSnapshot, devices: tuple[DeviceSnapshot, ...]) -> Iterator[Sample]:
    fallen = fell_back(state, devices)
    if fallen is not None:
        yield Sample("llamacpp.gpu.fallback", int(fallen), state.server)
    placement = state.placement
    if placement is not None and placement.gpu_layers is not None and placement.total_layers is not None:
        yield Sample("llamacpp.gpu.layers", placement.gpu_layers, state.server, {"type": "gpu"})
        yield Sample("llamacpp.gpu.layers", placement.total_layers, state.server, {"type": "total"})
    holding, _ = devices_of(state, devices)
    for device in holding:
        held = process_bytes(state, device)
        if held is not None:
            about: dict[str, str | int] = {"hw.id": device.id, "hw.name": device.name}
            yield Sample("llamacpp.gpu.memory.used", held, state.server, about)
    for part, source, size in memory_parts(state, holding):
        yield Sample("llamacpp.gpu.memory.size", size, state.server, {"part": part, "source": source})
    if holding and state.model is not None:
        capacity = None if state.kv_cache is None else state.kv_cache.capacity
        settings = state.settings or ServerSettings()
        for name, context in (("start", 1), ("end", capacity)):
            if context:
                ceiling = decode_ceiling(state.model, settings, holding, context)
                if ceiling is not None:
                    yield Sample("llamacpp.decode.ceiling", ceiling, state.server, {"context": name})
