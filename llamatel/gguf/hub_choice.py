"""Selects the file of a repository for a tag, by the rules of llama-server's ``-hf``.

Source: llama.cpp's ``common/download.cpp`` (find_best_model, gguf_filename_is_model, get_gguf_split_info), b11434,
October 2026. A tag is searched in whole paths, without regard to case, in the Hub's order; projectors, importance
matrices and draft models, recognised anywhere in a name, are not models.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol, TypeVar

NOT_MODELS = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")
"""Parts of a file name, in lower case, that mark files other than models."""
DEFAULT_TAGS = ("Q4_K_M", "Q8_0")
"""Quantizations that ``-hf`` prefers without a tag."""

_QUALITY = re.compile(r"(?:^|[-._/])(?:UD-)?(?:I?Q\d|TQ\d|MXFP4|NVFP4|BF16|FP?16|FP?32)[A-Z0-9_]*", re.IGNORECASE)


class HasPath(Protocol):
    """A file of a repository; of a split model the first."""

    @property
    def path(self) -> str:
        """Within the repository."""


File = TypeVar("File", bound=HasPath)


def is_model(path: str) -> bool:
    """Whether ``-hf`` treats the file as a model."""
    name = path.rpartition("/")[2]
    return name.endswith(".gguf") and not any(word in name for word in NOT_MODELS)


def named_by(tag: str, files: Sequence[File]) -> list[File]:
    """The models that match a tag; ``-hf`` uses the first."""
    pattern = re.compile(tag + "[.-]", re.IGNORECASE)  # tags are words, dots and hyphens
    return [each for each in files if is_model(each.path) and pattern.search(each.path)]


def of_server(files: Sequence[File]) -> File | None:
    """The model that ``-hf org/repo`` uses without a tag."""
    for tag in DEFAULT_TAGS:
        if found := named_by(tag, files):
            return found[0]
    return next((each for each in files if is_model(each.path)), None)


def one_model(files: Sequence[HasPath]) -> bool:
    """Whether the files are quantizations of one model: their names differ only in the quantization."""
    stems = {_QUALITY.sub("", each.path.rpartition("/")[2].lower()) for each in files}
    return len(stems) <= 1


def projector_of(model: str, paths: Sequence[str]) -> str | None:
    """A multimodal projector that ``-hf`` loads with a model: in its folder, else in a folder above."""
    folder = model.split("/")[:-1]
    found = [path for path in paths if path.endswith(".gguf") and "mmproj" in path]
    above = [path for path in found if folder[: path.count("/")] == path.split("/")[:-1]]
    return max(above, key=lambda path: path.count("/"), default=None)
