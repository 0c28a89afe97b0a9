"""Bytes that one token reads in each part of the machine, and the speed that memory bandwidth allows."""

from __future__ import annotations

from dataclasses import dataclass

from llamatel.plan.cache_plan import CachePlan
from llamatel.plan.memory_plan import MemoryPlan
from llamatel.plan.model_shape import ModelShape


@dataclass(frozen=True, slots=True)
class Reads:
    """What one token of a sequence that fills the context reads in one part of the machine."""

    name: str
    n_bytes: float
    bandwidth: float | None
    """Bytes a second; None where that is unknown."""

    @property
    def seconds(self) -> float | None:
        """The shortest possible time."""
        return self.n_bytes / self.bandwidth if self.bandwidth else None


def reads(cache: CachePlan, plan: MemoryPlan, host_bandwidth: float | None = None) -> tuple[Reads, ...]:
    """Weights, keys, values and states that one token reads, by device, and on the host where it reads there."""
    streams = cache.cells.slots if cache.cells and cache.cells.streams > 1 else 1
    parts = [
        Reads(each.device.name, each.read_bytes + each.cache_bytes / streams, each.device.bandwidth)
        for each in plan.per_device
        if each.device is not None
    ]
    on_host = plan.host.read_bytes + plan.host.cache_bytes / streams
    return (*parts, Reads("host", on_host, host_bandwidth)) if on_host else tuple(parts)


def ceiling(shape: ModelShape, cache: CachePlan, plan: MemoryPlan, host_bandwidth: float | None = None) -> float | None:
    """The most tokens a second that memory bandwidth allows one sequence that fills the context.

    Every token reads the weights it uses and the keys, values and states of its sequence, in one part of the machine
    after another. None where a bandwidth is not known.
    """
    weights = shape.weights
    if weights is None or not weights.n_bytes or not plan.per_device:
        return None
    seconds = [part.seconds for part in reads(cache, plan, host_bandwidth) if part.n_bytes]
    known = [each for each in seconds if each is not None]
    return 1 / sum(known) if known and len(known) == len(seconds) else None
