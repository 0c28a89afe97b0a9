"""A model's shape: facts, layer by layer, that decide what it costs to run. Unknown is None, never a guess."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from llamatel.plan.llama_build import LlamaBuild
from llamatel.providers import HtmlRepresentation

CacheKind = Literal["attention", "recurrent", "hybrid", "compressed", "none"]
"""``compressed`` is DeepSeek-V4's family of caches; ``none`` keeps nothing between tokens."""


@dataclass(frozen=True, slots=True)
class RecurrentState:
    """What a recurrent layer keeps for one sequence, in values (each 4 bytes)."""

    conv: int
    """The short past of its convolution, or a token shift (llama.cpp: R)."""
    state: int
    """The state proper (llama.cpp: S)."""
    history: int = 0
    """A convolution over embeddings of n-grams, where a model has one."""


@dataclass(frozen=True, slots=True)
class LayerShape:
    """One layer. ``attends`` and ``state`` may both hold (Falcon-H1), or neither (a layer of feed-forward only)."""

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
    """Tokens that it looks back on; None is all."""
    chunked: bool = False
    """The window is a chunk of the context with fixed bounds, not a sliding one."""
    state: RecurrentState | None = None
    indexer_length: int | None = None
    """Values of one key of its indexer (sparse attention), which has a cache of its own."""
    compress_ratio: int = 0
    drafting: bool = False
    """A block that predicts several tokens ahead; used only by a drafting context."""

    @property
    def group_size(self) -> int | None:
        """Query heads to one KV head; None where that is not known or has no meaning."""
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
    """Those that one token uses: of the experts only as many as are chosen."""
    active_bytes: int
    """Bytes that decoding one token reads; of the input embeddings only a row."""
    parts: tuple[tuple[str, int, int], ...] = ()
    """Part (embeddings, attention, feed-forward, experts, output, other), its parameters, its bytes."""
    layer_bytes: tuple[int, ...] = ()
    """Bytes of each block; what is in no block is left over."""
    input_bytes: int = 0
    """The token embeddings, which llama.cpp keeps in host memory."""
    output_bytes: int = 0
    """What computes logits; a copy of the input embeddings where the file has none of its own."""
    tied_bytes: int = 0
    """Those input embeddings that ``output_bytes`` counts again."""
    tensors: tuple[tuple[str, int], ...] = field(default=(), repr=False)
    """Names and bytes of all tensors but the input embeddings; () where only sums are known."""
    expert_share: float = 1.0
    """Of the experts' bytes, those that one token reads."""

    @property
    def bits_per_weight(self) -> float | None:
        """Bits for one parameter, on average."""
        return self.n_bytes * 8 / self.parameters if self.parameters else None


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embeddings, as far as the metadata states them; None is not stated."""

    base: float | None = None
    base_windowed: float | None = None
    """Of layers with a window, where they have one of their own."""
    dimensions: int | None = None
    """Values of a head that are rotated."""
    scaling: str | None = None
    """linear, yarn, longrope; ``none`` where the file states that there is none."""
    factor: float | None = None
    """How many times further than it was trained for."""
    original_context: int | None = None
    """Tokens that it was trained for before that."""


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
    """The build of llama.cpp that this is the shape for; None is the newest that llamatel knows."""
    latent: bool = False
    """Multi-head latent attention: one compressed vector is cached in place of all heads' keys and values."""
    latent_values: bool = False
    """The build caches a V in addition to the latent vector."""
    drafting_keeps_all: bool = False
    """The build caches every layer in the context that drafts."""
    cache: CacheKind = "attention"
    flash_attention: bool = True
    """False where llama.cpp forces it off, whatever was requested."""
    causal: bool = True
    rollback: bool = False
    """Its recurrent state can be rolled back, so speculative decoding keeps several copies."""
    drafts: bool = False
    """llama.cpp can draft with the model's own blocks (``--spec-type draft-mtp``)."""
    drafts_as: tuple[str, ...] = ()
    """The ``--spec-type`` that llama-server chooses where this model is the one that drafts and none is requested."""
    needs_target: bool = False
    """It lacks what only the model has that it drafts for: it cannot run alone."""
    draft: ModelShape | None = None
    """The model that drafts for it, where a server is given one (``-md``)."""
    aborts: str | None = None
    """Why llama-server dies of the model after it has allocated everything, where it does."""
    rejected: str | None = None
    """Why llama-server does not load the file, where it does not."""
    rope: Rope = Rope()
    file_type: str | None = None
    weights: Weights | None = None
    weights_unknown: str | None = None
    """Why the weights' bytes are not known although their tensors are."""
    adapters: tuple[tuple[str, int], ...] = ()
    """Bytes of LoRA tensors, each with the name of the model's tensor that it changes."""
    projector_bytes: int = 0
    """Weights of the multimodal projector that is loaded with it."""
    verified: bool = False
    """Whether the build's allocations for this architecture were compared with ours (``make verify``)."""
    verified_builds: tuple[tuple[int, int], ...] = ()
    """The builds that were compared, as first and last numbers."""
    unknown: tuple[str, ...] = ()
    """What its metadata leaves open that a plan would need, in words."""

    @property
    def trunk(self) -> tuple[LayerShape, ...]:
        """The layers of ordinary decoding: all but those that draft."""
        return tuple(layer for layer in self.layers if not layer.drafting)

    @property
    def drafting(self) -> tuple[LayerShape, ...]:
        """The blocks that draft."""
        return tuple(layer for layer in self.layers if layer.drafting)

    @property
    def windowed(self) -> bool:
        """Whether any layer looks back on a window only."""
        return any(layer.window is not None for layer in self.layers)
