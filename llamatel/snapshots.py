"""State of the observed servers at one time: frozen, without OpenTelemetry.

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
    """Counts of the log reader for one server, since llamatel started to observe it."""

    lines: Mapping[str, int] = field(default_factory=dict)
    """Lines by kind: request, server, other, malformed."""
    requests_lost: int = 0
    """Requests whose end is missing from the log."""
    understood: bool | None = None
    """False if llama.cpp's counters grow without requests in the log; None before there is evidence."""
    rejected: Mapping[str, int] = field(default_factory=dict)
    """Requests that were rejected before they got a slot, by reason."""
    silent_s: float | None = None
    """Seconds without a line while llama.cpp counted tokens, 0 while lines arrive; None where it has no counter."""
    bytes_lost: int = 0
    """Bytes of the log that were lost before they could be read."""
    contradictions: Mapping[str, int] = field(default_factory=dict)
    """Contradictions between the log and llama.cpp's own figures, by kind."""
    names_limited: int = 0
    """Lines of a router's log whose model counts as ``other``."""


@dataclass(frozen=True, slots=True)
class SlotState:
    """One slot of a server, from ``/slots``."""

    id: int
    busy: bool
    context_size: int | None = None
    """Maximum number of tokens of this slot; in a unified pool the sum over the slots exceeds the pool."""
    context_tokens: int | None = None
    """Tokens in the KV cache; they remain after the request until they are overwritten."""
    task: int | None = None
    """llama.cpp's task number of the current or last request."""
    prompt_computed: int | None = None
    """Prompt tokens processed so far; None while it is idle."""
    prompt_cached: int | None = None
    decoded: int | None = None
    """Tokens generated so far by the current request; None while it is idle."""
    decode_rate: float | None = None
    """Tokens per second of that request since the previous poll."""
    speculative: bool | None = None
    """Whether speculative decoding was set up for it."""


@dataclass(frozen=True, slots=True)
class KvCacheState:
    """The KV cache of one server at one moment, in tokens and in bytes."""

    capacity: int | None = None
    """Tokens that fit into the pool: one pool for all slots if ``unified``, else the sum of the slots' shares."""
    unified: bool | None = None
    active: int | None = None
    """Tokens of running requests."""
    cached: int | None = None
    """Tokens that idle slots hold; reclaimable."""
    planned_bytes: Mapping[str, int] = field(default_factory=dict)
    """Size by part (k, v, recurrent, other) as computed from the GGUF; only where that is known to be exact."""
    reported_bytes: Mapping[str, int] = field(default_factory=dict)
    """Size by part as llama.cpp reported it, at the resolution of its log (0.01 MiB)."""
    plan_error_bytes: int | None = None
    """Reported minus planned bytes, 0 if they agree within the log's rounding; None if not compared. If they do not
    agree, ``planned_bytes`` is empty."""
    used_bytes: Mapping[str, int] = field(default_factory=dict)
    """By part, bytes of active and cached tokens. A sliding window is bounded by its cells, a recurrent state has a
    fixed size."""

    @property
    def is_known(self) -> bool:
        """Whether any number is known."""
        return (self.capacity, self.active, self.cached) != (None,) * 3 or bool(
            self.planned_bytes or self.reported_bytes
        )

    @property
    def headroom(self) -> int | None:
        """Tokens left for running requests: free ones, and those that idle slots hold."""
        if self.capacity is None or self.active is None:
            return None
        return max(0, self.capacity - self.active)


@dataclass(frozen=True, slots=True)
class PromptCacheState:
    """The prompts that llama.cpp keeps in host memory (``--cache-ram``), from its log at ``-lv 4``."""

    entries: int
    size_bytes: int
    """At the resolution of the log: 0.001 MiB."""


@dataclass(frozen=True, slots=True)
class ProcessState:
    """The server's process, from the operating system."""

    cpu_user_s: float | None = None
    cpu_system_s: float | None = None
    memory_bytes: int | None = None
    """Resident set."""

    @property
    def cpu_s(self) -> float | None:
        """User and system time together."""
        if self.cpu_user_s is None or self.cpu_system_s is None:
            return None
        return self.cpu_user_s + self.cpu_system_s


@dataclass(frozen=True, slots=True)
class RouterModel:
    """Events of one of a router's models since llamatel started to observe it."""

    loads: int | None = None
    """Times it was loaded; polling can miss some."""
    evictions: int | None = None
    """Times it was unloaded to make room for another; known from the router's log only."""
    failures: int | None = None
    """Times its process failed to load it, or crashed."""


