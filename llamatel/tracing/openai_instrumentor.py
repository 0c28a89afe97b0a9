"""An OpenTelemetry instrumentor for the ``openai`` package (entry point ``opentelemetry_instrumentor``).

It follows calls whose server turns out to be llama.cpp; calls to other providers are not changed: no span, no header,
no request. Packages that build on openai (langchain-openai, litellm, pydantic-ai, instructor, llm) are covered
too. The package is instrumented when the application imports it, and not imported here.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Any

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined, unused-ignore]
from opentelemetry.instrumentation.utils import unwrap
from wrapt import register_post_import_hook, wrap_function_wrapper

from llamatel import providers
from llamatel.llama.client.client_call import registered
from llamatel.tracing import langchain_runs
from llamatel.tracing.followed_response import follow_httpx
from llamatel.tracing.http_call import HttpCall, content_of, suppressed

NAME = "llamatel_openai"
"""Its entry point's name, for ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS``."""

_DISABLED = "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"

_logical: ContextVar[_LogicalCall | None] = ContextVar("llamatel_openai_call", default=None)
"""The call of the openai package that the current code runs for."""


class OpenAIInstrumentor(BaseInstrumentor):  # type: ignore[misc, unused-ignore]
    """Follows calls of ``openai.OpenAI`` and ``openai.AsyncOpenAI`` to llama.cpp.

    ``instrument(tracer_provider=…, meter_provider=…)`` without ``llamatel.init()``: both default to the global ones.
    ``init()`` calls it with ``zero_code=False``, as it records the calls itself.
    """

    _active = False
    _zero_code: Any = None
    _wrapped: list[tuple[Any, str]]

    def instrumentation_dependencies(self) -> Collection[str]:
        """Empty: it also enables telemetry of LlamaCppClient, and missing packages are never imported."""
        return ()

    def _instrument(self, **kwargs: Any) -> None:
        self._active = True
        self._wrapped = []
        if kwargs.get("zero_code", True):
            self._zero_code = providers.call("zero_code", kwargs.get("tracer_provider"), kwargs.get("meter_provider"))
        for module, methods in _METHODS.items():
            register_post_import_hook(functools.partial(self._wrap, methods), module)

    def _uninstrument(self, **kwargs: Any) -> None:
        self._active = False
        for owner, name in self._wrapped:
            unwrap(owner, name)
        self._wrapped = []
        if self._zero_code is not None:
            self._zero_code.close()
            self._zero_code = None

    def _wrap(self, methods: Mapping[tuple[str, str], Callable[..., Any]], module: Any) -> None:
        if not self._active:
            return
        for (kind, method), wrapper in methods.items():
            owner = getattr(module, kind, None)
            if hasattr(owner, method) and (owner, method) not in self._wrapped:  # import hooks cannot be removed
                wrap_function_wrapper(module, f"{kind}.{method}", wrapper)
                self._wrapped.append((owner, method))


def is_disabled(environ: Mapping[str, str]) -> bool:
    """Whether the environment disables this instrumentation."""
    names = {name.strip() for name in environ.get(_DISABLED, "").split(",")}
    return not names.isdisjoint({NAME, "*"})


class _LogicalCall:
    """One call of the openai package: its attempts and its response."""

    def __init__(self) -> None:
        self._started_at = time.time()
        self._followed: HttpCall | None = None

    def sending(self, request: Any) -> AbstractContextManager[object]:
        """An attempt."""
        if self._followed is None:
            self._followed = HttpCall.of(
                request.method, str(request.url), content_of(request), started_at=self._started_at, retried=True
            )
        return nullcontext() if self._followed is None else self._followed.sending()

    def received(self, response: Any) -> None:
        """The response of an attempt."""
        if self._followed is not None:
            follow_httpx(response, self._followed)

    def returned(self) -> None:
        """The package has returned its result; a stream continues."""
        if self._followed is not None:
            self._followed.returned()

    def failed(self, error: BaseException) -> None:
        """The package has raised an exception."""
        if self._followed is not None:
            self._followed.fail(error)


def _request(wrapped: Callable[..., Any], _: object, args: Any, kwargs: Any) -> Any:
    if registered() is None or suppressed():
        return wrapped(*args, **kwargs)
    logical = _LogicalCall()
    token = _logical.set(logical)
    try:
        result = wrapped(*args, **kwargs)
    except BaseException as error:
        logical.failed(error)
        raise
    finally:
        _logical.reset(token)
    logical.returned()
    return result


async def _request_async(wrapped: Callable[..., Awaitable[Any]], _: object, args: Any, kwargs: Any) -> Any:
    if registered() is None or suppressed():
        return await wrapped(*args, **kwargs)
    logical = _LogicalCall()
    token = _logical.set(logical)
    try:
        result = await wrapped(*args, **kwargs)
    except BaseException as error:
        logical.failed(error)
        raise
    finally:
        _logical.reset(token)
    logical.returned()
    return result


def _send(wrapped: Callable[..., Any], _: object, args: Any, kwargs: Any) -> Any:
    logical = _logical.get()
    if logical is None:
        return wrapped(*args, **kwargs)
    with logical.sending(args[0] if args else kwargs["request"]):
        response = wrapped(*args, **kwargs)
    logical.received(response)
    return response


async def _send_async(wrapped: Callable[..., Awaitable[Any]], _: object, args: Any, kwargs: Any) -> Any:
    logical = _logical.get()
    if logical is None:
        return await wrapped(*args, **kwargs)
    with logical.sending(args[0] if args else kwargs["request"]):
        response = await wrapped(*args, **kwargs)
    logical.received(response)
    return response


_HTTP = {("Client", "send"): _send, ("AsyncClient", "send"): _send_async}
_METHODS: dict[str, Mapping[tuple[str, str], Callable[..., Any]]] = {
    "openai": {("OpenAI", "request"): _request, ("AsyncOpenAI", "request"): _request_async},
    "httpx": _HTTP,
    "httpx2": _HTTP,
    "langchain_core.callbacks.manager": {("BaseRunManager", "__init__"): langchain_runs.started},
}
"""What is wrapped, by module: the call as the package makes it, its HTTP attempts (openai uses either httpx), and the
runs of LangChain, whose instrumentations show a call's span nowhere else."""
