"""Settings out of llama-server's own command line and its ``LLAMA_ARG_*`` variables, and back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from llamatel.errors import UsageError
from llamatel.flags.cache_types import CACHE_TYPES
from llamatel.flags.server_settings import SPEC_TYPES, SPLIT_MODES, FlashAttention, ServerSettings


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
