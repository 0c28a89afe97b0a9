"""The models that Ollama has loaded, by name and by the file of their weights.

From ``/api/ps``, and ``/api/show`` once for each model: both answer without loading a model or keeping one loaded.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from llamatel.errors import HttpError
from llamatel.inputs.documents import InvalidDocument, text
from llamatel.inputs.http import HttpClient
from llamatel.llama.log.wrapper_time import find_time
from llamatel.llama.watch.json_endpoint import TIMEOUT_S, get_document

_MAX_MODELS = 64
_LONGEST = 4096


def parse_loaded(document: Any) -> dict[str, str | None]:
    """Names of loaded models, and when each expires. Raises ValueError for a response that is not Ollama's."""
    entries = document.get("models") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError("it is not Ollama's list of loaded models")  # noqa: TRY004 - a document's shape
    found = {}
    for entry in entries[:_MAX_MODELS]:
        name = text(entry.get("name")) if isinstance(entry, dict) else None
        details = entry.get("details") if isinstance(entry, dict) else None
        if name is not None and (not isinstance(details, dict) or details.get("format") in (None, "", "gguf")):
            found[name] = text(entry.get("expires_at"))
    return found


def parse_weights(document: Any) -> str | None:
    """The path of a model's weights in the answer of ``/api/show``: the first ``FROM`` of its Modelfile."""
    modelfile = document.get("modelfile") if isinstance(document, dict) else None
    if not isinstance(modelfile, str):
        return None
    for line in modelfile.splitlines()[:1000]:
        if line.startswith("FROM "):
            return line[5:].strip()[:_LONGEST] or None
    return None


def file_name(path: str) -> str:
    """The last part of a path of any system, which identifies a file of weights."""
    return path.replace("\\", "/").rpartition("/")[2]


class OllamaModels:
    """Polls Ollama's models. Not thread-safe."""

    def __init__(self, http: HttpClient) -> None:
        self._http = http
        self._weights: dict[str, str | None] = {}
        """File names of weights by model."""
        self.loaded: Mapping[str, str] | None = None
        """Names of the loaded models by the file names of their weights; None while Ollama does not respond."""
        self.complete = False
        """Whether the weights of all loaded models are known."""
        self._expiries: dict[str, float] = {}
        """When each model's keep-alive expires, by its weights, as last reported (Unix time); kept after its end."""

    def poll(self) -> None:
        """Raises HttpError if Ollama does not respond, ValueError if another program does."""
        self.loaded, self.complete = None, False
        names = parse_loaded(get_document(self._http, "/api/ps", "Ollama"))
        for name in names:
            if name not in self._weights:
                self._weights[name] = self._show(name)
        self._weights = {name: weights for name, weights in self._weights.items() if name in names}
        found: dict[str, str] = {}
        for name in sorted(names, reverse=True):  # of several names for one file the first
            if (weights := self._weights[name]) is not None:
                found[weights] = name
                if (at := find_time(names[name] or "")) is not None:
                    self._expiries.pop(weights, None)
                    self._expiries[weights] = at
        while len(self._expiries) > _MAX_MODELS:
            del self._expiries[next(iter(self._expiries))]
        self.loaded, self.complete = found, None not in self._weights.values()

    def expires_in(self, weights: str, at: float) -> float | None:
        """Seconds from ``at`` (monotonic) until the model's keep-alive would have expired."""
        expiry = self._expiries.get(weights)
        return None if expiry is None else expiry - (time.time() - time.monotonic() + at)

    def _show(self, name: str) -> str | None:
        body = json.dumps({"model": name}).encode()
        try:
            response = self._http.request("/api/show", method="POST", body=body, total_s=TIMEOUT_S)
            path = parse_weights(response.json()) if response.status == 200 else None
        except (HttpError, InvalidDocument):
            return None
        return None if path is None else file_name(path)
