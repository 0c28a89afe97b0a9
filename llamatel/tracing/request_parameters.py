"""The parameters of a request to a model, as the GenAI conventions name them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NUMBERS: tuple[tuple[str, tuple[str, ...], type], ...] = (
    ("gen_ai.request.max_tokens", ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict"), int),
    ("gen_ai.request.temperature", ("temperature",), float),
    ("gen_ai.request.top_p", ("top_p",), float),
    ("gen_ai.request.top_k", ("top_k",), int),
    ("gen_ai.request.frequency_penalty", ("frequency_penalty",), float),
    ("gen_ai.request.presence_penalty", ("presence_penalty",), float),
    ("gen_ai.request.seed", ("seed",), int),
    ("gen_ai.embeddings.dimension.count", ("dimensions",), int),
)


def parameters(body: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a request that the conventions name; the server refuses those of a wrong type."""
    found: dict[str, Any] = {}
    for attribute, fields, kind in _NUMBERS:
        value = next((body[field] for field in fields if field in body), None)
        if isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool):
            found[attribute] = kind(value)
    stop = body.get("stop", body.get("stop_sequences"))
    stops = [stop] if isinstance(stop, str) else stop
    if isinstance(stops, (list, tuple)) and all(isinstance(one, str) for one in stops):
        found["gen_ai.request.stop_sequences"] = list(stops)
    choices = body.get("n")
    if isinstance(choices, int) and choices != 1:
        found["gen_ai.request.choice.count"] = choices
    if body.get("stream") is True:
        found["gen_ai.request.stream"] = True
    encoding = body.get("encoding_format")
    if isinstance(encoding, str):
        found["gen_ai.request.encoding_formats"] = [encoding]
    wanted = body.get("response_format")
    if isinstance(wanted, Mapping) and isinstance(wanted.get("type"), str):
        found["gen_ai.output.type"] = "json" if wanted["type"].startswith("json") else "text"
    return found


def task_count(operation: str, body: Mapping[str, Any]) -> int:
    """Requests that llama.cpp makes of a call: one for each choice, text or document."""
    many = body.get("documents") if operation == "rerank" else body.get("input", body.get("prompt"))
    count = body.get("n", body.get("n_cmpl", 1))
    if operation in ("chat", "text_completion"):
        texts = many if operation == "text_completion" else None
        lists = isinstance(texts, list) and any(isinstance(text, (str, list)) for text in texts)
        return (count if isinstance(count, int) else 1) * (len(texts) if lists and texts else 1)
    lists = isinstance(many, list) and any(isinstance(text, (str, list)) for text in many)
    return len(many) if lists and many else 1
