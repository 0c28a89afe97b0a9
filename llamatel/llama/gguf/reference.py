"""What a person calls a model: a file, a folder, an address, a repository of the Hugging Face Hub."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from llamatel.errors import GGUFError, UsageError
from llamatel.llama.gguf.header import GGUFHeader
from llamatel.llama.gguf.splits import parse_gguf_header, read_model, shard_names

_NAME = r"[A-Za-z0-9][\w.-]*"
_HUB = re.compile(
    rf"(?P<repo>{_NAME}/{_NAME})(?:@(?P<revision>[^:/]+))?(?:/(?P<file>.+)|:(?P<quant>[\w.-]+))?", re.DOTALL
)
_HUB_PAGE = re.compile(rf"/(?P<repo>{_NAME}/{_NAME})/(?:blob|resolve)/(?P<revision>[^/]+)/(?P<file>.+)")
MAX_CONFIG = 4 << 20


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A transformers-style ``config.json``. ``parameters`` is what its weights' headers say, if a Hub told us."""

    name: str
    config: dict[str, Any]
    parameters: int | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """A GGUF of several: ``path`` is its first file, ``size`` the bytes of all its ``files`` (None: not told)."""

    path: str
    size: int | None
    quant: str | None
    files: int = 1


@dataclass(frozen=True, slots=True)
class Choices:
    """A folder or repository with several GGUFs. ``reference`` of a choice is what to ask for instead."""

    name: str
    choices: tuple[Choice, ...]
    remote: bool

    def reference(self, choice: Choice) -> str:
        """What names this choice on a command line."""
        if not self.remote:
            return str(Path(self.name) / choice.path)
        same = [each for each in self.choices if each.quant == choice.quant]
        if choice.quant is not None and same == [choice]:
            return f"{self.name}:{choice.quant}"
        return f"hf://{self.name}/{choice.path}"


Model = GGUFHeader | ModelConfig | Choices
"""What a reference leads to."""


def read_reference(reference: str, *, progress: Callable[[int], None] | None = None) -> Model:
    """The header, tensors included, or the configuration that ``reference`` names; or what there is to choose from.

    A file (``.gguf``, ``config.json``) or folder; ``org/repo``, ``org/repo:Q4_K_M``, ``hf://org/repo/file.gguf``, with
    ``@revision`` behind the repository; ``https://.../x.gguf``. ``progress`` is called with the bytes of each step that
    come over the network. Raises GGUFError, and UsageError for what is none of these.
    """
    if reference.startswith(("http://", "https://")):
        return _address(reference, progress)
    if reference.startswith("hf://"):
        return _hub(reference.removeprefix("hf://"), reference, progress)
    path = Path(reference).expanduser()
    if path.is_dir():
        return _folder(path)
    if path.suffix == ".json":
        return ModelConfig(str(path), parse_config(_read_text(path), str(path)))
    # Two plain words may name a repository, but a file that is there, or must be one by its name, comes first.
    if path.exists() or reference.startswith((".", "/", "~")) or reference.endswith(".gguf"):
        return parse_gguf_header(path, read_tensors=True)
    return _hub(reference, reference, progress)


def quant_of(path: str) -> str | None:
    """The quantisation that a file's name tells, in capitals: ``Q4_K_M``, ``UD-Q2_K_XL``, ``BF16``."""
    found = re.findall(
        r"(?:^|(?<=[-._/]))((?:UD-)?(?:I?Q\d(?:_[A-Z0-9]+)*|TQ\d_\d|MXFP4(?:_MOE)?|NVFP4|BF16|FP?16|FP?32))(?=[-._/]|$)",
        re.sub(r"-\d{5}-of-\d{5}", "", path).removesuffix(".gguf"),
        re.IGNORECASE,
    )
    return found[-1].upper() if found else None


def choices_among(files: list[tuple[str, int | None]]) -> tuple[Choice, ...]:
    """The models among these names and sizes, each split one as one, the smallest first."""
    sizes = dict(files)
    found = []
    for path in sorted(sizes):
        shards = shard_names(path)
        if not path.endswith(".gguf") or path != shards[0]:
            continue
        parts = [sizes.get(shard) for shard in shards]
        size = sum(part for part in parts if part is not None) if None not in parts else None
        found.append(Choice(path, size, quant_of(path), len(shards)))
    return tuple(sorted(found, key=lambda choice: (choice.size is None, choice.size or 0, choice.path)))


def parse_config(text: str, name: str) -> dict[str, Any]:
    """A ``config.json``. Raises GGUFError."""
    if len(text) > MAX_CONFIG:
        raise GGUFError(f"a configuration of more than {MAX_CONFIG >> 20} MiB", path=name)
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GGUFError(f"not JSON: {error}", path=name) from error
    if not isinstance(config, dict):
        raise GGUFError("not a JSON object", path=name)
    return config


def _address(url: str, progress: Callable[[int], None] | None) -> Model:
    from llamatel.llama.gguf.remote import UrlSource

    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise UsageError(f"{url!r} is no address: {error}") from error
    page = _HUB_PAGE.fullmatch(unquote(parts.path))
    if page is not None:
        from llamatel.llama.gguf.hub import Hub

        hub = Hub(progress=progress)
        if url.startswith(hub.endpoint + "/"):
            return hub.read(page["repo"], page["file"], revision=page["revision"])
    return read_model(url, lambda name: UrlSource(name, progress=progress), read_tensors=True)


def _hub(name: str, reference: str, progress: Callable[[int], None] | None) -> Model:
    from llamatel.llama.gguf.hub import Hub

    found = _HUB.fullmatch(name)
    if found is None:
        raise UsageError(
            f"{reference!r} names no model: a file, org/repo, org/repo:Q4_K_M, hf://org/repo/file.gguf, or an address"
        )
    hub = Hub(progress=progress)
    if found["file"] is not None:
        return hub.read(found["repo"], found["file"], revision=found["revision"])
    return hub.choose(found["repo"], quant=found["quant"], revision=found["revision"])


def _folder(folder: Path) -> Model:
    choices = choices_among([(path.name, path.stat().st_size) for path in folder.glob("*.gguf")])
    if len(choices) == 1:
        return parse_gguf_header(folder / choices[0].path, read_tensors=True)
    if choices:
        return Choices(str(folder), choices, remote=False)
    if (folder / "config.json").is_file():
        return ModelConfig(str(folder), parse_config(_read_text(folder / "config.json"), str(folder / "config.json")))
    raise GGUFError("a folder with neither a GGUF file nor a config.json", path=str(folder))


def _read_text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(MAX_CONFIG + 1)
    except UnicodeDecodeError as error:
        raise GGUFError("not UTF-8", path=str(path)) from error
    except OSError as error:
        raise GGUFError(f"cannot be opened: {error.strerror or error}", path=str(path)) from error
