"""Streamed answers for asyncio, and calls on threads that end with the task that waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Generic, TypeVar

from llamatel.errors import UsageError
from llamatel.llama.client.client_call import Call
from llamatel.llama.client.model_results import Timings
from llamatel.llama.client.stream import Pieces, timings_of
from llamatel.llama.client.transport import CLOSED

T = TypeVar("T")


class AsyncStream(Generic[T]):
    """An answer that comes piece by piece: an asynchronous iterator, and context manager.

    Closing it, leaving its block, cancelling the task that waits for it, or dropping it ends the generation in the
    server. ``timings`` are known once it has come to its end.
    """

    def __init__(self, pieces: Pieces[T], threads: ThreadPoolExecutor) -> None:
        self._pieces = pieces
        self._threads = threads

    def __aiter__(self) -> AsyncStream[T]:
        return self

    async def __anext__(self) -> T:
        piece = self._pieces.waiting()
        if piece is None:
            piece = await in_thread(self._threads, self._pieces.call, self._pieces.next)
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        """End it; may be called twice."""
        self._pieces.close()

    close = aclose

    @property
    def timings(self) -> Timings | None:
        """llama.cpp's measurements, at the end."""
        return timings_of(self._pieces.call)

    async def __aenter__(self) -> AsyncStream[T]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        self._pieces.close()


async def in_thread(threads: ThreadPoolExecutor, call: Call, function: Callable[..., T], *args: Any) -> T:
    """Run what may block; if the task is cancelled meanwhile, so is the call. Raises UsageError on a closed client."""
    try:
        waiting = asyncio.get_running_loop().run_in_executor(threads, function, *args)
    except RuntimeError as error:
        call.end(error)
        raise UsageError(CLOSED) from None
    try:
        return await waiting
    except asyncio.CancelledError:
        call.cancel()
        call.end(cancelled=True)
        raise
