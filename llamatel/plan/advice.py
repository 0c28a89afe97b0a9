"""What to change, in llama-server's flags: the one line that answers "does it fit, and how"."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from llamatel.flags.parse import describe
from llamatel.flags.server_settings import ServerSettings
from llamatel.plan.cache_plan import CachePlan
from llamatel.plan.devices import Device
from llamatel.plan.memory_plan import MemoryPlan, balanced, largest_context, memory_plan
from llamatel.plan.model_shape import ModelShape


def devices_in_words(devices: Sequence[Device]) -> str:
    """``2 x Tesla T4``."""
    return " + ".join(f"{n} x {name}" if n > 1 else name for name, n in Counter(d.name for d in devices).items())


def _flags(settings: ServerSettings, gpu_layers: int, context: int) -> str:
    """The whole command line: ``-ngl``, then whatever else is not llama-server's default."""
    return f"-ngl {gpu_layers} {describe(replace(settings, gpu_layers=None, ctx_size=context))}"


@dataclass(frozen=True, slots=True)
class Facts:
    """What advice rests on."""

    shape: ModelShape
    settings: ServerSettings
    devices: tuple[Device, ...]
    cache: CachePlan
    memory: MemoryPlan
    longest: int | None
    """The largest context that fits on the devices."""


def advise(facts: Facts) -> Iterator[str]:
    """Lines, the answer first."""
    shape, settings, devices = facts.shape, facts.settings, facts.devices
    cache, memory, longest = facts.cache, facts.memory, facts.longest
    if cache.refused is not None:
        yield f"llama-server does not start with these settings: {cache.refused}"
        if shape.needs_target:
            yield "this model only drafts for another: -m MODEL -md THIS_ONE"
        return
    if shape.aborts is not None:
        yield f"llama-server takes this memory and then aborts: {shape.aborts}"
    if shape.draft is not None and not (settings.spec_types or shape.draft.drafts_as):
        yield "llama-server loads the draft model but drafts with it only if told to: --spec-type draft-simple"
    if cache.cells is None or not devices or shape.weights is None:
        return
    where, context = devices_in_words(devices), cache.cells.context
    if memory.fits and memory.offloaded:
        yield f"fits on {where}: {_flags(settings, memory.total_layers, context)}"
        if longest is not None and longest > context:
            yield f"the context can grow to {longest} tokens"
        return
    better = balanced(shape, settings, devices)
    if better is not settings:
        found = memory_plan(shape, replace(better, gpu_layers=memory.total_layers), devices)
        if found.fits:
            yield f"fits on {where} with the layers shared out evenly: {_flags(better, memory.total_layers, context)}"
            return
    yield f"does not fit on {where} with -c {context}"
    for kind in (settings.cache_type_k, "q8_0", "q4_0"):
        smaller = replace(better, cache_type_k=kind, cache_type_v=kind, flash_attn="auto")
        possible = largest_context(shape, smaller, devices)
        if possible is not None:
            yield f"fits with {_flags(smaller, memory.total_layers, min(possible, context))}"
    if memory.gpu_layers < memory.total_layers and memory.fits:
        on_host = memory.total_layers - memory.gpu_layers
        yield f"or with {on_host} of {memory.total_layers} layers on the host, slower: -ngl {memory.gpu_layers}"
