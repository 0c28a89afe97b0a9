"""A plan as one document: what ``llamatel plan --json`` prints. Bytes, tokens, tokens a second; null is unknown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from llamatel.flags.parse import describe, settings_as_dict
from llamatel.flags.server_settings import ServerSettings
from llamatel.plan.advice import Facts, advise
from llamatel.plan.attention_kind import attention_summary
from llamatel.plan.cache_plan import CachePlan, cache_plan
from llamatel.plan.compute_buffers import COMPUTE_ERROR
from llamatel.plan.devices import Device
from llamatel.plan.expert_search import ExpertOffload, search
from llamatel.plan.fit_params import Measured
from llamatel.plan.fit_search import largest_context, most_slots
from llamatel.plan.memory_plan import DeviceUse, HostGrowth, MemoryPlan, host_growth, memory_plan
from llamatel.plan.model_shape import ModelShape
from llamatel.plan.token_reads import Reads, ceiling, reads

TABLE_TYPES = ("f16", "q8_0", "q4_0")
_TABLE_CONTEXTS = (4096, 8192, 16384, 32768, 65536, 131072, 262144, 1048576)


@dataclass(frozen=True)
class PlanReport:
    """The plan for one model, one server and its devices."""

    name: str
    shape: ModelShape
    settings: ServerSettings
    devices: tuple[Device, ...]
    cache: CachePlan
    memory: MemoryPlan
    growth: HostGrowth
    ceiling: float | None
    largest_context: int | None
    most_slots: int | None
    table: tuple[tuple[int, tuple[CachePlan, ...]], ...]
    """By context: the caches with each of ``TABLE_TYPES`` for K and V."""
    advice: tuple[str, ...]
    reads: tuple[Reads, ...] = ()
    """Bytes that a token reads on each device and the host."""
    expert_offload: tuple[ExpertOffload, ...] = ()
    """Settings with which a model with experts fits, if it does not fit entirely on the devices."""
    measured: tuple[Measured, ...] | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        cache, weights = self.cache, self.shape.weights
        known = cache.refused is None and cache.cells is not None
        return {
            "model": self.name,
            "architecture": self.shape.architecture,
            "attention": attention_summary(self.shape),
            "trained_context": self.shape.context_length,
            "settings": settings_as_dict(self.settings),
            "flags_not_counted": list(self.settings.not_counted),
            "flags_unknown": list(self.settings.unknown),
            "kv_cache": {
                **{
                    f"{column}_bytes": cache.bytes_of(column) if known else None
                    for column in ("k", "v", "r", "s", "other")
                },
                "total_bytes": cache.total_bytes if known else None,
                "cells": cache.cells.per_stream if cache.cells else None,
                "streams": cache.cells.streams if cache.cells else None,
                "context": cache.cells.context if cache.cells else None,
                "slots": cache.cells.slots if cache.cells else None,
                "exact": cache.exact,
                "why_not_exact": cache.why_not_exact,
                "parts": [
                    {
                        "kind": part.kind,
                        "drafting": part.drafting,
                        "draft_model": part.separate,
                        "layers": len(part.layers),
                        "cells": part.cells,
                        "streams": part.streams,
                        "bytes": part.total_bytes,
                    }
                    for part in cache.parts
                ],
            },
            "refused": cache.refused or self.memory.refused,
            "weights_bytes": weights.n_bytes if weights else None,
            "weights_unknown": self.shape.weights_unknown,
            "draft_model": None if self.shape.draft is None else _draft(self.shape.draft),
            "gpu_layers": self.memory.gpu_layers,
            "per_device": [_use(use) for use in self.memory.per_device],
            "host": _use(self.memory.host)
            | {
                "prompt_cache_bytes_at_most": self.growth.prompt_cache_bytes,
                "checkpoint_bytes": self.growth.checkpoint_bytes,
                "checkpoints_at_most": self.growth.checkpoints,
            },
            "fits": self.memory.fits,
            "advice": list(self.advice),
            "largest_context": self.largest_context,
            "most_slots": self.most_slots,
            "ceiling_tokens_per_second": self.ceiling,
            "reads_per_token": [_reads(part) for part in self.reads],
            "expert_offload": [
                {
                    "blocks_on_host": found.blocks,
                    "context": found.settings.ctx_size,
                    "cache_type_k": found.settings.cache_type_k,
                    "cache_type_v": found.settings.cache_type_v,
                    "command_line": found.command_line,
                    "per_device": [_use(use) for use in found.memory.per_device],
                    "host_weights_bytes": found.memory.host.weights_bytes,
                    "reads_per_token": [_reads(part) for part in found.reads],
                    "ceiling_tokens_per_second": found.ceiling,
                }
                for found in self.expert_offload
            ],
            "contexts": [
                {"context": context, **{name: _size(plan) for name, plan in zip(TABLE_TYPES, plans, strict=True)}}
                for context, plans in self.table
            ],
            "estimates": {"compute": COMPUTE_ERROR},
            "measured": [asdict(line) for line in self.measured] if self.measured is not None else None,
            "verified_with": cache.verified_with,
        }


def _size(plan: CachePlan) -> int | None:
    return None if plan.refused is not None or plan.cells is None else plan.total_bytes


def _reads(part: Reads) -> dict[str, Any]:
    return {
        "name": part.name,
        "bytes": round(part.n_bytes),
        "bandwidth_bytes_per_second": part.bandwidth,
        "seconds": part.seconds,
    }


def _draft(draft: ModelShape) -> dict[str, Any]:
    return {
        "architecture": draft.architecture,
        "attention": attention_summary(draft),
        "weights_bytes": draft.weights.n_bytes if draft.weights else None,
    }


def _use(use: DeviceUse) -> dict[str, Any]:
    """One device; ``draft_model`` is what the draft model needs in addition."""
    device = use.device
    found = {
        "name": device.name if device else "host",
        "memory_bytes": device.memory if device else None,
        "bandwidth_bytes_per_second": device.bandwidth if device else None,
        "peak_flops_per_second": device.peak_flops if device else None,
        "source": device.source if device else None,
        **_shares(use),
        "expert_cache_bytes": use.expert_cache_bytes,
        "reserved_bytes_estimate": device.reserved if device else None,
        "free_bytes_estimate": use.free,
    }
    return found if use.draft is None else found | {"draft_model": _shares(use.draft)}


def _shares(use: DeviceUse) -> dict[str, Any]:
    return {
        "layers": use.layers,
        "weights_bytes": use.weights_bytes,
        "kv_cache_bytes": use.cache_bytes,
        "compute_bytes_estimate": use.compute_estimate,
    }


def contexts_for(shape: ModelShape, settings: ServerSettings) -> list[int]:
    """Contexts for the table: powers of two up to the model's own, and the requested one."""
    trained = shape.context_length or max(_TABLE_CONTEXTS)
    chosen = {context for context in _TABLE_CONTEXTS if context <= trained} | {trained}
    return sorted(chosen | ({settings.ctx_size} if settings.ctx_size else set()))


