"""The client of a llama.cpp server. ``aio`` has the same surface for asyncio; a test compares them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, TypeVar, overload

from llamatel.llama.client import endpoints as request
from llamatel.llama.client import exchange
from llamatel.llama.client.endpoints import Request
from llamatel.llama.client.model_results import (
    AnthropicMessage,
    ChatCompletion,
    ChatCompletionChunk,
    Embeddings,
    Event,
    OpenAICompletion,
    Ranking,
    Response,
    TextCompletion,
)
from llamatel.llama.client.server_results import (
    Detokenized,
    Health,
    LoraAdapter,
    Models,
    Prompt,
    Props,
    Slot,
    SlotAction,
    Tokens,
)
from llamatel.llama.client.stream import Stream
from llamatel.llama.client.transport import Transport

T = TypeVar("T")
Messages = Sequence[Mapping[str, Any]]


class _Namespace:
    def __init__(self, client: LlamaCppClient) -> None:
        self._client = client


class Completions(_Namespace):
    """``client.completions``: plain completion in OpenAI's form."""

    @overload
    def create(
        self, prompt: Any, *, stream: Literal[False] = False, timeout: float | None = None, **fields: Any
    ) -> OpenAICompletion: ...
    @overload
    def create(
        self, prompt: Any, *, stream: Literal[True], timeout: float | None = None, **fields: Any
    ) -> Stream[OpenAICompletion]: ...
    def create(
        self, prompt: Any, *, stream: bool = False, timeout: float | None = None, **fields: Any
    ) -> OpenAICompletion | Stream[OpenAICompletion]:
        """Complete a prompt (text, or tokens)."""
        asked = request.openai_completion({"prompt": prompt, "stream": stream or None, **fields}, timeout)
        return self._client._ask(asked)


class ChatCompletions(_Namespace):
    """``client.chat.completions``."""

    @overload
    def create(
        self,
        messages: Messages,
        *,
        stream: Literal[False] = False,
        model: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        n: int | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: Any = None,
        response_format: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        **fields: Any,
    ) -> ChatCompletion: ...
    @overload
    def create(
        self,
        messages: Messages,
        *,
        stream: Literal[True],
        model: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        n: int | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: Any = None,
        response_format: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        **fields: Any,
    ) -> Stream[ChatCompletionChunk]: ...
    def create(
        self,
        messages: Messages,
        *,
        stream: bool = False,
        model: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        n: int | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: Any = None,
        response_format: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        **fields: Any,
    ) -> ChatCompletion | Stream[ChatCompletionChunk]:
        """Answer messages; any other field of llama-server's is passed on (``top_k``, ``grammar``, ``id_slot``, …)."""
        asked = request.chat(
            {
                "messages": messages,
                "stream": stream or None,
                "model": model,
                "max_tokens": max_tokens,
                "temperature": temperature,
                "top_p": top_p,
                "stop": stop,
                "seed": seed,
                "n": n,
                "tools": tools,
                "tool_choice": tool_choice,
                "response_format": response_format,
                **fields,
            },
            timeout,
        )
        return self._client._ask(asked)  # type: ignore[no-any-return]


class Chat(_Namespace):
    """``client.chat``."""

    @property
    def completions(self) -> ChatCompletions:
        """``client.chat.completions``."""
        return ChatCompletions(self._client)


class Responses(_Namespace):
    """``client.responses``: OpenAI's Responses."""

    @overload
    def create(
        self, input: Any, *, stream: Literal[False] = False, timeout: float | None = None, **fields: Any
    ) -> Response: ...
    @overload
    def create(
        self, input: Any, *, stream: Literal[True], timeout: float | None = None, **fields: Any
    ) -> Stream[Event]: ...
    def create(
        self, input: Any, *, stream: bool = False, timeout: float | None = None, **fields: Any
    ) -> Response | Stream[Event]:
        """Answer an input (text, or items)."""
        asked = request.response({"input": input, "stream": stream or None, **fields}, timeout)
        return self._client._ask(asked)  # type: ignore[no-any-return]


