"""What is asked of a server: one Request for each thing that the client can do, the same for both clients.

Source of paths and fields: tools/server/README.md and server.cpp of llama.cpp. Fields that are None are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from llamatel.errors import UsageError
from llamatel.llama.client import model_results as results
from llamatel.llama.client import server_results as state
from llamatel.llama.client.result import Result, decode
from llamatel.llama.http.server_client import parse_counters

T = TypeVar("T")
R = TypeVar("R", bound=Result)


@dataclass(frozen=True)
class Request(Generic[T]):
    """One thing to ask. ``T`` is what comes back; of a stream, what each piece is."""

    method: str
    path: str
    decode: Callable[[Any], T]
    """Makes the result of the answer's JSON (of its text, if ``text``). Raises TypeError, ValueError or KeyError for
    nonsense."""
    body: Mapping[str, Any] | list[Any] | None = None
    operation: str | None = None
    """``gen_ai.operation.name`` of what asks a model; None for the rest, which is not traced."""
    stream: bool = False
    text: bool = False
    accept: tuple[int, ...] = (200,)
    timeout_s: float | None = None
    query: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.timeout_s is not None:
            check_timeout(self.timeout_s)


def check_timeout(seconds: Any) -> None:
    """Raises UsageError for what is no time to wait."""
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or not 0 < seconds < math.inf:
        raise UsageError(f"timeout is {seconds!r}: it is a number of seconds above 0")


def _object(kind: type[R], document: Any) -> R:
    if not isinstance(document, Mapping):
        raise TypeError("no JSON object")
    return decode(kind, document)


def _objects(kind: type[R], document: Any) -> tuple[R, ...]:
    if not isinstance(document, list):
        raise TypeError("no JSON array")
    return tuple(_object(kind, one) for one in document)


def _with_messages(fields: Mapping[str, Any]) -> dict[str, Any]:
    messages = fields["messages"]
    if isinstance(messages, (str, bytes, Mapping)):
        raise UsageError('messages is a list, as in [{"role": "user", "content": "Hello"}]')
    return {**fields, "messages": list(messages)}


def _given(**fields: Any) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}


def _post(
    path: str, kind: type[R], fields: Mapping[str, Any], *, operation: str | None = None, timeout: float | None = None
) -> Request[R]:
    return Request(
        "POST", path, partial(_object, kind), _given(**fields), operation,
        stream=bool(fields.get("stream")), timeout_s=timeout,
    )  # fmt: skip


def _get(path: str, kind: type[R], timeout: float | None) -> Request[R]:
    return Request("GET", path, partial(_object, kind), timeout_s=timeout)


# -- asking the model -------------------------------------------------------------------------------------------------


def chat(fields: Mapping[str, Any], timeout: float | None) -> Request[Any]:
    """A chat, whole or streamed."""
    kind: type[Result] = results.ChatCompletionChunk if fields.get("stream") else results.ChatCompletion
    return _post("/v1/chat/completions", kind, _with_messages(fields), operation="chat", timeout=timeout)


def openai_completion(fields: Mapping[str, Any], timeout: float | None) -> Request[results.OpenAICompletion]:
    """A plain completion in OpenAI's form."""
    kind = results.OpenAICompletion
    return _post("/v1/completions", kind, fields, operation="text_completion", timeout=timeout)


def complete(fields: Mapping[str, Any], timeout: float | None) -> Request[results.TextCompletion]:
    """A plain completion in llama.cpp's form."""
    return _post("/completion", results.TextCompletion, fields, operation="text_completion", timeout=timeout)


def infill(fields: Mapping[str, Any], timeout: float | None) -> Request[results.TextCompletion]:
    """What belongs between a prefix and a suffix."""
    return _post("/infill", results.TextCompletion, fields, operation="text_completion", timeout=timeout)


def response(fields: Mapping[str, Any], timeout: float | None) -> Request[Any]:
    """OpenAI's Responses."""
    kind: type[Result] = results.Event if fields.get("stream") else results.Response
    return _post("/v1/responses", kind, fields, operation="chat", timeout=timeout)


