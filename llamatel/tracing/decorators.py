"""Spans for application code: ``@task``, ``@workflow`` and ``with span("…")``.

They write to the tracer that ``init()`` sets here; before any ``init()`` to the application's global tracer provider,
if there is one. Without either, and after ``shutdown()``, decorated functions run without spans. The span is current
only while the function's own code runs: its calls become children, in tasks and coroutines too, but the consumer of a
generator is not inside it. Threads get the caller's span with ``carry_context``.
"""

from __future__ import annotations

import functools
import inspect
import traceback
from asyncio import CancelledError
from collections.abc import Callable, Coroutine, Mapping
from contextlib import nullcontext
from types import CoroutineType, TracebackType
from typing import Any, TypeVar, cast, overload

from opentelemetry.context import get_current
from opentelemetry.trace import INVALID_SPAN, Span, Status, StatusCode, Tracer, set_span_in_context

from llamatel.errors import UsageError
from llamatel.tracing import global_tracer
from llamatel.tracing.entered_context import EnteredContext, SteppedContext
from llamatel.tracing.span_arguments import RecordedArguments, Redact
from llamatel.tracing.span_values import cut, encodable
from llamatel.tracing.stepped_generators import GENERATORS, Opened

F = TypeVar("F", bound=Callable[..., Any])
AttributeValue = str | bool | int | float


class _Telemetry:
    """Writes the spans; None: none are written."""

    tracer: Tracer | None = None
    shut_down = False


def use(tracer: Tracer | None) -> None:
    """Write new spans with this tracer; None stops it. Open spans keep the tracer that they started with."""
    _Telemetry.tracer, _Telemetry.shut_down = tracer, tracer is None


def tracer() -> Tracer | None:
    """The tracer that spans are written with now: that of ``init()``, or of the global provider; else None."""
    if _Telemetry.tracer is not None or _Telemetry.shut_down:
        return _Telemetry.tracer
    return global_tracer.tracer()


class span:  # noqa: N801 - it reads as a function: ``with span("…")``
    """``with llamatel.span("rerank", attributes={…}) as current:`` is a span around a block.

    ``current`` is OpenTelemetry's span (``current.set_attribute(…)``), which records nothing while telemetry is off. An
    exception is recorded and re-raised. The same object may be entered several times, also at once.
    """

    __slots__ = ("_attributes", "_entered", "_name")

    def __init__(self, name: str, attributes: Mapping[str, AttributeValue] | None = None) -> None:
        self._name = encodable(name)
        self._attributes = encodable(dict(attributes)) if attributes else None
        self._entered: list[tuple[Span, EnteredContext]] = []

    def __enter__(self) -> Span:
        current = tracer()
        if current is None:
            return INVALID_SPAN
        started = current.start_span(self._name, attributes=self._attributes)
        self._entered.append((started, EnteredContext(set_span_in_context(started))))
        return started

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._entered:
            return
        # If it is entered in several tasks at once, the one whose context is current is left.
        index = next((at for at, (_, entered) in enumerate(self._entered) if entered.is_current), -1)
        started, entered = self._entered.pop(index)
        entered.leave()
        if error is not None:
            record_error(started, error)
        started.end()


def record_error(span: Span, error: BaseException) -> None:
    """Record an exception on a span, its text cut to 1,000 characters: it may quote a model's output.

    A cancellation is not an error; closing a generator is not recorded.
    """
    if isinstance(error, GeneratorExit) or not span.is_recording():
        return
    if isinstance(error, CancelledError):
        span.set_attribute("llamatel.cancelled", True)
        return
    kind = type(error).__qualname__
    try:
        text = cut(encodable(str(error)))
    except Exception:  # noqa: BLE001 - the boundary to a foreign __str__
        text = ""
    module = type(error).__module__
    name = kind if module == "builtins" else f"{module}.{kind}"
    stack = encodable("".join(traceback.format_tb(error.__traceback__)))
    span.add_event(
        "exception",
        {"exception.type": name, "exception.message": text, "exception.stacktrace": f"{stack}{name}: {text}"},
    )
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR, f"{kind}: {text}"))


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
    both cut to 1,000 characters, and first passed to ``redact(name, value)``, whose return value is recorded instead
    (None: nothing). The result of a generator is not recorded.

    The span of a generator starts with its first step and ends with its last, or when it is dropped; that of a function
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
    """As ``task``, for a function that runs tasks: the GenAI conventions' ``invoke_workflow NAME``."""

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
    """Wrap ``function`` so that calls on other threads run inside the span that is current now.

    asyncio tasks inherit it, threads do not: ``pool.map(llamatel.carry_context(ask), prompts)``. Accepts functions,
    coroutine functions, generator functions and async generator functions.
    """
    if not callable(function):
        given: object = function
        raise UsageError(f"carry_context takes a function, not {given!r}: pass the function itself, without calling it")
    here = get_current()

    def carried(*args: Any, **kwargs: Any) -> Any:
        entered = EnteredContext(here)
        try:
            return function(*args, **kwargs)
        finally:
            entered.leave()

    async def coroutine(*args: Any, **kwargs: Any) -> Any:
        entered = EnteredContext(here)
        try:
            return await function(*args, **kwargs)
        finally:
            entered.leave()

    def opened(_: Any, __: Any) -> Opened:
        return SteppedContext(here), lambda _: None

    kind = _kind(function)
    if kind in GENERATORS:
        return cast("F", functools.wraps(function)(GENERATORS[kind](function, opened)))
    return cast("F", functools.wraps(function)(coroutine if kind == "coroutine" else carried))


