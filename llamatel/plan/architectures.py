"""llama.cpp's architectures, one row each: what its loader decides beyond the metadata.

Source: the trees of October 2026 (0.5.0-dev to b11434), ``src/models/*.cpp`` (load_arch_hparams),
``src/llama-model.cpp`` (load_hparams, create_memory), ``src/llama-arch.cpp``; newer ones by what b11739 allocates. A
new architecture of llama.cpp is a row here; it counts as exact for the builds that ``make verify`` has compared it with
(``verified.py``). A row describes the newest build; ``earlier`` what older builds did differently.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from llamatel.plan.llama_build import LlamaBuild
from llamatel.plan.model_shape import CacheKind


@dataclass(frozen=True, slots=True)
class Window:
    """Which layers attend only to a window, and its size."""

    period: int | None = None
    """The last of ``period`` layers is dense (the first with ``dense_first``); None: the file's array lists them."""
    dense_first: bool = False
    when: Literal["always", "positive", "unless zero"] = "always"
    """How ``attention.sliding_window`` enables it."""
    default: int | None = None
    """The window if the file has none."""
    forced: int | None = None
    """The window, whatever the file has."""
    layers: int | None = None
    """Only models with this many layers have it."""
    chunked: bool = False


ALL_ATTENTION_LAYERS = Window(period=0, when="positive")


@dataclass(frozen=True, slots=True)
class Recurrent:
    """Which layers keep a state, and of what kind."""

    state: Literal["rwkv", "shortconv", "kda", "linear", "ssm"]
    layers: Literal["all", "no KV heads", "no KV heads, no feed-forward", "interval"] = "all"
    interval: int = 4
    """One of this many layers attends, unless ``full_attention_interval`` or an array overrides it."""
    groups: bool = True
    """Whether ``ssm.group_count`` is read."""


Indexer = Literal["trunk", "types", "types by length", "types or none", "sparse", "all types", "attention"]
"""Layers with an indexer cache: all of the trunk; those in ``attention.indexer.types`` (if it is absent, all, or those
of a built-in table; none if top_k is 0; all and the drafting blocks); those after the leading dense blocks, with a V;
every attention layer."""


@dataclass(frozen=True, slots=True)
class Earlier:
    """How builds before a build number differ."""

    before: int
    """The first build that the row describes."""
    changes: Mapping[str, Any]
    """Fields of the row, with the values of that time."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """One row. The defaults are llama's: all layers attend, K and V of every KV head are cached."""

    name: str
    cache: CacheKind = "attention"
    window: Window | None = None
    latent: bool = False
    """Whether ``attention.key_length_mla`` and ``value_length_mla`` select one latent vector a token."""
    indexer: Indexer | None = None
    pooled_rows: int = 1
    """Vectors per token of an indexer that pools the keys of several tokens."""
    recurrent: Recurrent | None = None
    own_kv: int | None = None
    """Only this many layers keep keys and values; the others read theirs."""
    shared_kv_key: bool = False
    """Whether the last ``attention.shared_kv_layers`` layers read other layers' keys and values."""
    drafting_cached: bool = False
    """Whether the main context also caches the drafting blocks."""
    extra_layer: bool = False
    """Whether a layer with a single head follows the file's blocks."""
    loops: bool = False
    """Whether the blocks run ``num_loops`` times, each time with a separate cache."""
    lengths_without_heads: bool = False
    """Whether key and value lengths are read even if the first layer has no heads."""
    value_is_latent: bool = False
    """Whether the value length is ``attention.kv_lora_rank``."""
    flash_attention: bool = True
    causal: bool = True
    rollback: bool = False
    """Whether its recurrent state can be rolled back: then speculative decoding keeps several copies."""
    drafting_keeps_all: bool = False
    """Whether the drafting context caches every layer, not only the drafting blocks."""
    latent_values: bool = False
    """Whether latent attention also caches a V."""
    drafts: bool = False
    """Whether llama.cpp can draft with the model's own blocks; in other models they are unused."""
    aborts: str | None = None
    """Why llama-server aborts after it has allocated everything; None: it does not."""
    earlier: tuple[Earlier, ...] = field(default=(), repr=False)

    def of(self, build: LlamaBuild | None) -> Architecture:
        """The row of a build; the newest for one without a number."""
        row = self
        for each in sorted(self.earlier, key=lambda change: -change.before):
            if build is not None and build.number is not None and build.number < each.before:
                row = replace(row, **each.changes)
        return row


