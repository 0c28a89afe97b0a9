"""A model's shape: the properties, by layer, that determine its memory and speed. Unknown is None, never a guess."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from llamatel.plan.llama_build import LlamaBuild
from llamatel.providers import HtmlRepresentation

CacheKind = Literal["attention", "recurrent", "hybrid", "compressed", "none"]
"""``compressed`` is DeepSeek-V4's family of caches; ``none`` keeps nothing between tokens."""


@dataclass(frozen=True, slots=True)
class RecurrentState:
    """The state of a recurrent layer for one sequence, in values of 4 bytes."""

    conv: int
    """The recent inputs of its convolution, or a token shift (llama.cpp: R)."""
    state: int
    """The state itself (llama.cpp: S)."""
    history: int = 0
    """A convolution over embeddings of n-grams, where a model has one."""


@dataclass(frozen=True, slots=True)
class LayerShape:
    """One layer. It may have both attention and a state (Falcon-H1), or neither (feed-forward only)."""

    index: int
    heads: int | None = None
    """Query heads; None where the model does not state them."""
    kv_heads: int = 0
    key_length: int = 0
    """Values of one key: of a head, or of the latent vector that all heads share."""
    value_length: int = 0
    attends: bool = True
    cached: bool = True
    """Whether the main context holds keys and values for this layer."""
    kv_from: int | None = None
    """The layer whose keys and values it reads instead of keeping its own."""
    window: int | None = None
    """Tokens that it attends to; None: all."""
    chunked: bool = False
    """Whether the window is a fixed chunk of the context instead of a sliding window."""
    state: RecurrentState | None = None
    indexer_length: int | None = None
    """Values of one key of its indexer (sparse attention), which has a separate cache."""
    compress_ratio: int = 0
    drafting: bool = False
    """Whether it predicts several tokens ahead; used only by a drafting context."""

    @property
    def group_size(self) -> int | None:
        """Query heads per KV head; None if unknown or not applicable."""
        return self.heads // self.kv_heads if self.heads and self.kv_heads and self.attends else None

    @property
    def key_width(self) -> int:
        """Values of keys that one token adds to the cache."""
        return self.key_length * self.kv_heads

    @property
    def value_width(self) -> int:
        """Values of values (V) that one token adds."""
        return self.value_length * self.kv_heads


@dataclass(frozen=True, slots=True)
class Weights:
    """Bytes and parameters of the tensors, in total and by part."""

    n_bytes: int
    parameters: int
    active_parameters: int
    """Parameters that one token uses: of the experts only the selected ones."""
    active_bytes: int
    """Bytes that decoding one token reads; of the input embeddings only one row."""
    parts: tuple[tuple[str, int, int], ...] = ()
    """Part (embeddings, attention, feed-forward, experts, output, other), its parameters, its bytes."""
    layer_bytes: tuple[int, ...] = ()
    """Bytes of each block; tensors outside blocks are not included."""
    input_bytes: int = 0
    """The token embeddings, which llama.cpp keeps in host memory."""
    output_bytes: int = 0
    """Bytes of the output tensors; those of the input embeddings if the file has no others."""
    tied_bytes: int = 0
    """The input embeddings that ``output_bytes`` counts again."""
    tensors: tuple[tuple[str, int], ...] = field(default=(), repr=False)
    """Names and bytes of all tensors except the input embeddings; () if only sums are known."""
    expert_share: float = 1.0
    """The experts' bytes that one token reads."""

    @property
    def bits_per_weight(self) -> float | None:
        """Bits for one parameter, on average."""
        return self.n_bytes * 8 / self.parameters if self.parameters else None


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embeddings, as far as the metadata states them; None is not stated."""

    base: float | None = None
    base_windowed: float | None = None
    """The base of layers with a window, if it differs."""
    dimensions: int | None = None
    """Rotated values per head."""
    scaling: str | None = None
    """linear, yarn, longrope; ``none`` if the file states that there is none."""
    factor: float | None = None
    """Factor by which the trained context is extended."""
    original_context: int | None = None
    """Trained context before the extension, in tokens."""


@dataclass(frozen=True, slots=True)
class ModelShape(HtmlRepresentation):
    """A model, as far as its metadata describes it. Lengths are counts of values, ``context_length`` is tokens."""

    architecture: str
    layers: tuple[LayerShape, ...]
    name: str | None = None
    context_length: int | None = None
    embedding_length: int | None = None
    feed_forward_length: int | None = None
    expert_feed_forward_length: int | None = None
    vocabulary: int | None = None
    experts: int | None = None
    experts_used: int | None = None
    build: LlamaBuild | None = None
    """The build of llama.cpp that the shape is for; None: the newest that llamatel knows."""
    latent: bool = False
    """Multi-head latent attention: one compressed vector is cached instead of all heads' keys and values."""
    latent_values: bool = False
    """The build caches a V in addition to the latent vector."""
    drafting_keeps_all: bool = False
    """The build caches every layer in the context that drafts."""
    cache: CacheKind = "attention"
    flash_attention: bool = True
    """False where llama.cpp forces it off, whatever was requested."""
    causal: bool = True
    rollback: bool = False
    """Whether its recurrent state can be rolled back: then speculative decoding keeps several copies."""
    drafts: bool = False
    """Whether llama.cpp can draft with the model's own blocks (``--spec-type draft-mtp``)."""
    drafts_as: tuple[str, ...] = ()
    """The ``--spec-type`` that llama-server uses by default with this draft model."""
    needs_target: bool = False
    """Whether it uses tensors of the model that it drafts for, and cannot run alone."""
    draft: ModelShape | None = None
    """Its draft model, if the server has one (``-md``)."""
    aborts: str | None = None
    """Why llama-server aborts after it has allocated everything; None: it does not."""
    rejected: str | None = None
    """Why llama-server does not load the file; None: it loads it."""
    rope: Rope = Rope()
    file_type: str | None = None
    weights: Weights | None = None
    weights_unknown: str | None = None
    """Why the weights' bytes are unknown although their tensors are known."""
    adapters: tuple[tuple[str, int], ...] = ()
    """Bytes of LoRA tensors, each with the name of the model's tensor that it changes."""
    projector_bytes: int = 0
    """Weights of the multimodal projector that is loaded with it."""
    verified: bool = False
    """Whether the build's allocations were compared with ours for this architecture (``make verify``)."""
    verified_builds: tuple[tuple[int, int], ...] = ()
    """The builds that were compared, as first and last numbers."""
    unknown: tuple[str, ...] = ()
    """What a plan needs and the metadata does not state, in words."""

    @property
    def trunk(self) -> tuple[LayerShape, ...]:
        """All layers except the drafting blocks."""
        return tuple(layer for layer in self.layers if not layer.drafting)

    @property
    def drafting(self) -> tuple[LayerShape, ...]:
        """The drafting blocks."""
        return tuple(layer for layer in self.layers if layer.drafting)

    @property
    def windowed(self) -> bool:
        """Whether any layer attends only to a window."""
        return any(layer.window is not None for layer in self.layers)
