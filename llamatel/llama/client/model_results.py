"""What a model answers, in the forms that llama.cpp has (tools/server/server-task.cpp)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llamatel.llama.client.result import Result

# -- figures ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timings(Result):
    """llama.cpp's own measurements of a request; milliseconds and tokens. The wait for a slot is not in them."""

    cache_n: int | None = None
    """Prompt tokens taken from the KV cache."""
    prompt_n: int | None = None
    """Prompt tokens computed."""
    prompt_ms: float | None = None
    prompt_per_token_ms: float | None = None
    prompt_per_second: float | None = None
    predicted_n: int | None = None
    predicted_ms: float | None = None
    predicted_per_token_ms: float | None = None
    predicted_per_second: float | None = None
    draft_n: int | None = None
    draft_n_accepted: int | None = None


@dataclass(frozen=True)
class TokenDetails(Result):
    """Parts of a token count."""

    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


@dataclass(frozen=True)
class Usage(Result):
    """Tokens of a request; prompt tokens include cached ones."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: TokenDetails | None = None
    completion_tokens_details: TokenDetails | None = None


@dataclass(frozen=True)
class Progress(Result):
    """How far a prompt is processed (``return_progress``)."""

    total: int | None = None
    cache: int | None = None
    processed: int | None = None
    time_ms: float | None = None


# -- chat -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FunctionCall(Result):
    """A function that the model wants called; ``arguments`` is JSON as text."""

    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True)
class ToolCall(Result):
    """A tool that the model wants called, or a piece of it in a stream."""

    index: int | None = None
    id: str | None = None
    type: str | None = None
    function: FunctionCall | None = None


@dataclass(frozen=True)
class Message(Result):
    """A message, or in a stream what is added to it."""

    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class Choice(Result):
    """One answer of a chat."""

    index: int = 0
    message: Message = field(default_factory=Message)
    finish_reason: str | None = None
    logprobs: Any = None


@dataclass(frozen=True)
class ChatCompletion(Result):
    """``chat.completions.create``."""

    id: str | None = None
    model: str | None = None
    created: int | None = None
    object: str | None = None
    system_fingerprint: str | None = None
    choices: tuple[Choice, ...] = ()
    usage: Usage | None = None
    timings: Timings | None = None


@dataclass(frozen=True)
class ChunkChoice(Result):
    """What one chunk adds to one answer."""

    index: int = 0
    delta: Message = field(default_factory=Message)
    finish_reason: str | None = None
    logprobs: Any = None


@dataclass(frozen=True)
class ChatCompletionChunk(Result):
    """A piece of a streamed chat; ``timings`` are on the last one."""

    id: str | None = None
    model: str | None = None
    created: int | None = None
    choices: tuple[ChunkChoice, ...] = ()
    usage: Usage | None = None
    timings: Timings | None = None
    prompt_progress: Progress | None = None


# -- text -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextCompletion(Result):
    """``complete`` and ``infill``: llama.cpp's own form. Of a stream each chunk has this form, the last all of it."""

    content: str = ""
    model: str | None = None
    index: int = 0
    id_slot: int | None = None
    stop: bool | None = None
    stop_type: str | None = None
    """``eos``, ``limit``, ``word`` or ``none``."""
    stopping_word: str | None = None
    tokens: tuple[int, ...] = ()
    tokens_predicted: int | None = None
    tokens_evaluated: int | None = None
    tokens_cached: int | None = None
    truncated: bool | None = None
    timings: Timings | None = None
    prompt_progress: Progress | None = None

    @property
    def text(self) -> str:
        """The generated text."""
        return self.content

    @property
    def usage(self) -> Usage | None:
        """Its tokens, in the words of the other forms; None in a chunk before the last."""
        if self.tokens_evaluated is None or self.tokens_predicted is None or self.timings is None:
            return None
        cached = TokenDetails(cached_tokens=self.timings.cache_n)
        total = self.tokens_evaluated + self.tokens_predicted
        return Usage({}, self.tokens_evaluated, self.tokens_predicted, total, cached)


@dataclass(frozen=True)
class OpenAIChoice(Result):
    """One answer of ``completions.create``."""

    index: int = 0
    text: str = ""
    finish_reason: str | None = None
    logprobs: Any = None


@dataclass(frozen=True)
class OpenAICompletion(Result):
    """``completions.create``: plain completion in OpenAI's form, whole or a chunk."""

    id: str | None = None
    model: str | None = None
    created: int | None = None
    choices: tuple[OpenAIChoice, ...] = ()
    usage: Usage | None = None
    timings: Timings | None = None
    prompt_progress: Progress | None = None


# -- OpenAI's Responses, Anthropic's Messages -------------------------------------------------------------------------


@dataclass(frozen=True)
class IOUsage(Result):
    """Tokens as these two forms count them: Responses with the cached ones, Messages without."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    input_tokens_details: TokenDetails | None = None
    cache_read_input_tokens: int | None = None


@dataclass(frozen=True)
class Part(Result):
    """A piece of content; what it has depends on its ``type``."""

    type: str | None = None
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: Any = None


@dataclass(frozen=True)
class OutputItem(Result):
    """A message, reasoning or a function call of a Response."""

    type: str | None = None
    id: str | None = None
    role: str | None = None
    status: str | None = None
    content: tuple[Part, ...] = ()
    name: str | None = None
    arguments: str | None = None
    call_id: str | None = None


@dataclass(frozen=True)
class Response(Result):
    """``responses.create``; llama.cpp gives no timings here, but at the end of a stream."""

    id: str | None = None
    model: str | None = None
    status: str | None = None
    output: tuple[OutputItem, ...] = ()
    usage: IOUsage | None = None
    timings: Timings | None = None

    @property
    def output_text(self) -> str:
        """The text of its messages."""
        return "".join(part.text or "" for item in self.output if item.type == "message" for part in item.content)


@dataclass(frozen=True)
class AnthropicMessage(Result):
    """``messages.create``; llama.cpp gives no timings here."""

    id: str | None = None
    model: str | None = None
    role: str | None = None
    content: tuple[Part, ...] = ()
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: IOUsage | None = None

    @property
    def text(self) -> str:
        """The text of its parts."""
        return "".join(part.text or "" for part in self.content if part.type == "text")


@dataclass(frozen=True)
class Event(Result):
    """A piece of a streamed Response or Message: ``type`` says what ``raw`` holds."""

    type: str | None = None
    delta: Any = None
    timings: Timings | None = None

    @property
    def text(self) -> str:
        """The text that it adds to the answer, if it does."""
        if isinstance(self.delta, str):
            return self.delta if self.type == "response.output_text.delta" else ""
        return str(self.delta.get("text") or "") if isinstance(self.delta, Mapping) else ""


# -- vectors ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Embedding(Result):
    """One vector; text where ``encoding_format`` is base64."""

    index: int = 0
    embedding: Any = ()


@dataclass(frozen=True)
class Embeddings(Result):
    """``embeddings.create``."""

    model: str | None = None
    data: tuple[Embedding, ...] = ()
    usage: Usage | None = None


@dataclass(frozen=True)
class Ranked(Result):
    """How well one document fits."""

    index: int = 0
    relevance_score: float | None = None
    document: Any = None


@dataclass(frozen=True)
class Ranking(Result):
    """``rerank``: best first, as the server sends them."""

    model: str | None = None
    results: tuple[Ranked, ...] = ()
    usage: Usage | None = None
