"""Decorators: preserved function properties, recorded attributes, nesting of spans."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import inspect
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.trace import SpanKind, StatusCode

import llamatel
from llamatel.errors import UsageError
from llamatel.telemetry.span_table import DECORATED
from llamatel.tracing import decorators as tracing
from tests.recording import Recording


def current() -> int:
    return trace.get_current_span().get_span_context().span_id


@llamatel.task
def add(a: int, b: int = 2) -> int:
    """Adds."""
    return a + b


class Agent:
    @llamatel.task
    def method(self, x: int) -> int:
        return x

    @llamatel.task(arguments=True)
    @classmethod
    def of_class(cls, x: int) -> tuple[type, int]:
        return cls, x

    @classmethod
    @llamatel.task
    def of_class_inside(cls, x: int) -> tuple[type, int]:
        return cls, x

    @llamatel.task
    @staticmethod
    def static(x: int) -> int:
        return x


def test_task_keeps_name_signature_docstring(recorded: Recording) -> None:
    assert (add.__name__, add.__qualname__, add.__doc__) == ("add", "add", "Adds.")
    assert str(inspect.signature(add)) == "(a: 'int', b: 'int' = 2) -> 'int'"
    assert add(1) == 3
    [span] = recorded.spans
    assert (span.name, span.kind) == ("add", SpanKind.INTERNAL)
    assert span.status.status_code is StatusCode.UNSET
    assert dict(span.attributes or {}) == {"code.function.name": f"{__name__}.add"}


def test_task_name_and_attributes(recorded: Recording) -> None:
    @llamatel.task(name="sum", attributes={"team": "a", "n": 1})
    def first() -> None: ...

    @llamatel.workflow
    def second() -> None: ...

    @llamatel.workflow(name="nightly", attributes={"code.function.name": "mine"})
    def third() -> None: ...

    for function in (first, second, third):
        function()
    one, two, three = recorded.spans
    assert one.name == "sum"
    assert (one.attributes or {}).items() >= {("team", "a"), ("n", 1)}
    assert two.name == "invoke_workflow second"
    assert (two.attributes or {})["gen_ai.workflow.name"] == "second"
    assert three.name == "invoke_workflow nightly"
    assert dict(three.attributes or {}) == {
        "gen_ai.operation.name": "invoke_workflow",
        "gen_ai.workflow.name": "nightly",
        "code.function.name": "mine",
    }


def test_task_methods(recorded: Recording) -> None:
    agent = Agent()
    assert agent.method(1) == 1
    assert agent.of_class(2) == Agent.of_class(2) == (Agent, 2)
    assert agent.of_class_inside(3) == Agent.of_class_inside(3) == (Agent, 3)
    assert agent.static(4) == Agent.static(4) == 4
    names = [span.name for span in recorded.spans]
    assert names == ["Agent.method"] + ["Agent.of_class"] * 2 + ["Agent.of_class_inside"] * 2 + ["Agent.static"] * 2
    assert (recorded.spans[1].attributes or {})["llamatel.argument.x"] == 2
    assert "llamatel.argument.cls" not in (recorded.spans[1].attributes or {})


def test_task_not_callable() -> None:
    with pytest.raises(UsageError, match="not <class"):
        llamatel.task(Agent)
    with pytest.raises(UsageError, match="its name is given as name='search'"):
        llamatel.task("search")  # type: ignore[call-overload]
    with pytest.raises(UsageError):
        llamatel.task(property(Agent.static))  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"arguments": "prompt"}, r"a tuple of names: \('prompt',\)"),
        ({"arguments": ("prompt", "tokns")}, "ask has no argument 'tokns'"),
        ({"arguments": True, "redact": "prompt"}, "redact is a function"),
    ],
)
def test_task_invalid_arguments(given: dict[str, Any], expected: str) -> None:
    def ask(prompt: str, tokens: int) -> None:
        """Never called."""

    with pytest.raises(UsageError, match=expected):
        llamatel.task(**given)(ask)


def test_task_exception(recorded: Recording) -> None:
    error = ValueError("no")

    @llamatel.task
    def fails() -> None:
        raise error

    with pytest.raises(ValueError, match="no") as caught:
        fails()
    assert caught.value is error
    assert (error.__cause__, error.__context__) == (None, None)
    [span] = recorded.spans
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "ValueError: no")
    assert (span.attributes or {})["error.type"] == "ValueError"
    assert [event.name for event in span.events] == ["exception"]
    assert current() == 0


def test_span_nesting(recorded: Recording) -> None:
    with llamatel.span("outer", attributes={"k": 1}) as outer:
        outer.set_attribute("later", True)
        add(1)
        with pytest.raises(KeyError), llamatel.span("inner"):
            raise KeyError("x")
    assert recorded.parents() == {"add": "outer", "inner": "outer", "outer": None}
    assert dict(recorded.named("outer").attributes or {}) == {"k": 1, "later": True}
    assert recorded.named("inner").status.status_code is StatusCode.ERROR
    assert recorded.named("outer").status.status_code is StatusCode.UNSET


def test_task_coroutines_in_gather(recorded: Recording) -> None:
    @llamatel.task
    async def leaf(number: int) -> int:
        before = current()
        await asyncio.sleep(0.001 * (3 - number))
        assert current() == before
        with llamatel.span(f"inside {number}"):
            await asyncio.sleep(0)
        return number

    @llamatel.workflow(name="all")
    async def everything() -> list[int]:
        return await asyncio.gather(*(leaf(number) for number in range(3)))

    assert inspect.iscoroutinefunction(everything)
    assert asyncio.run(everything()) == [0, 1, 2]
    leaves = [span for span in recorded.spans if span.name.endswith("leaf")]
    root = recorded.named("invoke_workflow all")
    assert root.context is not None
    assert [span.parent and span.parent.span_id for span in leaves] == [root.context.span_id] * 3
    ids = {span.context.span_id for span in leaves if span.context is not None}
    insides = [span for span in recorded.spans if span.name.startswith("inside")]
    assert {span.parent.span_id for span in insides if span.parent is not None} == ids


def test_task_function_returning_coroutine(recorded: Recording) -> None:
    async def answer(fails: bool) -> str:
        await asyncio.sleep(0.01)
        with llamatel.span("inner"):
            if fails:
                raise ValueError("no")
        return "yes"

    @llamatel.task(result=True)
    def wrapped(fails: bool = False) -> Coroutine[Any, Any, str]:  # what other decorators make of an async def
        return answer(fails)

    class Agent:
        async def __call__(self) -> str:
            return await answer(False)

    async def main() -> None:
        assert await wrapped() == "yes"
        with pytest.raises(ValueError, match="no"):
            await wrapped(fails=True)
        assert await llamatel.task(Agent())() == "yes"

    asyncio.run(main())
    for inner, outer in zip(recorded.spans[::2], recorded.spans[1::2], strict=True):
        assert inner.name == "inner"
        assert inner.parent is not None
        assert inner.parent.span_id == outer.context.span_id
        assert (outer.end_time or 0) >= (inner.end_time or 0)
    first, second, third = recorded.spans[1::2]
    assert (first.attributes or {})["llamatel.result"] == "yes"
    assert (second.attributes or {})["error.type"] == "ValueError"
    assert third.name == "Agent"
    assert current() == 0


def test_task_cancelled_coroutine(recorded: Recording) -> None:
    @llamatel.task
    async def sleeps() -> None:
        await asyncio.sleep(10)

    async def main() -> None:
        running = asyncio.create_task(sleeps())
        await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(main())
    [span] = recorded.spans
    assert span.status.status_code is StatusCode.UNSET
    assert list(span.events) == []
    assert (span.attributes or {})["llamatel.cancelled"] is True


def test_carry_context_threads(recorded: Recording) -> None:
    with ThreadPoolExecutor(4) as pool, llamatel.span("outer"):
        assert list(pool.map(llamatel.carry_context(add), range(8))) == [2, 3, 4, 5, 6, 7, 8, 9]
        pool.submit(add, 1).result()
        carried = pool.submit(current).result()
    adds = [span for span in recorded.spans if span.name == "add"]
    outer = recorded.named("outer")
    assert outer.context is not None
    assert [span.parent.span_id if span.parent else None for span in adds] == [outer.context.span_id] * 8 + [None]
    assert carried == 0


def test_task_generator_context(recorded: Recording) -> None:
    seen: list[int] = []

    @llamatel.task
    def numbers(count: int) -> Generator[int, str, str]:
        """Counts."""
        seen.append(current())
        with llamatel.span("block"):
            inner = current()
            for number in range(count):
                assert (yield number) == "go"
                assert current() == inner
        assert current() == seen[0]
        return "done"

    def consumer() -> Generator[int, str, str]:
        return (yield from numbers(2))

    assert inspect.isgeneratorfunction(numbers)
    assert numbers.__doc__ == "Counts."
    with llamatel.span("consumer"):
        outside = current()
        running = consumer()
        assert next(running) == 0
        assert current() == outside
        assert running.send("go") == 1
        assert current() == outside
        with pytest.raises(StopIteration) as stop:
            running.send("go")
        assert current() == outside
    assert stop.value.value == "done"
    body, block = next(span for span in recorded.spans if span.name.endswith("numbers")), recorded.named("block")
    assert recorded.parents()[body.name] == "consumer"
    assert recorded.parents()["block"] == body.name
    assert block.status.status_code is StatusCode.UNSET


def test_task_generator_failures(recorded: Recording) -> None:
    closed: list[str] = []

    @llamatel.task(name="gen")
    def generator() -> Iterator[int]:
        try:
            yield 1
        except LookupError:
            yield 2
            raise RuntimeError("after") from None
        finally:
            closed.append("closed")

    running = generator()
    next(running)
    del running
    assert closed == ["closed"]
    assert recorded.spans[0].status.status_code is StatusCode.UNSET
    thrown = generator()
    assert isinstance(thrown, Generator)
    next(thrown)
    assert thrown.throw(LookupError()) == 2
    with pytest.raises(RuntimeError, match="after"):
        next(thrown)
    assert recorded.spans[1].status.description == "RuntimeError: after"
    generator()  # never started: no span
    assert len(recorded.spans) == 2


def test_task_async_generators(recorded: Recording) -> None:
    finished: list[str] = []

    @llamatel.task(name="agen")
    async def numbers(count: int) -> AsyncIterator[int]:
        try:
            for number in range(count):
                with llamatel.span(f"step {number}"):
                    await asyncio.sleep(0)
                    yield number
        finally:
            finished.append("finished")

    async def main() -> None:
        with llamatel.span("consumer"):
            outside = current()
            async for _ in numbers(2):
                assert current() == outside
            async with contextlib.aclosing(numbers(5)) as cut:  # type: ignore[type-var]
                async for _ in cut:
                    break
            assert current() == outside

    assert inspect.isasyncgenfunction(numbers)
    asyncio.run(main())
    assert finished == ["finished", "finished"]
    assert [span.name for span in recorded.spans] == ["step 0", "step 1", "agen", "step 0", "agen", "consumer"]
    assert all(span.status.status_code is StatusCode.UNSET for span in recorded.spans)
    parents = recorded.parents()
    assert (parents["step 0"], parents["step 1"], parents["agen"]) == ("agen", "agen", "consumer")


def test_task_async_generator_closed_by_loop(recorded: Recording, caplog: pytest.LogCaptureFixture) -> None:
    @llamatel.task(name="agen")
    async def numbers() -> AsyncIterator[int]:
        with llamatel.span("step"):
            yield 1

    async def main() -> None:
        with llamatel.span("consumer"):
            async for _ in numbers():
                break
            await asyncio.sleep(0.01)

    asyncio.run(main())
    assert "agen" in [span.name for span in recorded.spans]
    assert current() == 0


def test_task_arguments_and_results(recorded: Recording) -> None:
    def hide(name: str, value: object) -> object:
        return {"secret": None, "return": "<redacted>"}.get(name, value)

    @llamatel.task(arguments=True, result=True, redact=hide)
    def first(prompt: str, secret: str, *rest: int, **more: object) -> str:
        return prompt

    @llamatel.task(arguments=("n",), result=True)
    def second(n: int, prompt: str) -> list[int]:
        return list(range(n))

    first("p" * 5000, "key", 1, 2, x=None)
    second(1000, "no")
    add(1)
    one, two, three = (dict(span.attributes or {}) for span in recorded.spans)
    assert one.pop("code.function.name")
    assert one == {
        "llamatel.argument.prompt": "p" * 999 + "…",
        "llamatel.argument.rest": "(1, 2)",
        "llamatel.argument.more": "{'x': None}",
        "llamatel.result": "<redacted>",
    }
    assert two["llamatel.argument.n"] == 1000
    assert "llamatel.argument.prompt" not in two
    assert len(str(two["llamatel.result"])) < 200
    assert list(three) == ["code.function.name"]


def test_task_attributes_in_table(recorded: Recording) -> None:
    @llamatel.workflow(arguments=True, result=True)
    def whole(prompt: str, *, fails: bool = False) -> str:
        if fails:
            raise KeyError
        return prompt

    @llamatel.task
    async def cancelled() -> None:
        raise asyncio.CancelledError

    whole("p")
    with pytest.raises(KeyError):
        whole("p", fails=True)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())
    found = {name for span in recorded.spans for name in span.attributes or {}}
    arguments = {name for name in found if name.startswith("llamatel.argument.")}
    assert arguments == {"llamatel.argument.prompt", "llamatel.argument.fails"}
    assert found - arguments | {"llamatel.argument.NAME"} == {row.name for row in DECORATED}
    assert {span.kind.name for span in recorded.spans} == {"INTERNAL"}


def test_task_redaction_fails(recorded: Recording, caplog: pytest.LogCaptureFixture) -> None:
    def broken(name: str, value: object) -> object:
        raise OSError(name)

    @llamatel.task(arguments=True, result=True, redact=broken)
    def function(x: int) -> int:
        return x

    assert [function(1), function(2)] == [1, 2]
    assert len([record for record in caplog.records if "was not recorded" in record.message]) == 1
    with pytest.raises(TypeError, match="missing 1 required"):
        function()  # type: ignore[call-arg]


def test_task_without_telemetry() -> None:
    @llamatel.task
    async def coroutine() -> int:
        return add(1)

    @llamatel.workflow
    def generator() -> Generator[int, None, int]:
        yield 1
        return 2

    @llamatel.task
    async def agen() -> AsyncIterator[int]:
        yield 1

    async def collect() -> list[int]:
        return [number async for number in agen()]

    assert tracing.tracer() is None
    assert asyncio.run(coroutine()) == 3
    assert list(generator()) == [1]
    assert asyncio.run(collect()) == [1]
    with llamatel.span("x") as nothing:
        nothing.set_attribute("a", 1)
        assert not nothing.is_recording()


def test_task_init_and_shutdown() -> None:
    def run() -> Any:
        try:
            llamatel.init(metrics_addr="none")
            assert tracing.tracer() is not None
        finally:
            llamatel.shutdown()
        return tracing.tracer()

    assert contextvars.copy_context().run(run) is None


# -- spans across yield, in other tasks -------------------------------------------------------------------------------


async def turns() -> AsyncGenerator[int, None]:
    for number in range(3):
        with llamatel.span("turn"):
            yield number


LEAVING = {
    "break": "async for _ in stream: break",
    "drop": "await anext(stream); del stream; gc.collect(); await asyncio.sleep(0.01)",
    "aclose": "await anext(stream); await stream.aclose()",
    "aclose in another task": "await anext(stream); await asyncio.create_task(stream.aclose())",
    "next in other tasks": "[await asyncio.create_task(anext(stream)) for _ in range(3)]; await stream.aclose()",
    "wait_for": "[await asyncio.wait_for(anext(stream), 1) for _ in range(2)]; await stream.aclose()",
    "wait_for that times out": "await leave_by_timeout(stream)",
    "cancelled consumer": "await leave_by_cancel(stream)",
    "exhaust": "[_ async for _ in stream]",
}


async def leave_by_timeout(stream: AsyncGenerator[int, None]) -> None:
    async def consume() -> None:
        async for _ in stream:
            await asyncio.sleep(10)

    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(consume(), 0.02)
    await stream.aclose()


async def leave_by_cancel(stream: AsyncGenerator[int, None]) -> None:
    async def consume() -> None:
        async for _ in stream:
            await asyncio.sleep(10)

    running = asyncio.create_task(consume())
    await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await asyncio.create_task(stream.aclose())


@pytest.mark.parametrize("decorated", [False, True])
@pytest.mark.parametrize("way", LEAVING)
def test_span_across_yield(recorded: Recording, caplog: pytest.LogCaptureFixture, way: str, decorated: bool) -> None:
    stream_of = llamatel.task(name="stream")(turns) if decorated else turns
    names = {"asyncio": asyncio, "gc": gc, "leave_by_timeout": leave_by_timeout, "leave_by_cancel": leave_by_cancel}
    program = f"async def leave(stream_of):\n    stream = stream_of()\n    {LEAVING[way]}\n"
    exec(program, names)  # noqa: S102 - a table of ours; `del stream` needs the only reference
    leave: Any = names["leave"]

    async def main() -> None:
        with llamatel.span("consumer"):
            before = current()
            await leave(stream_of)
            if decorated:
                assert current() == before
        assert current() == 0

    asyncio.run(main())
    gc.collect()
    assert [record.getMessage() for record in caplog.records] == []
    ids = [span.context.span_id for span in recorded.spans if span.context is not None]
    assert len(ids) == len(set(ids))  # each finished once
    assert [span.name for span in recorded.spans].count("stream") == decorated
    for span in recorded.spans:
        assert (span.status.status_code, list(span.events)) == (StatusCode.UNSET, [])


def test_span_across_yield_of_a_generator_closed_in_another_thread(
    recorded: Recording, caplog: pytest.LogCaptureFixture
) -> None:
    def numbers() -> Generator[int, None, None]:
        with llamatel.span("turn"):
            yield 1

    def leave() -> None:
        running = numbers()
        assert next(running) == 1
        with ThreadPoolExecutor(1) as pool:
            pool.submit(running.close).result()

    contextvars.copy_context().run(leave)  # its own thread stays inside of the block
    assert [span.name for span in recorded.spans] == ["turn"]
    assert caplog.records == []


def test_span_same_object_entered_twice(recorded: Recording) -> None:
    same = llamatel.span("same")

    async def enter(seconds: float) -> None:
        with same:
            await asyncio.sleep(seconds)
            add(1)

    async def main() -> None:
        await asyncio.gather(enter(0.02), enter(0.01))

    with same:
        outer = current()
        with same:
            assert current() != outer
        assert current() == outer
    asyncio.run(main())
    assert [span.name for span in recorded.spans] == ["same", "same", "add", "same", "add", "same"]
    for one, its in zip(recorded.spans[2::2], recorded.spans[3::2], strict=True):
        assert one.parent == its.context
    assert current() == 0


def test_carry_context_all_kinds(recorded: Recording) -> None:
    async def coroutine() -> int:
        await asyncio.sleep(0)
        return current()

    def generator() -> Generator[int, None, int]:
        yield current()
        return current()

    async def async_generator() -> AsyncIterator[int]:
        yield current()

    async def collect(carried: Any) -> list[int]:
        return [number async for number in carried()]

    with llamatel.span("outer"):
        outer = current()
        kinds: list[Any] = [current, coroutine, generator, async_generator]
        plain, awaited, stepped, streamed = (llamatel.carry_context(each) for each in kinds)
    assert [inspect.iscoroutinefunction(awaited), inspect.isgeneratorfunction(stepped)] == [True, True]
    assert inspect.isasyncgenfunction(streamed)
    with ThreadPoolExecutor(1) as pool:
        found = [
            pool.submit(plain).result(),
            pool.submit(lambda: asyncio.run(awaited())).result(),
            *pool.submit(lambda: list(stepped())).result(),
            *pool.submit(lambda: asyncio.run(collect(streamed))).result(),
        ]
    assert found == [outer] * 4
    running: Any = coroutine()
    with pytest.raises(UsageError, match="without calling it"):
        llamatel.carry_context(running)
    running.close()


# -- what exporters take ----------------------------------------------------------------------------------------------


LONE = "a\ud800b"


def test_span_lone_surrogates_are_replaced(recorded: Recording) -> None:
    @llamatel.task(name=LONE, attributes={"k": LONE}, arguments=True, result=True)
    def function(prompt: str) -> str:
        return prompt

    function(LONE)
    with pytest.raises(ValueError, match="a"), llamatel.span(LONE, attributes={"k": LONE}):
        raise ValueError(LONE)
    encode_spans(recorded.spans).SerializeToString()
    assert {span.name for span in recorded.spans} == {"a?b"}
    assert (recorded.spans[0].attributes or {})["llamatel.result"] == "a?b"
    assert recorded.spans[1].status.description == "ValueError: a?b"


def test_span_exception_text_is_cut(recorded: Recording) -> None:
    with pytest.raises(ValueError, match="x"), llamatel.span("task"):
        raise ValueError("x" * 5000)
    [event] = recorded.spans[0].events
    attributes = dict(event.attributes or {})
    assert len(str(attributes["exception.message"])) == 1000
    assert len(str(attributes["exception.stacktrace"])) < 2500
    assert len(str(recorded.spans[0].status.description)) < 1100


GLOBAL = """
import llamatel
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

@llamatel.task
def work():
    pass

work()
kept = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(kept))
trace.set_tracer_provider(provider)
work()
with llamatel.span("block"):
    pass
llamatel.init(metrics_addr="none")
llamatel.shutdown()
work()
print(*(span.name for span in kept.get_finished_spans()))
"""


def test_task_uses_the_global_provider_without_init() -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", GLOBAL], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "work block\n", "")
