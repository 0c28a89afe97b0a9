"""Spans for one's own code: ``@task``, ``@workflow`` and ``with span("…")``.

They write to the tracer that ``init()`` sets here. Without one (before ``init()``, after ``shutdown()``) a decorated
function is called as it is. The span is current while the function's own code runs, and only then: what it calls
becomes its child, in tasks and coroutines too, and the consumer of a generator is not inside it. Threads get the
caller's span by ``carry_context``.
"""

from __future__ import annotations

import functools
import inspect
from asyncio import CancelledError
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping
from contextvars import Token
from types import CoroutineType, TracebackType
from typing import Any, TypeVar, cast, overload

from opentelemetry.context import Context, attach, detach, get_current
from opentelemetry.trace import INVALID_SPAN, Span, Status, StatusCode, Tracer, set_span_in_context

from llamatel.errors import UsageError
from llamatel.tracing.span_arguments import RecordedArguments, Redact

F = TypeVar("F", bound=Callable[..., Any])
AttributeValue = str | bool | int | float


class _Telemetry:
    """Where spans go; None is nowhere."""

    tracer: Tracer | None = None


def use(tracer: Tracer | None) -> None:
    """Write spans with this tracer from now on; None ends it. What has begun goes on with the one it had."""
    _Telemetry.tracer = tracer


def tracer() -> Tracer | None:
    """The tracer of the telemetry that runs, or None."""
    return _Telemetry.tracer


class span:  # noqa: N801 - it reads as a function: ``with span("…")``
    """``with llamatel.span("rerank", attributes={…}) as current:`` is a span around a block.

    What comes back is OpenTelemetry's span (``current.set_attribute(…)``); one that records nothing while telemetry is
    off. An exception is recorded and goes on.
    """

    __slots__ = ("_attributes", "_name", "_span", "_token")

    def __init__(self, name: str, attributes: Mapping[str, AttributeValue] | None = None) -> None:
        self._name = name
        self._attributes = attributes
        self._token: Token[Context] | None = None
        self._span: Span = INVALID_SPAN

    def __enter__(self) -> Span:
        tracer = _Telemetry.tracer
        if tracer is not None:
            self._span = tracer.start_span(self._name, attributes=self._attributes)
            self._token = attach(set_span_in_context(self._span))
        return self._span

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            detach(self._token)
            self._token = None
            if error is not None:
                record_error(self._span, error)
            self._span.end()


def record_error(span: Span, error: BaseException) -> None:
    """Record an exception on a span. A cancellation is none of the code's errors, a generator's close is nothing."""
    if isinstance(error, GeneratorExit):
        return
    span.record_exception(error)
    if not isinstance(error, CancelledError):
        kind = type(error).__qualname__
        span.set_attribute("error.type", kind)
        span.set_status(Status(StatusCode.ERROR, f"{kind}: {error}"))


@overload
def task(function: F, /) -> F: ...
@overload
def task(
    *,
    name: str | None = None,
    attributes: Mapping[str, AttributeValue] | None = None,
    arguments: bool | tuple[str, ...] = False,
    result: bool = False,
    redact: Redact | None = None,
) -> Callable[[F], F]: ...
def task(
    function: F | None = None,
    /,
    *,
    name: str | None = None,
    attributes: Mapping[str, AttributeValue] | None = None,
    arguments: bool | tuple[str, ...] = False,
    result: bool = False,
    redact: Redact | None = None,
) -> F | Callable[[F], F]:
    """A span around each call of a function, method, coroutine, generator or async generator: ``@task``, ``@task(…)``.

    ``name``: the span's; the function's own by default. ``attributes``: on every span. ``arguments``: True records all
    arguments, a tuple those it names, as ``llamatel.argument.NAME``; ``result`` the result, as ``llamatel.result``;
    both cut to 1,000 characters, and first given to ``redact(name, value)``, whose answer is recorded instead (None:
    nothing). The result of a generator is not recorded.

    The span of a generator begins with its first step and ends with its last, or when it is dropped; that of a function
    that returns a coroutine, as another decorator may make of an ``async def``, ends with the coroutine.
    """

    def decorate(wrapped: F) -> F:
        where = _described(wrapped)
        return _decorated(
            wrapped, name or where[0], {**where[1], **(attributes or {})}, RecordedArguments(arguments, result, redact)
        )

    return decorate if function is None else decorate(function)


