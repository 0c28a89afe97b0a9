"""llama-server's command line from Python arguments."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from llamatel.errors import UsageError
from llamatel.flags.flag_table import BY_NAME
from llamatel.flags.parse import parse_server_flags
from llamatel.flags.server_settings import ServerSettings
from llamatel.inputs.address import Address, parse_address
from llamatel.inputs.credentials import check_api_key, read_api_key
from llamatel.inputs.text_file import user_path
from llamatel.llama.log.server_output import JSONL_VARIABLE
from llamatel.models import tiny_model

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
API_KEY_VARIABLE = "LLAMA_API_KEY"
_SECRET_FLAGS = {
    "--api-key": "--api-key-file FILE",
    "--hf-token": "the variable HF_TOKEN",
    "--model-url": "HF_TOKEN",
    "--mmproj-url": "HF_TOKEN",
    "--mcp-servers-json": "--mcp-servers-config FILE",
}
"""Flags whose value is a secret or may hold some (a URL if it has a user or a query), and what to use instead."""
_HOST = re.compile(r"[\w.:%-]{1,255}")
_SOCKET = ".sock"
"""llama-server treats a host with this suffix as the path of a Unix socket."""
# Flags that the log reader needs; later flags win, so the user's own still apply.
_LOG_FLAGS = ("--log-prefix", "--log-timestamps")


@dataclass(frozen=True, slots=True)
class CommandLine:
    """Arguments for the server's process, and its environment, which carries secrets."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    api_key: str | None = field(repr=False)
    """The key to use when we talk to the server ourselves."""
    alias: str | None
    """The model's name, where the arguments give it one."""
    listen: Address
    """Where the server listens: its host may be 0.0.0.0, its port 0 (a free one)."""
    certificate: str | None = None
    """The file of its certificate, if it speaks https."""
    batch: int | None = None
    """Prompt tokens that are processed at once; None is llama-server's default."""

    def client_address(self, port: int | None) -> Address:
        """Its address for clients on this machine; ``port`` is the one that it chose, if none was given."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.listen.host, self.listen.host)  # noqa: S104 - recognised, not bound
        return replace(self.listen, host=host, port=port if port is not None else self.listen.port)


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
    """The command line; raises UsageError for invalid arguments.

    ``extra_args`` are appended verbatim, except secrets, which are moved into the environment: arguments can be
    read by every user of the machine.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"port {port} is not between 0 and 65535")
    arguments = [] if model_path is None else ["--model", str(model_file(model_path))]
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

    extra, moved = _without_secrets(extra_args)
    arguments += extra
    keys = ",".join(filter(None, (api_key, *moved.pop("--api-key", ()))))
    environment = dict(env or {}) | {str(BY_NAME[name].variable): values[-1] for name, values in moved.items()}
    if keys and api_key_file:
        raise UsageError("give api_key or api_key_file, not both")
    if keys:
        environment[API_KEY_VARIABLE] = keys
    if api_key_file:
        arguments += ["--api-key-file", str(user_path(api_key_file))]
    all_variables = {**os.environ, **environment}
    settings = parse_server_flags(arguments, environ=all_variables, lenient=True)
    if "log_jsonl" in settings.given and not settings.log_jsonl:
        environment[JSONL_VARIABLE] = "0"  # it would apply to messages until the flag is parsed
    _check_port_can_be_read(settings)
    return CommandLine(
        tuple(arguments),
        environment,
        api_key=_own_key(settings, all_variables),
        alias=settings.alias.split(",")[0] if settings.alias else None,
        listen=_listen(settings),
        certificate=settings.ssl_cert_file,
        batch=settings.batch_size if "batch_size" in settings.given else None,
    )


def model_file(model_path: str | os.PathLike[str]) -> Path:
    """The file to load; ``tiny`` is the model that llamatel ships. Raises UsageError for a folder."""
    if "://" in os.fspath(model_path):
        raise UsageError("the model is a file; llama-server's own flags download one: -hf REPO, or --model-url URL")
    path = user_path(model_path)
    if path.is_dir():
        raise UsageError(f"{os.fspath(model_path)} is a folder: name the model's file in it")
    if path.exists() and not path.is_file():  # llama.cpp would wait for the writer of a pipe
        raise UsageError(f"{os.fspath(model_path)} is not a file")
    return tiny_model() if os.fspath(model_path) == "tiny" and not path.exists() else path


def _listen(settings: ServerSettings) -> Address:
    """Where the server listens. Raises UsageError."""
    prefix, port = settings.api_prefix.rstrip("/"), settings.port
    if prefix and not prefix.startswith("/"):
        raise UsageError(f"--api-prefix {prefix}: it must start with a slash")
    if settings.host.endswith(_SOCKET):  # tools/server/server-http.cpp
        return Address("unix", str(Path(settings.host).absolute()), None, prefix)
    if not _HOST.fullmatch(settings.host):
        raise UsageError(f"--host '{settings.host}' is not a host name or IP address")
    if port is None or not 0 <= port <= 65535:
        raise UsageError(f"--port {port} is not between 0 and 65535")
    scheme = "https" if settings.ssl_key_file and settings.ssl_cert_file else "http"
    return replace(parse_address(f"{scheme}://llama{prefix}"), host=settings.host, port=port)


def _check_port_can_be_read(settings: ServerSettings) -> None:
    """A free port is read from the log, where llama.cpp prints it at its default verbosity."""
    if settings.port == 0 and not settings.host.endswith(_SOCKET) and (settings.log_disable or settings.verbosity < 3):
        raise UsageError("port 0 needs the server's log at verbosity 3, where it prints the port: name a port")


def _own_key(settings: ServerSettings, environment: Mapping[str, str]) -> str | None:
    """The key for our own requests: the first one that the server accepts."""
    key: str | None
    if settings.api_key_file:
        key = read_api_key(settings.api_key_file)
    else:
        keys = environment.get(API_KEY_VARIABLE, "")
        check_api_key(keys)
        key = next((key for row in csv.reader([keys]) for key in row if key), None)
    check_api_key(key or "")
    return key


def secret_flags(arguments: Sequence[str]) -> dict[str, str]:
    """The flags among the arguments whose value is a secret, and what to use instead."""
    return {name: _SECRET_FLAGS[name] for name in _without_secrets(arguments)[1]}


def _without_secrets(arguments: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The other arguments, and the secrets by flag. Raises UsageError for a flag without its value."""
    kept: list[str] = []
    secrets: dict[str, list[str]] = {}
    rest = iter(arguments)
    for argument in rest:
        flag, equals, value = argument.partition("=")
        found = BY_NAME.get(flag.replace("_", "-") if flag.startswith("--") else flag)
        name = None if found is None else found.long_name
        if name not in _SECRET_FLAGS:
            kept.append(argument)
            continue
        if not equals:
            given = next(rest, None)
            if given is None:
                raise UsageError(f"{flag} needs a value; better, use {_SECRET_FLAGS[name]}")
            value = given
        if name.endswith("-url") and not re.search("[@?]", value):
            kept += [flag, value]
        else:
            secrets.setdefault(name, []).append(value)
    return kept, secrets
