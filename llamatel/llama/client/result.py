"""Responses of llama.cpp as objects: ``answer.choices[0].message.content``.

A result is the unchanged JSON object, with its keys as attributes. Fields that llama.cpp sometimes omits are None where
they are missing; any other missing name is an AttributeError.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llamatel.providers import HtmlRepresentation

_OPTIONAL = frozenset(
    [
        "cache_n",
        "prompt_n",
        "prompt_ms",
        "prompt_per_token_ms",
        "prompt_per_second",
        "predicted_n",
        "predicted_ms",
        "predicted_per_token_ms",
        "predicted_per_second",
        "draft_n",
        "draft_n_accepted",
        "cached_tokens",
        "reasoning_tokens",
        "prompt_tokens",
        "completion_tokens",
        "total_tokens",
        "prompt_tokens_details",
        "completion_tokens_details",
        "id",
        "model",
        "created",
        "object",
        "system_fingerprint",
        "choices",
        "usage",
        "timings",
        "prompt_progress",
        "index",
        "message",
        "delta",
        "finish_reason",
        "logprobs",
        "role",
        "content",
        "reasoning_content",
        "tool_calls",
        "type",
        "function",
        "name",
        "arguments",
        "id_slot",
        "stop",
        "stop_type",
        "stopping_word",
        "tokens_predicted",
        "tokens_evaluated",
        "tokens_cached",
        "truncated",
        "total_slots",
        "model_path",
        "model_alias",
        "build_info",
        "chat_template",
        "modalities",
        "is_sleeping",
        "n_ctx",
        "is_processing",
        "id_task",
        "n_prompt_tokens",
        "n_prompt_tokens_processed",
        "n_prompt_tokens_cache",
        "filename",
        "n_saved",
        "n_written",
        "n_restored",
        "n_read",
        "n_erased",
        "owned_by",
        "meta",
        "status",
        "path",
        "scale",
        "relevance_score",
        "document",
    ]
)


class Result(Mapping[str, Any], HtmlRepresentation):
    """A JSON object; ``raw`` is the unchanged one."""

    __slots__ = ("raw",)

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw = raw

    def __getattr__(self, name: str) -> Any:
        if name in self.raw and name != "raw":
            return wrapped(self.raw[name])
        if name in _OPTIONAL:
            return None
        raise AttributeError(f"{type(self).__name__} has no {name!r}; it has {', '.join(self.raw) or 'no field'}")

    def __getitem__(self, key: str) -> Any:
        return self.raw[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.raw)

    def __len__(self) -> int:
        return len(self.raw)

    def __dir__(self) -> list[str]:
        return sorted({*object.__dir__(self), *(key for key in self.raw if key.isidentifier())})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({dict(self.raw)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.raw,)


def wrapped(value: Any) -> Any:
    """A JSON value as a result: objects are Results, arrays tuples."""
    if isinstance(value, Mapping):
        return Result(value)
    return tuple(wrapped(one) for one in value) if isinstance(value, list) else value


class TextCompletion(Result):
    """``complete`` and ``infill``: llama.cpp's own form. The last chunk of a stream has all of its fields."""

    __slots__ = ()

    @property
    def text(self) -> str:
        """The generated text."""
        return str(self.raw.get("content") or "")

    @property
    def usage(self) -> Result | None:
        """Its tokens in OpenAI's form; None in a chunk before the last."""
        prompt, generated = self.tokens_evaluated, self.tokens_predicted
        if self.timings is None or prompt is None or generated is None:
            return None
        details = {"cached_tokens": self.timings.cache_n}
        counts = {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}
        return Result({**counts, "prompt_tokens_details": details})


class Tokens(Result):
    """``tokenize``: an iterable of the ids; ``pieces`` is the text of each where it was requested."""

    __slots__ = ()

    @property
    def tokens(self) -> tuple[int, ...]:
        """The ids."""
        return tuple(one["id"] if isinstance(one, Mapping) else one for one in self.raw.get("tokens", ()))

    @property
    def pieces(self) -> tuple[str | list[int], ...]:
        """The text of each; its bytes where they are not UTF-8."""
        return tuple(one["piece"] for one in self.raw.get("tokens", ()) if isinstance(one, Mapping))

    def __len__(self) -> int:
        return len(self.tokens)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.tokens)


class Health(Result):
    """``health``: true if the server is ready; ``status`` is ``ok``, or ``loading`` while the model loads."""

    __slots__ = ()

    @property
    def status(self) -> str | None:
        """llama.cpp's own status."""
        return "loading" if "error" in self.raw else self.raw.get("status")

    def __bool__(self) -> bool:
        return self.status == "ok"


class Props(Result):
    """``props``: the server's properties."""

    __slots__ = ()

    @property
    def n_ctx(self) -> int | None:
        """Tokens that one slot holds."""
        found = self.raw.get("default_generation_settings")
        value = found.get("n_ctx") if isinstance(found, Mapping) else None
        return value if isinstance(value, int) else None