_STANDARD = """
    apertus arcee arctic baichuan bailingmoe bitnet bloom chameleon chatglm codeshell cogvlm command-r
    dbrx deci deepseek deepseek2-ocr dots1 ernie4_5 ernie4_5-moe exaone falcon gemma glm4 gpt2 gptneox granite
    granitemoe grovemoe hrm_text hunyuan-dense hunyuan-moe hunyuan_vl internlm2 jais jais2 k2-horizon llama
    llama-embed maincoder minicpm minicpm3 minimax-m2 mistral3 mpt nemotron olmo olmoe openelm orion paddleocr
    pangu-embedded phi2 phi3 phimoe plamo pockettts qwen qwen2 qwen2moe qwen2vl qwen3 qwen3moe qwen3tts qwen3vl
    qwen3vlmoe refact seed_oss smollm3 stablelm starcoder starcoder2 t5encoder talkie vllm-decision2 xverse
"""
_NO_CACHE = """
    bert clef dream eurobert gemma-embedding gemma-embedding2 jina-bert-v2 jina-bert-v3 llada llada-moe modern-bert
    neo-bert nomic-bert nomic-bert-moe rnd1 wavtokenizer-dec
"""

# In summer 2026 the drafting blocks were cached in the main context, and all layers in the drafting context;
# before that, nothing drafted with them.
_SUMMER: Mapping[str, Any] = {"drafting_cached": True, "drafting_keeps_all": True, "drafts": True}
_ALL_LAYERS_DRAFT = (Earlier(11063, _SUMMER), Earlier(9538, dict.fromkeys(_SUMMER, False)))
# Until January 2026 (b7827) latent attention cached a V as well.
_LATENT_WITH_V = Earlier(7964, {"latent_values": True})
_LISTED = Window()
_HYBRID_KV: Literal["no KV heads"] = "no KV heads"