class AnthropicMessages(_Namespace):
    """``client.messages``: Anthropic's Messages."""

    @overload
    def create(
        self,
        messages: Messages,
        *,
        max_tokens: int,
        stream: Literal[False] = False,
        timeout: float | None = None,
        **fields: Any,
    ) -> AnthropicMessage: ...
    @overload
    def create(
        self, messages: Messages, *, max_tokens: int, stream: Literal[True], timeout: float | None = None, **fields: Any
    ) -> Stream[Event]: ...
    def create(
        self, messages: Messages, *, max_tokens: int, stream: bool = False, timeout: float | None = None, **fields: Any
    ) -> AnthropicMessage | Stream[Event]:
        """Answer messages."""
        asked = request.message(
            {"messages": messages, "max_tokens": max_tokens, "stream": stream or None, **fields}, timeout
        )
        return self._client._ask(asked)  # type: ignore[no-any-return]


class EmbeddingVectors(_Namespace):
    """``client.embeddings``."""

    def create(self, input: Any, *, timeout: float | None = None, **fields: Any) -> Embeddings:
        """The vector of a text, or of each of several."""
        return self._client._ask(request.embeddings({"input": input, **fields}, timeout))

    def __call__(self, input: Any, *, timeout: float | None = None, **fields: Any) -> Embeddings:
        """``create``."""
        return self.create(input, timeout=timeout, **fields)


class ServedModels(_Namespace):
    """``client.models``."""

    def list(self, *, timeout: float | None = None) -> Models:
        """The models that the server has."""
        return self._client._ask(request.models(timeout))

    def __call__(self, *, timeout: float | None = None) -> Models:
        """``list``."""
        return self.list(timeout=timeout)


class Slots(_Namespace):
    """``client.slots``. Files lie in the server's ``--slot-save-path``."""

    def list(self, *, timeout: float | None = None) -> tuple[Slot, ...]:
        """The slots at this moment. It wakes a server that sleeps."""
        return self._client._ask(request.slots(timeout))

    def __call__(self, *, timeout: float | None = None) -> tuple[Slot, ...]:
        """``list``."""
        return self.list(timeout=timeout)

    def save(self, slot: int, filename: str, *, timeout: float | None = None) -> SlotAction:
        """Write a slot's cache to a file."""
        return self._client._ask(request.slot_action(slot, "save", filename, timeout))

    def restore(self, slot: int, filename: str, *, timeout: float | None = None) -> SlotAction:
        """Read a slot's cache back."""
        return self._client._ask(request.slot_action(slot, "restore", filename, timeout))

    def erase(self, slot: int, *, timeout: float | None = None) -> SlotAction:
        """Empty a slot's cache."""
        return self._client._ask(request.slot_action(slot, "erase", None, timeout))


class Lora(_Namespace):
    """``client.lora``."""

    def list(self, *, timeout: float | None = None) -> tuple[LoraAdapter, ...]:
        """The adapters that the server has loaded."""
        return self._client._ask(request.lora(timeout))

    def __call__(self, *, timeout: float | None = None) -> tuple[LoraAdapter, ...]:
        """``list``."""
        return self.list(timeout=timeout)

    def set(self, scales: Mapping[int, float], *, timeout: float | None = None) -> bool:
        """How much each adapter weighs from now on, by its id."""
        return self._client._ask(request.set_lora(scales, timeout))


