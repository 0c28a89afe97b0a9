"""The settings of a llama-server that decide what it allocates, and the resulting cells."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from llamatel.flags.tensor_override import TensorOverride

FlashAttention = Literal["auto", "on", "off"]

DEFAULT_SLOTS = 4
"""Slots without ``-np``: four, which share one pool (tools/server/server.cpp:156)."""
MAX_SLOTS = 256
"""LLAMA_MAX_SEQ."""
SPEC_TYPES = (
    "none", "draft-simple", "draft-eagle3", "draft-mtp", "draft-dflash", "draft-dspark",
    "ngram-simple", "ngram-map-k", "ngram-map-k4v", "ngram-mod", "ngram-cache",
)  # fmt: skip
"""common/speculative.cpp:33."""
SPLIT_MODES = ("none", "layer", "row", "tensor")
ROLLING_BACK = frozenset({"draft-mtp", "draft-eagle3", "draft-dflash", "draft-dspark"})


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The settings of a llama-server's command line and environment.

    Names and defaults are llama-server's (common/common.h, October 2026); ``parse_server_flags`` makes them.
    """

    ctx_size: int | None = None
    """Tokens over all slots; None and 0 are the model's context length."""
    parallel: int | None = None
    """Slots; None is the server's own four, which then share one pool."""
    kv_unified: bool = False
    """One pool for all slots."""
    kv_unified_per_slot: int | None = None
    batch_size: int = 2048
    ubatch_size: int = 512
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    flash_attn: FlashAttention = "auto"
    swa_full: bool = False
    kv_offload: bool = True
    gpu_layers: int | None = None
    """None: as many as fit (auto)."""
    tensor_split: tuple[float, ...] = ()
    split_mode: str = "layer"
    main_gpu: int = 0
    devices: tuple[str, ...] = ()
    """llama.cpp's names of the devices to use; empty: all, ``none``: only the host."""
    rpc_servers: tuple[str, ...] = ()
    tensor_overrides: tuple[TensorOverride, ...] = ()
    moe_cache_mib: int = 0
    """Device memory for experts that are kept on the host."""
    fit: bool = True
    """llama-server lowers an unset context to what fits, and gives each slot that does not share the model's length."""
    fit_target_mib: tuple[int, ...] = (1024,)
    """Device memory that fitting leaves free: a number for each device, or one for all."""
    fit_ctx: int = 4096
    """Fitting does not lower the context below that."""
    mmproj: str | None = None
    mmproj_auto: bool = True
    """With ``-hf`` a projector of the repository is loaded too."""
    mmproj_offload: bool = True
    mmproj_device: str | None = None
    """llama.cpp's name of the projector's device; None is the first GPU."""
    lora_adapters: tuple[str, ...] = ()
    spec_types: tuple[str, ...] = ()
    """Kinds of speculative decoding; with ``draft-mtp`` the drafting blocks get a separate context."""
    draft_model: str | None = None
    """A second model that drafts (``-md``)."""
    draft_gpu_layers: int | None = None
    """None: all; llama-server never keeps layers of a draft model on the host by default."""
    draft_max: int = 3
    draft_cache_type_k: str = "f16"
    draft_cache_type_v: str = "f16"
    draft_ubatch_size: int = 0
    """0 is ``ubatch_size``."""
    draft_devices: tuple[str, ...] = ()
    draft_tensor_overrides: tuple[TensorOverride, ...] = ()
    embedding: bool = False
    reranking: bool = False
    """Embedding with the pooling "rank"."""
    pooling: str | None = None
    """None is the model's."""
    cache_ram_mib: int = 8192
    """Host memory for prompts; -1 has no limit."""
    ctx_checkpoints: int = 32
    context_shift: bool = False
    sleep_idle_seconds: int = -1
    """-1 is never."""
    slot_save_path: str | None = None
    model: str | None = None
    """File, address or Hub repository of the model."""
    hf_file: str | None = None
    """The file of ``-hf``'s repository."""

    alias: str | None = None
    host: str = "127.0.0.1"
    port: int | None = None
    api_prefix: str = ""
    api_key_file: str | None = None
    ssl_key_file: str | None = None
    ssl_cert_file: str | None = None
    log_file: str | None = None
    log_disable: bool = False
    log_jsonl: bool = False
    verbosity: int = 3
    models_dir: str | None = None
    """The server is a router for the models in there."""

    given: frozenset[str] = field(default=frozenset(), compare=False)
    """The fields set by the command line or the environment; the others have llama-server's default."""
    not_counted: tuple[str, ...] = ()
    """Flags and variables that change what is allocated in ways that plans do not account for."""
    unknown: tuple[str, ...] = ()
    """Flags that are not in the table: of another build, or misspelt."""
    not_understood: tuple[str, ...] = ()
    """Flags and variables of a running server whose value could not be parsed (``lenient``)."""

    @property
    def slots(self) -> int:
        """Sequences at a time."""
        return self.parallel if self.parallel is not None else DEFAULT_SLOTS

    @property
    def drafting(self) -> bool:
        """Whether the drafting blocks have a separate context."""
        return "draft-mtp" in self.spec_types

    @property
    def copies(self) -> int:
        """Recurrent states kept per sequence where they can be rolled back (need_n_rs_seq, common/common.h:392)."""
        return 1 + (self.draft_max if not ROLLING_BACK.isdisjoint(self.spec_types) else 0)

    @property
    def reranks(self) -> bool:
        """Whether it has the reranking endpoint."""
        return self.reranking or (self.embedding and self.pooling == "rank")

    @property
    def unified(self) -> bool:
        """Whether the slots share one pool of cells."""
        return self.kv_unified or self.parallel is None


