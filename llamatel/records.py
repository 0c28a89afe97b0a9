"""Records of requests and their servers: frozen, without OpenTelemetry.

Units are SI (seconds, tokens). ``None`` means unknown and emits nothing: an absent number is never a zero.
Times that end in ``_at`` are Unix time in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import dataclass as checked_dataclass
else:

    def checked_dataclass(*, frozen, slots):
        """Frozen for type checkers only: a frozen dataclass takes twice as long to create."""
        return dataclass(slots=slots, unsafe_hash=frozen)


class Outcome(str, Enum):
    """The outcome of a request."""

    OK = "ok"
    CANCELLED = "cancelled"  # the client disconnected
    ERROR = "error"
    CONTEXT_FULL = "context_full"  # the KV pool was full: llama.cpp's "Context size has been exceeded"


FAILED = (Outcome.ERROR, Outcome.CONTEXT_FULL)
"""Outcomes that count as failures; cancellation does not."""


class RecomputeCause(str, Enum):
    """Why prompt tokens were computed again although they had been in the KV cache."""

    SLOT_TAKEN = "slot_taken"  # another conversation had taken the slot: too few slots
    PREFIX_CHANGED = "prefix_changed"  # the client changed the prompt before its end
    NO_CHECKPOINT = "no_checkpoint"  # sliding-window or recurrent state, and no checkpoint to go back to
    CHECKPOINT_EVICTED = "checkpoint_evicted"
    CONTEXT_SHIFT = "context_shift"
    CACHE_CLEARED = "cache_cleared"  # the server slept, or its cache was purged
    PROMPT_CACHE_MISS = "prompt_cache_miss"  # evicted from the prompt cache in host memory (--cache-ram)
    CACHE_PROMPT_OFF = "cache_prompt_off"  # the request switched reuse off
    UNKNOWN = "unknown"

    @property
    def at_most(self) -> bool:
        """Whether its tokens and seconds are upper bounds.

        The log does not name conversations: a prompt that was lost may be the beginning of this one.
        """
        return self in (
            self.SLOT_TAKEN,
            self.PREFIX_CHANGED,
            self.CONTEXT_SHIFT,
            self.CACHE_CLEARED,
            self.PROMPT_CACHE_MISS,
        )


Labels = tuple["tuple[str, str]", ...]
"""Names and values that the user gave a server, sorted by name."""
ServerKey = tuple["str | None", "int | None", "str | None", Labels]
"""Address, port, model and labels of a server."""


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The server of a record. A restart keeps address and port and may change the rest."""

    address: str | None
    """Host name, IP address or Unix socket path that clients use; "unknown" for a log without an address; None for a
    model inside of this process."""
    port: int | None = None
    model: str | None = None
    """The model's name as clients see it: its alias, else the file's name."""
    build: str | None = None
    """llama.cpp's build, as the server prints it."""
    backend: str | None = None
    """``llama-server`` or ``xllamacpp``; ``llama-cpp-python`` for a model in a Python process; None for a server that
    llamatel did not start."""
    pid: int | None = None
    labels: Labels = ()
    """Labels on its series and spans: the user's, and ``server.path`` for one of several servers at an address."""

    def __post_init__(self) -> None:
        """Replace lone surrogates: file names and server responses may contain them, and exporters reject them."""
        for name in ("address", "model", "build"):
            value = getattr(self, name)
            if isinstance(value, str) and not value.isascii():
                object.__setattr__(self, name, value.encode("utf-8", "replace").decode())

    @property
    def key(self) -> ServerKey:
        """Identifies a server, or one of a router's models, in metrics."""
        return self.address, self.port, self.model, self.labels

    @property
    def attributes(self) -> dict[str, str | int]:
        """Its identity on series and spans."""
        own = {"server.address": self.address, "server.port": self.port, "gen_ai.request.model": self.model}
        return {**dict(self.labels), **{name: value for name, value in own.items() if value is not None}}

    @property
    def own_labels(self) -> Labels:
        """The labels that its user gave it; its path is part of its address."""
        return tuple(label for label in self.labels if label[0] != "server.path")

    @property
    def shown_address(self) -> str:
        """``127.0.0.1:8090``, ``llm:443/llama-a``; ``in-process`` without an address."""
        port = "" if self.port is None else f":{self.port}"
        return f"{self.address or 'in-process'}{port}{dict(self.labels).get('server.path', '')}"


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a request (Unix seconds)."""

    name: str
    """``prefill`` or ``decode``."""
    started_at: float
    ended_at: float


@dataclass(frozen=True, slots=True)
class Call:
    """Additional data of a request in this process (llama-cpp-python)."""

    operation: str
    """``gen_ai.operation.name``: chat, text_completion, embeddings."""
    phases: tuple[Phase, ...] = ()
    """A chat format that calls tools may generate several times for one request. A decode lasts as long as the caller
    needed to fetch its tokens; ``Completion.decode_s`` is what llama.cpp computed."""
    sampled: int | None = None
    """Tokens that were sampled: those generated, and the end-of-generation token."""
    attributes: Mapping[str, str | int | float | bool | tuple[str, ...]] = field(default_factory=dict)
    """Additional span attributes."""
    traceparent: str | None = None
    """The span that was current when it was created, in the format of W3C Trace Context."""
    error_type: str | None = None
    """The exception's class."""


