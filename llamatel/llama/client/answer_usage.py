"""Usage and timings of a response, in each of llama.cpp's forms (tools/server/server-task.cpp, ``to_json_*``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llamatel.inputs.documents import mapping

_LARGEST = 2**53
_COUNTS = frozenset({"prompt_n", "predicted_n", "cache_n", "draft_n", "draft_n_accepted"})


def update(answer: dict[str, Any], document: Mapping[str, Any]) -> None:
    """Add to ``answer`` the figures of a document (a whole response or an event of a stream).

    Keys: ``id``, ``model``, ``finish_reasons``, ``usage``, ``timings``, ``slot``, ``truncated``.
    """
    if document.get("type") == "content_block_delta":
        return
    # The last event of a Responses stream and the first of a Messages stream contain the response object.
    inner = document.get("response") or document.get("message")
    if isinstance(inner, Mapping):
        _add(answer, inner)
    _add(answer, document)


def _add(answer: dict[str, Any], document: Mapping[str, Any]) -> None:
    for key, kind in (("id", str), ("model", str)):
        value = document.get(key)
        if isinstance(value, kind) and value:
            answer[key] = value
    usage, timings = document.get("usage"), document.get("timings")
    if isinstance(usage, Mapping):
        answer["usage"] = {**answer.get("usage", {}), **_numbers(usage)}
    if isinstance(timings, Mapping) and "predicted_n" in timings:
        answer["timings"] = _numbers(timings)
    if _is_number(slot := document.get("id_slot")) and isinstance(slot, int):
        answer["slot"] = slot
    if isinstance(document.get("truncated"), bool):
        answer["truncated"] = document["truncated"]
    reasons = [reason for reason in _reasons(document) if isinstance(reason, str) and reason != "none"]
    if reasons:
        answer["finish_reasons"] = [*answer.get("finish_reasons", ()), *reasons]


def _numbers(given: Mapping[str, Any]) -> dict[str, Any]:
    """The possible numbers of an object, and of the objects in it."""
    return {
        key: {name: number for name, number in value.items() if _is_number(number)}
        if isinstance(value, Mapping)
        else value
        for key, value in given.items()
        if isinstance(value, Mapping) or (_is_number(value) and (key not in _COUNTS or isinstance(value, int)))
    }


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= _LARGEST


def _reasons(document: Mapping[str, Any]) -> list[Any]:
    choices = document.get("choices")
    if isinstance(choices, list):
        return [choice.get("finish_reason") for choice in choices if isinstance(choice, Mapping)]
    delta = document.get("delta")
    return [
        document.get("stop_reason"),
        document.get("stop_type") if document.get("stop") else None,
        delta.get("stop_reason") if isinstance(delta, Mapping) else None,
    ]


def has_token(document: Mapping[str, Any]) -> bool:
    """Whether an event of a stream has generated content; a role or progress is none."""
    kind = document.get("type")
    if isinstance(kind, str):
        return kind == "content_block_delta" or (kind.startswith("response.") and kind.endswith(".delta"))
    if document.get("content"):
        return True
    choices = document.get("choices")
    if not isinstance(choices, list):
        return False
    for choice in choices:
        if isinstance(choice, Mapping):
            delta = choice.get("delta")
            delta = delta if isinstance(delta, Mapping) else choice
            if any(delta.get(key) for key in ("content", "reasoning_content", "tool_calls", "text")):
                return True
    return False


def input_tokens(answer: Mapping[str, Any]) -> int | None:
    """Prompt tokens, cached ones included."""
    usage, timings = answer.get("usage", {}), answer.get("timings", {})
    if "cache_read_input_tokens" in usage:
        # Messages count cached tokens separately.
        return _sum(usage.get("input_tokens"), usage.get("cache_read_input_tokens"))
    counted = usage.get("prompt_tokens", usage.get("input_tokens"))
    return counted if isinstance(counted, int) else _sum(timings.get("prompt_n"), timings.get("cache_n"))


def output_tokens(answer: Mapping[str, Any]) -> int | None:
    """Generated tokens; None for embeddings, which generate none."""
    usage, timings = answer.get("usage", {}), answer.get("timings", {})
    counted = usage.get("completion_tokens", usage.get("output_tokens", timings.get("predicted_n")))
    return counted if isinstance(counted, int) else None


def cached_tokens(answer: Mapping[str, Any]) -> int | None:
    """Prompt tokens that came from the KV cache."""
    usage, timings = answer.get("usage", {}), answer.get("timings", {})
    details = mapping(usage.get("prompt_tokens_details") or usage.get("input_tokens_details"))
    found = usage.get("cache_read_input_tokens", details.get("cached_tokens", timings.get("cache_n")))
    return found if isinstance(found, int) else None


def _sum(first: Any, second: Any) -> int | None:
    return first + second if isinstance(first, int) and isinstance(second, int) else None
