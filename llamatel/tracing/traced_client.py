"""Traces calls to llama.cpp with an application's own HTTP client: httpx or requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, TypeVar

from llamatel.errors import UsageError
from llamatel.tracing.followed_response import follow_httpx, follow_requests
from llamatel.tracing.http_call import HttpCall, content_of

T = TypeVar("T")

_inside: ContextVar[bool] = ContextVar("llamatel_traced_client", default=False)
"""A client sends; it may send again, to follow a redirect."""


def trace_client(client: T) -> T:
    """Trace an HTTP client's calls to llama.cpp, recognised by the response; returns the client.

    ``client``: a ``requests.Session``, or a ``Client`` or ``AsyncClient`` of ``httpx`` (or ``httpx2``). Requests to
    other servers and other paths are not changed. Raises UsageError for anything else.
    """
    target: Any = client
    kinds = {kind.__name__: kind.__module__.partition(".")[0] for kind in type(client).__mro__}
    if kinds.get("AsyncClient") in ("httpx", "httpx2"):
        target.send = _asynchronous(target.send)
    elif kinds.get("Client") in ("httpx", "httpx2"):
        target.send = _synchronous(target.send, follow_httpx)
    elif kinds.get("Session") == "requests":
        target.send = _synchronous(target.send, follow_requests)
    else:
        raise UsageError(f"{type(client).__name__} is not a requests.Session, httpx.Client or httpx.AsyncClient")
    return client


def _followed(request: Any) -> HttpCall | None:
    return None if _inside.get() else HttpCall.of(request.method or "", str(request.url), content_of(request))


def _synchronous(send: Callable[..., Any], follow: Callable[[Any, HttpCall], None]) -> Callable[..., Any]:
    def traced(request: Any, *args: Any, **kwargs: Any) -> Any:
        followed = _followed(request)
        if followed is None:
            return send(request, *args, **kwargs)
        token = _inside.set(True)
        try:
            with followed.sending():
                response = send(request, *args, **kwargs)
        except BaseException as error:
            followed.fail(error)
            raise
        finally:
            _inside.reset(token)
        follow(response, followed)
        return response

    return traced


def _asynchronous(send: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def traced(request: Any, *args: Any, **kwargs: Any) -> Any:
        followed = _followed(request)
        if followed is None:
            return await send(request, *args, **kwargs)
        token = _inside.set(True)
        try:
            with followed.sending():
                response = await send(request, *args, **kwargs)
        except BaseException as error:
            followed.fail(error)
            raise
        finally:
            _inside.reset(token)
        follow_httpx(response, followed)
        return response

    return traced
