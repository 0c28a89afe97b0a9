"""Results of resolving a model reference: a header, a configuration, or several files to choose from."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llamatel.errors import GGUFError
from llamatel.gguf.header import GGUFHeader
from llamatel.gguf.hub_choice import named_by
from llamatel.gguf.split_files import shard_of
from llamatel.inputs.documents import InvalidDocument, parse_json

MAX_CONFIG = 4 << 20
SHOWN = 20
"""Most names in a message."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A transformers-style ``config.json``. ``parameters`` is their number in its weights, where the Hub knows it."""

    name: str
    config: dict[str, Any]
    parameters: int | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """A GGUF of several: ``path`` is its first file, ``size`` the bytes of all its ``files`` (None: not known)."""

    path: str
    size: int | None
    quant: str | None
    files: int = 1


@dataclass(frozen=True)
class Choices:
    """A folder or repository with several GGUFs, the smallest first; ``reference`` is what names one of them."""

    name: str
    choices: tuple[Choice, ...]
    remote: bool

    def reference(self, choice: Choice) -> str:
        """The reference of this choice on a command line."""
        if not self.remote:
            return str(Path(self.name) / choice.path)
        if choice.quant is not None and self._named[choice.quant] == [choice]:
            return f"{self.name}:{choice.quant}"
        return f"hf://{self.name}/{choice.path}"

    @cached_property
    def _named(self) -> dict[str, list[Choice]]:
        """The model for each quantization, by llama-server's rules."""
        names = dict.fromkeys(choice.quant for choice in self.choices if choice.quant is not None)
        return {name: named_by(name, self.choices) for name in names}

    @property
    def question(self) -> str:
        """One line that lists the models."""
        names = [self.reference(each) for each in self.choices[:SHOWN]]
        return f"{self.name} holds several models; name one of: {listed(names, len(self.choices))}"


def listed(names: Sequence[str], number: int | None = None) -> str:
    """The first of ``number`` names, and how many more there are."""
    more = (len(names) if number is None else number) - len(names[:SHOWN])
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more else "")


Model = GGUFHeader | ModelConfig | Choices
"""The result of resolving a reference."""


def quant_of(path: str) -> str | None:
    """The quantisation in a file's name, in capitals: ``Q4_K_M``, ``UD-Q2_K_XL``, ``BF16``."""
    found = re.findall(
        r"(?:^|(?<=[-._/]))((?:UD-)?(?:I?Q\d(?:_[A-Z0-9]+)*|TQ\d_\d|MXFP4(?:_MOE)?|NVFP4|BF16|FP?16|FP?32))(?=[-._/]|$)",
        re.sub(r"-\d{5}-of-\d{5}", "", path).removesuffix(".gguf"),
        re.IGNORECASE,
    )
    return found[-1].upper() if found else None


def choices_among(files: Sequence[tuple[str, int | None]]) -> tuple[Choice, ...]:
    """The models among these names and sizes, the smallest first; a split model is one."""
    sizes: dict[str, list[int | None]] = defaultdict(list)
    first: dict[str, tuple[str, int]] = {}
    for path, size in dict(files).items():
        if path.endswith(".gguf"):
            shard = shard_of(path)
            sizes[shard.model].append(size)
            if shard.number == 1:
                first[shard.model] = (path, shard.count)
    found = []
    for model, (path, count) in first.items():
        known = [size for size in sizes[model] if size is not None]
        found.append(Choice(path, sum(known) if len(known) == count else None, quant_of(path), count))
    return tuple(sorted(found, key=lambda choice: (choice.size is None, choice.size or 0, choice.path)))


def parse_config(text: str | bytes, name: str) -> dict[str, Any]:
    """A ``config.json``. Raises GGUFError."""
    if len(text) > MAX_CONFIG:
        raise GGUFError(f"a configuration of more than {MAX_CONFIG >> 20} MiB", path=name)
    try:
        config = parse_json(text)
    except InvalidDocument as error:
        raise GGUFError(f"not JSON: {error}", path=name) from error
    if not isinstance(config, dict):
        raise GGUFError("not a JSON object", path=name)
    return config