@dataclass(frozen=True, slots=True)
class RequestGpu:
    """GPU usage of one request. Energy is that of all GPUs of the server."""

    energy_j: float | None = None
    """From slot to release; concurrent requests share the energy of the GPUs equally."""
    prefill_j: float | None = None
    decode_j: float | None = None
    output_j_per_token: float | None = None
    """``decode_j`` for one of the tokens generated after the first."""
    shared: bool = False
    """Other requests ran at the same time: the energy is a share, not a measurement."""
    integrated: bool = False
    """Integrated from power samples: the GPU has no energy counter."""
    assumed: bool = False
    """The driver does not list processes, so all GPUs in use are counted."""
    cost: float | None = None
    """Cost of the energy, in the currency of the price."""
    bandwidth_utilization: float | None = None
    """Bytes that decoding had to read for this request alone, divided by what the GPUs can read in that time. Weights
    are read once for all requests in a batch; the caches of other requests are not included."""
    flops_utilization: float | None = None
    """Operations of its prefill, divided by what the GPUs can do in that time."""


@dataclass(frozen=True, slots=True)
class Access:
    """A request in the access log of the program in front of llama-server (Ollama); Unix time."""

    started_at: float
    ended_at: float
    method: str
    path: str
    """The path of its URL, without the query."""
    status: int
    client: str | None = None
    """The client's address; only where recording it is enabled."""


@checked_dataclass(frozen=True, slots=True)
class Completion:
    """A finished request, from llama.cpp's log (one task in one slot).

    ``started_at`` is when the slot was assigned, ``ended_at`` when it was released. What the log does not contain is
    None: a cancelled request has no token counts and no phases, an embedding no decode.
    """

    server: ServerInfo
    slot: int | None
    """None in process: there are no slots and task numbers."""
    task: int | None
    started_at: float
    ended_at: float
    outcome: Outcome
    error: str | None = None
    """llama.cpp's own error text; it holds counts, never prompt text."""
    queue_s: float | None = None
    """Time between arrival and slot. From a log it is an estimate (see ``llama/log/queue_clock.py``)."""
    prefill_s: float | None = None
    decode_s: float | None = None
    first_token_at: float | None = None
    """Where prefill ends and decode starts."""
    prompt_computed: int | None = None
    prompt_cached: int | None = None
    prompt_reusable: int | None = None
    """Tokens of the prompt that were reused, or that had been in the cache before (see ``RecomputeCause.at_most``)."""
    prompt_recomputed: int | None = None
    """Tokens that were computed again although they had been in the cache."""
    recompute_s: float | None = None
    """Seconds for recomputed tokens, at the request's own prefill rate."""
    recompute_cause: RecomputeCause | None = None
    """None if no token was computed again; UNKNOWN if the log does not prove a cause."""
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
    """None for a request from a server's log."""
    in_flight: tuple[float, ...] = ()
    """Start times of the requests that were still running when this one finished (Unix time)."""
    gpu: RequestGpu | None = None
    """None without a GPU that llamatel can read and the server uses."""
    access: Access | None = None
    """Its access line in the log of the program in front of llama-server, if exactly one matches."""

    @property
    def tasks(self) -> int:
        """llama.cpp's tasks for it."""
        return 1

    @property
    def outside_s(self) -> float | None:
        """Seconds from its arrival at the program in front of llama-server to llama-server's slot."""
        return None if self.access is None else max(0.0, self.arrived_at - self.access.started_at)

    @property
    def prompt_tokens(self) -> int | None:
        """Tokens of the prompt, including cached ones."""
        if self.prompt_computed is None or self.prompt_cached is None:
            return None
        return self.prompt_computed + self.prompt_cached

    @property
    def arrived_at(self) -> float:
        """Arrival time; the slot's start if the queue time is unknown."""
        return self.started_at - (self.queue_s or 0.0)

    @property
    def duration_s(self) -> float:
        """From arrival (or slot start, if that is unknown) to release."""
        return self.ended_at - self.arrived_at

    @property
    def time_to_first_token_s(self) -> float | None:
        """Queue plus prefill; None unless both are known. There is no queue in process."""
        if self.first_token_at is None or (self.queue_s is None and self.call is None):
            return None
        return self.first_token_at - self.arrived_at

    @property
    def time_per_output_token_s(self) -> float | None:
        """Decode time per token after the first; None below two tokens."""
        tokens = self.generated if self.call is None else self.call.sampled
        if self.decode_s is None or tokens is None or tokens < 2:
            return None
        return self.decode_s / (tokens - 1)

    @property
    def tokens_per_second(self) -> float | None:
        """Decode rate by llama.cpp's definition: tokens after the first divided by decode time."""
        tpot = self.time_per_output_token_s
        return 1.0 / tpot if tpot else None


