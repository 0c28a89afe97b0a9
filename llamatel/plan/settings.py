"""The settings of a llama-server that decide what it allocates: from our flags, or from its own command line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from llamatel.errors import UsageError
from llamatel.plan.cache_types import CACHE_TYPES

FlashAttention = Literal["auto", "on", "off"]

DEFAULT_SLOTS = 4
"""llama-server without ``-np``: four slots that share one pool (tools/server/server.cpp:156)."""
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
    """Names and defaults are llama-server's (common/common.h, October 2026)."""

    ctx_size: int | None = None
    """Tokens over all slots; None and 0 take the model's context length."""
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
    """None is as many as fit (auto)."""
    tensor_split: tuple[float, ...] = ()
    split_mode: str = "layer"
    main_gpu: int = 0
    fit: bool = True
    """llama-server lowers an unset context to what fits, and gives each slot that does not share the model's length."""
    spec_types: tuple[str, ...] = ()
    """Kinds of speculative decoding; ``draft-mtp`` gives the blocks that draft a context of their own."""
    draft_model: str | None = None
    """A second model that drafts (``-md``)."""
    draft_gpu_layers: int | None = None
    """None is all of them: llama-server never leaves layers of a draft model on the host by itself."""
    draft_max: int = 3
    draft_cache_type_k: str = "f16"
    draft_cache_type_v: str = "f16"
    embedding: bool = False
    cache_ram_mib: int = 8192
    ctx_checkpoints: int = 32
    model: str | None = None
    """The model that a pasted command line names."""

    @property
    def slots(self) -> int:
        """Sequences at a time."""
        return self.parallel if self.parallel is not None else DEFAULT_SLOTS

    @property
    def drafting(self) -> bool:
        """Whether blocks that draft have a context of their own."""
        return "draft-mtp" in self.spec_types

    @property
    def copies(self) -> int:
        """States that a sequence keeps where they can be rolled back (need_n_rs_seq, common/common.h:392)."""
        return 1 + (self.draft_max if not ROLLING_BACK.isdisjoint(self.spec_types) else 0)

    @property
    def unified(self) -> bool:
        """Whether the slots share one pool of cells."""
        return self.kv_unified or self.parallel is None


@dataclass(frozen=True, slots=True)
class Cells:
    """What the settings come to for one model (src/llama-context.cpp:133, 246, 290)."""

    context: int
    """Tokens over all slots."""
    per_stream: int
    """Cells that a slot can use: all of them where slots share."""
    streams: int
    slots: int
    ubatch: int