@dataclass(frozen=True, slots=True)
class Cells:
    """The cells that the settings give one model (src/llama-context.cpp:133, 246, 290)."""

    context: int
    """Tokens over all slots."""
    per_stream: int
    """Cells that a slot can use: all of them where slots share."""
    streams: int
    slots: int
    ubatch: int


def padded(number: int) -> int:
    """The next multiple of 256 (GGML_PAD)."""
    return -(-number // 256) * 256


FIT_PER_SLOT_SINCE = 10809
"""First build seen to give each slot with its own cells the model's full context; b10566 divided it among them."""

ONE_SLOT_SINCE = 7551
"""First build seen to read ``-np 1`` as one slot; b7376 read it as the default, four that share a pool."""


def resolve(
    settings: ServerSettings, trained_context: int | None, *, causal: bool = True, build: int | None = None
) -> Cells | None:
    """Cells and streams; None if the context is the model's and that is unknown.

    ``build`` is llama.cpp's build number; None: the newest.
    """
    slots, unified = settings.slots, settings.unified
    if slots == 1 and build is not None and build < ONE_SLOT_SINCE:
        slots, unified = DEFAULT_SLOTS, True
    context = settings.ctx_size or 0
    if not context and settings.kv_unified_per_slot and settings.ctx_size is None:
        context = slots * settings.kv_unified_per_slot
    if not context:
        if not trained_context:
            return None
        # Fitting gives each slot that does not share the model's length, with -c 0, too (common/fit.cpp, n_ctx_auto).
        each = settings.fit and not unified and (build is None or build >= FIT_PER_SLOT_SINCE)
        context = trained_context * (slots if each else 1)
    batch, ubatch = settings.batch_size, settings.ubatch_size
    if (settings.embedding or settings.reranking) and batch > ubatch:
        batch = ubatch
    batch = min(context, batch) if causal else batch
    ubatch = min(batch, ubatch or batch)
    context = padded(context)
    if unified:
        return Cells(context, context, 1, slots, ubatch)
    per_stream = padded(context // slots)
    return Cells(per_stream * slots, per_stream, slots, slots, ubatch)
