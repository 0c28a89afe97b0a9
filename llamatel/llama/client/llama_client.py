"""A synchronous client of llama.cpp's server: its own endpoints, and chat, completions and embeddings.

Source of paths and fields: tools/server/README.md of llama.cpp. Arguments that are None are not sent; any other field
of llama-server's is passed on (``top_k``, ``grammar``, ``id_slot``, ``cache_prompt``, …). For asyncio, and for OpenAI's
Responses, use the ``openai`` package, whose calls are traced in the same way.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

from llamatel.errors import HttpError, InvalidResponse, RequestError, ServerNotReady, UsageError
from llamatel.inputs import http
from llamatel.inputs.address import parse_address
from llamatel.inputs.documents import parse_json
from llamatel.llama.client.client_call import Call
from llamatel.llama.client.request_errors import connection_error, server_error, text_error
from llamatel.llama.client.result import Health, Props, Result, TextCompletion, Tokens, wrapped
from llamatel.llama.client.token_stream import Stream
from llamatel.llama.http.server_client import parse_counters

Messages = Sequence[Mapping[str, Any]]

_KEPT = 2
"""Idle connections. Each holds one of llama.cpp's few HTTP threads (some 6) for 5 s after its last response; were more
kept, a burst of requests would make others wait for them."""
_BACKOFF_S = 0.2
_MAX_RESPONSE = 256 << 20
_MAX_ERROR = 1 << 16


class _Endpoints:
    def __init__(self, client: LlamaCppClient) -> None:
        self._client = client


class ChatCompletions(_Endpoints):
    """``client.chat.completions``."""

    def create(self, messages: Messages, *, stream: bool = False, timeout: float | None = None, **fields: Any) -> Any:
        """Answer messages; with ``stream=True`` a ``Stream`` of chunks."""
        fields = {"messages": _list_of(messages), "stream": stream or None, **fields}
        return self._client._call("chat", "/v1/chat/completions", fields, Result, timeout)


class Chat(_Endpoints):
    """``client.chat``."""

    @property
    def completions(self) -> ChatCompletions:
        """``client.chat.completions``."""
        return ChatCompletions(self._client)


class Completions(_Endpoints):
    """``client.completions``: plain completion in OpenAI's form."""

    def create(self, prompt: Any, *, stream: bool = False, timeout: float | None = None, **fields: Any) -> Any:
        """Complete a prompt (text, or tokens); with ``stream=True`` a ``Stream`` of chunks."""
        fields = {"prompt": prompt, "stream": stream or None, **fields}
        return self._client._call("text_completion", "/v1/completions", fields, Result, timeout)


class Embeddings(_Endpoints):
    """``client.embeddings``."""

    def create(self, input: Any, *, timeout: float | None = None, **fields: Any) -> Result:
        """The vector of a text, or of each of several."""
        found = self._client._call("embeddings", "/v1/embeddings", {"input": input, **fields}, Result, timeout)
        assert isinstance(found, Result)  # noqa: S101 - never a stream
        return found

    __call__ = create


class Models(_Endpoints):
    """``client.models``."""

    def list(self, *, timeout: float | None = None) -> Any:
        """The models that the server has; those of a router have a ``status``."""
        return self._client._get("/v1/models", timeout)

    __call__ = list  # noqa: A003


class Slots(_Endpoints):
    """``client.slots``. Files are in the server's ``--slot-save-path``."""

    def list(self, *, timeout: float | None = None) -> tuple[Any, ...]:
        """The current slots. Wakes a sleeping server."""
        return tuple(self._client._get("/slots", timeout))

    __call__ = list  # noqa: A003

    def save(self, slot: int, filename: str, *, timeout: float | None = None) -> Any:
        """Write a slot's cache to a file."""
        return self._act(slot, "save", filename, timeout)

    def restore(self, slot: int, filename: str, *, timeout: float | None = None) -> Any:
        """Read a slot's cache from a file."""
        return self._act(slot, "restore", filename, timeout)

    def erase(self, slot: int, *, timeout: float | None = None) -> Any:
        """Clear a slot's cache."""
        return self._act(slot, "erase", None, timeout)

    def _act(self, slot: int, action: str, filename: str | None, timeout: float | None) -> Any:
        if filename is not None and "/" in filename:
            raise UsageError(f"'{filename}' is a path: a slot's file is a name in the server's --slot-save-path")
        return self._client._post(f"/slots/{int(slot)}?action={action}", {"filename": filename}, timeout)


class Lora(_Endpoints):
    """``client.lora``."""

    def list(self, *, timeout: float | None = None) -> tuple[Any, ...]:
        """The adapters that the server has loaded."""
        return tuple(self._client._get("/lora-adapters", timeout))

    __call__ = list  # noqa: A003

    def set(self, scales: Mapping[int, float], *, timeout: float | None = None) -> bool:
        """Set the scale of each adapter, by its id, for all requests from now on."""
        body = [{"id": adapter, "scale": scale} for adapter, scale in scales.items()]
        answer = self._client._post("/lora-adapters", body, timeout)
        return bool(answer.get("success", True)) if isinstance(answer, Result) else True


