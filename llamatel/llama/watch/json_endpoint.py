"""Gets JSON documents of programs that run llama.cpp servers: llama-swap, Ollama."""

from __future__ import annotations

from typing import Any

from llamatel.inputs.documents import InvalidDocument
from llamatel.inputs.http import HttpClient

TIMEOUT_S = 5.0


def get_document(http: HttpClient, path: str, program: str) -> Any:
    """Get the JSON document at ``path``. Raises HttpError, or ValueError if the response is not from ``program``."""
    response = http.request(path, total_s=TIMEOUT_S)
    if response.status != 200:
        raise ValueError(f"it answered {response.status}")
    try:
        return response.json()
    except InvalidDocument as error:
        raise ValueError(f"it is not {program}: {error}") from None
