"""Generators and async generators whose code runs in its own context, step by step."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractContextManager
from typing import Any

Opened = tuple[AbstractContextManager[None], Callable[["BaseException | None"], None]]
"""The context of a generator's code, and a function to call with its exception, or None."""


def _generator(function: Callable[..., Any], opened: Callable[[Any, Any], Opened]) -> Any:
    """Wrap ``function`` so that its generators run in a context that ``opened`` creates at their first step."""

    def call(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        context, finish = opened(args, kwargs)
        failure: BaseException | None = None
        try:
            body: Generator[Any, Any, Any] = function(*args, **kwargs)
            step: Callable[[Any], Any] = body.send
            value: Any = None
            while True:
                with context:
                    try:
                        item = step(value)
                    except StopIteration as stop:
                        return stop.value
                try:
                    value, step = (yield item), body.send
                except GeneratorExit:
                    with context:
                        body.close()
                    raise
                except BaseException as error:  # noqa: BLE001 - thrown in by the consumer: the body's to handle
                    value, step = error, body.throw
        except BaseException as error:
            failure = error
            raise
        finally:
            finish(failure)

    return call


def _async_generator(function: Callable[..., Any], opened: Callable[[Any, Any], Opened]) -> Any:
    """The same for an async generator function."""

    async def call(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        context, finish = opened(args, kwargs)
        failure: BaseException | None = None
        try:
            body: AsyncGenerator[Any, Any] = function(*args, **kwargs)
            step: Callable[[Any], Any] = body.asend
            value: Any = None
            while True:
                with context:
                    try:
                        item = await step(value)
                    except StopAsyncIteration:
                        return
                try:
                    value, step = (yield item), body.asend
                except GeneratorExit:
                    with context:
                        await body.aclose()
                    raise
                except BaseException as error:  # noqa: BLE001 - thrown in by the consumer: the body's to handle
                    value, step = error, body.athrow
        except BaseException as error:
            failure = error
            raise
        finally:
            finish(failure)

    return call


GENERATORS: dict[str, Callable[..., Any]] = {"async_generator": _async_generator, "generator": _generator}
"""By the kind of the function."""
