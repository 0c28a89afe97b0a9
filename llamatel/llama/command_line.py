"""llama-server's command line from Python arguments."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from llamatel.errors import UsageError

# Python name -> llama-server flag (common/arg.cpp).
_VALUES: Mapping[str, str] = {
    "gpu_layers": "--n-gpu-layers",
    "ctx_size": "--ctx-size",
    "n_parallel": "--parallel",
    "split_mode": "--split-mode",
    "main_gpu": "--main-gpu",
    "cache_type_k": "--cache-type-k",
    "cache_type_v": "--cache-type-v",
    "batch_size": "--batch-size",
    "ubatch_size": "--ubatch-size",
    "alias": "--alias",
}
_API_KEY_FLAG = "--api-key"
API_KEY_VARIABLE = "LLAMA_API_KEY"
# What the log reader lives on; later flags win, so the user's own still hold.
_LOG_FLAGS = ("--log-prefix", "--log-timestamps")


@dataclass(frozen=True, slots=True)
class CommandLine:
    """Arguments for the server's process, and the environment that goes with them (secrets travel there)."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    api_key: str | None
    """The key to use when we talk to the server ourselves."""
    alias: str | None
    """The model's name, where the arguments give it one."""


def build(
    model_path: str | os.PathLike[str] | None,
    *,
    host: str,
    port: int,
    api_key: str | None = None,
    api_key_file: str | os.PathLike[str] | None = None,
    tensor_split: Sequence[float] | str | None = None,
    flash_attn: bool | str | None = None,
    kv_unified: bool | None = None,
    swa_full: bool = False,
    extra_args: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    **values: str | int | None,
) -> CommandLine:
    """The command line; raises UsageError for arguments that cannot be.

    ``extra_args`` go through verbatim and last, but for ``--api-key``, which is moved into the environment: arguments
    can be read by every user of the machine.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"port {port} is not between 0 and 65535")
    arguments = [] if model_path is None else ["--model", str(Path(model_path).expanduser())]
    arguments += ["--host", host, "--port", str(port), "--metrics", *_LOG_FLAGS]
    for name, value in values.items():
        if name not in _VALUES:
            raise UsageError(f"unknown argument '{name}'; llama-server flags without a name here go into extra_args")
        if value is not None:
            arguments += [_VALUES[name], str(value)]
    if tensor_split is not None:
        split = tensor_split if isinstance(tensor_split, str) else ",".join(f"{share:g}" for share in tensor_split)
        arguments += ["--tensor-split", split]
    if flash_attn is not None:
        arguments += ["--flash-attn", flash_attn if isinstance(flash_attn, str) else ("on" if flash_attn else "off")]
    if kv_unified is not None:
        arguments.append("--kv-unified" if kv_unified else "--no-kv-unified")
    if swa_full:
        arguments.append("--swa-full")

    environment = dict(env or {})
    extra, given_key = _without_api_key(extra_args)
    arguments += extra
    key = api_key or given_key
    if key and api_key_file:
        raise UsageError("give api_key or api_key_file, not both")
    if key:
        environment[API_KEY_VARIABLE] = key
    if api_key_file:
        arguments += ["--api-key-file", os.fspath(api_key_file)]
    files = _values(arguments, "--api-key-file")
    if files:
        key = read_api_key(files[-1])
    key = key or environment.get(API_KEY_VARIABLE, os.environ.get(API_KEY_VARIABLE))
    aliases = _values(arguments, "-a", "--alias")
    return CommandLine(
        tuple(arguments),
        environment,
        api_key=key.split(",")[0] if key else None,
        alias=aliases[-1].split(",")[0] if aliases else None,
    )


def _values(arguments: Sequence[str], *flags: str) -> list[str]:
    """What the flags were given, in order."""
    return [value for flag, value in pairwise(arguments) if flag in flags]


def read_api_key(path: str | os.PathLike[str]) -> str:
    """The first key of a file with one key a line; raises UsageError, which never shows the file's content."""
    try:
        with Path(path).open(encoding="utf-8") as file:
            key = next((line.strip() for line in file if line.strip()), "")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageError(f"cannot read the API key file {os.fspath(path)}: {reason}") from None
    if not key:
        raise UsageError(f"the API key file {os.fspath(path)} is empty")
    return key


def _without_api_key(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    kept: list[str] = []
    key: str | None = None
    rest = iter(arguments)
    for argument in rest:
        if argument == _API_KEY_FLAG:
            key = next(rest, None)
            if key is None:
                raise UsageError(f"{_API_KEY_FLAG} needs a value; better, use --api-key-file")
        elif argument.startswith(_API_KEY_FLAG + "="):
            key = argument.partition("=")[2]
        else:
            kept.append(argument)
    return kept, key