def _kind(function: Callable[..., Any]) -> str:
    return (
        "async_generator" if inspect.isasyncgenfunction(function)
        else "generator" if inspect.isgeneratorfunction(function)
        else "coroutine" if inspect.iscoroutinefunction(function)
        else "plain"
    )  # fmt: skip


def _described(function: object) -> tuple[str, dict[str, AttributeValue]]:
    """A function's name for its span, and ``code.function.name`` of the conventions."""
    inner = getattr(function, "__func__", function)
    qualified = getattr(inner, "__qualname__", None) or type(inner).__qualname__
    module = getattr(inner, "__module__", None)
    return qualified.rpartition("<locals>.")[2], {
        "code.function.name": f"{module}.{qualified}" if module else qualified
    }


def _decorated(function: F, name: str, attributes: dict[str, AttributeValue], recorded: RecordedArguments) -> F:
    if isinstance(function, (classmethod, staticmethod)):
        return cast("F", type(function)(_decorated(function.__func__, name, attributes, recorded)))
    if inspect.isclass(function) or not callable(function):
        given: object = function
        advice = f"; its name is given as name={given!r}" if isinstance(given, str) else ""
        raise UsageError(f"a task or workflow is a function or method, not {function!r}{advice}")
    recorded.inspect(function)
    name, attributes = encodable(name), encodable(attributes)

    def opened(args: Any, kwargs: Any) -> Opened:
        current = tracer()
        if current is None:
            return nullcontext(), lambda _: None
        span = current.start_span(name, attributes=attributes)
        if recorded.arguments:
            recorded.write_arguments(span, args, kwargs)
        return SteppedContext(set_span_in_context(span)), functools.partial(_end, span)

    kind = _kind(function)
    if kind in GENERATORS:
        return cast("F", functools.wraps(function)(GENERATORS[kind](function, opened)))
    wrap = _coroutine if kind == "coroutine" else _plain
    return cast("F", functools.wraps(function)(wrap(function, name, attributes, recorded)))


def _end(span: Span, error: BaseException | None) -> None:
    if error is not None:
        record_error(span, error)
    span.end()


def _plain(
    function: Callable[..., Any], name: str, attributes: dict[str, AttributeValue], recorded: RecordedArguments
) -> Any:
    wants_arguments, wants_result = recorded.arguments, recorded.result

    def call(*args: Any, **kwargs: Any) -> Any:
        current = tracer()
        if current is None:
            return function(*args, **kwargs)
        span = current.start_span(name, attributes=attributes)
        if wants_arguments:
            recorded.write_arguments(span, args, kwargs)
        entered = EnteredContext(set_span_in_context(span))
        pending = False
        try:
            result = function(*args, **kwargs)
            pending = isinstance(result, CoroutineType)
            if wants_result and not pending:
                recorded.write_result(span, result)
        except BaseException as error:
            record_error(span, error)
            raise
        else:
            return _awaited(lambda: result, span, recorded) if pending else result
        finally:
            entered.leave()
            if not pending:
                span.end()

    return call


async def _awaited(start: Callable[[], Coroutine[Any, Any, Any]], span: Span, recorded: RecordedArguments) -> Any:
    """The result of the coroutine that ``start`` returns, inside its span, which ends with it."""
    entered = EnteredContext(set_span_in_context(span))
    try:
        result = await start()
        if recorded.result:
            recorded.write_result(span, result)
    except BaseException as error:
        record_error(span, error)
        raise
    else:
        return result
    finally:
        entered.leave()
        span.end()


def _coroutine(
    function: Callable[..., Any], name: str, attributes: dict[str, AttributeValue], recorded: RecordedArguments
) -> Any:
    async def call(*args: Any, **kwargs: Any) -> Any:
        current = tracer()
        if current is None:
            return await function(*args, **kwargs)
        span = current.start_span(name, attributes=attributes)
        if recorded.arguments:
            recorded.write_arguments(span, args, kwargs)
        return await _awaited(lambda: function(*args, **kwargs), span, recorded)

    return call