@overload
def workflow(function: F, /) -> F: ...
@overload
def workflow(
    *,
    name: str | None = None,
    attributes: Mapping[str, AttributeValue] | None = None,
    arguments: bool | tuple[str, ...] = False,
    result: bool = False,
    redact: Redact | None = None,
) -> Callable[[F], F]: ...
def workflow(
    function: F | None = None,
    /,
    *,
    name: str | None = None,
    attributes: Mapping[str, AttributeValue] | None = None,
    arguments: bool | tuple[str, ...] = False,
    result: bool = False,
    redact: Redact | None = None,
) -> F | Callable[[F], F]:
    """As ``task``, for what holds tasks together: the GenAI conventions' ``invoke_workflow NAME``."""

    def decorate(wrapped: F) -> F:
        own_name, where = _described(wrapped)
        about = {"gen_ai.operation.name": "invoke_workflow", "gen_ai.workflow.name": name or own_name}
        return _decorated(
            wrapped,
            f"invoke_workflow {name or own_name}",
            {**about, **where, **(attributes or {})},
            RecordedArguments(arguments, result, redact),
        )

    return decorate if function is None else decorate(function)


def carry_context(function: F) -> F:
    """``function``, to be called on other threads, inside the span that is current here and now.

    Tasks of asyncio carry it by themselves; threads do not: ``pool.map(llamatel.carry_context(ask), prompts)``.
    """
    here = get_current()

    @functools.wraps(function)
    def carried(*args: Any, **kwargs: Any) -> Any:
        token = attach(here)
        try:
            return function(*args, **kwargs)
        finally:
            detach(token)

    return cast("F", carried)


def _described(function: object) -> tuple[str, dict[str, AttributeValue]]:
    """A function's name for its span, and where it is (``code.function.name`` of the conventions)."""
    inner = getattr(function, "__func__", function)
    qualified = getattr(inner, "__qualname__", None) or type(inner).__qualname__
    module = getattr(inner, "__module__", None)
    return qualified.rpartition("<locals>.")[2], {
        "code.function.name": f"{module}.{qualified}" if module else qualified
    }


def _decorated(function: F, name: str, attributes: dict[str, AttributeValue], told: RecordedArguments) -> F:
    if isinstance(function, (classmethod, staticmethod)):
        return cast("F", type(function)(_decorated(function.__func__, name, attributes, told)))
    if inspect.isclass(function) or not callable(function):
        given: object = function
        advice = f"; its name goes by name={given!r}" if isinstance(given, str) else ""
        raise UsageError(f"a task or workflow is a function or method, not {function!r}{advice}")
    told.look_at(function)
    kind = (
        _async_generator if inspect.isasyncgenfunction(function)
        else _generator if inspect.isgeneratorfunction(function)
        else _coroutine if inspect.iscoroutinefunction(function)
        else _plain
    )  # fmt: skip
    return cast("F", functools.wraps(function)(kind(function, name, attributes, told)))


def _plain(
    function: Callable[..., Any], name: str, attributes: dict[str, AttributeValue], told: RecordedArguments
) -> Any:
    wants_arguments, wants_result = told.arguments, told.result

    def call(*args: Any, **kwargs: Any) -> Any:
        tracer = _Telemetry.tracer
        if tracer is None:
            return function(*args, **kwargs)
        span = tracer.start_span(name, attributes=attributes)
        if wants_arguments:
            told.write_arguments(span, args, kwargs)
        token = attach(set_span_in_context(span))
        goes_on = False
        try:
            result = function(*args, **kwargs)
            goes_on = isinstance(result, CoroutineType)
            if wants_result and not goes_on:
                told.write_result(span, result)
        except BaseException as error:
            record_error(span, error)
            raise
        else:
            return _awaited(lambda: result, span, told) if goes_on else result
        finally:
            detach(token)
            if not goes_on:
                span.end()

    return call