@dataclass(frozen=True, slots=True)
class CountGaps:
    """What the totals of one of a router's models lack since llamatel started to observe it."""

    unloads: int
    """Times its process exited with counts that neither a poll nor the log has shown."""
    requests: int | None = None
    """Requests that ran at the last poll of such a process; None where the log has them."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where llama.cpp placed a model, from its log. At ``-lv 3`` it only reports that there is no GPU."""

    gpu_layers: int | None = None
    """Layers on GPUs, the output counted as one; known at ``-lv 4``."""
    total_layers: int | None = None
    no_gpu: bool = False
    """Whether llama.cpp found no usable GPU."""
    buffers: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Bytes by device (``CUDA0``, ``CPU``) and part (``weights``, ``kv_cache``, ``compute``); at ``-lv 4``, rounded to
    0.01 MiB."""


@dataclass(frozen=True, slots=True)
class DeviceSnapshot:
    """One GPU, or one MIG slice, at one time. SI units; None if the driver does not report it."""

    id: str
    """The driver's UUID."""
    name: str
    taken_at: float
    driver: str | None = None
    parent: str | None = None
    """For a MIG slice: the UUID of its GPU."""
    utilization: float | None = None
    """Share of the time in which a kernel ran."""
    memory_used: int | None = None
    """Memory of all processes, without the driver's own."""
    memory_reserved: int | None = None
    memory_limit: int | None = None
    processes: Mapping[int, int | None] | None = None
    """Bytes by process; None if the driver does not list them."""
    processes_complete: bool = True
    """False where only processes that compute are listed, without those that draw, such as Vulkan's."""
    power_w: float | None = None
    power_limit_w: float | None = None
    energy_j: float | None = None
    """Cumulative: the driver's counter, else the integral of the power since llamatel started."""
    temperature_c: float | None = None
    temperature_limit_c: float | None = None
    clocks_hz: Mapping[str, float] = field(default_factory=dict)
    """By domain: sm, memory."""
    clock_limits_hz: Mapping[str, float] = field(default_factory=dict)
    throttled_by: tuple[str, ...] | None = None
    """Current throttle reasons, of ``llamatel.gpu.nvml.THROTTLES``; None if unknown."""
    bandwidth: float | None = None
    """Peak bandwidth in bytes per second."""
    peak_flops: float | None = None
    """Dense FP16."""


@dataclass(frozen=True, slots=True)
class ServerSnapshot:
    """One server, or one of a router's models, at one moment."""

    server: ServerInfo
    up: bool | None
    """None if only the log of the server is available."""
    state: str | None = None
    """starting, ready, stalled, sleeping, stopping, stopped, failed; of a router's model: unloaded, loading, loaded,
    stalled, sleeping, failed."""
    stale: bool = False
    """Whether the server was too busy to respond: all fields except ``up`` are from an earlier poll."""
    restarts: int | None = None
    process_started_at: float | None = None
    loading_s: float | None = None
    counters: Mapping[str, float] = field(default_factory=dict)
    """llama.cpp's counters by their names without the ``llamacpp:`` prefix, carried across restarts."""
    deferred: int | None = None
    """Requests that wait for a slot."""
    busy_slots_per_step: float | None = None
    """Mean over all decode steps of its process."""
    slots: tuple[SlotState, ...] | None = None
    """None if unknown; a sleeping server is not polled for its slots."""
    decode_rate: float | None = None
    """Tokens per second of all slots together, from the change of ``SlotState.decoded``."""
    kv_cache: KvCacheState | None = None
    context_shifts: int | None = None
    prompt_cache: PromptCacheState | None = None
    process: ProcessState | None = None
    model: ModelShape | None = None
    """From its GGUF; None if the file cannot be read."""
    settings: ServerSettings | None = None
    """Settings from its flags and environment, completed by its log; None if its flags are unknown."""
    router_model: RouterModel | None = None
    """Set for one of a router's models. Whether the router is up is in its own snapshot."""
    count_gaps: CountGaps | None = None
    placement: Placement | None = None
    """Where the model was placed; None before its log shows it."""
    log: LogCounts | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """State of all observed servers and GPUs, taken once per export cycle."""

    taken_at: float
    servers: tuple[ServerSnapshot, ...] = ()
    records_dropped: Mapping[str, int] = field(default_factory=dict)
    """Records lost by llamatel, by reason."""
    devices: tuple[DeviceSnapshot, ...] = ()
    """GPUs of this machine; empty if there are none or the driver does not respond."""
