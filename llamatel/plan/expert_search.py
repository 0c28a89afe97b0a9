"""Mixture-of-experts models on small GPUs: how few blocks have to keep their experts in host memory (``-ncmoe``).

Everything else, attention and caches included, stays on the devices: experts are most of the weights, and a token reads
only a few of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from llamatel.flags.parse import describe
from llamatel.flags.server_settings import ServerSettings
from llamatel.flags.tensor_override import EXPERTS, TensorOverride
from llamatel.plan.cache_plan import CachePlan, cache_plan
from llamatel.plan.devices import Device
from llamatel.plan.memory_plan import MemoryPlan, memory_plan
from llamatel.plan.model_shape import ModelShape
from llamatel.plan.token_reads import Reads, ceiling, reads

_CONTEXTS = (131072, 65536, 32768, 16384, 8192, 4096)
_TYPES = ("f16", "q8_0")


@dataclass(frozen=True, slots=True)
class ExpertOffload:
    """Settings with which a model fits: ``blocks`` blocks keep their experts on the host."""

    blocks: int
    settings: ServerSettings
    memory: MemoryPlan
    cache: CachePlan
    reads: tuple[Reads, ...]
    ceiling: float | None
    """Tokens a second; None if a bandwidth, such as the host's, is not known."""

    @property
    def command_line(self) -> str:
        """llama-server's flags, without the model."""
        return f"-ngl {self.memory.total_layers} {describe(replace(self.settings, gpu_layers=None))}"


def search(
    shape: ModelShape, settings: ServerSettings, devices: Sequence[Device], host_bandwidth: float | None = None
) -> list[ExpertOffload]:
    """Settings that fit, by context and cache type: the longest context first, then the fewest blocks on the host.

    Empty for a model without experts, with given overrides, and if nothing fits. A context or cache
    type that was given stays; without one, contexts are tried up to the model's.
    """
    if not shape.experts or shape.weights is None or not shape.weights.tensors or not devices:
        return []
    if settings.tensor_overrides or (settings.gpu_layers is not None and settings.gpu_layers <= len(shape.layers)):
        return []
    return [
        found
        for variant in _variants(shape, settings)
        if (found := _fewest(shape, variant, devices, host_bandwidth)) is not None
    ]


def _variants(shape: ModelShape, settings: ServerSettings) -> Iterator[ServerSettings]:
    trained = shape.context_length or _CONTEXTS[-1]
    contexts = (
        [settings.ctx_size] if settings.ctx_size else [each for each in _CONTEXTS if each <= trained] or [trained]
    )
    fixed = not settings.given.isdisjoint(("cache_type_k", "cache_type_v")) or settings.flash_attn == "off"
    for context in contexts:
        if fixed:
            yield replace(settings, ctx_size=context)
            continue
        for kind in _TYPES:
            yield replace(settings, ctx_size=context, cache_type_k=kind, cache_type_v=kind)


def _fewest(
    shape: ModelShape, settings: ServerSettings, devices: Sequence[Device], host_bandwidth: float | None
) -> ExpertOffload | None:
    cache = cache_plan(shape, settings)
    if cache.refused is not None or cache.cells is None:
        return None

    def attempt(blocks: int) -> tuple[ServerSettings, MemoryPlan]:
        overrides = (TensorOverride(EXPERTS, first_blocks=blocks),) if blocks else ()
        tried = replace(settings, tensor_overrides=overrides, gpu_layers=len(shape.layers) + 1)
        return tried, memory_plan(shape, tried, devices, cache)

    low, high = 0, len(shape.layers)
    if not attempt(high)[1].fits:
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if attempt(middle)[1].fits else (middle + 1, high)
    tried, memory = attempt(low)
    return ExpertOffload(
        low,
        tried,
        memory,
        cache,
        reads(cache, memory, host_bandwidth),
        ceiling(shape, cache, memory, host_bandwidth),
    )
