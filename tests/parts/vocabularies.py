"""The vocabulary-only models of llama.cpp's own tests, from llama-cpp-python's source."""

from __future__ import annotations

import shutil
from pathlib import Path

from .cache import cache_folder, cached
from .llama_server import VERSION, download_source

PART = f"vocabularies-{VERSION}"


def _extract(folder: Path) -> None:
    work = folder / "work"
    work.mkdir()
    source = download_source(work, cache_folder() / f"{PART}.log")
    for path in (source / "models").glob("ggml-vocab-*.gguf"):
        path.rename(folder / path.name)
    shutil.rmtree(work)


def vocabularies() -> list[Path]:
    """Return the files, 0.6 to 16 MB each. Raises MissingPart."""
    return sorted(cached(PART, _extract).glob("*.gguf"))
