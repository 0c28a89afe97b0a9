"""llama-server's flags as settings of llama-cpp-python's own server (``llama_cpp/server/settings.py``).

It has settings of its own names, one request at a time and no slots: what has no counterpart is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from llamatel.errors import UsageError
from llamatel.flags.cache_types import CACHE_TYPES
from llamatel.gguf.ggml_types import TENSOR_TYPES_BY_NAME

_SPLIT_MODES = {"none": 0, "layer": 1, "row": 2}
_ALL_LAYERS = -1


@dataclass(slots=True)
class ServerOptions:
    """What llama-cpp-python's server is started with."""

    host: str = "127.0.0.1"
    port: int = 8080
    api_key_file: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    """Of its ``ModelSettings``."""


def _layers(text: str) -> int:
    return _ALL_LAYERS if text in ("all", "auto") else int(text)


def _cache_type(text: str) -> int:
    if text not in CACHE_TYPES:
        raise ValueError
    return TENSOR_TYPES_BY_NAME[text.upper()].number


def _flash(text: str) -> bool:
    return {"on": True, "1": True, "true": True, "off": False, "0": False, "false": False}[text]


def _split(text: str) -> list[float]:
    return [float(share) for share in text.replace("/", ",").split(",")]


_VALUES: tuple[tuple[tuple[str, ...], str, Callable[[str], Any]], ...] = (
    (("-m", "--model"), "model", str),
    (("-a", "--alias"), "model_alias", str),
    (("-c", "--ctx-size"), "n_ctx", int),
    (("-ngl", "--gpu-layers", "--n-gpu-layers"), "n_gpu_layers", _layers),
    (("-sm", "--split-mode"), "split_mode", _SPLIT_MODES.__getitem__),
    (("-mg", "--main-gpu"), "main_gpu", int),
    (("-ts", "--tensor-split"), "tensor_split", _split),
    (("-b", "--batch-size"), "n_batch", int),
    (("-ub", "--ubatch-size"), "n_ubatch", int),
    (("-ctk", "--cache-type-k"), "type_k", _cache_type),
    (("-ctv", "--cache-type-v"), "type_v", _cache_type),
    (("-fa", "--flash-attn"), "flash_attn", _flash),
    (("-t", "--threads"), "n_threads", int),
    (("-tb", "--threads-batch"), "n_threads_batch", int),
    (("-s", "--seed"), "seed", int),
    (("--chat-template",), "chat_format", str),
)
_SWITCHES: dict[str, tuple[str, Any]] = {
    "--embedding": ("embedding", True),
    "--embeddings": ("embedding", True),
    "--mlock": ("use_mlock", True),
    "--no-mmap": ("use_mmap", False),
    "-nkvo": ("offload_kqv", False),
    "--no-kv-offload": ("offload_kqv", False),
}
_NOTHING = ("--metrics", "--log-prefix", "--log-timestamps")
"""What the server manager asks of every server, and this one does anyway."""
_BY_FLAG = {flag: (name, read) for flags, name, read in _VALUES for flag in flags}


def parse(arguments: Sequence[str]) -> ServerOptions:
    """Options from llama-server's command line. Raises UsageError for a flag or value that this server does not have.

    What is left out is as llama-server has it where llama-cpp-python differs: it does not keep the logits of the whole
    context, and says less.
    """
    options = ServerOptions(settings={"logits_all": False, "verbose": False})
    rest = iter(arguments)
    for word in rest:
        flag, equals, value = word.partition("=")
        if flag in _NOTHING:
            continue
        if flag in _SWITCHES:
            name, setting = _SWITCHES[flag]
            options.settings[name] = setting
            continue
        if flag not in _BY_FLAG and flag not in ("--host", "--port", "--api-key-file", "-np", "--parallel"):
            raise UsageError(f"llama-cpp-python's server has no {flag}: leave it out, or take another backend")
        if not equals:
            following = next(rest, None)
            if following is None:
                raise UsageError(f"{flag} lacks its value")
            value = following
        _take(options, flag, value)
    return options


def _take(options: ServerOptions, flag: str, value: str) -> None:
    try:
        if flag == "--host":
            options.host = value
        elif flag == "--port":
            options.port = int(value)
        elif flag == "--api-key-file":
            options.api_key_file = value
        elif flag in ("-np", "--parallel"):
            if int(value) not in (-1, 1):
                raise UsageError(f"llama-cpp-python's server takes one request at a time: {flag} {value} cannot be")
        else:
            name, read = _BY_FLAG[flag]
            options.settings[name] = read(value)
    except (KeyError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"llama-cpp-python's server does not take {flag} '{value}'") from None
