"""Follows the body of a response of httpx (``httpx`` or ``httpx2``) or requests as its reader consumes it.

Methods of the response object are replaced through which all reads of the body go. Not followed, as they are not
decoded: ``response.raw`` of requests, and ``iter_raw`` of a compressed response of httpx.
"""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

from llamatel.tracing.http_call import HttpCall


def follow_httpx(response: Any, followed: HttpCall) -> None:
    """Report a response to a call; an unread body is reported while its reader reads it."""
    headers = response.headers
    followed.response(response.status_code, headers.get("server", ""), headers.get("content-type", ""))
    if response.is_closed:
        followed.data(response.content)
        followed.finish_body()
        return
    body = _Body(response, followed)
    # ``iter_bytes`` decodes what it gets from ``iter_raw``.
    kind = "bytes" if headers.get("content-encoding", "identity") != "identity" else "raw"
    pieces, apieces = getattr(response, f"iter_{kind}"), getattr(response, f"aiter_{kind}")
    close, aclose = response.close, response.aclose
    setattr(response, f"iter_{kind}", lambda *args, **kwargs: body.read(pieces(*args, **kwargs)))
    setattr(response, f"aiter_{kind}", lambda *args, **kwargs: body.aread(apieces(*args, **kwargs)))
    response.close = lambda: body.close(close)
    response.aclose = lambda: body.aclose(aclose)


def follow_requests(response: Any, followed: HttpCall) -> None:
    """The same for a response of requests."""
    headers = response.headers
    followed.response(response.status_code, headers.get("server", ""), headers.get("content-type", ""))
    if response._content_consumed:
        followed.data(response.content)
        followed.finish_body()
        return
    body = _Body(response, followed)
    pieces, close = response.iter_content, response.close
    response.iter_content = lambda *args, **kwargs: body.read(pieces(*args, **kwargs))
    response.close = lambda: body.close(close)


class _Body:
    """The body of one response as it is read."""

    def __init__(self, response: object, followed: HttpCall) -> None:
        self._followed = followed
        self._inside = False
        """Whether the body's own iterator is running: at its end it closes the response."""
        # A response that is dropped without being read or closed.
        weakref.finalize(response, followed.close).atexit = False

    def read(self, pieces: Iterator[Any]) -> Iterator[Any]:
        try:
            while True:
                self._inside = True
                try:
                    piece = next(pieces)
                except StopIteration:
                    break
                finally:
                    self._inside = False
                self._followed.data(piece if isinstance(piece, bytes) else str(piece).encode())
                yield piece
        except GeneratorExit:
            self._followed.close()
            raise
        except BaseException as error:
            self._followed.fail(error)
            raise
        self._followed.finish_body()

    async def aread(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        try:
            while True:
                self._inside = True
                try:
                    piece = await anext(pieces)
                except StopAsyncIteration:
                    break
                finally:
                    self._inside = False
                self._followed.data(piece)
                yield piece
        except GeneratorExit:
            self._followed.close()
            raise
        except BaseException as error:
            self._followed.fail(error)
            raise
        self._followed.finish_body()

    def close(self, close: Callable[[], None]) -> None:
        try:
            close()
        finally:
            if not self._inside:
                self._followed.close()

    async def aclose(self, close: Callable[[], Awaitable[None]]) -> None:
        try:
            await close()
        finally:
            if not self._inside:
                self._followed.close()
