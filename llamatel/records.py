"""What is told of requests, and of the servers that they went to: frozen records, no OpenTelemetry.

Units are SI (seconds, tokens). ``None`` means unknown and emits nothing: an absent number is never a zero.
Times that end in ``_at`` are Unix time in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum


class Outcome(str, Enum):
    """How a request ended."""

    OK = "ok"
    CANCELLED = "cancelled"  # the client went away
    ERROR = "error"
    CONTEXT_FULL = "context_full"  # the KV pool was full: llama.cpp's "Context size has been exceeded"


ServerKey = tuple["str | None", "int | None", "str | None"]
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
    def key(self) -> ServerKey:
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