async def _awaited(begin: Callable[[], Coroutine[Any, Any, Any]], span: Span, told: RecordedArguments) -> Any:
    """The coroutine that ``begin`` gives, inside of its span, which ends with it."""
    token = attach(set_span_in_context(span))
    try:
        result = await begin()
        if told.result:
            told.write_result(span, result)
    except BaseException as error:
        record_error(span, error)
        raise
    else:
        return result
    finally:
        detach(token)
        span.end()


def _coroutine(
    function: Callable[..., Any], name: str, attributes: dict[str, AttributeValue], told: RecordedArguments
) -> Any:
    async def call(*args: Any, **kwargs: Any) -> Any:
        tracer = _Telemetry.tracer
        if tracer is None:
            return await function(*args, **kwargs)
        span = tracer.start_span(name, attributes=attributes)
        if told.arguments:
            told.write_arguments(span, args, kwargs)
        return await _awaited(lambda: function(*args, **kwargs), span, told)

    return call


class _Inside:
    """The context in which a generator's own code runs: entered for each step, left while its consumer has the turn."""

    __slots__ = ("_context", "_token")

    def __init__(self, context: Context) -> None:
        self._context = context
        self._token: Token[Context] | None = None

    def __enter__(self) -> None:
        self._token = attach(self._context)

    def __exit__(self, *_: object) -> None:
        if self._token is not None:
            # Where the code stands now: perhaps inside a span of its own, to which it comes back.
            self._context = get_current()
            detach(self._token)


def _generator(
    function: Callable[..., Any], name: str, attributes: dict[str, AttributeValue], told: RecordedArguments
) -> Any:
    def call(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        tracer = _Telemetry.tracer
        body: Generator[Any, Any, Any] = function(*args, **kwargs)
        if tracer is None:
            return (yield from body)
        span = tracer.start_span(name, attributes=attributes)
        if told.arguments:
            told.write_arguments(span, args, kwargs)
        inside = _Inside(set_span_in_context(span))
        step: Callable[[Any], Any] = body.send
        value: Any = None
        try:
            while True:
                with inside:
                    try:
                        item = step(value)
                    except StopIteration as stop:
                        return stop.value
                try:
                    value, step = (yield item), body.send
                except GeneratorExit:
                    with inside:
                        body.close()
                    raise
                except BaseException as error:  # noqa: BLE001 - thrown in by the consumer: the body's to handle
                    value, step = error, body.throw
        except BaseException as error:
            record_error(span, error)
            raise
        finally:
            span.end()

    return call


def _async_generator(
    function: Callable[..., Any], name: str, attributes: dict[str, AttributeValue], told: RecordedArguments
) -> Any:
    async def call(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        tracer = _Telemetry.tracer
        body: AsyncGenerator[Any, Any] = function(*args, **kwargs)
        span = INVALID_SPAN if tracer is None else tracer.start_span(name, attributes=attributes)
        if tracer is not None and told.arguments:
            told.write_arguments(span, args, kwargs)
        inside = _Inside(get_current() if tracer is None else set_span_in_context(span))
        step: Callable[[Any], Any] = body.asend
        value: Any = None
        try:
            while True:
                with inside:
                    try:
                        item = await step(value)
                    except StopAsyncIteration:
                        return
                try:
                    value, step = (yield item), body.asend
                except GeneratorExit:
                    with inside:
                        await body.aclose()
                    raise
                except BaseException as error:  # noqa: BLE001 - thrown in by the consumer: the body's to handle
                    value, step = error, body.athrow
        except BaseException as error:
            record_error(span, error)
            raise
        finally:
            span.end()

    return call
