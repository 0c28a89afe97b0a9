"""Allocate what llama-server would with only a build's library: for builds that no wheel has a server of.

A process of its own, with the Python package llama-cpp-py-sync on its path, takes llama-server's flags, makes the model
and the context with the library's own functions, prints llama-server's line and waits. It has no second context that
drafts and does not fit the context to memory: such flags are refused as ones that it does not know.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from typing import Any

from llamatel.flags.parse import parse_server_flags
from llamatel.flags.server_settings import ServerSettings
from llamatel.gguf.ggml_types import TENSOR_TYPES

_FLASH = {"auto": -1, "off": 0, "on": 1}
_TYPES = {kind.name.lower(): number for number, kind in TENSOR_TYPES.items()}


def _settings(words: Sequence[str]) -> ServerSettings:
    settings = parse_server_flags(list(words))
    if settings.fit or settings.spec_types or settings.draft_model or settings.kv_unified_per_slot:
        raise SystemExit("error: invalid argument: not in this stand-in for llama-server")
    return settings


def _context(lib: Any, settings: ServerSettings) -> Any:
    params = lib.llama_context_default_params()
    params.n_ctx = settings.ctx_size or 0
    params.n_batch, params.n_ubatch = settings.batch_size, settings.ubatch_size
    params.n_seq_max = settings.slots
    params.kv_unified = settings.unified
    params.type_k, params.type_v = _TYPES[settings.cache_type_k], _TYPES[settings.cache_type_v]
    params.flash_attn_type = _FLASH[settings.flash_attn]
    params.swa_full, params.offload_kqv = settings.swa_full, settings.kv_offload
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
    params.n_gpu_layers = 0
    model = lib.llama_model_load_from_file((settings.model or "").encode(), params)
    if model == null or lib.llama_init_from_model(model, _context(lib, settings)) == null:
        return 1
    print("listening on http", flush=True)
    signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