def padded(number: int, multiple: int = 256) -> int:
    """The next multiple (GGML_PAD)."""
    return -(-number // multiple) * multiple


def resolve(settings: ServerSettings, trained_context: int | None, *, causal: bool = True) -> Cells | None:
    """Cells and streams; None where the context is to be the model's and that is unknown."""
    slots, unified = settings.slots, settings.unified
    context = settings.ctx_size or 0
    if not context and settings.kv_unified_per_slot and settings.ctx_size is None:
        context = slots * settings.kv_unified_per_slot
    if not context:
        if not trained_context:
            return None
        # Fitting gives every slot of its own the model's length (common/fit.cpp:197).
        context = trained_context * (slots if settings.fit and not unified and settings.ctx_size is None else 1)
    batch, ubatch = settings.batch_size, settings.ubatch_size
    if settings.embedding and batch > ubatch:
        batch = ubatch
    batch = min(context, batch) if causal else batch
    ubatch = min(batch, ubatch or batch)
    context = padded(context)
    if unified:
        return Cells(context, context, 1, slots, ubatch)
    per_stream = padded(context // slots)
    return Cells(per_stream * slots, per_stream, slots, slots, ubatch)


def _flash(text: str) -> FlashAttention:
    if text in ("on", "enabled", "1", "true"):
        return "on"
    if text in ("off", "disabled", "0", "false"):
        return "off"
    if text in ("auto", "-1"):
        return "auto"
    raise ValueError


def _cache_type(text: str) -> str:
    if text not in CACHE_TYPES:
        raise ValueError
    return text


def _number(text: str) -> int:
    number = int(text)
    if not -(2**31) <= number < 2**31:  # llama-server reads an int
        raise ValueError
    return number


def _slots(text: str) -> int | None:
    number = _number(text)
    if number == 0:
        raise ValueError
    return number if number > 0 else None


def _layers(text: str) -> int | None:
    if text in ("auto", "all"):
        return 1 << 20 if text == "all" else None
    number = _number(text)
    return number if number >= 0 else None


def _split(text: str) -> tuple[float, ...]:
    return tuple(float(share) for share in text.replace("/", ",").split(","))


def _on_off(text: str) -> bool:
    return _flash(text) == "on"


def _speculative(text: str) -> tuple[str, ...]:
    words = text.split(",")
    if not set(words) <= set(SPEC_TYPES):
        raise ValueError
    return tuple(word for word in words if word != "none")


def _split_mode(text: str) -> str:
    if text not in SPLIT_MODES:
        raise ValueError
    return text


# Flags with a value, by every name that llama-server knows: our field, how its text is read, its variable.
_VALUES: tuple[tuple[tuple[str, ...], str, Callable[[str], Any], str | None], ...] = (
    (("-m", "--model"), "model", str, "MODEL"),
    (("-hf", "-hfr", "--hf-repo"), "model", str, "HF_REPO"),
    (("-mu", "--model-url"), "model", str, "MODEL_URL"),
    (("-c", "--ctx-size"), "ctx_size", _number, "CTX_SIZE"),
    (("-np", "--parallel"), "parallel", _slots, "N_PARALLEL"),
    (("--kv-unified-per-slot",), "kv_unified_per_slot", _number, "KV_UNIFIED_PER_SLOT"),
    (("-b", "--batch-size"), "batch_size", _number, "BATCH"),
    (("-ub", "--ubatch-size"), "ubatch_size", _number, "UBATCH"),
    (("-ctk", "--cache-type-k"), "cache_type_k", _cache_type, "CACHE_TYPE_K"),
    (("-ctv", "--cache-type-v"), "cache_type_v", _cache_type, "CACHE_TYPE_V"),
    (("-fa", "--flash-attn"), "flash_attn", _flash, "FLASH_ATTN"),
    (("-ngl", "--gpu-layers", "--n-gpu-layers"), "gpu_layers", _layers, "N_GPU_LAYERS"),
    (("-ts", "--tensor-split"), "tensor_split", _split, "TENSOR_SPLIT"),
    (("-sm", "--split-mode"), "split_mode", _split_mode, "SPLIT_MODE"),
    (("-mg", "--main-gpu"), "main_gpu", _number, "MAIN_GPU"),
    (("-fit", "--fit"), "fit", _on_off, "FIT"),
    (("--spec-type",), "spec_types", _speculative, "SPEC_TYPE"),
    (("--spec-draft-n-max", "--draft", "--draft-n", "--draft-max"), "draft_max", _number, "SPEC_DRAFT_N_MAX"),
    (
        ("-ctkd", "--cache-type-k-draft", "--spec-draft-type-k"),
        "draft_cache_type_k",
        _cache_type,
        "SPEC_DRAFT_CACHE_TYPE_K",
    ),
    (
        ("-ctvd", "--cache-type-v-draft", "--spec-draft-type-v"),
        "draft_cache_type_v",
        _cache_type,
        "SPEC_DRAFT_CACHE_TYPE_V",
    ),
    (("-md", "--model-draft", "--spec-draft-model"), "draft_model", str, "SPEC_DRAFT_MODEL"),
    (("-hfd", "-hfrd", "--hf-repo-draft", "--spec-draft-hf"), "draft_model", str, "SPEC_DRAFT_HF_REPO"),
    (
        ("-ngld", "--gpu-layers-draft", "--n-gpu-layers-draft", "--spec-draft-ngl"),
        "draft_gpu_layers",
        _layers,
        "N_GPU_LAYERS_DRAFT",
    ),
    (("-cram", "--cache-ram"), "cache_ram_mib", _number, "CACHE_RAM"),
    (("-ctxcp", "--ctx-checkpoints", "--swa-checkpoints"), "ctx_checkpoints", _number, "CTX_CHECKPOINTS"),
)
# Flags without one: our field and what it becomes.
_SWITCHES: tuple[tuple[tuple[str, ...], str, bool, str | None], ...] = (
    (("-kvu", "--kv-unified"), "kv_unified", True, "KV_UNIFIED"),
    (("-no-kvu", "--no-kv-unified"), "kv_unified", False, None),
    (("--swa-full",), "swa_full", True, "SWA_FULL"),
    (("-kvo", "--kv-offload"), "kv_offload", True, "KV_OFFLOAD"),
    (("-nkvo", "--no-kv-offload"), "kv_offload", False, None),
    (("--embedding", "--embeddings"), "embedding", True, "EMBEDDINGS"),
    (("--rerank", "--reranking"), "embedding", True, "RERANKING"),
)
# Flags that decide how a server behaves and not what it allocates: names, whether they take a value, variable.
_BEHAVIOUR: tuple[tuple[tuple[str, ...], bool, str | None], ...] = (
    (("--context-shift",), False, "CONTEXT_SHIFT"),
    (("--no-context-shift",), False, None),
    (("--sleep-idle-seconds",), True, None),
    (("--slot-save-path",), True, None),
)
_TAKES: dict[Callable[[str], Any], str] = {
    _number: "a whole number below 2^31",
    _slots: "a number of slots",
    _flash: "one of on, off, auto",
    _on_off: "on or off",
    _layers: "a number of layers, auto or all",
    _split: "shares, as in 3,1",
    _cache_type: f"one of {', '.join(CACHE_TYPES)}",
    _speculative: f"one of {', '.join(SPEC_TYPES)}",
    _split_mode: f"one of {', '.join(SPLIT_MODES)}",
}
_BY_FLAG = {flag: (field, read) for flags, field, read, _ in _VALUES for flag in flags}
_SWITCH_BY_FLAG = {flag: (field, value) for flags, field, value, _ in _SWITCHES for flag in flags}


def _read(name: str, field: str, read: Callable[[str], Any], text: str) -> dict[str, Any]:
    try:
        return {field: read(text)}
    except ValueError:
        raise UsageError(f"{name} does not take '{text}' ({_TAKES[read]})") from None


def _from_environment(environ: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """What LLAMA_ARG_* say; llama-server reads them before its command line."""
    for _, field, read, variable in _VALUES:
        if variable and (text := environ.get(f"LLAMA_ARG_{variable}")):
            yield _read(f"LLAMA_ARG_{variable}", field, read, text)
    for _, field, value, variable in _SWITCHES:
        if variable and (text := environ.get(f"LLAMA_ARG_{variable}")) is not None:
            yield {field: value is (text in ("", "1", "on", "true", "enabled"))}
        if variable and environ.get(f"LLAMA_ARG_NO_{variable}") is not None:
            yield {field: not value}


def _changed(settings: ServerSettings, change: dict[str, Any]) -> ServerSettings:
    return replace(settings, **change)


def parse_server_flags(
    words: Sequence[str],
    base: ServerSettings | None = None,
    environ: Mapping[str, str] = os.environ,
) -> ServerSettings:
    """Settings from llama-server's own command line; its other flags are passed over (``server_flags`` names them).

    ``LLAMA_ARG_*`` variables count as they do there. Raises UsageError for a value that the server would not take.
    """
    settings = base if base is not None else ServerSettings()
    for change in _from_environment(environ):
        settings = _changed(settings, change)
    i = 0
    while i < len(words):
        word, equals, inline = words[i].partition("=")
        i += 1
        if word in _SWITCH_BY_FLAG:
            field, value = _SWITCH_BY_FLAG[word]
            settings = _changed(settings, {field: value})
        elif word in _BY_FLAG:
            field, read = _BY_FLAG[word]
            if not equals:
                if i >= len(words):
                    raise UsageError(f"{word} lacks its value")
                inline = words[i]
                i += 1
            settings = _changed(settings, _read(word, field, read, inline))
    return settings


def given_settings(words: Sequence[str], environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What a llama-server was told, by the long names of its flags without dashes; a switch is "true" or "false".

    The command line goes before ``LLAMA_ARG_*``, and what comes later before what came earlier.
    """
    rows = (
        *((flags, True, variable) for flags, _, _, variable in _VALUES),
        *((flags, False, variable) for flags, _, _, variable in _SWITCHES),
        *_BEHAVIOUR,
    )
    given: dict[str, str] = {}
    by_flag: dict[str, tuple[str, bool]] = {}
    for flags, takes_value, variable in rows:
        name = next(flag for flag in flags if flag.startswith("--"))
        by_flag |= dict.fromkeys(flags, (name, takes_value))
        text = environ.get(f"LLAMA_ARG_{variable}") if variable else None
        if text is not None:
            given |= _told(name, text if takes_value else str(text in ("", "1", "on", "true", "enabled")).lower())
    rest = iter(words)
    for word in rest:
        flag, equals, inline = word.partition("=")
        name, takes_value = by_flag.get(flag, ("", False))
        if name:
            given |= _told(name, (inline if equals else next(rest, "")) if takes_value else "true")
    return given


def _told(flag: str, value: str) -> dict[str, str]:
    if flag.startswith("--no-"):
        return {flag[5:]: "false"}
    return {flag[2:]: value}


def describe(settings: ServerSettings) -> str:
    """The settings that are not the defaults, as llama-server's flags."""
    plain = ServerSettings()
    changed = {f.name for f in fields(settings) if getattr(settings, f.name) != getattr(plain, f.name)}
    words = []
    for flags, field, _, _ in _VALUES:
        if field in changed and field not in ("model", "spec_types", "fit") and flags[0] != "-hfd":
            value = getattr(settings, field)
            text = ",".join(f"{share:g}" for share in value) if isinstance(value, tuple) else str(value)
            words.append(f"{flags[0]} {text}")
    words += [f"--spec-type {','.join(settings.spec_types)}"] * ("spec_types" in changed)
    words += ["-fit off"] * ("fit" in changed)
    for flags, field, value, variable in _SWITCHES:
        if field in changed and getattr(settings, field) is value and variable != "RERANKING":
            words.append(flags[0])
    return " ".join(words)
