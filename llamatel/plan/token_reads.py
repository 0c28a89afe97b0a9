"""Bytes that one token reads on each device and the host, and the token rate that memory bandwidth allows."""

from __future__ import annotations

from dataclasses import dataclass

from llamatel.plan.cache_plan import CachePlan
from llamatel.plan.memory_plan import MemoryPlan
from llamatel.plan.model_shape import ModelShape


@dataclass(frozen=True, slots=True)
class Reads:
    """Bytes that one token of a full context reads on one device or the host."""

    name: str
    n_bytes: float
    bandwidth: float | None
    """Bytes a second; None if unknown."""

    @property
    def seconds(self) -> float | None:
        """The shortest possible reading time."""
        return self.n_bytes / self.bandwidth if self.bandwidth else None


def reads(cache: CachePlan, plan: MemoryPlan, host_bandwidth: float | None = None) -> tuple[Reads, ...]:
    """Bytes of weights, keys, values and states that one token reads, by device, and on the host if any."""
    streams = cache.cells.slots if cache.cells and cache.cells.streams > 1 else 1
    parts = [
        Reads(each.device.name, each.read_bytes + each.cache_bytes / streams, each.device.bandwidth)
        for each in plan.per_device
        if each.device is not None
    ]
    on_host = plan.host.read_bytes + plan.host.cache_bytes / streams
    return (*parts, Reads("host", on_host, host_bandwidth)) if on_host else tuple(parts)


def ceiling(shape: ModelShape, cache: CachePlan, plan: MemoryPlan, host_bandwidth: float | None = None) -> float | None:
    """The highest token rate that memory bandwidth allows one sequence with a full context.

    Every token reads its weights and its sequence's keys, values and states, on one device after another. None if a
    bandwidth is unknown.
    """
    weights = shape.weights
    if weights is None or not weights.n_bytes or not plan.per_device:
        return None
    seconds = [part.seconds for part in reads(cache, plan, host_bandwidth) if part.n_bytes]
    known = [each for each in seconds if each is not None]
    return 1 / sum(known) if known and len(known) == len(seconds) else None