_ROWS: tuple[Architecture, ...] = (
    *(Architecture(name) for name in _STANDARD.split()),
    *(Architecture(name, cache="none", causal=False) for name in _NO_CACHE.split()),
    Architecture("glm4moe", drafts=True, earlier=_ALL_LAYERS_DRAFT),
    Architecture("hy_v3", drafts=True),
    Architecture("bailingmoe2", earlier=_ALL_LAYERS_DRAFT),
    Architecture("grok", flash_attention=False),
    Architecture("plm", aborts="its graph hands V to the cache in another shape"),
    Architecture("t5", aborts="it does not run models with an encoder and a decoder"),
    Architecture("graniteswitch", extra_layer=True),
    Architecture("nanbeige", loops=True),
    # Sliding windows.
    Architecture("gemma2", window=Window(2, default=4096)),
    Architecture("gemma3", window=Window(6, when="positive")),
    Architecture("gemma3n", window=Window(5), own_kv=20),
    Architecture("gemma4", window=_LISTED, shared_kv_key=True),
    Architecture("gpt-oss", window=Window(2)),
    Architecture("cohere2", window=Window(4)),
    Architecture("cohere2moe", window=Window(4, dense_first=True), drafts=True),
    Architecture("llama4", window=Window(4, when="unless zero", forced=8192, chunked=True)),
    Architecture("exaone4", window=Window(4, default=4096, layers=64)),
    Architecture("exaone-moe", window=Window(4), earlier=_ALL_LAYERS_DRAFT),
    Architecture("olmo2", window=Window(4, when="positive")),
    Architecture("plamo3", window=Window(8, when="positive")),
    Architecture("afmoe", window=Window(4, when="positive")),
    Architecture("mellum", window=Window(4, when="positive")),
    Architecture("laguna", window=Window(4, dense_first=True, when="positive")),
    Architecture("smallthinker", window=Window(4, dense_first=True, when="positive", forced=4096)),
    Architecture("muse-glimmer", window=Window(4)),
    Architecture("mimo2", window=_LISTED, drafts=True),
    Architecture("step35", window=_LISTED, drafts=True),
    Architecture("maple", window=_LISTED),
    Architecture("spark2_5", window=_LISTED),
    Architecture("granite_swa", window=_LISTED),
    Architecture("maion-coder", window=_LISTED),
    Architecture("kolibri1", window=_LISTED),
    Architecture("beam", window=_LISTED),
    Architecture("muse-spark", window=_LISTED),
    # Latent attention, indexers.
    Architecture("deepseek2", latent=True, drafts=True, earlier=(*_ALL_LAYERS_DRAFT, _LATENT_WITH_V)),
    Architecture("mistral4", latent=True, drafts=True),
    Architecture("deepseek32", latent=True, indexer="trunk", drafts=True, earlier=(Earlier(10566, _SUMMER),)),
    Architecture(
        "glm-dsa",
        latent=True,
        indexer="types by length",
        drafts=True,
        earlier=(
            Earlier(10566, {"indexer": "trunk"}),
            Earlier(10229, {"indexer": None, **_SUMMER}),
            Earlier(9538, dict.fromkeys(_SUMMER, False)),
        ),
    ),
    Architecture("hy_v4", latent=True, indexer="types or none", drafting_cached=True),
    Architecture("dots3note", latent=True, indexer="types", window=_LISTED),
    Architecture("minimax-m3", indexer="sparse", drafting_cached=True),
    Architecture("deepseek4", cache="compressed", window=Window(0), rollback=True, drafting_cached=True, drafts=True),
    # A state per sequence.
    Architecture("mamba", cache="recurrent", recurrent=Recurrent("ssm", groups=False)),
    Architecture("mamba2", cache="recurrent", recurrent=Recurrent("ssm")),
    *(Architecture(name, cache="recurrent", recurrent=Recurrent("rwkv")) for name in ("rwkv6", "rwkv7")),
    *(Architecture(name, cache="recurrent", recurrent=Recurrent("rwkv")) for name in ("rwkv6qwen2", "arwkv7")),
    # Attention and states.
    Architecture("jamba", cache="hybrid", recurrent=Recurrent("ssm", _HYBRID_KV, groups=False), drafting_cached=True),
    Architecture("granitehybrid", cache="hybrid", recurrent=Recurrent("ssm", _HYBRID_KV), drafting_cached=True),
    Architecture(
        "plamo2",
        cache="hybrid",
        recurrent=Recurrent("ssm", _HYBRID_KV),
        drafting_cached=True,
        lengths_without_heads=True,
    ),
    Architecture("falcon-h1", cache="hybrid", recurrent=Recurrent("ssm"), drafting_cached=True),
    Architecture(
        "lfm2",
        cache="hybrid",
        recurrent=Recurrent("shortconv", _HYBRID_KV),
        window=ALL_ATTENTION_LAYERS,
        drafting_cached=True,
        rollback=True,
    ),
    Architecture(
        "lfm2moe", cache="hybrid", recurrent=Recurrent("shortconv", _HYBRID_KV), drafting_cached=True, rollback=True
    ),
    *(
        Architecture(
            name,
            cache="hybrid",
            recurrent=Recurrent("ssm", "no KV heads, no feed-forward"),
            drafting_cached=True,
            rollback=True,
            drafts=name == "nemotron_h_moe",
        )
        for name in ("nemotron_h", "nemotron_h_moe")
    ),
    Architecture("qwen3next", cache="hybrid", recurrent=Recurrent("ssm", "interval"), drafts=True),
    Architecture("qwen35", cache="hybrid", recurrent=Recurrent("ssm", "interval"), rollback=True, drafts=True),
    Architecture("qwen35moe", cache="hybrid", recurrent=Recurrent("ssm", "interval"), rollback=True, drafts=True),
    Architecture(
        "qwen4exp",
        cache="hybrid",
        recurrent=Recurrent("ssm", "interval"),
        indexer="attention",
        pooled_rows=2,
        rollback=True,
        drafts=True,
        earlier=(Earlier(11434, {"pooled_rows": 1, "drafts": False}),),
    ),
    Architecture("minimax-01", cache="hybrid", recurrent=Recurrent("linear", "interval", interval=8)),
    Architecture(
        "kimi-linear", cache="hybrid", latent=True, recurrent=Recurrent("kda", _HYBRID_KV), drafting_cached=True
    ),
    Architecture(
        "kimi-k3",
        cache="hybrid",
        latent=True,
        recurrent=Recurrent("kda", _HYBRID_KV),
        drafting_cached=True,
        value_is_latent=True,
        rollback=True,
    ),
    Architecture(
        "bailingmoe3",
        cache="hybrid",
        latent=True,
        recurrent=Recurrent("kda", _HYBRID_KV),
        drafting_cached=True,
        rollback=True,
        drafts=True,
    ),
    Architecture(
        "glm5-next",
        cache="hybrid",
        latent=True,
        recurrent=Recurrent("kda", _HYBRID_KV),
        indexer="all types",
        pooled_rows=3,
        value_is_latent=True,
        rollback=True,
        drafts=True,
        earlier=(Earlier(11434, {"drafts": False}),),
    ),
)

DRAFT_ONLY = {
    "eagle3": Architecture("eagle3"),
    "dflash": Architecture("dflash", window=Window(when="positive")),
    # Its layers read the target model's last keys and values.
    "gemma4-assistant": Architecture("gemma4-assistant", cache="none", window=_LISTED, drafts=True),
}
"""Draft models that use tensors of the model that they draft for (src/llama-context.cpp:147)."""

ARCHITECTURES: dict[str, Architecture] = {row.name: row for row in _ROWS} | DRAFT_ONLY


def architecture_of(name: str, build: LlamaBuild | None = None) -> Architecture | None:
    """The row of an architecture for a build; None for an unknown architecture."""
    row = ARCHITECTURES.get(name)
    return None if row is None else row.of(build)
