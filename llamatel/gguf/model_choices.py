"""What is found where a model is looked for: a header, a configuration, or several files to choose from."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamatel.errors import GGUFError
from llamatel.gguf.header import GGUFHeader
from llamatel.gguf.split_files import shard_names

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

    @property
    def question(self) -> str:
        """One line that says what there is to choose from."""
        names = ", ".join(self.reference(choice) for choice in self.choices)
        return f"{self.name} holds several models; name one of: {names}"


Model = GGUFHeader | ModelConfig | Choices
"""What a reference leads to."""


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
