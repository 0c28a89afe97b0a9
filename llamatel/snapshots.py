"""The state of what is watched, at one moment: frozen, no OpenTelemetry.

Units as in ``records``; None means unknown and emits nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llamatel.records import ServerInfo

if TYPE_CHECKING:
    from llamatel.flags.server_settings import ServerSettings
    from llamatel.plan.model_shape import ModelShape


@dataclass(frozen=True, slots=True)
class LogCounts:
    """What the log reader has seen of one server, since it was first watched."""

    lines: Mapping[str, int] = field(default_factory=dict)
    """Lines by kind: request, server, other, malformed."""
    requests_started: int = 0
    requests_lost: int = 0
    """Requests whose end could not be told (lines were missing)."""
    understood: bool | None = None
    """False once llama.cpp counts tokens that the log never showed; None before there is anything to judge by."""


@dataclass(frozen=True, slots=True)
class SlotState:
    """One slot of a server at one moment, as ``/slots`` tells it."""

    id: int
    busy: bool
    context_size: int | None = None
    """Tokens that this slot may hold at most; in a unified pool the sum over the slots exceeds the pool."""
    context_tokens: int | None = None
    """Tokens that it holds in the KV cache; they stay after the request until they are overwritten."""
    task: int | None = None
    """llama.cpp's number of the request that it works on, or worked on last."""
    prompt_computed: int | None = None
    """Prompt tokens processed so far; None while it is idle."""
    prompt_cached: int | None = None
    decoded: int | None = None
    """Tokens generated so far by the request that it works on; None while it is idle."""
    decode_rate: float | None = None
    """Tokens a second of that request since the look before."""
    speculative: bool | None = None
    """Whether speculative decoding was set up for it."""


@dataclass(frozen=True, slots=True)
class KvCacheState:
    """The KV cache of one server at one moment, in tokens and in bytes."""

    capacity: int | None = None
    """Tokens that fit into the pool: one pool for all slots if ``unified``, else the slots' shares together."""
    unified: bool | None = None
    active: int | None = None
    """Tokens of requests that run now."""
    cached: int | None = None
    """Tokens that idle slots still hold: reclaimable."""
    planned_bytes: Mapping[str, int] = field(default_factory=dict)
    """Size by part (k, v, recurrent, other) as computed from the GGUF; only where that is known to be exact."""
    reported_bytes: Mapping[str, int] = field(default_factory=dict)
    """Size by part as llama.cpp reported it, at the resolution of its log (0.01 MiB)."""
    used_bytes: Mapping[str, int] = field(default_factory=dict)
    """By part, what active and cached tokens take: a sliding window holds no more than its cells, a recurrent state
    the same whatever the length."""

    @property
    def headroom(self) -> int | None:
        """Tokens that running requests can still take: what is free and what idle slots would give up."""
        if self.capacity is None or self.active is None:
            return None
        return max(0, self.capacity - self.active)


@dataclass(frozen=True, slots=True)
class PromptCacheState:
    """The prompts that llama.cpp keeps in host memory (``--cache-ram``), as its log says at ``-lv 4`` alone."""

    entries: int
    size_bytes: int
    """At the resolution of the log: 0.001 MiB."""


@dataclass(frozen=True, slots=True)
class ProcessState:
    """The server's process, as the operating system tells it."""

    cpu_s: float | None = None
    memory_bytes: int | None = None
    """Resident set."""


@dataclass(frozen=True, slots=True)
class RouterModel:
    """What became of one of a router's models since it was first watched."""

    loads: int | None = None
    """Times it was loaded; polling may miss some."""
    evictions: int | None = None
    """Times it was unloaded to make room for another; only the router's log tells."""
    failures: int | None = None
    """Times its process failed to load it, or died."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where llama.cpp's log says that a model went. At ``-lv 3`` it only says when there is no GPU at all."""

    gpu_layers: int | None = None
    """Layers on GPUs, the output counted as one; known at ``-lv 4``."""
    total_layers: int | None = None
    no_gpu: bool = False
    """It found no GPU that it can use."""
    buffers: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Bytes by device (``CUDA0``, ``CPU``) and part (``weights``, ``kv_cache``, ``compute``); at ``-lv 4``, rounded to
    0.01 MiB."""


@dataclass(frozen=True, slots=True)
class DeviceSnapshot:
    """One GPU, or one MIG slice of one, at one moment. SI units; None is what the driver does not tell."""

    id: str
    """The driver's UUID."""
    name: str
    taken_at: float
    driver: str | None = None
    parent: str | None = None
    """Of a MIG slice: the UUID of its GPU."""
    utilization: float | None = None
    """Share of the time in which a kernel ran."""
    memory_used: int | None = None
    """By all processes, without what the driver keeps for itself."""
    memory_reserved: int | None = None
    memory_limit: int | None = None
    processes: Mapping[int, int | None] | None = None
    """Bytes by process; None where the driver does not list them."""
    power_w: float | None = None
    power_limit_w: float | None = None
    energy_j: float | None = None
    """Since some moment in the past: the driver's counter, else the integral of the power since llamatel started."""
    energy_integrated: bool = False
    temperature_c: float | None = None
    temperature_limit_c: float | None = None
    clocks_hz: Mapping[str, float] = field(default_factory=dict)
    """By domain: sm, memory."""
    clock_limits_hz: Mapping[str, float] = field(default_factory=dict)
    throttled_by: tuple[str, ...] | None = None
    """What holds its clocks down now, of ``llamatel.gpu.nvml.THROTTLES``; None where unknown."""
    bandwidth: float | None = None
    """Peak, bytes a second."""
    peak_flops: float | None = None
    """Dense FP16."""


@dataclass(frozen=True, slots=True)
class ServerSnapshot:
    """One server at one moment; of a router, one of its models."""

    server: ServerInfo
    up: bool | None
    """None for a server whose log is all we have."""
    state: str | None = None
    """starting, ready, sleeping, stopping, stopped, failed; of a router's model: unloaded, loading, loaded, sleeping,
    failed."""
    stale: bool = False
    """True where the server was too busy to answer: what follows is its last answer, except ``up``."""
    restarts: int | None = None
    process_started_at: float | None = None
    loading_s: float | None = None
    counters: Mapping[str, float] = field(default_factory=dict)
    """llama.cpp's own counters by their names without the ``llamacpp:`` prefix, carried across restarts."""
    deferred: int | None = None
    """Requests that wait for a slot."""
    slots: tuple[SlotState, ...] | None = None
    """None where they are not known; a sleeping server's are not asked for."""
    decode_rate: float | None = None
    """Tokens a second that all slots together decode now, from the change of ``SlotState.decoded``."""
    kv_cache: KvCacheState | None = None
    context_shifts: int | None = None
    prompt_cache: PromptCacheState | None = None
    process: ProcessState | None = None
    model: ModelShape | None = None
    """What its GGUF says; None where the file cannot be read from here."""
    settings: ServerSettings | None = None
    """What its flags and environment come to, completed by its log; None where its flags are not known."""
    router_model: RouterModel | None = None
    """Set if this is one of a router's models; whether the router is up, its own snapshot says."""
    placement: Placement | None = None
    """Where its log says that the model went; None where it has said nothing yet."""
    log: LogCounts | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of everything that is watched, taken once an export cycle."""

    taken_at: float
    servers: tuple[ServerSnapshot, ...] = ()
    records_dropped: Mapping[str, int] = field(default_factory=dict)
    """Records lost on our side, by reason."""
    devices: tuple[DeviceSnapshot, ...] = ()
    """GPUs of this machine; empty where there are none, and where the driver does not answer."""