class LlamaCppClient:
    """A client of one llama.cpp server, local or remote. Thread-safe, a context manager.

    ``base_url``: ``http://``, ``https://``, or ``unix:///path`` for a Unix socket; with or without ``/v1``.
    ``timeout``: seconds without a byte from the server; every method takes its own. ``retries``: how often a call is
    sent again while the connection is refused or the model is loading, after 0.2, 0.8, … seconds. ``api_key`` is never
    shown. Raises ``llamatel.errors.RequestError`` for what fails, UsageError for impossible arguments.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8090",
        *,
        api_key: str | None = None,
        timeout: float = 600.0,
        retries: int = 2,
    ) -> None:
        self._timeout_s = _seconds(timeout)
        self._retries = retries
        if "://" not in str(base_url or ""):
            raise UsageError(f"{base_url!r} is not a server address: http://HOST:PORT, https://… or unix:///PATH")
        address = parse_address(base_url)
        # Addresses of the openai package end in /v1, which is part of every path here that has it.
        address = replace(address, prefix=address.prefix.removesuffix("/v1"))
        self._http = http.HttpClient(address, api_key=api_key, kept=_KEPT)
        self._closed = threading.Event()
        self.chat = Chat(self)
        self.completions = Completions(self)
        self.embeddings = Embeddings(self)
        self.models = Models(self)
        self.slots = Slots(self)
        self.lora = Lora(self)

    @property
    def base_url(self) -> str:
        """The server's address."""
        return self._http.base_url

    def complete(self, prompt: Any, *, stream: bool = False, timeout: float | None = None, **fields: Any) -> Any:
        """Complete a prompt (text, or tokens) in llama.cpp's own form, which has the slot; ``n_predict`` bounds it."""
        fields = {"prompt": prompt, "stream": stream or None, **fields}
        return self._call("text_completion", "/completion", fields, TextCompletion, timeout)

    def infill(
        self, input_prefix: str, input_suffix: str, *, stream: bool = False, timeout: float | None = None, **fields: Any
    ) -> Any:
        """Generate text between a prefix and a suffix, with a model that was trained for it."""
        fields = {"input_prefix": input_prefix, "input_suffix": input_suffix, "stream": stream or None, **fields}
        return self._call("text_completion", "/infill", fields, TextCompletion, timeout)

    def rerank(self, query: str, documents: Sequence[str], *, timeout: float | None = None, **fields: Any) -> Any:
        """Scores of documents for a query; needs a server with ``--reranking``."""
        if isinstance(documents, str):
            raise UsageError("documents is a list of texts")
        fields = {"query": query, "documents": list(documents), **fields}
        return self._call("rerank", "/v1/rerank", fields, Result, timeout)

    def tokenize(self, content: str, *, timeout: float | None = None, **fields: Any) -> Tokens:
        """Text to tokens; ``add_special``, ``parse_special``, ``with_pieces``."""
        return Tokens(self._object("/tokenize", {"content": content, **fields}, timeout))

    def detokenize(self, tokens: Iterable[Any], *, timeout: float | None = None) -> Result:
        """Tokens to text, in ``content``."""
        return Result(self._object("/detokenize", {"tokens": list(tokens)}, timeout))

    def apply_template(self, messages: Messages, *, timeout: float | None = None, **fields: Any) -> Result:
        """The ``prompt`` that the model's chat template renders from messages."""
        return Result(self._object("/apply-template", {"messages": _list_of(messages), **fields}, timeout))

    def health(self, *, timeout: float | None = None) -> Health:
        """Whether it is ready; false while the model loads. Raises ConnectError where the connection is refused."""
        return Health(self._json("/health", None, timeout, accepted=(200, 503)))

    def props(self, *, timeout: float | None = None) -> Props:
        """The server's properties: model, slots, template, build."""
        return Props(self._json("/props", None, timeout))

    def metrics(self, *, timeout: float | None = None) -> Mapping[str, float]:
        """llama.cpp's counters and gauges, by name without the ``llamacpp:`` prefix (``--metrics``)."""
        with self._open("/metrics", None, timeout) as response:
            return parse_counters(self._read(response, "/metrics", timeout))

    def close(self) -> None:
        """Close the connections; the client cannot be used afterwards."""
        self._closed.set()
        self._http.close()

    def __enter__(self) -> LlamaCppClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_url!r})"

    # -- requests -----------------------------------------------------------------------------------------------------

    def _get(self, path: str, timeout: float | None) -> Any:
        return wrapped(self._json(path, None, timeout, kind=(Mapping, list)))

    def _post(self, path: str, body: Any, timeout: float | None) -> Any:
        return wrapped(self._json(path, _sent(body), timeout, kind=object))

    def _object(self, path: str, fields: Mapping[str, Any], timeout: float | None) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._json(path, _sent(fields), timeout)
        return found

    def _json(
        self,
        path: str,
        body: bytes | None,
        timeout: float | None,
        *,
        accepted: tuple[int, ...] = (200,),
        kind: Any = Mapping,
    ) -> Any:
        with self._open(path, body, timeout, accepted=accepted) as response:
            return self._parsed(self._read(response, path, timeout), path, kind)

    def _call(
        self, operation: str, path: str, fields: dict[str, Any], kind: type[Result], timeout: float | None
    ) -> Any:
        """A call to a model, which is traced."""
        address = self._http.address
        call = Call(operation, address.host, address.port, stream=bool(fields.get("stream")), body=fields)
        body, seconds = _sent(fields), _seconds(timeout or self._timeout_s)
        headers = call.start()
        try:
            if call.stream:
                response = self._open(path, body, timeout, call=call, headers=headers)
                return Stream(response, call, kind, lambda error: self._translated(error, path, seconds))
            with self._open(path, body, timeout, call=call, headers=headers) as response:
                document = self._parsed(self._read(response, path, timeout), path, Mapping)
            call.document(document)
        except BaseException as error:
            if isinstance(error, RequestError):
                call.error_type, call.status = error.kind, error.status
            call.finish(error)
            raise
        call.finish()
        return kind(document)

    def _open(
        self,
        path: str,
        body: bytes | None,
        timeout: float | None,
        *,
        accepted: tuple[int, ...] = (200,),
        call: Call | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> http.Stream:
        """Send a request, with retries where the server cannot have processed it; the response is not read yet."""
        seconds = self._timeout_s if timeout is None else _seconds(timeout)
        sent = {**(headers or {}), **({} if body is None else {"Content-Type": "application/json"})}

        def sending(_: object) -> None:
            if call is not None:
                call.sent_at = time.time()

        for attempt in range(self._retries + 1):
            if self._closed.is_set():
                raise UsageError("this client was closed: make another")
            try:
                response = self._http.open(path, read_s=seconds, body=body, headers=sent, sending=sending)
                if response.status in accepted:
                    if call is not None:
                        call.headers_at, call.status = time.time(), response.status
                    return response
                failure = self._failure(response, path, call)
            except HttpError as error:
                failure = self._translated(error, path, seconds)
            if attempt == self._retries or not (
                isinstance(failure, ServerNotReady) or failure.kind == "connection_refused"
            ):
                break
            self._closed.wait(_BACKOFF_S * 4**attempt)
        raise failure

    def _failure(self, response: http.Stream, path: str, call: Call | None) -> RequestError:
        with response:
            body = response.read(_MAX_ERROR)
        where = f"{self.base_url}{path}"
        try:
            document = parse_json(body)
        except ValueError:
            return text_error(body, response.status, where)
        error = server_error(document, response.status, where)
        if call is not None and isinstance(document, Mapping) and isinstance(document.get("error"), Mapping):
            call.reason = str(document["error"].get("message") or "")
        return error

    def _read(self, response: http.Stream, path: str, timeout: float | None) -> bytes:
        try:
            return response.read_all(_MAX_RESPONSE)
        except HttpError as error:
            raise self._translated(error, path, timeout or self._timeout_s) from error

    def _parsed(self, data: bytes, path: str, kind: Any) -> Any:
        try:
            document = parse_json(data, largest=_MAX_RESPONSE, most_values=_MAX_RESPONSE)
            if not isinstance(document, kind):
                raise TypeError("no JSON object")
        except (ValueError, TypeError) as error:
            text = f"{self.base_url}{path} answered what llama.cpp does not send"
            raise InvalidResponse(text, kind="bad_answer") from error
        return document

    def _translated(self, error: HttpError, path: str, timeout_s: float) -> RequestError:
        return connection_error(error, self.base_url, self._http.address.host, path, timeout_s)


def _sent(body: Any) -> bytes:
    given = {key: value for key, value in body.items() if value is not None} if isinstance(body, Mapping) else body
    return json.dumps(given).encode()


def _seconds(timeout: Any) -> float:
    if not isinstance(timeout, (int, float)) or isinstance(timeout, bool) or not 0 < timeout < math.inf:
        raise UsageError(f"timeout is {timeout!r}: it is a number of seconds above 0")
    return float(timeout)


def _list_of(messages: Messages) -> list[Any]:
    if isinstance(messages, (str, bytes, Mapping)):
        raise UsageError('messages is a list, as in [{"role": "user", "content": "Hello"}]')
    return list(messages)