def make_report(
    name: str,
    shape: ModelShape,
    settings: ServerSettings,
    devices: Sequence[Device] = (),
    *,
    measured: Sequence[Measured] | None = None,
    host_bandwidth: float | None = None,
) -> PlanReport:
    """Compute the plan. ``host_bandwidth`` is the bandwidth of host memory in bytes a second."""
    cache = cache_plan(shape, settings)
    memory = memory_plan(shape, settings, devices, cache)
    table = []
    for context in contexts_for(shape, settings):
        variants = [replace(settings, ctx_size=context, cache_type_k=name, cache_type_v=name) for name in TABLE_TYPES]
        table.append((context, tuple(cache_plan(shape, variant) for variant in variants)))
    each = cache.cells.per_stream if cache.cells else 0
    searchable = bool(devices) and cache.refused is None and cache.cells is not None
    longest = largest_context(shape, settings, devices) if searchable else None
    whole = memory.fits and memory.offloaded
    experts = () if whole or not searchable else tuple(search(shape, settings, devices, host_bandwidth))
    return PlanReport(
        name,
        shape,
        settings,
        tuple(devices),
        cache,
        memory,
        host_growth(settings, cache),
        ceiling(shape, cache, memory, host_bandwidth),
        longest,
        most_slots(shape, settings, devices, each) if searchable else None,
        tuple(table),
        tuple(advise(Facts(shape, settings, tuple(devices), cache, memory, longest, experts))),
        reads(cache, memory, host_bandwidth),
        experts,
        None if measured is None else tuple(measured),
    )


def settings_in_words(settings: ServerSettings) -> str:
    """``llama-server's defaults``, or the flags that differ from them."""
    return describe(settings) or "llama-server's defaults"