def message(fields: Mapping[str, Any], timeout: float | None) -> Request[Any]:
    """Anthropic's Messages."""
    kind: type[Result] = results.Event if fields.get("stream") else results.AnthropicMessage
    return _post("/v1/messages", kind, _with_messages(fields), operation="chat", timeout=timeout)


def embeddings(fields: Mapping[str, Any], timeout: float | None) -> Request[results.Embeddings]:
    """Vectors of texts."""
    return _post("/v1/embeddings", results.Embeddings, fields, operation="embeddings", timeout=timeout)


def rerank(fields: Mapping[str, Any], timeout: float | None) -> Request[results.Ranking]:
    """How well documents fit a query."""
    documents = fields["documents"]
    if isinstance(documents, str):
        raise UsageError("documents is a list of texts")
    fields = {**fields, "documents": list(documents)}
    return _post("/v1/rerank", results.Ranking, fields, operation="rerank", timeout=timeout)


# -- tools and state --------------------------------------------------------------------------------------------------


def tokenize(fields: Mapping[str, Any], timeout: float | None) -> Request[state.Tokens]:
    """Text to tokens."""
    return Request("POST", "/tokenize", _tokens, _given(**fields), timeout_s=timeout)


def _tokens(document: Any) -> state.Tokens:
    """With pieces each token is an object of its id and its piece."""
    found = _object(state.Tokens, document)
    told = [one for one in found.tokens if isinstance(one, Mapping)]
    if not told:
        return found
    return replace(found, tokens=tuple(one["id"] for one in told), pieces=tuple(one["piece"] for one in told))


def detokenize(tokens: Iterable[int], timeout: float | None) -> Request[state.Detokenized]:
    """Tokens to text."""
    return _post("/detokenize", state.Detokenized, {"tokens": list(tokens)}, timeout=timeout)


def apply_template(fields: Mapping[str, Any], timeout: float | None) -> Request[state.Prompt]:
    """Messages to a prompt."""
    return _post("/apply-template", state.Prompt, _with_messages(fields), timeout=timeout)


def health(timeout: float | None) -> Request[state.Health]:
    """Whether it is ready; that it still loads is an answer, not an error."""
    return Request("GET", "/health", _health, accept=(200, 503), timeout_s=timeout)


def _health(document: Any) -> state.Health:
    if isinstance(document, Mapping) and "error" in document:
        return state.Health(document, "loading")
    return _object(state.Health, document)


def props(timeout: float | None) -> Request[state.Props]:
    """What the server is."""
    return _get("/props", state.Props, timeout)


def models(timeout: float | None) -> Request[state.Models]:
    """The models that it has."""
    return _get("/v1/models", state.Models, timeout)


def metrics(timeout: float | None) -> Request[Mapping[str, float]]:
    """llama.cpp's own counters and gauges."""
    return Request("GET", "/metrics", parse_counters, text=True, timeout_s=timeout)


def slots(timeout: float | None) -> Request[tuple[state.Slot, ...]]:
    """Its slots."""
    return Request("GET", "/slots", partial(_objects, state.Slot), timeout_s=timeout)


def slot_action(slot: int, action: str, filename: str | None, timeout: float | None) -> Request[state.SlotAction]:
    """Save, restore or erase a slot's cache."""
    if filename is not None and "/" in filename:
        raise UsageError(f"'{filename}' is a path: a slot's file is a name in the server's --slot-save-path")
    body = _given(filename=filename)
    kind = partial(_object, state.SlotAction)
    return Request("POST", f"/slots/{quote(str(int(slot)))}", kind, body, query={"action": action}, timeout_s=timeout)


def lora(timeout: float | None) -> Request[tuple[state.LoraAdapter, ...]]:
    """Its LoRA adapters."""
    return Request("GET", "/lora-adapters", partial(_objects, state.LoraAdapter), timeout_s=timeout)


def set_lora(scales: Mapping[int, float], timeout: float | None) -> Request[bool]:
    """How much each adapter weighs, for all requests from now on."""
    body = [{"id": adapter, "scale": scale} for adapter, scale in scales.items()]
    return Request("POST", "/lora-adapters", _succeeded, body, timeout_s=timeout)


def _succeeded(document: Any) -> bool:
    return bool(document.get("success", True)) if isinstance(document, Mapping) else True
