"""Advice on whether a model fits, and with which of llama-server's flags."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from llamatel.flags.parse import describe
from llamatel.flags.server_settings import ServerSettings
from llamatel.plan.cache_plan import CachePlan
from llamatel.plan.devices import Device
from llamatel.plan.expert_search import ExpertOffload
from llamatel.plan.fit_search import balanced, largest_context
from llamatel.plan.memory_plan import GIB, MIB, MemoryPlan, memory_plan, uncounted
from llamatel.plan.model_shape import ModelShape


def devices_in_words(devices: Sequence[Device]) -> str:
    """``2 x Tesla T4``."""
    return " + ".join(f"{n} x {name}" if n > 1 else name for name, n in Counter(d.name for d in devices).items())


def uncounted_in_words(names: Sequence[str]) -> str:
    """``what --rpc changes, the projector's compute buffer``: flags and variables first, then the other names."""
    flags = [name for name in names if name.startswith(("-", "LLAMA_"))]
    changes = [f"what {', '.join(flags)} changes"] if flags else []
    return ", ".join([*changes, *(name for name in names if name not in flags)])


def _best(found: Sequence[ExpertOffload]) -> list[ExpertOffload]:
    """The longest contexts for each cache type; a shorter one only if it needs fewer blocks on the host."""
    best: list[ExpertOffload] = []
    for each in sorted(found, key=lambda way: (way.settings.cache_type_k != "f16", -(way.settings.ctx_size or 0))):
        same = [other for other in best if other.settings.cache_type_k == each.settings.cache_type_k]
        if not same or each.blocks < same[-1].blocks:
            best.append(each)
    return sorted(best, key=lambda way: way.blocks)[:4]


def _offload(found: ExpertOffload, blocks: int) -> str:
    text = f"fits with the experts of {found.blocks} of {blocks} blocks in host memory: {found.command_line}"
    if found.ceiling is not None:
        return f"{text} (at most {found.ceiling:.3g} tokens/s)"
    host = next((part for part in found.reads if part.name == "host"), None)
    on_devices = [part.seconds for part in found.reads if part.name != "host"]
    if host is None or None in on_devices:
        return text
    devices_ms = 1e3 * sum(each for each in on_devices if each is not None)
    return (
        f"{text} (a token needs at least {devices_ms:.2g} ms of GPU, and reads {host.n_bytes / 1e9:.2g} GB in host "
        "memory: --host-bandwidth GB/S for tokens a second)"
    )


def _flags(settings: ServerSettings, gpu_layers: int, context: int) -> str:
    """The command line: ``-ngl``, then the settings that differ from llama-server's defaults."""
    return f"-ngl {gpu_layers} {describe(replace(settings, gpu_layers=None, ctx_size=context))}"


@dataclass(frozen=True, slots=True)
class Facts:
    """The inputs of the advice."""

    shape: ModelShape
    settings: ServerSettings
    devices: tuple[Device, ...]
    cache: CachePlan
    memory: MemoryPlan
    longest: int | None
    """The largest context that fits on the devices."""
    experts: tuple[ExpertOffload, ...] = ()
    """Ways to fit with experts on the host."""


def advise(facts: Facts) -> Iterator[str]:
    """The advice, line by line, the most important first."""
    shape, settings, cache = facts.shape, facts.settings, facts.cache
    if cache.refused is not None:
        yield f"llama-server does not start with these settings: {cache.refused}"
        if shape.needs_target:
            yield "this model only drafts for another: -m MODEL -md THIS_ONE"
        return
    if facts.memory.refused is not None:
        yield f"llama-server does not load the model: {facts.memory.refused}"
        return
    if shape.aborts is not None:
        yield f"llama-server allocates this memory and then aborts: {shape.aborts}"
    if shape.draft is not None and not (settings.spec_types or shape.draft.drafts_as):
        yield "llama-server loads the draft model, and drafts with it only with --spec-type draft-simple"
    if cache.cells is not None and facts.devices and shape.weights is not None:
        yield from _fit(facts, cache.cells.context)


def _fit(facts: Facts, context: int) -> Iterator[str]:
    settings, memory = facts.settings, facts.memory
    where, left_out = devices_in_words(facts.devices), uncounted(settings)
    if memory.fits is None and left_out:
        room = min((use.free for use in memory.per_device if use.free is not None), default=0)
        left = f"; without that, {room / GIB:.3g} GiB are left" if room > 0 else ""
        yield f"whether it fits on {where} is unknown: the plan does not count {uncounted_in_words(left_out)}{left}"
        if not {"--rpc", "LLAMA_ARG_RPC"}.isdisjoint(left_out):
            yield "to count --rpc, name its devices by their memory: --device rpc:24G+rtx4090"
    elif memory.fits and (memory.offloaded or settings.tensor_overrides):
        layers = memory.total_layers if memory.offloaded else memory.gpu_layers
        yield f"fits on {where}: {_flags(settings, layers, context)}"
        yield from _fit_targets(facts)
        if facts.longest is not None and facts.longest > context:
            yield f"the context can grow to {facts.longest} tokens"
    else:
        yield from _smaller(facts, where, context)


def _fit_targets(facts: Facts) -> Iterator[str]:
    """What llama-server changes by itself (common/fit.cpp) if less than ``-fitt`` is left on a device."""
    settings, uses = facts.settings, facts.memory.per_device
    if not settings.fit or not settings.given.isdisjoint(("gpu_layers", "tensor_split", "tensor_overrides")):
        return
    targets = settings.fit_target_mib * len(uses) if len(settings.fit_target_mib) == 1 else settings.fit_target_mib
    short = [use for use, mib in zip(uses, targets, strict=False) if use.free is not None and use.free < mib * MIB]
    if short:
        yield (
            f"without -ngl llama-server leaves {','.join(map(str, settings.fit_target_mib))} MiB free (-fitt): it "
            "lowers an unset context or keeps layers on the host; with the flags above it does not"
        )


def _smaller(facts: Facts, where: str, context: int) -> Iterator[str]:
    """Settings with which a model that does not fit would fit."""
    shape, settings, memory, devices = facts.shape, facts.settings, facts.memory, facts.devices
    better = balanced(shape, settings, devices)
    if better is not settings:
        found = memory_plan(shape, replace(better, gpu_layers=memory.total_layers), devices)
        if found.fits:
            yield f"fits on {where} with the layers shared out evenly: {_flags(better, memory.total_layers, context)}"
            return
    yield f"does not fit {'as a whole ' if facts.experts else ''}on {where} with -c {context}"
    if facts.experts:
        yield from (_offload(found, len(shape.layers)) for found in _best(facts.experts))
        return
    for kind in (settings.cache_type_k, "q8_0", "q4_0"):
        smaller = replace(better, cache_type_k=kind, cache_type_v=kind, flash_attn="auto")
        possible = largest_context(shape, smaller, devices)
        if possible is not None:
            yield f"fits with {_flags(smaller, memory.total_layers, min(possible, context))}"
    if memory.gpu_layers < memory.total_layers and memory.fits:
        on_host = memory.total_layers - memory.gpu_layers
        yield f"or with {on_host} of {memory.total_layers} layers on the host, slower: -ngl {memory.gpu_layers}"
