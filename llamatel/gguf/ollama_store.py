"""Finds models in Ollama's local store: the GGUF blob of ``ollama://model:tag``.

Source: ollama's ``types/model/name.go``: ``manifests/HOST/NAMESPACE/MODEL/TAG`` is a JSON document that lists layers,
``blobs/sha256-…`` hold them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from llamatel.errors import GGUFError, UsageError
from llamatel.inputs.documents import InvalidDocument, parse_json
from llamatel.inputs.text_file import user_path

_PART = r"[A-Za-z0-9_][\w.-]{0,79}"
_NAME = re.compile(
    rf"(?:(?:(?P<host>{_PART}(?::\d+)?)/)?(?P<namespace>{_PART})/)?(?P<model>{_PART})(?::(?P<tag>{_PART}))?"
)
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_MODEL = "application/vnd.ollama.image.model"
_MAX_MANIFEST = 1 << 20
_SYSTEM = Path("/usr/share/ollama/.ollama/models")
"""Where Ollama's Linux service keeps models."""


def stores() -> list[Path]:
    """The possible folders of models: OLLAMA_MODELS, or the user's, then the system service's."""
    chosen = os.environ.get("OLLAMA_MODELS")
    if chosen:
        return [user_path(chosen)]
    return [Path.home() / ".ollama" / "models", _SYSTEM]


def blob_of(name: str) -> Path:
    """The GGUF of ``[[host/]namespace/]model[:tag]``; without a tag ``latest``. Raises GGUFError, UsageError."""
    found = _NAME.fullmatch(name)
    if found is None or ".." in name:
        raise UsageError(f"'ollama://{name}' names no model: write it like ollama://llama3.2:1b")
    host, namespace = found["host"] or "registry.ollama.ai", found["namespace"] or "library"
    path = Path(host, namespace, found["model"], found["tag"] or "latest")
    for store in stores():
        manifest = store / "manifests" / path
        try:
            is_there = manifest.is_file()
        except OSError:
            is_there = False
        if is_there:
            return _model_layer(store, manifest, name)
    places = " or ".join(str(store) for store in stores())
    raise GGUFError(
        f"Ollama's store has no such model ({places}; OLLAMA_MODELS names another)", path=f"ollama://{name}"
    )


def _model_layer(store: Path, manifest: Path, name: str) -> Path:
    reference = f"ollama://{name}"
    try:
        with manifest.open("rb") as file:
            document: Any = parse_json(file.read(_MAX_MANIFEST + 1), largest=_MAX_MANIFEST)
    except (OSError, InvalidDocument) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise GGUFError(f"its manifest cannot be read: {why}", path=reference) from error
    layers = document.get("layers") if isinstance(document, dict) else None
    found = [each for each in layers if isinstance(each, dict)] if isinstance(layers, list) else []
    for layer in found:
        digest = _DIGEST.fullmatch(str(layer.get("digest")))
        if layer.get("mediaType") == _MODEL and digest is not None:
            return store / "blobs" / f"sha256-{digest[1]}"
    if any(".tensor" in str(layer.get("mediaType")) for layer in found):
        raise GGUFError("it is stored as tensors for another engine than llama.cpp: it has no GGUF", path=reference)
    raise GGUFError("it has no model of its own: it may run in Ollama's cloud", path=reference)
