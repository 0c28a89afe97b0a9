"""What flows through llamatel: frozen records, no OpenTelemetry.

Units are SI (seconds, tokens). ``None`` means unknown and emits nothing: an absent number is never a zero.
Times that end in ``_at`` are Unix time in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llamatel.model.shape import ModelShape


class Outcome(str, Enum):
    """How a request ended."""

    OK = "ok"
    CANCELLED = "cancelled"  # the client went away
    ERROR = "error"
    CONTEXT_FULL = "context_full"  # the KV pool was full: llama.cpp's "Context size has been exceeded"


Place = tuple["str | None", "int | None", "str | None"]
"""Address, port and model of a server."""


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """Who a record is about. One per server; a restart keeps address and port and may change the rest."""

    address: str | None
    """Host name, IP address or Unix socket path that clients use; "unknown" for a log without an address; None for a
    model inside of this process."""
    port: int | None = None
    model: str | None = None
    """The model's name as clients see it: its alias, else the file's name."""
    build: str | None = None
    """llama.cpp's build, as the server prints it."""
    backend: str | None = None
    """What runs it: ``llama-server``, ``xllamacpp``, ``llama-cpp-python``; None for a server that we did not start."""
    pid: int | None = None

    def __post_init__(self) -> None:
        """A file's name, or what a server says of itself, may hold bytes that are no text: no exporter takes those."""
        for name in ("address", "model", "build"):
            value = getattr(self, name)
            if isinstance(value, str) and not value.isascii():
                object.__setattr__(self, name, value.encode("utf-8", "replace").decode())

    @property
    def place(self) -> Place:
        """What tells servers, and a router's models, apart in metrics."""
        return self.address, self.port, self.model

    @property
    def shown_address(self) -> str:
        """``127.0.0.1:8090``; ``in-process`` for one that has no address."""
        port = "" if self.port is None else f":{self.port}"
        return f"{self.address or 'in-process'}{port}"


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a request at its place on the clock (Unix seconds)."""

    name: str
    """``prefill`` or ``decode``."""
    started_at: float
    ended_at: float


@dataclass(frozen=True, slots=True)
class Call:
    """A request seen from inside of Python (llama-cpp-python), with what a server's log does not tell."""

    operation: str
    """``gen_ai.operation.name``: chat, text_completion, embeddings."""
    in_process: bool
    """False where llama-cpp-python's server took it, for a client."""
    phases: tuple[Phase, ...] = ()
    """A chat format that calls tools may generate several times for one request. A decode lasts as long as the caller
    took to fetch its tokens; ``Completion.decode_s`` is what llama.cpp computed."""
    sampled: int | None = None
    """Tokens that were sampled: those generated, and the one that ended the generation."""
    attributes: Mapping[str, str | int | float | bool | tuple[str, ...]] = field(default_factory=dict)
    """Of the span, beside those that every request has."""
    traceparent: str | None = None
    """The span that was current when it was made, as W3C Trace Context writes it."""
    error_type: str | None = None
    """The exception's class."""


