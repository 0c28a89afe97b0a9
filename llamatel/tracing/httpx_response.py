"""Follows the body of an httpx response (of ``httpx`` or ``httpx2``) as its reader consumes it."""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any

from llamatel.tracing.http_call import HttpCall


def follow(response: Any, followed: HttpCall) -> None:
    """Report a response to a call; one that is not read yet, as its reader reads it.

    ``iter_bytes``, ``aiter_bytes``, ``close`` and ``aclose`` of this one object are replaced: all of httpx's ways to
    read a decoded body go through them.
    """
    headers = response.headers
    followed.response(response.status_code, headers.get("server", ""), headers.get("content-type", ""))
    if response.is_closed:
        followed.data(response.content)
        followed.finish_body()
        return
    _Reading(response, followed)


class _Reading:
    """The replaced methods of one response."""

    def __init__(self, response: Any, followed: HttpCall) -> None:
        self._followed = followed
        self._inside = False
        """The body's own iterator is running: it closes the response by itself when it ends."""
        self._iter, self._aiter = response.iter_bytes, response.aiter_bytes
        self._close, self._aclose = response.close, response.aclose
        response.iter_bytes, response.aiter_bytes = self.iter_bytes, self.aiter_bytes
        response.close, response.aclose = self.close, self.aclose
        # A response that is dropped without being read or closed.
        weakref.finalize(response, followed.close).atexit = False

    def iter_bytes(self, *args: Any, **kwargs: Any) -> Iterator[bytes]:
        pieces = self._iter(*args, **kwargs)
        try:
            while True:
                self._inside = True
                try:
                    piece = next(pieces)
                except StopIteration:
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

    async def aiter_bytes(self, *args: Any, **kwargs: Any) -> AsyncIterator[bytes]:
        pieces = self._aiter(*args, **kwargs)
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

    def close(self) -> None:
        try:
            self._close()
        finally:
            if not self._inside:
                self._followed.close()

    async def aclose(self) -> None:
        try:
            await self._aclose()
        finally:
            if not self._inside:
                self._followed.close()