@checked_dataclass(frozen=True, slots=True)
class GroupedCall(Completion):
    """A call that llama.cpp runs as several tasks: reranking, or a decision (``/v1/systemone``).

    Which tasks are one call is an estimate (see ``llama/log/call_groups.py``). ``task`` is the first one,
    ``context_tokens`` is of all of them; its outcome and error are the worst of theirs.
    """

    operation: str = "rerank"
    """``gen_ai.operation.name``."""
    task_count: int = 1
    """Tasks that got a slot: the documents, or the variants of the questions."""

    @property
    def tasks(self) -> int:
        """llama.cpp's tasks for it."""
        return self.task_count

    @property
    def prompt_tokens(self) -> int | None:
        """Tokens of its documents: nothing is generated into their contexts."""
        return self.context_tokens if self.outcome is Outcome.OK and not self.truncated else None


@dataclass(frozen=True, slots=True)
class ObservedRequest:
    """A request of a server without a log, observed by polling its slot.

    It started up to one poll interval before ``first_seen_at`` and finished up to one after ``last_seen_at``: no time
    here is exact, and its outcome is unknown.
    """

    server: ServerInfo
    slot: int
    task: int
    first_seen_at: float
    last_seen_at: float
    longest_s: float | None = None
    """Upper bound: from the poll before the first to the poll after the last. None without an earlier poll."""
    prompt_tokens: int | None = None
    """Including cached ones; None unless a poll saw it generating, when the whole prompt is processed."""
    decoded: int | None = None
    """Tokens generated at the last poll."""


@dataclass(frozen=True, slots=True)
class ClientCall:
    """One call of an instrumented client to a model."""

    key: object
    """Identifies the call, also while it is in flight."""
    span: object
    """The context with its span; opaque."""
    server: ServerInfo
    """The server that it was sent to; the model is the requested one."""
    operation: str
    """``gen_ai.operation.name``: chat, text_completion, embeddings or rerank."""
    started_at: float
    sent_at: float
    """When it was sent; the last attempt if there were several."""
    ended_at: float
    outcome: Outcome
    error_type: str | None = None
    http_status: int | None = None
    """None without a response."""
    headers_at: float | None = None
    """When the response started; streams only, where that is when the slot was assigned."""
    first_chunk_at: float | None = None
    chunk_gaps: Sequence[float] = ()
    """Seconds between the chunks of a stream."""
    response_model: str | None = None
    input_tokens: int | None = None
    """Including cached ones."""
    output_tokens: int | None = None
    cached_tokens: int | None = None
    prompt_computed: int | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    slot: int | None = None
    modality: str = "text"
    """``text``, or ``unknown`` if images or audio are included."""
    tasks: int = 1
    """llama.cpp's tasks for it: one per choice, text or document."""
    elsewhere: bool = False
    """Whether it was created and measured by another process."""
    clock_offset_s: float = 0.0
    """Our clock minus that of its process, on another machine; its times here are by our clock."""
    foreign_span: bool = False
    """Whether another instrumentation created its span, and measures it."""
    has_usage: bool = True
    """Whether its span carries the token counts."""
    resolve: Callable[[bool], None] | None = field(default=None, compare=False, repr=False)
    """Function to call with whether a server's request was joined with it."""

    def resolved(self, joined: bool) -> None:
        """Report whether a server's request was joined with it."""
        if self.resolve is not None:
            self.resolve(joined)

    @property
    def generates(self) -> bool:
        """Whether it generates text, unlike embeddings and reranking."""
        return self.operation in ("chat", "text_completion")

    @property
    def has_timings(self) -> bool:
        """Whether the response had llama.cpp's timings."""
        return self.prefill_s is not None and self.decode_s is not None

    @property
    def duration_s(self) -> float:
        """The whole call, including retries."""
        return self.ended_at - self.started_at