@dataclass(frozen=True, slots=True)
class RequestGpu:
    """What one request took of the GPUs. Energy is of the cards that hold the server, as a whole."""

    energy_j: float | None = None
    """From slot to release; while several requests ran, each is given an equal part of what the cards took."""
    prefill_j: float | None = None
    decode_j: float | None = None
    output_j_per_token: float | None = None
    """``decode_j`` for one of the tokens generated after the first."""
    shared: bool = False
    """Other requests ran at the same time, so the energy is a share and no measurement."""
    integrated: bool = False
    """From samples of the power, where a card has no energy counter."""
    assumed: bool = False
    """The driver does not tell which process is on which card, so all cards that are in use are counted."""
    cost: float | None = None
    """Of the energy, in the currency of the price."""
    bandwidth_utilization: float | None = None
    """Bytes that decoding had to read for this request alone, over what the cards can read in that time. Weights are
    read once for all requests that decode together; the caches of the others come on top."""
    flops_utilization: float | None = None
    """Operations of its prefill over what the cards can do in that time."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One request that ended, as llama.cpp's log tells it (one task in one slot).

    ``started_at`` is when a slot took the request, ``ended_at`` when the slot was released. What the log does not
    say is None: a cancelled request has no token counts and no phases, an embedding no decode.
    """

    server: ServerInfo
    slot: int | None
    """None inside of Python, where there are no slots and no task numbers."""
    task: int | None
    started_at: float
    ended_at: float
    outcome: Outcome
    error: str | None = None
    """llama.cpp's own error text; it holds counts, never prompt text."""
    queue_s: float | None = None
    """Time between arrival and slot. From the log it is an estimate (see ``llama/log/queue_clock.py``)."""
    prefill_s: float | None = None
    decode_s: float | None = None
    first_token_at: float | None = None
    """Where prefill ends and decode starts."""
    prompt_computed: int | None = None
    prompt_cached: int | None = None
    generated: int | None = None
    draft_generated: int | None = None
    draft_accepted: int | None = None
    context_tokens: int | None = None
    """Tokens in the slot's context when it was released."""
    truncated: bool | None = None
    context_shifts: int = 0
    is_child: bool = False
    """A further choice (``n`` > 1) of another request."""
    call: Call | None = None
    """None for a request that llama.cpp's log told."""
    in_flight: tuple[float, ...] = ()
    """When the requests that still ran as this one ended had taken their slots (Unix time)."""
    gpu: RequestGpu | None = None
    """None where there is no GPU that llamatel can read, or none that the server uses."""

    @property
    def prompt_tokens(self) -> int | None:
        """Tokens of the prompt, cached ones included."""
        if self.prompt_computed is None or self.prompt_cached is None:
            return None
        return self.prompt_computed + self.prompt_cached

    @property
    def arrived_at(self) -> float:
        """When the request arrived: the slot's start where the queue time is unknown."""
        return self.started_at - (self.queue_s or 0.0)

    @property
    def duration_s(self) -> float:
        """From arrival (or slot start, where that is unknown) to release."""
        return self.ended_at - self.arrived_at

    @property
    def time_to_first_token_s(self) -> float | None:
        """Queue plus prefill; None unless both are known. Inside of Python nothing waits."""
        if self.first_token_at is None or (self.queue_s is None and self.call is None):
            return None
        return self.first_token_at - self.arrived_at

    @property
    def time_per_output_token_s(self) -> float | None:
        """Decode time over the tokens after the first; None below two tokens."""
        tokens = self.generated if self.call is None else self.call.sampled
        if self.decode_s is None or tokens is None or tokens < 2:
            return None
        return self.decode_s / (tokens - 1)

    @property
    def tokens_per_second(self) -> float | None:
        """Decode rate by llama.cpp's definition: tokens after the first over decode time."""
        tpot = self.time_per_output_token_s
        return 1.0 / tpot if tpot else None


@dataclass(frozen=True, slots=True)
class ObservedRequest:
    """A request of a server without a log, as looks at its slot show it: at work from the first to the last.

    It began before the first and ended after the last, by up to the time between two looks: no time here is exact, and
    how it ended is not known.
    """

    server: ServerInfo
    slot: int
    task: int
    first_seen_at: float
    last_seen_at: float
    longest_s: float | None = None
    """It took no longer: from the look before the first to the one after the last. None where there was none before."""
    prompt_tokens: int | None = None
    """Cached ones included; None unless it was seen generating, when all of the prompt is processed."""
    decoded: int | None = None
    """Tokens that it had generated at the last look."""


@dataclass(frozen=True, slots=True)
class ClientCall:
    """One call of our client that asked a model for something, as the client saw it."""

    key: object
    """What tells it from others, also while it was under way."""
    span: object
    """The context that holds its span; opaque."""
    server: ServerInfo
    """Whom it asked; the model is the one that it named."""
    operation: str
    """``gen_ai.operation.name``: chat, text_completion, embeddings or rerank."""
    started_at: float
    sent_at: float
    """When it was sent, the last time if there were several."""
    ended_at: float
    outcome: Outcome
    error_type: str | None = None
    headers_at: float | None = None
    """When its answer began; of streams only, where that is when a slot took it."""
    first_chunk_at: float | None = None
    chunk_gaps: Sequence[float] = ()
    """Seconds from one chunk of a stream to the next."""
    response_model: str | None = None
    input_tokens: int | None = None
    """Cached ones included."""
    output_tokens: int | None = None
    cached_tokens: int | None = None
    prompt_computed: int | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    slot: int | None = None
    modality: str = "text"
    """What its tokens stand for: ``text``, or ``unknown`` where images or sound are among them."""
    tasks: int = 1
    """Requests that llama.cpp makes of it: one for each choice, text or document."""
    elsewhere: bool = False
    """Another process made it, and measures it."""

    @property
    def generates(self) -> bool:
        """Whether it asked for text, and not for vectors or ranks."""
        return self.operation in ("chat", "text_completion")

    @property
    def has_timings(self) -> bool:
        """Whether the answer had llama.cpp's own measurements."""
        return self.prefill_s is not None and self.decode_s is not None

    @property
    def duration_s(self) -> float:
        """The whole call, repeated attempts included."""
        return self.ended_at - self.started_at


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
    settings: Mapping[str, str] = field(default_factory=dict)
    """Settings that explain its behaviour, by the names of llama-server's flags without dashes in front."""
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