class LlamaCppClient:
    """A client of one llama.cpp server, local or anywhere. Thread-safe, a context manager.

    ``base_url``: ``http://``, ``https://``, or ``unix:///path`` for a Unix socket. ``timeout``: seconds until the next
    byte has come; of what is not streamed, until the answer is there. ``retries``: how often a call is sent again where
    nobody listens or the model is loading, after 0.2, 0.8, … seconds. ``api_key`` is shown nowhere.

    Every method takes ``timeout`` for itself. What fails raises a ``llamatel.errors.RequestError``, arguments that
    cannot be a UsageError.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8090",
        *,
        api_key: str | None = None,
        timeout: float = 600.0,
        retries: int = 2,
    ) -> None:
        self._transport = Transport(base_url, api_key=api_key, timeout_s=timeout, retries=retries)
        self.chat = Chat(self)
        self.completions = Completions(self)
        self.responses = Responses(self)
        self.messages = AnthropicMessages(self)
        self.embeddings = EmbeddingVectors(self)
        self.models = ServedModels(self)
        self.slots = Slots(self)
        self.lora = Lora(self)

    @property
    def base_url(self) -> str:
        """The server's address."""
        return self._transport.base_url

    @overload
    def complete(
        self,
        prompt: Any,
        *,
        n_predict: int | None = None,
        stream: Literal[False] = False,
        temperature: float | None = None,
        timeout: float | None = None,
        **fields: Any,
    ) -> TextCompletion: ...
    @overload
    def complete(
        self,
        prompt: Any,
        *,
        n_predict: int | None = None,
        stream: Literal[True],
        temperature: float | None = None,
        timeout: float | None = None,
        **fields: Any,
    ) -> Stream[TextCompletion]: ...
    def complete(
        self,
        prompt: Any,
        *,
        n_predict: int | None = None,
        stream: bool = False,
        temperature: float | None = None,
        timeout: float | None = None,
        **fields: Any,
    ) -> TextCompletion | Stream[TextCompletion]:
        """Complete a prompt (text, or tokens) in llama.cpp's own form, which also tells the slot."""
        asked = request.complete(
            {"prompt": prompt, "n_predict": n_predict, "stream": stream or None, "temperature": temperature, **fields},
            timeout,
        )
        return self._ask(asked)

    @overload
    def infill(
        self,
        input_prefix: str,
        input_suffix: str,
        *,
        stream: Literal[False] = False,
        timeout: float | None = None,
        **fields: Any,
    ) -> TextCompletion: ...
    @overload
    def infill(
        self,
        input_prefix: str,
        input_suffix: str,
        *,
        stream: Literal[True],
        timeout: float | None = None,
        **fields: Any,
    ) -> Stream[TextCompletion]: ...
    def infill(
        self,
        input_prefix: str,
        input_suffix: str,
        *,
        stream: bool = False,
        timeout: float | None = None,
        **fields: Any,
    ) -> TextCompletion | Stream[TextCompletion]:
        """What belongs between a prefix and a suffix; for models that were trained to say so."""
        texts = {"input_prefix": input_prefix, "input_suffix": input_suffix}
        return self._ask(request.infill({**texts, "stream": stream or None, **fields}, timeout))

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        timeout: float | None = None,
        **fields: Any,
    ) -> Ranking:
        """How well documents fit a query; the server runs with ``--reranking``."""
        asked = {"query": query, "documents": documents, "top_n": top_n, **fields}
        return self._ask(request.rerank(asked, timeout))

    def tokenize(
        self,
        content: str,
        *,
        add_special: bool | None = None,
        parse_special: bool | None = None,
        with_pieces: bool | None = None,
        timeout: float | None = None,
    ) -> Tokens:
        """Text to tokens."""
        asked = {
            "content": content,
            "add_special": add_special,
            "parse_special": parse_special,
            "with_pieces": with_pieces,
        }
        return self._ask(request.tokenize(asked, timeout))

    def detokenize(self, tokens: Iterable[int], *, timeout: float | None = None) -> Detokenized:
        """Tokens to text."""
        return self._ask(request.detokenize(tokens, timeout))

    def apply_template(self, messages: Messages, *, timeout: float | None = None, **fields: Any) -> Prompt:
        """The prompt that the model's chat template makes of messages."""
        return self._ask(request.apply_template({"messages": messages, **fields}, timeout))

    def health(self, *, timeout: float | None = None) -> Health:
        """Whether it can be asked: true, or false while the model loads. Raises ConnectError where nobody listens."""
        return self._ask(request.health(timeout))

    def props(self, *, timeout: float | None = None) -> Props:
        """What the server is: model, slots, template, build."""
        return self._ask(request.props(timeout))

    def metrics(self, *, timeout: float | None = None) -> Mapping[str, float]:
        """llama.cpp's counters and gauges, by name without the ``llamacpp:`` prefix (it runs with ``--metrics``)."""
        return self._ask(request.metrics(timeout))

    def close(self) -> None:
        """Close the connections that are not in use; the client cannot be used any more."""
        self._transport.close()

    def __enter__(self) -> LlamaCppClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_url!r})"

    def _ask(self, asked: Request[T]) -> T:
        call = exchange.begin(self._transport, asked)
        if asked.stream:
            return Stream(exchange.open_stream(self._transport, call))  # type: ignore[return-value]  # see the overloads
        return exchange.make(self._transport, call, asked)
