"""The client of a llama.cpp server for asyncio: ``sync``'s surface, to be awaited.

The calls themselves are those of the other client, on threads of this client's own: HTTP for asyncio would be one more
dependency and a second implementation. A task that is cancelled breaks its connection at once, so that llama.cpp ends
the generation and the thread is free.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Literal, TypeVar, overload

from llamatel.llama.client import endpoints as request
from llamatel.llama.client import exchange
from llamatel.llama.client.aio_stream import AsyncStream, in_thread
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
from llamatel.llama.client.transport import Transport

T = TypeVar("T")
Messages = Sequence[Mapping[str, Any]]


class _Namespace:
    def __init__(self, client: AsyncLlamaCppClient) -> None:
        self._client = client


class Completions(_Namespace):
    """``client.completions``: plain completion in OpenAI's form."""

    @overload
    async def create(
        self, prompt: Any, *, stream: Literal[False] = False, timeout: float | None = None, **fields: Any
    ) -> OpenAICompletion: ...
    @overload
    async def create(
        self, prompt: Any, *, stream: Literal[True], timeout: float | None = None, **fields: Any
    ) -> AsyncStream[OpenAICompletion]: ...
    async def create(
        self, prompt: Any, *, stream: bool = False, timeout: float | None = None, **fields: Any
    ) -> OpenAICompletion | AsyncStream[OpenAICompletion]:
        """Complete a prompt (text, or tokens)."""
        asked = request.openai_completion({"prompt": prompt, "stream": stream or None, **fields}, timeout)
        return await self._client._ask(asked)


