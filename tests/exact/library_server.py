"""Allocate what llama-server would with only a build's library: for builds that no wheel has a server of.

A process of its own, with the Python package llama-cpp-py-sync on its path, takes llama-server's flags, makes the model
and its contexts with the library's own functions, as llama-server does, prints llama-server's line and waits. It does
not fit the context to memory and does not find out how a model drafts: it refuses what needs that as unknown flags.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from llamatel.flags.parse import parse_server_flags
from llamatel.flags.server_settings import ServerSettings
from llamatel.gguf.ggml_types import TENSOR_TYPES

_MTP = 1
"""LLAMA_CONTEXT_TYPE_MTP."""
_FLASH = {"auto": -1, "off": 0, "on": 1}
_TYPES = {kind.name.lower(): number for number, kind in TENSOR_TYPES.items()}


def _settings(words: Sequence[str]) -> ServerSettings:
    settings = parse_server_flags(list(words))
    drafts = bool(settings.draft_model) == bool(settings.spec_types) or settings.spec_types == ("draft-mtp",)
    if settings.fit or settings.kv_unified_per_slot or not drafts:
        raise SystemExit("error: invalid argument: not in this stand-in for llama-server")
    return settings


def _context(lib: Any, settings: ServerSettings) -> Any:
    """The parameters of the first context (common_context_params_to_llama)."""
    params = lib.llama_context_default_params()
    params.n_ctx = settings.ctx_size or 0
    params.n_batch, params.n_ubatch = settings.batch_size, settings.ubatch_size
    params.n_seq_max = settings.slots
    params.n_rs_seq = settings.copies - 1
    params.kv_unified = settings.unified
    params.type_k, params.type_v = _TYPES[settings.cache_type_k], _TYPES[settings.cache_type_v]
    params.flash_attn_type = _FLASH[settings.flash_attn]
    params.swa_full, params.offload_kqv = settings.swa_full, settings.kv_offload
    return params


def _draft_context(lib: Any, settings: ServerSettings, target: Any) -> Any:
    """The parameters of the context that drafts (common_speculative_init_result)."""
    type_k, type_v = settings.draft_cache_type_k, settings.draft_cache_type_v
    params = _context(lib, replace(settings, cache_type_k=type_k, cache_type_v=type_v))
    params.n_ctx = lib.llama_n_ctx(target)
    params.ctx_type = _MTP if settings.drafting else params.ctx_type
    params.n_rs_seq = 0
    params.ctx_other = target
    return params


def main(words: Sequence[str]) -> int:
    """Exit status 1 where llama.cpp refuses the model or the settings."""
    if "--help" in words:
        print("-fit")  # the one that the suite looks for
        return 0
    from llama_cpp_py_sync import _cffi_bindings as bindings  # type: ignore[import-not-found]

    settings = _settings(words)
    lib, null = bindings.get_lib(), bindings.ffi.NULL
    lib.llama_backend_init()
    params = lib.llama_model_default_params()
    params.n_gpu_layers, params.load_mtp = 0, settings.drafting

    def context(path: str | None, chosen: Any, model: Any = None) -> tuple[Any, Any]:
        model = lib.llama_model_load_from_file((path or "").encode(), params) if model is None else model
        made = null if model == null else lib.llama_init_from_model(model, chosen)
        if made == null:
            raise SystemExit(1)
        return model, made

    model, target = context(settings.model, _context(lib, settings))
    if settings.draft_model is not None:
        context(settings.draft_model, _draft_context(lib, settings, target))
    elif settings.drafting:
        context(None, _draft_context(lib, settings, target), model)
    print("listening on http", flush=True)
    signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
