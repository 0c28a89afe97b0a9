"""Instrumentation of llama-cpp-python's ``Llama``: spans, counters, metrics, and complete removal."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

import llamatel
from llamatel.llama.in_process import LlamaCppInstrumentor
from llamatel.llama.in_process import perf_counters as counters
from llamatel.records import Completion
from llamatel.telemetry.span_table import ATTRIBUTES, IN_PROCESS
from tests.parts import OtlpSink
from tests.recording import Recording
from tests.servers import without_settings

pytestmark = pytest.mark.usefixtures("llama_cpp")


class Traced:
    """Spans and metrics of the instrumented library."""

    def __init__(self) -> None:
        self.recording = Recording()
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)

    def calls(self, number: int) -> list[ReadableSpan]:
        """Wait for ``number`` call spans (another thread writes them) and return them by start time."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            found = [span for span in self.recording.spans if "gen_ai.operation.name" in (span.attributes or {})]
            if len(found) >= number:
                return sorted(found, key=lambda span: span.start_time or 0)
            time.sleep(0.01)
        raise AssertionError(f"{len(self.recording.spans)} spans after 20 s: {self.recording.spans}")

    def parts(self, of: ReadableSpan) -> dict[str, ReadableSpan]:
        """Return a call span's children by name."""
        return {
            span.name: span
            for span in self.recording.spans
            if span.parent is not None and of.context is not None and span.parent.span_id == of.context.span_id
        }

    def points(self, metric: str) -> list[Any]:
        """Collect and return the data points of a metric."""
        data = self.reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data is not None else ())
            for scope in resource.scope_metrics
            for each in scope.metrics
            if each.name == metric
            for point in each.data.data_points
        ]


@pytest.fixture
def traced() -> Iterator[Traced]:
    made = Traced()
    instrumentor = LlamaCppInstrumentor()
    instrumentor.instrument(tracer_provider=made.recording.provider, meter_provider=made.meters)
    yield made
    instrumentor.uninstrument()
    made.meters.shutdown()


Load = Callable[..., Any]


@pytest.fixture
def load(tiny_model: Path) -> Iterator[Load]:
    """Load the tiny model; it is closed after the test."""
    from llama_cpp import Llama

    loaded = []

    def make(path: Path = tiny_model, **arguments: Any) -> Any:
        llama = Llama(str(path), **{"n_ctx": 512, "verbose": False, "n_threads": 1, **arguments})
        loaded.append(llama)
        return llama

    yield make
    for llama in loaded:
        llama.close()


def attribute(span: ReadableSpan, name: str) -> Any:
    return (span.attributes or {})[name]


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def test_in_process_call_span_with_prefill_and_decode(traced: Traced, load: Load) -> None:
    llama = load()
    answer = llama("Hello there", max_tokens=12, temperature=0.5, seed=3)
    [span] = traced.calls(1)
    assert (span.name, span.kind, span.parent) == ("text_completion tiny.gguf", SpanKind.INTERNAL, None)
    usage = answer["usage"]
    expected = {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "llama.cpp",
        "gen_ai.request.model": "tiny.gguf",
        "gen_ai.request.max_tokens": 12,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.seed": 3,
        "gen_ai.response.id": answer["id"],
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": usage["completion_tokens"],
        "gen_ai.usage.cache_read.input_tokens": 0,
        "llamacpp.outcome": "ok",
        "llamacpp.context.tokens": llama.n_tokens,
        "llamacpp.kv_cache.capacity": 512,
        "llamacpp.model.architecture": "llama",
        "llamacpp.model.layers": 2,
        "llamacpp.model.heads": 4,
        "llamacpp.model.kv_heads": 2,
    }
    assert {name: (span.attributes or {}).get(name) for name in expected} == expected
    assert not {"server.address", "llamacpp.slot.id", "llamacpp.task.id"} & set(span.attributes or {})
    table = {row.name: row.type.partition(",")[0] for row in (*ATTRIBUTES, *IN_PROCESS)}
    types = {str: "string", int: "int", float: "double", bool: "boolean", tuple: "string[]"}
    for name, value in (span.attributes or {}).items():
        assert (name, types[type(value)]) == (name, table.get(name))
    parts = traced.parts(span)
    assert set(parts) == {"prefill", "decode"}
    # llama.cpp's counters count what it computed: never more than the time between two clock readings.
    for name, part in parts.items():
        assert 0 < attribute(span, f"llamacpp.{name}.compute_time") <= seconds(part) + 0.001
    assert (span.start_time or 0) <= (parts["prefill"].start_time or 0)
    assert parts["prefill"].end_time == parts["decode"].start_time
    assert (parts["decode"].end_time or 0) <= (span.end_time or 0)