class ChatCompletions(_Namespace):
    """``client.chat.completions``."""

    @overload
    async def create(
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
    async def create(
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
    ) -> AsyncStream[ChatCompletionChunk]: ...
    async def create(
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
    ) -> ChatCompletion | AsyncStream[ChatCompletionChunk]:
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
        return await self._client._ask(asked)


class Chat(_Namespace):
    """``client.chat``."""

    @property
    def completions(self) -> ChatCompletions:
        """``client.chat.completions``."""
        return ChatCompletions(self._client)


class Responses(_Namespace):
    """``client.responses``: OpenAI's Responses."""

    @overload
    async def create(
        self, input: Any, *, stream: Literal[False] = False, timeout: float | None = None, **fields: Any
    ) -> Response: ...
    @overload
    async def create(
        self, input: Any, *, stream: Literal[True], timeout: float | None = None, **fields: Any
    ) -> AsyncStream[Event]: ...
    async def create(
        self, input: Any, *, stream: bool = False, timeout: float | None = None, **fields: Any
    ) -> Response | AsyncStream[Event]:
        """Answer an input (text, or items)."""
        asked = request.response({"input": input, "stream": stream or None, **fields}, timeout)
        return await self._client._ask(asked)


class AnthropicMessages(_Namespace):
    """``client.messages``: Anthropic's Messages."""

    @overload
    async def create(
        self,
        messages: Messages,
        *,
        max_tokens: int,
        stream: Literal[False] = False,
        timeout: float | None = None,
        **fields: Any,
    ) -> AnthropicMessage: ...
    @overload
    async def create(
        self, messages: Messages, *, max_tokens: int, stream: Literal[True], timeout: float | None = None, **fields: Any
    ) -> AsyncStream[Event]: ...
    async def create(
        self, messages: Messages, *, max_tokens: int, stream: bool = False, timeout: float | None = None, **fields: Any
    ) -> AnthropicMessage | AsyncStream[Event]:
        """Answer messages."""
        asked = request.message(
            {"messages": messages, "max_tokens": max_tokens, "stream": stream or None, **fields}, timeout
        )
        return await self._client._ask(asked)


class EmbeddingVectors(_Namespace):
    """``client.embeddings``."""

    async def create(self, input: Any, *, timeout: float | None = None, **fields: Any) -> Embeddings:
        """The vector of a text, or of each of several."""
        return await self._client._ask(request.embeddings({"input": input, **fields}, timeout))

    async def __call__(self, input: Any, *, timeout: float | None = None, **fields: Any) -> Embeddings:
        """``create``."""
        return await self.create(input, timeout=timeout, **fields)


class ServedModels(_Namespace):
    """``client.models``."""

    async def list(self, *, timeout: float | None = None) -> Models:
        """The models that the server has."""
        return await self._client._ask(request.models(timeout))

    async def __call__(self, *, timeout: float | None = None) -> Models:
        """``list``."""
        return await self.list(timeout=timeout)


class Slots(_Namespace):
    """``client.slots``. Files lie in the server's ``--slot-save-path``."""

    async def list(self, *, timeout: float | None = None) -> tuple[Slot, ...]:
        """The slots at this moment. It wakes a server that sleeps."""
        return await self._client._ask(request.slots(timeout))

    async def __call__(self, *, timeout: float | None = None) -> tuple[Slot, ...]:
        """``list``."""
        return await self.list(timeout=timeout)

    async def save(self, slot: int, filename: str, *, timeout: float | None = None) -> SlotAction:
        """Write a slot's cache to a file."""
        return await self._client._ask(request.slot_action(slot, "save", filename, timeout))

    async def restore(self, slot: int, filename: str, *, timeout: float | None = None) -> SlotAction:
        """Read a slot's cache back."""
        return await self._client._ask(request.slot_action(slot, "restore", filename, timeout))

    async def erase(self, slot: int, *, timeout: float | None = None) -> SlotAction:
        """Empty a slot's cache."""
        return await self._client._ask(request.slot_action(slot, "erase", None, timeout))


class Lora(_Namespace):
    """``client.lora``."""

    async def list(self, *, timeout: float | None = None) -> tuple[LoraAdapter, ...]:
        """The adapters that the server has loaded."""
        return await self._client._ask(request.lora(timeout))

    async def __call__(self, *, timeout: float | None = None) -> tuple[LoraAdapter, ...]:
        """``list``."""
        return await self.list(timeout=timeout)

    async def set(self, scales: Mapping[int, float], *, timeout: float | None = None) -> bool:
        """How much each adapter weighs from now on, by its id."""
        return await self._client._ask(request.set_lora(scales, timeout))


class AsyncLlamaCppClient:
    """A client of one llama.cpp server for asyncio. An asynchronous context manager.

    ``base_url``: ``http://``, ``https://``, or ``unix:///path`` for a Unix socket. ``timeout``: seconds until the next
    byte has come; of what is not streamed, until the answer is there. ``retries``: how often a call is sent again where
    nobody listens or the model is loading, after 0.2, 0.8, … seconds. ``api_key`` is shown nowhere.

    Every method takes ``timeout`` for itself. What fails raises a ``llamatel.errors.RequestError``, arguments that
    cannot be a UsageError. At most ``max_concurrency`` calls run at once; more of them wait for their turn.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8090",
        *,
        api_key: str | None = None,
        timeout: float = 600.0,
        retries: int = 2,
        max_concurrency: int = 64,
    ) -> None:
        self._transport = Transport(base_url, api_key=api_key, timeout_s=timeout, retries=retries)
        self._threads = ThreadPoolExecutor(max_concurrency, thread_name_prefix="llamatel-client")
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
    async def complete(
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
    async def complete(
        self,
        prompt: Any,
        *,
        n_predict: int | None = None,
        stream: Literal[True],
        temperature: float | None = None,
        timeout: float | None = None,
        **fields: Any,
    ) -> AsyncStream[TextCompletion]: ...
    async def complete(
        self,
        prompt: Any,
        *,
        n_predict: int | None = None,
        stream: bool = False,
        temperature: float | None = None,
        timeout: float | None = None,
        **fields: Any,
    ) -> TextCompletion | AsyncStream[TextCompletion]:
        """Complete a prompt (text, or tokens) in llama.cpp's own form, which also tells the slot."""
        asked = request.complete(
            {"prompt": prompt, "n_predict": n_predict, "stream": stream or None, "temperature": temperature, **fields},
            timeout,
        )
        return await self._ask(asked)

    @overload
    async def infill(
        self,
        input_prefix: str,
        input_suffix: str,
        *,
        stream: Literal[False] = False,
        timeout: float | None = None,
        **fields: Any,
    ) -> TextCompletion: ...
    @overload
    async def infill(
        self,
        input_prefix: str,
        input_suffix: str,
        *,
        stream: Literal[True],
        timeout: float | None = None,
        **fields: Any,
    ) -> AsyncStream[TextCompletion]: ...
    async def infill(
        self,
        input_prefix: str,
        input_suffix: str,
        *,
        stream: bool = False,
        timeout: float | None = None,
        **fields: Any,
    ) -> TextCompletion | AsyncStream[TextCompletion]:
        """What belongs between a prefix and a suffix; for models that were trained to say so."""
        texts = {"input_prefix": input_prefix, "input_suffix": input_suffix}
        return await self._ask(request.infill({**texts, "stream": stream or None, **fields}, timeout))

    async def rerank(
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
        return await self._ask(request.rerank(asked, timeout))

    async def tokenize(
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
        return await self._ask(request.tokenize(asked, timeout))

    async def detokenize(self, tokens: Iterable[int], *, timeout: float | None = None) -> Detokenized:
        """Tokens to text."""
        return await self._ask(request.detokenize(tokens, timeout))

    async def apply_template(self, messages: Messages, *, timeout: float | None = None, **fields: Any) -> Prompt:
        """The prompt that the model's chat template makes of messages."""
        return await self._ask(request.apply_template({"messages": messages, **fields}, timeout))

    async def health(self, *, timeout: float | None = None) -> Health:
        """Whether it can be asked: true, or false while the model loads. Raises ConnectError where nobody listens."""
        return await self._ask(request.health(timeout))

    async def props(self, *, timeout: float | None = None) -> Props:
        """What the server is: model, slots, template, build."""
        return await self._ask(request.props(timeout))

    async def metrics(self, *, timeout: float | None = None) -> Mapping[str, float]:
        """llama.cpp's counters and gauges, by name without the ``llamacpp:`` prefix (it runs with ``--metrics``)."""
        return await self._ask(request.metrics(timeout))

    async def close(self) -> None:
        """Close the connections that are not in use; the client cannot be used any more."""
        self._transport.close()
        self._threads.shutdown(wait=False)

    async def __aenter__(self) -> AsyncLlamaCppClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_url!r})"

    async def _ask(self, asked: Request[T]) -> T:
        call = exchange.begin(self._transport, asked)
        if asked.stream:
            pieces = await in_thread(self._threads, call, exchange.open_stream, self._transport, call)
            return AsyncStream(pieces, self._threads)  # type: ignore[return-value]  # see the overloads
        return await in_thread(self._threads, call, exchange.make, self._transport, call, asked)