def test_in_process_figures_equal_llama_cpp_counters(traced: Traced, load: Load) -> None:
    import llama_cpp

    llama = load()
    llama_cpp.llama_perf_context_reset(llama.ctx)
    llama("Hello there", max_tokens=20)
    data = llama_cpp.llama_perf_context(llama.ctx)
    [span] = traced.calls(1)
    assert attribute(span, "llamacpp.prompt.computed_tokens") == data.n_p_eval == len("Hello there") + 2
    assert attribute(span, "llamacpp.prefill.compute_time") == pytest.approx(data.t_p_eval_ms / 1e3)
    assert attribute(span, "llamacpp.decode.compute_time") == pytest.approx(data.t_eval_ms / 1e3)
    # Of 20 tokens the first came out of the prefill.
    assert data.n_eval == 19
    assert attribute(span, "llamacpp.decode.tokens_per_second") == pytest.approx(19e3 / data.t_eval_ms)


@pytest.mark.parametrize("verbose", [False, True])
def test_in_process_cached_tokens(
    traced: Traced, load: Load, *, verbose: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    llama = load(verbose=verbose)
    llama("Once upon a time", max_tokens=4, temperature=0)
    llama("Once upon a time there was", max_tokens=4, temperature=0)
    llama("Once upon a time there was", max_tokens=4, temperature=0)
    first, second, third = traced.calls(3)
    prompt = len("Once upon a time") + 2
    cached = [attribute(span, "gen_ai.usage.cache_read.input_tokens") for span in (first, second, third)]
    whole = len("Once upon a time there was") + 2
    # The last token of a fully cached prompt is computed again, because its logits are needed.
    assert cached == [0, prompt, whole - 1]
    if verbose:
        stderr = capfd.readouterr().err
        assert f"{prompt} prefix-match hit" in stderr
        assert f"{whole - 1} prefix-match hit" in stderr


def test_in_process_kv_cache_bytes(traced: Traced, load: Load, capfd: pytest.CaptureFixture[str]) -> None:
    import llama_cpp

    llama = load(n_ctx=1024, verbose=True, type_k=llama_cpp.GGML_TYPE_F32)
    stderr = capfd.readouterr().err
    llama("Hello", max_tokens=10)
    [span] = traced.calls(1)
    # llama_kv_cache: size =    0.38 MiB (  1024 cells,   2 layers,  1/1 seqs), K (f32): 0.25 MiB, V (f16): 0.12 MiB
    line = next(line for line in stderr.splitlines() if "size =" in line and "cells" in line)
    assert "1024 cells" in line
    size = 1024 * 2 * (2 * 16) * (4 + 2)
    assert f"size = {size / 2**20:7.2f} MiB" in line
    assert attribute(span, "llamacpp.kv_cache.size") == size
    memory = llama_cpp.llama_get_memory(llama.ctx)
    cells = llama_cpp.llama_memory_seq_pos_max(memory, 0) + 1 - llama_cpp.llama_memory_seq_pos_min(memory, 0)
    assert attribute(span, "llamacpp.context.tokens") == cells
    assert attribute(span, "llamacpp.kv_cache.used") == cells * size // 1024


def test_in_process_chat_span(traced: Traced, load: Load) -> None:
    llama = load()
    messages = [{"role": "user", "content": "Hello"}]
    answer = llama.create_chat_completion(messages, max_tokens=6)
    parts = list(llama.create_chat_completion(messages, max_tokens=6, stream=True))
    whole, streamed = traced.calls(2)
    for span in (whole, streamed):
        assert span.name == "chat tiny.gguf"
        assert attribute(span, "gen_ai.operation.name") == "chat"
        assert attribute(span, "gen_ai.usage.input_tokens") == answer["usage"]["prompt_tokens"]
        assert attribute(span, "gen_ai.usage.output_tokens") == 6
        assert attribute(span, "gen_ai.response.finish_reasons") == ("length",)
    assert attribute(streamed, "gen_ai.request.stream") is True
    assert attribute(streamed, "gen_ai.response.id") == parts[0]["id"]
    assert 0 < attribute(streamed, "gen_ai.response.time_to_first_chunk") <= seconds(streamed)
    assert len(traced.recording.spans) == 6


def test_in_process_dropped_stream_is_cancelled(traced: Traced, load: Load) -> None:
    llama = load()
    stream = llama.create_completion("Hello there", max_tokens=200, stream=True)
    for _ in range(3):
        next(stream)
    del stream
    gc.collect()
    llama.create_completion("never fetched", max_tokens=5, stream=True)
    llama("Hello again", max_tokens=2)
    cancelled, after = traced.calls(2)
    assert attribute(cancelled, "llamacpp.outcome") == "cancelled"
    assert cancelled.status.status_code is StatusCode.UNSET
    assert 3 <= attribute(cancelled, "gen_ai.usage.output_tokens") <= 5
    assert set(traced.parts(cancelled)) == {"prefill", "decode"}
    assert attribute(after, "llamacpp.outcome") == "ok"
    outcomes = {point.attributes["outcome"]: point.value for point in traced.points("llamacpp.requests")}
    assert (outcomes["ok"], outcomes["cancelled"], outcomes["error"]) == (1, 1, 0)


def test_in_process_stream_closed_after_model(traced: Traced, load: Load) -> None:
    llama = load()
    streams = [llama.create_completion("Hello there", max_tokens=200, stream=True) for _ in range(2)]
    for stream in streams:
        next(stream)
    forgotten = threading.Thread(target=streams.pop().close)
    forgotten.start()
    forgotten.join()
    llama.close()
    streams.pop().close()
    for span in traced.calls(2):
        assert attribute(span, "llamacpp.outcome") == "cancelled"
        assert "llamacpp.decode.compute_time" not in (span.attributes or {})


def test_in_process_slow_consumer_not_in_compute_time(traced: Traced, load: Load) -> None:
    for _ in load().create_completion("Hello", max_tokens=6, stream=True):
        time.sleep(0.05)
    [span] = traced.calls(1)
    assert seconds(traced.parts(span)["decode"]) > 0.2
    assert attribute(span, "llamacpp.decode.compute_time") < 0.2


def test_in_process_exception_is_recorded_and_raised(traced: Traced, load: Load) -> None:
    llama = load()

    def refuse(tokens: Any, scores: Any) -> Any:
        raise LookupError("no such token")

    with pytest.raises(ValueError, match="exceed context window"):
        llama("x" * 600)
    with pytest.raises(LookupError):
        list(llama.create_completion("Hi", stream=True, stopping_criteria=lambda *_: refuse(0, 0)))
    too_long, refused = traced.calls(2)
    assert attribute(too_long, "error.type") == "exceed_context_size_error"
    assert "exceed context window of 512" in str(too_long.status.description)
    assert attribute(refused, "error.type") == "LookupError"
    assert refused.status.status_code is StatusCode.ERROR
    [event] = refused.events
    assert (event.name, dict(event.attributes or {})) == (
        "exception",
        {"exception.type": "LookupError", "exception.message": "no such token"},
    )


def test_in_process_embeddings(traced: Traced, load: Load) -> None:
    llama = load(embedding=True)
    answer = llama.create_embedding(["hello", "there you are"])
    llama.embed("x")
    both, one = traced.calls(2)
    assert both.name == "embeddings tiny.gguf"
    assert attribute(both, "gen_ai.usage.input_tokens") == answer["usage"]["prompt_tokens"]
    assert attribute(one, "gen_ai.usage.input_tokens") == 3
    assert set(traced.parts(both)) == {"prefill"}
    assert "gen_ai.usage.output_tokens" not in (both.attributes or {})


def test_in_process_models_in_threads_are_separate(traced: Traced, load: Load) -> None:
    sizes = {3: load(), 11: load(), 19: load()}
    barrier = threading.Barrier(len(sizes))

    def complete(tokens: int, llama: Any) -> None:
        barrier.wait()
        for _ in range(5):
            with traced.recording.tracer.start_as_current_span(f"complete {tokens}"):
                for _part in llama.create_completion("x" * tokens, max_tokens=tokens, stream=True):
                    time.sleep(0)

    threads = [threading.Thread(target=complete, args=each) for each in sizes.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spans = traced.calls(15)
    outside = {span.context.span_id: span.name for span in traced.recording.spans if span.context is not None}
    for span in spans:
        tokens = attribute(span, "gen_ai.usage.output_tokens")
        assert attribute(span, "gen_ai.usage.input_tokens") == tokens + 2
        assert span.parent is not None
        assert outside[span.parent.span_id] == f"complete {tokens}"


def test_in_process_metrics(traced: Traced, load: Load, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "measured.gguf"
    path.symlink_to(tiny_model)
    llama, other = load(path), load(path, n_ctx=256)
    llama("Hello there", max_tokens=8)
    other("Hi", max_tokens=2)
    traced.calls(2)
    about = {"gen_ai.request.model": "measured.gguf"}
    [duration] = traced.points("gen_ai.server.request.duration")
    assert duration.count == 2
    assert duration.attributes == about | {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "llama.cpp",
    }
    for name in ("gen_ai.server.time_to_first_token", "gen_ai.server.time_per_output_token"):
        assert traced.points(name)[0].count == 2
    [capacity] = traced.points("llamacpp.kv_cache.capacity")
    assert (capacity.value, capacity.attributes) == (512 + 256, about)
    tokens_by_state = {point.attributes["state"]: point.value for point in traced.points("llamacpp.kv_cache.tokens")}
    assert tokens_by_state == {"active": 0, "cached": llama.n_tokens + other.n_tokens}
    tokens = {point.attributes["type"]: point.value for point in traced.points("llamacpp.tokens")}
    assert tokens == {"input_computed": 17, "input_cached": 0, "output": 10}
    for absent in (
        "llamacpp.server.up",
        "llamacpp.slots",
        "llamacpp.requests.deferred",
        "llamacpp.request.queue.duration",
    ):
        assert traced.points(absent) == []
    llama.close()
    time.sleep(0.6)  # readers that collect soon after one another share a snapshot
    [capacity] = traced.points("llamacpp.kv_cache.capacity")
    assert capacity.value == 256


def test_in_process_no_perf_has_no_figures(traced: Traced, load: Load) -> None:
    load(no_perf=True)("Hello", max_tokens=4)
    [span] = traced.calls(1)
    assert set(traced.parts(span)) == {"prefill", "decode"}
    assert not {name for name in span.attributes or {} if name.endswith(("compute_time", "tokens_per_second"))}
    assert "gen_ai.usage.input_tokens" not in (span.attributes or {})
    assert attribute(span, "gen_ai.usage.output_tokens") == 4


def test_in_process_uninstrument_restores(load: Load) -> None:
    from llama_cpp import Llama

    load()  # the first load sets Llama's backend flag
    before = dict(vars(Llama))
    recording = Recording()
    instrumentor = LlamaCppInstrumentor()
    instrumentor.instrument(tracer_provider=recording.provider)
    assert vars(Llama)["create_completion"] is not before["create_completion"]
    llama = load()
    stream = llama.create_completion("Hello", max_tokens=4, stream=True)
    next(stream)
    threads = threading.active_count()
    instrumentor.uninstrument()
    assert dict(vars(Llama)) == before
    assert len(list(stream)) == 4
    assert llama("Hello", max_tokens=3)["usage"]["completion_tokens"] == 3
    assert threading.active_count() <= threads
    assert recording.spans == []


def test_in_process_uses_init(load: Load, otlp_sink: OtlpSink, monkeypatch: pytest.MonkeyPatch) -> None:
    without_settings(monkeypatch)
    seen: list[Completion] = []
    instrumentor = LlamaCppInstrumentor()
    instrumentor.instrument()
    try:
        llamatel.init(
            otlp_endpoint=otlp_sink.endpoint,
            otlp_protocol="http/protobuf",
            metrics_addr="none",
            sinks=(lambda completion, _: seen.append(completion),),
        )
        llama = load()

        @llamatel.task
        def answer() -> None:
            llama("Hello", max_tokens=4)

        answer()
        assert llamatel.shutdown()
        llama("unseen", max_tokens=2)
    finally:
        instrumentor.uninstrument()
        llamatel.shutdown()
    names = {span.name: span for span in otlp_sink.spans()}
    [task] = [span for name, span in names.items() if name.endswith("answer")]
    call = names["text_completion tiny.gguf"]
    assert (call.trace_id, call.parent_id) == (task.trace_id, task.span_id)
    assert (call.kind, names["decode"].parent_id) == ("INTERNAL", call.span_id)
    [completion] = seen
    assert (completion.generated, completion.server.backend) == (4, "llama-cpp-python")


@pytest.mark.slow
def test_in_process_zero_code(tiny_model: Path, otlp_sink: OtlpSink, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom llama_cpp import Llama\n"
        "llama = Llama(sys.argv[1], n_ctx=256, verbose=False, n_threads=1)\n"
        "print(llama('Hello', max_tokens=5)['usage']['completion_tokens'])\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")} | {
        "OTEL_EXPORTER_OTLP_ENDPOINT": otlp_sink.endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_METRICS_EXPORTER": "otlp",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_SERVICE_NAME": "no-code",
    }
    command = [str(Path(sys.executable).with_name("opentelemetry-instrument")), "python", str(script), str(tiny_model)]
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "5\n", "")
    spans = {span.name: span for span in otlp_sink.spans()}
    assert set(spans) == {"text_completion tiny.gguf", "prefill", "decode"}
    assert spans["decode"].parent_id == spans["text_completion tiny.gguf"].span_id
    names = {metric.name for metric in otlp_sink.metrics()}
    assert {"gen_ai.server.request.duration", "llamacpp.kv_cache.tokens", "llamacpp.tokens"} <= names


def test_perf_counters_zero(load: Load) -> None:
    """llama.cpp reports a count of 1 for 0."""
    import llama_cpp

    llama = load()
    llama_cpp.llama_perf_context_reset(llama.ctx)
    assert llama_cpp.llama_perf_context(llama.ctx).n_eval == 1
    assert counters.read(llama) == counters.ZERO
